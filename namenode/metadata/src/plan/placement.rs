//! Which datanodes take a new chunk, or one more replica of an old one.
//!
//! Replicas are spread evenly: each next one goes to the racks that hold fewest of this chunk, there to the hosts
//! that hold fewest, and among those to a node chosen at random, weighted by free space. HDFS puts two of three
//! replicas into one rack to save a hop between racks; here the loss of any rack costs a chunk as little as the number
//! of racks allows, and one rule serves new chunks, repair and the choice of what to drop. The price is that a small
//! rack gets as many replicas as a large one until it is full.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::ErrorCode;
use cairn_proto::fs::{AdminState, Liveness};

use super::random::Random;
use super::{Node, Nodes};

/// Free bytes below which a node counts as full: one append could already fail.
pub const FULL_BELOW: u64 = 8 << 20;

/// Replicas for which even nodes are tried that the client just failed on.
///
/// A chunk that starts with one replica may be lost with one machine; a chain that fails again costs a retry.
const AT_LEAST: usize = 2;

/// A new chunk's wishes.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// Wanted replicas.
    pub replicas: usize,
    /// Bytes a replica may come to need.
    pub room: u64,
    /// The first replica goes to a node on this host, if one can take it.
    pub host: &'a str,
    /// Nodes the client just failed on.
    pub avoid: &'a BTreeSet<u32>,
    /// Decides among equals.
    pub seed: u64,
}

/// Distinct datanodes for a new chunk, in the order of its chain.
///
/// Fewer than wanted when fewer can take it: the chunk keeps its wish, and repair fulfils it once the chunk is sealed.
/// Suspect nodes are not used even then, as they would stall the chain. Errors: `NoSpace` when all who could be asked are
/// full; `NoDatanodes`, after which clients wait and ask again, when nobody can be asked, or one with room is only suspect:
/// it may be back in a moment.
pub fn choose(nodes: &Nodes, ask: &Ask<'_>) -> Result<Vec<u32>, ErrorCode> {
    let takers = || nodes.iter().filter(|(_, node)| node.takes_replicas());
    let open: Vec<(u32, &Node)> =
        takers().filter(|(_, node)| node.available >= FULL_BELOW).map(|(id, node)| (*id, node)).collect();
    if open.is_empty() {
        let may_be_back = |node: &Node| {
            node.liveness == Liveness::Suspect
                && node.admin == AdminState::Normal
                && node.available >= FULL_BELOW
        };
        let is_full = takers().next().is_some() && !nodes.values().any(may_be_back);
        return Err(if is_full { ErrorCode::NoSpace } else { ErrorCode::NoDatanodes });
    }
    let mut random = Random::new(ask.seed);
    let mut picks = Picks::default();
    for tier in 0..=TIGHT {
        let candidates =
            open.iter().filter(|(id, node)| rank(*id, node, ask) == Some(tier)).copied().collect();
        picks.fill(candidates, ask.replicas, ask.host, &mut random);
    }
    picks.fill(open, ask.replicas.min(AT_LEAST), ask.host, &mut random);
    if picks.chosen.is_empty() {
        return Err(ErrorCode::NoDatanodes);
    }
    Ok(picks.in_chain_order())
}

/// The last of the ranks that `rank` gives.
const TIGHT: u8 = 2;

/// 0 for nodes one wants, more for those one takes when there are too few; `None` for those the client just failed on.
fn rank(id: u32, node: &Node, ask: &Ask<'_>) -> Option<u8> {
    if ask.avoid.contains(&id) {
        None
    } else if node.available < ask.room {
        Some(TIGHT)
    } else {
        Some(u8::from(node.liveness != Liveness::Live))
    }
}

/// The node that should hold one more replica of a chunk of `length` bytes that `holders` hold already;
/// `may` excludes nodes for the caller's reasons. `None` when no node can.
pub fn choose_target(
    nodes: &Nodes,
    holders: &[u32],
    length: u64,
    seed: u64,
    may: impl Fn(u32) -> bool,
) -> Option<u32> {
    let candidates: Vec<(u32, &Node)> = nodes
        .iter()
        // Unknown nodes have no stream that an order could go down.
        .filter(|(_, node)| node.takes_replicas() && node.liveness == Liveness::Live)
        .filter(|(_, node)| node.available >= length.saturating_add(FULL_BELOW))
        .filter(|(id, _)| !holders.contains(id) && may(**id))
        .map(|(id, node)| (*id, node))
        .collect();
    let mut picks = Picks::default();
    for holder in holders {
        if let Some(node) = nodes.get(holder) {
            picks.count(node);
        }
    }
    picks.pick(&candidates, &mut Random::new(seed))
}

/// How crowded a node's rack and host are with replicas of one chunk. Less is better.
pub(super) fn crowding(nodes: &Nodes, holders: &[u32], node: &Node) -> (usize, usize) {
    let mut picks = Picks::default();
    for holder in holders.iter().filter_map(|holder| nodes.get(holder)) {
        picks.count(holder);
    }
    picks.crowding(node)
}

