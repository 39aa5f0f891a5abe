//! Takes in what a datanode says it has, a stretch at a time.

use std::collections::BTreeMap;

use cairn_metadata::plan::reconcile::{Action, Findings, Stretch, reconcile};
use cairn_metadata::records;
use cairn_metadata::store::{Store, StoreError};
use cairn_proto::control::{Inventory, ReplicaReport};
use cairn_proto::store::Chunk;

use super::leading::{Change, Leading, Proposal};
use super::scan::chunks_of;

/// Replicas compared at once.
const STRETCH: usize = 1024;

/// A part of an inventory page with the records it is compared with.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub first: u64,
    /// 0: to the end.
    pub next: u64,
    pub replicas: Vec<ReplicaReport>,
    pub records: BTreeMap<u64, Chunk>,
    pub next_chunk: u64,
}

impl Part {
    /// What of it `node` has, against what the leader knows at `now_ms`.
    pub fn compare(&self, leading: &Leading, node: u32, now_ms: u64) -> Findings {
        let stretch = Stretch {
            node,
            first: self.first,
            next: self.next,
            replicas: &self.replicas,
            records: &self.records,
            next_chunk: self.next_chunk,
            bad: &|chunk, node| leading.faults.contains_key(&(chunk, node)),
            vouched: &|chunk, node| leading.is_vouched_for(chunk, node, now_ms),
        };
        reconcile(&stretch, &leading.roster.nodes)
    }
}

/// Reads the records for as much of `page` from id `from` on as is compared at once. `page.replicas` is sorted.
pub(super) fn read(store: &dyn Store, node: u32, page: &Inventory, from: u64) -> Result<Part, StoreError> {
    let inside =
        |report: &&ReplicaReport| report.chunk >= from && (page.next == 0 || report.chunk < page.next);
    let start = page.replicas.partition_point(|report| report.chunk < from);
    let reported: Vec<ReplicaReport> =
        page.replicas.iter().skip(start).filter(inside).take(STRETCH).cloned().collect();
    let mut part = Part { first: from, next: page.next, ..Part::default() };
    if reported.len() == STRETCH {
        part.next = reported.last().map_or(page.next, |last| last.chunk.saturating_add(1));
    }
    store.read(&mut |view| {
        part.records.clear();
        let listed = chunks_of(view, node, from, part.next, STRETCH)?;
        if listed.len() == STRETCH {
            let after = listed.last().map_or(0, |last| last.saturating_add(1));
            part.next = if part.next == 0 { after } else { part.next.min(after) };
        }
        let next = part.next;
        part.replicas = reported.iter().filter(|report| next == 0 || report.chunk < next).cloned().collect();
        for chunk in listed.into_iter().chain(part.replicas.iter().map(|report| report.chunk)) {
            if let Some(record) = records::chunk(view, chunk)? {
                part.records.insert(chunk, record);
            }
        }
        part.next_chunk = records::meta(view)?.unwrap_or_default().next_chunk;
        Ok(())
    })?;
    Ok(part)
}

/// Acts on what a comparison found. False if more replicas are in doubt than are remembered.
pub(super) fn act(leading: &mut Leading, node: u32, findings: Findings, now_ms: u64) -> bool {
    let (mut is_complete, mut is_remembered) = (findings.unchecked + findings.unclear == 0, true);
    for (chunk, length) in findings.redeemable {
        leading.reconsider(node, chunk, length);
    }
    for action in findings.actions {
        let chunk = action.chunk();
        if let Action::Check { length, .. } = action
            && !leading.compactor.awaits(chunk, node)
        {
            is_remembered &= leading.want_check(node, chunk, length, now_ms);
            continue;
        }
        if leading.is_proposed(chunk, node) {
            // The proposal follows from what was known before this page, so its answer does not make up for it.
            is_complete = false;
            continue;
        }
        if leading.compactor.makes(chunk) {
            // Between its gathering and its record nobody seems to want it.
            is_complete = false;
            continue;
        }
        if leading.is_busy(chunk, node) {
            // Its answer is newer than this page, and if none comes the inventory is asked for again. After a copy that
            // fails, the datanode is asked how the replica is.
            continue;
        }
        match action {
            Action::Check { .. } => {}
            Action::Delete { .. } => leading.want_delete(node, chunk, now_ms),
            Action::Review { .. } => leading.touch(chunk),
            Action::Drop { .. } => {
                let change = Change::Drop { bad: false };
                is_complete &= leading.offer(Proposal { chunk, node, change }, now_ms);
            }
            Action::Forget { .. } => {
                is_complete &= leading.offer(Proposal { chunk, node, change: Change::Forget }, now_ms);
            }
        }
    }
    if !is_complete {
        leading.ask_again(node, now_ms);
    }
    is_remembered
}

#[cfg(test)]
mod tests {
    use cairn_metadata::key;
    use cairn_metadata::memory::MemoryStore;
    use cairn_metadata::store::{Durability, Table, Txn};
    use prost::Message;

    use super::*;

    fn report(chunk: u64) -> ReplicaReport {
        ReplicaReport { chunk, length: 1, sealed: true, ..ReplicaReport::default() }
    }

    fn parts(store: &dyn Store, page: &Inventory) -> Vec<Part> {
        let (mut parts, mut from) = (Vec::new(), page.first);
        loop {
            let part = read(store, 1, page, from).unwrap();
            from = part.next;
            parts.push(part);
            if from == page.next {
                return parts;
            }
        }
    }

    #[test]
    fn parts_tile_a_page_and_hold_every_report_and_every_listed_chunk() {
        let store = MemoryStore::default();
        let fill = &mut |txn: &mut dyn Txn| {
            for id in (0..5000).step_by(2) {
                txn.put(Table::Chunk, &key::one(id), &Chunk::default().encode_to_vec())?;
                txn.put(Table::NodeChunk, &key::node_chunk(1, id), &[])?;
            }
            Ok(())
        };
        store.write(Durability::Applied, fill).unwrap();
        for (first, next) in [(0, 0), (10, 4000), (4000, 0)] {
            let page = Inventory { first, next, replicas: (0..5000).step_by(3).map(report).collect() };
            let parts = parts(&store, &page);
            assert_eq!(parts[0].first, first);
            assert!(parts.windows(2).all(|pair| pair[0].next == pair[1].first));
            let end = if next == 0 { 5000 } else { next };
            let reports: usize = parts.iter().map(|part| part.replicas.len()).sum();
            let records: usize = parts.iter().map(|part| part.records.len()).sum();
            assert_eq!(reports, (0..5000).step_by(3).filter(|id| (first..end).contains(id)).count());
            assert_eq!(records, (0..5000).step_by(2).filter(|id| (first..end).contains(id)).count());
            assert!(
                parts.iter().all(|part| part.replicas.len() <= STRETCH && part.records.len() <= 2 * STRETCH)
            );
        }
    }
}
