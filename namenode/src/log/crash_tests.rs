//! The log on a disk that fails: what was acknowledged is there after every crash, and damage is never a shorter log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cairn_host::disk::simulated::{Operation, SimulatedDisk};
use rand::{Rng, RngCore, SeedableRng};

use super::*;

const OPTIONS: LogOptions = LogOptions { segment_bytes: 4096, recent_bytes: 700 };
const DIR: &str = "/node/log";
const SEEDS: u64 = 150;

/// Numbers of a seed.
struct Dice(rand::rngs::StdRng);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(rand::rngs::StdRng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end.max(1))
    }
}

fn open(disk: &SimulatedDisk) -> Result<Log, LogError> {
    Log::open(Path::new(DIR), OPTIONS, Arc::new(disk.mount()))
}

/// Asks, and says what came of it; nothing is acknowledged by a refusal.
fn ask(ask: impl FnOnce(Flushed) -> io::Result<()>) -> bool {
    let result = Arc::new(Mutex::new(None));
    let told = result.clone();
    let asked = ask(Box::new(move |result| *told.lock().unwrap() = Some(result.is_ok())));
    let told = result.lock().unwrap().take();
    match asked {
        Ok(()) => told.expect("a log in place answers before it returns"),
        Err(_) => false,
    }
}

/// What a log holds: everything that decides what a namenode has promised.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    vote: Option<u64>,
    purged: Option<Position>,
    records: Vec<Record>,
}

impl Content {
    fn last(&self) -> Option<Position> {
        self.records.last().map(|record| record.at).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn truncate(&mut self, next: u64) {
        self.records.retain(|record| record.at.index < next);
    }

    fn purge(&mut self, upto: Position) {
        self.records.retain(|record| record.at.index > upto.index);
        self.purged = Some(upto);
    }

    fn of(log: &Log) -> Content {
        let purged = log.purged();
        let first = purged.map_or(0, |purged| purged.index + 1);
        let end = log.last().map_or(0, |last| last.index + 1);
        let records = log.read(first..end, usize::MAX).unwrap();
        assert_eq!(records.len() as u64, end.saturating_sub(first), "a log has no gaps");
        let vote = log.vote().map(|vote| u64::from_le_bytes(vote[..].try_into().unwrap()));
        let content = Content { vote, purged, records };
        assert_eq!(content.last(), log.last());
        content
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Record>),
    Truncate(u64),
    Purge(Position),
    Vote(u64),
}

impl Step {
    /// A step that Raft may take: what is committed is never truncated.
    fn choose(dice: &mut Dice, now: &Content, term: u64, committed: u64) -> Step {
        match dice.below(10) {
            0 if !now.records.is_empty() => {
                let first = now.records[0].at.index.max(committed + 1);
                Step::Truncate(first + dice.below((now.next() + 1).saturating_sub(first)))
            }
            1 if !now.records.is_empty() => {
                Step::Purge(now.records[dice.below(now.records.len() as u64) as usize].at)
            }
            2 if dice.below(4) == 0 => Step::Purge(Position { index: now.next() + dice.below(50), term }),
            2 | 3 => Step::Vote(now.vote.unwrap_or(0) + 1 + dice.below(3)),
            _ => {
                let count = 1 + dice.below(5);
                let record = |index| {
                    let mut payload = vec![0; dice.below(900) as usize];
                    dice.0.fill_bytes(&mut payload);
                    Record { at: Position { index, term }, payload: payload.into() }
                };
                Step::Append((now.next()..now.next() + count).map(record).collect())
            }
        }
    }

    fn perform(&self, log: &Log, now: &Content) -> bool {
        match self.clone() {
            Step::Append(records) => ask(|done| log.append(records, done)),
            Step::Truncate(next) => {
                let before = now.records.iter().rev().find(|record| record.at.index < next);
                let keep = before.map(|record| record.at).or(now.purged);
                ask(|done| log.truncate(keep, done))
            }
            Step::Purge(upto) => ask(|done| log.purge(upto, done)),
            Step::Vote(vote) => ask(|done| log.save_vote(Bytes::copy_from_slice(&vote.to_le_bytes()), done)),
        }
    }

    fn apply(&self, content: &mut Content) {
        match self {
            Step::Append(records) => content.records.extend(records.iter().cloned()),
            Step::Truncate(next) => content.truncate(*next),
            Step::Purge(upto) => content.purge(*upto),
            Step::Vote(vote) => content.vote = Some(*vote),
        }
    }

