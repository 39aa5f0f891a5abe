//! Exclusive creation: a name that many want to make has at most one winner, and one if nobody's outcome is unknown.

use super::{Violation, by_key};
use crate::history::{Event, Operation};

pub fn check(events: &[Event], existing: &[String]) -> Vec<Violation> {
    let of_name = |operation: &Operation| match operation {
        Operation::Claim { name } => Some(name.clone()),
        _ => None,
    };
    by_key(events, of_name)
        .iter()
        .filter_map(|(name, events)| claim(name, events, existing.contains(name)))
        .collect()
}

fn claim(name: &str, events: &[&Event], exists: bool) -> Option<Violation> {
    let winners = events.iter().filter(|event| event.done()).count();
    let unknown = events.iter().filter(|event| !event.done() && !event.refused()).count();
    let what = match (winners, unknown, exists) {
        (2.., _, _) => format!("{name}: {winners} have made it, each as the first"),
        (1, _, false) => format!("{name}: it was made and is lost"),
        (0, 0, _) => format!("{name}: everybody was told that another had made it"),
        _ => return None,
    };
    Some(Violation::new(what, events))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{event, lost, refused};
    use crate::history::Outcome;

    fn checked(outcomes: &[Outcome], exists: bool) -> usize {
        let claim = |outcome: &Outcome| event(1, 2, Operation::Claim { name: "n".into() }, outcome.clone());
        let events: Vec<Event> = outcomes.iter().map(claim).collect();
        let existing: Vec<String> = exists.then(|| "n".to_string()).into_iter().collect();
        check(&events, &existing).len()
    }

    #[test]
    fn one_winner_is_fine_and_two_or_none_are_found() {
        assert_eq!(checked(&[Outcome::Done, refused(), lost()], true), 0);
        assert_eq!(checked(&[refused(), lost()], true), 0);
        assert_eq!(checked(&[lost()], false), 0);
        assert_eq!(checked(&[Outcome::Done, Outcome::Done], true), 1);
        assert_eq!(checked(&[Outcome::Done, refused()], false), 1);
        assert_eq!(checked(&[refused(), refused()], true), 1);
    }
}
