//! Stored files: what was synced is there with its hash, always and in the end; what was removed stays away; no read ever
//! returns anything else.

use std::collections::BTreeMap;

use super::{Violation, by_key};
use crate::history::{Event, Operation};

pub fn check(events: &[Event], end: &BTreeMap<String, String>) -> Vec<Violation> {
    let of_path = |operation: &Operation| match operation {
        Operation::Keep { path, .. } | Operation::Check { path, .. } | Operation::Remove { path } => {
            Some(path.clone())
        }
        _ => None,
    };
    by_key(events, of_path).iter().flat_map(|(path, events)| file(path, events, end.get(path))).collect()
}

fn file(path: &str, events: &[&Event], end: Option<&String>) -> Vec<Violation> {
    let mut found = Vec::new();
    let kept = events.iter().find_map(|event| match &event.operation {
        Operation::Keep { hash, .. } if !event.refused() => Some((*event, hash)),
        _ => None,
    });
    let removed = events.iter().find(|event| matches!(event.operation, Operation::Remove { .. }));
    let Some((keep, hash)) = kept else { return found };
    let looks = events.iter().filter_map(|event| match &event.operation {
        Operation::Check { hash, .. } if event.done() => Some((Some(*event), hash.as_ref())),
        _ => None,
    });
    for (look, seen) in looks.chain([(None, end)]) {
        let (start, over) = look.map_or((u64::MAX, u64::MAX), |event| (event.start, event.end));
        let what = match seen {
            // A file that was never synced may be there in part.
            Some(seen) if seen != hash && keep.done() => format!("{path}: it holds {seen}, not {hash}"),
            None if keep.finish() < start && removed.is_none_or(|removed| over < removed.start) => {
                format!("{path}: it was synced and is not there")
            }
            Some(_) if removed.is_some_and(|removed| removed.done() && removed.end < start) => {
                format!("{path}: it was removed and is there")
            }
            _ => continue,
        };
        let all: Vec<&Event> = [Some(keep), removed.copied(), look].into_iter().flatten().collect();
        found.push(Violation::new(what, &all));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{event, lost};
    use crate::history::Outcome;

    fn keep(outcome: Outcome) -> Event {
        event(1, 2, Operation::Keep { path: "p".into(), hash: "h".into() }, outcome)
    }

    fn seen(start: u64, hash: Option<&str>) -> Event {
        let operation = Operation::Check { path: "p".into(), hash: hash.map(String::from) };
        event(start, start + 1, operation, Outcome::Done)
    }

    fn remove(start: u64, outcome: Outcome) -> Event {
        event(start, start + 1, Operation::Remove { path: "p".into() }, outcome)
    }

    fn checked(events: &[Event], end: Option<&str>) -> usize {
        check(events, &end.map(|hash| ("p".to_string(), hash.to_string())).into_iter().collect()).len()
    }

    #[test]
    fn what_is_kept_until_it_is_removed_is_fine() {
        assert_eq!(checked(&[keep(Outcome::Done), seen(4, Some("h"))], Some("h")), 0);
        assert_eq!(checked(&[keep(lost()), seen(4, None)], Some("part")), 0);
        assert_eq!(checked(&[keep(Outcome::Done), remove(4, Outcome::Done), seen(6, None)], None), 0);
        assert_eq!(checked(&[keep(Outcome::Done), remove(4, lost()), seen(6, None)], Some("h")), 0);
    }

    #[test]
    fn what_is_lost_damaged_or_back_is_found() {
        assert_eq!(checked(&[keep(Outcome::Done)], None), 1);
        assert_eq!(checked(&[keep(Outcome::Done)], Some("other")), 1);
        assert_eq!(checked(&[keep(Outcome::Done), seen(4, None)], Some("h")), 1);
        assert_eq!(checked(&[keep(Outcome::Done), seen(4, Some("other"))], Some("h")), 1);
        assert_eq!(checked(&[keep(Outcome::Done), remove(4, Outcome::Done)], Some("h")), 1);
    }
}
