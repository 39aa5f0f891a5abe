//! Carrying compactions out.
//!
//! A run takes a group of chunks through four steps: read what files name of them, have the log allocate a chunk for
//! it (`BeginCompaction`), have datanodes gather its replicas (`GatherReplica`, then `AddReplica`), and have the log
//! move the extents over (`SwapExtents`). Any failure ends the run: what was swapped is swapped, a new chunk without
//! live bytes is garbage, and the old chunks are candidates again later. `docs/decisions/0010-compaction.md` says why.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_metadata::plan::backoff::Backoff;
use cairn_metadata::plan::compact::{Candidates, Garbage, Group, Policy, Scene, choose_gatherer, plan};
use cairn_proto::control::{GatherPiece, GatherReplica, GatherSource, OrderDone, order};
use cairn_proto::fs::{ChunkPiece, CompactionInfo, Liveness, Outcome, outcome};
use cairn_proto::limits::CHUNK_SIZE;
use cairn_proto::store::Chunk;
use cairn_proto::{Error, ErrorCode};

use super::leading::{Change, Leading, Proposal};
use super::orders::Task;
use super::progress::Allowance;
use super::roster::Roster;
use super::scan::Stretch;
use super::settings::{Settings, millis};

/// Runs at once.
const RUNS: usize = 4;
/// Datanodes that may fail one run.
const FAILED_TARGETS: usize = 3;
/// Pieces one command of the log swaps.
const PIECES: usize = 512;
/// How often candidates are gone through, in milliseconds.
const PLAN_EVERY_MS: u64 = 500;

/// A replica that is being gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Gather {
    /// The datanode has the order.
    Ordered,
    /// It has the replica, of this BLAKE3, and the log is to know.
    Made(Bytes),
    /// The log knows.
    Recorded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What to gather is to be read.
    Read,
    /// The chunk is to be allocated.
    Begin,
    /// Replicas are to be gathered.
    Gather,
    /// Extents are to be moved, from this piece on.
    Swap(usize),
}

#[derive(Debug)]
struct Run {
    group: Group,
    stage: Stage,
    pieces: Vec<ChunkPiece>,
    length: u64,
    /// The new chunk; 0 before it is allocated.
    chunk: u64,
    targets: BTreeMap<u32, Gather>,
    failed: BTreeSet<u32>,
}

/// A leader's compactions.
#[derive(Debug, Default)]
pub(super) struct Compactor {
    candidates: Candidates,
    /// As counted in the pass over all chunks that is under way, and in the last whole one.
    counting: Garbage,
    garbage: Garbage,
    runs: BTreeMap<u64, Run>,
    next_run: u64,
    failures: Backoff,
    allowance: Allowance,
    planned_ms: u64,
    bytes_copied: u64,
    chunks_emptied: u64,
}

impl Run {
    /// Nodes whose replicas the log has.
    fn recorded(&self) -> impl Iterator<Item = u32> + '_ {
        self.targets.iter().filter(|(_, gather)| **gather == Gather::Recorded).map(|(node, _)| *node)
    }
}

impl Compactor {
    /// Whether this leader means to swap extents into a chunk that has none yet.
    pub fn makes(&self, chunk: u64) -> bool {
        self.runs.values().any(|run| run.chunk == chunk)
    }

    /// Whether `node` is to make a replica of such a chunk, and the log does not have it yet.
    pub fn awaits(&self, chunk: u64, node: u32) -> bool {
        let mut runs = self.runs.values().filter(|run| run.chunk == chunk);
        runs.any(|run| run.targets.get(&node) != Some(&Gather::Recorded))
    }

    /// The run that waits to know what it should gather, and the chunks in question.
    pub fn wants_pieces(&self) -> Option<(u64, Vec<u64>)> {
        let (id, run) = self.runs.iter().find(|(_, run)| run.stage == Stage::Read)?;
        Some((*id, run.group.victims.clone()))
    }

