//! Directories that are delegated to their clients: whoever looks sees all that was acknowledged before, and when a
//! client is lost, what is there is what it had at some moment after its last sync.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cairn_client::{Cluster, Error, ErrorCode, Result, fs};
use cairn_host::Host;

use crate::client::{at, config, root};
use crate::event;
use crate::history::{History, Life};
use crate::random::Random;

/// Names in a workshop.
const NAMES: u64 = 5;
/// Most bytes of a file.
const SIZE: u64 = 3_000;
/// Operations after which another one is begun.
const MOST: usize = 60;

/// What is under a name: a directory, or a file and what was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// An empty one.
    Directory,
    /// A file of so many bytes.
    File(u64),
}

/// What is in a workshop at one moment.
pub type State = BTreeMap<String, Entry>;

/// What is known of a workshop.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// All it was, from empty on; the last may be about to be.
    states: Vec<State>,
    /// The last that was acknowledged.
    acknowledged: usize,
    /// The last that was synced.
    synced: usize,
    /// Its session was given back in order, and never lost.
    finished: bool,
    /// The session was lost while it was changed: nothing can be said of it.
    unclear: bool,
    /// Looks that missed something acknowledged, which must not be unless the session was lost.
    missed: Vec<String>,
}

impl Record {
    fn allows(&self, found: &State, from: usize, whole: bool) -> bool {
        let fits = |(name, entry): (&String, &Entry)| match (entry, found.get(name)) {
            (Entry::File(size), Some(Entry::File(there))) => there == size || (!whole && *there == 0),
            (entry, there) => there == Some(entry),
        };
        let same = |state: &&State| state.len() == found.len() && state.iter().all(fits);
        self.states[from.min(self.states.len())..].iter().any(|state| same(&state))
    }
}

/// A client's connection that works so, and where it works now.
pub struct Workshop {
    cluster: Cluster,
    name: String,
    inode: u64,
    sessions_lost: u64,
    life: Life,
    made: u64,
    used: usize,
    /// All there were, each with how many sessions had been lost when it was begun.
    all: Vec<(String, u64)>,
}

impl Workshop {
    /// Connects.
    pub async fn open(life: Life, namenodes: &[String], machine: Host) -> Result<Workshop> {
        let mut config = config(&format!("w{}-{}", life.0, life.1), namenodes, machine);
        config.delegate = true;
        let cluster = Cluster::connect(config).await?;
        Ok(Workshop {
            cluster,
            name: String::new(),
            inode: 0,
            sessions_lost: 0,
            life,
            made: 0,
            used: MOST,
            all: Vec::new(),
        })
    }

    fn record<T>(&self, history: &History, change: impl FnOnce(&mut Record) -> T) -> T {
        change(history.records().workshops.entry(self.name.clone()).or_default())
    }

    fn is_lost(&self) -> bool {
        self.cluster.sessions_lost() != self.sessions_lost
    }

    /// Begins another one; false if it is not known whether that worked.
    async fn move_on(&mut self) -> bool {
        self.made += 1;
        self.used = 0;
        self.inode = 0;
        self.name = format!("w{}-{}-{}", self.life.0, self.life.1, self.made);
        let ask = fs::Mkdir { at: Some(at(&self.name)), mode: 0o755, ..Default::default() };
        let made = self.cluster.mkdir(&root(), ask).await;
        self.sessions_lost = self.cluster.sessions_lost();
        event!("workshop {}: {:?}", self.name, made.as_ref().map(|attr| attr.delegated).map_err(|e| e.code));
        let Ok(attr) = made else { return false };
        self.inode = attr.inode;
        self.all.push((self.name.clone(), self.sessions_lost));
        true
    }

    /// Does a few things in it, and sometimes waits until they are done for good.
    pub async fn work(&mut self, history: &History, random: &mut Random) {
        if self.inode == 0 || self.used >= MOST || self.is_lost() {
            if !self.move_on().await {
                return;
            }
            self.record(history, |record| record.states.push(State::new()));
        }
        for _ in 0..random.between(1, 8) {
            self.used += 1;
            if self.is_lost() {
                return;
            }
            if let Err(error) = self.step(history, random).await {
                return self.give_up(history, &error);
            }
            if self.is_lost() {
                return self.record(history, |record| record.unclear = true);
            }
        }
        if random.chance(20) {
            self.look_around(history, random.chance(50)).await;
        }
        if random.chance(40) {
            let until = self.record(history, |record| record.acknowledged);
            let synced = self.cluster.sync_names().await;
            event!("{} synced: {:?}", self.name, synced.as_ref().err().map(|error| error.code));
            if synced.is_ok() && !self.is_lost() {
                self.record(history, |record| record.synced = record.synced.max(until));
            }
        }
    }

