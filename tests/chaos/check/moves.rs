//! Renames are atomic: the one file of a directory has exactly one name at any time, and in the end the one it was moved to.

use std::collections::BTreeMap;

use super::{Violation, by_key};
use crate::history::{Event, Operation};

pub fn check(events: &[Event], end: &BTreeMap<String, Vec<String>>) -> Vec<Violation> {
    let of_directory = |operation: &Operation| match operation {
        Operation::Move { directory, .. } | Operation::Look { directory, .. } => Some(directory.clone()),
        _ => None,
    };
    let nothing = Vec::new();
    by_key(events, of_directory)
        .iter()
        .flat_map(|(name, events)| directory(name, events, end.get(name).unwrap_or(&nothing)))
        .collect()
}

fn directory(name: &str, events: &[&Event], end: &[String]) -> Vec<Violation> {
    let mut found = Vec::new();
    for event in events.iter().filter(|event| event.done()) {
        if let Operation::Look { names, .. } = &event.operation
            && names.len() != 1
        {
            found.push(Violation::new(
                format!("{name}: one file was seen under {} names", names.len()),
                &[event],
            ));
        }
    }
    // One worker moves it, one move after the other, and gives up after the first that it does not know the outcome of.
    let mut moves: Vec<(&Event, &String, &String)> = Vec::new();
    for event in events {
        if let Operation::Move { from, to, .. } = &event.operation {
            if event.refused() {
                found.push(Violation::new(format!("{name}: a move of what was there was refused"), &[event]));
            } else {
                moves.push((event, from, to));
            }
        }
    }
    moves.sort_by_key(|(event, ..)| event.start);
    let Some((last, from, to)) = moves.last() else { return found };
    let allowed: &[&String] = if last.done() { &[to] } else { &[from, to] };
    if end.len() != 1 || !allowed.contains(&&end[0]) {
        found.push(Violation::new(format!("{name}: the file is under {end:?}, not {allowed:?}"), &[last]));
    }
    found.extend(looks(name, events, &moves));
    found
}

/// A look sees the name that some move left, not later than it ended and not undone before it began.
fn looks(name: &str, events: &[&Event], moves: &[(&Event, &String, &String)]) -> Option<Violation> {
    for look in events.iter().filter(|event| event.done()) {
        let Operation::Look { names, .. } = &look.operation else { continue };
        let [seen] = names.as_slice() else { continue };
        // Move `at` leaves its name from somewhere after its own start to somewhere before the next one's end.
        let fits = |at: usize| {
            let next_end = moves.get(at + 1).map_or(u64::MAX, |(next, ..)| next.finish());
            moves[at].2 == seen && moves[at].0.start <= look.end && look.start <= next_end
        };
        let first =
            moves.first().is_some_and(|(first, from, _)| *from == seen && look.start <= first.finish());
        // Without its first move nobody has said where the file was.
        if !moves.is_empty() && !first && !(0..moves.len()).any(fits) {
            return Some(Violation::new(format!("{name}: a stale or a future name was seen"), &[look]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{event, lost, refused};
    use crate::history::Outcome;

    fn step(start: u64, from: &str, to: &str, outcome: Outcome) -> Event {
        let operation = Operation::Move { directory: "d".into(), from: from.into(), to: to.into() };
        event(start, start + 2, operation, outcome)
    }

    fn look(start: u64, names: &[&str]) -> Event {
        let names = names.iter().map(|name| name.to_string()).collect();
        event(start, start + 1, Operation::Look { directory: "d".into(), names }, Outcome::Done)
    }

    fn checked(events: &[Event], end: &[&str]) -> usize {
        let names = end.iter().map(|name| name.to_string()).collect();
        check(events, &BTreeMap::from([("d".to_string(), names)])).len()
    }

    #[test]
    fn a_file_with_one_name_at_a_time_is_fine() {
        let moved = [step(1, "a", "b", Outcome::Done), look(2, &["a"]), look(4, &["b"])];
        assert_eq!(checked(&moved, &["b"]), 0);
        let perhaps = [step(1, "a", "b", Outcome::Done), step(5, "b", "c", lost()), look(9, &["b"])];
        assert_eq!(checked(&perhaps, &["b"]), 0);
        assert_eq!(checked(&perhaps, &["c"]), 0);
    }

    #[test]
    fn half_a_rename_is_found() {
        let done = [step(1, "a", "b", Outcome::Done)];
        assert_eq!(checked(&done, &["a"]), 1, "undone");
        assert_eq!(checked(&done, &["a", "b"]), 1, "both names");
        assert_eq!(checked(&done, &[]), 1, "no name");
        assert_eq!(checked(&[step(1, "a", "b", refused())], &["a"]), 1, "done twice");
        assert_eq!(checked(&[step(1, "a", "b", Outcome::Done), look(2, &["a", "b"])], &["b"]), 1);
        assert_eq!(checked(&[step(1, "a", "b", Outcome::Done), look(2, &[])], &["b"]), 1);
        assert_eq!(checked(&[step(1, "a", "b", Outcome::Done), look(8, &["a"])], &["b"]), 1, "stale");
        let perhaps = [step(1, "a", "b", Outcome::Done), step(5, "b", "c", lost())];
        assert_eq!(checked(&perhaps, &["a"]), 1);
    }
}
