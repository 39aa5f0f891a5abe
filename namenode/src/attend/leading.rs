//! Everything a leader remembers about datanodes and replicas beyond the log. It is lost with the leadership, and
//! rebuilt by the next leader from the records and from what datanodes tell it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_metadata::plan::backoff::Backoff;
use cairn_metadata::plan::garbage::{Ahead, Grace, Steady};
use cairn_metadata::plan::problems::{Problems, Rank};
use cairn_metadata::plan::repair::Flights;
use cairn_metadata::plan::verdict::Holding;
use cairn_metadata::records;
use cairn_proto::fs::ChunkPiece;
use cairn_proto::store::{Chunk, Meta};

use super::balance::Balancer;
use super::compaction::{self, Compactor};
use super::map::ChunkMap;
use super::orders::{Orders, Sent, Task, message};
use super::progress::{Allowance, Progress};
use super::purges::Purges;
use super::roster::{Account, Attendee, Roster};
use super::scan::Scan;
use super::settings::{Settings, millis};

/// Chunks that may wait to be looked at; what does not fit is met by the reading of all chunks.
const TOUCHED: usize = 100_000;
/// Replicas queued to be checked or deleted on one datanode; more are found again by its next inventory.
const QUEUE: usize = 100_000;
/// Proposals that wait for the log at once; what does not fit is found again.
const PROPOSALS: usize = 512;
/// Replicas remembered as bad; more are found again when they are read.
const FAULTS: usize = 1_000_000;

/// Why a replica is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its datanode read it and the checksums did not hold. A seal made earlier proves nothing against that.
    Corrupt,
    /// It is short, gone, or of other content. A check that succeeds later clears it; there is one when its datanode
    /// reports it whole.
    Unfit,
}

/// A change of the log that the leader wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proposal {
    pub chunk: u64,
    /// 0 where no single replica is meant.
    pub node: u32,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The bytes that were copied for it; 0 when the replica was there already.
    Add {
        copied: u64,
    },
    Drop {
        bad: bool,
    },
    Forget,
    Purge {
        holders: Vec<u32>,
    },
    Digest(Bytes),
    /// The steps of a compaction, by the number of its run: allocate, count on a gathered replica, move extents.
    Begin {
        run: u64,
        length: u64,
        replication: u32,
    },
    Gathered {
        run: u64,
        blake3: Bytes,
    },
    Swap {
        run: u64,
        pieces: Vec<ChunkPiece>,
    },
}

/// A leader's memory.
#[derive(Debug)]
pub(super) struct Leading {
    /// One for each time this namenode began to lead: what began before is not this leader's.
    pub generation: u64,
    pub term: u64,
    pub since_ms: u64,
    pub steady: Steady,
    /// Chunks that died in the future, and since when that is known.
    pub ahead: Ahead,
    pub settings: Settings,
    pub meta: Meta,
    pub roster: Roster,
    pub problems: Problems,
    pub flights: Flights,
    pub compactor: Compactor,
    pub balancer: Balancer,
    /// Copies that failed, by (chunk, target).
    pub copy_failures: Backoff,
    /// Anything else that failed, by (chunk, node).
    pub failures: Backoff,
    pub faults: BTreeMap<(u64, u32), Fault>,
    pub purges: Purges,
    pub orders: Orders,
    pub allowance: Allowance,
    pub progress: Progress,
    pub scan: Scan,
    pub map: ChunkMap,
    pub resume: Option<Rank>,
    /// Where the next look at surplus and dropped replicas starts.
    pub waste_from: u64,
    /// Chunks to read again.
    pub touched: BTreeSet<u64>,
    /// Replicas a proposal is on its way for.
    pub pending: BTreeSet<(u64, u32)>,
    /// Those that were answered; they stay pending until the chunk was read again.
    pub settled: Vec<(u64, u32)>,
    pub outbox: Vec<Proposal>,
    pub next_stream: u64,
}

