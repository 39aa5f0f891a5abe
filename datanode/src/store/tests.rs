//! The store against a model: appends, torn tails, flipped bits, restarts, failing and full disks.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_proto::ErrorCode;
use cairn_proto::checksum::BlockCrc;
use cairn_proto::limits::BLOCK_SIZE;
use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{HEADER, RECORD, SEAL};
use super::*;

pub(super) fn open(dirs: &[&Path], limit: Option<u64>) -> Result<Store> {
    let dirs = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    let store = Store::open(&StoreConfig { dirs, capacity_limit: limit, ..StoreConfig::default() })?;
    store.adopt_cluster("test")?;
    Ok(store)
}

/// A connected socket, as every appender has one; the other end is kept open by the caller.
pub(super) fn stream() -> (Arc<TcpStream>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    (Arc::new(ours), theirs)
}

pub(super) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(step).collect()
}

pub(super) fn append(appender: &mut Appender, data: &[u8]) -> Result<()> {
    let at = appender.length();
    append_at(appender, at, data)
}

/// Appends with the checksums that a writer which starts at `at` in a chunk of `appender`'s content has.
fn append_at(appender: &mut Appender, at: u64, data: &[u8]) -> Result<()> {
    let start = at / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    let lead = read(appender.replica(), start, (at - start) as usize)?;
    let mut tail = BlockCrc::at(start, 0);
    tail.append(&lead);
    let crcs = tail.append(data);
    if let Admission::New { tail } = appender.admit(at, &crcs, data)? {
        appender.write(tail, &crcs, data)?;
    }
    Ok(())
}

pub(super) fn read(replica: &Arc<Replica>, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut scratch = Scratch::default();
    let range = replica.read(offset, length, &mut scratch)?;
    let out = scratch.bytes(range).to_vec();
    assert_eq!(cairn_proto::checksum::piece_crcs(offset, &out), scratch.crcs);
    Ok(out)
}

/// A store in `dir` with one open chunk of `data`, appended in steps.
pub(super) fn with_chunk(dir: &Path, chunk: u64, data: &[u8], step: usize) -> (Store, Appender, TcpStream) {
    let store = open(&[dir], None).unwrap();
    let (ours, theirs) = stream();
    let mut appender = store.open_appender(chunk, 0, &ours).unwrap();
    for part in data.chunks(step) {
        append(&mut appender, part).unwrap();
    }
    (store, appender, theirs)
}

pub(super) fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn what_was_appended_is_read_in_any_range() {
    let dir = TempDir::new().unwrap();
    let data = bytes(1, 3 * BLOCK_SIZE + 4321);
    let (_store, appender, _peer) = with_chunk(dir.path(), 5, &data, 40_000);
    for (offset, length) in [(0, data.len()), (1, 1), (BLOCK_SIZE - 1, 2), (70_000, 100_000), (data.len(), 0)]
    {
        assert_eq!(read(appender.replica(), offset as u64, length).unwrap(), &data[offset..offset + length]);
    }
    let past = read(appender.replica(), data.len() as u64 - 1, 2).unwrap_err();
    assert_eq!(past.code, ErrorCode::PastEnd);
    assert_eq!(appender.replica().check_range(u64::MAX, 2).unwrap_err().code, ErrorCode::PastEnd);
}

#[test]
fn appending_held_bytes_again_succeeds_and_other_bytes_do_not() {
    let dir = TempDir::new().unwrap();
    let data = bytes(1, 2 * BLOCK_SIZE + 100);
    let (_store, mut appender, _peer) = with_chunk(dir.path(), 5, &data, 50_000);
    append_at(&mut appender, 100, &data[100..BLOCK_SIZE + 700]).unwrap();
    append_at(&mut appender, 0, &data).unwrap();
    assert_eq!(appender.length(), data.len() as u64);
    let mut other = data[100..200].to_vec();
    other[3] ^= 1;
    assert_eq!(append_at(&mut appender, 100, &other).unwrap_err().code, ErrorCode::OffsetMismatch);
    let beyond = bytes(9, 200);
    let at = data.len() as u64 - 100;
    assert_eq!(append_at(&mut appender, at, &beyond).unwrap_err().code, ErrorCode::OffsetMismatch);
    let gap = appender.admit(data.len() as u64 + 1, &[], &[]).unwrap_err();
    assert_eq!(gap.code, ErrorCode::OffsetMismatch);
    let damaged = appender.admit(data.len() as u64, &[1], b"x").unwrap_err();
    assert_eq!(damaged.code, ErrorCode::Corrupt);
    assert_eq!(appender.admit(u64::MAX, &[], b"x").unwrap_err().code, ErrorCode::TooLarge);
}

