//! What follows from a datanode's answer to an order, and from the log's answer to a proposal.

use cairn_metadata::plan::garbage::Steady;
use cairn_metadata::plan::reconcile::is_needless;
use cairn_metadata::plan::repair::Copy;
use cairn_metadata::plan::verdict::{Holding, judge};
use cairn_proto::control::OrderDone;
use cairn_proto::fs::{ChunkState, Outcome, outcome};
use cairn_proto::store::Chunk;
use cairn_proto::{Error, ErrorCode};

use super::compaction;
use super::leading::{Change, Fault, Leading, Proposal};
use super::orders::{Sent, Task};

/// Takes an answer in. `record` is the chunk as the log has it now.
pub(super) fn order_done(
    leading: &mut Leading,
    sent: Sent,
    done: OrderDone,
    record: Option<&Chunk>,
    now_ms: u64,
) {
    let error = done.error.clone().map(Error::from);
    if let Some(error) = &error {
        let (node, chunk, task) = (sent.node, sent.chunk, &sent.task);
        tracing::debug!(node, chunk, ?task, %error, "order refused");
    }
    match sent.task.clone() {
        Task::Seal { .. } => check_done(leading, &sent, &done, error, record, now_ms),
        Task::Delete => delete_done(leading, &sent, error, record, now_ms),
        Task::Copy(copy) => copy_done(leading, copy, &done, error, record, now_ms),
        Task::Gather { run, .. } => compaction::gathered(leading, (run, sent.node), &done, error, now_ms),
        Task::Inventory | Task::Scrub { .. } => {}
    }
}

fn check_done(
    leading: &mut Leading,
    sent: &Sent,
    done: &OrderDone,
    error: Option<Error>,
    record: Option<&Chunk>,
    now_ms: u64,
) {
    let (chunk, node) = (sent.chunk, sent.node);
    let Some(record) = record.filter(|record| record.state() == ChunkState::Sealed) else {
        leading.end_check(chunk, node);
        // The purge may have known nothing of it. Also if it is bad, or cannot be read.
        if record.is_none() && !error.is_some_and(|error| is_gone(error.code)) {
            leading.want_delete(node, chunk, now_ms);
        }
        return;
    };
    let is_good = match &error {
        None => done.length == record.length && (record.blake3.is_empty() || record.blake3 == done.blake3),
        Some(error) if proves_bad(error.code) => false,
        Some(_) => {
            // It is still in doubt, and asked again.
            leading.failures.fail(chunk, node, now_ms);
            return;
        }
    };
    leading.end_check(chunk, node);
    if record.dropping.contains(&node) {
        return;
    }
    if record.replicas.contains(&node) {
        if !is_good {
            tracing::warn!(chunk, node, "replica is short, gone or of other content");
            leading.mark(chunk, node, Fault::Unfit);
            return;
        }
        if leading.faults.get(&(chunk, node)) == Some(&Fault::Unfit) {
            leading.unmark(chunk, node);
        }
        if record.blake3.is_empty() && !done.blake3.is_empty() {
            let change = Change::Digest(done.blake3.clone());
            if leading.offer(Proposal { chunk, node, change }, now_ms) {
                // Once the log has a digest, the chunk's record does not say any more that some are not sealed.
                leading.want_checks(chunk, record, now_ms);
            }
        }
        return;
    }
    // A stray: counted on from now on if it is needed, dropped and then deleted if not.
    let is_gone = error.is_some_and(|error| is_gone(error.code));
    let faults = &leading.faults;
    let holding = Holding::of(record, |node| faults.contains_key(&(chunk, node)));
    let lacks = holding.as_ref().is_some_and(|holding| judge(holding, &leading.roster.nodes).lack > 0);
    let is_needless = !is_good
        || holding.is_some_and(|holding| {
            let vouched = |holder| leading.is_vouched_for(chunk, holder, now_ms);
            is_needless(&holding, &leading.roster.nodes, node, vouched)
        });
    let change = match (is_good && lacks, is_needless) {
        _ if is_gone => return,
        (true, _) => Change::Add { copied: 0 },
        (false, true) => Change::Drop { bad: false },
        (false, false) => return leading.ask_again(node, now_ms),
    };
    if !leading.offer(Proposal { chunk, node, change }, now_ms) {
        leading.ask_again(node, now_ms);
    }
}

