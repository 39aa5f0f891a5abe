//! The log against crashes, damage and its own operations.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use cairn_host::disk::real;

use super::*;

const OPTIONS: LogOptions = LogOptions { segment_bytes: 4096, recent_bytes: 1000 };

fn at(index: u64, term: u64) -> Position {
    Position { index, term }
}

fn record(index: u64, term: u64) -> Record {
    let payload = vec![(index % 251) as u8; 50 + (index % 200) as usize];
    Record { at: at(index, term), payload: payload.into() }
}

fn wait(ask: impl FnOnce(Flushed) -> io::Result<()>) {
    let (sender, receiver) = channel();
    ask(Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
}

fn append(log: &Log, range: Range<u64>, term: u64) {
    wait(|done| log.append(range.map(|index| record(index, term)).collect(), done));
}

fn check(log: &Log, range: Range<u64>, term: u64) {
    let want: Vec<Record> = range.clone().map(|index| record(index, term)).collect();
    assert_eq!(log.read(range, usize::MAX).unwrap(), want);
}

fn open(dir: &Path) -> Log {
    Log::open(dir, OPTIONS, real()).unwrap()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    paths.sort();
    paths
}

fn spoil(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], offset).unwrap();
}

#[test]
fn records_are_read_back_over_segments_and_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..100, 1);
    append(&log, 100..101, 2);
    check(&log, 0..100, 1);
    check(&log, 37..39, 1);
    assert!(segments(dir.path()).len() > 2);
    assert_eq!(log.read(50..1000, usize::MAX).unwrap().len(), 51);
    assert_eq!(log.read(0..100, 200).unwrap().len(), 2, "bounded by bytes");
    log.close();
    let log = open(dir.path());
    assert_eq!(log.last(), Some(at(100, 2)));
    check(&log, 0..100, 1);
    append(&log, 101..120, 2);
    check(&log, 101..120, 2);
}

#[test]
fn a_record_that_does_not_continue_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..3, 1);
    assert!(log.append(vec![record(4, 1)], Box::new(|_| {})).is_err());
    let huge = Record { at: at(3, 1), payload: vec![0; 5000].into() };
    assert!(log.append(vec![huge], Box::new(|_| {})).is_err());
    append(&log, 3..4, 1);
}

#[test]
fn truncated_records_are_gone_for_good() {
    for keep in [0, 1, 17, 50, 99] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        append(&log, 0..100, 1);
        wait(|done| log.truncate(Some(at(keep, 1)), done));
        assert_eq!(log.last(), Some(at(keep, 1)));
        check(&log, 0..keep + 1, 1);
        append(&log, keep + 1..keep + 30, 2);
        log.close();
        let log = open(dir.path());
        check(&log, 0..keep + 1, 1);
        check(&log, keep + 1..keep + 30, 2);
        assert_eq!(log.last(), Some(at(keep + 29, 2)));
    }
}

#[test]
fn purging_removes_whole_segments_and_may_pass_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..100, 1);
    let before = segments(dir.path()).len();
    wait(|done| log.purge(at(60, 1), done));
    assert!(segments(dir.path()).len() < before);
    assert_eq!(log.read(0..100, usize::MAX).unwrap().first().unwrap().at.index, 61);
    log.close();
    let log = open(dir.path());
    assert_eq!((log.purged(), log.last()), (Some(at(60, 1)), Some(at(99, 1))));
    check(&log, 61..100, 1);
    // A snapshot was installed far ahead.
    wait(|done| log.purge(at(500, 3), done));
    assert_eq!(log.last(), Some(at(500, 3)));
    assert!(segments(dir.path()).is_empty());
    append(&log, 501..510, 3);
    log.close();
    let log = open(dir.path());
    assert_eq!(log.last(), Some(at(509, 3)));
    check(&log, 501..510, 3);
    wait(|done| log.purge(at(509, 3), done));
    log.close();
    let log = open(dir.path());
    assert_eq!(log.last(), Some(at(509, 3)));
    append(&log, 510..512, 3);
    check(&log, 510..512, 3);
}

#[test]
fn what_is_closed_writes_no_more_into_what_the_next_one_opens() {
    let dir = tempfile::tempdir().unwrap();
    // Large, so that filling one takes a while.
    let options = LogOptions { segment_bytes: 64 << 20, ..OPTIONS };
    let log = Log::open(dir.path(), options, real()).unwrap();
    for index in 0..33 {
        let payload = vec![1; 1 << 20].into();
        wait(|done| log.append(vec![Record { at: at(index, 1), payload }], done));
    }
    log.close();
    let spare = fs::metadata(dir.path().join(segment::SPARE)).map_or(0, |found| found.len());
    assert_eq!(spare, u64::from(options.segment_bytes), "it is being filled yet");
}

#[test]
fn the_vote_and_the_committed_mark_survive() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert_eq!(log.vote(), None);
    append(&log, 0..5, 1);
    log.note_committed(Some(at(3, 1)));
    wait(|done| log.save_vote(Bytes::from_static(b"me"), done));
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.vote(), Some(Bytes::from_static(b"me")));
    assert_eq!(log.committed(), Some(at(3, 1)));
}

#[test]
fn a_torn_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..5, 1);
    let end = {
        let state = log.0.shared.lock();
        state.segments[&0].offset_of(4).unwrap()
    };
    log.close();
    spoil(&segments(dir.path())[0], u64::from(end) + 45);
    let log = open(dir.path());
    assert_eq!(log.last(), Some(at(3, 1)));
    append(&log, 4..10, 2);
    log.close();
    check(&open(dir.path()), 4..10, 2);
}