    /// Whether `found` is what this step may leave of `before` when it is not finished.
    fn may_leave(&self, before: &Content, found: &Content) -> bool {
        let mut after = before.clone();
        self.apply(&mut after);
        if found == before || *found == after {
            return true;
        }
        let prefix = |whole: &[Record]| whole.starts_with(&found.records);
        match self {
            // Some of the records, from the first one on.
            Step::Append(_) => {
                (found.vote, found.purged) == (before.vote, before.purged)
                    && found.records.len() >= before.records.len()
                    && prefix(&after.records)
            }
            // A longer log than asked for, without a gap.
            Step::Truncate(_) => {
                (found.vote, found.purged) == (before.vote, before.purged)
                    && found.records.len() >= after.records.len()
                    && prefix(&before.records)
            }
            Step::Purge(_) | Step::Vote(_) => false,
        }
    }
}

/// Opens the log, through as many power cuts as come.
fn reopen(disk: &SimulatedDisk, dice: &mut Dice, context: &str) -> Log {
    for _ in 0..3 {
        disk.cut_after(dice.below(40));
        match open(disk) {
            Ok(log) => {
                disk.cut_after(u64::MAX / 2);
                return log;
            }
            Err(LogError::Io(_)) => disk.crash(),
            Err(error) => panic!("{context}: {error}"),
        }
    }
    open(disk).unwrap_or_else(|error| panic!("{context}: {error}"))
}

#[test]
fn what_was_acknowledged_is_there_after_every_crash() {
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let disk = SimulatedDisk::new(seed);
        let mut log = reopen(&disk, &mut dice, &format!("seed {seed}"));
        let mut now = Content::of(&log);
        let mut committed = 0;
        for life in 0..6 {
            let context = format!("seed {seed}, life {life}");
            disk.cut_after(dice.below(120));
            let mut unfinished = None;
            for _ in 0..dice.below(30) {
                let step = Step::choose(&mut dice, &now, life + 1, committed);
                if let Some(last) = now.last().filter(|_| dice.below(3) == 0) {
                    log.note_committed(Some(last));
                    committed = last.index;
                }
                if !step.perform(&log, &now) {
                    unfinished = Some(step);
                    break;
                }
                step.apply(&mut now);
                assert_eq!(Content::of(&log), now, "{context}");
            }
            // Once something failed, nothing is acknowledged any more.
            if unfinished.is_some() {
                let more = Step::Vote(1000 + life);
                assert!(!more.perform(&log, &now), "{context}");
            }
            // The power fails, or only the process ends: then its kernel still shows what was written.
            if dice.below(2) == 0 {
                disk.kill()
            } else {
                disk.crash()
            }
            log = reopen(&disk, &mut dice, &context);
            let found = Content::of(&log);
            let expected = match &unfinished {
                Some(step) => step.may_leave(&now, &found),
                None => found == now,
            };
            assert!(expected, "{context}: {unfinished:?}\nbefore {now:?}\nfound {found:?}");
            now = found;
            if dice.below(3) == 0 {
                disk.crash();
                log = reopen(&disk, &mut dice, &context);
                assert_eq!(Content::of(&log), now, "{context}: what a start found is promised");
            }
        }
    }
}

/// A log of a few groups, of which all but the last record are vouched for.
fn filled(disk: &SimulatedDisk, dice: &mut Dice, purges: bool) -> Content {
    let log = open(disk).unwrap();
    let mut now = Content { vote: None, purged: None, records: Vec::new() };
    for _ in 0..10 + dice.below(20) {
        let step = match Step::choose(dice, &now, 1, 0) {
            step @ (Step::Append(_) | Step::Vote(_)) => step,
            step @ Step::Purge(_) if purges => step,
            _ => continue,
        };
        assert!(step.perform(&log, &now));
        step.apply(&mut now);
    }
    log.note_committed(now.last());
    log.close();
    now
}