#[test]
fn one_writer_at_a_time_and_the_dead_make_way() {
    let dir = TempDir::new().unwrap();
    let store = open(&[dir.path()], None).unwrap();
    let (socket, peer) = stream();
    let mut first = store.open_appender(5, 0, &socket).unwrap();
    append(&mut first, b"abc").unwrap();
    let (ours, _theirs) = stream();
    assert_eq!(store.open_appender(5, 3, &ours).unwrap_err().code, ErrorCode::ChunkBusy);
    // The first writer's peer goes; its thread notices when its connection is shut down, and lets go.
    drop(peer);
    let thread = std::thread::spawn(move || {
        use std::io::Read;
        let _ = (&*socket).read(&mut [0]);
        drop(first);
    });
    let second = store.open_appender(5, 3, &ours).unwrap();
    thread.join().unwrap();
    assert_eq!(second.length(), 3);
    drop(second);
    assert_eq!(store.open_appender(5, 2, &ours).unwrap_err().code, ErrorCode::OffsetMismatch);
    assert_eq!(store.open_appender(6, 2, &ours).unwrap_err().code, ErrorCode::ChunkUnknown);
}

#[test]
fn a_seal_cuts_hashes_and_is_for_ever() {
    let dir = TempDir::new().unwrap();
    let data = bytes(2, 2 * BLOCK_SIZE + 777);
    let (store, mut appender, _peer) = with_chunk(dir.path(), 5, &data, 9_999);
    let length = BLOCK_SIZE as u64 + 50;
    assert_eq!(store.seal(5, data.len() as u64 + 1).unwrap_err().code, ErrorCode::PastEnd);
    let seal = store.seal(5, length).unwrap();
    let kept = &data[..length as usize];
    assert_eq!(seal.blake3, *blake3::hash(kept).as_bytes());
    assert_eq!(store.seal(5, length).unwrap(), seal);
    assert_eq!(store.seal(5, length - 1).unwrap_err().code, ErrorCode::ChunkSealed);
    let refused = appender.write(BlockCrc::at(0, 0), &[0], b"x").unwrap_err();
    assert_eq!(refused.code, ErrorCode::ChunkSealed);
    drop(appender);
    let (ours, _theirs) = stream();
    assert_eq!(store.open_appender(5, length, &ours).unwrap_err().code, ErrorCode::ChunkSealed);
    assert_eq!(read(&store.get(5).unwrap(), 0, kept.len()).unwrap(), kept);
    assert_eq!(read(&store.get(5).unwrap(), length, 1).unwrap_err().code, ErrorCode::PastEnd);
    assert_eq!(store.space().used, length);
    drop(store);
    let store = open(&[dir.path()], None).unwrap();
    assert_eq!(store.get(5).unwrap().seal_record(), Some(seal));
    assert_eq!(read(&store.get(5).unwrap(), 0, kept.len()).unwrap(), kept);
    let meta = std::fs::metadata(store.get(5).unwrap().dir().data_path(5)).unwrap();
    assert_eq!(meta.len(), length);
    assert!(meta.blocks() * 512 < 1 << 20, "blocks ahead of the end are given back");
}

#[test]
fn deleting_is_idempotent_and_final() {
    let dir = TempDir::new().unwrap();
    let (store, mut appender, _peer) = with_chunk(dir.path(), 5, b"abc", 3);
    store.delete(5).unwrap();
    store.delete(5).unwrap();
    assert_eq!(append(&mut appender, b"d").unwrap_err().code, ErrorCode::ChunkUnknown);
    assert_eq!(store.get(5).unwrap_err().code, ErrorCode::ChunkUnknown);
    assert_eq!(store.space().used, 0);
    assert!(!dir.path().join("chunks/05/0000000000000005.data").exists());
}

