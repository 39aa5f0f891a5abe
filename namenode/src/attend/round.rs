//! The leader's round: look, judge, order.

use std::collections::{BTreeMap, BTreeSet};

use cairn_metadata::plan::problems::Problem;
use cairn_metadata::plan::repair::{Limits, plan};
use cairn_metadata::plan::verdict::Holding;
use cairn_metadata::records;
use cairn_metadata::store::{Store, StoreError};
use cairn_proto::store::{Datanode, Meta};

use super::balance;
use super::compaction;
use super::leading::{Change, Leading, Proposal};
use super::orders::{DELETES_PER_NODE, SEALS_PER_NODE, Task};
use super::scan::{Job, Read};
use super::settings::millis;

/// Chunks that one round looks at for copies, and again for surplus and dropped replicas.
const LOOKS: usize = 512;

/// The records about the cluster and its datanodes.
pub(super) fn read_roster(store: &dyn Store) -> Result<(Meta, Vec<(u32, Datanode)>), StoreError> {
    let mut found = (Meta::default(), Vec::new());
    store.read(&mut |view| {
        found = (records::meta(view)?.unwrap_or_default(), records::datanodes(view)?);
        Ok(())
    })?;
    Ok(found)
}

/// First part of a round: judge the datanodes, and say what to read. `due` is false when something hurried the round.
pub(super) fn begin(leading: &mut Leading, due: bool, now_ms: u64, now_ns: i64) -> (Job, Vec<(u64, u32)>) {
    leading.steady.look(now_ms, now_ns);
    let mut promised: BTreeMap<u32, u64> = BTreeMap::new();
    for (node, bytes) in leading.orders.copies() {
        *promised.entry(node).or_default() += bytes;
    }
    let patience = leading.settings.patience();
    for node in leading.roster.judge(leading.since_ms, (now_ms, now_ns), patience, &promised) {
        tracing::info!(node, liveness = ?leading.roster.liveness(node), "datanode judged anew");
        leading.scan.want_node(node);
    }
    let interval_ms = millis(leading.settings.scan_interval);
    let mut job = leading.scan.job(&mut leading.touched, due, interval_ms, now_ms);
    if due {
        let most_bytes = compaction::policy(leading).chunk_size;
        job.giving = balance::wants(leading, now_ms);
        job.pieces = leading.compactor.wants_pieces().map(|(run, chunks)| (run, chunks, most_bytes));
    }
    // What is not read now may have been purged: whether it was, only its reading says.
    let read: BTreeSet<u64> = job.touched.iter().copied().collect();
    let (settled, later) =
        std::mem::take(&mut leading.settled).into_iter().partition(|(chunk, _)| read.contains(chunk));
    leading.settled = later;
    (job, settled)
}

/// Second part: take in what was read, and order what follows from it. `settled` are the replicas whose proposals had
/// been answered before the reading.
pub(super) fn end(leading: &mut Leading, read: Read, settled: Vec<(u64, u32)>, now_ms: u64, now_ns: i64) {
    for &(chunk, node) in &settled {
        leading.pending.remove(&(chunk, node));
        leading.flights.end(chunk, node);
    }
    leading.scan.advance(&read);
    for (id, record) in &read.chunks {
        leading.file(*id, record.as_ref(), now_ms, now_ns);
    }
    delete_purged(leading, &read, &settled, now_ms);
    if let Some(stretch) = read.stretch {
        let known = stretch.chunks.iter().map(|(id, _)| *id).collect();
        leading.problems.forget_others(stretch.from, stretch.next, &known);
        leading.compactor.pass(&stretch, &known);
        for chunk in leading.purges.gone(stretch.from, stretch.next, &known) {
            leading.touch(chunk);
        }
        if stretch.from == 0 {
            leading.map.begin(leading.meta.next_chunk);
        }
        for (id, record) in &stretch.chunks {
            leading.file(*id, Some(record), now_ms, now_ns);
            leading.map.count(*id, record, leading.problems.get(*id));
        }
        leading.map.advance(stretch.next);
    }
    if let Some((run, pieces)) = read.pieces {
        leading.compactor.learn_pieces(run, pieces);
    }
    give_up_overdue(leading, now_ms);
    clear_waste(leading, now_ms);
    dispatch(leading, now_ms);
    copy(leading, now_ms);
    compaction::step(leading, now_ms);
    balance::step(leading, read.giving, now_ms);
    leading.progress.pass(now_ms);
    leading.failures.prune(now_ms);
    leading.copy_failures.prune(now_ms);
}

