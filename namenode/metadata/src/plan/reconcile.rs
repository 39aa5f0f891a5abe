//! What a datanode has against what the records say it has (`docs/protocols.md`, section 4).

use std::collections::BTreeMap;

use cairn_proto::control::ReplicaReport;
use cairn_proto::fs::ChunkState;
use cairn_proto::store::Chunk;

use super::Nodes;
use super::verdict::{Holding, judge};

/// A stretch of a datanode's inventory, with the records it is held against.
pub struct Stretch<'a> {
    /// Whose inventory.
    pub node: u32,
    /// First chunk id it speaks for.
    pub first: u64,
    /// The id after the last one; 0: to the end.
    pub next: u64,
    /// What it has, in any order; reports outside of the stretch are ignored.
    pub replicas: &'a [ReplicaReport],
    /// Records of every chunk in the stretch that is reported, or that the records place on the node.
    pub records: &'a BTreeMap<u64, Chunk>,
    /// The allocator's mark: chunk ids below it have been given out, in the same view as `records`.
    pub next_chunk: u64,
    /// Whether a node's replica of a chunk is known to be bad.
    pub bad: &'a dyn Fn(u64, u32) -> bool,
    /// Whether a replica that the records place on a node is known to be there.
    pub vouched: &'a dyn Fn(u64, u32) -> bool,
}

/// What to do about one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Order `SealReplica`: cuts and hashes a replica that is long enough; one that is short or gone is refused, and
    /// only then is it bad. A page may be older than the bytes that made the replica whole, an order's answer is not.
    Check {
        /// The chunk.
        chunk: u64,
        /// Its sealed length, in bytes.
        length: u64,
    },
    /// Propose `DropReplica`: nobody counts on it and nobody needs it. It is deleted once the log says so.
    Drop {
        /// The chunk.
        chunk: u64,
    },
    /// Order `DeleteReplica`: the chunk was purged.
    Delete {
        /// The chunk.
        chunk: u64,
    },
    /// Judge the chunk again: the replica was dropped and is still there. It goes once somebody else is known to have a
    /// good one; until then its bytes may be the last ones.
    Review {
        /// The chunk.
        chunk: u64,
    },
    /// Propose `ForgetReplica`: it was dropped and is gone.
    Forget {
        /// The chunk.
        chunk: u64,
    },
}

/// The outcome of reconciling a stretch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// In order of chunk id.
    pub actions: Vec<Action>,
    /// Chunks whose replica is known to be bad and is reported whole, or long enough to be sealed, with their sealed
    /// lengths: a check may clear it.
    pub redeemable: Vec<(u64, u64)>,
    /// Replicas that would have been judged were they checked: worth asking again soon.
    pub unchecked: usize,
    /// Replicas that nobody counts on and that may be needed all the same: worth asking again, too.
    pub unclear: usize,
}

/// Compares. Open chunks are their writers' business; ids never given out are nobody's.
pub fn reconcile(stretch: &Stretch<'_>, nodes: &Nodes) -> Findings {
    let inside = |id: u64| id >= stretch.first && (stretch.next == 0 || id < stretch.next);
    let reported: BTreeMap<u64, &ReplicaReport> = stretch
        .replicas
        .iter()
        .filter(|report| inside(report.chunk))
        .map(|report| (report.chunk, report))
        .collect();
    let mut findings = Findings::default();
    for (&id, report) in &reported {
        match stretch.records.get(&id) {
            Some(record) => present(stretch, (id, record), report, nodes, &mut findings),
            None if id < stretch.next_chunk => findings.actions.push(Action::Delete { chunk: id }),
            None => {}
        }
    }
    for (&id, record) in stretch.records.iter().filter(|(id, _)| inside(**id) && !reported.contains_key(*id))
    {
        absent(stretch.node, id, record, &mut findings);
    }
    findings.actions.sort_by_key(|action| action.chunk());
    findings
}

impl Action {
    /// The chunk it is about.
    pub fn chunk(self) -> u64 {
        match self {
            Action::Check { chunk, .. }
            | Action::Drop { chunk }
            | Action::Delete { chunk }
            | Action::Review { chunk }
            | Action::Forget { chunk } => chunk,
        }
    }
}