#[test]
fn a_clean_stop_is_believed_and_an_unclean_one_is_checked() {
    let dir = TempDir::new().unwrap();
    let data = bytes(3, BLOCK_SIZE + 5);
    let (store, mut appender, _peer) = with_chunk(dir.path(), 5, &data, 1000);
    assert_eq!(appender.sync().unwrap(), data.len() as u64);
    store.close();
    assert_eq!(append(&mut appender, b"late").unwrap_err().code, ErrorCode::ChunkSealed);
    drop((store, appender));
    let store = open(&[dir.path()], None).unwrap();
    assert_eq!(store.get(5).unwrap().phase(), Phase::Open);
    assert_eq!(read(&store.get(5).unwrap(), 0, data.len()).unwrap(), data);
    drop(store);
    // Now without a mark.
    let store = open(&[dir.path()], None).unwrap();
    assert_eq!(store.get(5).unwrap().phase(), Phase::Unchecked);
    assert_eq!(read(&store.get(5).unwrap(), 0, 1).unwrap_err().code, ErrorCode::Unchecked);
    let (ours, _theirs) = stream();
    assert_eq!(store.open_appender(5, data.len() as u64, &ours).unwrap_err().code, ErrorCode::Unchecked);
    assert!(store.inventory_of(5).replicas[0].unchecked);
    store.check_all(|| false);
    assert_eq!(store.notices().take().changed.into_iter().collect::<Vec<_>>(), vec![5]);
    let mut appender = store.open_appender(5, data.len() as u64, &ours).unwrap();
    append(&mut appender, b"more").unwrap();
    assert_eq!(read(appender.replica(), 0, data.len()).unwrap(), data);
}

#[test]
fn a_replica_says_how_much_of_it_is_on_the_disk() {
    let dir = TempDir::new().unwrap();
    let (store, mut appender, _peer) = with_chunk(dir.path(), 5, &bytes(3, 1000), 1000);
    assert_eq!(appender.replica().synced(), 0);
    appender.sync().unwrap();
    append(&mut appender, b"more").unwrap();
    assert_eq!(appender.replica().synced(), 1000);
    drop((appender, store));
    let store = open(&[dir.path()], None).unwrap();
    assert_eq!(store.get(5).unwrap().synced(), 0, "nobody knows yet");
    store.check_all(|| false);
    assert_eq!(store.get(5).unwrap().synced(), 1004, "what a check found is on the disk");
    store.seal(5, 900).unwrap();
    assert_eq!(store.get(5).unwrap().synced(), 900);
}

#[test]
fn what_cannot_be_checked_on_a_full_disk_is_checked_later() {
    let dir = TempDir::new().unwrap();
    let data = bytes(3, 100_000);
    drop(with_chunk(dir.path(), 5, &data, 50_000));
    let store = open(&[dir.path()], None).unwrap();
    let faults = &store.dirs()[0].faults.write;
    for errno in [libc::ENOSPC, libc::EMFILE] {
        faults.store(errno, Ordering::Relaxed);
        assert!(!store.check_all(|| false), "there is something left to check");
        assert_eq!(store.get(5).unwrap().phase(), Phase::Unchecked);
        assert!(store.inventory_of(5).replicas[0].unchecked && !store.notices().is_bad(5));
    }
    faults.store(0, Ordering::Relaxed);
    assert!(store.check_all(|| false));
    assert_eq!(read(&store.get(5).unwrap(), 0, data.len()).unwrap(), data);
}

#[test]
fn torn_records_and_lost_data_cost_the_tail_only() {
    let dir = TempDir::new().unwrap();
    let data = bytes(4, 3 * BLOCK_SIZE);
    let (store, appender, _peer) = with_chunk(dir.path(), 5, &data, BLOCK_SIZE / 2);
    let (data_path, sums_path) =
        (appender.replica().dir().data_path(5), appender.replica().dir().sums_path(5));
    drop((store, appender));
    // The last record is torn, and half a block of data never reached the disk.
    let sums = std::fs::OpenOptions::new().write(true).open(&sums_path).unwrap();
    let size = sums.metadata().unwrap().len();
    assert_eq!(size, (HEADER + 6 * RECORD) as u64);
    sums.set_len(size - 5).unwrap();
    let store = open(&[dir.path()], None).unwrap();
    store.check_all(|| false);
    let replica = store.get(5).unwrap();
    assert_eq!(replica.length(), (2 * BLOCK_SIZE + BLOCK_SIZE / 2) as u64);
    assert_eq!(std::fs::metadata(&data_path).unwrap().len(), replica.length());
    assert_eq!(store.space().used, replica.length());
    drop((replica, store));
    let data_file = std::fs::OpenOptions::new().write(true).open(&data_path).unwrap();
    data_file.set_len(BLOCK_SIZE as u64 + 10).unwrap();
    let store = open(&[dir.path()], None).unwrap();
    store.check_all(|| false);
    assert_eq!(store.get(5).unwrap().length(), BLOCK_SIZE as u64);
    assert_eq!(read(&store.get(5).unwrap(), 0, BLOCK_SIZE).unwrap(), &data[..BLOCK_SIZE]);
}

