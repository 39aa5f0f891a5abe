//! The store on a disk that loses what was not synced, fails syncs and rots: what was acknowledged as synced is there,
//! and nothing is ever served that was not written.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_host::disk::simulated::{Mount, Operation, SimulatedDisk};
use cairn_proto::ErrorCode;
use cairn_proto::checksum::BlockCrc;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;

const DIR: &str = "/data";
const SEEDS: u64 = 60;

/// Numbers of a seed.
struct Dice(StdRng);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.next_u64() % end }
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

/// One chunk as its writer knows it.
#[derive(Debug, Default)]
struct Model {
    bytes: Vec<u8>,
    /// Bytes that were acknowledged as synced.
    synced: u64,
    /// The seal that was acknowledged.
    sealed: Option<Seal>,
    /// The length of a seal whose outcome nobody heard of.
    sealing: Option<u64>,
    /// Its deletion was asked for: it may come back after a crash, until it is ordered again.
    deleted: bool,
}

/// The machine, its disk and its one connection.
struct Machine {
    disk: SimulatedDisk,
    mount: Arc<Mount>,
    stream: Arc<TcpStream>,
    _peer: TcpStream,
}

impl Machine {
    fn new(seed: u64) -> Machine {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (peer, _) = listener.accept().unwrap();
        let disk = SimulatedDisk::new(seed);
        // A file system of its own from the start: one that comes later would be another one in its place.
        disk.limit(DIR, 1 << 40);
        Machine { mount: Arc::new(disk.mount()), disk, stream, _peer: peer }
    }

    fn open(&mut self) -> Result<Store> {
        self.mount = Arc::new(self.disk.mount());
        let dirs = vec![PathBuf::from(DIR)];
        let config = StoreConfig { dirs, disk: self.mount.clone(), ..StoreConfig::default() };
        let store = Store::open(&config)?;
        store.adopt_cluster("test")?;
        store.check_all(|| false);
        Ok(store)
    }

    /// Opens and checks the store, through further crashes now and then.
    fn start(&mut self, dice: &mut Dice, context: &str) -> Store {
        for _ in 0..2 {
            // A first start makes 256 directories.
            self.disk.cut_after(dice.below(600));
            let opened = self.open();
            self.disk.cut_after(u64::MAX / 2);
            match opened {
                Ok(store) if !self.mount.is_dead() => return store,
                Err(error) if !self.mount.is_dead() => panic!("{context}: {error}"),
                _ => self.disk.crash(),
            }
        }
        self.open().unwrap_or_else(|error| panic!("{context}: {error}"))
    }

    fn appender(&self, store: &Store, chunk: u64, length: u64) -> Result<Appender> {
        store.open_appender(chunk, length, &self.stream)
    }
}

/// Appends to what the model holds already.
fn append(appender: &mut Appender, model: &[u8], data: &[u8]) -> Result<()> {
    let mut tail = BlockCrc::default();
    tail.append(model);
    let crcs = tail.append(data);
    match appender.admit(model.len() as u64, &crcs, data)? {
        Admission::New { tail } => appender.write(tail, &crcs, data),
        Admission::Held => panic!("held before it was appended"),
    }
}

fn read_all(replica: &Arc<Replica>) -> Result<Vec<u8>> {
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let length = replica.length() as usize;
    while out.len() < length {
        let range = replica.read(out.len() as u64, (length - out.len()).min(200_000), &mut scratch)?;
        out.extend_from_slice(scratch.bytes(range));
    }
    Ok(out)
}

fn copy_in(store: &Store, chunk: u64, bytes: &[u8]) -> Result<Seal> {
    match store.incoming(chunk, bytes.len() as u64, &[], false)? {
        Err(seal) => Ok(seal),
        Ok(mut incoming) => {
            for part in bytes.chunks(60_000) {
                incoming.write(part)?;
            }
            incoming.finish(store, &[])
        }
    }
}

