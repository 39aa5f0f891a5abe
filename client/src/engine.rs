//! What the files of one cluster share: the leader, the lanes, the readers, the memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cairn_proto::{Result, fs};

use crate::budget::Budget;
use crate::channel::Channel;
use crate::config::Config;
use crate::delegation::{self, Delegations};
use crate::file::{Inode, OnDisk};
use crate::metrics::Counters;
use crate::read::{Local, Pool, Reader};
use crate::write::{Lanes, Leader, Pace};

/// How often uncommitted writes are looked at.
const ROUND: Duration = Duration::from_millis(500);
/// How old a write may get whose commit its writer did not wait for.
const DEFERRED: Duration = Duration::from_millis(250);
/// Files that are committed at the same time when many are.
const COMMITS_AT_ONCE: usize = 256;
/// Open inodes at which those that nobody holds any more are forgotten.
const SWEEP_AT: usize = 1024;

/// See the module.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) counters: Arc<Counters>,
    pub(crate) channel: Channel,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) reader: Reader,
    /// What nobody else may see at the moment.
    pub(crate) delegations: Arc<Delegations>,
    budget: Budget,
    /// Memory that known layouts take, about, in bytes.
    pub(crate) layout_bytes: Arc<AtomicUsize>,
    /// Uncommitted spans of all files.
    spans: AtomicUsize,
    /// How often something was changed through this client.
    changes: AtomicU64,
    pub(crate) durable: OnDisk,
    inodes: Mutex<BTreeMap<u64, Weak<Inode>>>,
    /// Inodes with uncommitted writes, kept alive for them.
    dirty: Mutex<BTreeMap<u64, Arc<Inode>>>,
}

impl Engine {
    pub(crate) fn start(config: Config, channel: Channel, counters: Arc<Counters>) -> Arc<Engine> {
        let pace = Pace {
            lanes: config.lanes,
            window_bytes: config.window_bytes as u64,
            stall_timeout: config.stall_timeout,
            connect_timeout: config.read_timeout,
            idle: config.lane_idle,
            exclude_for: config.exclude_for,
        };
        let leader = Arc::new(Leader::new(channel.clone(), config.host.clone()));
        let cluster_id = channel.namenodes().cluster_id().to_owned();
        let network = &config.machine.network;
        let local = config
            .short_circuit
            .then(|| Local::new(cluster_id.clone(), config.read_timeout, Arc::clone(&counters)));
        let pool = Pool::new(cluster_id, Arc::clone(network), config.read_timeout, Arc::clone(&counters));
        let engine = Arc::new(Engine {
            lanes: Lanes::new(leader, Arc::clone(network), pace, Arc::clone(&counters)),
            reader: Reader::new(pool, local, config.host.clone(), channel.clone(), Arc::clone(&counters)),
            delegations: Arc::new(Delegations::new(config.delegate, config.operation_timeout)),
            budget: Budget::new(config.dirty_bytes),
            layout_bytes: Arc::default(),
            spans: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            durable: OnDisk::default(),
            inodes: Mutex::default(),
            dirty: Mutex::default(),
            channel,
            counters,
            config,
        });
        tokio::spawn(tend(Arc::downgrade(&engine)));
        if engine.config.delegate {
            let listening = Arc::downgrade(&engine);
            engine.channel.on_recalled(Box::new(move |directories| {
                if let Some(engine) = listening.upgrade() {
                    engine.recalled(directories);
                }
            }));
            tokio::spawn(delegation::run(Arc::downgrade(&engine)));
            tokio::spawn(delegation::tidy(Arc::downgrade(&engine)));
        }
        engine
    }

