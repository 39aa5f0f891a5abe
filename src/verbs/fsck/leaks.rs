//! Records and replicas compared in both directions, and the records with each other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow};
use cairn_client::data::{ListedReplica, ReplicaList};
use cairn_client::fs::{self, ChunkState, Liveness, NodeCheck, PlacedReplica};

use super::{Find, Found};
use crate::client::Client;

/// Doubts about one datanode that are looked into; the first ones tell the story.
const DOUBTS: usize = 1000;
/// Between two looks at a doubt: what is only under way is over by then.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// A difference between what the records say of a datanode and what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// It has a replica that no record places there.
    Stray,
    /// A record counts on a replica that it does not have.
    Absent,
    /// Its replica is shorter than the sealed chunk.
    Short(u64, u64),
    /// The index of the node names a chunk that does not exist.
    Nothing,
}

impl Doubt {
    fn text(self) -> String {
        match self {
            Doubt::Stray => "the datanode has a replica that no record knows".into(),
            Doubt::Absent => "the records count on a replica that the datanode does not have".into(),
            Doubt::Short(has, wants) => format!("the datanode's replica has {has} of {wants} bytes"),
            Doubt::Nothing => "the index of the datanode names a chunk that does not exist".into(),
        }
    }

    fn find(self) -> Find {
        match self {
            Doubt::Stray => Find::StrayReplica,
            Doubt::Absent | Doubt::Short(..) => Find::AbsentReplica,
            Doubt::Nothing => Find::Record,
        }
    }
}

/// Compares a page of each side. Returns what differs, and where both go on; 0: at their end.
fn compare(placed: &NodeCheck, listed: &ReplicaList) -> (Vec<(u64, Doubt)>, u64) {
    let next = match (placed.next, listed.next) {
        (0, next) | (next, 0) => next,
        (one, other) => one.min(other),
    };
    let is_here = |chunk: u64| next == 0 || chunk < next;
    let placed: BTreeMap<u64, &PlacedReplica> = placed
        .replicas
        .iter()
        .filter(|replica| is_here(replica.chunk))
        .map(|replica| (replica.chunk, replica))
        .collect();
    let listed: BTreeMap<u64, &ListedReplica> = listed
        .replicas
        .iter()
        .filter(|replica| is_here(replica.chunk))
        .map(|replica| (replica.chunk, replica))
        .collect();
    let mut doubts = Vec::new();
    for (chunk, record) in &placed {
        let has = listed.get(chunk);
        match (record.state(), has) {
            (ChunkState::Unspecified, _) => doubts.push((*chunk, Doubt::Nothing)),
            (ChunkState::Sealed, None) if !record.dropping => doubts.push((*chunk, Doubt::Absent)),
            (ChunkState::Sealed, Some(has)) if has.length < record.length && !record.dropping => {
                doubts.push((*chunk, Doubt::Short(has.length, record.length)));
            }
            _ => {}
        }
    }
    doubts.extend(
        listed.keys().filter(|chunk| !placed.contains_key(chunk)).map(|chunk| (*chunk, Doubt::Stray)),
    );
    doubts.sort_unstable_by_key(|(chunk, _)| *chunk);
    (doubts, next)
}

/// Compares every datanode that answers with its records. Also returns how many did not, of those that are not dead.
pub async fn replicas(client: &Client, nodes: &[fs::DatanodeInfo]) -> (Vec<Found>, u64) {
    let (mut found, mut silent) = (Vec::new(), 0);
    for node in nodes {
        if node.liveness() == Liveness::Dead {
            client.report.note(format!("node {} is dead: its replicas were not compared", node.node));
            continue;
        }
        match of_node(client, node).await {
            Ok(doubts) => found.extend(doubts),
            Err(error) => {
                client.report.note(format!("node {} at {}: {error:#}", node.node, node.address));
                silent += 1;
            }
        }
    }
    (found, silent)
}

