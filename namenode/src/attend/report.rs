//! Adds what only the leader knows to answers: liveness, free space, the progress of repair.

use cairn_metadata::plan::verdict::preference;
use cairn_proto::fs::{self, ChunkInfo, DatanodeInfo, FsStats, Liveness, RepairInfo, answer};

use super::leading::Leading;

/// How long a second datanode of one identity is spoken of after it asked last; it asks every second.
const RIVAL_MS: u64 = 10_000;

/// Fills in an answer that came from the records.
pub(super) fn decorate(leading: &Leading, answer: &mut fs::Answer, now_ms: u64) {
    match &mut answer.result {
        Some(answer::Result::Layout(layout)) => {
            layout.chunks.iter_mut().for_each(|chunk| decorate_chunk(leading, chunk));
        }
        Some(answer::Result::Chunk(chunk)) => decorate_chunk(leading, chunk),
        Some(answer::Result::FileCheck(check)) => {
            check.chunks.iter_mut().for_each(|chunk| decorate_chunk(leading, chunk));
        }
        Some(answer::Result::ChunksCheck(check)) => {
            check.chunks.iter_mut().for_each(|chunk| decorate_chunk(leading, chunk));
        }
        Some(answer::Result::Fs(stats)) => decorate_stats(leading, stats),
        Some(answer::Result::Status(status)) => {
            if let Some(stats) = &mut status.fs {
                decorate_stats(leading, stats);
            }
            status.datanodes.iter_mut().for_each(|datanode| decorate_datanode(leading, datanode, now_ms));
            status.repair = Some(repair(leading));
            status.compaction = Some(Box::new(leading.compactor.info(&leading.settings)));
        }
        _ => {}
    }
}

/// Replicas come in the order to ask them: live first, those known to be bad last.
fn decorate_chunk(leading: &Leading, chunk: &mut ChunkInfo) {
    let id = chunk.chunk;
    for replica in &mut chunk.replicas {
        replica.liveness = leading.roster.liveness(replica.node).into();
        replica.bad = leading.faults.contains_key(&(id, replica.node));
    }
    chunk.replicas.sort_by_key(|replica| (replica.bad, preference(replica.liveness())));
}

fn decorate_stats(leading: &Leading, stats: &mut FsStats) {
    let counted = leading.roster.nodes.values().filter(|node| node.liveness != Liveness::Dead);
    (stats.capacity, stats.available) = counted.fold((0, 0), |(capacity, available): (u64, u64), node| {
        (capacity.saturating_add(node.capacity), available.saturating_add(node.available))
    });
}

fn decorate_datanode(leading: &Leading, info: &mut DatanodeInfo, now_ms: u64) {
    info.liveness = leading.roster.liveness(info.node).into();
    let Some(attendee) = leading.roster.attendees.get(&info.node) else { return };
    if let Some(space) = &attendee.space {
        info.capacity = space.capacity;
        info.available = space.available;
        info.used = space.used;
        info.replicas = space.replicas;
        info.failed_dirs = space.failed_dirs;
    }
    info.scrub = attendee.scrub;
    info.traffic = attendee.traffic;
    info.failed = attendee.failed.clone();
    info.draining = attendee.draining.clone();
    // The list is bounded, and the count was taken when the space was measured: each may know of one more.
    info.failed_dirs = info.failed_dirs.max(info.failed.len() as u32);
    let rival = attendee.rival.as_ref().filter(|(_, at_ms)| now_ms < at_ms + RIVAL_MS);
    info.rival = rival.map(|(address, _)| address.clone()).unwrap_or_default();
    let heard_ms = attendee.heard_ms.unwrap_or(leading.since_ms);
    info.last_heard_ms = now_ms.saturating_sub(heard_ms);
}

pub(super) fn repair(leading: &Leading) -> RepairInfo {
    let totals = leading.problems.totals();
    RepairInfo {
        under_replicated: totals.under_replicated,
        missing: totals.missing,
        surplus: totals.surplus,
        in_flight: leading.flights.total() as u64,
        bytes_left: totals.bytes_left,
        bytes_copied: leading.progress.bytes_copied,
        bytes_per_second: leading.progress.bytes_per_second(),
        chunks_repaired: leading.progress.chunks_repaired,
        seconds_left: leading.progress.seconds_for(totals.bytes_left),
        counting: !leading.scan.is_abreast(),
    }
}
