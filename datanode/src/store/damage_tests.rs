//! Sealed replicas damaged on disk: found by a scrub and by a start, never served, and replaced in place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::ErrorCode;
use cairn_proto::limits::BLOCK_SIZE;
use tempfile::TempDir;

use super::format::{HEADER, RECORD, SEAL};
use super::tests::{bytes, flip, open, read, with_chunk};
use super::*;
use crate::scrub::{Plan, Scrubber};

const LENGTH: usize = 3 * BLOCK_SIZE + 1000;

fn cut(path: &Path, length: usize) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length as u64).unwrap();
}

/// Something done to the data file and the checksum file of a replica.
type Damage = (&'static str, fn(&Path, &Path));

const DAMAGE: [Damage; 11] = [
    ("flipped data", |data, _| flip(data, 70_000)),
    ("flipped last byte", |data, _| flip(data, LENGTH as u64 - 1)),
    ("cut data", |data, _| cut(data, BLOCK_SIZE + 5)),
    ("empty data", |data, _| cut(data, 0)),
    ("missing data", |data, _| std::fs::remove_file(data).unwrap()),
    ("flipped header", |_, sums| flip(sums, 13)),
    ("flipped seal", |_, sums| flip(sums, HEADER as u64 + 9)),
    ("flipped digest", |_, sums| flip(sums, HEADER as u64 + 30)),
    ("flipped record", |_, sums| flip(sums, (HEADER + SEAL + RECORD + 2) as u64)),
    ("cut checksums", |_, sums| cut(sums, HEADER + SEAL + RECORD + 3)),
    ("missing checksums", |_, sums| std::fs::remove_file(sums).unwrap()),
];

fn sealed(dir: &Path) -> (Store, Vec<u8>) {
    let data = bytes(4, LENGTH);
    let (store, appender, _peer) = with_chunk(dir, 5, &data, 50_000);
    store.seal(5, LENGTH as u64).unwrap();
    drop(appender);
    (store, data)
}

/// Blocks that are served; those that are must be right.
fn served(store: &Store, data: &[u8]) -> usize {
    let Ok(replica) = store.get(5) else { return 0 };
    let mut served = 0;
    for at in (0..LENGTH).step_by(BLOCK_SIZE) {
        let length = BLOCK_SIZE.min(LENGTH - at);
        match read(&replica, at as u64, length) {
            Ok(bytes) => {
                assert!(bytes == data[at..at + length]);
                served += 1;
            }
            Err(error) => assert!(matches!(error.code, ErrorCode::Corrupt | ErrorCode::PastEnd), "{error}"),
        }
    }
    served
}

#[test]
fn damage_is_found_by_a_scrub_and_good_blocks_are_served_also_after_a_restart() {
    for (what, damage) in DAMAGE {
        let dir = TempDir::new().unwrap();
        let (store, data) = sealed(dir.path());
        let replica = store.get(5).unwrap();
        assert!(replica.verify(&mut |_| true).unwrap(), "{what}: good at first");
        damage(&replica.dir().data_path(5), &replica.dir().sums_path(5));
        assert_eq!(replica.verify(&mut |_| true).unwrap_err().code, ErrorCode::Corrupt, "{what}");
        served(&store, &data);
        drop((replica, store));
        let store = open(&[dir.path()], None).unwrap();
        let served = served(&store, &data);
        let fewest = match what {
            "empty data" | "missing data" | "missing checksums" => 0,
            "cut data" | "cut checksums" => 1,
            "flipped data" | "flipped last byte" | "flipped record" => 3,
            _ => 4,
        };
        assert!(served >= fewest, "{what}: {served} blocks");
        if let Ok(replica) = store.get(5) {
            let found = store.notices().is_bad(5)
                || replica.phase() == Phase::Damaged
                || replica.verify(&mut |_| true).is_err();
            assert!(found, "{what}: not found after a restart");
            let refused = store.seal(5, LENGTH as u64);
            assert!(store.notices().is_bad(5) <= refused.is_err(), "{what}: sealed again");
        }
    }
}

#[test]
fn a_data_file_that_is_too_long_is_cut() {
    let dir = TempDir::new().unwrap();
    let (store, data) = sealed(dir.path());
    let replica = store.get(5).unwrap();
    let path = replica.dir().data_path(5);
    std::fs::write(&path, [&data[..], b"more"].concat()).unwrap();
    assert!(replica.verify(&mut |_| true).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), data);
}