/// What was changed about a replica and its chunk's purge may have been under way together. The purge then knew nothing of
/// the replica, and whoever asks about it finds no chunk any more.
fn delete_purged(leading: &mut Leading, read: &Read, settled: &[(u64, u32)], now_ms: u64) {
    let gone: BTreeSet<u64> =
        read.chunks.iter().filter(|(_, record)| record.is_none()).map(|(id, _)| *id).collect();
    for &(chunk, node) in settled.iter().filter(|(chunk, node)| *node != 0 && gone.contains(chunk)) {
        leading.want_delete(node, chunk, now_ms);
    }
}

fn give_up_overdue(leading: &mut Leading, now_ms: u64) {
    for sent in leading.orders.take_overdue(now_ms) {
        if matches!(sent.task, Task::Inventory | Task::Scrub { .. }) {
            continue;
        }
        tracing::warn!(node = sent.node, chunk = sent.chunk, task = ?sent.task, "order not answered in time");
        match sent.task {
            Task::Copy(copy) => {
                leading.flights.end(copy.chunk, sent.node);
                leading.copy_failures.fail(copy.chunk, sent.node, now_ms);
                leading.touched.insert(copy.chunk);
            }
            Task::Gather { run, .. } => compaction::lost(leading, run, sent.node, now_ms),
            Task::Seal { .. } => {
                // It is still in doubt, and asked again.
                leading.failures.fail(sent.chunk, sent.node, now_ms);
                continue;
            }
            Task::Delete | Task::Inventory | Task::Scrub { .. } => {}
        }
        // It may be carried out all the same, after the leader stopped waiting.
        leading.ask_again(sent.node, now_ms);
    }
}

/// Drops what is bad or too much, and has deleted what was dropped.
fn clear_waste(leading: &mut Leading, now_ms: u64) {
    let found: Vec<_> = leading
        .problems
        .waste(leading.waste_from)
        .take(LOOKS)
        .map(|(id, problem)| (id, problem.clone()))
        .collect();
    leading.waste_from = if found.len() < LOOKS { 0 } else { found.last().map_or(0, |(id, _)| id + 1) };
    for (chunk, Problem { chunk: holding, verdict }) in found {
        // One that is being replaced where it is may prove good in a moment.
        if let Some(node) = verdict.drop_bad.filter(|node| !leading.flights.has(chunk, *node))
            && backing(leading, chunk, &holding, node, now_ms) > 0
        {
            leading.offer(Proposal { chunk, node, change: Change::Drop { bad: true } }, now_ms);
        }
        let is_settled = leading.flights.targets_of(chunk).next().is_none();
        if let Some(node) = verdict.surplus.filter(|_| is_settled) {
            let node = balance::surplus(leading, chunk, node);
            if backing(leading, chunk, &holding, node, now_ms) >= holding.wanted {
                leading.offer(Proposal { chunk, node, change: Change::Drop { bad: false } }, now_ms);
            }
        }
        for node in verdict.delete {
            if !holding.live || backing(leading, chunk, &holding, node, now_ms) > 0 {
                delete(leading, node, chunk, now_ms);
            }
        }
    }
}

/// Good replicas beside the one on `node` that are known to be there.
fn backing(leading: &Leading, chunk: u64, holding: &Holding, node: u32, now_ms: u64) -> usize {
    holding.backing(&leading.roster.nodes, node, |holder| leading.is_vouched_for(chunk, holder, now_ms))
}

/// Orders a deletion, unless something else about the replica is on its way, or one failed just now.
fn delete(leading: &mut Leading, node: u32, chunk: u64, now_ms: u64) -> bool {
    leading.orders.deletes(node) < DELETES_PER_NODE
        && !leading.is_busy(chunk, node)
        && !leading.failures.waits(chunk, node, now_ms)
        && leading.send(node, chunk, Task::Delete, 0, now_ms)
}