fn present(
    stretch: &Stretch<'_>,
    (id, record): (u64, &Chunk),
    report: &ReplicaReport,
    nodes: &Nodes,
    findings: &mut Findings,
) {
    let node = stretch.node;
    let Some(holding) = Holding::of(record, |holder| (stretch.bad)(id, holder)) else { return };
    let check = Action::Check { chunk: id, length: record.length };
    let is_bad = (stretch.bad)(id, node);
    // One that is known to be bad would not be asked about: a check of it says what is known.
    let may_serve = report.length >= record.length && !is_bad;
    if record.dropping.contains(&node) {
        findings.actions.push(Action::Review { chunk: id });
    } else if record.replicas.contains(&node) {
        let same = report.blake3.is_empty() || record.blake3.is_empty() || report.blake3 == record.blake3;
        let is_fine = report.sealed && report.length == record.length && same;
        // Its disk may have been away since before it was to be sealed. One that cannot be is not reported so again.
        let may_become_fine = !report.sealed && report.length >= record.length;
        if is_bad && (is_fine || may_become_fine) {
            findings.redeemable.push((id, record.length));
        } else if !is_fine {
            findings.actions.push(check);
        }
    } else if report.unchecked {
        findings.unchecked += 1;
    } else if may_serve && judge(&holding, nodes).lack > 0 {
        findings.actions.push(check);
    } else if may_serve && !is_needless(&holding, nodes, node, |holder| (stretch.vouched)(id, holder)) {
        findings.unclear += 1;
    } else {
        findings.actions.push(Action::Drop { chunk: id });
    }
}

/// Whether nobody needs a whole replica that nobody counts on: as many as wanted are known to be there.
pub fn is_needless(holding: &Holding, nodes: &Nodes, node: u32, vouched: impl Fn(u32) -> bool) -> bool {
    !holding.live || holding.backing(nodes, node, vouched) >= holding.wanted
}