impl Leading {
    pub fn new(term: u64, generation: u64, now_ms: u64, settings: Settings) -> Leading {
        Leading {
            generation,
            term,
            since_ms: now_ms,
            steady: Steady::new(now_ms),
            ahead: Ahead::default(),
            settings,
            meta: Meta::default(),
            roster: Roster::default(),
            problems: Problems::default(),
            flights: Flights::default(),
            compactor: Compactor::default(),
            balancer: Balancer::default(),
            copy_failures: Backoff::default(),
            failures: Backoff::default(),
            faults: BTreeMap::new(),
            purges: Purges::default(),
            orders: Orders::new(term),
            allowance: Allowance::default(),
            progress: Progress::default(),
            scan: Scan::default(),
            map: ChunkMap::default(),
            resume: None,
            waste_from: 0,
            touched: BTreeSet::new(),
            pending: BTreeSet::new(),
            settled: Vec::new(),
            outbox: Vec::new(),
            next_stream: 1,
        }
    }

    /// Whether the log is being asked to change something about this replica.
    pub fn is_proposed(&self, chunk: u64, node: u32) -> bool {
        self.pending.contains(&(chunk, node))
    }

    /// Whether something about this replica is on its way already.
    pub fn is_busy(&self, chunk: u64, node: u32) -> bool {
        self.is_proposed(chunk, node) || self.flights.has(chunk, node) || self.orders.concerns(node, chunk)
    }

    /// Proposes a change, unless one about the same replica is on its way or too many are. Whoever is turned away
    /// comes again: what is wrong stays wrong until it is mended.
    pub fn offer(&mut self, proposal: Proposal, now_ms: u64) -> bool {
        let key = (proposal.chunk, proposal.node);
        if self.pending.len() >= PROPOSALS
            || self.failures.waits(proposal.chunk, proposal.node, now_ms)
            || !self.pending.insert(key)
        {
            return false;
        }
        self.outbox.push(proposal);
        true
    }

    /// The proposal was answered: the chunk is read again before anything else is decided about it.
    pub fn settle(&mut self, chunk: u64, node: u32) {
        self.settled.push((chunk, node));
        self.touched.insert(chunk);
    }

    /// Takes in what was just read of a chunk.
    pub fn file(&mut self, id: u64, record: Option<&Chunk>, now_ms: u64, now_ns: i64) {
        self.compactor.file(id, record, compaction::policy(self), now_ms);
        self.balancer.file(id, record);
        let faults = &self.faults;
        let holding = record.and_then(|record| Holding::of(record, |node| faults.contains_key(&(id, node))));
        let (Some(record), Some(holding)) = (record, holding) else {
            self.problems.forget(id);
            if record.is_none() {
                self.forget_faults(id);
                self.ahead.forget(id);
                for holder in self.purges.settle(id) {
                    self.want_delete(holder, id, now_ms);
                }
            }
            return;
        };
        self.problems.file(id, holding, &self.roster.nodes);
        if !records::is_dead(record) {
            // Whatever is left of an attempt to purge it is refused.
            self.purges.settle(id);
            if record.blake3.is_empty() {
                self.want_checks(id, record, now_ms);
            }
        }
        let grace_ns = i64::try_from(self.settings.garbage_grace.as_nanos()).unwrap_or(i64::MAX);
        let grace = Grace { now_ns, grace_ns, steady_ns: self.steady.look(now_ms, now_ns) };
        let is_wanted = self.flights.targets_of(id).next().is_some() || self.compactor.makes(id);
        if self.ahead.is_purgeable(id, record, grace, now_ms) && !is_wanted {
            let holders = record.replicas.iter().chain(&record.dropping).copied().collect();
            self.offer(Proposal { chunk: id, node: 0, change: Change::Purge { holders } }, now_ms);
        }
    }

    /// Has all replicas of a chunk sealed, hashed or looked for soon, but for those that something is on its way about.
    pub fn want_checks(&mut self, chunk: u64, record: &Chunk, now_ms: u64) {
        for &node in &record.replicas {
            if !self.is_busy(chunk, node) {
                self.want_check(node, chunk, record.length, now_ms);
            }
        }
    }