impl Model {
    /// One random operation. An error is one of a dead disk.
    fn step(&mut self, machine: &Machine, store: &Store, chunk: u64, dice: &mut Dice) -> Result<()> {
        let length = self.bytes.len() as u64;
        if self.deleted {
            return store.delete(chunk);
        }
        if self.sealed.is_some() {
            return match dice.below(4) {
                0 => {
                    // Copied in again, as after a report that it was bad.
                    store.notices().bad(chunk, "test");
                    copy_in(store, chunk, &self.bytes).map(drop)
                }
                1 => {
                    self.deleted = true;
                    store.delete(chunk)
                }
                _ => Ok(()),
            };
        }
        match dice.below(8) {
            0 if length > 0 => {
                self.sealing = Some(dice.below(length) + 1);
                let seal = store.seal(chunk, self.sealing.unwrap())?;
                self.bytes.truncate(seal.length as usize);
                self.synced = seal.length;
                self.sealed = Some(seal);
            }
            1 if length == 0 => {
                self.bytes = dice.bytes(200_000);
                self.sealing = Some(self.bytes.len() as u64);
                self.sealed = Some(copy_in(store, chunk, &self.bytes)?);
                self.synced = self.bytes.len() as u64;
            }
            2 | 3 if length > 0 => self.synced = machine.appender(store, chunk, length)?.sync()?,
            _ => {
                let size = if dice.below(3) == 0 { dice.below(150_000) } else { dice.below(2_000) } + 1;
                let data = dice.bytes(size);
                let mut appender = machine.appender(store, chunk, length)?;
                let appended = append(&mut appender, &self.bytes, &data);
                // It may be found whole although nobody was told.
                self.bytes.extend_from_slice(&data);
                appended?;
            }
        }
        Ok(())
    }

    /// Checks what a start found, and goes on from there.
    fn judge(&mut self, store: &Store, chunk: u64, context: &str) {
        let context = format!("{context}, chunk {chunk}");
        let replica = match store.get(chunk) {
            Ok(replica) => replica,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::ChunkUnknown, "{context}: {error}");
                assert!(self.deleted || self.synced == 0, "{context}: gone, {} were synced", self.synced);
                *self = Model { deleted: self.deleted, ..Model::default() };
                return;
            }
        };
        let length = replica.length();
        match replica.phase() {
            Phase::Damaged => {
                assert!(self.deleted || self.synced == 0, "{context}: damaged, {} were synced", self.synced);
                store.delete(chunk).unwrap();
                *self = Model { deleted: self.deleted, ..Model::default() };
                return;
            }
            Phase::Sealed => {
                let at = self.sealed.map(|seal| seal.length).or(self.sealing);
                assert_eq!(Some(length), at, "{context}: sealed at another length");
                self.bytes.truncate(length as usize);
                assert_eq!(replica.seal_record().unwrap().blake3, *blake3::hash(&self.bytes).as_bytes());
                self.sealed = replica.seal_record();
            }
            Phase::Open => assert_eq!(self.sealed, None, "{context}: not sealed any more"),
            other => panic!("{context}: {other:?} after the check"),
        }
        assert!(length >= self.synced, "{context}: {length} of {} synced bytes", self.synced);
        assert!(length <= self.bytes.len() as u64, "{context}: longer than what was written");
        self.bytes.truncate(length as usize);
        assert!(read_all(&replica).unwrap() == self.bytes, "{context}: other bytes than were written");
        self.synced = length;
        self.sealing = None;
    }
}

