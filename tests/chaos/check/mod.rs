//! What must be true of a history: one property a file, each a function from events to what is wrong with them.

mod appends;
mod claims;
mod counts;
mod files;
mod moves;
mod registers;

pub use appends::render as render_record;

use std::collections::BTreeMap;

#[cfg(test)]
use crate::history::Outcome;
use crate::history::{Event, Operation, line};

/// What the cluster holds in the end, read when all faults are over.
#[derive(Default)]
pub struct Final {
    /// The bytes of each log.
    pub logs: BTreeMap<String, Vec<u8>>,
    /// The names in each directory with a moving file.
    pub directories: BTreeMap<String, Vec<String>>,
    /// The names that were made exclusively and exist.
    pub claimed: Vec<String>,
    /// The hash of each stored file that exists.
    pub files: BTreeMap<String, String>,
}

/// A property that does not hold, with the events that show it.
#[derive(Debug)]
pub struct Violation {
    pub what: String,
    pub events: Vec<Event>,
}

impl Violation {
    fn new(what: String, events: &[&Event]) -> Violation {
        Violation { what, events: events.iter().map(|&event| event.clone()).collect() }
    }

    /// For people: what is wrong, and the events.
    pub fn render(&self) -> String {
        let mut text = format!("{}\n", self.what);
        for event in &self.events {
            text += &format!("    {}\n", line(event));
        }
        text
    }
}

/// All that is wrong with a history.
pub fn all(events: &[Event], end: &Final) -> Vec<Violation> {
    let mut found = registers::check(events);
    found.extend(appends::check(events, &end.logs));
    found.extend(moves::check(events, &end.directories));
    found.extend(claims::check(events, &end.claimed));
    found.extend(counts::check(events));
    found.extend(files::check(events, &end.files));
    found
}

/// Groups what `key` is found in by it.
fn by_key<'a, K: Ord>(
    events: &'a [Event],
    key: impl Fn(&'a Operation) -> Option<K>,
) -> BTreeMap<K, Vec<&'a Event>> {
    let mut groups: BTreeMap<K, Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let Some(key) = key(&event.operation) {
            groups.entry(key).or_default().push(event);
        }
    }
    groups
}

/// A made-up event, for the tests of the checks.
#[cfg(test)]
fn event(start: u64, end: u64, operation: Operation, outcome: Outcome) -> Event {
    Event { start, end, by: "test".into(), operation, outcome }
}

#[cfg(test)]
fn lost() -> Outcome {
    Outcome::Unknown("no answer".into())
}

#[cfg(test)]
fn refused() -> Outcome {
    Outcome::Refused("refused".into())
}