async fn of_node(client: &Client, node: &fs::DatanodeInfo) -> Result<Vec<Found>> {
    let mut doubts = Vec::new();
    let mut from = 0;
    loop {
        let (differ, next) = look(client, node, from, 0).await?;
        doubts.extend(differ);
        doubts.truncate(DOUBTS);
        if next == 0 {
            break;
        }
        from = next;
    }
    if !doubts.is_empty() {
        tokio::time::sleep(SECOND_LOOK).await;
    }
    let mut found = Vec::new();
    for (chunk, _) in doubts {
        let (again, _) = look(client, node, chunk, 1).await?;
        for (_, doubt) in again.into_iter().filter(|(id, _)| *id == chunk) {
            found.push(Found { find: doubt.find(), chunk, node: node.node, what: doubt.text() });
        }
    }
    Ok(found)
}

async fn look(
    client: &Client,
    node: &fs::DatanodeInfo,
    from: u64,
    limit: u32,
) -> Result<(Vec<(u64, Doubt)>, u64)> {
    // The datanode first: a chunk that is made between the two questions is then no stray.
    let listed =
        client.cluster.list_replicas(&node.address, from, limit).await.map_err(|e| anyhow!("{e}"))?;
    let placed =
        client.cluster.check_node(&client.cred, node.node, from, limit).await.map_err(|e| anyhow!("{e}"))?;
    Ok(compare(&placed, &listed))
}

/// Has the namenode compare every chunk with the files that name it.
pub async fn records(client: &Client, mut tick: impl FnMut()) -> Result<(Garbage, Vec<Found>)> {
    let (mut garbage, mut found, mut from) = (Garbage::default(), Vec::new(), 0);
    loop {
        let page = client.cluster.check_chunks(&client.cred, from).await.map_err(|e| anyhow!("{e}"))?;
        for chunk in &page.chunks {
            garbage.add(chunk);
            tick();
        }
        for problem in page.problems {
            if found.len() < DOUBTS {
                found.push(Found { find: Find::Record, chunk: problem.chunk, node: 0, what: problem.what });
            }
        }
        if page.next == 0 {
            return Ok((garbage, found));
        }
        from = page.next;
    }
}

/// Bytes that no file names.
#[derive(Debug, Default, Clone, Copy)]
pub struct Garbage {
    /// In one replica of each sealed chunk.
    pub bytes: u64,
    /// Chunks without a live byte.
    pub dead_chunks: u64,
}

impl Garbage {
    fn add(&mut self, chunk: &fs::ChunkInfo) {
        if chunk.state() == ChunkState::Sealed {
            let named = chunk.live_bytes.saturating_add(chunk.kept_bytes);
            self.bytes += chunk.length.saturating_sub(named);
            self.dead_chunks += u64::from(named == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(chunk: u64, state: ChunkState, length: u64, dropping: bool) -> PlacedReplica {
        PlacedReplica { chunk, state: state.into(), length, dropping }
    }

    fn listed(chunk: u64, length: u64) -> ListedReplica {
        ListedReplica { chunk, length, sealed: true }
    }

    #[test]
    fn differences_are_told_in_both_directions() {
        let records = vec![
            placed(1, ChunkState::Sealed, 10, false),
            placed(2, ChunkState::Sealed, 10, false),
            placed(3, ChunkState::Sealed, 10, true),
            placed(4, ChunkState::Open, 0, false),
            placed(5, ChunkState::Sealed, 10, false),
            placed(6, ChunkState::Unspecified, 0, false),
        ];
        let has = vec![listed(1, 10), listed(5, 9), listed(7, 1)];
        let page = NodeCheck { replicas: records, next: 0, next_chunk: 9 };
        let (doubts, next) = compare(&page, &ReplicaList { replicas: has, next: 0 });
        let expected = [(2, Doubt::Absent), (5, Doubt::Short(9, 10)), (6, Doubt::Nothing), (7, Doubt::Stray)];
        assert_eq!((doubts.as_slice(), next), (expected.as_slice(), 0));
    }

    #[test]
    fn only_what_both_pages_speak_for_is_compared() {
        let records =
            vec![placed(1, ChunkState::Sealed, 10, false), placed(9, ChunkState::Sealed, 10, false)];
        let page = NodeCheck { replicas: records, next: 0, next_chunk: 99 };
        let has = ReplicaList { replicas: vec![listed(1, 10)], next: 5 };
        assert_eq!(compare(&page, &has), (vec![], 5));
        let page = NodeCheck { next: 3, ..page };
        assert_eq!(compare(&page, &has), (vec![], 3));
    }
}
