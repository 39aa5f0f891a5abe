//! Moves replicas from full datanodes to empty ones, while somebody asks for it.
//!
//! An operator's command asks again every second and says how even it shall become and how fast; a leader that hears
//! nothing for a while stops. So a change of leaders costs nothing, and nobody balances who is not wanted.

use std::collections::BTreeMap;

use cairn_metadata::plan::Nodes;
use cairn_metadata::plan::balance::{may_move, pair, spread};
use cairn_metadata::plan::repair::Copy;
use cairn_metadata::plan::verdict::Holding;
use cairn_proto::control::{BalanceReply, BalanceRequest};
use cairn_proto::fs::Liveness;
use cairn_proto::store::Chunk;
use cairn_proto::{Error, ErrorCode};

use super::leading::Leading;
use super::orders::Task;
use super::progress::Allowance;
use super::{Datanodes, stream};

/// How long one request is good for.
const LEASE_MS: u64 = 10_000;
/// A move that is not seen to be over by then is forgotten.
const PATIENCE_MS: u64 = 600_000;
/// Chunks of the giving node that one round looks at.
pub(super) const LOOKS: usize = 256;

/// What was asked for, and the moves under way.
#[derive(Debug, Default)]
pub(super) struct Balancer {
    threshold: u32,
    bytes_per_second: u64,
    until_ms: u64,
    allowance: Allowance,
    moves: BTreeMap<u64, Move>,
    moved_chunks: u64,
    moved_bytes: u64,
    /// The giving node, and where the look at its chunks goes on.
    cursor: (u32, u64),
    /// All chunks of the giving node were looked at, and none could be moved.
    stuck: bool,
    found_one: bool,
}

#[derive(Debug)]
struct Move {
    from: u32,
    to: u32,
    length: u64,
    since_ms: u64,
    /// The log counts on the new replica.
    arrived: bool,
}

/// Chunks of the giving node, as they were read for a round.
#[derive(Debug)]
pub(super) struct Candidates {
    pub node: u32,
    pub chunks: Vec<(u64, Chunk)>,
    /// Where the next look goes on; 0: at the start.
    pub next: u64,
}

impl Balancer {
    /// Takes in what was just read of a chunk.
    pub fn file(&mut self, id: u64, record: Option<&Chunk>) {
        let Some(moving) = self.moves.get_mut(&id) else { return };
        let Some(record) = record else {
            self.moves.remove(&id);
            return;
        };
        moving.arrived |= record.replicas.contains(&moving.to);
        if !record.replicas.contains(&moving.from) && !record.dropping.contains(&moving.from) {
            if moving.arrived {
                self.moved_chunks += 1;
                self.moved_bytes += moving.length;
            }
            self.moves.remove(&id);
        }
    }

    /// The replica that a chunk with one too many is to lose, if it was moved.
    pub fn source_of(&self, chunk: u64) -> Option<u32> {
        self.moves.get(&chunk).map(|moving| moving.from)
    }

    fn is_asked(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }
}

/// Whether anything may be moved now: what lacks replicas comes first.
fn may_begin(leading: &Leading, now_ms: u64) -> bool {
    let totals = leading.problems.totals();
    let calm = totals.under_replicated == 0 && totals.missing == 0 && leading.scan.is_abreast();
    leading.balancer.is_asked(now_ms) && calm
}

/// The nodes as they will be when what is under way is done. Copies on their way are promised room already.
fn expected(leading: &Leading) -> Nodes {
    let mut nodes = leading.roster.nodes.clone();
    for moving in leading.balancer.moves.values() {
        empty(&mut nodes, moving.from, moving.length);
    }
    nodes
}

/// So many bytes of a node will be gone.
fn empty(nodes: &mut Nodes, node: u32, bytes: u64) {
    if let Some(node) = nodes.get_mut(&node) {
        node.available = node.available.saturating_add(bytes).min(node.capacity);
    }
}

/// So many bytes more are on their way to a node.
fn fill(nodes: &mut Nodes, node: u32, bytes: u64) {
    if let Some(node) = nodes.get_mut(&node) {
        node.available = node.available.saturating_sub(bytes);
    }
}

/// The node whose chunks are to be read for this round, and from where on.
pub(super) fn wants(leading: &mut Leading, now_ms: u64) -> Option<(u32, u64)> {
    if !may_begin(leading, now_ms) {
        return None;
    }
    let (from, _) = pair(&expected(leading), leading.balancer.threshold)?;
    if leading.balancer.cursor.0 != from {
        leading.balancer.cursor = (from, 0);
        leading.balancer.found_one = false;
    }
    Some(leading.balancer.cursor)
}

/// Orders moves.
pub(super) fn step(leading: &mut Leading, candidates: Option<Candidates>, now_ms: u64) {
    forget_failed(leading, now_ms);
    let Some(candidates) = candidates else { return };
    let (threshold, per_second) = (leading.balancer.threshold, leading.balancer.bytes_per_second);
    let mut budget = leading.balancer.allowance.refill(per_second, now_ms);
    let mut nodes = expected(leading);
    let mut between = if may_begin(leading, now_ms) { pair(&nodes, threshold) } else { None };
    for (chunk, record) in &candidates.chunks {
        if budget == 0 {
            // Those that were not looked at come first in the next round.
            leading.balancer.cursor.1 = *chunk;
            return;
        }
        let Some((from, to)) = between.filter(|(from, _)| *from == candidates.node) else { return };
        if leading.flights.count_to(to) >= leading.settings.copies_per_node {
            leading.balancer.cursor.1 = *chunk;
            return;
        }
        if let Some(length) = order(leading, &nodes, (*chunk, record), (from, to), now_ms) {
            empty(&mut nodes, from, length);
            fill(&mut nodes, to, length);
            between = pair(&nodes, threshold);
            budget = budget.saturating_sub(length);
            leading.balancer.found_one = true;
            leading.balancer.stuck = false;
        }
    }
    leading.balancer.cursor.1 = candidates.next;
    if candidates.next == 0 {
        leading.balancer.stuck = !leading.balancer.found_one && leading.balancer.moves.is_empty();
        leading.balancer.found_one = false;
    }
}