    /// Has a datanode seal, hash or look for a replica soon. The replica is in doubt until its answer says how it is. False
    /// if that is not remembered: too many are.
    pub fn want_check(&mut self, node: u32, chunk: u64, length: u64, now_ms: u64) -> bool {
        if self.faults.contains_key(&(chunk, node)) {
            return true;
        }
        let again_ms = now_ms + millis(self.settings.ask_again);
        let is_asked = self.orders.concerns(node, chunk);
        let Some(attendee) = self.roster.attendees.get_mut(&node) else { return true };
        if attendee.stream.is_none() {
            return true;
        }
        if attendee.checks.contains_key(&chunk) {
            if is_asked {
                // The answer that is on its way may be older than this doubt.
                attendee.doubted_again.insert(chunk);
            }
            return true;
        }
        let has_room = attendee.checks.len() < QUEUE;
        if has_room {
            attendee.checks.insert(chunk, length);
        } else {
            attendee.ask_again(again_ms);
            attendee.account = Account::default();
        }
        has_room
    }

    /// Has a datanode look again at a replica that was found unfit and that it now reports whole, or long enough to be
    /// sealed: its disk may have been away. Only then, or those that are gone would be asked about for ever. Those that wait
    /// for a place come again with the next inventory.
    pub fn reconsider(&mut self, node: u32, chunk: u64, length: u64) {
        if self.faults.get(&(chunk, node)) != Some(&Fault::Unfit) {
            return;
        }
        if let Some(attendee) = self.roster.attendees.get_mut(&node)
            && attendee.stream.is_some()
            && attendee.checks.len() < QUEUE
        {
            attendee.checks.entry(chunk).or_insert(length);
        }
    }

    /// Whether a replica that the log counts on is known to be there: its datanode has said all that it has, and nothing
    /// about this one is under way or in doubt.
    pub fn is_vouched_for(&self, chunk: u64, node: u32, now_ms: u64) -> bool {
        let is_accounted =
            |attendee: &Attendee| attendee.account == Account::Whole && !attendee.checks.contains_key(&chunk);
        self.roster.attendees.get(&node).is_some_and(is_accounted)
            && !self.faults.contains_key(&(chunk, node))
            && !self.is_busy(chunk, node)
            && !self.failures.waits(chunk, node, now_ms)
    }

    /// A datanode has said how a replica is.
    pub fn end_check(&mut self, chunk: u64, node: u32) {
        if let Some(attendee) = self.roster.attendees.get_mut(&node)
            && !attendee.doubted_again.remove(&chunk)
        {
            attendee.checks.remove(&chunk);
        }
    }

    /// Has a chunk read and judged again soon; when very many are, the scan of all chunks comes by in any case.
    pub fn touch(&mut self, chunk: u64) {
        if self.touched.len() < TOUCHED {
            self.touched.insert(chunk);
        }
    }

    /// Has a datanode delete a replica of a purged chunk.
    pub fn want_delete(&mut self, node: u32, chunk: u64, now_ms: u64) {
        let again_ms = now_ms + millis(self.settings.ask_again);
        let Some(attendee) = self.roster.attendees.get_mut(&node) else { return };
        if attendee.stream.is_none() {
            return;
        }
        if attendee.deletes.len() < QUEUE {
            attendee.deletes.insert(chunk);
        } else {
            attendee.ask_again(again_ms);
        }
    }

    /// Asks a datanode for its inventory again, after a while.
    pub fn ask_again(&mut self, node: u32, now_ms: u64) {
        let at_ms = now_ms + millis(self.settings.ask_again);
        if let Some(attendee) = self.roster.attendees.get_mut(&node) {
            attendee.ask_again(at_ms);
        }
    }

