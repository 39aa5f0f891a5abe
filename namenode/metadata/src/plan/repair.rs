//! Which replicas to copy where, now.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Nodes;
use super::backoff::Backoff;
use super::placement::choose_target;
use super::problems::{Problem, Problems, Rank};
use super::verdict::judge;

/// How much may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Copies that one node writes at once.
    pub per_target: usize,
    /// Copies that one node is read for at once.
    pub per_source: usize,
    /// Copies in the whole cluster at once.
    pub total: usize,
    /// Bytes that may be started now; the last copy may go over it.
    pub bytes: u64,
    /// Chunks looked at in one plan.
    pub looks: usize,
}

/// One replica to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// What to copy.
    pub chunk: u64,
    /// Its sealed length, in bytes.
    pub length: u64,
    /// Who gets it. One that counts as holding it already has a bad replica, which the copy replaces.
    pub target: u32,
    /// Who has it, in the order to ask; the first one carries the load.
    pub sources: Vec<u32>,
    /// BLAKE3 over its content; empty while it is not known.
    pub blake3: Bytes,
    /// The target has a bad replica.
    pub replaces: bool,
}

/// Copies on their way.
#[derive(Debug, Clone, Default)]
pub struct Flights {
    chunks: BTreeMap<u64, BTreeMap<u32, Copy>>,
    targets: BTreeMap<u32, usize>,
    sources: BTreeMap<u32, usize>,
    total: usize,
}

impl Flights {
    /// A copy was ordered.
    pub fn start(&mut self, copy: Copy) {
        *self.targets.entry(copy.target).or_default() += 1;
        if let Some(source) = copy.sources.first() {
            *self.sources.entry(*source).or_default() += 1;
        }
        self.total += 1;
        let (chunk, target) = (copy.chunk, copy.target);
        if let Some(replaced) = self.chunks.entry(chunk).or_default().insert(target, copy) {
            self.discount(&replaced);
        }
    }

    /// A copy is done, failed or given up.
    pub fn end(&mut self, chunk: u64, target: u32) -> Option<Copy> {
        let copies = self.chunks.get_mut(&chunk)?;
        let copy = copies.remove(&target)?;
        if copies.is_empty() {
            self.chunks.remove(&chunk);
        }
        self.discount(&copy);
        Some(copy)
    }

    fn discount(&mut self, copy: &Copy) {
        decrement(&mut self.targets, copy.target);
        if let Some(source) = copy.sources.first() {
            decrement(&mut self.sources, *source);
        }
        self.total -= 1;
    }

    /// All of them together.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Nodes a copy of `chunk` is on its way to.
    pub fn targets_of(&self, chunk: u64) -> impl Iterator<Item = u32> + '_ {
        self.chunks.get(&chunk).into_iter().flat_map(|copies| copies.keys().copied())
    }

    /// How many copies are on their way to `target`.
    pub fn count_to(&self, target: u32) -> usize {
        self.targets.get(&target).copied().unwrap_or(0)
    }

    /// Whether any copy is on its way to `target`.
    pub fn any_to(&self, target: u32) -> bool {
        self.targets.contains_key(&target)
    }

    /// Whether a copy of `chunk` is on its way to `target`.
    pub fn has(&self, chunk: u64, target: u32) -> bool {
        self.chunks.get(&chunk).is_some_and(|copies| copies.contains_key(&target))
    }
}

fn decrement(counts: &mut BTreeMap<u32, usize>, node: u32) {
    if let Some(count) = counts.get_mut(&node) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&node);
        }
    }
}

/// Copies to order, and where the next plan goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of their urgency.
    pub copies: Vec<Copy>,
    /// Set when the plan ran out of looks and not out of chunks or limits: chunks that cannot be helped now must not
    /// keep those behind them waiting.
    pub resume: Option<Rank>,
}

