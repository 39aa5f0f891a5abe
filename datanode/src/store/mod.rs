//! The replicas of one datanode. The only folder that touches files.
//!
//! Everything here blocks: callers are threads of the data plane, or tasks' blocking threads.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
mod directory;
mod doubles;
mod drain;
pub mod format;
mod identity;
mod incoming;
mod lend;
mod notices;
mod open;
mod read;
mod recover;
mod replica;
mod room;
mod seal;
#[cfg(test)]
mod tests;
mod verify;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_host::disk::{self, SharedDisk, Space};
use cairn_proto::control::{DiskSpace, Inventory, ReplicaReport};
use cairn_proto::fs::FailedDirectory;
use cairn_proto::{Error, ErrorCode, Result};
use tokio::sync::watch::{Receiver, Sender};

pub use directory::Directory;
pub use format::Seal;
pub use incoming::Incoming;
pub use lend::Lent;
pub use notices::{News, Notices};
pub use read::Scratch;
pub use replica::{Admission, Appender, Phase, Replica, Upstream};

use directory::Ledger;
use doubles::Doubles;
use identity::Identity;
use replica::{OpenLog, State};

/// The file in which it is kept how far scrubbing is.
const SCRUB: &str = "SCRUB";
/// How long an operation waits for another one on the same chunk.
const CLAIM_PATIENCE: Duration = Duration::from_secs(30);
/// How long a chain that takes over waits for the old one to let go.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(1);

/// What a store is made of.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Data directories; at least one.
    pub dirs: Vec<PathBuf>,
    /// Bytes of each file system that are left free.
    pub reserve_bytes: u64,
    /// Most bytes that all replicas together may hold.
    pub capacity_limit: Option<u64>,
    /// The disk that the directories are on.
    pub disk: SharedDisk,
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig { dirs: Vec::new(), reserve_bytes: 0, capacity_limit: None, disk: disk::real() }
    }
}

/// All replicas of a datanode, over all its directories.
#[derive(Debug)]
pub struct Store {
    disk: SharedDisk,
    dirs: Vec<Arc<Directory>>,
    /// Directories that could not even be opened at the start.
    lost: Vec<FailedDirectory>,
    ledger: Arc<Ledger>,
    notices: Arc<Notices>,
    identity: Mutex<Vec<Identity>>,
    replicas: RwLock<BTreeMap<u64, Arc<Replica>>>,
    doubles: Doubles,
    /// How often a disk has begun to hang.
    hangs: Sender<u64>,
    claims: Mutex<HashSet<u64>>,
    released: Condvar,
    /// The cluster takes this datanode out: nobody writes to it any more.
    leaving: AtomicBool,
}

/// Makes the files of an open replica.
fn begin(dir: &Directory, chunk: u64) -> Result<OpenLog> {
    let data = dir.create(&dir.data_path(chunk))?;
    let sums = dir.create(&dir.sums_path(chunk))?;
    let header = format::Header { chunk, kind: format::Kind::Open };
    dir.write_at(&*sums, &header.encode(), 0)?;
    Ok(OpenLog::fresh(data, sums))
}

/// The right to make, seal, replace or delete the files of one chunk.
pub(crate) struct Claim<'a> {
    store: &'a Store,
    chunk: u64,
}

/// Whether an error speaks against the replica that it was met at; a full disk, say, does not.
pub(crate) fn speaks_against(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Corrupt | ErrorCode::DiskFailed)
}

impl Store {
    /// What its directories are on.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    /// The datanode's own id.
    pub fn uuid(&self) -> String {
        locked(&self.identity).first().map(|identity| identity.datanode.clone()).unwrap_or_default()
    }

    /// The cluster it belongs to, once it knows.
    pub fn cluster_id(&self) -> Option<String> {
        let id = locked(&self.identity).first()?.cluster_id.clone();
        (!id.is_empty()).then_some(id)
    }

