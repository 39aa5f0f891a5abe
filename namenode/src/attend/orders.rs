//! Orders that were sent and not answered yet.

use std::collections::BTreeMap;

use cairn_metadata::plan::repair::Copy;
use cairn_proto::control::{self, order};

/// Unanswered `SealReplica` orders of one datanode at once.
pub(super) const SEALS_PER_NODE: usize = 32;
/// Unanswered `DeleteReplica` orders of one datanode at once.
pub(super) const DELETES_PER_NODE: usize = 64;

/// What was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    Seal {
        length: u64,
    },
    Delete,
    Copy(Copy),
    /// For a compaction of this leader, by its number, and the bytes it takes.
    Gather {
        run: u64,
        length: u64,
    },
    Inventory,
    /// No chunks: everything.
    Scrub {
        chunks: Vec<u64>,
    },
}

/// An order on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub node: u32,
    pub chunk: u64,
    pub task: Task,
    pub deadline_ms: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    seals: usize,
    deletes: usize,
}

/// All of them, by their id. Ids are unique over all leaders, so that a late answer is never taken for another's.
#[derive(Debug)]
pub(super) struct Orders {
    next: u64,
    sent: BTreeMap<u64, Sent>,
    replicas: BTreeMap<(u32, u64), u64>,
    counts: BTreeMap<u32, Counts>,
}

impl Orders {
    pub fn new(term: u64) -> Orders {
        Orders { next: term << 32, sent: BTreeMap::new(), replicas: BTreeMap::new(), counts: BTreeMap::new() }
    }

    /// The id the next order will have.
    pub fn next_id(&self) -> u64 {
        self.next
    }

    /// Records an order that was sent under `next_id`.
    pub fn record(&mut self, sent: Sent) {
        let counts = self.counts.entry(sent.node).or_default();
        match sent.task {
            Task::Seal { .. } => counts.seals += 1,
            Task::Delete => counts.deletes += 1,
            Task::Copy(_) | Task::Gather { .. } | Task::Inventory | Task::Scrub { .. } => {}
        }
        if !matches!(sent.task, Task::Inventory | Task::Scrub { .. }) {
            self.replicas.insert((sent.node, sent.chunk), self.next);
        }
        self.sent.insert(self.next, sent);
        self.next += 1;
    }

    /// The chunk that the order `id` to `node` is about, while the order is on its way.
    pub fn chunk_of(&self, id: u64, node: u32) -> Option<u64> {
        self.sent.get(&id).filter(|sent| sent.node == node).map(|sent| sent.chunk)
    }

    /// The order `id` was answered by `node`, or is given up.
    pub fn take(&mut self, id: u64, node: u32) -> Option<Sent> {
        if self.sent.get(&id)?.node != node {
            return None;
        }
        let sent = self.sent.remove(&id)?;
        if self.replicas.get(&(node, sent.chunk)) == Some(&id) {
            self.replicas.remove(&(node, sent.chunk));
        }
        if let Some(counts) = self.counts.get_mut(&node) {
            match sent.task {
                Task::Seal { .. } => counts.seals = counts.seals.saturating_sub(1),
                Task::Delete => counts.deletes = counts.deletes.saturating_sub(1),
                Task::Copy(_) | Task::Gather { .. } | Task::Inventory | Task::Scrub { .. } => {}
            }
        }
        Some(sent)
    }

    /// Everything that is past its time, and may be ordered once more while it still waits at its datanode. A deletion is
    /// never taken for over: if the replica were made anew meanwhile, the new one would be deleted. Datanodes answer it.
    pub fn take_overdue(&mut self, now_ms: u64) -> Vec<Sent> {
        self.take_where(|sent| sent.deadline_ms <= now_ms && sent.task != Task::Delete)
    }

    /// Everything that was sent to a datanode whose stream is gone.
    pub fn take_node(&mut self, node: u32) -> Vec<Sent> {
        self.take_where(|sent| sent.node == node)
    }

    fn take_where(&mut self, mut which: impl FnMut(&Sent) -> bool) -> Vec<Sent> {
        let ids: Vec<(u64, u32)> =
            self.sent.iter().filter(|(_, sent)| which(sent)).map(|(id, sent)| (*id, sent.node)).collect();
        ids.into_iter().filter_map(|(id, node)| self.take(id, node)).collect()
    }

    /// Whether an order about this replica is on its way.
    pub fn concerns(&self, node: u32, chunk: u64) -> bool {
        self.replicas.contains_key(&(node, chunk))
    }

    pub fn seals(&self, node: u32) -> usize {
        self.counts.get(&node).map_or(0, |counts| counts.seals)
    }

    pub fn deletes(&self, node: u32) -> usize {
        self.counts.get(&node).map_or(0, |counts| counts.deletes)
    }

    /// Copies and gatherings on their way: target and bytes.
    pub fn copies(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.sent.values().filter_map(|sent| match &sent.task {
            Task::Copy(copy) => Some((sent.node, copy.length)),
            Task::Gather { length, .. } => Some((sent.node, *length)),
            _ => None,
        })
    }
}

/// An order as it goes over the wire.
pub(super) fn message(id: u64, kind: order::Kind) -> control::NamenodeMessage {
    let order = control::Order { id, kind: Some(kind) };
    control::NamenodeMessage {
        kind: Some(control::namenode_message::Kind::Order(order)),
        ..control::NamenodeMessage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(node: u32, chunk: u64, task: Task, deadline_ms: u64) -> Sent {
        Sent { node, chunk, task, deadline_ms }
    }

    #[test]
    fn an_order_is_answered_once_and_only_by_its_node() {
        let mut orders = Orders::new(3);
        let id = orders.next_id();
        orders.record(sent(1, 7, Task::Delete, 10));
        assert!(orders.concerns(1, 7) && !orders.concerns(2, 7));
        assert_eq!(orders.deletes(1), 1);
        assert!(orders.take(id, 2).is_none());
        assert!(orders.take(id, 1).is_some() && orders.take(id, 1).is_none());
        assert!(!orders.concerns(1, 7));
        assert_eq!(orders.deletes(1), 0);
    }

    #[test]
    fn orders_go_with_their_time_and_with_their_stream() {
        let mut orders = Orders::new(1);
        orders.record(sent(1, 1, Task::Seal { length: 1 }, 10));
        orders.record(sent(1, 2, Task::Seal { length: 1 }, 20));
        orders.record(sent(2, 1, Task::Inventory, 30));
        assert_eq!(orders.take_overdue(10).len(), 1);
        assert_eq!(orders.seals(1), 1);
        assert_eq!(orders.take_node(1).len(), 1);
        assert_eq!(orders.take_overdue(30).len(), 1);
    }

    #[test]
    fn a_deletion_is_on_its_way_until_it_is_answered_or_its_stream_ends() {
        let mut orders = Orders::new(1);
        let id = orders.next_id();
        orders.record(sent(1, 7, Task::Delete, 10));
        orders.record(sent(1, 8, Task::Delete, 10));
        assert!(orders.take_overdue(1_000_000).is_empty());
        assert!(orders.concerns(1, 7) && orders.concerns(1, 8) && orders.deletes(1) == 2);
        assert!(orders.take(id, 1).is_some() && !orders.concerns(1, 7));
        assert_eq!(orders.take_node(1).len(), 1);
        assert!(!orders.concerns(1, 8) && orders.deletes(1) == 0);
    }
}