    /// Whoever works somewhere sees what they did, by its name and by its number.
    async fn look_around(&self, history: &History, by_name: bool) {
        let place = if by_name { at(&self.name) } else { self.place("") };
        let found = observe(&self.cluster, place).await;
        if self.is_lost() || self.inode == 0 {
            return;
        }
        let Ok(found) = found else { return };
        let whole = !history.full.load(Ordering::Relaxed);
        let (is_so, did) = self.record(history, |record| {
            let last = record.states.len().saturating_sub(1);
            (record.allows(&found, last, whole), record.states.last().cloned())
        });
        if !is_so {
            history.violation(format!("{}: its own client sees {found:?} and did {did:?}", self.name));
        }
    }

    /// An operation failed: that must have to do with faults. What became of it is not asked.
    fn give_up(&mut self, history: &History, error: &Error) {
        event!("{} is given up: {error}", self.name);
        // Those with room may all be down; and a sync tells of what was lost in a directory before this one.
        let is_fault = matches!(error.code, ErrorCode::NoSpace | ErrorCode::SessionExpired)
            || error.code.reaction() != cairn_proto::error::Reaction::Fail;
        if !self.is_lost() && !is_fault {
            history.violation(format!("{}: {error}", self.name));
        }
        self.record(history, |record| record.unclear = true);
        self.inode = 0;
    }

    fn place(&self, name: &str) -> fs::NodeRef {
        fs::NodeRef { inode: self.inode, path: Bytes::copy_from_slice(name.as_bytes()) }
    }

    /// Notes that the state will be another one.
    fn begin(&self, history: &History, change: impl FnOnce(&mut State)) {
        self.record(history, |record| {
            let mut next = record.states.last().cloned().unwrap_or_default();
            change(&mut next);
            record.states.push(next);
        });
    }

    fn end(&self, history: &History) {
        self.record(history, |record| record.acknowledged = record.states.len() - 1);
    }

    async fn step(&mut self, history: &History, random: &mut Random) -> Result<()> {
        let state = self.record(history, |record| record.states.last().cloned().unwrap_or_default());
        let names: Vec<&String> = state.keys().collect();
        let name = if names.is_empty() || random.chance(40) {
            format!("n{}", random.below(NAMES))
        } else {
            (*random.pick(&names)).clone()
        };
        let other = format!("n{}", random.below(NAMES));
        match state.get(&name) {
            None if random.chance(20) => {
                self.begin(history, |state| _ = state.insert(name.clone(), Entry::Directory));
                let ask = fs::Mkdir { at: Some(self.place(&name)), mode: 0o755, ..Default::default() };
                self.cluster.mkdir(&root(), ask).await?;
                event!("{} mkdir {name}", self.name);
            }
            None => self.write(history, &name, random.between(1, SIZE), random.chance(15)).await?,
            Some(entry) if random.chance(40) && may_move(entry, state.get(&other)) && name != other => {
                let entry = *entry;
                self.begin(history, |state| {
                    state.remove(&name);
                    state.insert(other.clone(), entry);
                });
                let ask = fs::Rename { from: Some(self.place(&name)), to: Some(self.place(&other)), mode: 0 };
                self.cluster.rename(&root(), ask).await?;
                event!("{} rename {name} to {other}", self.name);
            }
            Some(Entry::Directory) => {
                self.begin(history, |state| _ = state.remove(&name));
                self.cluster.rmdir(&root(), self.place(&name)).await?;
                event!("{} rmdir {name}", self.name);
            }
            Some(Entry::File(_)) => {
                self.begin(history, |state| _ = state.remove(&name));
                self.cluster.unlink(&root(), self.place(&name)).await?;
                event!("{} unlink {name}", self.name);
            }
        }
        self.end(history);
        Ok(())
    }

