//! Which sealed chunks to put together into new ones, and what to gather of them.
//!
//! Two things are worth it. A *sparse* chunk holds more garbage than allowed: copying its live bytes frees more than
//! it costs. A *small* chunk is one of many that fit into one: the leader, the reports and the datanodes' directories
//! pay for every chunk. Either way a byte is copied only a bounded number of times: for garbage, more bytes have died
//! than are copied; for size, the chunk it lies in at least doubles.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use cairn_proto::fs::{ChunkPiece, ChunkState, Liveness};
use cairn_proto::store::Chunk;

use super::Nodes;
use super::backoff::Backoff;
use super::placement::{FULL_BELOW, choose_target, crowding};
use super::verdict::{Holding, judge};
use crate::key;
use crate::store::{StoreError, Table, View};

/// Chunks remembered as worth compacting; more are found by the next look at all chunks.
const MOST_CANDIDATES: usize = 16_384;
/// Chunks that go into one.
const MOST_VICTIMS: usize = 256;
/// Small chunks that are let alone, unless they make half a chunk.
const FEW: usize = 8;
/// A chunk is small up to this part of a full one.
const SMALL_PART: u64 = 4;
/// Extents looked at to find what to gather; what is left of a chunk then stays for another time.
const MOST_REFERENCES: usize = 16_384;
/// Changing chunks wait this many times longer than quiet ones.
const RESTLESS: u64 = 10;

/// What makes a chunk worth compacting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Sealed chunks with less of their length alive than this are sparse, in percent.
    pub live_percent: u64,
    /// Bytes of a full chunk.
    pub chunk_size: u64,
    /// How long a chunk must have been seen unchanged. What is being deleted may soon be dead altogether, which costs
    /// nothing; a chunk that keeps changing is taken after ten times as long.
    pub quiet_ms: u64,
}

/// A sealed chunk worth compacting.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    length: u64,
    live: u64,
    replication: u32,
    replicas: Vec<u32>,
    first_ms: u64,
    changed_ms: u64,
}

impl Candidate {
    /// Bytes to copy, at most: clones count a byte more than once.
    fn weight(&self) -> u64 {
        self.live.min(self.length)
    }

    fn is_sparse(&self, policy: Policy) -> bool {
        is_sparse(self.length, self.live, policy)
    }

    fn is_due(&self, policy: Policy, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.changed_ms) >= policy.quiet_ms
            || now_ms.saturating_sub(self.first_ms) >= policy.quiet_ms.saturating_mul(RESTLESS)
    }
}

fn is_sparse(length: u64, live: u64, policy: Policy) -> bool {
    u128::from(live) * 100 < u128::from(length) * u128::from(policy.live_percent)
}

/// Sealed chunks worth compacting, by id.
#[derive(Debug, Clone, Default)]
pub struct Candidates(BTreeMap<u64, Candidate>);

impl Candidates {
    /// Takes in a chunk as it is now.
    pub fn file(&mut self, id: u64, chunk: &Chunk, policy: Policy, now_ms: u64) {
        let is_small = chunk.length <= policy.chunk_size / SMALL_PART;
        let is_worth = chunk.state() == ChunkState::Sealed
            && chunk.live_bytes > 0
            // Bytes that are kept for snapshots stay where they are, and the chunk with them.
            && chunk.kept_bytes == 0
            // Without one, its replicas may not be sealed, or not be on their disks.
            && !chunk.blake3.is_empty()
            && (is_small || is_sparse(chunk.length, chunk.live_bytes, policy));
        if !is_worth {
            self.forget(id);
            return;
        }
        let before = self.0.get(&id);
        if before.is_none() && self.0.len() >= MOST_CANDIDATES {
            return;
        }
        let unchanged = before.filter(|before| before.live == chunk.live_bytes);
        let candidate = Candidate {
            length: chunk.length,
            live: chunk.live_bytes,
            replication: chunk.replication,
            replicas: chunk.replicas.clone(),
            first_ms: before.map_or(now_ms, |before| before.first_ms),
            changed_ms: unchanged.map_or(now_ms, |before| before.changed_ms),
        };
        self.0.insert(id, candidate);
    }

