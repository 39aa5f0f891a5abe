//! Datanodes as the leader knows them: what the records say, and what it heard since it leads.

use std::collections::{BTreeMap, BTreeSet};

use cairn_metadata::plan::liveness::{Patience, judge};
use cairn_metadata::plan::{Node, Nodes};
use cairn_proto::control::{DiskSpace, NamenodeMessage};
use cairn_proto::fs::{AdminState, DrainingDirectory, FailedDirectory, Liveness, ScrubInfo, Traffic};
use cairn_proto::store::Datanode;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// How long a datanode may be without a stream before that counts against it: it looks for the leader every 200 ms.
const RECONNECT_MS: u64 = 500;

/// The sending side of a datanode's stream.
pub(super) type Outgoing = mpsc::Sender<Result<NamenodeMessage, Status>>;

/// An open stream of a datanode. Dropping it ends the stream's task.
#[derive(Debug)]
pub(super) struct Stream {
    pub id: u64,
    pub outgoing: Outgoing,
    pub _alive: oneshot::Sender<()>,
}

/// One registered datanode.
#[derive(Debug, Default)]
pub(super) struct Attendee {
    pub record: Datanode,
    pub heard_ms: Option<u64>,
    pub space: Option<DiskSpace>,
    /// How far it is with verifying what it holds, as last told.
    pub scrub: Option<ScrubInfo>,
    /// Its data directories that failed, as last told.
    pub failed: Vec<FailedDirectory>,
    /// Its data directories that are emptied into the others, as last told.
    pub draining: Vec<DrainingDirectory>,
    /// What it has carried since it started, as last told.
    pub traffic: Option<Traffic>,
    pub stream: Option<Stream>,
    /// Where another datanode with the same identity was refused last, and when.
    pub rival: Option<(String, u64)>,
    /// When the last stream ended.
    pub lost_ms: Option<u64>,
    /// Replicas to order `SealReplica` for, with the length: to be sealed, or in doubt. They stay until they are answered
    /// for.
    pub checks: BTreeMap<u64, u64>,
    /// Where the next look at them starts.
    pub checks_from: u64,
    /// Those of them that were doubted once more while they were asked for.
    pub doubted_again: BTreeSet<u64>,
    /// Replicas of purged chunks to order `DeleteReplica` for.
    pub deletes: BTreeSet<u64>,
    /// Where the next look at them starts.
    pub deletes_from: u64,
    /// When to ask for the whole inventory again.
    pub ask_again_ms: Option<u64>,
    /// How much of what it has was compared with the records since its stream opened.
    pub account: Account,
}

/// How far a datanode's account of what it has goes. Before it is whole, a replica that the log places there may be gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// Chunks below this id.
    Below(u64),
    /// All of it.
    Whole,
}

impl Default for Account {
    fn default() -> Account {
        Account::Below(0)
    }
}

impl Account {
    /// Takes a page in that speaks for chunks from `first` on and below `next`, 0 being the end.
    pub fn extend(&mut self, first: u64, next: u64) {
        let Account::Below(known) = *self else { return };
        if first <= known {
            *self = if next == 0 { Account::Whole } else { Account::Below(known.max(next)) };
        }
    }
}

impl Attendee {
    /// Its stream ended and it did not come back: more than silence, so no new chunks before it does.
    fn is_lost(&self, now_ms: u64) -> bool {
        self.stream.is_none() && self.lost_ms.is_some_and(|lost| now_ms >= lost + RECONNECT_MS)
    }

    /// Ends the stream and forgets what was meant to go down it: the next one starts with an inventory.
    pub fn disconnect(&mut self, now_ms: u64) {
        self.stream = None;
        self.lost_ms = Some(now_ms);
        self.checks.clear();
        self.doubted_again.clear();
        self.deletes.clear();
        self.ask_again_ms = None;
        self.account = Account::default();
    }

    /// Asks for the inventory at `at_ms`, or earlier if that was meant already.
    pub fn ask_again(&mut self, at_ms: u64) {
        self.ask_again_ms = Some(self.ask_again_ms.map_or(at_ms, |already| already.min(at_ms)));
    }
}

/// Failed directories of a datanode that are remembered, and the characters of each text.
const FAILED: (usize, usize) = (64, 512);

/// What a datanode says of its failed directories, within bounds.
pub(super) fn bounded(mut failed: Vec<FailedDirectory>) -> Vec<FailedDirectory> {
    failed.truncate(FAILED.0);
    for one in &mut failed {
        one.path = one.path.chars().take(FAILED.1).collect();
        one.cause = one.cause.chars().take(FAILED.1).collect();
    }
    failed
}

/// What a datanode says of the directories that it empties, within bounds.
pub(super) fn bounded_draining(mut draining: Vec<DrainingDirectory>) -> Vec<DrainingDirectory> {
    draining.truncate(FAILED.0);
    draining.iter_mut().for_each(|one| one.path = one.path.chars().take(FAILED.1).collect());
    draining
}