#[test]
fn a_damaged_block_is_never_served_and_its_neighbours_are() {
    let dir = TempDir::new().unwrap();
    let data = bytes(5, 3 * BLOCK_SIZE);
    let (store, appender, _peer) = with_chunk(dir.path(), 5, &data, BLOCK_SIZE);
    let path = appender.replica().dir().data_path(5);
    flip(&path, BLOCK_SIZE as u64 + 100);
    let corrupt = |range: std::ops::Range<usize>| {
        let result = read(&store.get(5).unwrap(), range.start as u64, range.len());
        result.err().map(|error| error.code)
    };
    assert_eq!(corrupt(0..BLOCK_SIZE), None);
    assert_eq!(corrupt(BLOCK_SIZE..BLOCK_SIZE + 1), Some(ErrorCode::Corrupt));
    assert_eq!(store.seal(5, data.len() as u64).unwrap_err().code, ErrorCode::Corrupt);
    assert!(store.notices().take().bad.contains_key(&5));
    flip(&path, BLOCK_SIZE as u64 + 100);
    store.seal(5, data.len() as u64).unwrap();
    let sums = store.get(5).unwrap().dir().sums_path(5);
    flip(&sums, (HEADER + SEAL + 2 * RECORD + 9) as u64);
    assert_eq!(corrupt(BLOCK_SIZE..2 * BLOCK_SIZE), None);
    assert_eq!(corrupt(2 * BLOCK_SIZE..2 * BLOCK_SIZE + 1), Some(ErrorCode::Corrupt));
}

#[test]
fn damaged_checksum_files_are_reported_and_can_be_deleted() {
    let dir = TempDir::new().unwrap();
    let (store, appender, _peer) = with_chunk(dir.path(), 5, b"abc", 3);
    store.seal(5, 3).unwrap();
    let sums = appender.replica().dir().sums_path(5);
    drop((store, appender));
    flip(&sums, HEADER as u64 + 20);
    let store = open(&[dir.path()], None).unwrap();
    // What its records bear out is served, but nobody may count on it.
    assert_eq!(read(&store.get(5).unwrap(), 0, 3).unwrap(), b"abc");
    assert_eq!(store.seal(5, 3).unwrap_err().code, ErrorCode::Corrupt);
    assert!(store.notices().take().bad.contains_key(&5));
    drop(store);
    flip(&sums, HEADER as u64 + SEAL as u64);
    let store = open(&[dir.path()], None).unwrap();
    let page = store.inventory_of(5);
    let report = &page.replicas[0];
    assert_eq!((report.length, report.sealed, report.unchecked), (0, false, false));
    assert_eq!(read(&store.get(5).unwrap(), 0, 1).unwrap_err().code, ErrorCode::Corrupt);
    store.delete(5).unwrap();
    drop(store);
    assert!(open(&[dir.path()], None).unwrap().get(5).is_err());
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    drop(with_chunk(dir.path(), 5, b"abc", 3));
    let sums = dir.path().join("chunks/05/0000000000000005.crc");
    let mut content = std::fs::read(&sums).unwrap();
    content[8] = 2;
    let crc = cairn_proto::checksum::crc32c(&content[..28]);
    content[28..32].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&sums, &content).unwrap();
    assert_eq!(open(&[dir.path()], None).unwrap_err().code, ErrorCode::Version);
    assert_eq!(std::fs::read(&sums).unwrap(), content);
    let version = dir.path().join("VERSION");
    std::fs::write(&version, r#"{"format": 2, "shape": "unknown"}"#).unwrap();
    assert_eq!(open(&[dir.path()], None).unwrap_err().code, ErrorCode::Version);
    std::fs::write(&version, "garbage").unwrap();
    assert_eq!(open(&[dir.path()], None).unwrap_err().code, ErrorCode::Malformed);
    std::fs::remove_file(&version).unwrap();
    assert_eq!(open(&[dir.path()], None).unwrap_err().code, ErrorCode::Malformed);
}

#[test]
fn a_directory_has_one_user_one_cluster_and_must_be_a_directory() {
    let dir = TempDir::new().unwrap();
    let store = open(&[dir.path()], None).unwrap();
    let busy = open(&[dir.path()], None).unwrap_err();
    assert_eq!(busy.code, ErrorCode::Unavailable);
    assert!(busy.detail.contains("in use by another process"), "{busy}");
    assert_eq!(store.adopt_cluster("other").unwrap_err().code, ErrorCode::WrongCluster);
    let uuid = store.uuid();
    drop(store);
    let second = TempDir::new().unwrap();
    let store = open(&[dir.path(), second.path()], None).unwrap();
    assert_eq!((store.uuid(), store.cluster_id().as_deref()), (uuid, Some("test")));
    drop(store);
    let third = TempDir::new().unwrap();
    drop(open(&[third.path()], None).unwrap());
    assert_eq!(open(&[dir.path(), third.path()], None).unwrap_err().code, ErrorCode::Invalid);
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let refused = open(&[&file], None).unwrap_err();
    assert!(refused.detail.contains("cannot be used"), "{refused}");
    assert!(open(&[Path::new("/proc/cairn")], None).is_err());
}

