//! A group of one that begins with the content of another, which is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use cairn_metadata::store::{StoreError, Table, Txn};
use openraft::{BasicNode, Membership};
use serde::Serialize;

use super::snapshot::{self, HIGHEST_ID, MEMBERSHIP};
use super::types::{LogId, StoredMembership, Vote, position};
use crate::log::{Flushed, Log};

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
        let at = position(&self.applied);
        let vote = Vote::new(at.term + TERMS, self.id);
        let vote = Bytes::from(postcard::to_allocvec(&vote).map_err(io::Error::other)?);
        done(|flushed| log.save_vote(vote, flushed))?;
        done(|flushed| log.purge(at, flushed))
    }
}

/// Asks the log for something and waits until it is on disk.
fn done(ask: impl FnOnce(Flushed) -> io::Result<()>) -> io::Result<()> {
    let (sender, receiver) = sync_channel(1);
    ask(Box::new(move |result| {
        // Whoever asked waits below.
        let _ = sender.send(result);
    }))?;
    receiver.recv().unwrap_or_else(|_| Err(io::Error::other("the log's writer ended")))
}

fn put(txn: &mut dyn Txn, key: &[u8], value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = postcard::to_allocvec(value).map_err(|error| StoreError::Engine(error.to_string()))?;
    txn.put(Table::Raft, key, &bytes)
}
