//! A disk in memory that behaves as badly as real ones do, and always in the same way for the same seed.
//!
//! What a process wrote is in its machine's cache until it is synced, and only then on the platter; names likewise
//! until their directory is synced. [`SimulatedDisk::crash`] keeps the platter and a seeded part of the rest:
//! sectors of 512 bytes each at any point of their history, in no order among each other, files at any length they
//! had, changes of names each made or not. [`SimulatedDisk::fail`] and [`SimulatedDisk::limit`] break it while it
//! runs, and [`SimulatedDisk::flip`] lets what is at rest rot.
//!
//! The owner of the disk holds a [`SimulatedDisk`]. A machine gets a [`Mount`], which a crash kills with everything
//! opened through it: tasks of the dead that still run find errors and change nothing.

mod mount;
mod name;
mod node;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use mount::Mount;

use name::Name;
use node::Node;

/// What tears: a sector is written whole or not at all.
pub const SECTOR: usize = 512;

/// Space where no limit was set.
const PLENTY: u64 = 1 << 40;

/// A disk as its owner holds it; clones are the same one.
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

/// What a fault befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reading files and listing directories.
    Read,
    /// Everything that changes files or names. With `EROFS`: the file system is read-only.
    Write,
    /// Syncs of files and directories. What was written to a file since the last one is dropped, except for a seeded
    /// part: a later sync succeeds without it. Changes of names are kept for it.
    Sync,
}

#[derive(Debug)]
struct Fault {
    prefix: Name,
    operation: Operation,
    errno: i32,
    /// How often it still happens; for ever if nothing.
    left: Option<u32>,
}

#[derive(Debug)]
struct Volume {
    prefix: Name,
    capacity: u64,
}

type File = Arc<Mutex<Node>>;

#[derive(Debug, Clone)]
enum Entry {
    Directory,
    File(File),
}