/// Orders a move if the chunk may be moved; how many bytes that is.
fn order(
    leading: &mut Leading,
    nodes: &Nodes,
    (chunk, record): (u64, &Chunk),
    (from, to): (u32, u32),
    now_ms: u64,
) -> Option<u64> {
    let faults = &leading.faults;
    let holding = Holding::of(record, |node| faults.contains_key(&(chunk, node)))?;
    let is_busy = leading.balancer.moves.contains_key(&chunk)
        || leading.flights.targets_of(chunk).next().is_some()
        || leading.compactor.makes(chunk)
        || leading.is_busy(chunk, to)
        || leading.is_busy(chunk, from)
        || leading.copy_failures.waits(chunk, to, now_ms);
    if is_busy || !may_move(&holding, nodes, from, to) {
        return None;
    }
    let copy = Copy {
        chunk,
        length: holding.length,
        target: to,
        sources: holding.sources(&leading.roster.nodes),
        blake3: holding.blake3.clone(),
        replaces: false,
    };
    if !leading.send(to, chunk, Task::Copy(copy.clone()), copy.length, now_ms) {
        leading.copy_failures.fail(chunk, to, now_ms);
        return None;
    }
    tracing::debug!(chunk, from, to, length = copy.length, "moving a replica");
    let length = copy.length;
    leading.flights.start(copy);
    // At once, not with the next hearing: the next choice must know of it.
    fill(&mut leading.roster.nodes, to, length);
    leading.balancer.allowance.spend(length);
    leading.balancer.moves.insert(chunk, Move { from, to, length, since_ms: now_ms, arrived: false });
    Some(length)
}

/// What will not come any more leaves its chunk as it was.
fn forget_failed(leading: &mut Leading, now_ms: u64) {
    let lost: Vec<u64> = leading
        .balancer
        .moves
        .iter()
        .filter(|(chunk, moving)| {
            let on_its_way = moving.arrived || leading.is_busy(**chunk, moving.to);
            !on_its_way || now_ms.saturating_sub(moving.since_ms) > PATIENCE_MS
        })
        .map(|(chunk, _)| *chunk)
        .collect();
    leading.balancer.moves.retain(|chunk, _| !lost.contains(chunk));
}

/// The replica to give up of a chunk that has one too many: the one it was moved from rather than `usual`.
pub(super) fn surplus(leading: &Leading, chunk: u64, usual: u32) -> u32 {
    let nodes = &leading.roster.nodes;
    let is_leaving = nodes.get(&usual).is_some_and(|node| node.is_leaving());
    let Some(from) = leading.balancer.source_of(chunk).filter(|_| !is_leaving) else { return usual };
    let Some(problem) = leading.problems.get(chunk) else { return usual };
    let holding = &problem.chunk;
    let is_live = nodes.get(&from).is_some_and(|node| node.liveness == Liveness::Live);
    let counts = holding.replicas.contains(&from) && !holding.bad.contains(&from);
    if is_live && counts { from } else { usual }
}

impl Datanodes {
    /// Balances for a while from now on, and says how far it is. A threshold of 0 ends it.
    pub fn balance(&self, ask: &BalanceRequest) -> Result<BalanceReply, Error> {
        if ask.threshold_percent > 100 {
            let detail = format!("a threshold of {} %", ask.threshold_percent);
            return Err(ErrorCode::Invalid.because(detail));
        }
        let reply = self.0.with(None, |leading, now_ms| {
            let balancer = &mut leading.balancer;
            if !balancer.is_asked(now_ms) {
                (balancer.moved_chunks, balancer.moved_bytes, balancer.stuck) = (0, 0, false);
            }
            balancer.threshold = ask.threshold_percent;
            balancer.bytes_per_second = ask.bytes_per_second;
            balancer.until_ms = if ask.threshold_percent == 0 { 0 } else { now_ms + LEASE_MS };
            report(leading)
        });
        reply.ok_or_else(stream::not_leading)
    }
}

fn report(leading: &Leading) -> BalanceReply {
    let balancer = &leading.balancer;
    let totals = leading.problems.totals();
    let threshold = balancer.threshold;
    let nodes = expected(leading);
    let spread = spread(&nodes, threshold).unwrap_or_default();
    BalanceReply {
        mean: spread.mean as u32,
        lowest: spread.lowest as u32,
        highest: spread.highest as u32,
        bytes_left: spread.excess,
        moving: balancer.moves.len() as u64,
        moved_chunks: balancer.moved_chunks,
        moved_bytes: balancer.moved_bytes,
        balanced: leading.scan.is_abreast() && balancer.moves.is_empty() && pair(&nodes, threshold).is_none(),
        stuck: balancer.stuck,
        waiting: totals.under_replicated + totals.missing,
        ..BalanceReply::default()
    }
}