    /// Joins a cluster, durably; refuses any other than the one it is in.
    pub fn adopt_cluster(&self, cluster_id: &str) -> Result<()> {
        let mut identities = locked(&self.identity);
        for (identity, dir) in identities.iter_mut().zip(&self.dirs) {
            if identity.cluster_id == cluster_id {
                continue;
            }
            if !identity.cluster_id.is_empty() {
                return Err(wrong_cluster(dir, &identity.cluster_id, cluster_id));
            }
            let adopted = Identity { cluster_id: cluster_id.to_owned(), ..identity.clone() };
            if !dir.is_fenced() {
                identity::save(dir.disk(), dir.path(), &adopted)?;
            }
            *identity = adopted;
        }
        Ok(())
    }

    /// What the namenode should hear.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// The replica of a chunk.
    pub fn get(&self, chunk: u64) -> Result<Arc<Replica>> {
        let found = read_locked(&self.replicas).get(&chunk).cloned();
        let replica = found.ok_or_else(|| ErrorCode::ChunkUnknown.because(format!("chunk {chunk}")))?;
        replica.dir().usable()?;
        Ok(replica)
    }

    /// Whether the cluster takes this datanode out of service.
    pub fn set_leaving(&self, leaving: bool) {
        if self.leaving.swap(leaving, Ordering::Relaxed) != leaving {
            tracing::info!(leaving, "this datanode's service was changed");
        }
    }

    /// Refuses when this datanode is leaving: a chunk that is open here could never be copied elsewhere.
    pub fn takes_appends(&self) -> Result<()> {
        if self.leaving.load(Ordering::Relaxed) {
            return Err(ErrorCode::Unavailable.because("this datanode is being taken out of service"));
        }
        Ok(())
    }