    /// Takes in what was read for a run.
    pub fn learn_pieces(&mut self, id: u64, pieces: Vec<ChunkPiece>) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.stage == Stage::Read) else { return };
        run.length = pieces.iter().map(|piece| piece.length).sum();
        run.pieces = pieces;
        run.stage = Stage::Begin;
        if run.length == 0 {
            // It all died by itself.
            self.runs.remove(&id);
        }
    }

    /// Takes in a chunk as just read.
    pub fn file(&mut self, id: u64, record: Option<&Chunk>, policy: Policy, now_ms: u64) {
        match record {
            Some(record) => self.candidates.file(id, record, policy, now_ms),
            None => self.candidates.forget(id),
        }
    }

    /// Takes in which chunks there are in a stretch of the table, and their garbage.
    pub fn pass(&mut self, stretch: &Stretch, known: &BTreeSet<u64>) {
        self.candidates.forget_others(stretch.from, stretch.next, known);
        if stretch.from == 0 {
            self.counting = Garbage::default();
        }
        stretch.chunks.iter().for_each(|(_, chunk)| self.counting.count(chunk));
        if stretch.next == 0 {
            self.garbage = self.counting;
        }
    }

    /// For `cairn status`.
    pub fn info(&self, settings: &Settings) -> CompactionInfo {
        CompactionInfo {
            enabled: settings.compaction,
            garbage_bytes: self.garbage.bytes,
            dead_chunks: self.garbage.dead_chunks,
            candidates: self.candidates.count() as u64,
            in_flight: self.runs.len() as u64,
            bytes_copied: self.bytes_copied,
            chunks_emptied: self.chunks_emptied,
        }
    }

    /// The order to gather a run's chunk.
    pub fn order(&self, id: u64, roster: &Roster, bytes_per_second: u64) -> Option<order::Kind> {
        let run = self.runs.get(&id)?;
        let mut numbers: BTreeMap<u64, u32> = BTreeMap::new();
        let mut order =
            GatherReplica { chunk: run.chunk, length: run.length, bytes_per_second, ..Default::default() };
        for piece in &run.pieces {
            let next = numbers.len() as u32;
            let source = *numbers.entry(piece.chunk).or_insert(next);
            if source == next {
                // Replicas may have moved since the group was made; these chunks' datanodes are few.
                let alive = run.group.holders.iter().filter(|node| roster.liveness(**node) != Liveness::Dead);
                let addresses = alive.filter_map(|node| roster.attendees.get(node));
                let addresses = addresses.map(|attendee| attendee.record.address.clone()).collect();
                order.sources.push(GatherSource { chunk: piece.chunk, addresses });
            }
            order.pieces.push(GatherPiece { source, offset: piece.offset, length: piece.length });
        }
        Some(order::Kind::Gather(order))
    }
}

/// What this leader holds to be worth compacting.
pub(super) fn policy(leading: &Leading) -> Policy {
    let chunk_size = if leading.meta.chunk_size == 0 { CHUNK_SIZE } else { leading.meta.chunk_size };
    Policy {
        live_percent: u64::from(leading.settings.compaction_live_percent),
        chunk_size,
        quiet_ms: millis(leading.settings.compaction_after),
    }
}

/// Begins runs and goes on with those under way.
pub(super) fn step(leading: &mut Leading, now_ms: u64) {
    begin(leading, now_ms);
    let ids: Vec<u64> = leading.compactor.runs.keys().copied().collect();
    for id in ids {
        if leading.compactor.runs.get(&id).is_some_and(|run| run.stage == Stage::Gather) {
            gather(leading, id, now_ms);
        }
        let Some(run) = leading.compactor.runs.get(&id) else { continue };
        match run.stage {
            Stage::Read | Stage::Gather => {}
            Stage::Begin => {
                let (length, replication) = (run.length, run.group.replication);
                let chunk = run.group.victims.first().copied().unwrap_or(0);
                let change = Change::Begin { run: id, length, replication };
                leading.offer(Proposal { chunk, node: 0, change }, now_ms);
            }
            Stage::Swap(from) => {
                let pieces = run.pieces.iter().skip(from).take(PIECES).copied().collect();
                let chunk = run.chunk;
                leading.offer(Proposal { chunk, node: 0, change: Change::Swap { run: id, pieces } }, now_ms);
            }
        }
    }
}