/// Refusals of a check after which nobody should count on the replica.
fn proves_bad(code: ErrorCode) -> bool {
    is_gone(code)
        || matches!(
            code,
            ErrorCode::PastEnd | ErrorCode::Corrupt | ErrorCode::ChunkSealed | ErrorCode::DiskFailed
        )
}

fn is_gone(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::ChunkUnknown | ErrorCode::NotFound)
}

fn delete_done(
    leading: &mut Leading,
    sent: &Sent,
    error: Option<Error>,
    record: Option<&Chunk>,
    now_ms: u64,
) {
    let (chunk, node) = (sent.chunk, sent.node);
    if error.is_some_and(|error| !is_gone(error.code)) {
        leading.failures.fail(chunk, node, now_ms);
        leading.ask_again(node, now_ms);
    } else if record.is_some_and(|record| record.dropping.contains(&node)) {
        leading.offer(Proposal { chunk, node, change: Change::Forget }, now_ms);
    }
}

fn copy_done(
    leading: &mut Leading,
    copy: Copy,
    done: &OrderDone,
    error: Option<Error>,
    record: Option<&Chunk>,
    now_ms: u64,
) {
    let (chunk, node) = (copy.chunk, copy.target);
    let Some(record) = record else {
        leading.flights.end(chunk, node);
        leading.want_delete(node, chunk, now_ms);
        return;
    };
    let is_same = record.blake3.is_empty() || done.blake3.is_empty() || record.blake3 == done.blake3;
    let is_whole = error.is_none() && done.length == record.length && is_same;
    if is_whole {
        // Whatever was said of one that it had before. What was found in this one is said again behind the answer.
        leading.unmark(chunk, node);
    }
    if is_whole && record.replicas.contains(&node) {
        // It replaced a bad replica where that was. The log counted on it all the time; now rightly so.
        leading.flights.end(chunk, node);
        leading.copy_failures.clear(chunk, node);
        leading.progress.copied(copy.length);
        leading.touched.insert(chunk);
        return;
    }
    let add = Proposal { chunk, node, change: Change::Add { copied: copy.length } };
    // The flight goes on until the log has answered, so that nobody plans the same copy again meanwhile.
    if is_whole && leading.offer(add, now_ms) {
        leading.copy_failures.clear(chunk, node);
        return;
    }
    leading.flights.end(chunk, node);
    leading.copy_failures.fail(chunk, node, now_ms);
    leading.touched.insert(chunk);
    if is_whole {
        leading.ask_again(node, now_ms);
        return;
    }
    tracing::warn!(chunk, node, sources = ?copy.sources, error = ?error, "copy failed");
    // It may still have what it had before, and its inventory was not heeded while this copy was to replace that.
    leading.want_check(node, chunk, record.length, now_ms);
    // The target cannot tell which source failed it and why, but the sources can be asked.
    if error.is_some_and(|error| compaction::doubts_sources(error.code)) {
        for source in copy.sources {
            leading.want_check(source, chunk, record.length, now_ms);
        }
    }
}

/// Takes the log's answer in.
pub(super) fn proposal_done(
    leading: &mut Leading,
    proposal: &Proposal,
    answer: Result<Outcome, Error>,
    now_ms: u64,
) {
    let (chunk, node) = (proposal.chunk, proposal.node);
    leading.settle(chunk, node);
    if matches!(proposal.change, Change::Begin { .. } | Change::Gathered { .. } | Change::Swap { .. }) {
        return compaction::proposed(leading, proposal, answer, now_ms);
    }
    let refused = match answer {
        Err(error) => Some(error),
        Ok(Outcome { result: Some(outcome::Result::Error(error)) }) => Some(error.into()),
        Ok(_) => None,
    };
    // It was carried out before, and the answer was lost.
    let is_purged = matches!(proposal.change, Change::Purge { .. })
        && refused.as_ref().is_some_and(|error| error.code == ErrorCode::ChunkUnknown);
    let Some(error) = refused.filter(|_| !is_purged) else {
        accepted(leading, proposal, now_ms);
        return;
    };
    tracing::debug!(chunk, node, change = ?proposal.change, %error, "proposal refused");
    leading.failures.fail(chunk, node, now_ms);
    if error.code == ErrorCode::NoLeader {
        // While nobody hears this leader, no writer can commit what it has sealed, either.
        leading.steady = Steady::new(now_ms);
    }
    match &proposal.change {
        Change::Digest(_) if error.code == ErrorCode::Corrupt => leading.mark(chunk, node, Fault::Unfit),
        // If it was purged meanwhile, the next round reads so and has this replica deleted.
        Change::Add { .. } if error.code != ErrorCode::ChunkUnknown => {
            leading.copy_failures.fail(chunk, node, now_ms);
            leading.ask_again(node, now_ms);
        }
        // It may be that no record names it: then only its datanode can tell of it once more.
        Change::Drop { bad: false } => leading.ask_again(node, now_ms),
        // It may be carried out yet, and then no record tells who has something to delete.
        Change::Purge { holders } if error.code == ErrorCode::Unavailable => {
            doubt_purge(leading, chunk, holders, now_ms);
        }
        _ => {}
    }
}