    /// The shared state of an inode, made now if nobody has it open.
    pub(crate) fn inode(self: &Arc<Engine>, cred: &fs::Cred, attr: fs::Attr) -> Arc<Inode> {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inode) = inodes.get(&attr.inode).and_then(Weak::upgrade) {
            drop(inodes);
            inode.learn_anew(&attr);
            return inode;
        }
        if inodes.len() >= SWEEP_AT {
            inodes.retain(|_, inode| inode.strong_count() > 0);
        }
        let number = attr.inode;
        let inode = Arc::new(Inode::new(Arc::clone(self), cred.clone(), attr));
        inodes.insert(number, Arc::downgrade(&inode));
        drop(inodes);
        self.delegations.if_own(number, || inode.set_own(true));
        let extents = self.delegations.extents(number);
        if !extents.is_empty() {
            self.remember_layout(&inode, extents);
        }
        inode
    }

    /// What this client committed itself it need not ask for, as long as it knows the replicas.
    fn remember_layout(&self, inode: &Inode, extents: Vec<fs::Extent>) {
        let chunks = extents.iter().map(|extent| {
            let replicas = self.lanes.replicas(extent.chunk)?;
            Some(fs::ChunkInfo { chunk: extent.chunk, replicas, ..Default::default() })
        });
        if let Some(chunks) = chunks.collect() {
            inode.learn_layout(fs::Layout { attr: Some(inode.attr()), extents, chunks, end: true });
        }
    }

    /// The shared state of an inode that is open here.
    pub(crate) fn find(&self, inode: u64) -> Option<Arc<Inode>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).and_then(Weak::upgrade)
    }

    /// Remembers an inode that has something to commit.
    pub(crate) fn note_dirty(&self, inode: &Arc<Inode>) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.insert(inode.number(), Arc::clone(inode));
    }

    /// Something was changed through this client.
    pub(crate) fn count_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// How often that was.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Waits until `bytes` more may be buffered.
    pub(crate) async fn admit(&self, bytes: u64) -> Result<()> {
        if self.budget.try_take(bytes) {
            return Ok(());
        }
        // What others have buffered and not sent would otherwise hold the room for ever.
        for inode in self.dirty_now() {
            inode.push();
        }
        let taken = self.budget.take(bytes, self.config.operation_timeout).await;
        taken.map_err(|late| self.lanes.full().unwrap_or(late))
    }

    /// Gives back what [`Engine::admit`] took.
    pub(crate) fn release(&self, bytes: u64) {
        self.budget.release(bytes);
    }

    /// For whoever gives back later and does not hold the engine.
    pub(crate) fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// A file had `before` uncommitted spans and has `now`.
    pub(crate) fn count_spans(&self, before: usize, now: usize) {
        if now >= before {
            self.spans.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.spans.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Uncommitted spans of all files.
    pub(crate) fn spans(&self) -> usize {
        self.spans.load(Ordering::Relaxed)
    }

    /// Starts commits of all files that have something to commit.
    pub(crate) fn commit_everything_soon(&self) {
        for inode in self.dirty_now() {
            inode.commit_soon();
        }
    }

    /// Forgets layouts while they take too much memory, those not used lately first; never that of `keep`, which is
    /// being read.
    pub(crate) fn trim_layouts(&self, keep: u64) {
        for in_any_case in [false, true] {
            if self.layout_bytes.load(Ordering::Relaxed) <= self.config.layout_bytes {
                return;
            }
            let inodes: Vec<Arc<Inode>> = {
                let inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
                inodes.values().filter_map(Weak::upgrade).collect()
            };
            for inode in inodes.iter().filter(|inode| inode.number() != keep) {
                inode.sweep_layout(in_any_case);
            }
        }
    }

    /// The time of day, in nanoseconds since 1970.
    pub(crate) fn now_ns(&self) -> i64 {
        self.config.machine.clock.now_ns()
    }

    /// Commits all that was written and tells all that was done. Returns the first error.
    pub(crate) async fn settle(self: &Arc<Engine>) -> Result<()> {
        let committed = commit_each(self.dirty_now()).await;
        let told = self.delegations.settle().await;
        committed.into_iter().map(|(_, committed)| committed).chain([told]).collect()
    }

    /// Whether all that was written is committed and all that was done told.
    pub(crate) fn is_settled(&self) -> bool {
        self.dirty_now().is_empty() && !self.delegations.is_busy()
    }

    /// Ends the lanes and forgets what is not committed.
    pub(crate) fn close(&self) {
        self.lanes.close();
        let dirty = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner));
        drop(dirty);
    }

    fn dirty_now(&self) -> Vec<Arc<Inode>> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.retain(|_, inode| inode.is_dirty());
        dirty.values().cloned().collect()
    }
}

/// Commits many files; by their numbers, what became of that.
pub(crate) async fn commit_each(inodes: Vec<Arc<Inode>>) -> Vec<(u64, Result<()>)> {
    use futures::StreamExt;
    let commits =
        inodes.into_iter().map(|inode| async move { (inode.number(), inode.commit_all_owned().await) });
    futures::stream::iter(commits).buffer_unordered(COMMITS_AT_ONCE).collect().await
}

/// Chunks without a committed byte are purged, and a crash loses what is not committed: nothing stays so long. Files of
/// replicas that were borrowed for long enough are given back.
async fn tend(engine: Weak<Engine>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(engine) = engine.upgrade() else { return };
        engine.reader.sweep();
        for inode in engine.dirty_now() {
            let age = inode.dirty_for();
            let closed = age >= DEFERRED && engine.delegations.defers(inode.number());
            if closed || age >= engine.config.commit_after {
                inode.commit_soon();
            }
        }
    }
}
