//! Registers are linearizable: every read returns what the last write before it wrote, in one order of all operations
//! that agrees with real time.
//!
//! Every write has a value of its own, which makes the question easy (Gibbons and Korach, *Testing Shared Memories*,
//! 1997). Take the operations on one value: its write and the reads that returned it. If one of them is over before another
//! begins, the register held this value at least from the first end to the last start (a *forward* zone); otherwise
//! there is a moment in which all of them are under way, and they can all be put there (a *backward* zone). The history is
//! linearizable if and only if no read is over before the write of its value begins, no two forward zones overlap, and
//! no backward zone lies inside a forward one.

use std::collections::BTreeMap;

use super::{Violation, by_key};
use crate::history::{Event, Operation};

pub fn check(events: &[Event]) -> Vec<Violation> {
    let of_register = |operation: &Operation| match operation {
        Operation::Write { register, .. } | Operation::Read { register, .. } => Some(register.clone()),
        _ => None,
    };
    by_key(events, of_register).iter().filter_map(|(name, events)| register(name, events)).collect()
}

/// All operations on one value of one register.
#[derive(Default)]
struct Cluster<'a> {
    write: Option<&'a Event>,
    reads: Vec<&'a Event>,
}

impl<'a> Cluster<'a> {
    fn all(&self) -> impl Iterator<Item = &'a Event> {
        self.write.into_iter().chain(self.reads.iter().copied())
    }

    fn first_end(&self, absent: bool) -> u64 {
        // Before anybody wrote, the register did not exist: as if that had been written at the very start.
        if absent { 0 } else { self.all().map(Event::finish).min().unwrap_or(u64::MAX) }
    }

    fn last_start(&self) -> u64 {
        self.all().map(|event| event.start).max().unwrap_or(0)
    }
}

struct Zone<'a> {
    low: u64,
    high: u64,
    forward: bool,
    value: Option<u64>,
    cluster: Cluster<'a>,
}

fn register(name: &str, events: &[&Event]) -> Option<Violation> {
    let mut clusters: BTreeMap<Option<u64>, Cluster> = BTreeMap::new();
    for &event in events.iter().filter(|event| !event.refused()) {
        match event.operation {
            Operation::Write { value, .. } => clusters.entry(Some(value)).or_default().write = Some(event),
            Operation::Read { value, .. } if event.done() => {
                clusters.entry(value).or_default().reads.push(event);
            }
            _ => {}
        }
    }
    let mut zones = Vec::new();
    for (value, cluster) in clusters {
        match (value, cluster.write) {
            (Some(value), None) => {
                let what = format!("register {name}: {value:x} was read and never written");
                return Some(Violation::new(what, &cluster.reads));
            }
            // Nobody knows whether it was written, and nobody saw it.
            (_, Some(write)) if cluster.reads.is_empty() && !write.done() => continue,
            (_, Some(write)) => {
                if let Some(read) = cluster.reads.iter().find(|read| read.end < write.start) {
                    let what = format!("register {name}: a value was read before it was written");
                    return Some(Violation::new(what, &[read, write]));
                }
            }
            (None, None) => {}
        }
        let (end, start) = (cluster.first_end(value.is_none()), cluster.last_start());
        zones.push(Zone { low: end.min(start), high: end.max(start), forward: end < start, value, cluster });
    }
    zones.sort_by_key(|zone| zone.low);
    conflict(name, &zones)
}

