//! A group of one that begins with the content of another, which is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use cairn_metadata::store::{StoreError, Txn};
use futures::executor::block_on;
use openraft::storage::RaftLogStorage;
use openraft::{BasicNode, Membership};

use super::log_storage::LogStorage;
use super::snapshot::{self, HIGHEST_ID, MEMBERSHIP, put};
use super::types::{LogId, StoredMembership, Vote};
use crate::log::Log;

/// Terms that the lost group may have had after its content was copied.
const TERMS: u64 = 1_000_000;

/// The new group's only member and where its log begins.
#[derive(Debug)]
pub struct Anew {
    /// An id that no namenode of the lost group had.
    pub id: u64,
    applied: LogId,
}

/// Makes the content of a store that of a group whose only member is at `address`.
pub fn begin_anew(txn: &mut dyn Txn, address: &str) -> Result<Anew, StoreError> {
    let applied = snapshot::describe(txn)?.last_log_id;
    let applied = applied.ok_or_else(|| StoreError::Damaged("the snapshot says not how far it is".into()))?;
    let id = snapshot::highest_id(txn)? + 1;
    let nodes = BTreeMap::from([(id, BasicNode::new(address))]);
    let membership = Membership::new(vec![BTreeSet::from([id])], nodes);
    let membership = membership.map_err(|error| StoreError::Engine(error.to_string()))?;
    put(txn, HIGHEST_ID, &id)?;
    put(txn, MEMBERSHIP, &StoredMembership::new(Some(applied), membership))?;
    Ok(Anew { id, applied })
}

impl Anew {
    /// Has an empty log begin after what the store holds, and no term of the lost group come again.
    pub fn write_to(&self, log: &Log) -> io::Result<()> {
        let mut storage = LogStorage(log.clone());
        let vote = Vote::new(self.applied.committed_leader_id().term + TERMS, self.id);
        block_on(async {
            storage.save_vote(&vote).await?;
            storage.purge(self.applied).await
        })
    }
}
