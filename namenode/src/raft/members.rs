//! Who belongs to the group: joining, leaving, handing over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cairn_metadata::store::{Store, View};
use cairn_proto::fs::NamenodeInfo;
use cairn_proto::{Error, ErrorCode};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant, ServerState};

use super::types::Types;
use super::{Group, forward, highest_id, stopped};

/// A learner this close to the end of the log becomes a voter.
const CLOSE_ENTRIES: u64 = 1_000;
/// A member not heard for so long counts as unreachable.
const REACHABLE: Duration = Duration::from_secs(1);

fn refused(error: RaftError<Types, ClientWriteError<Types>>) -> Error {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => forward(&to),
        RaftError::APIError(other) => {
            ErrorCode::Unavailable.because(format!("changing the members: {other}"))
        }
        RaftError::Fatal(error) => stopped(error),
    }
}

impl Group {
    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), Error> {
        self.raft.change_membership(change, false).await.map_err(refused)?;
        Ok(())
    }

    /// Ids and addresses of all members, and which of them vote.
    fn members(&self) -> (BTreeMap<u64, String>, BTreeSet<u64>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let nodes = membership.nodes().map(|(&id, node)| (id, node.addr.clone())).collect();
        (nodes, membership.voter_ids().collect())
    }

    /// Lets the namenode at `address` in as a learner, under an id nobody ever had. It becomes a voter, and takes
    /// the place of an earlier member at its address, when it has caught up ([`Group::promote`]).
    pub async fn admit(&self, address: &str) -> Result<u64, Error> {
        let _one = self.changing.lock().await;
        self.ensure_readable().await?;
        let (members, voters) = self.members();
        let stale: BTreeSet<u64> = members
            .iter()
            .filter(|(id, known)| known.as_str() == address && !voters.contains(id))
            .map(|(&id, _)| id)
            .collect();
        if !stale.is_empty() {
            // It asked before and lost the answer.
            self.change(ChangeMembers::RemoveNodes(stale)).await?;
        }
        let id = self.highest_id_ever()?.max(members.keys().max().copied().unwrap_or(0)) + 1;
        self.raft.add_learner(id, BasicNode::new(address), false).await.map_err(refused)?;
        tracing::info!(id, address, "a namenode joins as a learner");
        Ok(id)
    }

    fn highest_id_ever(&self) -> Result<u64, Error> {
        let mut highest = 0;
        let mut body = |view: &dyn View| {
            highest = highest_id(view)?;
            Ok(())
        };
        self.store.read(&mut body).map_err(|error| ErrorCode::Io.because(error.to_string()))?;
        Ok(highest)
    }

    /// Whether a change of the voters is half done: both the old and the new ones must agree to everything.
    fn is_between(&self) -> bool {
        self.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    /// Brings to its end what another leader began to change, and makes voters of the learners that have caught up; the
    /// leader calls it now and then.
    pub async fn promote(&self) -> Result<(), Error> {
        let _one = self.changing.lock().await;
        if self.is_between() {
            // A change takes two steps, and nobody but the one who asked for it takes the second. Left like this, the
            // group stands and falls with the majority of its old voters, who may be replaced because they are gone.
            self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await?;
            tracing::info!("a change of the voters that was left half done is completed");
        }
        let (members, voters) = self.members();
        let gone = superseded(&members, &voters);
        if !gone.is_empty() {
            // Whoever replaced them may have ended between their last vote and their removal.
            tracing::info!(?gone, "members whose place another has taken are removed");
            self.change(ChangeMembers::RemoveNodes(gone.clone())).await?;
        }
        for (id, address) in members.iter().filter(|(id, _)| !voters.contains(id) && !gone.contains(id)) {
            if !self.is_close(*id) {
                continue;
            }
            let replaced: BTreeSet<u64> =
                voters.iter().filter(|voter| members.get(voter) == Some(address)).copied().collect();
            let mut changes = vec![ChangeMembers::AddVoterIds(BTreeSet::from([*id]))];
            if !replaced.is_empty() {
                changes.push(ChangeMembers::RemoveVoters(replaced.clone()));
            }
            self.change(ChangeMembers::Batch(changes)).await?;
            tracing::info!(id, address, ?replaced, "a namenode votes from now on");
        }
        Ok(())
    }

    fn is_close(&self, id: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched =
            metrics.replication.as_ref().and_then(|replication| replication.get(&id).copied().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        matched.is_some_and(|matched| matched.index() + CLOSE_ENTRIES >= last)
    }

    /// Removes a member for good.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        let _one = self.changing.lock().await;
        self.ensure_readable().await?;
        let (members, voters) = self.members();
        if !members.contains_key(&id) {
            return Err(ErrorCode::NotFound.because(format!("namenode {id}")));
        }
        if !voters.contains(&id) {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        if voters.len() == 1 {
            return Err(ErrorCode::Invalid.because(format!("namenode {id} is the last one")));
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    /// Hands leadership to a voter; returns when it was asked, not when it leads.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        self.ensure_readable().await?;
        if !self.members().1.contains(&to) {
            return Err(ErrorCode::NotFound.because(format!("namenode {to} among the voters")));
        }
        if to == self.id {
            return Ok(());
        }
        self.raft.trigger().transfer_leader(to).await.map_err(stopped)
    }

    /// The address of a member, if there is one with this id.
    pub fn address_of(&self, id: u64) -> Option<String> {
        self.members().0.remove(&id)
    }

    /// The members as a person wants to see them.
    pub fn namenodes(&self) -> Vec<NamenodeInfo> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state == ServerState::Leader;
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let info = |(&id, node): (&u64, &BasicNode)| {
            let here = id == self.id;
            let matched = match here {
                true => metrics.last_log_index,
                false => metrics
                    .replication
                    .as_ref()
                    .and_then(|all| all.get(&id).copied().flatten())
                    .map(|at| at.index()),
            };
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(&id).copied().flatten());
            NamenodeInfo {
                id,
                address: node.addr.clone(),
                leader: metrics.current_leader == Some(id),
                voter: voters.contains(&id),
                matched: matched.unwrap_or(0),
                reachable: here || (leads && heard.is_some_and(|at| at.elapsed() < REACHABLE)),
            }
        };
        metrics.membership_config.nodes().map(info).collect()
    }
}