/// Plans new runs, unless replicas are being copied: repair goes first.
fn begin(leading: &mut Leading, now_ms: u64) {
    let settings = &leading.settings;
    let per_second = settings.compaction_bytes_per_second.saturating_mul(leading.roster.live());
    let budget = leading.compactor.allowance.refill(per_second, now_ms);
    let room = RUNS.saturating_sub(leading.compactor.runs.len());
    let is_due = now_ms >= leading.compactor.planned_ms + PLAN_EVERY_MS;
    if !settings.compaction || !is_due || room == 0 || leading.flights.total() > 0 {
        return;
    }
    leading.compactor.planned_ms = now_ms;
    leading.compactor.failures.prune(now_ms);
    let runs = &leading.compactor.runs;
    let busy: BTreeSet<u64> =
        runs.values().flat_map(|run| run.group.victims.iter().copied().chain([run.chunk])).collect();
    let scene = Scene {
        nodes: &leading.roster.nodes,
        is_bad: &|chunk, node| leading.faults.contains_key(&(chunk, node)),
        is_busy: &|chunk| busy.contains(&chunk),
        failures: &leading.compactor.failures,
        budget,
        groups: room,
        now_ms,
    };
    for group in plan(&leading.compactor.candidates, policy(leading), scene) {
        tracing::debug!(victims = ?group.victims, bytes = group.bytes, "compacting");
        // The allowance is of bytes written; how many replicas of a byte are gathered is known from the start.
        leading.compactor.allowance.spend(group.bytes.saturating_mul(group.needed as u64).max(1));
        let run = Run {
            group,
            stage: Stage::Read,
            pieces: Vec::new(),
            length: 0,
            chunk: 0,
            targets: BTreeMap::new(),
            failed: BTreeSet::new(),
        };
        leading.compactor.runs.insert(leading.compactor.next_run, run);
        leading.compactor.next_run += 1;
    }
}

/// Orders replicas, has the log record those that are made, and goes on when they are enough.
fn gather(leading: &mut Leading, id: u64, now_ms: u64) {
    give_up_lost(leading, id, now_ms);
    let Some(run) = leading.compactor.runs.get(&id) else { return };
    let (chunk, length, needed) = (run.chunk, run.length, run.group.needed);
    let recorded = run.recorded().filter(|node| leading.is_vouched_for(chunk, *node, now_ms)).count();
    if recorded >= needed {
        if let Some(run) = leading.compactor.runs.get_mut(&id) {
            run.stage = Stage::Swap(0);
        }
        return;
    }
    let made: Vec<(u32, Bytes)> = run
        .targets
        .iter()
        .filter_map(|(node, gather)| match gather {
            Gather::Made(blake3) => Some((*node, blake3.clone())),
            _ => None,
        })
        .collect();
    let mut missing = needed.saturating_sub(run.targets.len());
    for (node, blake3) in made {
        leading.offer(Proposal { chunk, node, change: Change::Gathered { run: id, blake3 } }, now_ms);
    }
    while missing > 0 {
        missing -= 1;
        let Some(run) = leading.compactor.runs.get(&id) else { return };
        let holders: Vec<u32> = run.targets.keys().copied().collect();
        let may = |node: u32| !run.failed.contains(&node) && !leading.is_busy(chunk, node);
        let seed = rand::random();
        let target = choose_gatherer(&leading.roster.nodes, &run.group, &holders, length, seed, may);
        let Some(target) = target.filter(|_| run.failed.len() <= FAILED_TARGETS) else {
            return abandon(leading, id, "no datanode can gather it", now_ms);
        };
        let is_sent = leading.send(target, chunk, Task::Gather { run: id, length }, length, now_ms);
        let Some(run) = leading.compactor.runs.get_mut(&id) else { return };
        if is_sent {
            run.targets.insert(target, Gather::Ordered);
        } else {
            run.failed.insert(target);
        }
    }
}

