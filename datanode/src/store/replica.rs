//! One replica: its state, and growing it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use cairn_host::disk::Handle;
use cairn_proto::checksum::BlockCrc;
use cairn_proto::limits::{BLOCK_SIZE, MAX_CHUNK_SIZE};
use cairn_proto::{Error, ErrorCode, Result};

use super::directory::Directory;
use super::format::{HEADER, RECORD, Record, Seal, encode_file};
use super::locked;

/// Records beyond one a block that an open chunk's log may gather before it is written anew.
/// Bounds the log of a chunk that grows by a few bytes at a time.
const SPARE_RECORDS: u64 = 64 << 10;

/// Bytes of blocks that an open chunk's data file is given ahead of its length; a seal gives the rest back.
const ALLOCATED_AHEAD: u64 = 4 << 20;

/// What a replica is, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Grows, or may grow.
    Open = 0,
    /// Not verified yet since an unclean stop.
    Unchecked = 1,
    /// Immutable.
    Sealed = 2,
    /// Its checksum file or its disk cannot be relied on; it only waits for being deleted.
    Damaged = 3,
    /// Deleted, or replaced by a copy.
    Gone = 4,
}

impl Phase {
    fn from_number(number: u8) -> Phase {
        match number {
            0 => Phase::Open,
            1 => Phase::Unchecked,
            2 => Phase::Sealed,
            3 => Phase::Damaged,
            _ => Phase::Gone,
        }
    }
}

/// The state behind a replica's lock.
#[derive(Debug)]
pub(super) enum State {
    Open(OpenLog),
    Unchecked,
    Sealed(Sealed),
    Damaged(String),
    Gone,
}

/// An open chunk's files and the checksums of what they hold.
#[derive(Debug)]
pub(super) struct OpenLog {
    pub data: Handle,
    pub sums: Handle,
    pub tail: BlockCrc,
    /// One CRC for each block, the last over what there is of it.
    pub crcs: Vec<u32>,
    /// Records in the checksum file.
    pub records: u64,
    /// Bytes known to be on the disk.
    pub synced: u64,
    /// Whether the files' names are on the disk.
    pub named: bool,
    /// A seal is under way: nothing is appended any more.
    pub sealing: bool,
    /// The data file has blocks up to here.
    pub allocated: u64,
}

/// A sealed chunk; its files are open while it is being read.
#[derive(Debug)]
pub(super) struct Sealed {
    pub seal: Seal,
    pub files: Option<Arc<SealedFiles>>,
    /// What was found wrong with its files at the start, or when it was read to stand in for another. It is not to be
    /// counted on, but each of its blocks that a record bears out is as good as any, and may be the last of its kind.
    pub flaw: Option<String>,
}

impl Sealed {
    /// One with whole files.
    pub fn whole(seal: Seal) -> Sealed {
        Sealed { seal, files: None, flaw: None }
    }
}

#[derive(Debug)]
pub(super) struct SealedFiles {
    pub data: Handle,
    pub sums: Handle,
}

/// A replica of a chunk on this datanode.
#[derive(Debug)]
pub struct Replica {
    chunk: u64,
    dir: Arc<Directory>,
    state: Mutex<State>,
    /// Held while its files are synced or sealed: Linux tells of an error in writing back once for each open file, and
    /// another that syncs would hear that all is well.
    syncing: Mutex<()>,
    // The report is kept beside the lock: a disk that stalls under it must not stall a heartbeat.
    length: AtomicU64,
    phase: AtomicU8,
    digest: OnceLock<[u8; 32]>,
    writer: Mutex<Option<Arc<Writer>>>,
}

/// The chain that appends to a replica: at most one at a time.
#[derive(Debug)]
pub struct Writer {
    /// The connection it came by.
    pub upstream: Weak<dyn Upstream>,
}

/// The connection that appends come by.
pub trait Upstream: std::fmt::Debug + Send + Sync {
    /// Whether its other side is gone.
    fn has_hung_up(&self) -> bool;