#[test]
fn a_full_datanode_refuses_appends_and_gets_its_space_back() {
    let dir = TempDir::new().unwrap();
    let store = open(&[dir.path()], Some(100_000)).unwrap();
    let (ours, _theirs) = stream();
    let mut appender = store.open_appender(5, 0, &ours).unwrap();
    append(&mut appender, &bytes(1, 90_000)).unwrap();
    assert_eq!(append(&mut appender, &bytes(2, 10_001)).unwrap_err().code, ErrorCode::DiskFull);
    append(&mut appender, &bytes(2, 10_000)).unwrap();
    assert_eq!(store.space().available, 0);
    assert_eq!(store.space().capacity, 100_000);
    assert_eq!(store.open_appender(6, 0, &ours).unwrap_err().code, ErrorCode::DiskFull);
    assert_eq!(store.incoming(7, 1, &[], false).unwrap_err().code, ErrorCode::DiskFull);
    store.delete(5).unwrap();
    assert_eq!(store.space().available, 100_000);
    let mut appender = store.open_appender(6, 0, &ours).unwrap();
    let dir = appender.replica().dir().clone();
    dir.faults.write.store(libc::ENOSPC, Ordering::Relaxed);
    assert_eq!(append(&mut appender, b"x").unwrap_err().code, ErrorCode::DiskFull);
    assert!(!dir.is_fenced());
    dir.faults.write.store(0, Ordering::Relaxed);
    append(&mut appender, b"x").unwrap();
}

#[test]
fn what_a_failed_disk_or_a_damaged_replica_held_counts_no_more() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&[one.path(), two.path()], Some(100_000)).unwrap();
    let (ours, _theirs) = stream();
    let mut first = store.open_appender(1, 0, &ours).unwrap();
    append(&mut first, &bytes(1, 60_000)).unwrap();
    let mut second = store.open_appender(2, 0, &ours).unwrap();
    append(&mut second, &bytes(2, 30_000)).unwrap();
    let dir = second.replica().dir().clone();
    dir.faults.sync.store(libc::ENOSPC, Ordering::Relaxed);
    second.sync().unwrap_err();
    dir.faults.sync.store(0, Ordering::Relaxed);
    assert_eq!((second.replica().phase(), store.space().used), (Phase::Damaged, 60_000));
    first.replica().dir().fence("test");
    assert_eq!(store.space().used, 0);
    let mut incoming = store.incoming(1, 60_000, &[], true).unwrap().unwrap();
    incoming.write(&bytes(1, 60_000)).unwrap();
    incoming.finish(&store, &[]).unwrap();
    assert_eq!(store.space().used, 60_000);
    store.delete(1).unwrap();
    store.delete(2).unwrap();
    assert_eq!((store.space().used, store.space().available), (0, 100_000));
}

#[test]
fn a_failed_disk_takes_its_own_chunks_only() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&[one.path(), two.path()], None).unwrap();
    let (ours, _theirs) = stream();
    let mut first = store.open_appender(1, 0, &ours).unwrap();
    append(&mut first, &bytes(1, 1000)).unwrap();
    let mut second = store.open_appender(2, 0, &ours).unwrap();
    append(&mut second, b"two").unwrap();
    assert_ne!(first.replica().dir().path(), second.replica().dir().path());
    first.replica().dir().faults.write.store(libc::EIO, Ordering::Relaxed);
    assert_eq!(append(&mut first, b"x").unwrap_err().code, ErrorCode::DiskFailed);
    assert_eq!(store.get(1).unwrap_err().code, ErrorCode::DiskFailed);
    assert!(store.notices().take().everything);
    assert_eq!(store.space().failed_dirs, 1);
    let page = store.inventory_page(0, 10);
    assert_eq!(page.replicas.iter().map(|replica| replica.chunk).collect::<Vec<_>>(), vec![2]);
    append(&mut second, b"more").unwrap();
    let third = store.open_appender(3, 0, &ours).unwrap();
    assert_eq!(third.replica().dir().path(), second.replica().dir().path());
    second.replica().dir().fence("test");
    assert_eq!(store.open_appender(4, 0, &ours).unwrap_err().code, ErrorCode::DiskFailed);
    assert_eq!(store.space().failed_dirs, 2);
}