/// Plans copies: the most endangered chunk first, one copy a chunk before anybody's second, within the limits.
///
/// `from` is the last plan's `resume`, or the start.
pub fn plan(
    problems: &Problems,
    nodes: &Nodes,
    flights: &Flights,
    backoff: &Backoff,
    limits: Limits,
    (from, seed, now_ms): (Option<Rank>, u64, u64),
) -> Plan {
    let mut draft = Draft {
        nodes,
        flights: flights.clone(),
        backoff,
        limits,
        seed,
        now_ms,
        bytes: 0,
        free_targets: free_targets(nodes, flights, limits.per_target),
        copies: Vec::new(),
        seconds: Vec::new(),
    };
    let looks = limits.looks.div_ceil(2).max(1);
    // Half of the looks go to the front, so that the most endangered are always looked at; half go on further back.
    let mut resume = draft.walk(problems, (0, 0), looks);
    if let Some(front) = resume {
        resume = draft.walk(problems, from.map_or(front, |from| from.max(front)), looks);
    }
    draft.give_seconds();
    Plan { copies: draft.copies, resume }
}

fn free_targets(nodes: &Nodes, flights: &Flights, per_target: usize) -> usize {
    let is_free = |id: &u32| flights.targets.get(id).copied().unwrap_or(0) < per_target;
    nodes.iter().filter(|(id, node)| node.takes_replicas() && is_free(id)).count()
}

struct Draft<'a> {
    nodes: &'a Nodes,
    flights: Flights,
    backoff: &'a Backoff,
    limits: Limits,
    seed: u64,
    now_ms: u64,
    bytes: u64,
    free_targets: usize,
    copies: Vec<Copy>,
    /// Chunks that lack more than the copy they have got.
    seconds: Vec<(u64, &'a Problem)>,
}

impl<'a> Draft<'a> {
    fn is_exhausted(&self) -> bool {
        self.flights.total >= self.limits.total || self.bytes >= self.limits.bytes || self.free_targets == 0
    }

    /// Looks at `looks` chunks from `from` on; where it stopped when there are more.
    fn walk(&mut self, problems: &'a Problems, from: Rank, looks: usize) -> Option<Rank> {
        for (look, (rank, problem)) in problems.queue(from).enumerate() {
            if look >= looks {
                return Some(rank);
            }
            if self.is_exhausted() {
                return None;
            }
            if self.flights.targets_of(rank.1).next().is_none() {
                self.copy(rank.1, problem);
            }
            if problem.verdict.lack > 1 && self.flights.targets_of(rank.1).next().is_some() {
                self.seconds.push((rank.1, problem));
            }
        }
        None
    }

    fn give_seconds(&mut self) {
        for (id, problem) in std::mem::take(&mut self.seconds) {
            if self.is_exhausted() {
                return;
            }
            self.copy(id, problem);
        }
    }

    /// Plans one copy of a chunk, if it still lacks one and somebody can give and somebody can take it.
    fn copy(&mut self, id: u64, problem: &Problem) -> Option<()> {
        let chunk = &problem.chunk;
        // Liveness may have changed since the chunk was filed.
        let verdict = judge(chunk, self.nodes);
        let mut holders = chunk.replicas.clone();
        holders.extend(self.flights.targets_of(id));
        if verdict.lack <= holders.len() - chunk.replicas.len() {
            return None;
        }
        let sources = self.sources(problem)?;
        // Racks are counted by those who will stay; a dead node's rack is not taken.
        holders.retain(|node| self.nodes.get(node).is_some_and(|node| node.is_present()));
        let is_free = |node: u32| {
            !self.backoff.waits(id, node, self.now_ms)
                && self.flights.targets.get(&node).copied().unwrap_or(0) < self.limits.per_target
        };
        let elsewhere = choose_target(self.nodes, &holders, chunk.length, self.seed ^ id, |node| {
            !chunk.replicas.contains(&node) && !chunk.dropping.contains(&node) && is_free(node)
        });
        // No bad replica is given up before there are enough good ones, so one may be replaced where it is.
        let target = elsewhere.or_else(|| {
            choose_target(self.nodes, &[], chunk.length, self.seed ^ id, |node| {
                chunk.bad.contains(&node) && !self.flights.has(id, node) && is_free(node)
            })
        })?;
        let copy = Copy {
            chunk: id,
            length: chunk.length,
            target,
            sources,
            blake3: chunk.blake3.clone(),
            replaces: chunk.replicas.contains(&target),
        };
        self.bytes = self.bytes.saturating_add(copy.length.max(1));
        self.flights.start(copy.clone());
        if self.flights.targets.get(&target).copied().unwrap_or(0) >= self.limits.per_target {
            self.free_targets = self.free_targets.saturating_sub(1);
        }
        self.copies.push(copy);
        Some(())
    }