fn doubt_purge(leading: &mut Leading, chunk: u64, holders: &[u32], now_ms: u64) {
    if !leading.purges.doubt(chunk, holders) {
        holders.iter().for_each(|holder| leading.ask_again(*holder, now_ms));
    }
}

fn accepted(leading: &mut Leading, proposal: &Proposal, now_ms: u64) {
    let (chunk, node) = (proposal.chunk, proposal.node);
    leading.failures.clear(chunk, node);
    match &proposal.change {
        Change::Add { copied } if *copied > 0 => leading.progress.copied(*copied),
        Change::Add { .. } => {}
        Change::Drop { .. } | Change::Forget => leading.unmark(chunk, node),
        Change::Purge { holders } => {
            let earlier = leading.purges.settle(chunk);
            for holder in holders.iter().copied().chain(earlier) {
                leading.want_delete(holder, chunk, now_ms);
                // Nothing else would ever forget what was wrong with it.
                leading.faults.remove(&(chunk, holder));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::attend::roster::Stream;
    use crate::attend::settings::Settings;

    /// A leader that these attend, whose orders nobody takes.
    fn attended_by(nodes: &[u32]) -> (Leading, impl Sized + use<>) {
        let mut leading = Leading::new(1, 1, 0, Settings::default());
        let mut guards = Vec::new();
        for node in nodes {
            let (outgoing, sent) = mpsc::channel(8);
            let (alive, displaced) = oneshot::channel();
            let attendee = leading.roster.attendees.entry(*node).or_default();
            attendee.stream = Some(Stream { id: 1, outgoing, _alive: alive });
            guards.push((sent, displaced));
        }
        (leading, guards)
    }

    /// Chunk 9, of 7 bytes.
    fn sealed(replicas: &[u32]) -> Chunk {
        Chunk { state: ChunkState::Sealed as i32, length: 7, replicas: replicas.to_vec(), ..Chunk::default() }
    }

    fn failed(code: ErrorCode) -> OrderDone {
        OrderDone { error: Some(code.because("on purpose").into()), ..OrderDone::default() }
    }

    fn checked(leading: &mut Leading, node: u32, done: OrderDone, record: &Chunk) {
        let sent = Sent { node, chunk: 9, task: Task::Seal { length: 7 }, deadline_ms: 0 };
        order_done(leading, sent, done, Some(record), 0);
    }

    fn is_checked(leading: &Leading, node: u32) -> bool {
        leading.roster.attendees[&node].checks.contains_key(&9)
    }

    fn is_deleted(leading: &Leading, node: u32) -> bool {
        leading.roster.attendees[&node].deletes.contains(&9)
    }

    #[test]
    fn the_first_digest_has_the_other_replicas_sealed_and_their_answers_nothing_more() {
        let whole = OrderDone { length: 7, blake3: vec![1; 32].into(), ..OrderDone::default() };
        let record = sealed(&[4, 5, 6]);
        let (mut leading, _guards) = attended_by(&[4, 5, 6]);
        checked(&mut leading, 4, whole.clone(), &record);
        assert!(!is_checked(&leading, 4) && is_checked(&leading, 5) && is_checked(&leading, 6));
        // The log has not answered yet.
        checked(&mut leading, 5, whole.clone(), &record);
        let known = Chunk { blake3: whole.blake3.clone(), ..record.clone() };
        checked(&mut leading, 6, whole.clone(), &known);
        assert!([4, 5, 6].iter().all(|node| !is_checked(&leading, *node)), "all have answered");
        // One that is asked already is not asked twice.
        let (mut leading, _guards) = attended_by(&[4, 5, 6]);
        assert!(leading.send(5, 9, Task::Seal { length: 7 }, 7, 0));
        checked(&mut leading, 4, whole, &record);
        assert!(!is_checked(&leading, 5) && is_checked(&leading, 6));
    }

    #[test]
    fn a_replica_on_a_disk_that_does_not_answer_is_unfit_and_one_that_was_not_asked_is_in_doubt() {
        let record = Chunk { live_bytes: 7, replication: 3, ..sealed(&[4, 5, 6]) };
        for (code, is_unfit) in [(ErrorCode::DiskFailed, true), (ErrorCode::Unavailable, false)] {
            let (mut leading, _guards) = attended_by(&[4, 5, 6]);
            leading.want_check(4, 9, 7, 0);
            checked(&mut leading, 4, failed(code), &record);
            assert_eq!(leading.faults.get(&(9, 4)), is_unfit.then_some(&Fault::Unfit));
            assert_eq!(is_checked(&leading, 4), !is_unfit);
            let is_bad = |node: u32| leading.faults.contains_key(&(9, node));
            assert_eq!(Holding::of(&record, is_bad).unwrap().bad, if is_unfit { vec![4] } else { vec![] });
            assert_eq!(leading.touched.contains(&9), is_unfit, "it is judged at once");
        }
    }

    #[test]
    fn after_a_copy_that_failed_its_target_is_asked_and_its_sources_unless_only_its_own_disk_failed() {
        for (code, is_doubted) in [
            (ErrorCode::DiskFailed, false),
            (ErrorCode::Unavailable, false),
            (ErrorCode::Corrupt, true),
            (ErrorCode::PastEnd, true),
        ] {
            let (mut leading, _guards) = attended_by(&[4, 5]);
            let copy = Copy { chunk: 9, length: 7, target: 4, sources: vec![5], ..Copy::default() };
            leading.flights.start(copy.clone());
            let sent = Sent { node: 4, chunk: 9, task: Task::Copy(copy), deadline_ms: 0 };
            order_done(&mut leading, sent, failed(code), Some(&sealed(&[5])), 0);
            assert!(is_checked(&leading, 4), "{code:?}");
            assert_eq!(is_checked(&leading, 5), is_doubted, "{code:?}");
            // There was nothing.
            checked(&mut leading, 4, failed(ErrorCode::ChunkUnknown), &sealed(&[5]));
            assert!(!is_checked(&leading, 4) && leading.pending.is_empty());
        }
    }

    fn purge(leading: &mut Leading, holders: &[u32], code: ErrorCode) {
        let change = Change::Purge { holders: holders.to_vec() };
        let proposal = Proposal { chunk: 9, node: 0, change };
        proposal_done(leading, &proposal, Err(code.because("on purpose")), 0);
    }

    #[test]
    fn replicas_of_a_purge_whose_answer_was_lost_are_deleted_when_the_chunk_is_gone() {
        let dead = sealed(&[4, 5]);
        let alive = Chunk { live_bytes: 1, blake3: Bytes::from(vec![1; 32]), ..dead.clone() };
        for (then, deleted) in [(&dead, BTreeSet::from([4, 5])), (&alive, BTreeSet::new())] {
            let (mut leading, _guards) = attended_by(&[4, 5]);
            purge(&mut leading, &[4, 5], ErrorCode::Unavailable);
            leading.file(9, Some(then), 0, 0);
            assert!(!is_deleted(&leading, 4) && !is_deleted(&leading, 5), "it is still there");
            leading.file(9, None, 0, 0);
            let found = [4, 5].into_iter().filter(|node| is_deleted(&leading, *node));
            assert_eq!(found.collect::<BTreeSet<_>>(), deleted);
        }
    }

    #[test]
    fn a_purge_that_finds_no_chunk_has_been_carried_out_before() {
        let (mut leading, _guards) = attended_by(&[4, 5]);
        purge(&mut leading, &[4], ErrorCode::Unavailable);
        purge(&mut leading, &[5], ErrorCode::ChunkUnknown);
        assert!(is_deleted(&leading, 4) && is_deleted(&leading, 5));
        let (mut leading, _guards) = attended_by(&[4]);
        purge(&mut leading, &[4], ErrorCode::Invalid);
        leading.file(9, None, 0, 0);
        assert!(!is_deleted(&leading, 4), "it was refused, and whoever purged it then knows who has it");
    }
}