#[test]
fn of_several_records_torn_together_none_vouches_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..2, 1);
    append(&log, 2..6, 1); // one write: 3 was not on disk when 5 was written
    let offset = log.0.shared.lock().segments[&0].offset_of(3).unwrap();
    log.close();
    spoil(&segments(dir.path())[0], u64::from(offset) + 2);
    assert_eq!(open(dir.path()).last(), Some(at(2, 1)));
}

#[test]
fn damage_before_acknowledged_records_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for index in 0..8 {
        append(&log, index..index + 1, 1);
    }
    let offset = log.0.shared.lock().segments[&0].offset_of(3).unwrap();
    log.close();
    spoil(&segments(dir.path())[0], u64::from(offset) + 12);
    let error = Log::open(dir.path(), OPTIONS, real()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { index: 3, .. }), "{error}");
}

#[test]
fn damage_of_a_committed_end_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..5, 1);
    log.note_committed(Some(at(4, 1)));
    let offset = log.0.shared.lock().segments[&0].offset_of(4).unwrap();
    log.close();
    spoil(&segments(dir.path())[0], u64::from(offset) + 12);
    assert!(matches!(Log::open(dir.path(), OPTIONS, real()), Err(LogError::Damaged { index: 4, .. })));
}

#[test]
fn damage_in_an_earlier_segment_and_a_missing_one_stop_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0..100, 1);
    log.close();
    let files = segments(dir.path());
    let whole = fs::read(&files[0]).unwrap();
    spoil(&files[0], 100);
    assert!(matches!(Log::open(dir.path(), OPTIONS, real()), Err(LogError::Damaged { .. })));
    fs::write(&files[0], whole).unwrap();
    fs::remove_file(&files[1]).unwrap();
    assert!(Log::open(dir.path(), OPTIONS, real()).is_err());
}

/// Bytes of a frame that decide what it is: its magic, its length, its number, its payload.
const PLACES: [u64; 4] = [0, 5, 9, 45];

/// The file that holds a record, and where the record begins in it.
fn place_of(log: &Log, index: u64) -> (PathBuf, u64) {
    let state = log.0.shared.lock();
    let (_, segment) = state.segments.range(..=index).next_back().unwrap();
    (segment.path().to_owned(), u64::from(segment.offset_of(index).unwrap()))
}

#[test]
fn a_damaged_record_that_is_purged_takes_no_other_along() {
    // The purge ends in the last segment, and in one before it.
    for (end, purged) in [(8, 4), (100, 60)] {
        for (place, is_last) in PLACES.into_iter().flat_map(|place| [(place, false), (place, true)]) {
            let dir = tempfile::tempdir().unwrap();
            let log = open(dir.path());
            append(&log, 0..end, 1);
            wait(|done| log.purge(at(purged, 1), done));
            let first = *log.0.shared.lock().segments.keys().next().unwrap();
            let (path, offset) = place_of(&log, if is_last { purged } else { first });
            log.close();
            spoil(&path, offset + place);
            let log = open(dir.path());
            assert_eq!((log.purged(), log.last()), (Some(at(purged, 1)), Some(at(end - 1, 1))));
            check(&log, purged + 1..end, 1);
            append(&log, end..end + 3, 1);
            log.close();
            let log = open(dir.path());
            check(&log, purged + 1..end + 3, 1);
            wait(|done| log.truncate(Some(at(purged, 1)), done));
            append(&log, purged + 1..purged + 3, 2);
            check(&log, purged + 1..purged + 3, 2);
            log.close();
            let log = open(dir.path());
            assert_eq!(log.last(), Some(at(purged + 2, 2)));
            check(&log, purged + 1..purged + 3, 2);
        }
    }
}

#[test]
fn a_damaged_record_costs_nothing_when_all_are_purged() {
    for place in PLACES {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        append(&log, 0..8, 1);
        wait(|done| log.purge(at(7, 1), done));
        let (path, offset) = place_of(&log, 3);
        log.close();
        spoil(&path, offset + place);
        let log = open(dir.path());
        assert_eq!(log.last(), Some(at(7, 1)));
        append(&log, 8..10, 1);
        log.close();
        check(&open(dir.path()), 8..10, 1);
    }
}

#[test]
fn a_damaged_record_that_is_purged_hides_no_other_damage() {
    for (kept, place) in [5, 6].into_iter().flat_map(|kept| PLACES.map(|place| (kept, place))) {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        for index in 0..8 {
            append(&log, index..index + 1, 1);
        }
        wait(|done| log.purge(at(4, 1), done));
        let (path, purged_at) = place_of(&log, 2);
        let (_, kept_at) = place_of(&log, kept);
        log.close();
        spoil(&path, purged_at + 12);
        spoil(&path, kept_at + place);
        let before = fs::read(&path).unwrap();
        let error = Log::open(dir.path(), OPTIONS, real()).unwrap_err();
        assert!(matches!(error, LogError::Damaged { index, .. } if index == kept), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before, "nothing is removed by who does not know");
    }
}

#[test]
fn what_looks_like_a_record_inside_of_one_is_not_taken_for_the_first_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut forged = Vec::new();
    record::encode(&Record { at: at(3, 9), payload: vec![7; 80].into() }, 3, &mut forged);
    append(&log, 0..1, 1);
    wait(|done| log.append(vec![Record { at: at(1, 1), payload: forged.into() }], done));
    append(&log, 2..6, 1);
    wait(|done| log.purge(at(2, 1), done));
    let (path, offset) = place_of(&log, 1);
    log.close();
    spoil(&path, offset);
    let error = Log::open(dir.path(), OPTIONS, real()).unwrap_err();
    assert!(matches!(error, LogError::Damaged { index: 3, .. }), "{error}");
    spoil(&path, offset);
    check(&open(dir.path()), 3..6, 1);
}