/// Two directories of one datanode that both hold chunk 1, sealed: the disk of the first was away meanwhile.
fn with_double(one: &Path, two: &Path) -> Store {
    let store = open(&[one, two], None).unwrap();
    let (ours, _theirs) = stream();
    let mut appender = store.open_appender(1, 0, &ours).unwrap();
    append(&mut appender, &bytes(1, 1000)).unwrap();
    drop(appender);
    let seal = store.seal(1, 1000).unwrap();
    store.get(1).unwrap().dir().fence("test");
    let mut incoming = store.incoming(1, 1000, &seal.blake3, true).unwrap().unwrap();
    incoming.write(&bytes(1, 1000)).unwrap();
    incoming.finish(&store, &seal.blake3).unwrap();
    drop(store);
    let store = open(&[one, two], None).unwrap();
    assert_eq!((store.replica_count(), store.space().used), (1, 2000));
    store
}

fn files_of_chunks(dirs: [&Path; 2]) -> usize {
    let found = dirs.map(|dir| std::fs::read_dir(dir.join("chunks/01")).unwrap().count());
    found.into_iter().sum()
}

#[test]
fn a_second_replica_on_a_disk_that_comes_back_is_deleted_with_the_first() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = with_double(one.path(), two.path());
    assert_eq!(files_of_chunks([one.path(), two.path()]), 4);
    store.delete(1).unwrap();
    assert_eq!((files_of_chunks([one.path(), two.path()]), store.space().used), (0, 0));
}

#[test]
fn a_second_replica_goes_once_the_first_was_read_and_is_whole() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = with_double(one.path(), two.path());
    store.check_all(|| false);
    assert_eq!((files_of_chunks([one.path(), two.path()]), store.space().used), (2, 1000));
    assert_eq!(read(&store.get(1).unwrap(), 0, 1000).unwrap(), bytes(1, 1000));
}

#[test]
fn a_second_replica_counts_when_the_first_is_damaged_and_stays_when_both_are() {
    for both in [false, true] {
        let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let store = with_double(one.path(), two.path());
        let counted = store.get(1).unwrap();
        let damaged: &[&Path] = if both { &[one.path(), two.path()] } else { &[counted.dir().path()] };
        for dir in damaged {
            flip(&dir.join("chunks/01/0000000000000001.data"), 500);
        }
        store.check_all(|| false);
        assert_eq!(store.notices().is_bad(1), both);
        let left = if both { (4, 2000) } else { (2, 1000) };
        assert_eq!((files_of_chunks([one.path(), two.path()]), store.space().used), left);
        assert_eq!(Arc::ptr_eq(&store.get(1).unwrap(), &counted), both);
        assert_eq!(read(&store.get(1).unwrap(), 0, 1000).is_ok(), !both);
    }
}

#[test]
fn what_could_not_be_deleted_is_not_said_to_be_gone() {
    let dir = TempDir::new().unwrap();
    let (store, appender, _peer) = with_chunk(dir.path(), 1, &bytes(1, 1000), 1000);
    drop(appender);
    let data = store.dirs()[0].data_path(1);
    std::fs::remove_file(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    for _ in 0..2 {
        assert_eq!(store.delete(1).unwrap_err().code, ErrorCode::Io);
        assert_eq!(store.space().used, 0);
    }
    std::fs::remove_dir(&data).unwrap();
    store.delete(1).unwrap();
    assert_eq!(store.get(1).unwrap_err().code, ErrorCode::ChunkUnknown);
}

#[test]
fn a_directory_that_is_not_there_any_more_has_failed() {
    type Loss = fn(&Path, &Path);
    let moved: Loss = |dir, away| std::fs::rename(dir, away).unwrap();
    let replaced: Loss = |dir, away| {
        std::fs::rename(dir, away).unwrap();
        std::fs::create_dir(dir).unwrap();
    };
    let shelves: Loss = |dir, away| std::fs::rename(dir.join("chunks"), away).unwrap();
    for (what, lose) in [("moved", moved), ("replaced", replaced), ("its shelves were moved", shelves)] {
        let root = TempDir::new().unwrap();
        let dirs = ["one", "two"].map(|name| root.path().join(name));
        dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        let store = open(&[&dirs[0], &dirs[1]], None).unwrap();
        let (ours, _theirs) = stream();
        let first = store.open_appender(1, 0, &ours).unwrap();
        let lost = first.replica().dir().path().to_owned();
        lose(&lost, &root.path().join("away"));
        store.space();
        // One whose shelves alone are gone is met by who makes a file there.
        for chunk in 2..=5 {
            let _ = store.open_appender(chunk, 0, &ours);
        }
        let failed = store.failed_directories();
        assert_eq!(failed.len(), 1, "{what}");
        assert_eq!(failed[0].path, lost.display().to_string(), "{what}");
        assert_eq!(store.get(1).unwrap_err().code, ErrorCode::DiskFailed, "{what}");
        assert!(store.notices().take().everything, "{what}");
        assert!(store.open_appender(9, 0, &ours).is_ok(), "{what}: the other one goes on");
    }
}

#[test]
fn a_cluster_that_could_not_be_noted_is_not_joined() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig { dirs: vec![dir.path().to_path_buf()], ..StoreConfig::default() };
    let store = Store::open(&config).unwrap();
    let (version, kept) = (dir.path().join("VERSION"), dir.path().join("kept"));
    std::fs::rename(&version, &kept).unwrap();
    std::fs::create_dir(&version).unwrap();
    for _ in 0..2 {
        assert!(store.adopt_cluster("test").is_err());
        assert_eq!(store.cluster_id(), None);
    }
    std::fs::remove_dir(&version).unwrap();
    store.adopt_cluster("test").unwrap();
    drop(store);
    assert_eq!(Store::open(&config).unwrap().cluster_id().as_deref(), Some("test"));
}

