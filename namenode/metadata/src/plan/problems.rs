//! Chunks that need something, in the order in which they should get it.

use std::collections::{BTreeMap, BTreeSet};

use super::Nodes;
use super::verdict::{Holding, Verdict, judge};

/// Place in the order of repair: fewest survivors first, then by chunk.
pub type Rank = (usize, u64);

/// A chunk that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The chunk as last read.
    pub chunk: Holding,
    /// As last judged.
    pub verdict: Verdict,
}

/// Sums over all problems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Chunks with fewer replicas than wanted.
    pub under_replicated: u64,
    /// Chunks of which nobody alive holds a good replica.
    pub missing: u64,
    /// Chunks with more replicas than wanted.
    pub surplus: u64,
    /// Bytes to be copied until every chunk that can be repaired is.
    pub bytes_left: u64,
}

/// The chunks with problems. Chunks that are fine take no memory.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    chunks: BTreeMap<u64, Problem>,
    /// Those that lack replicas and have a source.
    queue: BTreeSet<Rank>,
    /// Those with replicas to drop or to delete.
    waste: BTreeSet<u64>,
    totals: Totals,
}

impl Problems {
    /// Judges a chunk and files it, or forgets it when it is fine.
    pub fn file(&mut self, id: u64, chunk: Holding, nodes: &Nodes) {
        self.forget(id);
        let verdict = judge(&chunk, nodes);
        if verdict.is_fine() {
            return;
        }
        if is_repairable(&verdict) {
            self.queue.insert((verdict.survivors, id));
        }
        if has_waste(&verdict) {
            self.waste.insert(id);
        }
        let problem = Problem { chunk, verdict };
        self.count(&problem, true);
        self.chunks.insert(id, problem);
    }

    /// The chunk is open, purged or fine.
    pub fn forget(&mut self, id: u64) {
        let Some(problem) = self.chunks.remove(&id) else { return };
        self.queue.remove(&(problem.verdict.survivors, id));
        self.waste.remove(&id);
        self.count(&problem, false);
    }

    /// Forgets every problem of `chunks` not in `kept`, all in the range of ids `[from, to)`; `to` 0 is the end.
    pub fn forget_others(&mut self, from: u64, to: u64, kept: &BTreeSet<u64>) {
        let last = if to == 0 { u64::MAX } else { to - 1 };
        if from > last {
            return;
        }
        let gone: Vec<u64> =
            self.chunks.range(from..=last).map(|(id, _)| *id).filter(|id| !kept.contains(id)).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    /// The problem of a chunk, if it has one.
    pub fn get(&self, id: u64) -> Option<&Problem> {
        self.chunks.get(&id)
    }

    /// Chunks that lack replicas, the most endangered first, from `from` on.
    pub fn queue(&self, from: Rank) -> impl Iterator<Item = (Rank, &Problem)> {
        self.queue.range(from..).filter_map(|rank| Some((*rank, self.chunks.get(&rank.1)?)))
    }

    /// Chunks with something to drop or delete, by id, from `from` on.
    pub fn waste(&self, from: u64) -> impl Iterator<Item = (u64, &Problem)> {
        self.waste.range(from..).filter_map(|id| Some((*id, self.chunks.get(id)?)))
    }

    /// Sums over all of them.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn count(&mut self, problem: &Problem, add: bool) {
        let change = |total: &mut u64, by: u64| {
            *total = if add { total.saturating_add(by) } else { total.saturating_sub(by) };
        };
        let verdict = &problem.verdict;
        change(&mut self.totals.under_replicated, u64::from(verdict.lack > 0));
        change(&mut self.totals.missing, u64::from(verdict.missing));
        change(&mut self.totals.surplus, u64::from(verdict.surplus.is_some()));
        if is_repairable(verdict) {
            change(&mut self.totals.bytes_left, problem.chunk.length.saturating_mul(verdict.lack as u64));
        }
    }
}

fn is_repairable(verdict: &Verdict) -> bool {
    verdict.lack > 0 && (!verdict.missing || verdict.salvage)
}

fn has_waste(verdict: &Verdict) -> bool {
    verdict.surplus.is_some() || verdict.drop_bad.is_some() || !verdict.delete.is_empty()
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::Liveness;

    use super::*;
    use crate::plan::Node;

    fn nodes() -> Nodes {
        let node = |liveness| Node::roomy(liveness, String::new());
        (1..=5).map(|id| (id, node(if id <= 4 { Liveness::Live } else { Liveness::Dead }))).collect()
    }

    fn chunk(replicas: &[u32]) -> Holding {
        Holding { length: 10, wanted: 3, live: true, replicas: replicas.to_vec(), ..Holding::default() }
    }

    #[test]
    fn the_most_endangered_come_first_and_totals_follow() {
        let mut problems = Problems::default();
        problems.file(1, chunk(&[1, 2]), &nodes());
        problems.file(2, chunk(&[1, 2, 3]), &nodes());
        problems.file(3, chunk(&[1]), &nodes());
        problems.file(4, chunk(&[5]), &nodes());
        problems.file(5, chunk(&[1, 2, 3, 4]), &nodes());
        let order: Vec<u64> = problems.queue((0, 0)).map(|((_, id), _)| id).collect();
        assert_eq!(order, [3, 1]);
        assert_eq!(problems.waste(0).map(|(id, _)| id).collect::<Vec<_>>(), [5]);
        let totals = Totals { under_replicated: 3, missing: 1, surplus: 1, bytes_left: 30 };
        assert_eq!(problems.totals(), totals);
        problems.file(3, chunk(&[1, 2, 3]), &nodes());
        assert!(problems.get(3).is_none());
        problems.forget_others(0, 5, &BTreeSet::from([1]));
        assert!(problems.get(1).is_some() && problems.get(5).is_some());
        problems.forget_others(0, 0, &BTreeSet::new());
        assert_eq!(problems.totals(), Totals::default());
    }
}