/// Sends what waits for each datanode.
fn dispatch(leading: &mut Leading, now_ms: u64) {
    let attending: Vec<u32> = leading.roster.attending().collect();
    for node in attending {
        send_checks(leading, node, now_ms);
        send_deletes(leading, node, now_ms);
        let due = leading.roster.attendees.get(&node).and_then(|attendee| attendee.ask_again_ms);
        if due.is_some_and(|due| due <= now_ms) && leading.send(node, 0, Task::Inventory, 0, now_ms) {
            leading.roster.attendees.entry(node).or_default().ask_again_ms = None;
        }
    }
}

/// What is in doubt stays queued until an answer says how it is.
fn send_checks(leading: &mut Leading, node: u32, now_ms: u64) {
    if leading.orders.seals(node) >= SEALS_PER_NODE {
        return;
    }
    let Some(attendee) = leading.roster.attendees.get_mut(&node) else { return };
    let next = attendee.checks.range(attendee.checks_from..).map(|(chunk, length)| (*chunk, *length));
    let next: Vec<(u64, u64)> = next.take(LOOKS).collect();
    let mut from = if next.len() < LOOKS { 0 } else { next.last().map_or(0, |(last, _)| last + 1) };
    for (chunk, length) in next {
        if leading.is_busy(chunk, node) || leading.failures.waits(chunk, node, now_ms) {
            continue;
        }
        if leading.orders.seals(node) >= SEALS_PER_NODE
            || !leading.send(node, chunk, Task::Seal { length }, length, now_ms)
        {
            from = chunk;
            break;
        }
    }
    leading.roster.attendees.entry(node).or_default().checks_from = from;
}

/// Nothing else remembers that replicas of purged chunks are to go, so those that cannot be deleted now stay queued.
fn send_deletes(leading: &mut Leading, node: u32, now_ms: u64) {
    let Some(attendee) = leading.roster.attendees.get_mut(&node) else { return };
    let next: Vec<u64> = attendee.deletes.range(attendee.deletes_from..).copied().take(LOOKS).collect();
    attendee.deletes_from = if next.len() < LOOKS { 0 } else { next.last().map_or(0, |last| last + 1) };
    for chunk in next {
        if delete(leading, node, chunk, now_ms) {
            leading.roster.attendees.entry(node).or_default().deletes.remove(&chunk);
        }
    }
}

