//! Which replicas to move from full datanodes to empty ones.
//!
//! A move is a copy to the emptier node; the fuller one's replica is then one too many and is given up like any other
//! ([`super::verdict`]). So a chunk never has fewer replicas than before, whatever ends in between.

use cairn_proto::fs::{AdminState, Liveness};

use super::placement::{FULL_BELOW, crowding};
use super::verdict::{Holding, judge};
use super::{Node, Nodes};

/// How full nodes are, in hundredths of a percent.
const WHOLE: u64 = 10_000;

/// How evenly the nodes that take part are filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// Used space of all together, in hundredths of a percent.
    pub mean: u64,
    /// That of the emptiest.
    pub lowest: u64,
    /// That of the fullest.
    pub highest: u64,
    /// Bytes that lie beyond the threshold above the mean, or are missing below it: what is to be moved at least.
    pub excess: u64,
}

/// Nodes that give and take: a node that is away, or on its way out, is nobody's measure.
fn taking_part(nodes: &Nodes) -> impl Iterator<Item = (u32, &Node)> {
    let takes_part = |node: &Node| {
        node.liveness == Liveness::Live && node.admin == AdminState::Normal && node.capacity > 0
    };
    nodes.iter().map(|(id, node)| (*id, node)).filter(move |(_, node)| takes_part(node))
}

fn used(node: &Node) -> u64 {
    node.capacity.saturating_sub(node.available)
}

fn share(used: u64, capacity: u64) -> u64 {
    (u128::from(used) * u128::from(WHOLE) / u128::from(capacity.max(1))) as u64
}

fn fullness(node: &Node) -> u64 {
    share(used(node), node.capacity)
}

/// How even it is, with `threshold` percent to either side of the mean allowed; `None` without any node.
pub fn spread(nodes: &Nodes, threshold: u32) -> Option<Spread> {
    let slack = u64::from(threshold) * (WHOLE / 100);
    let sum =
        |of: fn(&Node) -> u64| taking_part(nodes).fold(0_u64, |sum, (_, node)| sum.saturating_add(of(node)));
    let mean = share(sum(used), sum(|node| node.capacity));
    let bytes =
        |share: u64, node: &Node| (u128::from(share) * u128::from(node.capacity) / u128::from(WHOLE)) as u64;
    let (mut above, mut below) = (0_u64, 0_u64);
    for (_, node) in taking_part(nodes) {
        let most = bytes((mean + slack).min(WHOLE), node);
        let least = bytes(mean.saturating_sub(slack), node);
        above = above.saturating_add(used(node).saturating_sub(most));
        below = below.saturating_add(least.saturating_sub(used(node)));
    }
    Some(Spread {
        mean,
        lowest: taking_part(nodes).map(|(_, node)| fullness(node)).min()?,
        highest: taking_part(nodes).map(|(_, node)| fullness(node)).max()?,
        excess: above.max(below),
    })
}

/// The fullest node and the emptiest, when either is more than `threshold` percent off the mean: who gives, who takes.
pub fn pair(nodes: &Nodes, threshold: u32) -> Option<(u32, u32)> {
    let spread = spread(nodes, threshold)?;
    let slack = u64::from(threshold) * (WHOLE / 100);
    if spread.highest <= spread.mean + slack && spread.lowest + slack >= spread.mean {
        return None;
    }
    let fullest = taking_part(nodes).max_by_key(|(id, node)| (fullness(node), *id))?;
    let emptiest = taking_part(nodes).min_by_key(|(id, node)| (fullness(node), *id))?;
    (fullest.0 != emptiest.0).then_some((fullest.0, emptiest.0))
}