/// Zones come sorted by where they begin.
fn conflict(name: &str, zones: &[Zone]) -> Option<Violation> {
    let tell = |one: &Zone, other: &Zone| {
        let shown = |value: Option<u64>| value.map_or("nothing".into(), |value| format!("{value:x}"));
        let what = format!(
            "register {name} is not linearizable: it held {} and {} in a way that fits no order",
            shown(one.value),
            shown(other.value)
        );
        let mut events: Vec<&Event> = one.cluster.all().chain(other.cluster.all()).collect();
        events.sort_by_key(|event| event.start);
        Some(Violation::new(what, &events))
    };
    // The forward zones before the current one: they do not overlap, so the last is the one that reaches farthest.
    let mut last: Option<&Zone> = None;
    for zone in zones.iter().filter(|zone| zone.forward) {
        match last {
            Some(last) if zone.low < last.high => return tell(last, zone),
            _ => last = Some(zone),
        }
    }
    let forward: Vec<&Zone> = zones.iter().filter(|zone| zone.forward).collect();
    for zone in zones.iter().filter(|zone| !zone.forward) {
        let before = forward.partition_point(|forward| forward.low < zone.low);
        if let Some(around) = before.checked_sub(1).map(|last| forward[last])
            && zone.high < around.high
        {
            return tell(around, zone);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::check::{event, lost, refused};
    use crate::history::Outcome;

    fn write(start: u64, end: u64, value: u64) -> Event {
        event(start, end, Operation::Write { register: "r".into(), value }, Outcome::Done)
    }

    fn read(start: u64, end: u64, value: Option<u64>) -> Event {
        event(start, end, Operation::Read { register: "r".into(), value }, Outcome::Done)
    }

    fn unknown(mut event: Event) -> Event {
        event.outcome = lost();
        event
    }

    #[test]
    fn what_fits_an_order_is_fine() {
        let histories = [
            vec![read(1, 2, None), write(3, 4, 1), read(5, 6, Some(1))],
            // Both writes are under way at once, so either may be last.
            vec![write(1, 10, 1), write(2, 9, 2), read(11, 12, Some(1))],
            vec![write(1, 10, 1), write(2, 9, 2), read(11, 12, Some(2))],
            // A write without an answer may take effect late, or never.
            vec![unknown(write(1, 2, 1)), read(3, 4, None), read(5, 6, Some(1))],
            vec![unknown(write(1, 2, 1)), read(3, 4, None), write(5, 6, 2), read(7, 8, Some(2))],
            vec![write(1, 2, 1), unknown(write(3, 4, 2)), read(5, 6, Some(1)), read(7, 8, Some(2))],
        ];
        for history in histories {
            assert!(check(&history).is_empty(), "{history:#?}");
            assert!(linearizable(&history));
        }
    }

    #[test]
    fn what_fits_no_order_is_found() {
        let mut never = write(1, 2, 7);
        never.outcome = refused();
        let histories = [
            ("a lost write", vec![write(1, 2, 1), write(3, 4, 2), read(5, 6, Some(1))]),
            ("a lost first write", vec![write(1, 2, 1), read(3, 4, None)]),
            ("a stale read", vec![write(1, 2, 1), write(3, 10, 2), read(4, 5, Some(2)), read(6, 7, Some(1))]),
            (
                "a value that comes back",
                vec![write(1, 2, 1), unknown(write(3, 4, 2)), read(5, 6, Some(2)), read(7, 8, Some(1))],
            ),
            ("a read from the future", vec![read(1, 2, Some(1)), write(3, 4, 1)]),
            ("a value from nowhere", vec![read(1, 2, Some(9))]),
            ("a refused write that is there", vec![never, read(3, 4, Some(7))]),
        ];
        for (what, history) in histories {
            assert_eq!(check(&history).len(), 1, "{what}");
            assert!(!linearizable(&history), "{what}");
        }
    }

    /// Tries every order.
    fn linearizable(history: &[Event]) -> bool {
        fn search(left: &[&Event], held: Option<u64>) -> bool {
            let first_end = left.iter().map(|event| event.finish()).min().unwrap_or(u64::MAX);
            if left.iter().all(|event| !event.done()) {
                return true;
            }
            left.iter().enumerate().filter(|(_, event)| event.start <= first_end).any(|(at, event)| {
                let rest: Vec<&Event> = left
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != at)
                    .map(|(_, event)| *event)
                    .collect();
                match event.operation {
                    Operation::Write { value, .. } => search(&rest, Some(value)),
                    Operation::Read { value, .. } => value == held && search(&rest, held),
                    _ => unreachable!(),
                }
            })
        }
        let left: Vec<&Event> = history.iter().filter(|event| !event.refused()).collect();
        search(&left, None)
    }

    #[test]
    fn zones_and_trying_every_order_agree() {
        let mut random = SmallRng::seed_from_u64(1);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            // Distinct times, so that nothing hangs on who comes first at the same moment.
            let count = random.random_range(2..=6);
            let mut times: Vec<u64> = (1..=2 * count as u64).collect();
            let mut history = Vec::new();
            for number in 0..count as u64 {
                let one = times.swap_remove(random.random_range(0..times.len()));
                let other = times.swap_remove(random.random_range(0..times.len()));
                let (start, end) = (one.min(other), one.max(other));
                history.push(match random.random_range(0..5) {
                    0 | 1 => write(start, end, number),
                    2 => unknown(write(start, end, number)),
                    _ => read(
                        start,
                        end,
                        random.random_bool(0.8).then(|| random.random_range(0..count as u64)),
                    ),
                });
            }
            let expected = linearizable(&history);
            assert_eq!(check(&history).is_empty(), expected, "{history:#?}");
            *if expected { &mut good } else { &mut bad } += 1;
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    }
}