    /// Opens a chunk for appending, for the chain that came by `upstream`. It is made if there is none and
    /// `length` is 0; otherwise `length` must be its length.
    pub fn open_appender<U: Upstream + 'static>(
        &self,
        chunk: u64,
        length: u64,
        upstream: &Arc<U>,
    ) -> Result<Appender> {
        self.takes_appends()?;
        self.answers(chunk)?;
        let _claim = self.claim(chunk)?;
        let replica = match self.get(chunk) {
            Ok(replica) => replica,
            Err(error) if error.code == ErrorCode::ChunkUnknown && length == 0 => self.make(chunk)?,
            Err(error) => return Err(error),
        };
        if let Some(writer) = replica.writer() {
            wait_for_dead_writer(&replica, &writer)?;
        }
        let appender = replica.take_writer(Arc::<U>::downgrade(upstream))?;
        if appender.length() != length {
            let had = appender.length();
            return Err(
                ErrorCode::OffsetMismatch.because(format!("chunk {chunk}: opened at {length}, length {had}"))
            );
        }
        Ok(appender)
    }

    fn make(&self, chunk: u64) -> Result<Arc<Replica>> {
        let dir = self.roomiest(1)?;
        let log = begin(&dir, chunk).inspect_err(|_| {
            // Nobody knows of what was begun, so nobody would have it removed before the next start.
            let _ = dir.remove_files(chunk);
        })?;
        let replica = Arc::new(Replica::new(chunk, dir, State::Open(log), 0));
        self.enlist(replica.clone());
        // The chunk may have been purged meanwhile, where its writer slept.
        self.notices.changed(chunk);
        Ok(replica)
    }

    /// The working directory with the most free space, which must be at least `bytes`.
    fn roomiest(&self, bytes: u64) -> Result<Arc<Directory>> {
        if self.ledger.room() < bytes {
            return Err(
                ErrorCode::DiskFull.because(format!("capacity limit, {} bytes used", self.ledger.used()))
            );
        }
        let alive = self.dirs.iter().filter(|dir| dir.is_usable() && !dir.is_draining());
        let measured: Vec<_> = alive.map(|dir| (dir.measure().available, dir)).collect();
        let best = room::most_room(&measured, bytes, |dir| dir.used());
        let Some((room, dir)) = best else {
            return Err(ErrorCode::DiskFailed.because("all data directories failed or are being drained"));
        };
        if room < bytes {
            return Err(ErrorCode::DiskFull.because(dir.path().display().to_string()));
        }
        Ok(dir.clone())
    }

    /// Makes a replica immutable at `length`.
    pub fn seal(&self, chunk: u64, length: u64) -> Result<Seal> {
        self.within_reach(chunk)?;
        let _claim = self.claim(chunk)?;
        let replica = self.get(chunk)?;
        self.check_claimed(&replica)?;
        // A seal made earlier proves nothing against what was read since.
        if replica.phase() == Phase::Sealed && self.notices.is_bad(chunk) {
            return Err(ErrorCode::Corrupt.because(format!("chunk {chunk}: found bad since it was sealed")));
        }
        replica.seal(length).inspect_err(|error| {
            if speaks_against(error.code) {
                self.notices.bad(chunk, &error.to_string());
            }
        })
    }

    /// Removes a replica; that there is none is no error.
    pub fn delete(&self, chunk: u64) -> Result<()> {
        self.answers(chunk)?;
        self.doubles.answer(chunk)?;
        let _claim = self.claim(chunk)?;
        self.retire(chunk)
    }

    /// Refuses what would have to wait for a disk that hangs, and keep others waiting meanwhile.
    fn answers(&self, chunk: u64) -> Result<()> {
        match read_locked(&self.replicas).get(&chunk) {
            Some(replica) if replica.dir().is_hung() => replica.dir().usable(),
            _ => Ok(()),
        }
    }

    /// As [`Store::answers`], for the namenode, which asks whether a replica is to be counted on: one on a disk that hangs is
    /// not. That it cannot be asked just now would leave it in doubt, and uncopied, for as long as the disk hangs.
    fn within_reach(&self, chunk: u64) -> Result<()> {
        self.answers(chunk).map_err(|error| ErrorCode::DiskFailed.because(error.detail))
    }

    /// Finds out which disks answer; asked once a second.
    pub fn look_at_disks(&self) {
        let hanging = self.dirs.iter().filter(|dir| dir.look()).count() as u64;
        if hanging > 0 {
            self.hangs.send_modify(|hangs| *hangs += hanging);
        }
    }

    /// Changes whenever a disk begins to hang.
    pub fn hangs(&self) -> Receiver<u64> {
        self.hangs.subscribe()
    }

    /// Starts to take in a copy of a sealed chunk; the seal if it is here already, whole. `replace`: what is here is
    /// bad, however it looks.
    pub fn incoming(
        &self,
        chunk: u64,
        length: u64,
        blake3: &[u8],
        replace: bool,
    ) -> Result<Result<Incoming, Seal>> {
        if !replace
            && let Ok(replica) = self.get(chunk)
            && let Some(seal) = replica.seal_record()
            && seal.length == length
            && (blake3.is_empty() || *blake3 == seal.blake3)
            && !self.notices.is_bad(chunk)
        {
            return Ok(Err(seal));
        }
        Incoming::new(chunk, length, self.roomiest(length)?).map(Ok)
    }

    /// Takes a replica out of the index and its files off the disk.
    pub(crate) fn retire(&self, chunk: u64) -> Result<()> {
        let held = read_locked(&self.replicas).get(&chunk).cloned();
        let doubles = self.doubles.remove(chunk, None);
        let Some(replica) = held else { return doubles };
        let dir = replica.dir().clone();
        {
            let mut state = replica.lock();
            dir.lost(replica.length().min(dir.used()));
            replica.enter(&mut state, State::Gone);
        }
        if !dir.is_fenced()
            && let Err(error) = dir.remove_files(chunk)
        {
            // It stays in the index, or the next order would find nothing and say that it is gone.
            let reason = format!("it could not be deleted: {error}");
            replica.enter(&mut replica.lock(), State::Damaged(reason));
            return Err(error);
        }
        write_locked(&self.replicas).remove(&chunk);
        self.notices.forget(chunk);
        doubles
    }

    /// Says that a replica is bad, unless another has taken its place: what was read of files that are gone says nothing
    /// of those that came after them.
    pub fn accuse(&self, replica: &Arc<Replica>, reason: &str) {
        let replicas = read_locked(&self.replicas);
        if replicas.get(&replica.chunk()).is_some_and(|held| Arc::ptr_eq(held, replica)) {
            self.notices.bad(replica.chunk(), reason);
        }
    }

    /// Whether a directory's files of a chunk are those of a replica that is known.
    pub(super) fn knows_in(&self, chunk: u64, dir: &Arc<Directory>) -> bool {
        let is_there = |replica: &Arc<Replica>| Arc::ptr_eq(replica.dir(), dir);
        read_locked(&self.replicas).get(&chunk).is_some_and(is_there)
            || self.doubles.all().iter().any(|double| double.chunk() == chunk && is_there(double))
    }

    /// Puts a replica in the index whose files are in place. What was there of the chunk before is gone with its
    /// files; those in another directory are removed, or wait for it where its disk hangs.
    pub(crate) fn supersede(&self, replica: Arc<Replica>) -> Result<()> {
        let (chunk, dir) = (replica.chunk(), replica.dir().clone());
        let old = read_locked(&self.replicas).get(&chunk).cloned();
        let (out_of_reach, old) = match old {
            Some(old) if old.dir().is_hung() && !Arc::ptr_eq(old.dir(), &dir) => (Some(old), None),
            old => (None, old),
        };
        if let Some(old) = &old {
            let mut state = old.lock();
            old.dir().lost(old.length().min(old.dir().used()));
            // First, so that nothing more is said against it: that would be taken to be about the new one.
            old.enter(&mut state, State::Gone);
        }
        {
            let mut replicas = write_locked(&self.replicas);
            self.notices.forget(chunk);
            replicas.insert(chunk, replica);
        }
        self.doubles.remove(chunk, Some(&dir))?;
        out_of_reach.into_iter().for_each(|old| self.doubles.add(old));
        let Some(old_dir) = old.map(|old| old.dir().clone()) else { return Ok(()) };
        if Arc::ptr_eq(&dir, &old_dir) || old_dir.is_fenced() {
            return Ok(());
        }
        old_dir.remove_files(chunk)
    }

    pub(crate) fn enlist(&self, replica: Arc<Replica>) {
        write_locked(&self.replicas).insert(replica.chunk(), replica);
    }

    /// Waits for the sole right to a chunk's files.
    pub(crate) fn claim(&self, chunk: u64) -> Result<Claim<'_>> {
        let deadline = Instant::now() + CLAIM_PATIENCE;
        let mut claims = locked(&self.claims);
        while !claims.insert(chunk) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorCode::ChunkBusy.because(format!("chunk {chunk}: another operation goes on")));
            }
            let waited = self.released.wait_timeout(claims, left);
            claims = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Claim { store: self, chunk })
    }

    /// Verifies one replica now if an unclean stop left it unchecked.
    fn check_claimed(&self, replica: &Replica) -> Result<()> {
        if replica.phase() != Phase::Unchecked {
            return Ok(());
        }
        let checked = recover::check(replica);
        // A full disk or too few descriptors say nothing of what lies there: it is looked at again later.
        if let Err(error) = &checked
            && speaks_against(error.code)
        {
            let mut state = replica.lock();
            if matches!(*state, State::Unchecked) {
                replica.condemn(&mut state, error.to_string());
            }
        }
        self.notices.changed(replica.chunk());
        checked
    }

    /// Verifies everything an unclean stop left unchecked, and removes second replicas. Meant for a thread of its own;
    /// `stop` is asked between replicas. False: some could not be verified now, and nothing speaks against them.
    pub fn check_all(&self, stop: impl Fn() -> bool) -> bool {
        let all: Vec<_> = read_locked(&self.replicas).values().cloned().collect();
        for replica in all.iter().filter(|replica| replica.phase() == Phase::Unchecked) {
            if stop() {
                return true;
            }
            let Ok(_claim) = self.claim(replica.chunk()) else { continue };
            if let Err(error) = self.check_claimed(replica) {
                tracing::error!(chunk = replica.chunk(), %error, "replica cannot be checked");
            }
        }
        self.settle_doubles(&stop);
        !all.iter().any(|replica| replica.phase() == Phase::Unchecked && !replica.dir().is_fenced())
    }

    /// Goes on with what [`Store::check_all`] is for, `is_checked` being what came of it the last time, and returns what does
    /// now. Second replicas come about later, too, where a disk hangs for a while.
    pub fn check_further(&self, is_checked: bool, stop: &dyn Fn() -> bool) -> bool {
        if !is_checked {
            return self.check_all(stop);
        }
        self.settle_doubles(stop);
        true
    }

    /// The sealed replica with the least chunk from `first` on, on disks that work.
    pub fn sealed_from(&self, first: u64) -> Option<Arc<Replica>> {
        let replicas = read_locked(&self.replicas);
        let sealed = |replica: &&Arc<Replica>| replica.phase() == Phase::Sealed && replica.dir().is_usable();
        replicas.range(first..).map(|(_, replica)| replica).find(sealed).cloned()
    }

    /// What [`Store::save_scrub`] kept, if it can be read.
    pub fn load_scrub(&self) -> Option<Vec<u8>> {
        let dir = self.dirs.iter().find(|dir| dir.is_usable())?;
        disk::read(dir.disk(), &dir.path().join(SCRUB)).ok()
    }

    /// Keeps how far scrubbing is, in the first directory that works.
    pub fn save_scrub(&self, text: &[u8]) -> Result<()> {
        let Some(dir) = self.dirs.iter().find(|dir| dir.is_usable()) else {
            return Err(ErrorCode::DiskFailed.because("all data directories failed"));
        };
        dir.replace(&dir.path().join(SCRUB), text).map(drop)
    }

    /// Space and replicas, for a heartbeat. Directories on one device count its space once.
    pub fn space(&self) -> DiskSpace {
        self.space_by(|dir| dir.measure())
    }

    /// The same by what the disks said last, less what was written since: none is asked.
    pub fn last_space(&self) -> DiskSpace {
        self.space_by(|dir| dir.last_space())
    }

    fn space_by(&self, measure: impl Fn(&Directory) -> Space) -> DiskSpace {
        let mut space = DiskSpace {
            used: self.ledger.used(),
            failed_dirs: self.lost.len() as u32,
            ..DiskSpace::default()
        };
        let (mut devices, mut open) = (BTreeSet::new(), BTreeSet::new());
        for dir in &self.dirs {
            if !dir.is_usable() {
                space.failed_dirs += 1;
                continue;
            }
            let measured = measure(dir);
            if devices.insert(dir.device()) {
                space.capacity += measured.total;
            }
            if !dir.is_draining() && open.insert(dir.device()) {
                space.available += measured.available;
            }
        }
        if let Some(limit) = self.ledger.limit() {
            space.capacity = space.capacity.min(limit);
            space.available = space.available.min(self.ledger.room());
        }
        space.replicas = self.replica_count();
        space
    }

    /// The directories that are not used any more, and why, as a heartbeat tells them.
    pub fn failed_directories(&self) -> Vec<FailedDirectory> {
        let failed = self.dirs.iter().filter_map(|dir| {
            Some(FailedDirectory { path: dir.path().display().to_string(), cause: dir.failure()? })
        });
        self.lost.iter().cloned().chain(failed).collect()
    }

    /// Replicas on disks that work.
    pub fn replica_count(&self) -> u64 {
        let replicas = read_locked(&self.replicas);
        replicas.values().filter(|replica| replica.dir().is_usable()).count() as u64
    }

    /// The page of the inventory that starts at chunk `first`; its `next` says where the one after it does.
    pub fn inventory_page(&self, first: u64, limit: usize) -> Inventory {
        let index = read_locked(&self.replicas);
        let mut page = Inventory { first, next: 0, replicas: Vec::new() };
        for (&chunk, replica) in index.range(first..) {
            if page.replicas.len() == limit {
                page.next = chunk;
                break;
            }
            page.replicas.extend(report(replica));
        }
        page
    }

    /// A page about one chunk alone.
    pub fn inventory_of(&self, chunk: u64) -> Inventory {
        let replicas = read_locked(&self.replicas).get(&chunk).and_then(|replica| report(replica));
        Inventory { first: chunk, next: chunk.wrapping_add(1), replicas: replicas.into_iter().collect() }
    }

    /// Syncs what is open and leaves the marks of a clean stop. Nothing is appended any more after it. The directories do
    /// not wait for each other: one may lie on a disk that hangs.
    pub fn close(&self) {
        let mut all: Vec<_> = read_locked(&self.replicas).values().cloned().collect();
        all.extend(self.doubles.all());
        let all = &all;
        if !self.disk.blocks() {
            return self.dirs.iter().for_each(|dir| close_directory(dir, all));
        }
        std::thread::scope(|scope| {
            for dir in &self.dirs {
                scope.spawn(move || close_directory(dir, all));
            }
        });
    }

    #[cfg(test)]
    pub(crate) fn dirs(&self) -> &[Arc<Directory>] {
        &self.dirs
    }

    /// Has a directory's disk hang for as long as what is returned is kept, and until the next look after that.
    #[cfg(test)]
    pub(crate) fn hang(&self, dir: usize) -> impl Sized {
        let question = self.dirs[dir].watch.ask("write");
        (0..=watch::LOOKS).for_each(|_| self.look_at_disks());
        question
    }
}