    /// Sources with the least busy of the likeliest first; `None` while all are busy.
    fn sources(&self, problem: &Problem) -> Option<Vec<u32>> {
        let busy = |node: u32| self.flights.sources.get(&node).copied().unwrap_or(0);
        let mut sources = problem.chunk.sources(self.nodes);
        let liveness =
            |node: &u32| self.nodes.get(node).map(|node| super::verdict::preference(node.liveness));
        sources.sort_by_key(|node| {
            let is_last = problem.chunk.is_last_resort(*node);
            (is_last, busy(*node) >= self.limits.per_source, liveness(node), busy(*node))
        });
        let first = *sources.first()?;
        (busy(first) < self.limits.per_source).then_some(sources)
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::Liveness;

    use super::*;
    use crate::plan::Node;
    use crate::plan::verdict::Holding;

    const LIMITS: Limits = Limits { per_target: 2, per_source: 2, total: 100, bytes: u64::MAX, looks: 1000 };

    fn nodes(count: u32) -> Nodes {
        Node::live(count)
    }

    fn chunk(replicas: &[u32]) -> Holding {
        Holding { length: 100, wanted: 3, live: true, replicas: replicas.to_vec(), ..Holding::default() }
    }

    fn problems(nodes: &Nodes, chunks: &[(u64, Holding)]) -> Problems {
        let mut problems = Problems::default();
        chunks.iter().for_each(|(id, chunk)| problems.file(*id, chunk.clone(), nodes));
        problems
    }

    fn run(
        problems: &Problems,
        nodes: &Nodes,
        flights: &Flights,
        limits: Limits,
        from: Option<Rank>,
    ) -> Plan {
        plan(problems, nodes, flights, &Backoff::default(), limits, (from, 1, 0))
    }

    #[test]
    fn endangered_first_and_nobodys_second_copy_before_everybodys_first() {
        let nodes = nodes(6);
        let problems = problems(&nodes, &[(1, chunk(&[1, 2])), (2, chunk(&[3])), (3, chunk(&[4, 5]))]);
        let plan = run(&problems, &nodes, &Flights::default(), LIMITS, None);
        let order: Vec<u64> = plan.copies.iter().map(|copy| copy.chunk).collect();
        assert_eq!(order, [2, 1, 3, 2]);
        let targets: Vec<u32> =
            plan.copies.iter().filter(|copy| copy.chunk == 2).map(|copy| copy.target).collect();
        assert!(targets[0] != targets[1] && !targets.contains(&3));
    }

    #[test]
    fn copies_on_their_way_count() {
        let nodes = nodes(6);
        let problems = problems(&nodes, &[(1, chunk(&[1, 2]))]);
        let mut flights = Flights::default();
        flights.start(Copy { chunk: 1, length: 100, target: 3, sources: vec![1], ..Copy::default() });
        assert!(run(&problems, &nodes, &flights, LIMITS, None).copies.is_empty());
        assert!(flights.end(1, 3).is_some() && flights.end(1, 3).is_none());
        assert_eq!(flights.total(), 0);
        assert_eq!(run(&problems, &nodes, &flights, LIMITS, None).copies.len(), 1);
    }

    #[test]
    fn limits_hold() {
        let nodes = nodes(5);
        let many: Vec<_> = (1..=50).map(|id| (id, chunk(&[1, 2]))).collect();
        let problems = problems(&nodes, &many);
        let copies = |limits| run(&problems, &nodes, &Flights::default(), limits, None).copies;
        assert_eq!(copies(LIMITS).len(), 4, "two sources of two each");
        assert_eq!(copies(Limits { total: 3, ..LIMITS }).len(), 3);
        assert_eq!(copies(Limits { bytes: 150, ..LIMITS }).len(), 2);
        assert_eq!(copies(Limits { per_source: 100, per_target: 1, ..LIMITS }).len(), 3);
        assert!(copies(Limits { bytes: 0, ..LIMITS }).is_empty());
    }

    #[test]
    fn chunks_that_cannot_be_helped_do_not_keep_others_waiting() {
        let mut nodes = nodes(4);
        let stuck: Vec<_> = (1..=20).map(|id| (id, chunk(&[1, 2]))).collect();
        let mut problems = problems(&nodes, &stuck);
        nodes.values_mut().skip(2).for_each(|node| node.available = 200);
        problems.file(100, Holding { length: 0, ..chunk(&[1, 2]) }, &nodes);
        nodes.values_mut().skip(2).for_each(|node| node.available = super::super::placement::FULL_BELOW);
        let limits = Limits { looks: 8, ..LIMITS };
        let (mut from, mut found) = (None, Vec::new());
        for _ in 0..5 {
            let plan = run(&problems, &nodes, &Flights::default(), limits, from);
            found.extend(plan.copies.iter().map(|copy| copy.chunk));
            from = plan.resume;
        }
        assert_eq!(found, [100]);
        assert_eq!(from, None);
    }

    #[test]
    fn a_failed_copy_goes_elsewhere_and_the_target_still_takes_others() {
        let nodes = nodes(4);
        let problems = problems(&nodes, &[(1, chunk(&[1, 2])), (2, chunk(&[1, 2]))]);
        let mut backoff = Backoff::default();
        backoff.fail(1, 3, 0);
        for seed in 0..20 {
            let plan = plan(&problems, &nodes, &Flights::default(), &backoff, LIMITS, (None, seed, 1));
            assert_eq!(plan.copies.iter().find(|copy| copy.chunk == 1).unwrap().target, 4);
            assert!(plan.copies.iter().any(|copy| copy.chunk == 2));
        }
    }

    #[test]
    fn a_bad_replica_is_made_up_for_elsewhere_and_else_replaced_where_it_is() {
        let bad = Holding { bad: vec![1, 2, 3], ..chunk(&[1, 2, 3]) };
        let copies = |count| {
            let nodes = nodes(count);
            let problems = problems(&nodes, &[(1, bad.clone()), (2, chunk(&[1]))]);
            run(&problems, &nodes, &Flights::default(), LIMITS, None).copies
        };
        let first = copies(4).remove(0);
        assert_eq!((first.chunk, first.target, first.sources.len()), (1, 4, 3));
        let first = copies(3).remove(0);
        assert!((first.chunk, first.sources.len()) == (1, 3) && first.target <= 3);
        let nodes = nodes(3);
        let one = problems(&nodes, &[(1, Holding { bad: vec![2], ..chunk(&[1, 2, 3]) })]);
        let copies = run(&one, &nodes, &Flights::default(), LIMITS, None).copies;
        assert_eq!((copies.len(), copies[0].target, copies[0].sources.last()), (1, 2, Some(&2)));
    }

    #[test]
    fn no_copy_goes_where_one_is_being_dropped() {
        let nodes = nodes(4);
        let dropping = Holding { dropping: vec![3, 4], ..chunk(&[1, 2]) };
        let problems = problems(&nodes, &[(1, dropping)]);
        assert!(run(&problems, &nodes, &Flights::default(), LIMITS, None).copies.is_empty());
    }

    #[test]
    fn live_sources_are_asked_first_and_the_dead_never() {
        let mut nodes = nodes(6);
        nodes.get_mut(&1).unwrap().liveness = Liveness::Suspect;
        nodes.get_mut(&3).unwrap().liveness = Liveness::Dead;
        let problems = problems(&nodes, &[(1, chunk(&[1, 2, 3]))]);
        let plan = run(&problems, &nodes, &Flights::default(), LIMITS, None);
        assert!(plan.copies.iter().all(|copy| copy.sources == [2, 1]));
        assert_eq!(plan.copies.len(), 2);
    }
}
