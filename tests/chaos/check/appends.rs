//! Appends: each acknowledged record is in its log once and whole, in the order of real time; each other one at most once.

use std::collections::BTreeMap;

use super::{Violation, by_key};
use crate::history::{Event, Operation};

/// The bytes of a record: one line that says which it is, of a length that follows from its number.
pub fn render(record: u64) -> Vec<u8> {
    let length = record.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    let mut line = format!("{record:016x} ");
    line.extend((0..length).map(|at| char::from(b'a' + ((record + at) % 26) as u8)));
    line.push('\n');
    line.into_bytes()
}

pub fn check(events: &[Event], logs: &BTreeMap<String, Vec<u8>>) -> Vec<Violation> {
    let of_log = |operation: &Operation| match operation {
        Operation::Append { log, .. } => Some(log.clone()),
        _ => None,
    };
    let nothing = Vec::new();
    by_key(events, of_log)
        .iter()
        .flat_map(|(name, events)| log(name, events, logs.get(name).unwrap_or(&nothing)))
        .collect()
}

fn number(event: &Event) -> u64 {
    match event.operation {
        Operation::Append { record, .. } => record,
        _ => unreachable!("only appends come here"),
    }
}

fn log(name: &str, events: &[&Event], content: &[u8]) -> Vec<Violation> {
    let mut found = Vec::new();
    let known: BTreeMap<u64, &Event> = events.iter().map(|&event| (number(event), event)).collect();
    let mut places: BTreeMap<u64, usize> = BTreeMap::new();
    let mut at = 0;
    for line in content.split_inclusive(|&byte| byte == b'\n') {
        let record = line.get(..16).and_then(|id| std::str::from_utf8(id).ok());
        let record = record.and_then(|id| u64::from_str_radix(id, 16).ok()).filter(|&id| render(id) == line);
        match record.map(|record| (record, known.get(&record))) {
            Some((record, Some(event))) => {
                if let Some(before) = places.insert(record, at) {
                    let what =
                        format!("log {name}: record {record:016x} is there twice, at {before} and {at}");
                    found.push(Violation::new(what, &[event]));
                }
                if event.refused() {
                    let what = format!("log {name}: record {record:016x} was refused and is there, at {at}");
                    found.push(Violation::new(what, &[event]));
                }
            }
            Some((record, None)) => {
                found.push(Violation::new(format!("log {name}: {record:016x} at {at} is nobody's"), &[]));
            }
            None => {
                let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
                found.push(Violation::new(format!("log {name}: no whole record at {at}: {shown:?}"), &[]));
            }
        }
        at += line.len();
    }
    for event in events.iter().filter(|event| event.done() && !places.contains_key(&number(event))) {
        let what = format!("log {name}: record {:016x} was acknowledged and is lost", number(event));
        found.push(Violation::new(what, &[event]));
    }
    found.extend(order(name, events, &places));
    found
}

/// Of two appends one of which was over before the other began, that one comes first.
fn order(name: &str, events: &[&Event], places: &BTreeMap<u64, usize>) -> Option<Violation> {
    let mut present: Vec<(&Event, usize)> =
        events.iter().filter_map(|&event| Some((event, *places.get(&number(event))?))).collect();
    present.sort_by_key(|(_, place)| *place);
    // The one that began last among those before a place: nothing at or after the place may have ended before it.
    let mut latest: Option<&Event> = None;
    for (event, _) in present {
        if let Some(before) = latest.filter(|before| event.finish() < before.start) {
            let what = format!("log {name}: a record stands before one that was acknowledged earlier");
            return Some(Violation::new(what, &[before, event]));
        }
        if latest.is_none_or(|latest| latest.start < event.start) {
            latest = Some(event);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{event, lost, refused};
    use crate::history::Outcome;

    fn append(start: u64, record: u64, outcome: Outcome) -> Event {
        event(start, start + 1, Operation::Append { log: "l".into(), record }, outcome)
    }

    fn checked(events: &[Event], content: &[u8]) -> usize {
        check(events, &BTreeMap::from([("l".to_string(), content.to_vec())])).len()
    }

    fn content(records: &[u64]) -> Vec<u8> {
        records.iter().flat_map(|&record| render(record)).collect()
    }

    #[test]
    fn a_log_with_all_records_once_is_fine() {
        let events = [append(1, 1, Outcome::Done), append(3, 2, lost()), append(5, 3, Outcome::Done)];
        assert_eq!(checked(&events, &content(&[1, 2, 3])), 0);
        assert_eq!(checked(&events, &content(&[1, 3, 2])), 0, "what got no answer may come late");
        assert_eq!(checked(&events, &content(&[1, 3])), 0, "or never");
    }

    #[test]
    fn what_is_wrong_with_a_log_is_found() {
        let events = [append(1, 1, Outcome::Done), append(3, 2, lost()), append(5, 3, Outcome::Done)];
        assert_eq!(checked(&events, &content(&[1])), 1, "lost");
        assert_eq!(checked(&events, &content(&[1, 3, 3])), 1, "doubled");
        assert_eq!(checked(&events, &content(&[1, 2, 3, 2])), 1, "doubled without an answer");
        assert_eq!(checked(&events, &content(&[3, 1])), 1, "out of order");
        assert_eq!(checked(&events, &content(&[1, 3, 9])), 1, "from nowhere");
        let mut torn = content(&[1, 3]);
        torn.truncate(torn.len() - 3);
        assert_eq!(checked(&events, &torn), 2, "cut, hence lost");
        let never = [append(1, 1, refused())];
        assert_eq!(checked(&never, &content(&[1])), 1, "refused and there");
        assert_eq!(check(&events, &BTreeMap::new()).len(), 2, "no log at all");
    }
}