#[test]
fn a_copy_may_take_the_place_of_a_second_replica() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = with_double(one.path(), two.path());
    // The only directory that is left has the second.
    store.get(1).unwrap().dir().fence("test");
    let mut incoming = store.incoming(1, 1000, &[], true).unwrap().unwrap();
    incoming.write(&bytes(1, 1000)).unwrap();
    let seal = incoming.finish(&store, &[]).unwrap();
    assert_eq!(read(&store.get(1).unwrap(), 0, 1000).unwrap(), bytes(1, 1000));
    let path = store.get(1).unwrap().dir().path().to_owned();
    drop(store);
    let store = open(&[&path], None).unwrap();
    assert_eq!(store.seal(1, 1000).unwrap(), seal);
    assert_eq!(read(&store.get(1).unwrap(), 0, 1000).unwrap(), bytes(1, 1000));
}

#[test]
fn a_damaged_version_file_costs_its_directory_only() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&[one.path(), two.path()], None).unwrap();
    let uuid = store.uuid();
    drop(store);
    let version = two.path().join("VERSION");
    let text = std::fs::read_to_string(&version).unwrap();
    std::fs::write(&version, text.replace("\"cluster_id\": \"test\"", "\"cluster_id\": \"tess\"")).unwrap();
    let store = open(&[one.path(), two.path()], None).unwrap();
    assert_eq!(store.uuid(), uuid);
    let failed = store.failed_directories();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].path == two.path().display().to_string() && failed[0].cause.contains("checksum"));
    drop(store);
    let refused = open(&[two.path()], None).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Corrupt);
    assert!(refused.detail.contains("move the data directory away"), "{refused}");
}