/// Members without a vote at whose address there is one with a later number: they lost their disk, and never return.
fn superseded(members: &BTreeMap<u64, String>, voters: &BTreeSet<u64>) -> BTreeSet<u64> {
    let has_later = |id: u64, address: &String| members.range(id + 1..).any(|(_, other)| other == address);
    let without_vote = members.iter().filter(|(id, _)| !voters.contains(id));
    without_vote.filter(|(id, address)| has_later(**id, address)).map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cairn_host::Host;
    use openraft::{EntryPayload, Membership};

    use super::*;
    use crate::fatal::Alarm;
    use crate::log::{Log, LogOptions};
    use crate::raft::GroupSettings;
    use crate::store::RedbStore;

    #[tokio::test]
    async fn a_change_of_voters_that_was_left_half_done_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = cairn_host::disk::real();
        let log = Log::open(&dir.path().join("log"), LogOptions::default(), disk.clone()).unwrap();
        let store = RedbStore::open(&dir.path().join("store"), 1 << 20, disk.clone()).unwrap();
        let settings = GroupSettings {
            election_timeout_ms: (100, 200),
            heartbeat_ms: 20,
            snapshot_every: 100,
            log_keep: 100,
            checkpoint_every: Duration::from_secs(1),
            incoming: dir.path().join("incoming"),
            network: Host::default().network,
            disk,
        };
        let alarm = Alarm::default();
        let group = Group::start(1, "c".into(), log, Arc::new(store), settings, alarm).await.unwrap();
        let members = BTreeMap::from([(1, "127.0.0.1:1".to_owned())]);
        group.initialize(&members).await.unwrap();
        while group.ensure_readable().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What the first step of a change leaves behind when its leader ends before the second.
        let voters = BTreeSet::from([1]);
        let nodes = BTreeMap::from([(1, BasicNode::new("127.0.0.1:1"))]);
        let joint = Membership::new(vec![voters.clone(), voters], nodes).unwrap();
        group.raft.append_membership(joint, EntryPayload::Blank, []).await.unwrap();
        assert!(group.is_between());
        group.promote().await.unwrap();
        assert!(!group.is_between());
        assert_eq!(group.members().1, BTreeSet::from([1]));
        group.shutdown().await;
    }

    #[test]
    fn a_member_without_a_vote_goes_when_a_later_one_has_its_address() {
        let members = [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "a"), (6, "d")];
        let members: BTreeMap<u64, String> = members.map(|(id, at)| (id, at.to_owned())).into();
        assert_eq!(superseded(&members, &[2, 3, 5].into()), [1, 4].into());
        assert_eq!(superseded(&members, &[1, 2, 3].into()), [4].into(), "5 is on its way in");
        assert_eq!(superseded(&members, &[1, 2, 3, 4].into()), [].into());
    }
}