    /// The chunk is gone, or not worth it any more.
    pub fn forget(&mut self, id: u64) {
        self.0.remove(&id);
    }

    /// Forgets every candidate not in `kept`, in the range of ids `[from, to)`; `to` 0 is the end.
    pub fn forget_others(&mut self, from: u64, to: u64, kept: &BTreeSet<u64>) {
        let last = if to == 0 { u64::MAX } else { to - 1 };
        if from > last {
            return;
        }
        let gone: Vec<u64> =
            self.0.range(from..=last).map(|(id, _)| *id).filter(|id| !kept.contains(id)).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    /// The length of a candidate, and the datanodes that have it.
    pub fn replicas(&self, id: u64) -> Option<(u64, &[u32])> {
        self.0.get(&id).map(|candidate| (candidate.length, candidate.replicas.as_slice()))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Chunks to put together into one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The chunks.
    pub victims: Vec<u64>,
    /// Their datanodes, each once.
    pub holders: Vec<u32>,
    /// Bytes to copy, at most.
    pub bytes: u64,
    /// Replicas the new chunk is to have in the end.
    pub replication: u32,
    /// Replicas that must be there before it takes the place of the old ones: as many as these have.
    pub needed: usize,
}

/// What else bears on a plan.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// Every datanode.
    pub nodes: &'a Nodes,
    /// Replicas known to be bad.
    pub is_bad: &'a dyn Fn(u64, u32) -> bool,
    /// Chunks that something is going on with.
    pub is_busy: &'a dyn Fn(u64) -> bool,
    /// Chunks whose compaction failed, under node 0.
    pub failures: &'a Backoff,
    /// Bytes that may be started now; the last group may go over it.
    pub budget: u64,
    /// Groups that may be started now.
    pub groups: usize,
    /// The leader's monotonic clock.
    pub now_ms: u64,
}

/// Groups to compact now: sparse chunks first, the emptiest first, then small ones.
pub fn plan(candidates: &Candidates, policy: Policy, scene: Scene<'_>) -> Vec<Group> {
    let mut classes: BTreeMap<u32, Vec<(u64, &Candidate)>> = BTreeMap::new();
    for (id, candidate) in &candidates.0 {
        if candidate.is_due(policy, scene.now_ms) {
            classes.entry(candidate.replication).or_default().push((*id, candidate));
        }
    }
    let mut groups = Vec::new();
    let mut budget = scene.budget;
    for (replication, chunks) in classes {
        // Nearly full disks are emptied in small steps.
        let most = room(scene.nodes, replication).min(policy.chunk_size);
        let (mut sparse, mut small): (Vec<_>, Vec<_>) =
            chunks.into_iter().partition(|(_, candidate)| candidate.is_sparse(policy));
        let share = |candidate: &Candidate| candidate.live * 1000 / candidate.length.max(1);
        sparse.sort_by_key(|(id, candidate)| (share(candidate), *id));
        small.sort_by_key(|(id, candidate)| (candidate.weight(), *id));
        for (sorted, enough) in
            [(sparse, fill as fn(&[(u64, &Candidate)], u64) -> usize), (small, doubling as _)]
        {
            // Judged only as far as there is something to spend: it is not done for all candidates in every round.
            let mut rest =
                sorted.into_iter().filter(|(id, candidate)| is_fit(*id, candidate, scene)).peekable();
            while budget > 0 && groups.len() < scene.groups && rest.peek().is_some() {
                let mut taken: Vec<(u64, &Candidate)> = Vec::new();
                let mut bytes = 0;
                while taken.len() < MOST_VICTIMS
                    && let Some((id, candidate)) =
                        rest.next_if(|(_, candidate)| bytes + candidate.weight() <= most)
                {
                    bytes += candidate.weight();
                    taken.push((id, candidate));
                }
                if taken.is_empty() {
                    // More than there is room for, or longer than chunks are now: it is left as it is.
                    rest.next();
                    continue;
                }
                taken.truncate(enough(&taken, policy.chunk_size));
                if taken.is_empty() {
                    continue;
                }
                let group = group(&taken);
                budget = budget.saturating_sub(group.bytes.max(1));
                groups.push(group);
            }
        }
    }
    groups
}

/// Bytes that as many datanodes have room for as a chunk wants replicas, or all of them if there are fewer.
fn room(nodes: &Nodes, replication: u32) -> u64 {
    let takers = nodes.values().filter(|node| node.takes_replicas() && node.liveness == Liveness::Live);
    let mut room: Vec<u64> = takers.map(|node| node.available.saturating_sub(FULL_BELOW)).collect();
    room.sort_unstable_by_key(|room| std::cmp::Reverse(*room));
    room.truncate(replication.max(1) as usize);
    room.last().copied().unwrap_or(0)
}

/// All of its replicas are good, or at least nobody can make more of them; and somebody has one to read.
fn is_fit(id: u64, candidate: &Candidate, scene: Scene<'_>) -> bool {
    if (scene.is_busy)(id) || scene.failures.waits(id, 0, scene.now_ms) {
        return false;
    }
    let holding = Holding {
        length: candidate.length,
        wanted: candidate.replication.max(1) as usize,
        live: true,
        replicas: candidate.replicas.clone(),
        bad: candidate.replicas.iter().copied().filter(|node| (scene.is_bad)(id, *node)).collect(),
        ..Holding::default()
    };
    let verdict = judge(&holding, scene.nodes);
    let is_heard = |node: &u32| scene.nodes.get(node).is_some_and(|node| node.liveness == Liveness::Live);
    holding.bad.is_empty()
        && holding.replicas.iter().any(is_heard)
        && (verdict.lack == 0
            || choose_target(scene.nodes, &holding.replicas, candidate.length, id, |_| true).is_none())
}

/// Sparse chunks: as many as fit, and one is enough.
fn fill(taken: &[(u64, &Candidate)], _: u64) -> usize {
    taken.len()
}

/// Small chunks, by ascending weight: as many as may be without the largest being more than half of the whole.
fn doubling(taken: &[(u64, &Candidate)], chunk_size: u64) -> usize {
    let (mut best, mut sum) = (0, 0);
    for (index, (_, candidate)) in taken.iter().enumerate() {
        let weight = candidate.weight();
        let doubles = weight <= sum;
        sum += weight;
        if doubles && (index + 1 >= FEW || sum >= chunk_size / 2) {
            best = index + 1;
        }
    }
    best
}

fn group(taken: &[(u64, &Candidate)]) -> Group {
    let mut group = Group::default();
    let mut holders = BTreeSet::new();
    for (id, candidate) in taken {
        group.victims.push(*id);
        group.bytes += candidate.weight();
        group.replication = candidate.replication.max(1);
        group.needed = group.needed.max(candidate.replicas.len().min(group.replication as usize));
        holders.extend(candidate.replicas.iter().copied());
    }
    group.holders = holders.into_iter().collect();
    group
}

/// What to gather of `victims`: every byte that a file names, once, in order; at most `most_bytes`.
///
/// A chunk that is not sealed, or gone, gives nothing. Extents beyond a bound are left where they are.
pub fn pieces(view: &dyn View, victims: &[u64], most_bytes: u64) -> Result<Vec<ChunkPiece>, StoreError> {
    let mut list = PieceList { most_bytes, ..PieceList::default() };
    for &chunk in victims {
        let record = crate::records::chunk(view, chunk)?;
        if record.is_none_or(|record| record.state() != ChunkState::Sealed || record.kept_bytes > 0) {
            continue;
        }
        view.scan(Table::ChunkRef, &key::one(chunk), &key::after(chunk), &mut |at, value| {
            let (offset, length) = (key::number(at, 1).unwrap_or(0), key::number(value, 0).unwrap_or(0));
            list.add(chunk, offset, length)
        })?;
        if list.is_full {
            break;
        }
    }
    Ok(list.pieces)
}

#[derive(Default)]
struct PieceList {
    pieces: Vec<ChunkPiece>,
    bytes: u64,
    most_bytes: u64,
    references: usize,
    is_full: bool,
}

impl PieceList {
    /// Extents come in the order of their offsets; those of clones may overlap.
    fn add(&mut self, chunk: u64, offset: u64, length: u64) -> ControlFlow<()> {
        let end = offset.saturating_add(length);
        let last = self.pieces.last_mut().filter(|last| last.chunk == chunk);
        let start = last.as_ref().map_or(offset, |last| offset.max(last.offset + last.length));
        let added = end.saturating_sub(start);
        self.references += 1;
        if self.references > MOST_REFERENCES || self.bytes + added > self.most_bytes {
            self.is_full = true;
            return ControlFlow::Break(());
        }
        match last {
            _ if added == 0 => {}
            Some(last) if last.offset + last.length == start => last.length += added,
            _ => {
                let piece = ChunkPiece { chunk, offset: start, length: added, new_offset: self.bytes };
                self.pieces.push(piece);
            }
        }
        self.bytes += added;
        ControlFlow::Continue(())
    }
}

/// The datanode that should gather the next replica, when `holders` have or get one: spread as any replica is, and
/// where it costs nothing, one that has sources on its own disk. `None` when no node can.
pub fn choose_gatherer(
    nodes: &Nodes,
    group: &Group,
    holders: &[u32],
    length: u64,
    seed: u64,
    may: impl Fn(u32) -> bool,
) -> Option<u32> {
    let best = choose_target(nodes, holders, length, seed, &may)?;
    let near = choose_target(nodes, holders, length, seed, |node| may(node) && group.holders.contains(&node));
    let crowded = |node: u32| nodes.get(&node).map(|node| crowding(nodes, holders, node));
    near.filter(|near| crowded(*near) <= crowded(best)).or(Some(best))
}

/// Garbage in sealed chunks, counted along with every pass over all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Bytes that no file names, in one replica of each chunk.
    pub bytes: u64,
    /// Chunks without a live byte.
    pub dead_chunks: u64,
}