/// Nodes chosen so far, and how many of a chunk's replicas each rack and host has.
#[derive(Default)]
struct Picks<'a> {
    chosen: Vec<(u32, &'a Node)>,
    racks: BTreeMap<&'a str, usize>,
    hosts: BTreeMap<(&'a str, &'a str), usize>,
}

impl<'a> Picks<'a> {
    fn count(&mut self, node: &'a Node) {
        *self.racks.entry(&node.rack).or_default() += 1;
        *self.hosts.entry((&node.rack, &node.host)).or_default() += 1;
    }

    fn crowding(&self, node: &Node) -> (usize, usize) {
        let rack = self.racks.get(node.rack.as_str()).copied().unwrap_or(0);
        let host = self.hosts.get(&(node.rack.as_str(), node.host.as_str())).copied().unwrap_or(0);
        (rack, host)
    }

    fn pick(&self, candidates: &[(u32, &'a Node)], random: &mut Random) -> Option<u32> {
        let best = candidates.iter().map(|(_, node)| self.crowding(node)).min()?;
        let equals: Vec<_> = candidates.iter().filter(|(_, node)| self.crowding(node) == best).collect();
        let index = random.weighted(equals.iter().map(|(_, node)| node.available))?;
        equals.get(index).map(|(id, _)| *id)
    }

    fn fill(&mut self, mut candidates: Vec<(u32, &'a Node)>, upto: usize, host: &str, random: &mut Random) {
        candidates.retain(|(id, _)| !self.chosen.iter().any(|(chosen, _)| chosen == id));
        while self.chosen.len() < upto && !candidates.is_empty() {
            let local: Vec<_> = candidates.iter().filter(|(_, node)| node.host == host).copied().collect();
            let first = self.chosen.is_empty() && !host.is_empty() && !local.is_empty();
            let picked = if first { self.pick(&local, random) } else { self.pick(&candidates, random) };
            let Some(index) = candidates.iter().position(|(id, _)| Some(*id) == picked) else { break };
            let (id, node) = candidates.swap_remove(index);
            self.chosen.push((id, node));
            self.count(node);
        }
    }

    /// Nodes of one rack follow each other, so that the bytes cross between racks as few times as can be.
    fn in_chain_order(self) -> Vec<u32> {
        let mut racks: Vec<&str> = Vec::new();
        for (_, node) in &self.chosen {
            if !racks.contains(&node.rack.as_str()) {
                racks.push(&node.rack);
            }
        }
        let mut chain = self.chosen;
        chain.sort_by_key(|(_, node)| racks.iter().position(|rack| *rack == node.rack));
        chain.into_iter().map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_proto::fs::AdminState;

    const GIB: u64 = 1 << 30;

    fn node(rack: &str, host: &str) -> Node {
        Node {
            liveness: Liveness::Live,
            admin: AdminState::Normal,
            host: host.into(),
            rack: rack.into(),
            available: 10 * GIB,
            capacity: 20 * GIB,
        }
    }

    fn cluster(racks: &[&str]) -> Nodes {
        racks.iter().zip(1..).map(|(rack, id)| (id, node(rack, &format!("h{id}")))).collect()
    }

    fn ask(seed: u64, avoid: &BTreeSet<u32>) -> Ask<'_> {
        Ask { replicas: 3, room: 64 << 20, host: "", avoid, seed }
    }

    #[test]
    fn replicas_are_distinct_and_spread_over_racks() {
        let none = BTreeSet::new();
        let nodes = cluster(&["a", "a", "a", "b", "b", "b"]);
        for seed in 0..200 {
            let chosen = choose(&nodes, &ask(seed, &none)).unwrap();
            let distinct: BTreeSet<_> = chosen.iter().collect();
            let in_a = chosen.iter().filter(|id| nodes[id].rack == "a").count();
            assert_eq!(distinct.len(), 3);
            assert!(in_a == 1 || in_a == 2, "{chosen:?}");
            let crossings = chosen.windows(2).filter(|pair| nodes[&pair[0]].rack != nodes[&pair[1]].rack);
            assert_eq!(crossings.count(), 1, "{chosen:?}");
        }
    }

    #[test]
    fn hosts_with_several_datanodes_are_spread_over_too() {
        let none = BTreeSet::new();
        let nodes: Nodes =
            [(1, "x"), (2, "x"), (3, "x"), (4, "y"), (5, "z")].map(|(id, host)| (id, node("a", host))).into();
        for seed in 0..100 {
            let hosts: BTreeSet<_> =
                choose(&nodes, &ask(seed, &none)).unwrap().iter().map(|id| nodes[id].host.clone()).collect();
            assert_eq!(hosts.len(), 3);
        }
    }

    #[test]
    fn the_first_replica_is_on_the_clients_host() {
        let none = BTreeSet::new();
        let nodes = cluster(&["a", "a", "b", "b"]);
        for seed in 0..50 {
            let chosen = choose(&nodes, &Ask { host: "h3", ..ask(seed, &none) }).unwrap();
            assert_eq!(chosen[0], 3);
        }
        assert_eq!(choose(&nodes, &Ask { host: "elsewhere", ..ask(0, &none) }).unwrap().len(), 3);
    }

    #[test]
    fn suspect_dead_leaving_and_full_nodes_take_nothing() {
        let none = BTreeSet::new();
        let mut nodes = cluster(&["a"; 6]);
        nodes.get_mut(&1).unwrap().liveness = Liveness::Suspect;
        nodes.get_mut(&2).unwrap().liveness = Liveness::Dead;
        nodes.get_mut(&3).unwrap().admin = AdminState::Decommissioning;
        nodes.get_mut(&4).unwrap().available = FULL_BELOW - 1;
        for seed in 0..50 {
            let chosen: BTreeSet<_> = choose(&nodes, &ask(seed, &none)).unwrap().into_iter().collect();
            assert_eq!(chosen, [5, 6].into());
        }
    }

    #[test]
    fn tight_nodes_are_used_only_when_roomy_ones_are_too_few() {
        let none = BTreeSet::new();
        let mut nodes = cluster(&["a"; 4]);
        nodes.get_mut(&1).unwrap().available = 16 << 20;
        for seed in 0..50 {
            assert!(!choose(&nodes, &ask(seed, &none)).unwrap().contains(&1));
        }
        nodes.remove(&2);
        assert!(choose(&nodes, &ask(0, &none)).unwrap().contains(&1));
    }

    #[test]
    fn avoided_nodes_are_used_only_to_have_a_second_replica() {
        let nodes = cluster(&["a"; 3]);
        let one = BTreeSet::from([1]);
        let two = BTreeSet::from([1, 2]);
        let all = BTreeSet::from([1, 2, 3]);
        for seed in 0..50 {
            let chosen: BTreeSet<_> = choose(&nodes, &ask(seed, &one)).unwrap().into_iter().collect();
            assert_eq!(chosen, [2, 3].into());
            let chosen = choose(&nodes, &ask(seed, &two)).unwrap();
            assert_eq!((chosen.len(), chosen[0]), (2, 3));
            assert_eq!(choose(&nodes, &ask(seed, &all)).unwrap().len(), 2);
        }
        let alone = cluster(&["a"]);
        assert_eq!(choose(&alone, &ask(0, &one)).unwrap(), [1], "one avoided node is better than none");
    }

    #[test]
    fn errors_tell_full_from_absent() {
        let none = BTreeSet::new();
        let mut nodes = cluster(&["a"; 2]);
        nodes.values_mut().for_each(|node| node.available = 0);
        assert_eq!(choose(&nodes, &ask(0, &none)), Err(ErrorCode::NoSpace));
        let other = nodes.get_mut(&2).unwrap();
        (other.available, other.liveness) = (90 * GIB, Liveness::Suspect);
        assert_eq!(choose(&nodes, &ask(0, &none)), Err(ErrorCode::NoDatanodes), "it may be back in a moment");
        nodes.get_mut(&2).unwrap().liveness = Liveness::Dead;
        assert_eq!(choose(&nodes, &ask(0, &none)), Err(ErrorCode::NoSpace));
        nodes.values_mut().for_each(|node| node.liveness = Liveness::Dead);
        assert_eq!(choose(&nodes, &ask(0, &none)), Err(ErrorCode::NoDatanodes));
    }

    #[test]
    fn unknown_nodes_take_chunks_while_the_leader_is_new() {
        let none = BTreeSet::new();
        let mut nodes = cluster(&["a"; 3]);
        nodes.values_mut().for_each(|node| node.liveness = Liveness::Unknown);
        assert_eq!(choose(&nodes, &ask(0, &none)).unwrap().len(), 3);
    }

    #[test]
    fn emptier_nodes_get_more() {
        let none = BTreeSet::new();
        let mut nodes = cluster(&["a"; 3]);
        nodes.get_mut(&1).unwrap().available = 90 * GIB;
        let hits = (0..500)
            .filter(|seed| choose(&nodes, &Ask { replicas: 1, ..ask(*seed, &none) }).unwrap() == [1])
            .count();
        assert!(hits > 300, "{hits}");
    }

    #[test]
    fn a_repair_target_is_in_the_rack_that_has_least() {
        let nodes = cluster(&["a", "a", "a", "b"]);
        for seed in 0..50 {
            assert_eq!(choose_target(&nodes, &[1, 2], GIB, seed, |_| true), Some(4));
            assert_eq!(choose_target(&nodes, &[1, 2], GIB, seed, |id| id != 4), Some(3));
        }
        assert_eq!(choose_target(&nodes, &[1, 2], 11 * GIB, 0, |_| true), None);
        assert_eq!(choose_target(&nodes, &[1, 2, 3, 4], GIB, 0, |_| true), None);
    }
}
