//! Reading chunk records in bounded slices.
//!
//! The leader learns what to repair by reading the chunk table from end to end again and again, a slice a round. That
//! needs no notice from anybody and forgets nothing, whoever changed a record and whatever was missed. What is known
//! to have changed is read at once: chunks that a proposal touched, and the chunks of a node whose liveness changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use cairn_metadata::plan::compact;
use cairn_metadata::store::{Store, StoreError, Table, View};
use cairn_metadata::{key, records};
use cairn_proto::fs::ChunkPiece;
use cairn_proto::store::Chunk;

use super::balance::{self, Candidates};

/// Touched chunks read in one round.
const TOUCHED: usize = 4096;

/// Where the reading stands.
#[derive(Debug, Default)]
pub(super) struct Scan {
    cursor: u64,
    begun_ms: Option<u64>,
    /// Nodes whose chunks are to be read, and from where on.
    nodes: BTreeMap<u32, u64>,
    /// Passes over the whole table so far.
    pub passes: u64,
}

/// What to read in a round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Job {
    pub touched: Vec<u64>,
    pub table_from: Option<u64>,
    /// Nodes whose chunks are to be read, and from where on.
    pub nodes_from: Vec<(u32, u64)>,
    /// A compaction, its chunks, and the most bytes to gather of them.
    pub pieces: Option<(u64, Vec<u64>, u64)>,
    /// A node some of whose chunks are to be moved, and from where on.
    pub giving: Option<(u32, u64)>,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Single chunks; `None`: there is no such chunk any more.
    pub chunks: Vec<(u64, Option<Chunk>)>,
    /// A stretch of the table.
    pub stretch: Option<Stretch>,
    /// Where each node's chunks go on; `None`: they are all read.
    pub nodes_next: Vec<(u32, Option<u64>)>,
    /// What a compaction is to gather.
    pub pieces: Option<(u64, Vec<ChunkPiece>)>,
    /// Chunks that may be moved.
    pub giving: Option<Candidates>,
}

/// All chunks with ids in `[from, next)`; `next` 0 is the end of the table.
#[derive(Debug)]
pub(super) struct Stretch {
    pub from: u64,
    pub next: u64,
    pub chunks: Vec<(u64, Chunk)>,
}

impl Scan {
    /// The chunks of this node count differently now.
    pub fn want_node(&mut self, node: u32) {
        self.nodes.insert(node, 0);
    }

    /// What to read now. A pass over the table begins `interval_ms` after the last one began, at the earliest.
    pub fn job(&mut self, touched: &mut BTreeSet<u64>, due: bool, interval_ms: u64, now_ms: u64) -> Job {
        let mut job = Job::default();
        while job.touched.len() < TOUCHED
            && let Some(chunk) = touched.pop_first()
        {
            job.touched.push(chunk);
        }
        // At once: until it is read, a node that died seems to be missed by nobody.
        job.nodes_from = self.nodes.iter().map(|(node, from)| (*node, *from)).collect();
        if !due {
            return job;
        }
        let begins = self.cursor == 0;
        if !begins || self.begun_ms.is_none_or(|begun| now_ms >= begun + interval_ms) {
            if begins {
                self.begun_ms = Some(now_ms);
            }
            job.table_from = Some(self.cursor);
        }
        job
    }

    /// Moves on to where the reading stopped.
    pub fn advance(&mut self, read: &Read) {
        if let Some(stretch) = &read.stretch {
            self.cursor = stretch.next;
            self.passes += u64::from(stretch.next == 0);
        }
        for (node, next) in &read.nodes_next {
            match next {
                Some(next) => drop(self.nodes.insert(*node, *next)),
                None => drop(self.nodes.remove(node)),
            }
        }
    }

    /// Whether everything that is known to count differently has been read: all of it once, and the chunks of every
    /// node whose liveness changed since.
    pub fn is_abreast(&self) -> bool {
        self.passes > 0 && self.nodes.is_empty()
    }
}

/// Does a job in one consistent view.
pub(super) fn read(store: &dyn Store, job: &Job, slice: usize) -> Result<Read, StoreError> {
    let slice = slice.max(1);
    let mut read = Read::default();
    store.read(&mut |view| {
        read = Read::default();
        for &chunk in &job.touched {
            read.chunks.push((chunk, records::chunk(view, chunk)?));
        }
        if let Some(from) = job.table_from {
            read.stretch = Some(stretch(view, from, slice)?);
        }
        if let Some((run, chunks, most_bytes)) = &job.pieces {
            read.pieces = Some((*run, compact::pieces(view, chunks, *most_bytes)?));
        }
        if let Some((node, from)) = job.giving {
            read.giving = Some(candidates(view, node, from)?);
        }
        let mut room = slice;
        for &(node, from) in &job.nodes_from {
            let ids = chunks_of(view, node, from, 0, room)?;
            let next = if ids.len() < room { None } else { ids.last().map(|last| last + 1) };
            read.nodes_next.push((node, next));
            room -= ids.len();
            for chunk in ids {
                read.chunks.push((chunk, records::chunk(view, chunk)?));
            }
            if room == 0 {
                break;
            }
        }
        Ok(())
    })?;
    Ok(read)
}