impl Garbage {
    /// Adds a chunk.
    pub fn count(&mut self, chunk: &Chunk) {
        if chunk.state() == ChunkState::Sealed {
            let named = chunk.live_bytes.saturating_add(chunk.kept_bytes);
            self.bytes = self.bytes.saturating_add(chunk.length.saturating_sub(named));
            self.dead_chunks += u64::from(named == 0);
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::memory::Tables;
    use crate::plan::Node;
    use crate::store::Txn;

    const POLICY: Policy = Policy { live_percent: 50, chunk_size: 1000, quiet_ms: 100 };

    fn nodes(count: u32) -> Nodes {
        Node::live(count)
    }

    fn sealed(length: u64, live: u64) -> Chunk {
        Chunk {
            state: ChunkState::Sealed as i32,
            length,
            live_bytes: live,
            replication: 3,
            replicas: vec![1, 2, 3],
            blake3: vec![0; 32].into(),
            ..Chunk::default()
        }
    }

    fn filed(chunks: &[(u64, Chunk)]) -> Candidates {
        let mut candidates = Candidates::default();
        chunks.iter().for_each(|(id, chunk)| candidates.file(*id, chunk, POLICY, 0));
        candidates
    }

    fn planned(candidates: &Candidates, nodes: &Nodes, budget: u64) -> Vec<Vec<u64>> {
        let failures = Backoff::default();
        let scene = Scene {
            nodes,
            is_bad: &|_, _| false,
            is_busy: &|_| false,
            failures: &failures,
            budget,
            groups: 100,
            now_ms: 100,
        };
        plan(candidates, POLICY, scene).into_iter().map(|group| group.victims).collect()
    }

    #[test]
    fn sparse_chunks_go_together_as_far_as_they_fit_and_full_ones_stay() {
        let candidates = filed(&[
            (1, sealed(1000, 499)),
            (2, sealed(1000, 500)),
            (3, sealed(1000, 400)),
            (4, sealed(1000, 0)),
            (5, Chunk { state: ChunkState::Open as i32, ..sealed(1000, 1) }),
            (6, Chunk { blake3: Default::default(), ..sealed(1000, 1) }),
            (7, sealed(1000, 101)),
        ]);
        assert_eq!(planned(&candidates, &nodes(4), u64::MAX), [vec![7, 3, 1]]);
        assert_eq!(planned(&filed(&[(9, sealed(1000, 1))]), &nodes(4), u64::MAX), [vec![9]]);
    }

    #[test]
    fn small_chunks_wait_for_company_and_no_byte_is_copied_for_less_than_a_doubling() {
        let few: Vec<_> = (1..=7).map(|id| (id, sealed(10, 10))).collect();
        assert!(planned(&filed(&few), &nodes(4), u64::MAX).is_empty());
        let mut more: Vec<_> = (1..=8).map(|id| (id, sealed(10, 10))).collect();
        more.push((20, sealed(240, 240)));
        assert_eq!(planned(&filed(&more), &nodes(4), u64::MAX), [(1..=8).collect::<Vec<_>>()]);
        let large: Vec<_> = (1..=3).map(|id| (id, sealed(200, 200))).collect();
        assert_eq!(planned(&filed(&large), &nodes(4), u64::MAX), [vec![1, 2, 3]]);
    }

    #[test]
    fn thousands_of_tiny_chunks_end_as_a_few_and_no_byte_moves_often() {
        let mut chunks: BTreeMap<u64, Chunk> = (1..=3000).map(|id| (id, sealed(2, 2))).collect();
        let mut moved: BTreeMap<u64, u32> = BTreeMap::new();
        let mut next = 10_000;
        for _ in 0..100 {
            let all: Vec<_> = chunks.clone().into_iter().collect();
            let groups = planned(&filed(&all), &nodes(4), u64::MAX);
            if groups.is_empty() {
                break;
            }
            for victims in groups {
                let gone: Vec<(u64, Chunk)> =
                    victims.iter().map(|id| (*id, chunks.remove(id).unwrap())).collect();
                let length: u64 = gone.iter().map(|(_, chunk)| chunk.length).sum();
                let most = gone.iter().map(|(id, _)| moved.get(id).copied().unwrap_or(0)).max().unwrap();
                assert!(gone.iter().all(|(_, chunk)| chunk.length * 2 <= length));
                moved.insert(next, most + 1);
                chunks.insert(next, sealed(length, length));
                next += 1;
            }
        }
        assert!(chunks.len() <= 16, "{} chunks", chunks.len());
        assert_eq!(chunks.values().map(|chunk| chunk.length).sum::<u64>(), 6000);
        assert!(moved.values().all(|times| *times <= 10), "{moved:?}");
    }

    #[test]
    fn chunks_that_change_wait_longer_but_not_for_ever() {
        let nodes = nodes(4);
        let failures = Backoff::default();
        let mut candidates = Candidates::default();
        let mut taken_at = None;
        for now_ms in (0..2000).step_by(50) {
            candidates.file(1, &sealed(1000, 400 - now_ms / 50), POLICY, now_ms);
            let scene = Scene {
                nodes: &nodes,
                is_bad: &|_, _| false,
                is_busy: &|_| false,
                failures: &failures,
                budget: 1,
                groups: 1,
                now_ms,
            };
            if !plan(&candidates, POLICY, scene).is_empty() {
                taken_at = Some(now_ms);
                break;
            }
        }
        assert_eq!(taken_at, Some(1000));
    }

    #[test]
    fn endangered_bad_and_busy_chunks_are_left_to_repair() {
        let short = Chunk { replicas: vec![1, 2], ..sealed(1000, 1) };
        let candidates = filed(&[(1, short.clone())]);
        assert!(planned(&candidates, &nodes(4), u64::MAX).is_empty(), "repair can make a third replica");
        assert_eq!(planned(&candidates, &nodes(2), u64::MAX), [vec![1]], "nobody can");
        let candidates = filed(&[(1, sealed(1000, 1)), (2, sealed(1000, 1)), (3, sealed(1000, 1))]);
        let (nodes, mut failures) = (nodes(4), Backoff::default());
        failures.fail(3, 0, 100);
        let scene = Scene {
            nodes: &nodes,
            is_bad: &|chunk, node| (chunk, node) == (1, 2),
            is_busy: &|chunk| chunk == 2,
            failures: &failures,
            budget: u64::MAX,
            groups: 9,
            now_ms: 100,
        };
        assert!(plan(&candidates, POLICY, scene).is_empty());
    }

    #[test]
    fn replications_do_not_mix_and_the_budget_holds() {
        let two = Chunk { replication: 2, replicas: vec![1, 2], ..sealed(1000, 100) };
        let candidates = filed(&[(1, sealed(1000, 100)), (2, two)]);
        assert_eq!(planned(&candidates, &nodes(4), u64::MAX), [vec![2], vec![1]]);
        assert_eq!(planned(&candidates, &nodes(4), 1).len(), 1);
        assert!(planned(&candidates, &nodes(4), 0).is_empty());
    }

    #[test]
    fn nearly_full_disks_are_emptied_in_small_steps() {
        let candidates = filed(&[(1, sealed(1000, 300)), (2, sealed(1000, 200)), (3, sealed(1000, 100))]);
        let mut nodes = nodes(4);
        for node in [1, 2] {
            nodes.get_mut(&node).unwrap().available = FULL_BELOW + 250;
        }
        assert_eq!(planned(&candidates, &nodes, u64::MAX), [vec![3], vec![2]]);
        nodes.values_mut().for_each(|node| node.available = FULL_BELOW);
        assert!(planned(&candidates, &nodes, u64::MAX).is_empty());
    }

    #[test]
    fn what_is_not_there_any_more_is_forgotten() {
        let mut candidates = filed(&[(1, sealed(10, 1)), (5, sealed(10, 1)), (9, sealed(10, 1))]);
        candidates.forget_others(0, 9, &BTreeSet::from([5]));
        assert_eq!(candidates.count(), 2);
        candidates.file(5, &sealed(10, 0), POLICY, 1);
        candidates.forget_others(6, 0, &BTreeSet::new());
        assert_eq!(candidates.count(), 0);
    }

    #[test]
    fn pieces_hold_every_named_byte_once() {
        let mut store = Tables::default();
        for id in [7, 8] {
            let record = prost::Message::encode_to_vec(&sealed(1000, 1));
            store.put(Table::Chunk, &key::one(id), &record).unwrap();
        }
        // (chunk, offset, inode, file offset, length): clones overlap, neighbours join.
        let references = [
            (7, 100, 1, 0, 50),
            (7, 100, 2, 0, 20),
            (7, 120, 3, 0, 60),
            (7, 180, 4, 0, 20),
            (7, 500, 4, 20, 10),
            (8, 0, 5, 0, 30),
            (9, 0, 6, 0, 30),
        ];
        for (chunk, offset, inode, at, length) in references {
            let key = key::chunk_ref(chunk, offset, inode, at);
            store.put(Table::ChunkRef, &key, &u64::to_be_bytes(length)).unwrap();
        }
        let piece = |chunk, offset, length, new_offset| ChunkPiece { chunk, offset, length, new_offset };
        let expected = [piece(7, 100, 100, 0), piece(7, 500, 10, 100), piece(8, 0, 30, 110)];
        assert_eq!(pieces(&store, &[7, 8, 9], 1000).unwrap(), expected);
        assert_eq!(pieces(&store, &[7, 8], 115).unwrap(), expected[..2], "what does not fit stays");
    }

    #[test]
    fn gatherers_are_near_the_bytes_unless_that_crowds_a_rack() {
        let mut nodes = nodes(4);
        nodes.get_mut(&4).unwrap().rack = "other".into();
        let group = Group { holders: vec![1, 2], ..Group::default() };
        for seed in 0..20 {
            let first = choose_gatherer(&nodes, &group, &[], 10, seed, |_| true).unwrap();
            assert!(group.holders.contains(&first));
            assert_eq!(choose_gatherer(&nodes, &group, &[first], 10, seed, |_| true), Some(4));
            assert_eq!(choose_gatherer(&nodes, &group, &[], 10, seed, |node| node == 3), Some(3));
        }
    }
}