/// All of them, and the planners' view of them.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub attendees: BTreeMap<u32, Attendee>,
    pub nodes: Nodes,
}

impl Roster {
    /// Takes in the records. A node is never removed from them.
    pub fn load(&mut self, records: Vec<(u32, Datanode)>) {
        for (node, record) in records {
            self.attendees.entry(node).or_default().record = record;
        }
    }

    /// Judges everybody anew. Returns the nodes whose replicas count differently now.
    pub fn judge(
        &mut self,
        since_ms: u64,
        (now_ms, now_ns): (u64, i64),
        patience: Patience,
        promised: &BTreeMap<u32, u64>,
    ) -> Vec<u32> {
        let mut changed = Vec::new();
        // Who was heard last at each address.
        let mut heard: BTreeMap<&str, u64> = BTreeMap::new();
        for attendee in self.attendees.values() {
            if let Some(at_ms) = attendee.heard_ms {
                let last = heard.entry(&attendee.record.address).or_default();
                *last = at_ms.max(*last);
            }
        }
        for (&id, attendee) in &self.attendees {
            let mut liveness = judge(attendee.heard_ms, since_ms, now_ms, patience);
            let later = heard.get(attendee.record.address.as_str()).copied();
            if attendee.stream.is_none() && later > attendee.heard_ms {
                // Whoever lost its disk comes back under another number, and this one never.
                liveness = Liveness::Dead;
            }
            if liveness == Liveness::Live && attendee.is_lost(now_ms) {
                liveness = Liveness::Suspect;
            }
            let admin = wanted(&attendee.record, now_ns);
            if liveness == Liveness::Dead && admin == AdminState::Maintenance {
                // Expected back: a chunk is only made up for if it is down to its last replica.
                liveness = Liveness::Suspect;
            }
            let free = attendee.space.as_ref().map_or(attendee.record.capacity, |space| space.available);
            let now = Node {
                liveness,
                admin,
                host: attendee.record.host.clone(),
                rack: attendee.record.rack.clone(),
                available: free.saturating_sub(promised.get(&id).copied().unwrap_or(0)),
                capacity: attendee.space.as_ref().map_or(attendee.record.capacity, |space| space.capacity),
            };
            // The replicas of a node seen for the first time are met by the scan of all chunks.
            if let Some(before) = self.nodes.insert(id, now)
                && (before.admin != admin || counts_differently(before.liveness, liveness))
            {
                changed.push(id);
            }
        }
        changed
    }

    /// Those with a stream.
    pub fn attending(&self) -> impl Iterator<Item = u32> + '_ {
        self.attendees.iter().filter(|(_, attendee)| attendee.stream.is_some()).map(|(node, _)| *node)
    }

    /// What the last round made of it; one that registered since is not known yet.
    pub fn liveness(&self, node: u32) -> Liveness {
        self.nodes.get(&node).map_or(Liveness::Unknown, |node| node.liveness)
    }

    /// Whether a node has had no stream for so long, whatever is made of that.
    pub fn is_away(&self, node: u32, patience_ms: u64, now_ms: u64) -> bool {
        let attendee = self.attendees.get(&node).filter(|attendee| attendee.stream.is_none());
        let lost_ms = attendee.and_then(|attendee| attendee.lost_ms);
        lost_ms.is_some_and(|lost| now_ms >= lost.saturating_add(patience_ms))
    }

    pub fn live(&self) -> u64 {
        self.nodes.values().filter(|node| node.liveness == Liveness::Live).count() as u64
    }
}

/// What is wanted of a datanode now: a maintenance that took too long is over.
fn wanted(record: &Datanode, now_ns: i64) -> AdminState {
    match record.admin() {
        AdminState::Maintenance if now_ns >= record.until_ns => AdminState::Normal,
        state => state,
    }
}

/// Unknown becomes live for everybody when a leader is new; the scan that every leader starts with sees to them.
fn counts_differently(before: Liveness, now: Liveness) -> bool {
    before != now && !(before == Liveness::Unknown && now == Liveness::Live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_whole_when_its_pages_tile_all_ids() {
        let mut account = Account::default();
        account.extend(5, 6);
        assert_eq!(account, Account::Below(0), "news of one chunk");
        account.extend(10_000, 0);
        assert_eq!(account, Account::Below(0), "a page is missing");
        account.extend(0, 10_000);
        account.extend(10_000, 10_001);
        account.extend(10_000, 20_000);
        account.extend(7, 8);
        assert_eq!(account, Account::Below(20_000));
        account.extend(20_000, 0);
        account.extend(0, 10_000);
        assert_eq!(account, Account::Whole);
    }
}
