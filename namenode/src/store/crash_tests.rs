//! The store on a disk that loses what was not synced: after every crash it is as it was at some entry of the log,
//! not before the last durable one, and sound.

use std::path::Path;
use std::sync::Arc;

use cairn_host::disk::simulated::{Operation, SimulatedDisk};
use cairn_metadata::check::check;
use cairn_metadata::memory::MemoryStore;
use cairn_metadata::store::{Durability, Store, StoreError, Table};
use cairn_proto::ROOT_INODE;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{Command, CommandBatch, Cred, FormCluster, Mkdir, Mutation, NodeRef, OpenSession};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{RedbStore, stream};

const PATH: &str = "/node/store.redb";
const SEEDS: u64 = 40;
const ENTRIES: u64 = 60;

fn batch(index: u64) -> CommandBatch {
    let mkdir = |number: u64| {
        let path = format!("directory-{:03}-{number}", index % 40);
        Op::Mkdir(Mkdir {
            at: Some(NodeRef { inode: ROOT_INODE, path: path.into_bytes().into() }),
            mode: 0o755,
            ..Mkdir::default()
        })
    };
    let ops = match index {
        0 => vec![Op::FormCluster(FormCluster { cluster_id: "c".into(), ..FormCluster::default() })],
        _ => vec![Op::OpenSession(OpenSession::default()), mkdir(0), mkdir(1)],
    };
    let command = |op| Command {
        cred: Some(Cred::default()),
        mutation: Some(Mutation { op: Some(op) }),
        ..Command::default()
    };
    CommandBatch { time_ns: 1_000 + index as i64, commands: ops.into_iter().map(command).collect() }
}

/// Applies an entry as the state machine does: with its index in the same transaction.
fn apply(store: &dyn Store, index: u64, durability: Durability) -> Result<(), StoreError> {
    store.write(durability, &mut |txn| {
        cairn_metadata::apply(txn, &batch(index))?;
        txn.put(Table::Raft, b"applied", &index.to_be_bytes())
    })
}

fn applied(store: &dyn Store) -> Option<u64> {
    let view = store.snapshot().unwrap();
    let bytes = view.get(Table::Raft, b"applied").unwrap()?;
    Some(u64::from_be_bytes(bytes.try_into().unwrap()))
}

fn content(store: &dyn Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream::write(&*store.snapshot().unwrap(), &mut bytes).unwrap();
    bytes
}

/// The whole content after every entry; the first is that of an empty store.
fn history() -> Vec<Vec<u8>> {
    let model = MemoryStore::default();
    let mut history = vec![content(&model)];
    for index in 0..ENTRIES {
        apply(&model, index, Durability::Applied).unwrap();
        history.push(content(&model));
    }
    history
}

fn open(disk: &SimulatedDisk) -> Result<RedbStore, StoreError> {
    let mount = Arc::new(disk.mount());
    cairn_host::disk::create_dirs(&*mount, Path::new("/node"))
        .map_err(|error| StoreError::Engine(error.to_string()))?;
    RedbStore::open(Path::new(PATH), 1 << 20, mount)
}

/// Opens the store after a crash, through another one now and then.
fn reopen(disk: &SimulatedDisk, dice: &mut StdRng, context: &str) -> RedbStore {
    disk.cut_after(dice.random_range(0..60));
    match open(disk) {
        Ok(store) => {
            disk.cut_after(u64::MAX / 2);
            return store;
        }
        Err(StoreError::Engine(_)) => disk.crash(),
        Err(error) => panic!("{context}: {error}"),
    }
    open(disk).unwrap_or_else(|error| panic!("{context}: {error}"))
}

/// Checks what a crash left, and returns the number of entries in it.
fn judge(store: &RedbStore, history: &[Vec<u8>], durable: u64, context: &str) -> u64 {
    let entries = applied(store).map_or(0, |index| index + 1);
    assert!(entries >= durable, "{context}: {entries} entries, {durable} were durable");
    assert_eq!(content(store), history[entries as usize], "{context}: not the state of {entries} entries");
    if entries > 0 {
        let wrong = check(&*store.snapshot().unwrap()).unwrap();
        assert!(wrong.is_empty(), "{context}: {wrong:?}");
    }
    entries
}

#[test]
fn a_crash_leaves_the_last_durable_state_or_a_later_one() {
    let history = history();
    for seed in 0..SEEDS {
        let mut dice = StdRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(seed);
        let mut store = reopen(&disk, &mut dice, &format!("seed {seed}"));
        let mut entries = 0;
        let mut durable = 0;
        for life in 0..5 {
            disk.cut_after(dice.random_range(0..80));
            while entries < ENTRIES {
                let durability = match dice.random_range(0..4) {
                    0 => Durability::Durable,
                    _ => Durability::Applied,
                };
                if apply(&store, entries, durability).is_err() {
                    break;
                }
                entries += 1;
                if durability == Durability::Durable {
                    durable = entries;
                }
                if dice.random_range(0..20) == 0 {
                    break;
                }
            }
            if dice.random_range(0..3) == 0 {
                disk.kill()
            } else {
                disk.crash()
            }
            drop(store);
            let context = format!("seed {seed}, life {life}");
            store = reopen(&disk, &mut dice, &context);
            entries = judge(&store, &history, durable, &context);
        }
    }
}

#[test]
fn a_failed_sync_stops_the_store_and_is_not_forgotten_by_the_next_process() {
    let history = history();
    for seed in 0..SEEDS {
        let context = format!("seed {seed}");
        let mut dice = StdRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(seed);
        let store = open(&disk).unwrap();
        let durable = dice.random_range(1..20);
        for index in 0..durable {
            apply(&store, index, Durability::Applied).unwrap();
        }
        store.checkpoint().unwrap();
        apply(&store, durable, Durability::Applied).unwrap();
        disk.fail(PATH, Operation::Sync, libc::EIO, Some(1));
        assert!(store.checkpoint().is_err(), "{context}");
        let later = store.checkpoint().and_then(|()| apply(&store, durable + 1, Durability::Durable));
        assert!(later.is_err(), "{context}: it went on after a failed sync");
        // The process ends; what it failed to write is still in the kernel's cache.
        drop(store);
        disk.kill();
        let store = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        let entries = judge(&store, &history, durable, &context);
        apply(&store, entries, Durability::Durable).unwrap();
        disk.crash();
        drop(store);
        let store = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        judge(&store, &history, entries + 1, &context);
    }
}

#[test]
fn a_crash_while_a_snapshot_takes_the_stores_place_leaves_the_old_or_the_new() {
    let history = history();
    let (mut old, mut new) = (0, 0);
    for cut in 0..60 {
        let disk = SimulatedDisk::new(cut);
        let store = open(&disk).unwrap();
        apply(&store, 0, Durability::Durable).unwrap();
        disk.cut_after(cut);
        let replaced = store.replace(|fresh| stream::load(fresh, &history[30][..]));
        disk.crash();
        drop(store);
        let store = open(&disk).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        let context = format!("cut {cut}");
        let least = if replaced.is_ok() { 30 } else { 1 };
        match judge(&store, &history, least, &context) {
            1 => old += 1,
            30 => new += 1,
            other => panic!("{context}: {other} entries"),
        }
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new");
}