/// What was gathered and recorded may have turned out bad, or its datanode be gone, before the extents are moved.
fn give_up_lost(leading: &mut Leading, id: u64, now_ms: u64) {
    let Some(run) = leading.compactor.runs.get(&id) else { return };
    let dead_after_ms = millis(leading.settings.dead_after);
    let is_lost = |node: u32| {
        leading.roster.liveness(node) == Liveness::Dead
            // One in maintenance is not called dead, and may take hours. Others wait for this run's place.
            || leading.roster.is_away(node, dead_after_ms, now_ms)
            || leading.faults.contains_key(&(run.chunk, node))
    };
    let gone: Vec<u32> = run.recorded().filter(|node| is_lost(*node)).collect();
    gone.into_iter().for_each(|node| lost(leading, id, node, now_ms));
}

/// A datanode answered the order to gather.
pub(super) fn gathered(
    leading: &mut Leading,
    (id, node): (u64, u32),
    done: &OrderDone,
    error: Option<Error>,
    now_ms: u64,
) {
    let Some(run) = leading.compactor.runs.get_mut(&id) else {
        // Of a run that ended: an inventory tells what to do with it.
        return leading.ask_again(node, now_ms);
    };
    match error {
        None if done.length == run.length && done.blake3.len() == 32 => {
            run.targets.insert(node, Gather::Made(done.blake3.clone()));
        }
        error => {
            tracing::warn!(chunk = run.chunk, node, ?error, "gathering failed");
            if error.is_some_and(|error| doubts_sources(error.code)) {
                check_sources(leading, id, now_ms);
            }
            lost(leading, id, node, now_ms);
        }
    }
}

/// A datanode will not have gathered its replica.
pub(super) fn lost(leading: &mut Leading, id: u64, node: u32, now_ms: u64) {
    if let Some(run) = leading.compactor.runs.get_mut(&id) {
        run.targets.remove(&node);
        run.failed.insert(node);
    }
    leading.ask_again(node, now_ms);
}

/// The log answered a proposal of a run.
pub(super) fn proposed(
    leading: &mut Leading,
    proposal: &Proposal,
    answer: Result<Outcome, Error>,
    now_ms: u64,
) {
    let result = match answer {
        Err(error) => Err(error),
        Ok(Outcome { result: Some(outcome::Result::Error(error)) }) => Err(Error::from(error)),
        Ok(Outcome { result }) => Ok(result),
    };
    match (&proposal.change, result) {
        (Change::Begin { run, .. }, Ok(Some(outcome::Result::Allocated(made)))) => {
            let chunk = made.chunk.map_or(0, |info| info.chunk);
            if let Some(run) = leading.compactor.runs.get_mut(run) {
                run.chunk = chunk;
                run.stage = Stage::Gather;
            }
        }
        (Change::Gathered { run, .. }, Ok(_)) => {
            if let Some(run) = leading.compactor.runs.get_mut(run) {
                run.targets.insert(proposal.node, Gather::Recorded);
            }
        }
        (Change::Swap { run, .. }, Ok(Some(outcome::Result::Swapped(done)))) => {
            swapped(leading, *run, done.pieces as usize);
        }
        (Change::Begin { run, .. } | Change::Gathered { run, .. } | Change::Swap { run, .. }, result) => {
            let why = result.err().map_or_else(|| "odd outcome".to_string(), |error| error.to_string());
            abandon(leading, *run, &why, now_ms);
        }
        _ => {}
    }
}