/// Plans copies and orders them.
fn copy(leading: &mut Leading, now_ms: u64) {
    let settings = &leading.settings;
    let live = leading.roster.live();
    let per_second = settings.copy_bytes_per_second.saturating_mul(live);
    // Without a limit there is always something to spend, without a live node never anybody to spend it on.
    let limits = Limits {
        per_target: settings.copies_per_node,
        per_source: settings.copies_per_node,
        total: settings.copies_total.max(live as usize),
        bytes: leading.allowance.refill(per_second, now_ms),
        looks: LOOKS,
    };
    let when = (leading.resume, rand::random(), now_ms);
    let failures = &leading.copy_failures;
    let plan = plan(&leading.problems, &leading.roster.nodes, &leading.flights, failures, limits, when);
    leading.resume = plan.resume;
    for copy in plan.copies {
        if leading.is_busy(copy.chunk, copy.target) {
            continue;
        }
        let (chunk, target, length) = (copy.chunk, copy.target, copy.length);
        tracing::debug!(chunk, target, sources = ?copy.sources, length, "ordering a copy");
        if leading.send(target, chunk, Task::Copy(copy.clone()), length, now_ms) {
            leading.flights.start(copy);
            leading.allowance.spend(length);
        } else {
            leading.copy_failures.fail(chunk, target, now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cairn_metadata::plan::Node;
    use cairn_metadata::plan::reconcile::Findings;
    use cairn_proto::ErrorCode;
    use cairn_proto::control::OrderDone;
    use cairn_proto::fs::{AdminState, ChunkState, Liveness};
    use cairn_proto::store::Chunk;
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::attend::answers::{order_done, proposal_done};
    use crate::attend::inventory;
    use crate::attend::leading::Fault;
    use crate::attend::roster::{Account, Stream};
    use crate::attend::scan::Stretch;
    use crate::attend::settings::Settings;

    #[test]
    fn a_deletion_waits_for_what_is_on_its_way_about_the_replica() {
        let mut leading = Leading::new(1, 1, 0, Settings::default());
        let (outgoing, mut sent) = mpsc::channel(8);
        let (alive, _displaced) = oneshot::channel();
        let attendee = leading.roster.attendees.entry(4).or_default();
        attendee.stream = Some(Stream { id: 1, outgoing, _alive: alive });
        // The chunk is purged while the log is still being asked to record the digest of one of its replicas.
        let change = Change::Digest(vec![1; 32].into());
        assert!(leading.offer(Proposal { chunk: 5, node: 4, change }, 0));
        leading.want_delete(4, 5, 0);
        leading.want_delete(4, 6, 0);
        dispatch(&mut leading, 0);
        assert!(sent.try_recv().is_ok() && sent.try_recv().is_err(), "one of them waits");
        leading.pending.clear();
        dispatch(&mut leading, 0);
        assert!(sent.try_recv().is_ok() && sent.try_recv().is_err());
        assert!(leading.orders.concerns(4, 5) && leading.orders.concerns(4, 6));
        assert!(leading.roster.attendees[&4].deletes.is_empty());
    }

    /// A leader with one datanode, number 4, whose orders nobody takes.
    fn leading() -> (Leading, impl Sized) {
        let mut leading = Leading::new(1, 1, 0, Settings::default());
        let (outgoing, sent) = mpsc::channel(8);
        let (alive, displaced) = oneshot::channel();
        let attendee = leading.roster.attendees.entry(4).or_default();
        attendee.stream = Some(Stream { id: 1, outgoing, _alive: alive });
        (leading, (sent, displaced))
    }

    #[test]
    fn nothing_is_given_up_for_a_replica_that_may_not_be_there() {
        let (mut leading, _guards) = leading();
        let node = Node {
            liveness: Liveness::Live,
            admin: AdminState::Normal,
            host: String::new(),
            rack: String::new(),
            available: 1 << 40,
            capacity: 1 << 40,
        };
        leading.roster.nodes = [4, 5, 6].map(|id| (id, node.clone())).into();
        let bad = Holding { wanted: 1, live: true, replicas: vec![4, 5], bad: vec![5], ..Holding::default() };
        let surplus = Holding { wanted: 2, live: true, replicas: vec![4, 5, 6], ..Holding::default() };
        let dropped = Holding { wanted: 1, live: true, replicas: vec![5], dropping: vec![4], ..bad.clone() };
        let dropped = Holding { bad: vec![], ..dropped };
        leading.problems.file(9, bad, &leading.roster.nodes);
        leading.problems.file(10, surplus, &leading.roster.nodes);
        leading.problems.file(11, dropped, &leading.roster.nodes);
        clear_waste(&mut leading, 0);
        assert!(leading.pending.is_empty(), "nobody has said what it has");
        let account = |leading: &mut Leading, node| {
            leading.roster.attendees.entry(node).or_default().account = Account::Whole;
        };
        account(&mut leading, 4);
        leading.want_check(4, 9, 100, 0);
        clear_waste(&mut leading, 0);
        assert!(!leading.pending.contains(&(9, 5)), "it is in doubt");
        leading.roster.attendees.get_mut(&4).unwrap().checks.clear();
        leading.mark(9, 4, Fault::Unfit);
        clear_waste(&mut leading, 0);
        assert!(!leading.pending.contains(&(9, 5)), "it is bad");
        leading.unmark(9, 4);
        clear_waste(&mut leading, 0);
        assert!(leading.pending.contains(&(9, 5)));
        assert!(!leading.pending.iter().any(|(chunk, _)| *chunk == 10), "only one of the others is there");
        assert!(!leading.orders.concerns(4, 11), "5 has said nothing");
        account(&mut leading, 5);
        account(&mut leading, 6);
        clear_waste(&mut leading, 0);
        assert!(leading.orders.concerns(4, 11));
        assert_eq!(leading.pending.iter().filter(|(chunk, _)| *chunk == 10).count(), 1);
    }

    #[test]
    fn a_replica_is_in_doubt_until_an_answer_says_how_it_is() {
        let (mut leading, _guards) = leading();
        leading.roster.attendees.get_mut(&4).unwrap().account = Account::Whole;
        let record =
            Chunk { state: ChunkState::Sealed as i32, length: 7, replicas: vec![4], ..Chunk::default() };
        assert!(leading.is_vouched_for(9, 4, 0));
        leading.want_check(4, 9, 7, 0);
        let busy = Some(ErrorCode::Unavailable.because("too many orders wait").into());
        let good = Some(Bytes::from(vec![1; 32]));
        for (now_ms, error, blake3) in [(0, busy, None), (100_000, None, good)] {
            dispatch(&mut leading, now_ms);
            assert!(leading.orders.concerns(4, 9), "it is asked for again");
            assert!(!leading.is_vouched_for(9, 4, now_ms));
            let sent = leading.orders.take_node(4).remove(0);
            let is_over = error.is_none();
            let done =
                OrderDone { error, length: 7, blake3: blake3.unwrap_or_default(), ..OrderDone::default() };
            order_done(&mut leading, sent, done, Some(&record), now_ms);
            leading.pending.clear();
            assert_eq!(leading.is_vouched_for(9, 4, now_ms + 50_000), is_over);
        }
        // Doubted while it is asked for: the answer may be older than the doubt.
        leading.want_check(4, 9, 7, 200_000);
        dispatch(&mut leading, 200_000);
        leading.want_check(4, 9, 7, 200_000);
        for is_over in [false, true] {
            let sent = leading.orders.take_node(4).remove(0);
            let done = OrderDone { length: 7, blake3: vec![1; 32].into(), ..OrderDone::default() };
            order_done(&mut leading, sent, done, Some(&record), 200_000);
            leading.pending.clear();
            assert_eq!(leading.is_vouched_for(9, 4, 200_000), is_over);
            dispatch(&mut leading, 200_000);
        }
    }

    #[test]
    fn an_unfit_replica_that_is_reported_whole_is_asked_about_again() {
        let record =
            Chunk { state: ChunkState::Sealed as i32, length: 7, replicas: vec![4], ..Chunk::default() };
        let gone = Some(ErrorCode::ChunkUnknown.because("not mounted").into());
        for (fault, error, is_asked, is_cleared) in [
            (Fault::Unfit, None, true, true),
            (Fault::Unfit, gone, true, false),
            (Fault::Corrupt, None, false, false),
        ] {
            let (mut leading, _guards) = leading();
            leading.mark(9, 4, fault);
            leading.want_check(4, 9, 7, 0);
            dispatch(&mut leading, 0);
            assert!(!leading.orders.concerns(4, 9), "nothing speaks for it");
            inventory::act(&mut leading, 4, Findings { redeemable: vec![(9, 7)], ..Findings::default() }, 0);
            dispatch(&mut leading, 0);
            assert_eq!(leading.orders.concerns(4, 9), is_asked);
            for sent in leading.orders.take_node(4) {
                let done = OrderDone {
                    error: error.clone(),
                    length: 7,
                    blake3: vec![1; 32].into(),
                    ..OrderDone::default()
                };
                order_done(&mut leading, sent, done, Some(&record), 0);
            }
            assert_eq!(leading.faults.is_empty(), is_cleared);
            leading.pending.clear();
            dispatch(&mut leading, 100_000);
            assert!(!leading.orders.concerns(4, 9), "not in a loop");
        }
    }

    #[test]
    fn what_was_checked_while_its_chunk_was_purged_is_deleted_also_if_it_is_bad() {
        let error = |code: ErrorCode| Some(code.because("on purpose").into());
        for (error, is_deleted) in
            [(None, true), (error(ErrorCode::Corrupt), true), (error(ErrorCode::ChunkUnknown), false)]
        {
            let (mut leading, _guards) = leading();
            leading.want_check(4, 9, 7, 0);
            dispatch(&mut leading, 0);
            let sent = leading.orders.take_node(4).remove(0);
            order_done(&mut leading, sent, OrderDone { error, ..OrderDone::default() }, None, 0);
            assert_eq!(leading.roster.attendees[&4].deletes.contains(&9), is_deleted);
        }
    }

    /// Only its datanode knows of it, and its chunk may be purged before the next inventory.
    #[test]
    fn a_stray_that_could_not_be_dropped_is_asked_about_again() {
        let record =
            Chunk { state: ChunkState::Sealed as i32, length: 7, replicas: vec![5], ..Chunk::default() };
        for is_turned_away in [false, true] {
            let (mut leading, _guards) = leading();
            leading.want_check(4, 9, 7, 0);
            dispatch(&mut leading, 0);
            let sent = leading.orders.take_node(4).remove(0);
            if is_turned_away {
                leading.pending.insert((9, 4));
            }
            let short = OrderDone { length: 3, ..OrderDone::default() };
            order_done(&mut leading, sent, short, Some(&record), 0);
            for proposal in std::mem::take(&mut leading.outbox) {
                let refused = Err(ErrorCode::NoLeader.because("on purpose"));
                proposal_done(&mut leading, &proposal, refused, 0);
            }
            assert!(leading.roster.attendees[&4].ask_again_ms.is_some(), "{is_turned_away}");
        }
    }

    #[test]
    fn faults_of_chunks_that_are_gone_are_forgotten() {
        let (mut leading, _guards) = leading();
        leading.mark(9, 4, Fault::Corrupt);
        leading.mark(10, 4, Fault::Corrupt);
        leading.file(9, None, 0, 0);
        assert_eq!(leading.faults.keys().copied().collect::<Vec<_>>(), [(10, 4)]);
    }

    /// A round that finds no chunk any more.
    fn round(leading: &mut Leading) {
        let (job, settled) = begin(leading, false, 0, 0);
        let chunks = job.touched.iter().map(|chunk| (*chunk, None)).collect();
        end(leading, Read { chunks, ..Read::default() }, settled, 0, 0);
    }

    #[test]
    fn a_replica_that_was_changed_while_its_chunk_was_purged_is_deleted() {
        for change in [Change::Drop { bad: false }, Change::Forget, Change::Add { copied: 0 }] {
            let (mut leading, _guards) = leading();
            assert!(leading.offer(Proposal { chunk: 5, node: 4, change: change.clone() }, 0));
            // The purge had been asked for before, and named nobody.
            leading.settle(5, 4);
            round(&mut leading);
            assert!(leading.orders.concerns(4, 5), "its deletion is ordered after {change:?}");
        }
    }

    #[test]
    fn a_purge_that_is_carried_out_after_its_answer_was_lost_leaves_no_replica() {
        let (mut leading, _guards) = leading();
        assert!(leading.purges.doubt(5, &[4]));
        let dead = Chunk { state: ChunkState::Sealed as i32, replicas: vec![4], ..Chunk::default() };
        for chunks in [vec![(5, dead)], vec![]] {
            assert!(leading.touched.is_empty(), "it was there a moment ago");
            let read = Read { stretch: Some(Stretch { from: 0, next: 0, chunks }), ..Read::default() };
            end(&mut leading, read, vec![], 0, 0);
            assert!(!leading.orders.concerns(4, 5));
        }
        round(&mut leading);
        assert!(leading.orders.concerns(4, 5));
    }

    #[test]
    fn a_deletion_that_takes_long_keeps_the_replica_busy_until_its_stream_ends() {
        let (mut leading, _guards) = leading();
        leading.want_delete(4, 5, 0);
        dispatch(&mut leading, 0);
        give_up_overdue(&mut leading, u64::MAX);
        assert!(leading.is_busy(5, 4), "it may be carried out yet");
        leading.disconnect(4, 0);
        assert!(!leading.is_busy(5, 4));
    }

    #[test]
    fn a_replica_stays_settled_until_its_chunk_is_read() {
        let (mut leading, _guards) = leading();
        let change = Change::Drop { bad: false };
        assert!(leading.offer(Proposal { chunk: 9_000, node: 4, change }, 0));
        leading.settle(9_000, 4);
        // More than a round reads, and before it in order.
        leading.touched.extend(0..6_000);
        round(&mut leading);
        assert!(leading.pending.contains(&(9_000, 4)), "nobody has looked yet whether it is there");
        round(&mut leading);
        assert!(!leading.pending.contains(&(9_000, 4)) && leading.orders.concerns(4, 9_000));
    }
}