    /// A replica is not to be counted on.
    pub fn mark(&mut self, chunk: u64, node: u32, fault: Fault) {
        if self.faults.len() >= FAULTS {
            // That it is bad is forgotten, so nothing that its datanode has is counted on to give up another.
            if let Some(attendee) = self.roster.attendees.get_mut(&node) {
                attendee.account = Account::default();
            }
            return;
        }
        let marked = self.faults.entry((chunk, node)).or_insert(fault);
        if fault == Fault::Corrupt {
            *marked = fault;
        }
        self.touched.insert(chunk);
    }

    /// The chunk is gone, so nothing about its replicas matters any more.
    fn forget_faults(&mut self, chunk: u64) {
        let gone: Vec<_> = self.faults.range((chunk, 0)..=(chunk, u32::MAX)).map(|(key, _)| *key).collect();
        for key in gone {
            self.faults.remove(&key);
        }
    }

    /// A replica proved good, or is not counted on any more.
    pub fn unmark(&mut self, chunk: u64, node: u32) {
        if self.faults.remove(&(chunk, node)).is_some() {
            self.touched.insert(chunk);
        }
    }

    /// Sends an order down a datanode's stream; false when there is none, or it is full.
    pub fn send(&mut self, node: u32, chunk: u64, task: Task, bytes: u64, now_ms: u64) -> bool {
        let Some(kind) = self.wire(&task, chunk) else { return false };
        let Some(stream) = self.roster.attendees.get(&node).and_then(|attendee| attendee.stream.as_ref())
        else {
            return false;
        };
        if stream.outgoing.try_send(Ok(message(self.orders.next_id(), kind))).is_err() {
            return false;
        }
        let pace = self.settings.copy_slowest_bytes_per_second.max(1);
        let patience_ms =
            millis(self.settings.order_patience).saturating_add(bytes.saturating_mul(1000) / pace);
        let deadline_ms = now_ms.saturating_add(patience_ms);
        self.orders.record(Sent { node, chunk, task, deadline_ms });
        true
    }

    fn wire(&self, task: &Task, chunk: u64) -> Option<cairn_proto::control::order::Kind> {
        use cairn_proto::control::{
            CopyReplica, DeleteReplica, ScrubReplicas, SealReplica, SendInventory, order::Kind,
        };
        Some(match task {
            Task::Seal { length } => Kind::Seal(SealReplica { chunk, length: *length }),
            Task::Delete => Kind::Delete(DeleteReplica { chunk }),
            Task::Inventory => Kind::Inventory(SendInventory {}),
            Task::Gather { run, .. } => {
                // Never so slow that it is taken for stuck.
                let slowest = self.settings.copy_slowest_bytes_per_second.saturating_mul(2);
                let rate = match self.settings.compaction_bytes_per_second {
                    0 => 0,
                    rate => rate.max(slowest),
                };
                self.compactor.order(*run, &self.roster, rate)?
            }
            Task::Scrub { chunks } => Kind::Scrub(ScrubReplicas { chunks: chunks.clone() }),
            Task::Copy(copy) => {
                let address = |node: &u32| Some(self.roster.attendees.get(node)?.record.address.clone());
                let sources: Vec<String> = copy.sources.iter().filter_map(address).collect();
                if sources.is_empty() {
                    return None;
                }
                Kind::Copy(CopyReplica {
                    chunk,
                    length: copy.length,
                    blake3: copy.blake3.clone(),
                    sources,
                    bytes_per_second: self.settings.copy_bytes_per_second,
                    replace: copy.replaces,
                })
            }
        })
    }

    /// Forgets a stream's orders. Copies among them are planned again at once; what they may leave behind is found by
    /// an inventory.
    pub fn disconnect(&mut self, node: u32, now_ms: u64) {
        for sent in self.orders.take_node(node) {
            match sent.task {
                Task::Copy(copy) => drop(self.flights.end(copy.chunk, node)),
                Task::Gather { run, .. } => compaction::lost(self, run, node, now_ms),
                _ => {}
            }
        }
        if let Some(attendee) = self.roster.attendees.get_mut(&node) {
            attendee.disconnect(now_ms);
        }
    }
}