fn stretch(view: &dyn View, from: u64, slice: usize) -> Result<Stretch, StoreError> {
    let mut raw: Vec<(u64, Vec<u8>)> = Vec::new();
    view.scan(Table::Chunk, &key::one(from), &[], &mut |at, value| {
        raw.extend(key::number(at, 0).map(|id| (id, value.to_vec())));
        if raw.len() < slice { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let next = if raw.len() < slice { 0 } else { raw.last().map_or(0, |(last, _)| last.saturating_add(1)) };
    let decode = |(id, value): (u64, Vec<u8>)| Ok((id, records::decode(Table::Chunk, &value)?));
    let chunks = raw.into_iter().map(decode).collect::<Result<_, StoreError>>()?;
    Ok(Stretch { from, next, chunks })
}

fn candidates(view: &dyn View, node: u32, from: u64) -> Result<Candidates, StoreError> {
    let ids = chunks_of(view, node, from, 0, balance::LOOKS)?;
    let next = if ids.len() < balance::LOOKS { 0 } else { ids.last().map_or(0, |last| last + 1) };
    let mut chunks = Vec::with_capacity(ids.len());
    for id in ids {
        chunks.extend(records::chunk(view, id)?.map(|record| (id, record)));
    }
    Ok(Candidates { node, chunks, next })
}

/// The first `limit` chunks that the records place on `node`, with ids in `[from, next)`; `next` 0 is no end.
pub(super) fn chunks_of(
    view: &dyn View,
    node: u32,
    from: u64,
    next: u64,
    limit: usize,
) -> Result<Vec<u64>, StoreError> {
    let end = match next {
        0 => key::after(u64::from(node)),
        next => key::node_chunk(node, next).to_vec(),
    };
    let mut ids = Vec::new();
    view.scan(Table::NodeChunk, &key::node_chunk(node, from), &end, &mut |at, _| {
        if ids.len() >= limit {
            return ControlFlow::Break(());
        }
        ids.extend(key::number(at, 1));
        ControlFlow::Continue(())
    })?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use cairn_metadata::memory::MemoryStore;
    use cairn_metadata::store::Durability;
    use prost::Message;

    use super::*;

    fn store(chunks: u64) -> MemoryStore {
        let store = MemoryStore::default();
        let fill = &mut |txn: &mut dyn cairn_metadata::store::Txn| {
            for id in 1..=chunks {
                txn.put(Table::Chunk, &key::one(id), &Chunk::default().encode_to_vec())?;
                txn.put(Table::NodeChunk, &key::node_chunk(1 + (id % 2) as u32, id), &[])?;
            }
            Ok(())
        };
        store.write(Durability::Applied, fill).unwrap();
        store
    }

    #[test]
    fn slices_tile_the_table_and_a_pass_waits_for_its_time() {
        let store = store(10);
        let (mut scan, mut touched) = (Scan::default(), BTreeSet::new());
        let (mut seen, mut stretches) = (Vec::new(), Vec::new());
        while scan.passes == 0 {
            let job = scan.job(&mut touched, true, 1000, 5);
            let read = read(&store, &job, 4).unwrap();
            scan.advance(&read);
            let stretch = read.stretch.unwrap();
            stretches.push((stretch.from, stretch.next));
            seen.extend(stretch.chunks.into_iter().map(|(id, _)| id));
        }
        assert_eq!(seen, (1..=10).collect::<Vec<_>>());
        assert_eq!(stretches, [(0, 5), (5, 9), (9, 0)]);
        assert_eq!(scan.job(&mut touched, true, 1000, 1004).table_from, None);
        assert_eq!(scan.job(&mut touched, true, 1000, 1005).table_from, Some(0));
    }

    #[test]
    fn a_node_is_read_to_its_end() {
        let store = store(10);
        let (mut scan, mut touched) = (Scan::default(), BTreeSet::new());
        scan.want_node(1);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let job = scan.job(&mut touched, true, 1000, 5);
            let read = read(&store, &job, 2).unwrap();
            scan.advance(&read);
            seen.extend(read.chunks.into_iter().map(|(id, _)| id));
        }
        assert_eq!(seen, [2, 4, 6, 8, 10]);
        assert!(scan.job(&mut touched, true, 1000, 5).nodes_from.is_empty());
    }

    #[test]
    fn nodes_that_change_together_are_read_together_as_far_as_a_slice_goes() {
        let store = store(10);
        let (mut scan, mut touched) = (Scan { passes: 1, ..Scan::default() }, BTreeSet::new());
        scan.want_node(1);
        scan.want_node(2);
        let mut rounds = Vec::new();
        while !scan.is_abreast() {
            let job = scan.job(&mut touched, false, 1000, 5);
            let read = read(&store, &job, 7).unwrap();
            scan.advance(&read);
            rounds.push(read.chunks.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
        }
        assert_eq!(rounds, [vec![2, 4, 6, 8, 10, 1, 3], vec![5, 7, 9]]);
    }

    #[test]
    fn touched_chunks_are_read_in_every_round_and_the_rest_when_due() {
        let mut touched = BTreeSet::from([3, 99]);
        let mut scan = Scan::default();
        let job = scan.job(&mut touched, false, 1000, 5);
        assert_eq!(job, Job { touched: vec![3, 99], ..Job::default() });
        let read = read(&store(10), &job, 4).unwrap();
        assert!(read.chunks[0].1.is_some() && read.chunks[1].1.is_none());
        assert!(touched.is_empty());
    }
}