#[test]
fn a_flipped_bit_is_an_error_or_nothing_but_never_a_shorter_log() {
    let (refused, harmless) = flip_anywhere(false);
    assert!(refused > SEEDS / 4 && harmless > 0, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_flipped_bit_in_a_log_that_is_purged_is_an_error_or_nothing_too() {
    let (refused, harmless) = flip_anywhere(true);
    assert!(refused > 0 && harmless > 0, "{refused} refused, {harmless} harmless");
}

/// Flips a bit in one log after the other. How many were refused, and how many were as before.
fn flip_anywhere(purges: bool) -> (u64, u64) {
    let (mut refused, mut harmless) = (0, 0);
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let disk = SimulatedDisk::new(seed);
        let before = filled(&disk, &mut dice, purges);
        let (path, bit) = disk.flip_somewhere(DIR).unwrap();
        match open(&disk) {
            Err(_) => refused += 1,
            Ok(log) => {
                // In the zeros behind the last record, in the padding of one, or in one that is purged.
                assert_eq!(Content::of(&log), before, "seed {seed}: bit {bit} of {}", path.display());
                harmless += 1;
            }
        }
    }
    (refused, harmless)
}

/// Where the first segment is, and the bytes of it that hold purged records; nothing if there are none.
fn purged_bytes(log: &Log, purged: u64) -> Option<(PathBuf, Range<u64>)> {
    let state = log.0.shared.lock();
    let (_, segment) = state.segments.first_key_value()?;
    let last = u64::from(segment.offset_of(purged)?);
    let end = segment.offset_of(purged + 1).map_or(last + record::HEAD as u64, u64::from);
    Some((segment.path().to_owned(), segment::HEADER as u64..end))
}

#[test]
fn a_flipped_bit_in_a_purged_record_costs_none_of_the_others() {
    let mut flipped = 0;
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let disk = SimulatedDisk::new(seed);
        let mut before = filled(&disk, &mut dice, false);
        let chosen = dice.below(before.records.len() as u64) as usize;
        let Some(purged) = before.records.get(chosen).map(|record| record.at) else { continue };
        let log = open(&disk).unwrap();
        let purge = Step::Purge(purged);
        assert!(purge.perform(&log, &before));
        purge.apply(&mut before);
        let bytes = purged_bytes(&log, purged.index);
        log.close();
        let Some((path, bytes)) = bytes else { continue };
        let bit = (bytes.start + dice.below(bytes.end - bytes.start)) * 8 + dice.below(8);
        assert!(disk.flip(&path, bit));
        flipped += 1;
        let context = format!("seed {seed}: bit {bit} of {}, purged {purged:?}", path.display());
        let log = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(Content::of(&log), before, "{context}");
        let at = Position { index: before.next(), term: 2 };
        let more = Step::Append(vec![Record { at, payload: Bytes::from_static(b"more") }]);
        assert!(more.perform(&log, &before), "{context}");
        more.apply(&mut before);
        log.close();
        assert_eq!(Content::of(&open(&disk).unwrap()), before, "{context}");
    }
    assert!(flipped > SEEDS / 4, "{flipped}");
}

#[test]
fn a_failed_sync_is_final_even_for_the_next_process() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let disk = SimulatedDisk::new(seed);
        let log = open(&disk).unwrap();
        let mut now = Content::of(&log);
        for _ in 0..dice.below(8) {
            let step = Step::choose(&mut dice, &now, 1, 0);
            assert!(step.perform(&log, &now));
            step.apply(&mut now);
        }
        disk.fail(DIR, Operation::Sync, libc::EIO, Some(1));
        let step = loop {
            // A truncation that removes nothing syncs nothing.
            match Step::choose(&mut dice, &now, 2, 0) {
                Step::Purge(_) | Step::Truncate(_) => {}
                step => break step,
            }
        };
        assert!(!step.perform(&log, &now), "seed {seed}: {step:?} was acknowledged after a failed sync");
        assert!(!Step::Vote(99).perform(&log, &now), "seed {seed}: the log went on");
        drop(log);
        // The kernel shows what was never written. The next process must not build on it.
        disk.kill();
        let log = open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let seen = Content::of(&log);
        assert!(step.may_leave(&now, &seen), "seed {seed}: {step:?}\nbefore {now:?}\nfound {seen:?}");
        disk.crash();
        let found = Content::of(&open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}")));
        assert_eq!(found, seen, "seed {seed}: what the second process promised");
        lost += u32::from(seen == now);
    }
    assert!(lost > 0);
}

#[test]
fn a_disk_that_cannot_be_read_is_an_error_that_names_the_file() {
    let disk = SimulatedDisk::new(1);
    filled(&disk, &mut Dice::new(1), false);
    disk.fail(format!("{DIR}/{}", segment::file_name(0)), Operation::Read, libc::EIO, None);
    let error = open(&disk).unwrap_err().to_string();
    assert!(error.contains("00000.log"), "{error}");
}