    async fn write(&self, history: &History, name: &str, size: u64, sync: bool) -> Result<()> {
        self.begin(history, |state| _ = state.insert(name.to_owned(), Entry::File(0)));
        let ask =
            fs::CreateFile { at: Some(self.place(name)), mode: 0o644, exclusive: true, ..Default::default() };
        let created = self.cluster.create(&root(), ask).await?;
        self.end(history);
        let attr = created.attr.ok_or_else(|| ErrorCode::Malformed.because("a file without attributes"))?;
        let file = self.cluster.open(&root(), attr);
        self.begin(history, |state| _ = state.insert(name.to_owned(), Entry::File(size)));
        file.write_at(0, Bytes::from(vec![7; size as usize])).await?;
        file.close().await?;
        event!("{} wrote {name}", self.name);
        if sync {
            file.sync().await?;
            self.end(history);
            event!("{} synced {name}", self.name);
            if !self.is_lost() {
                self.record(history, |record| record.synced = record.acknowledged);
            }
        }
        Ok(())
    }

    /// Gives the session back.
    pub async fn close(self, history: &History) {
        let settled = self.cluster.settle().await;
        event!("{} settled: {:?}", self.name, settled.as_ref().err().map(|error| error.code));
        let lost = self.cluster.sessions_lost();
        let closed = self.cluster.close().await;
        event!("{} closed: {:?}", self.name, closed.as_ref().err().map(|error| error.code));
        if settled.is_err() || closed.is_err() || lost != self.cluster.sessions_lost() {
            return;
        }
        let mut records = history.records();
        for (name, _) in self.all.iter().filter(|(_, before)| *before == lost) {
            if let Some(record) = records.workshops.get_mut(name) {
                record.finished = true;
            }
        }
    }
}

/// Whether something may be moved to a place.
fn may_move(moved: &Entry, there: Option<&Entry>) -> bool {
    match there {
        None => true,
        Some(there) => matches!((moved, there), (Entry::File(_), Entry::File(_))),
    }
}

async fn observe(cluster: &Cluster, directory: fs::NodeRef) -> Result<State> {
    let listing = cluster.list(&root(), directory, Bytes::new(), 1000).await?;
    let entries = listing.entries.into_iter().filter_map(|entry| {
        let attr = entry.attr?;
        let kind =
            if attr.kind() == fs::FileKind::Directory { Entry::Directory } else { Entry::File(attr.size) };
        Some((String::from_utf8_lossy(&entry.name).into_owned(), kind))
    });
    Ok(entries.collect())
}

/// Looks into somebody's workshop.
pub async fn visit(cluster: &Cluster, history: &History, random: &mut Random) {
    let all: Vec<String> = history.records().workshops.keys().cloned().collect();
    if all.is_empty() {
        return;
    }
    let name = random.pick(&all).clone();
    let due = history.records().workshops.get(&name).map_or(0, |record| record.acknowledged);
    let found = observe(cluster, at(&name)).await;
    event!("visited {name}: {:?}", found.as_ref().map_err(|error| error.code));
    let Ok(found) = found else { return };
    let mut records = history.records();
    let Some(record) = records.workshops.get_mut(&name) else { return };
    // Whoever comes is not kept waiting for room: it may have come to make some.
    let whole = !history.full.load(Ordering::Relaxed);
    if !record.allows(&found, due, whole) {
        record.missed.push(format!("{found:?} was seen when {:?} was acknowledged", record.states.get(due)));
    }
}

/// Whether all that was synced is there, and all of those that ended in order.
pub async fn look(cluster: &Cluster, history: &History) {
    let all: Vec<(String, Record)> =
        history.records().workshops.iter().map(|(name, record)| (name.clone(), record.clone())).collect();
    for (name, record) in all {
        if record.unclear || record.states.is_empty() {
            continue;
        }
        let mut left = 5;
        let found = loop {
            match observe(cluster, at(&name)).await {
                Ok(found) => break found,
                Err(error) if left == 0 => {
                    return history.violation(format!("{name} cannot be read: {error}"));
                }
                Err(_) => left -= 1,
            }
        };
        let from = if record.finished { record.acknowledged } else { record.synced };
        if !record.allows(&found, from, record.finished) {
            let last = record.states.last();
            history.violation(format!(
                "{name} is {found:?}, which it was never since it was synced, {:?}, to the last, {last:?}",
                record.states.get(from)
            ));
        } else if record.finished && !record.missed.is_empty() {
            history.violation(format!("{name}: {}", record.missed.join("; ")));
        } else {
            event!("{name} is as it may be");
        }
    }
}