#[test]
fn what_was_synced_survives_every_crash_and_nothing_else_is_served() {
    for seed in 0..SEEDS {
        let mut dice = Dice::new(seed);
        let mut machine = Machine::new(seed);
        let mut store = machine.start(&mut dice, &format!("seed {seed}"));
        let mut models: Vec<Model> = (0..4).map(|_| Model::default()).collect();
        for life in 0..5 {
            let context = format!("seed {seed}, life {life}");
            machine.disk.cut_after(dice.below(150));
            for _ in 0..dice.below(40) {
                let chunk = dice.below(models.len() as u64);
                if let Err(error) = models[chunk as usize].step(&machine, &store, chunk, &mut dice) {
                    assert!(machine.mount.is_dead(), "{context}, chunk {chunk}: {error}");
                    break;
                }
            }
            match dice.below(4) {
                0 => {
                    // A clean stop, if the power lasts.
                    store.close();
                    if !machine.mount.is_dead() {
                        models.iter_mut().for_each(|model| model.synced = model.bytes.len() as u64);
                    }
                    machine.disk.crash();
                }
                1 => machine.disk.kill(),
                _ => machine.disk.crash(),
            }
            drop(store);
            store = machine.start(&mut dice, &context);
            for (chunk, model) in models.iter_mut().enumerate() {
                model.judge(&store, chunk as u64, &context);
            }
        }
    }
}

#[test]
fn a_failed_sync_is_final_even_for_the_next_process() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let context = format!("seed {seed}");
        let mut dice = Dice::new(seed);
        let mut machine = Machine::new(seed);
        let store = machine.open().unwrap();
        let first = dice.bytes(70_000);
        let mut appender = machine.appender(&store, 1, 0).unwrap();
        append(&mut appender, &[], &first).unwrap();
        assert_eq!(appender.sync().unwrap(), first.len() as u64);
        let size = dice.below(100_000) + 1;
        let second = dice.bytes(size);
        append(&mut appender, &first, &second).unwrap();
        let whole = [first.clone(), second].concat();
        let errno = if dice.below(2) == 0 { libc::EIO } else { libc::ENOSPC };
        machine.disk.fail(DIR, Operation::Sync, errno, Some(1));
        // In a sync, or in a seal, which syncs first.
        if dice.below(2) == 0 {
            appender.sync().unwrap_err();
        } else {
            store.seal(1, whole.len() as u64).unwrap_err();
        }
        assert!(appender.sync().is_err(), "{context}: acknowledged after a failed sync");
        assert!(store.seal(1, whole.len() as u64).is_err(), "{context}: sealed after a failed sync");
        if dice.below(2) == 0 {
            store.close();
        }
        drop((store, appender));
        machine.disk.kill();
        let store = machine.open().unwrap();
        let claimed = store.get(1).unwrap().length();
        assert!(claimed >= first.len() as u64, "{context}: {claimed}");
        lost += u32::from(claimed < whole.len() as u64);
        drop(store);
        machine.disk.crash();
        let store = machine.open().unwrap();
        let replica = store.get(1).unwrap();
        assert!(replica.length() >= claimed, "{context}: {} of {claimed} claimed", replica.length());
        assert!(whole.starts_with(&read_all(&replica).unwrap()), "{context}");
    }
    assert!(lost > 0, "no sync lost anything: the test shows nothing");
}