    /// Ends it, so that whoever reads from it notices.
    fn cut(&self);
}

impl Replica {
    pub(super) fn new(chunk: u64, dir: Arc<Directory>, state: State, claimed: u64) -> Replica {
        let replica = Replica {
            chunk,
            dir,
            state: Mutex::new(State::Gone),
            syncing: Mutex::default(),
            length: AtomicU64::new(claimed),
            phase: AtomicU8::new(Phase::Gone as u8),
            digest: OnceLock::new(),
            writer: Mutex::new(None),
        };
        replica.enter(&mut replica.lock(), state);
        replica
    }

    /// The chunk.
    pub fn chunk(&self) -> u64 {
        self.chunk
    }

    /// The directory it lies in.
    pub fn dir(&self) -> &Arc<Directory> {
        &self.dir
    }

    /// Valid bytes.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Bytes that are on the disk, under a name that is.
    pub fn synced(&self) -> u64 {
        match &*self.lock() {
            State::Open(log) if log.named => log.synced,
            State::Sealed(sealed) => sealed.seal.length,
            _ => 0,
        }
    }

    /// What it is now.
    pub fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Acquire))
    }

    /// BLAKE3 over a sealed replica's length.
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.digest.get().copied()
    }

    /// The seal, once there is one.
    pub fn seal_record(&self) -> Option<Seal> {
        match &*self.lock() {
            State::Sealed(sealed) => Some(sealed.seal),
            _ => None,
        }
    }

    /// What was found wrong with a sealed replica's files.
    pub(super) fn flaw(&self) -> Option<String> {
        match &*self.lock() {
            State::Sealed(sealed) => sealed.flaw.clone(),
            _ => None,
        }
    }

    /// Notes what was found wrong with a sealed replica that is not counted on anyway.
    pub(super) fn note_flaw(&self, flaw: String) {
        if let State::Sealed(sealed) = &mut *self.lock() {
            sealed.flaw = Some(flaw);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Waits until nobody else syncs or seals it. Taken before the state's lock.
    pub(super) fn alone_at_the_disk(&self) -> MutexGuard<'_, ()> {
        locked(&self.syncing)
    }

    /// Moves to another state and publishes it.
    pub(super) fn enter(&self, guard: &mut State, state: State) {
        let (phase, length) = match &state {
            State::Open(log) => (Phase::Open, log.tail.length()),
            State::Sealed(sealed) => (Phase::Sealed, sealed.seal.length),
            State::Unchecked => (Phase::Unchecked, self.length()),
            State::Damaged(_) => (Phase::Damaged, 0),
            State::Gone => (Phase::Gone, 0),
        };
        if let State::Sealed(sealed) = &state
            && sealed.flaw.is_none()
        {
            let _ = self.digest.set(sealed.seal.blake3);
        }
        *guard = state;
        self.length.store(length, Ordering::Release);
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The chain that appends now.
    pub(super) fn writer(&self) -> Option<Arc<Writer>> {
        locked(&self.writer).clone()
    }

    /// Makes `upstream` the writer, unless there is one.
    pub(super) fn take_writer(self: &Arc<Self>, upstream: Weak<dyn Upstream>) -> Result<Appender> {
        let mut slot = locked(&self.writer);
        if slot.is_some() {
            return Err(ErrorCode::ChunkBusy.because(format!("chunk {}", self.chunk)));
        }
        let tail = match &*self.lock() {
            State::Open(log) if !log.sealing => log.tail,
            other => return Err(other.refusal(self.chunk)),
        };
        let writer = Arc::new(Writer { upstream });
        *slot = Some(writer.clone());
        drop(slot);
        Ok(Appender { replica: self.clone(), tail, writer })
    }
}

impl Replica {
    /// Makes what an open replica holds durable and says how much that is. A sync that fails is final: the
    /// kernel may have dropped the pages, and a second call would wrongly succeed.
    fn sync(&self) -> Result<u64> {
        let _alone = self.alone_at_the_disk();
        let (data, sums, length, named) = match &*self.lock() {
            State::Open(log) if log.synced == log.tail.length() && log.named => return Ok(log.synced),
            State::Open(log) => (log.data.clone(), log.sums.clone(), log.tail.length(), log.named),
            State::Sealed(sealed) => return Ok(sealed.seal.length),
            other => return Err(other.refusal(self.chunk)),
        };
        // Without the lock: readers must not wait for the disk.
        let dir = &self.dir;
        let mut done = dir.sync_file(&*data).and_then(|()| dir.sync_file(&*sums));
        if done.is_ok() && !named {
            done = dir.sync_names(&dir.shelf(self.chunk));
        }
        done = done.and_then(|()| dir.working());
        let mut state = self.lock();
        if let Err(error) = done {
            self.fail_sync(&mut state, &error);
            return Err(error);
        }
        match &mut *state {
            State::Open(log) => {
                log.synced = log.synced.max(length);
                log.named = true;
            }
            State::Sealed(_) => {}
            other => return Err(other.refusal(self.chunk)),
        }
        Ok(length)
    }

    /// After a sync that failed nobody knows what is on the disk, and a later one would say that all is.
    pub(super) fn fail_sync(&self, state: &mut State, error: &Error) {
        if matches!(state, State::Open(_)) {
            let reason = format!("a sync failed: {error}");
            self.dir.notices().bad(self.chunk, &reason);
            self.condemn(state, reason);
        }
    }

    /// From now on it only waits for being deleted, and its bytes count no more.
    pub(super) fn condemn(&self, state: &mut State, reason: String) {
        self.dir.lost(self.length());
        self.enter(state, State::Damaged(reason));
    }

    /// Ends all appending, and makes what is held durable: for a clean stop.
    pub(super) fn settle(&self) -> Result<u64> {
        if let State::Open(log) = &mut *self.lock() {
            log.sealing = true;
        }
        self.sync()
    }
}

impl State {
    /// Why this state takes no append (or, when it is not open, no read).
    pub(super) fn refusal(&self, chunk: u64) -> cairn_proto::Error {
        let detail = format!("chunk {chunk}");
        match self {
            State::Open(_) | State::Sealed(_) => ErrorCode::ChunkSealed.because(detail),
            State::Unchecked => ErrorCode::Unchecked.because(detail),
            State::Damaged(reason) => ErrorCode::Corrupt.because(format!("{detail}: {reason}")),
            State::Gone => ErrorCode::ChunkUnknown.because(detail),
        }
    }
}

impl OpenLog {
    /// Files that hold nothing yet.
    pub fn fresh(data: Handle, sums: Handle) -> OpenLog {
        OpenLog {
            data,
            sums,
            tail: BlockCrc::default(),
            crcs: Vec::new(),
            records: 0,
            synced: 0,
            named: false,
            sealing: false,
            allocated: 0,
        }
    }

    /// Files whose content is known: `crcs` has one entry for each block of `length` bytes.
    pub fn known(data: Handle, sums: Handle, length: u64, crcs: Vec<u32>, records: u64) -> OpenLog {
        let tail = BlockCrc::at(length, crcs.last().copied().unwrap_or(0));
        OpenLog {
            tail,
            crcs,
            records,
            synced: length,
            named: true,
            allocated: length,
            ..OpenLog::fresh(data, sums)
        }
    }
}

/// What is to be done with an append that was found right.
#[derive(Debug)]
pub enum Admission {
    /// The bytes are new.
    New {
        /// The chunk's end after them.
        tail: BlockCrc,
    },
    /// The replica holds these very bytes already.
    Held,
}

/// The right to append to a replica; dropping it gives the right back.
#[derive(Debug)]
pub struct Appender {
    replica: Arc<Replica>,
    tail: BlockCrc,
    writer: Arc<Writer>,
}

impl Appender {
    /// The replica.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Where the next append starts.
    pub fn length(&self) -> u64 {
        self.tail.length()
    }

    /// Verifies an append against its checksums and the replica's end, before anything is done with it.
    pub fn admit(&self, offset: u64, crcs: &[u32], data: &[u8]) -> Result<Admission> {
        let chunk = self.replica.chunk;
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= MAX_CHUNK_SIZE);
        let Some(end) = end else {
            return Err(
                ErrorCode::TooLarge.because(format!("chunk {chunk}: append of {} at {offset}", data.len()))
            );
        };
        if offset == self.length() {
            let mut tail = self.tail;
            if tail.append(data) != crcs {
                return Err(
                    ErrorCode::Corrupt.because(format!("chunk {chunk}: append at {offset} as received"))
                );
            }
            return Ok(Admission::New { tail });
        }
        if end <= self.length() && self.replica.holds(offset, crcs, data)? {
            return Ok(Admission::Held);
        }
        let length = self.length();
        Err(ErrorCode::OffsetMismatch.because(format!("chunk {chunk}: append at {offset}, length {length}")))
    }

    /// Writes an admitted append: first the bytes, then the records that vouch for them.
    pub fn write(&mut self, tail: BlockCrc, crcs: &[u32], data: &[u8]) -> Result<()> {
        let replica = self.replica.clone();
        let (chunk, dir) = (replica.chunk, &replica.dir);
        if data.is_empty() {
            return Ok(());
        }
        let mut state = replica.lock();
        let log = match &mut *state {
            State::Open(log) if !log.sealing && log.tail == self.tail => log,
            other => return Err(other.refusal(chunk)),
        };
        let (before, after) = (self.tail.length(), tail.length());
        dir.used_by_client();
        dir.reserve(data.len() as u64)?;
        let first = before / BLOCK_SIZE as u64;
        let mut records = Vec::with_capacity(crcs.len() * RECORD);
        for (block, &crc) in (first..).zip(crcs) {
            let length = (after - block * BLOCK_SIZE as u64).min(BLOCK_SIZE as u64);
            let record = Record { block: block as u32, length: length as u32, crc };
            records.extend_from_slice(&record.encode(chunk));
        }
        if after > log.allocated {
            let ahead = (after - log.allocated).max(ALLOCATED_AHEAD);
            dir.preallocate(&*log.data, log.allocated, ahead);
            log.allocated += ahead;
        }
        let at = HEADER as u64 + log.records * RECORD as u64;
        let put =
            dir.write_at(&*log.data, data, before).and_then(|()| dir.write_at(&*log.sums, &records, at));
        if let Err(error) = put {
            // What was written past the end is nobody's; a full disk gets it back at once.
            let _ = log.data.set_length(before);
            log.allocated = before;
            return Err(error);
        }
        log.records += crcs.len() as u64;
        log.crcs.truncate(first as usize);
        log.crcs.extend_from_slice(crcs);
        log.tail = tail;
        self.tail = tail;
        dir.gained(data.len() as u64);
        replica.length.store(after, Ordering::Release);
        if log.records > log.crcs.len() as u64 + SPARE_RECORDS {
            // The new file is durable at once; it must not vouch for bytes that are not.
            if let Err(error) = dir.sync_file(&*log.data) {
                replica.fail_sync(&mut state, &error);
                return Err(error);
            }
            rewrite(chunk, dir, log)?;
        }
        Ok(())
    }

    /// Makes everything appended so far durable and says how much that is.
    pub fn sync(&mut self) -> Result<u64> {
        self.replica.sync()
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        let mut slot = locked(&self.replica.writer);
        if slot.as_ref().is_some_and(|writer| Arc::ptr_eq(writer, &self.writer)) {
            *slot = None;
        }
    }
}

/// Puts a checksum file with one record a block in the place of a long log. The data must be on the disk.
fn rewrite(chunk: u64, dir: &Directory, log: &mut OpenLog) -> Result<()> {
    let content = encode_file(chunk, log.tail.length(), &log.crcs, None);
    let sums = dir.replace(&dir.sums_path(chunk), &content)?;
    log.sums = sums;
    log.records = log.crcs.len() as u64;
    Ok(())
}