#[test]
fn a_copy_takes_the_place_of_a_bad_replica() {
    for (what, damage) in DAMAGE {
        let dir = TempDir::new().unwrap();
        let (store, data) = sealed(dir.path());
        let seal = store.get(5).unwrap().seal_record().unwrap();
        let (path, sums) = (store.dirs()[0].data_path(5), store.dirs()[0].sums_path(5));
        let checksums = std::fs::read(&sums).unwrap();
        damage(&path, &sums);
        store.notices().bad(5, what);
        let mut incoming = store.incoming(5, LENGTH as u64, &seal.blake3, true).unwrap().unwrap();
        incoming.write(&data).unwrap();
        assert_eq!(incoming.finish(&store, &seal.blake3).unwrap(), seal);
        assert!(!store.notices().is_bad(5) && store.notices().counts() == (1, 1), "{what}");
        assert!(store.get(5).unwrap().verify(&mut |_| true).unwrap(), "{what}");
        assert!(
            std::fs::read(&path).unwrap() == data && std::fs::read(&sums).unwrap() == checksums,
            "{what}"
        );
        assert_eq!(store.space().used, LENGTH as u64, "{what}");
        drop(store);
        let store = open(&[dir.path()], None).unwrap();
        assert_eq!(served(&store, &data), 4, "{what}");
    }
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if until() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain for {what}");
}

#[test]
fn scrubbing_goes_on_where_it_stopped_and_remembers_what_it_found() {
    let dir = TempDir::new().unwrap();
    let (store, _) = sealed(dir.path());
    let store = Arc::new(store);
    let plan = Plan { period: Duration::from_secs(3600), bytes_per_second: 0 };
    let scrubber = Scrubber::start(store.clone(), plan.clone()).unwrap();
    wait("the first pass", || scrubber.info().full_pass_ns > 0);
    let first = scrubber.info();
    assert_eq!((first.found, first.left, first.verified, first.enabled), (0, 0, 1, true));
    assert!(first.next_pass_ns >= first.pass_began_ns + 3_600_000_000_000);
    flip(&store.dirs()[0].data_path(5), 7);
    scrubber.ask_for(&[5, 6]);
    wait("the damage found", || scrubber.info().found == 1);
    assert!(store.notices().is_bad(5));
    drop((scrubber, store));

    let store = Arc::new(open(&[dir.path()], None).unwrap());
    assert!(!store.notices().is_bad(5), "a start does not read everything");
    let scrubber = Scrubber::start(store.clone(), plan.clone()).unwrap();
    assert!(store.notices().is_bad(5), "but what was known stays known");
    let again = scrubber.info();
    assert_eq!((again.found, again.mended, again.full_pass_ns), (1, 0, first.full_pass_ns));
    store.delete(5).unwrap();
    assert_eq!(scrubber.info().mended, 1);
    scrubber.ask_for(&[]);
    wait("the ordered pass", || scrubber.info().full_pass_ns > first.full_pass_ns);
    assert_eq!(scrubber.info().verified, 0);
    drop((scrubber, store));
    let store = Arc::new(open(&[dir.path()], None).unwrap());
    let scrubber = Scrubber::start(store, plan).unwrap();
    assert_eq!((scrubber.info().found, scrubber.info().mended), (1, 1));
}

#[test]
fn a_slow_scrub_stops_at_once() {
    let dir = TempDir::new().unwrap();
    let (store, _) = sealed(dir.path());
    let plan = Plan { period: Duration::from_secs(3600), bytes_per_second: 1 };
    let scrubber = Scrubber::start(Arc::new(store), plan).unwrap();
    wait("the pass", || scrubber.info().pass_began_ns > 0);
    // At a byte a second this would take days.
    scrubber.stop();
}

#[test]
fn what_was_read_of_a_replaced_replica_says_nothing_of_the_new_one() {
    let dir = TempDir::new().unwrap();
    let data = bytes(5, 3 * BLOCK_SIZE);
    let (store, appender, _peer) = with_chunk(dir.path(), 5, &data, BLOCK_SIZE);
    let seal = store.seal(5, data.len() as u64).unwrap();
    drop(appender);
    let old = store.get(5).unwrap();
    store.accuse(&old, "a reader found it bad");
    let mut incoming = store.incoming(5, seal.length, &seal.blake3, true).unwrap().unwrap();
    incoming.write(&data).unwrap();
    incoming.finish(&store, &seal.blake3).unwrap();
    assert!(!store.notices().is_bad(5));
    store.accuse(&old, "a reader that took its time");
    assert!(!store.notices().is_bad(5));
    assert_eq!(store.notices().counts(), (1, 1));
    store.accuse(&store.get(5).unwrap(), "and the new one");
    assert!(store.notices().is_bad(5));
    store.delete(5).unwrap();
    store.accuse(&old, "there is none");
    assert!(!store.notices().is_bad(5));
}