#[test]
fn a_failed_sync_is_final() {
    let dir = TempDir::new().unwrap();
    let (store, mut appender, _peer) = with_chunk(dir.path(), 5, b"abc", 3);
    let faults = &store.dirs()[0].faults.sync;
    faults.store(libc::ENOSPC, Ordering::Relaxed);
    assert_eq!(appender.sync().unwrap_err().code, ErrorCode::DiskFull);
    faults.store(0, Ordering::Relaxed);
    assert_eq!(appender.sync().unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!(append(&mut appender, b"d").unwrap_err().code, ErrorCode::Corrupt);
    assert!(store.notices().take().bad.contains_key(&5));
}

#[test]
fn a_replica_that_is_made_is_told_of() {
    let dir = TempDir::new().unwrap();
    let store = open(&[dir.path()], None).unwrap();
    let (ours, _theirs) = stream();
    drop(store.open_appender(5, 0, &ours).unwrap());
    assert!(store.notices().take().changed.contains(&5));
    drop(store.open_appender(5, 0, &ours).unwrap());
    assert!(store.notices().take().changed.is_empty(), "it is known");
}

#[test]
fn pages_of_inventory_tile_the_ids() {
    let dir = TempDir::new().unwrap();
    let store = open(&[dir.path()], None).unwrap();
    let (ours, _theirs) = stream();
    for chunk in [3, 9, 300, 4000] {
        store.open_appender(chunk, 0, &ours).unwrap();
    }
    let pages: Vec<_> = [0, 300].iter().map(|&first| store.inventory_page(first, 2)).collect();
    assert_eq!((pages[0].first, pages[0].next, pages[0].replicas.len()), (0, 300, 2));
    assert_eq!((pages[1].first, pages[1].next, pages[1].replicas.len()), (300, 0, 2));
    assert_eq!(store.inventory_of(5).replicas, vec![]);
}

#[test]
fn a_log_of_tiny_appends_stays_bounded() {
    let dir = TempDir::new().unwrap();
    let data = bytes(6, 66_000);
    let (_store, appender, _peer) = with_chunk(dir.path(), 5, &data, 1);
    let size = std::fs::metadata(appender.replica().dir().sums_path(5)).unwrap().len();
    assert!(size < 64 << 10, "{size} bytes after it was written anew");
    assert_eq!(read(appender.replica(), 0, data.len()).unwrap(), data);
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Sync,
    Stop {
        clean: bool,
    },
    /// Cut this many bytes off the data file, then off the checksum file, while stopped uncleanly.
    Tear(usize, usize),
    Flip(usize),
    Seal(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1usize..150_000).prop_map(Step::Append),
        2 => (1usize..200).prop_map(Step::Append),
        1 => Just(Step::Sync),
        1 => any::<bool>().prop_map(|clean| Step::Stop { clean }),
        1 => (0usize..100_000, 0usize..100).prop_map(|(data, sums)| Step::Tear(data, sums)),
        1 => any::<usize>().prop_map(Step::Flip),
        1 => any::<usize>().prop_map(Step::Seal),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever happens to the files, what is read is what was appended, or an error.
    #[test]
    fn no_reader_sees_bytes_that_were_not_written(steps in steps(), seed in any::<u64>()) {
        let dir = TempDir::new().unwrap();
        let mut store = open(&[dir.path()], None).unwrap();
        let (ours, _theirs) = stream();
        let mut model: Vec<u8> = Vec::new();
        let mut damaged = false;
        drop(store.open_appender(1, 0, &ours).unwrap());
        for (number, step) in steps.into_iter().enumerate() {
            let replica = store.get(1).unwrap();
            let paths = (replica.dir().data_path(1), replica.dir().sums_path(1));
            let sealed = replica.phase() == Phase::Sealed;
            let length = replica.length();
            drop(replica);
            match step {
                Step::Append(size) => {
                    let data = bytes(seed.wrapping_add(number as u64), size);
                    if let Ok(mut appender) = store.open_appender(1, length, &ours)
                        && append(&mut appender, &data).is_ok()
                    {
                        model.extend_from_slice(&data);
                    }
                }
                Step::Sync => {
                    if let Ok(mut appender) = store.open_appender(1, length, &ours) {
                        appender.sync().unwrap();
                    }
                }
                Step::Stop { clean } => {
                    if clean { store.close(); }
                    drop(store);
                    store = open(&[dir.path()], None).unwrap();
                    store.check_all(|| false);
                    if !damaged {
                        prop_assert_eq!(store.get(1).unwrap().length(), length);
                    }
                }
                Step::Tear(data, sums) => {
                    drop(store);
                    let cut = |path: &Path, by: usize, keep: u64| {
                        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
                        let size = file.metadata().unwrap().len();
                        file.set_len(size.saturating_sub(by as u64).max(keep.min(size))).unwrap();
                    };
                    cut(&paths.0, data, 0);
                    cut(&paths.1, sums, HEADER as u64);
                    damaged = true;
                    store = open(&[dir.path()], None).unwrap();
                    store.check_all(|| false);
                }
                Step::Flip(at) if length > 0 => {
                    // A tear may have left nothing to flip a bit of.
                    let size = std::fs::metadata(&paths.0).unwrap().len();
                    if size > 0 {
                        flip(&paths.0, at as u64 % size);
                    }
                    damaged = true;
                }
                Step::Seal(at) => {
                    let at = at as u64 % (length + 1);
                    match store.seal(1, at) {
                        Ok(seal) if !sealed => {
                            model.truncate(at as usize);
                            prop_assert_eq!(seal.blake3, *blake3::hash(&model).as_bytes());
                        }
                        Ok(_) => {}
                        Err(error) => prop_assert!(sealed || damaged, "{}", error),
                    }
                }
                Step::Flip(_) => {}
            }
            let replica = store.get(1).unwrap();
            let length = replica.length();
            prop_assert!(length <= model.len() as u64);
            if replica.phase() == Phase::Open {
                model.truncate(length as usize);
            }
            let mut at = 0;
            while at < length {
                let size = (length - at).min(70_001) as usize;
                match read(&replica, at, size) {
                    Ok(got) => prop_assert_eq!(&got[..], &model[at as usize..at as usize + size]),
                    Err(_) => prop_assert!(damaged),
                }
                at += size as u64;
            }
        }
    }
}
