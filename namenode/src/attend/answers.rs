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
            leading.offer(Proposal { chunk, node, change }, now_ms);
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
    // The target cannot tell which source failed it and why, but the sources can be asked.
    if error.is_some_and(|error| proves_bad(error.code)) {
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
    let Some(error) = refused else {
        accepted(leading, proposal, now_ms);
        return;
    };
    tracing::debug!(chunk, node, change = ?proposal.change, %error, "proposal refused");
    leading.failures.fail(chunk, node, now_ms);
    if error.code == ErrorCode::NoLeader {
        // While nobody hears this leader, no writer can commit what it has sealed, either.
        leading.steady = Steady::new(now_ms);
    }
    match proposal.change {
        Change::Digest(_) if error.code == ErrorCode::Corrupt => leading.mark(chunk, node, Fault::Unfit),
        // If it was purged meanwhile, the next round reads so and has this replica deleted.
        Change::Add { .. } if error.code != ErrorCode::ChunkUnknown => {
            leading.copy_failures.fail(chunk, node, now_ms);
            leading.ask_again(node, now_ms);
        }
        // It may be that no record names it: then only its datanode can tell of it once more.
        Change::Drop { bad: false } => leading.ask_again(node, now_ms),
        _ => {}
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
            for holder in holders {
                leading.want_delete(*holder, chunk, now_ms);
                // Nothing else would ever forget what was wrong with it.
                leading.faults.remove(&(chunk, *holder));
            }
        }
        _ => {}
    }
}
