//! Locks exclude, and fence: what is counted under a lock is counted once, and nobody who lost the lock writes over it.
//!
//! A holder reads a number and writes the next. A write that was acknowledged shows that its holder still had the lock
//! when it began to write. So between taking a lock and that moment, nobody else may be in the same position.

use super::{Violation, by_key};
use crate::history::{Event, Operation};

pub fn check(events: &[Event]) -> Vec<Violation> {
    let of_lock = |operation: &Operation| match operation {
        Operation::Count { lock, .. } => Some(lock.clone()),
        _ => None,
    };
    by_key(events, of_lock).iter().flat_map(|(name, events)| lock(name, events)).collect()
}

/// When the lock was taken, and the number found under it.
fn held(event: &Event) -> (u64, u64) {
    match event.operation {
        Operation::Count { taken, read, .. } => (taken, read),
        _ => unreachable!("only counts come here"),
    }
}

fn lock(name: &str, events: &[&Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut done: Vec<&Event> = events.iter().copied().filter(|event| event.done()).collect();
    done.sort_by_key(|event| held(event).0);
    for pair in done.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        if held(other).0 < one.start {
            found.push(Violation::new(format!("lock {name} had two holders"), &[one, other]));
        } else if held(other).1 <= held(one).1 {
            let what = format!("lock {name}: what was counted under it was lost or written over");
            found.push(Violation::new(what, &[one, other]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{event, lost};
    use crate::history::Outcome;

    fn count(taken: u64, start: u64, read: u64, outcome: Outcome) -> Event {
        event(start, start + 1, Operation::Count { lock: "l".into(), taken, read }, outcome)
    }

    #[test]
    fn one_holder_after_the_other_is_fine() {
        let done = [count(1, 2, 0, Outcome::Done), count(4, 5, 1, Outcome::Done)];
        assert!(check(&done).is_empty());
        // What got no answer may count or not, and its holder may have lost the lock.
        let perhaps = [count(1, 2, 0, Outcome::Done), count(3, 9, 1, lost()), count(5, 6, 2, Outcome::Done)];
        assert!(check(&perhaps).is_empty());
    }

    #[test]
    fn two_holders_and_lost_numbers_are_found() {
        assert_eq!(check(&[count(1, 5, 0, Outcome::Done), count(3, 6, 0, Outcome::Done)]).len(), 1);
        assert_eq!(check(&[count(1, 2, 0, Outcome::Done), count(4, 5, 0, Outcome::Done)]).len(), 1);
        let over =
            [count(1, 2, 4, Outcome::Done), count(4, 5, 5, Outcome::Done), count(7, 8, 5, Outcome::Done)];
        assert_eq!(check(&over).len(), 1);
    }
}