impl Entry {
    fn is(&self, other: &Entry) -> bool {
        match (self, other) {
            (Entry::Directory, Entry::Directory) => true,
            (Entry::File(one), Entry::File(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A change of names that is not on the platter.
#[derive(Debug)]
enum Change {
    Make { name: Name, entry: Entry },
    Rename { from: Name, to: Name, entry: Entry },
    Remove { name: Name, entry: Entry },
}

impl Change {
    /// Whether a sync of this directory makes it durable.
    fn is_in(&self, dir: &Name) -> bool {
        match self {
            Change::Make { name, .. } | Change::Remove { name, .. } | Change::Rename { to: name, .. } => {
                name.is_in(dir)
            }
        }
    }

    fn apply(self, names: &mut BTreeMap<Name, Entry>) {
        let remove = |names: &mut BTreeMap<Name, Entry>, name: &Name, entry: &Entry| {
            if names.get(name).is_some_and(|held| held.is(entry)) {
                names.remove(name);
            }
        };
        match self {
            Change::Make { name, entry } => {
                names.insert(name, entry);
            }
            Change::Rename { from, to, entry } => {
                remove(names, &from, &entry);
                names.insert(to, entry);
            }
            Change::Remove { name, entry } => remove(names, &name, &entry),
        }
    }
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Of the machine: what was opened in an earlier life is dead.
    life: u64,
    /// Names as the running machine sees them.
    names: BTreeMap<Name, Entry>,
    /// Names on the platter.
    platter: BTreeMap<Name, Entry>,
    /// What leads from the platter's names to the machine's.
    changes: Vec<Change>,
    locks: BTreeSet<Name>,
    faults: Vec<Fault>,
    volumes: Vec<Volume>,
    /// Operations that changed or synced something.
    operations: u64,
    /// The power fails when this many were done.
    cut_at: Option<u64>,
}

impl SimulatedDisk {
    /// An empty disk. The same seed and the same operations end in the same bytes.
    pub fn new(seed: u64) -> SimulatedDisk {
        let names = BTreeMap::from([(Name::of(Path::new("/")), Entry::Directory)]);
        SimulatedDisk(Arc::new(Mutex::new(State {
            random: Random(seed),
            life: 0,
            platter: names.clone(),
            names,
            changes: Vec::new(),
            locks: BTreeSet::new(),
            faults: Vec::new(),
            volumes: Vec::new(),
            operations: 0,
            cut_at: None,
        })))
    }

    /// The disk as the machine uses it until the next crash.
    pub fn mount(&self) -> Mount {
        Mount::new(self.clone(), self.lock().life)
    }

    /// The power fails: what was not synced is lost but for a seeded part, and everything opened before is dead.
    pub fn crash(&self) {
        self.lock().crash();
    }

    /// The machine ends, and nothing of what it wrote is lost: a process was killed and its kernel lives on.
    pub fn kill(&self) {
        let mut state = self.lock();
        state.life += 1;
        state.locks.clear();
        state.cut_at = None;
    }

    /// The power fails after `operations` more that change or sync something, in the middle of things: from then
    /// on every use is an error. [`SimulatedDisk::crash`] brings the disk back.
    pub fn cut_after(&self, operations: u64) {
        let mut state = self.lock();
        state.cut_at = Some(state.operations + operations);
    }

    /// How many operations have changed or synced something.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// From now on an operation below `prefix` fails with `errno`, `times` times or until it is mended.
    pub fn fail(&self, prefix: impl AsRef<Path>, operation: Operation, errno: i32, times: Option<u32>) {
        let prefix = Name::of(prefix.as_ref());
        self.lock().faults.push(Fault { prefix, operation, errno, left: times });
    }

    /// Ends all faults below `prefix`.
    pub fn mend(&self, prefix: impl AsRef<Path>) {
        let prefix = Name::of(prefix.as_ref());
        self.lock().faults.retain(|fault| !fault.prefix.is_below(&prefix));
    }

    /// Makes `prefix` a file system of its own that holds `capacity` bytes, or changes how many it holds.
    pub fn limit(&self, prefix: impl AsRef<Path>, capacity: u64) {
        let prefix = Name::of(prefix.as_ref());
        let mut state = self.lock();
        match state.volumes.iter_mut().find(|volume| volume.prefix == prefix) {
            Some(volume) => volume.capacity = capacity,
            None => state.volumes.push(Volume { prefix, capacity }),
        }
    }

    /// Flips one bit of a file, at rest and in every later read. False if there is no such bit.
    pub fn flip(&self, path: impl AsRef<Path>, bit: u64) -> bool {
        match self.lock().names.get(&Name::of(path.as_ref())) {
            Some(Entry::File(file)) => node::locked(file).flip(bit),
            _ => false,
        }
    }

    /// Flips a seeded bit of a seeded file below `prefix` and says where; nothing if all are empty.
    pub fn flip_somewhere(&self, prefix: impl AsRef<Path>) -> Option<(PathBuf, u64)> {
        let mut state = self.lock();
        let files: Vec<(Name, File, u64)> = state
            .files_below(&Name::of(prefix.as_ref()))
            .map(|(name, file)| (name.clone(), file.clone(), node::locked(file).cache.len() as u64))
            .filter(|(.., length)| *length > 0)
            .collect();
        let (name, file, length) = files.get(state.random.below(files.len() as u64) as usize)?;
        let bit = state.random.below(length * 8);
        node::locked(file).flip(bit);
        Some((name.path(), bit))
    }

    /// A file's content as the machine sees it.
    pub fn content(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        match self.lock().names.get(&Name::of(path.as_ref()))? {
            Entry::File(file) => Some(node::locked(file).cache.clone()),
            Entry::Directory => None,
        }
    }

    /// The files below `prefix`, in order.
    pub fn files(&self, prefix: impl AsRef<Path>) -> Vec<PathBuf> {
        self.lock().files_below(&Name::of(prefix.as_ref())).map(|(name, _)| name.path()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn files_below<'a>(&'a self, prefix: &Name) -> impl Iterator<Item = (&'a Name, &'a File)> {
        self.below(prefix).filter_map(|(name, entry)| match entry {
            Entry::File(file) => Some((name, file)),
            Entry::Directory => None,
        })
    }

    /// The names at and below `prefix`, in order.
    fn below<'a>(&'a self, prefix: &Name) -> impl Iterator<Item = (&'a Name, &'a Entry)> {
        let prefix = prefix.clone();
        self.names.range(prefix.clone()..).take_while(move |(name, _)| name.is_below(&prefix))
    }

    fn crash(&mut self) {
        self.life += 1;
        self.cut_at = None;
        self.locks.clear();
        for change in std::mem::take(&mut self.changes) {
            if self.random.flip() {
                change.apply(&mut self.platter);
            }
        }
        // In order of the names, so that a directory comes before what is in it.
        let mut whole = BTreeMap::new();
        for (name, entry) in std::mem::take(&mut self.platter) {
            if name.parent().is_none_or(|parent| matches!(whole.get(&parent), Some(Entry::Directory))) {
                whole.insert(name, entry);
            }
        }
        for (name, entry) in &whole {
            if let Entry::File(file) = entry {
                let mut node = node::locked(file);
                node.name.clone_from(name);
                node.crash(&mut self.random);
            }
        }
        self.platter = whole.clone();
        self.names = whole;
    }

    /// Refuses the dead, and those whom a fault befalls.
    fn check(&mut self, life: u64, name: &Name, operation: Operation) -> io::Result<()> {
        if self.life != life {
            return Err(io::Error::other("the machine that opened this has crashed"));
        }
        if operation != Operation::Read {
            if self.cut_at.is_some_and(|cut| self.operations >= cut) {
                self.life += 1;
                return Err(io::Error::other("the power has failed"));
            }
            self.operations += 1;
        }
        let fault = self.faults.iter_mut().find(|fault| {
            fault.operation == operation && fault.left != Some(0) && name.is_below(&fault.prefix)
        });
        match fault {
            Some(fault) => {
                fault.left = fault.left.map(|left| left - 1);
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            None => Ok(()),
        }
    }

    /// The volume a name lies on (0: none of its own), and its capacity.
    fn volume(&self, name: &Name) -> (u64, u64) {
        let holds = self.volumes.iter().enumerate().filter(|(_, volume)| name.is_below(&volume.prefix));
        // Each holds the others, so the deepest is the last.
        let deepest = holds.max_by_key(|(_, volume)| &volume.prefix);
        deepest.map_or((0, PLENTY), |(number, volume)| (number as u64 + 1, volume.capacity))
    }

    /// Bytes of a volume that are still free.
    fn room(&self, name: &Name) -> u64 {
        // Summing up takes a while; it is only done where it can matter.
        if self.volumes.is_empty() {
            return PLENTY;
        }
        let (number, capacity) = self.volume(name);
        let used: u64 = self
            .files_below(&Name::of(Path::new("/")))
            .filter(|(name, _)| self.volume(name).0 == number)
            .map(|(_, file)| node::locked(file).cache.len() as u64)
            .sum();
        capacity.saturating_sub(used)
    }

    /// How many of `wanted` more bytes a file of this name may get.
    fn grant(&self, name: &Name, wanted: u64) -> u64 {
        if wanted == 0 { wanted } else { wanted.min(self.room(name)) }
    }

    fn entry(&self, name: &Name) -> io::Result<&Entry> {
        self.names.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file(&self, name: &Name) -> io::Result<&File> {
        match self.entry(name)? {
            Entry::File(file) => Ok(file),
            Entry::Directory => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn require_parent(&self, name: &Name) -> io::Result<()> {
        match name.parent().map(|parent| self.entry(&parent)).transpose()? {
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            _ => Ok(()),
        }
    }

    fn make(&mut self, name: &Name, entry: Entry) -> io::Result<()> {
        self.require_parent(name)?;
        self.names.insert(name.clone(), entry.clone());
        self.changes.push(Change::Make { name: name.clone(), entry });
        Ok(())
    }

    /// Makes the names in `dir` durable, those for which `keep` decides so; the others wait for the next sync.
    fn settle_names(&mut self, dir: &Name, mut keep: impl FnMut(&mut Random) -> bool) {
        for change in std::mem::take(&mut self.changes) {
            if change.is_in(dir) && keep(&mut self.random) {
                change.apply(&mut self.platter);
            } else {
                self.changes.push(change);
            }
        }
    }
}

/// A generator of numbers that look random (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }
}