/// Whether a chunk may be moved: nothing else is wrong with it, its replicas lie as far apart afterwards as before, and
/// the two nodes do not change places.
pub fn may_move(chunk: &Holding, nodes: &Nodes, from: u32, to: u32) -> bool {
    let (Some(giving), Some(taking)) = (nodes.get(&from), nodes.get(&to)) else { return false };
    let held =
        chunk.replicas.contains(&from) && !chunk.replicas.contains(&to) && !chunk.dropping.contains(&to);
    if !held || !chunk.live || chunk.length == 0 || !judge(chunk, nodes).is_fine() {
        return false;
    }
    let others: Vec<u32> = chunk.replicas.iter().copied().filter(|node| *node != from).collect();
    let after = |node: &Node, used: u64| share(used, node.capacity);
    taking.available >= chunk.length.saturating_add(FULL_BELOW)
        && crowding(nodes, &others, taking) <= crowding(nodes, &others, giving)
        && after(giving, used(giving).saturating_sub(chunk.length))
            >= after(taking, used(taking).saturating_add(chunk.length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(used: &[u64]) -> Nodes {
        let node = |used: &u64| Node {
            available: 1_000 - used,
            capacity: 1_000,
            ..Node::roomy(Liveness::Live, format!("h{used}"))
        };
        (1..).zip(used.iter().map(node)).collect()
    }

    /// With room in units of a MiB, so that nobody counts as full.
    fn large(used: &[u64]) -> Nodes {
        let mut nodes = nodes(used);
        nodes.values_mut().for_each(|node| {
            node.available <<= 20;
            node.capacity <<= 20;
        });
        nodes
    }

    fn chunk(replicas: &[u32], length: u64) -> Holding {
        Holding { length, wanted: 3, live: true, replicas: replicas.to_vec(), ..Holding::default() }
    }

    #[test]
    fn within_the_threshold_there_is_nothing_to_do() {
        assert_eq!(pair(&nodes(&[500, 590, 410]), 10), None);
        assert_eq!(pair(&nodes(&[500, 620, 380]), 10), Some((2, 3)));
        assert_eq!(pair(&nodes(&[]), 10), None);
        assert_eq!(pair(&nodes(&[900]), 10), None);
    }

    #[test]
    fn an_empty_newcomer_is_filled_although_nobody_is_too_full() {
        let nodes = nodes(&[400, 400, 400, 400, 0]);
        assert_eq!(pair(&nodes, 10), Some((4, 5)));
        let spread = spread(&nodes, 10).unwrap();
        assert_eq!((spread.mean, spread.lowest, spread.highest, spread.excess), (3_200, 0, 4_000, 220));
    }

    #[test]
    fn nodes_that_are_away_or_leaving_count_for_nothing() {
        let mut three = nodes(&[500, 500, 0]);
        three.get_mut(&3).unwrap().liveness = Liveness::Suspect;
        assert_eq!(pair(&three, 10), None);
        let mut three = nodes(&[500, 500, 0]);
        three.get_mut(&3).unwrap().admin = AdminState::Decommissioning;
        assert_eq!(pair(&three, 10), None);
    }

    #[test]
    fn a_chunk_moves_if_nothing_is_lost_by_it() {
        let four = large(&[900, 500, 500, 100]);
        assert!(may_move(&chunk(&[1, 2, 3], 1 << 20), &four, 1, 4));
        assert!(!may_move(&chunk(&[1, 2, 4], 1 << 20), &four, 1, 4), "it is there already");
        assert!(!may_move(&chunk(&[1, 2], 1 << 20), &four, 1, 4), "it lacks a replica");
        assert!(!may_move(&Holding { bad: vec![1], ..chunk(&[1, 2, 3], 1) }, &four, 1, 4));
        assert!(!may_move(&Holding { dropping: vec![4], ..chunk(&[1, 2, 3], 1) }, &four, 1, 4));
        assert!(!may_move(&chunk(&[1, 2, 3], 500 << 20), &four, 1, 4), "they would change places");
    }

    #[test]
    fn a_move_does_not_bring_replicas_closer_together() {
        let mut four = large(&[900, 500, 500, 100]);
        for (id, rack) in [(1, "a"), (2, "b"), (3, "c"), (4, "b")] {
            four.get_mut(&id).unwrap().rack = rack.into();
        }
        assert!(!may_move(&chunk(&[1, 2, 3], 1), &four, 1, 4), "two would be in rack b");
        four.get_mut(&4).unwrap().rack = "a".into();
        assert!(may_move(&chunk(&[1, 2, 3], 1), &four, 1, 4));
    }

    #[test]
    fn moves_come_to_an_end_with_all_within_the_threshold() {
        let mut nodes = large(&[800, 750, 700, 0, 10]);
        let length = 16 << 20;
        let mut moves = 0;
        while let Some((from, to)) = pair(&nodes, 5) {
            let held: Vec<u32> = (1..=5).filter(|id| *id != to).take(3).collect();
            let held = if held.contains(&from) { held } else { vec![from, held[0], held[1]] };
            assert!(may_move(&chunk(&held, length), &nodes, from, to), "{from} to {to}");
            nodes.get_mut(&from).unwrap().available += length;
            nodes.get_mut(&to).unwrap().available -= length;
            moves += 1;
            assert!(moves < 200);
        }
        assert!(spread(&nodes, 5).unwrap().excess == 0);
    }
}