#[test]
fn rot_is_never_served_as_good() {
    let mut noticed = 0;
    for seed in 0..SEEDS {
        let context = format!("seed {seed}");
        let mut dice = Dice::new(seed);
        let mut machine = Machine::new(seed);
        let mut store = machine.open().unwrap();
        let mut models: Vec<Model> = (0..3).map(|_| Model::default()).collect();
        for _ in 0..40 {
            let chunk = dice.below(models.len() as u64);
            models[chunk as usize].step(&machine, &store, chunk, &mut dice).unwrap();
        }
        for _ in 0..4 {
            for _ in 0..1 + dice.below(3) {
                machine.disk.flip_somewhere(Path::new(DIR).join("chunks"));
            }
            if dice.below(2) == 0 {
                if dice.below(2) == 0 {
                    store.close();
                }
                drop(store);
                machine.disk.kill();
                store = machine.open().unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            for (chunk, model) in models.iter().enumerate() {
                let Ok(replica) = store.get(chunk as u64) else { continue };
                match read_all(&replica) {
                    Ok(bytes) => assert!(model.bytes.starts_with(&bytes), "{context}, chunk {chunk}"),
                    Err(_) => noticed += 1,
                }
                if let (Some(was), Some(is)) = (model.sealed, replica.seal_record()) {
                    // With a damaged seal, its good blocks are still served, but it is known to be bad.
                    let known = store.notices().is_bad(chunk as u64);
                    assert!(
                        was == is || known,
                        "{context}, chunk {chunk}: another seal: {is:?}, not {was:?}"
                    );
                }
            }
        }
    }
    assert!(noticed > 0);
}

#[test]
fn a_full_volume_takes_no_more_and_loses_nothing() {
    let mut dice = Dice::new(1);
    let mut machine = Machine::new(1);
    machine.disk.limit(DIR, 500_000);
    let store = machine.open().unwrap();
    let mut model = Vec::new();
    let mut appender = machine.appender(&store, 1, 0).unwrap();
    let full = loop {
        let data = dice.bytes(30_000);
        match append(&mut appender, &model, &data) {
            Ok(()) => model.extend_from_slice(&data),
            Err(error) => break error,
        }
    };
    assert_eq!(full.code, ErrorCode::DiskFull);
    assert!(!store.dirs()[0].is_fenced());
    appender.sync().unwrap();
    assert!(read_all(appender.replica()).unwrap() == model);
    machine.disk.limit(DIR, 900_000);
    let data = dice.bytes(30_000);
    append(&mut appender, &model, &data).unwrap();
    drop(appender);
    machine.disk.crash();
    drop(store);
    let store = machine.open().unwrap();
    assert!(read_all(&store.get(1).unwrap()).unwrap()[..model.len()] == model);
}

#[test]
fn a_read_only_or_failing_disk_is_fenced() {
    for (operation, errno) in
        [(Operation::Write, libc::EROFS), (Operation::Write, libc::EIO), (Operation::Sync, libc::EIO)]
    {
        let mut machine = Machine::new(1);
        let store = machine.open().unwrap();
        let mut appender = machine.appender(&store, 1, 0).unwrap();
        append(&mut appender, &[], b"abc").unwrap();
        machine.disk.fail(DIR, operation, errno, None);
        let failed = append(&mut appender, b"abc", b"def").and_then(|()| appender.sync());
        assert_eq!(failed.unwrap_err().code, ErrorCode::DiskFailed);
        assert!(store.dirs()[0].is_fenced());
        assert_eq!(store.space().failed_dirs, 1);
    }
}

#[test]
fn a_bad_sector_costs_the_replica_and_a_disk_that_reads_or_writes_nothing_is_fenced() {
    let mut machine = Machine::new(1);
    let store = machine.open().unwrap();
    let mut appender = machine.appender(&store, 1, 0).unwrap();
    append(&mut appender, &[], b"abc").unwrap();
    machine.disk.fail(store.dirs()[0].data_path(1), Operation::Read, libc::EIO, None);
    assert_eq!(read_all(appender.replica()).unwrap_err().code, ErrorCode::DiskFailed);
    assert!(!store.dirs()[0].is_fenced(), "a bad sector is not a bad disk");
    for operation in [Operation::Read, Operation::Write] {
        let mut machine = Machine::new(1);
        let store = machine.open().unwrap();
        let mut appender = machine.appender(&store, 1, 0).unwrap();
        append(&mut appender, &[], b"abc").unwrap();
        machine.disk.fail(store.dirs()[0].data_path(1), Operation::Read, libc::EIO, None);
        machine.disk.fail(DIR, operation, libc::EIO, None);
        assert_eq!(read_all(appender.replica()).unwrap_err().code, ErrorCode::DiskFailed);
        assert!(store.dirs()[0].is_fenced(), "{operation:?}");
        assert_eq!(store.failed_directories().len(), 1);
    }
    // Whoever reads first finds it out, also where that is a seal.
    let mut machine = Machine::new(1);
    let store = machine.open().unwrap();
    let mut appender = machine.appender(&store, 1, 0).unwrap();
    append(&mut appender, &[], b"abc").unwrap();
    drop(appender);
    machine.disk.fail(DIR, Operation::Read, libc::EIO, None);
    assert_eq!(store.seal(1, 3).unwrap_err().code, ErrorCode::DiskFailed);
    assert!(store.dirs()[0].is_fenced(), "sealing");
}

#[test]
fn a_sector_that_a_start_cannot_read_costs_its_replica_only() {
    for file in ["crc", "data"] {
        let mut machine = Machine::new(1);
        let store = machine.open().unwrap();
        for chunk in [1, 2] {
            let mut appender = machine.appender(&store, chunk, 0).unwrap();
            append(&mut appender, &[], b"abc").unwrap();
            appender.sync().unwrap();
        }
        drop(store);
        machine.disk.crash();
        let bad = format!("{DIR}/chunks/01/0000000000000001.{file}");
        machine.disk.fail(bad, Operation::Read, libc::EIO, None);
        let store = machine.open().unwrap();
        assert_eq!(store.failed_directories(), [], "{file}");
        assert_eq!(store.get(1).unwrap().phase(), Phase::Damaged, "{file}");
        assert_eq!(read_all(&store.get(2).unwrap()).unwrap(), b"abc");
    }
}

#[test]
fn what_fails_half_way_leaves_nothing_behind() {
    const CHECKSUMS: &str = "/data/chunks/05/0000000000000005.crc";
    let mut machine = Machine::new(7);
    let store = machine.open().unwrap();
    let there = |machine: &Machine| machine.disk.files("/data/chunks");
    for file in ["/data/chunks/05/0000000000000005.data", CHECKSUMS] {
        machine.disk.fail(file, Operation::Write, libc::ENOSPC, Some(1));
        assert_eq!(machine.appender(&store, 5, 0).unwrap_err().code, ErrorCode::DiskFull, "{file}");
        assert_eq!(there(&machine), Vec::<PathBuf>::new(), "{file}");
    }
    machine.disk.limit(DIR, 1 << 20);
    let used = (1 << 20) - store.space().available;
    machine.disk.limit(DIR, used + 1);
    assert_eq!(machine.appender(&store, 5, 0).unwrap_err().code, ErrorCode::DiskFull, "the header");
    assert_eq!(there(&machine), Vec::<PathBuf>::new());
    machine.disk.limit(DIR, 1 << 20);
    let mut incoming = store.incoming(5, 3, &[], false).unwrap().unwrap();
    incoming.write(b"abc").unwrap();
    machine.disk.fail(CHECKSUMS, Operation::Write, libc::ENOSPC, Some(1));
    assert_eq!(incoming.finish(&store, &[]).unwrap_err().code, ErrorCode::DiskFull);
    assert_eq!(there(&machine), Vec::<PathBuf>::new());
    copy_in(&store, 5, b"abc").unwrap();
    assert_eq!(there(&machine).len(), 2);
    // What replaces a replica that is there leaves it as it was.
    let mut again = store.incoming(5, 3, &[], true).unwrap().unwrap();
    again.write(b"abc").unwrap();
    machine.disk.fail(CHECKSUMS, Operation::Write, libc::ENOSPC, Some(1));
    assert_eq!(again.finish(&store, &[]).unwrap_err().code, ErrorCode::DiskFull);
    assert_eq!(read_all(&store.get(5).unwrap()).unwrap(), b"abc");
    drop(store);
    let store = machine.open().unwrap();
    assert_eq!(read_all(&store.get(5).unwrap()).unwrap(), b"abc");
}