fn swapped(leading: &mut Leading, id: u64, done: usize) {
    let Some(run) = leading.compactor.runs.get_mut(&id) else { return };
    let Stage::Swap(from) = run.stage else { return };
    run.stage = Stage::Swap(from + done);
    if from + done < run.pieces.len() {
        return;
    }
    let Some(run) = leading.compactor.runs.remove(&id) else { return };
    tracing::info!(chunk = run.chunk, length = run.length, victims = run.group.victims.len(), "compacted");
    leading.compactor.bytes_copied += run.length;
    leading.compactor.chunks_emptied += run.group.victims.len() as u64;
    leading.touched.insert(run.chunk);
    leading.touched.extend(run.group.victims);
}

/// Ends a run. What it has done stays, what it has left behind is found by the ordinary rules.
fn abandon(leading: &mut Leading, id: u64, why: &str, now_ms: u64) {
    let Some(run) = leading.compactor.runs.remove(&id) else { return };
    tracing::warn!(chunk = run.chunk, victims = ?run.group.victims, why, "compaction given up");
    for victim in &run.group.victims {
        leading.compactor.failures.fail(*victim, 0, now_ms);
    }
    for node in run.targets.keys().chain(&run.failed) {
        leading.ask_again(*node, now_ms);
    }
    leading.touched.extend(run.group.victims);
    if run.chunk != 0 {
        leading.touched.insert(run.chunk);
    }
}

/// Refusals of a datanode that gathers or copies after which its sources are worth a check. That a disk failed may be
/// said of its own, and a source whose disk failed says so itself.
pub(super) fn doubts_sources(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Corrupt | ErrorCode::PastEnd | ErrorCode::ChunkUnknown | ErrorCode::NotFound)
}

/// Has the sources of a run checked: the datanode cannot tell which of them failed it and why.
fn check_sources(leading: &mut Leading, id: u64, now_ms: u64) {
    let Some(run) = leading.compactor.runs.get(&id) else { return };
    let sources: Vec<(u64, u64, Vec<u32>)> = run
        .group
        .victims
        .iter()
        .filter_map(|victim| {
            let (length, replicas) = leading.compactor.candidates.replicas(*victim)?;
            Some((*victim, length, replicas.to_vec()))
        })
        .collect();
    for (victim, length, replicas) in sources {
        for node in &replicas {
            leading.want_check(*node, victim, length, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::AdminState;
    use cairn_proto::store::Datanode;

    use super::*;

    #[test]
    fn a_run_does_not_wait_for_the_end_of_a_maintenance() {
        let mut leading = Leading::new(1, 1, 0, Settings::default());
        let run = Run {
            group: Group::default(),
            stage: Stage::Gather,
            pieces: Vec::new(),
            length: 7,
            chunk: 9,
            targets: [(4, Gather::Recorded), (5, Gather::Recorded)].into(),
            failed: BTreeSet::new(),
        };
        leading.compactor.runs.insert(0, run);
        let admin = AdminState::Maintenance.into();
        let record = |address: &str| Datanode {
            address: address.into(),
            admin,
            until_ns: i64::MAX,
            ..Datanode::default()
        };
        leading.roster.load(vec![(4, record("d4")), (5, record("d5"))]);
        let away = leading.roster.attendees.entry(4).or_default();
        (away.heard_ms, away.lost_ms) = (Some(0), Some(0));
        let dead_after_ms = millis(leading.settings.dead_after);
        for (now_ms, is_lost) in [(dead_after_ms - 1, false), (dead_after_ms, true)] {
            leading.roster.attendees.entry(5).or_default().heard_ms = Some(now_ms);
            let patience = leading.settings.patience();
            leading.roster.judge(0, (now_ms, 0), patience, &BTreeMap::new());
            assert_eq!(leading.roster.liveness(4), Liveness::Suspect);
            give_up_lost(&mut leading, 0, now_ms);
            let run = &leading.compactor.runs[&0];
            assert_eq!((run.failed.contains(&4), run.targets.contains_key(&4)), (is_lost, !is_lost));
            assert!(run.targets.contains_key(&5));
        }
    }
}
