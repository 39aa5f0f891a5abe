//! The types Raft runs with here.

use std::fmt;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use cairn_proto::fs::Outcome;
use openraft::entry::RaftEntry;
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};
use openraft::{BasicNode, EntryPayload, OptionalSend, RaftTypeConfig};
use prost::Message;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::log::{Position, Record};

/// At most one leader a term, as in the Raft paper: a term names its leader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl RaftTypeConfig for Types {
    type D = Proposal;
    type R = Outcomes;
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::Vote<LeaderId<u64, u64>>;
    type Payload = EntryPayload<Proposal, u64, BasicNode>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A log id of this group.
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
/// A vote of this group.
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
/// An entry of this group's log.
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
/// A membership and where in the log it stands.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// An encoded `CommandBatch`: it stays bytes on its way through the log and the network.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Proposal, D::Error> {
        deserializer.deserialize_byte_buf(ProposalVisitor)
    }
}

struct ProposalVisitor;

impl Visitor<'_> for ProposalVisitor {
    type Value = Proposal;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Proposal, E> {
        Ok(Proposal(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Proposal, E> {
        Ok(Proposal(Bytes::from(bytes)))
    }
}

/// One outcome for each command of a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcomes(pub Vec<Outcome>);

impl Serialize for Outcomes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Message::encode_to_vec))
    }
}

impl<'de> Deserialize<'de> for Outcomes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Outcomes, D::Error> {
        deserializer.deserialize_seq(OutcomesVisitor)
    }
}

struct OutcomesVisitor;

impl<'de> Visitor<'de> for OutcomesVisitor {
    type Value = Outcomes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("encoded outcomes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Outcomes, A::Error> {
        let mut outcomes = Vec::new();
        while let Some(bytes) = sequence.next_element::<Vec<u8>>()? {
            outcomes.push(Outcome::decode(bytes.as_slice()).map_err(A::Error::custom)?);
        }
        Ok(Outcomes(outcomes))
    }
}

// The first byte of a record's payload.
const BLANK: u8 = 0;
const BATCH: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// The place of a log id.
pub fn position(id: &LogId) -> Position {
    Position { index: id.index(), term: id.committed_leader_id().term }
}

/// The log id of a place.
pub fn log_id(at: Position) -> LogId {
    LogId::new_term_index(at.term, at.index)
}

/// An entry as the log keeps it.
pub fn to_record(entry: &Entry) -> io::Result<Record> {
    let payload = match &entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        EntryPayload::Normal(batch) => {
            let mut bytes = BytesMut::with_capacity(1 + batch.0.len());
            bytes.put_u8(BATCH);
            bytes.put_slice(&batch.0);
            bytes.freeze()
        }
        EntryPayload::Membership(membership) => {
            let bytes = postcard::to_extend(membership, vec![MEMBERSHIP]).map_err(io::Error::other)?;
            Bytes::from(bytes)
        }
    };
    Ok(Record { at: position(&entry.log_id), payload })
}

/// The entry of a record.
pub fn to_entry(record: &Record) -> io::Result<Entry> {
    let unknown = || {
        let what = format!("log record {} is of an unknown kind", record.at.index);
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    let payload = match record.payload.first() {
        Some(&BLANK) => EntryPayload::Blank,
        Some(&BATCH) => EntryPayload::Normal(Proposal(record.payload.slice(1..))),
        Some(&MEMBERSHIP) => {
            EntryPayload::Membership(postcard::from_bytes(&record.payload[1..]).map_err(|_| unknown())?)
        }
        _ => return Err(unknown()),
    };
    Ok(Entry::new(log_id(record.at), payload))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::Membership;

    use super::*;

    #[test]
    fn entries_come_back_from_the_log_and_the_wire() {
        let nodes = BTreeMap::from([(1, BasicNode::new("a:1")), (2, BasicNode::new("b:1"))]);
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal(Bytes::from_static(b"batch"))),
            EntryPayload::Membership(membership),
        ];
        for (index, payload) in payloads.into_iter().enumerate() {
            let entry = Entry::new(LogId::new_term_index(3, index as u64), payload);
            assert_eq!(to_entry(&to_record(&entry).unwrap()).unwrap(), entry);
            let bytes = postcard::to_allocvec(&entry).unwrap();
            assert_eq!(postcard::from_bytes::<Entry>(&bytes).unwrap(), entry);
        }
        let strange = Record { at: Position { index: 0, term: 0 }, payload: Bytes::from_static(&[9]) };
        assert!(to_entry(&strange).is_err());
    }

    #[test]
    fn outcomes_come_back() {
        let outcomes = Outcomes(vec![Outcome::default(), Outcome { result: None }]);
        let bytes = postcard::to_allocvec(&outcomes).unwrap();
        assert_eq!(postcard::from_bytes::<Outcomes>(&bytes).unwrap(), outcomes);
    }
}