/// A dead chain's connection is cut and its thread given a moment to go; a live one stays the writer.
fn wait_for_dead_writer(replica: &Arc<Replica>, writer: &replica::Writer) -> Result<()> {
    if let Some(upstream) = writer.upstream.upgrade() {
        if !upstream.has_hung_up() {
            return Err(ErrorCode::ChunkBusy.because(format!("chunk {}", replica.chunk())));
        }
        upstream.cut();
    }
    let deadline = Instant::now() + TAKEOVER_PATIENCE;
    while replica.writer().is_some() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Syncs what is open of `replicas` in a directory, and leaves its mark if nothing is in doubt.
fn close_directory(dir: &Arc<Directory>, replicas: &[Arc<Replica>]) {
    let mut is_clean = dir.is_usable();
    for replica in replicas.iter().filter(|replica| Arc::ptr_eq(replica.dir(), dir)) {
        let settled = match replica.phase() {
            Phase::Open => dir.usable().and_then(|()| replica.settle()),
            Phase::Unchecked => Err(ErrorCode::Unchecked.because(format!("chunk {}", replica.chunk()))),
            // Perhaps because a sync failed: what its files seem to hold must not be believed.
            Phase::Damaged => Err(ErrorCode::Corrupt.because(format!("chunk {}", replica.chunk()))),
            Phase::Sealed | Phase::Gone => Ok(0),
        };
        if let Err(error) = settled {
            tracing::warn!(chunk = replica.chunk(), %error, "not settled at the stop; the next start checks");
            is_clean = false;
        }
    }
    if is_clean
        && dir.is_usable()
        && let Err(error) = identity::leave_clean_mark(dir.disk(), dir.path())
    {
        tracing::warn!(directory = %dir.path().display(), %error, "no mark of a clean stop");
    }
}

fn report(replica: &Replica) -> Option<ReplicaReport> {
    let phase = replica.phase();
    if phase == Phase::Gone || !replica.dir().is_usable() {
        return None;
    }
    Some(ReplicaReport {
        chunk: replica.chunk(),
        length: replica.length(),
        sealed: phase == Phase::Sealed,
        unchecked: phase == Phase::Unchecked,
        blake3: replica.digest().map(|digest| Bytes::copy_from_slice(&digest)).unwrap_or_default(),
    })
}

fn wrong_cluster(dir: &Directory, ours: &str, theirs: &str) -> Error {
    ErrorCode::WrongCluster
        .because(format!("data directory {} is of cluster {ours}, not {theirs}", dir.path().display()))
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        locked(&self.store.claims).remove(&self.chunk);
        self.store.released.notify_all();
    }
}

/// Locks a mutex. A thread that panicked while it held the lock left plain values behind, not broken ones.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_locked<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_locked<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