fn absent(node: u32, id: u64, record: &Chunk, findings: &mut Findings) {
    if record.state() != ChunkState::Sealed {
        return;
    }
    if record.dropping.contains(&node) {
        findings.actions.push(Action::Forget { chunk: id });
    } else if record.replicas.contains(&node) {
        findings.actions.push(Action::Check { chunk: id, length: record.length });
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::Liveness;

    use super::*;
    use crate::plan::Node;

    fn nodes(live: u32) -> Nodes {
        let node = |id| Node::roomy(if id <= live { Liveness::Live } else { Liveness::Dead }, String::new());
        (1..=5).map(|id| (id, node(id))).collect()
    }

    fn sealed(replicas: &[u32], dropping: &[u32]) -> Chunk {
        Chunk {
            state: ChunkState::Sealed as i32,
            length: 100,
            replication: 3,
            live_bytes: 1,
            replicas: replicas.to_vec(),
            dropping: dropping.to_vec(),
            ..Chunk::default()
        }
    }

    fn report(length: u64, sealed: bool) -> ReplicaReport {
        ReplicaReport { chunk: 7, length, sealed, ..ReplicaReport::default() }
    }

    fn find(record: Option<Chunk>, report: Option<ReplicaReport>, live: u32) -> Findings {
        find_with(record, report, live, &|_, _| false, &|_, _| true)
    }

    fn find_with(
        record: Option<Chunk>,
        report: Option<ReplicaReport>,
        live: u32,
        bad: &dyn Fn(u64, u32) -> bool,
        vouched: &dyn Fn(u64, u32) -> bool,
    ) -> Findings {
        let records: BTreeMap<u64, Chunk> = record.into_iter().map(|record| (7, record)).collect();
        let replicas: Vec<ReplicaReport> = report.into_iter().collect();
        let stretch = Stretch {
            node: 1,
            first: 0,
            next: 0,
            replicas: &replicas,
            records: &records,
            next_chunk: 8,
            bad,
            vouched,
        };
        reconcile(&stretch, &nodes(live))
    }

    const CHECK: Action = Action::Check { chunk: 7, length: 100 };

    fn nothing() -> Vec<Action> {
        Vec::new()
    }

    #[test]
    fn purged_chunks_are_deleted_and_unheard_of_ones_left_alone() {
        assert_eq!(find(None, Some(report(5, false)), 5).actions, [Action::Delete { chunk: 7 }]);
        let beyond = ReplicaReport { chunk: 8, ..report(5, false) };
        assert_eq!(find(None, Some(beyond), 5).actions, nothing());
    }

    #[test]
    fn open_chunks_are_left_to_their_writers() {
        let open = Chunk { state: ChunkState::Open as i32, ..sealed(&[1], &[]) };
        assert_eq!(find(Some(open.clone()), Some(report(5, false)), 5).actions, nothing());
        assert_eq!(find(Some(open.clone()), None, 5).actions, nothing());
        let elsewhere = Chunk { replicas: vec![2], ..open };
        assert_eq!(find(Some(elsewhere), Some(report(5, false)), 5).actions, nothing());
    }

    #[test]
    fn a_sealed_replica_of_the_right_length_is_fine_and_others_are_checked() {
        let listed = || Some(sealed(&[1, 2, 3], &[]));
        assert_eq!(find(listed(), Some(report(100, true)), 5).actions, nothing());
        assert_eq!(find(listed(), Some(report(100, false)), 5).actions, [CHECK]);
        assert_eq!(find(listed(), Some(report(120, false)), 5).actions, [CHECK]);
        assert_eq!(find(listed(), Some(report(99, false)), 5).actions, [CHECK]);
        assert_eq!(find(listed(), Some(report(99, true)), 5).actions, [CHECK]);
        assert_eq!(find(listed(), None, 5).actions, [CHECK]);
    }

    #[test]
    fn a_sealed_replica_of_other_content_is_checked() {
        let digest = |byte: u8| bytes::Bytes::from(vec![byte; 32]);
        let listed = || Some(Chunk { blake3: digest(1), ..sealed(&[1, 2, 3], &[]) });
        let of = |blake3| Some(ReplicaReport { blake3, ..report(100, true) });
        assert_eq!(find(listed(), of(digest(1)), 5).actions, nothing());
        assert_eq!(find(listed(), of(bytes::Bytes::new()), 5).actions, nothing());
        assert_eq!(find(listed(), of(digest(2)), 5).actions, [CHECK]);
    }

    #[test]
    fn a_bad_replica_that_is_reported_whole_may_be_cleared() {
        let of = |report, bad: bool| {
            let found = find_with(Some(sealed(&[1, 2, 3], &[])), report, 5, &|_, _| bad, &|_, _| true);
            (found.actions, found.redeemable)
        };
        assert_eq!(of(Some(report(100, true)), true), (nothing(), vec![(7, 100)]));
        assert_eq!(of(Some(report(100, true)), false), (nothing(), vec![]));
        assert_eq!(of(Some(report(100, false)), true), (nothing(), vec![(7, 100)]));
        assert_eq!(of(Some(report(120, false)), true), (nothing(), vec![(7, 100)]));
        assert_eq!(of(Some(report(120, false)), false), (vec![CHECK], vec![]));
        assert_eq!(of(Some(report(99, false)), true), (vec![CHECK], vec![]));
        assert_eq!(of(Some(report(99, true)), true), (vec![CHECK], vec![]));
        assert_eq!(of(Some(report(120, true)), true), (vec![CHECK], vec![]));
        assert_eq!(of(None, true), (vec![CHECK], vec![]));
    }

    #[test]
    fn an_unchecked_replica_is_not_judged_by_its_length() {
        let unchecked = |length| Some(ReplicaReport { unchecked: true, ..report(length, false) });
        let short = find(Some(sealed(&[1, 2, 3], &[])), unchecked(10), 5);
        assert_eq!((short.actions, short.unchecked), (vec![CHECK], 0), "and nobody counts on it meanwhile");
        let stray = find(Some(sealed(&[2, 3, 4], &[])), unchecked(100), 5);
        assert_eq!((stray.actions, stray.unchecked), (nothing(), 1));
    }

    #[test]
    fn dropped_replicas_are_looked_at_again_until_they_are_gone() {
        let dropped = || Some(sealed(&[2, 3, 4], &[1]));
        assert_eq!(find(dropped(), Some(report(100, true)), 5).actions, [Action::Review { chunk: 7 }]);
        assert_eq!(find(dropped(), None, 5).actions, [Action::Forget { chunk: 7 }]);
    }

    #[test]
    fn a_stray_replica_is_adopted_when_needed_and_dropped_when_not() {
        let stray = |replicas: &[u32], length, live| {
            find(Some(sealed(replicas, &[])), Some(report(length, true)), live).actions
        };
        assert_eq!(stray(&[2, 3, 4], 100, 5), [Action::Drop { chunk: 7 }]);
        assert_eq!(stray(&[2, 3, 4], 100, 3), [CHECK]);
        assert_eq!(stray(&[2, 3, 4], 99, 3), [Action::Drop { chunk: 7 }]);
        let is_bad = |_, node| node == 1;
        let found = |live| {
            let record = Some(sealed(&[2, 3, 4], &[]));
            find_with(record, Some(report(100, true)), live, &is_bad, &|_, _| true).actions
        };
        assert_eq!((found(5), found(3)), (vec![Action::Drop { chunk: 7 }], vec![Action::Drop { chunk: 7 }]));
    }

    #[test]
    fn a_stray_replica_stays_while_the_others_may_be_bad_or_gone() {
        let stray = |bad: &dyn Fn(u64, u32) -> bool, vouched: &dyn Fn(u64, u32) -> bool| {
            let found = find_with(Some(sealed(&[2, 3, 4], &[])), Some(report(100, true)), 5, bad, vouched);
            (found.actions, found.unclear)
        };
        assert_eq!(stray(&|_, node| node == 3, &|_, _| true), (vec![CHECK], 0));
        assert_eq!(stray(&|_, _| false, &|_, node| node != 3), (nothing(), 1));
    }

    #[test]
    fn a_stretch_speaks_for_its_own_ids_only() {
        let records = BTreeMap::from([(3, sealed(&[1], &[])), (9, sealed(&[1], &[]))]);
        let replicas =
            [ReplicaReport { chunk: 2, ..report(1, false) }, ReplicaReport { chunk: 8, ..report(1, false) }];
        let stretch = Stretch {
            node: 1,
            first: 4,
            next: 8,
            replicas: &replicas,
            records: &records,
            next_chunk: 100,
            bad: &|_, _| false,
            vouched: &|_, _| true,
        };
        assert_eq!(reconcile(&stretch, &nodes(5)), Findings::default());
    }
}
