//! What is wrong with one sealed chunk.

use bytes::Bytes;
use cairn_proto::fs::{AdminState, ChunkState, Liveness};
use cairn_proto::store::Chunk;

use super::placement::{FULL_BELOW, crowding};
use super::{Node, Nodes};

/// What a planner needs of a sealed chunk's record, and what the leader believes beyond it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// Sealed length, in bytes.
    pub length: u64,
    /// Wanted replicas.
    pub wanted: usize,
    /// Some file has bytes in it.
    pub live: bool,
    /// BLAKE3 over its content, which every copy must come to; empty while it is not known.
    pub blake3: Bytes,
    /// Nodes counted on.
    pub replicas: Vec<u32>,
    /// Nodes told to delete theirs.
    pub dropping: Vec<u32>,
    /// Those of `replicas` that are known to be short, corrupt or gone.
    pub bad: Vec<u32>,
}

impl Holding {
    /// The view of a sealed chunk's record; `None` while the chunk is open: its writer looks after it.
    pub fn of(chunk: &Chunk, is_bad: impl Fn(u32) -> bool) -> Option<Holding> {
        (chunk.state() == ChunkState::Sealed).then(|| Holding {
            length: chunk.length,
            wanted: chunk.replication.max(1) as usize,
            live: !crate::records::is_dead(chunk),
            blake3: chunk.blake3.clone(),
            replicas: chunk.replicas.clone(),
            dropping: chunk.dropping.clone(),
            bad: chunk.replicas.iter().copied().filter(|node| is_bad(*node)).collect(),
        })
    }

    /// Good replicas whose nodes satisfy `of`.
    fn good<'a>(
        &'a self,
        nodes: &'a Nodes,
        of: impl Fn(&Node) -> bool + 'a,
    ) -> impl Iterator<Item = u32> + 'a {
        self.replicas
            .iter()
            .copied()
            .filter(|node| !self.bad.contains(node))
            .filter(move |node| nodes.get(node).is_some_and(&of))
    }

    /// Good replicas beside the one on `node`, on nodes heard just now, that `vouched` speaks for.
    pub fn backing(&self, nodes: &Nodes, node: u32, vouched: impl Fn(u32) -> bool) -> usize {
        let live = self.good(nodes, |node| node.liveness == Liveness::Live);
        live.filter(|holder| *holder != node && vouched(*holder)).count()
    }

    /// Whether a copy takes from the node's replica only what nobody else has good: it is bad, or was given up.
    pub fn is_last_resort(&self, node: u32) -> bool {
        self.bad.contains(&node) || !self.replicas.contains(&node)
    }

    /// Nodes to copy from: those with a good replica first, the likeliest to answer before the others. Those with a
    /// bad one come last, and those that are told to delete theirs: a copy takes from them the blocks that nobody else
    /// has good.
    pub fn sources(&self, nodes: &Nodes) -> Vec<u32> {
        let mut sources: Vec<(bool, u8, u32)> = self
            .replicas
            .iter()
            .chain(&self.dropping)
            .filter_map(|id| Some((*id, nodes.get(id)?)))
            .filter(|(_, node)| node.liveness != Liveness::Dead)
            .map(|(id, node)| (self.is_last_resort(id), preference(node.liveness), id))
            .collect();
        sources.sort_unstable();
        sources.into_iter().map(|(.., id)| id).collect()
    }
}

/// Readers and copiers ask live nodes first and dead ones last.
pub fn preference(liveness: Liveness) -> u8 {
    match liveness {
        Liveness::Live => 0,
        Liveness::Unknown => 1,
        Liveness::Suspect => 2,
        Liveness::Dead => 3,
    }
}

/// What should change about a chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Good replicas on nodes that are present: how far the chunk is from being lost.
    pub survivors: usize,
    /// Replicas to make.
    pub lack: usize,
    /// Nobody who is not dead holds a good replica.
    pub missing: bool,
    /// It is missing, but somebody who is not dead holds a bad replica, or one that was given up: a whole one may be put
    /// together from the good blocks of several.
    pub salvage: bool,
    /// The one to give up, when there are more than wanted.
    pub surplus: Option<u32>,
    /// A bad replica that can go: enough good ones are there, or a good one is live and only this one's room is left
    /// for another. Until then it may still have blocks that turn out to be bad elsewhere. One at a time.
    pub drop_bad: Option<u32>,
    /// Dropped replicas that can be deleted.
    pub delete: Vec<u32>,
}

impl Verdict {
    /// Nothing should change, and nothing is lost.
    pub fn is_fine(&self) -> bool {
        *self == Verdict { survivors: self.survivors, ..Verdict::default() }
    }
}

/// Judges a sealed chunk.
///
/// How long to wait for a silent node depends on the risk: a chunk with two live replicas waits until the node is
/// dead, so that a reboot starts no storm; one that is down to its last does not count on suspects.
/// A replica on a node that is leaving is a source and a survivor, but is not counted.
/// Nothing is given up or deleted unless a good replica is on a node heard just now.
pub fn judge(chunk: &Holding, nodes: &Nodes) -> Verdict {
    let survivors = chunk.good(nodes, Node::is_present).count();
    let firm = chunk.good(nodes, |node| node.is_present() && !node.is_leaving()).count();
    let weak = chunk.good(nodes, |node| node.liveness == Liveness::Suspect && !node.is_leaving()).count();
    let heard = chunk.good(nodes, |node| node.liveness == Liveness::Live).count();
    let reachable = |node: u32| nodes.get(&node).is_some_and(|node| node.liveness == Liveness::Live);

    let mut verdict = Verdict { survivors, ..Verdict::default() };
    if heard > 0 || !chunk.live {
        verdict.delete = chunk.dropping.iter().copied().filter(|node| reachable(*node)).collect();
    }
    if !chunk.live {
        return verdict;
    }
    let counted = if survivors <= 1 { firm } else { firm + weak };
    verdict.lack = chunk.wanted.saturating_sub(counted);
    verdict.missing = chunk.good(nodes, |node| node.liveness != Liveness::Dead).next().is_none();
    let holds = |node: &u32| nodes.get(node).is_some_and(|node| node.liveness != Liveness::Dead);
    verdict.salvage = verdict.missing && chunk.bad.iter().chain(&chunk.dropping).any(holds);
    if heard > 0 && (verdict.lack == 0 || !has_place(chunk, nodes)) {
        verdict.drop_bad = first_to_go(chunk, nodes);
    }
    if verdict.lack == 0 {
        verdict.surplus = surplus(chunk, nodes);
    }
    verdict
}

/// Whether one more replica has somewhere to go: a node without one, or beside a bad one that it then replaces.
fn has_place(chunk: &Holding, nodes: &Nodes) -> bool {
    nodes.iter().any(|(id, node)| {
        let taken = chunk.replicas.contains(id) && !chunk.bad.contains(id) || chunk.dropping.contains(id);
        let open = node.liveness == Liveness::Live && node.admin == AdminState::Normal;
        !taken && open && node.available >= chunk.length.saturating_add(FULL_BELOW)
    })
}

/// The bad replica to give up next; none while one that was given up is still being deleted. One that can be told to
/// be deleted comes first: nothing waits for the others.
fn first_to_go(chunk: &Holding, nodes: &Nodes) -> Option<u32> {
    let far = |node: &u32| nodes.get(node).is_none_or(|node| node.liveness != Liveness::Live);
    let is_going = chunk.dropping.iter().any(|node| !far(node));
    chunk.bad.iter().copied().min_by_key(|node| (far(node), *node)).filter(|_| !is_going)
}

/// The replica to give up: one on a leaving node first, then where the chunk is most crowded, then on one of the
/// nodes with the least free space.
fn surplus(chunk: &Holding, nodes: &Nodes) -> Option<u32> {
    let is_live = |node: &Node| node.liveness == Liveness::Live;
    let staying: Vec<u32> = chunk.good(nodes, |node| is_live(node) && !node.is_leaving()).collect();
    let leaving = chunk.good(nodes, |node| is_live(node) && node.is_leaving()).max();
    if staying.len() >= chunk.wanted && leaving.is_some() {
        return leaving;
    }
    if staying.len() <= chunk.wanted {
        return None;
    }
    let weight = |id: u32| {
        let node = nodes.get(&id)?;
        Some((crowding(nodes, &staying, node), std::cmp::Reverse(fullness_class(node)), lot(chunk, id)))
    };
    staying.iter().copied().max_by_key(|id| weight(*id))
}

/// Free space in sixteenths of the node: what a node reports lags behind what it was told to delete, so a finer
/// comparison would take a whole batch of surplus replicas from one node.
fn fullness_class(node: &Node) -> u64 {
    (u128::from(node.available) * 16 / u128::from(node.capacity.max(1))) as u64
}

/// A number that differs from chunk to chunk and from node to node, and is the same whenever it is asked for.
fn lot(chunk: &Holding, node: u32) -> u64 {
    let mut digest = [0; 8];
    digest.iter_mut().zip(&chunk.blake3).for_each(|(to, from)| *to = *from);
    let mixed = u64::from_le_bytes(digest) ^ chunk.length ^ (u64::from(node) << 32);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(states: &[Liveness]) -> Nodes {
        let node = |liveness| Node {
            liveness,
            admin: AdminState::Normal,
            host: String::new(),
            rack: "r".into(),
            available: 100 << 30,
            capacity: 200 << 30,
        };
        (1..).zip(states.iter().map(|liveness| node(*liveness))).collect()
    }

    fn chunk(replicas: &[u32]) -> Holding {
        Holding { length: 100, wanted: 3, live: true, replicas: replicas.to_vec(), ..Holding::default() }
    }

    use Liveness::{Dead, Live, Suspect, Unknown};

    #[test]
    fn three_live_replicas_are_fine() {
        assert!(judge(&chunk(&[1, 2, 3]), &nodes(&[Live, Live, Live])).is_fine());
        assert!(judge(&chunk(&[1, 2, 3]), &nodes(&[Live, Unknown, Unknown])).is_fine());
    }

    #[test]
    fn two_live_wait_for_dead_and_one_live_does_not() {
        let lack = |states: &[Liveness]| judge(&chunk(&[1, 2, 3]), &nodes(states)).lack;
        assert_eq!(lack(&[Live, Live, Suspect]), 0);
        assert_eq!(lack(&[Live, Live, Dead]), 1);
        assert_eq!(lack(&[Live, Suspect, Suspect]), 2);
        assert_eq!(lack(&[Live, Suspect, Dead]), 2);
    }

    #[test]
    fn a_chunk_nobody_holds_is_missing_and_suspects_are_not_nobody() {
        let verdict = judge(&chunk(&[1, 2]), &nodes(&[Dead, Dead]));
        assert!(verdict.missing);
        assert!(!judge(&chunk(&[1, 2]), &nodes(&[Suspect, Dead])).missing);
        assert!(judge(&Holding { bad: vec![1], ..chunk(&[1, 2]) }, &nodes(&[Live, Dead])).missing);
    }

    #[test]
    fn a_dead_chunk_needs_nothing() {
        let garbage = Holding { live: false, ..chunk(&[1]) };
        assert!(judge(&garbage, &nodes(&[Dead])).is_fine());
    }

    #[test]
    fn leaving_nodes_are_sources_but_not_counted_and_give_up_first() {
        let mut five = nodes(&[Live; 5]);
        five.get_mut(&1).unwrap().admin = AdminState::Decommissioning;
        let verdict = judge(&chunk(&[1, 2, 3]), &five);
        assert_eq!((verdict.lack, verdict.survivors, verdict.surplus), (1, 3, None));
        assert_eq!(chunk(&[1, 2, 3]).sources(&five), [1, 2, 3]);
        assert_eq!(judge(&chunk(&[1, 2, 3, 4]), &five).surplus, Some(1));
    }

    #[test]
    fn a_node_in_maintenance_is_counted_and_gets_nothing_new() {
        let mut four = nodes(&[Live, Live, Suspect, Live]);
        four.get_mut(&3).unwrap().admin = AdminState::Maintenance;
        assert_eq!(judge(&chunk(&[1, 2, 3]), &four).lack, 0);
        assert!(!four[&3].takes_replicas());
        four.get_mut(&2).unwrap().liveness = Dead;
        assert_eq!(judge(&chunk(&[1, 2, 3]), &four).lack, 2, "down to its last");
        four.values_mut().for_each(|node| node.liveness = Live);
        assert_eq!(judge(&chunk(&[1, 2, 3, 4]), &four).lack, 0);
        assert!(judge(&chunk(&[1, 2, 3, 4]), &four).surplus.is_some());
    }

    #[test]
    fn surplus_counts_only_nodes_heard_just_now() {
        let four = |last| judge(&chunk(&[1, 2, 3, 4]), &nodes(&[Live, Live, Live, last])).surplus;
        assert!(four(Live).is_some());
        assert_eq!(four(Suspect), None);
        assert_eq!(four(Unknown), None);
        assert_eq!(four(Dead), None);
    }

    #[test]
    fn surplus_goes_from_the_crowded_rack_and_there_from_the_fullest_node() {
        let mut four = nodes(&[Live; 4]);
        four.get_mut(&1).unwrap().rack = "other".into();
        four.get_mut(&1).unwrap().available = 0;
        four.get_mut(&3).unwrap().available = 1;
        assert_eq!(judge(&chunk(&[1, 2, 3, 4]), &four).surplus, Some(3));
    }

    #[test]
    fn surplus_of_many_chunks_goes_from_all_nodes_alike() {
        let four = nodes(&[Live; 4]);
        let mut given_up = [0; 5];
        for n in 0..400_u64 {
            let blake3 = Bytes::copy_from_slice(&n.wrapping_mul(0x0123_4567_89ab_cdef).to_be_bytes());
            let surplus = judge(&Holding { blake3, ..chunk(&[1, 2, 3, 4]) }, &four).surplus;
            given_up[surplus.unwrap() as usize] += 1;
        }
        assert!(given_up[1..].iter().all(|count| *count > 50), "{given_up:?}");
    }

    #[test]
    fn a_bad_replica_goes_when_enough_good_ones_are_there() {
        let bad = Holding { bad: vec![2], ..chunk(&[1, 2]) };
        let lacking = judge(&bad, &nodes(&[Live, Live]));
        assert_eq!((lacking.drop_bad, lacking.lack, lacking.survivors), (None, 2, 1));
        let enough = Holding { wanted: 1, ..bad.clone() };
        assert_eq!(judge(&enough, &nodes(&[Live, Live])).drop_bad, Some(2));
        assert_eq!(judge(&enough, &nodes(&[Suspect, Live])).drop_bad, None);
    }

    #[test]
    fn a_bad_replica_makes_room_where_there_is_no_other() {
        let bad = Holding { bad: vec![2], ..chunk(&[1, 2]) };
        let mut full = nodes(&[Live, Live]);
        full.values_mut().for_each(|node| node.available = 1000);
        assert_eq!(judge(&bad, &full).drop_bad, Some(2));
        let mut with_another = nodes(&[Live, Live, Live]);
        with_another.get_mut(&2).unwrap().available = 0;
        assert_eq!(judge(&bad, &with_another).drop_bad, None);
        full.get_mut(&1).unwrap().liveness = Suspect;
        assert_eq!(judge(&bad, &full).drop_bad, None, "nobody good was heard just now");
    }

    #[test]
    fn bad_replicas_go_one_after_the_other() {
        let all = nodes(&[Live, Live, Dead, Live, Live]);
        let bad = Holding { wanted: 1, bad: vec![3, 1, 2], ..chunk(&[1, 2, 3, 4]) };
        assert_eq!(judge(&bad, &all).drop_bad, Some(1));
        let going = Holding { dropping: vec![5], ..bad.clone() };
        assert_eq!(judge(&going, &all).drop_bad, None, "one is on its way out");
        let waits_for_the_dead = Holding { dropping: vec![3], bad: vec![1, 2], ..bad };
        assert_eq!(judge(&waits_for_the_dead, &all).drop_bad, Some(1));
    }

    #[test]
    fn a_chunk_whose_replicas_are_all_bad_is_put_together_from_them() {
        let bad = Holding { bad: vec![1, 2, 3], ..chunk(&[1, 2, 3]) };
        let verdict = judge(&bad, &nodes(&[Live, Live, Live]));
        assert!(verdict.missing && verdict.salvage);
        assert_eq!((verdict.lack, verdict.drop_bad, verdict.survivors), (3, None, 0));
        assert!(!judge(&bad, &nodes(&[Dead, Dead, Dead])).salvage);
        let some = Holding { bad: vec![1, 3], ..chunk(&[1, 2, 3, 4]) };
        assert_eq!(some.sources(&nodes(&[Live, Suspect, Dead, Live])), [4, 2, 1]);
    }

    #[test]
    fn what_was_given_up_is_the_last_source() {
        let given_up = Holding { bad: vec![1], dropping: vec![2], ..chunk(&[1]) };
        let verdict = judge(&given_up, &nodes(&[Live, Live, Live]));
        assert!(verdict.missing && verdict.salvage);
        assert!(verdict.delete.is_empty(), "nobody has it good");
        assert_eq!(given_up.sources(&nodes(&[Live, Live])), [1, 2]);
        assert_eq!(Holding { bad: vec![], ..given_up.clone() }.sources(&nodes(&[Suspect, Live])), [1, 2]);
        assert!(judge(&given_up, &nodes(&[Dead, Live])).salvage);
        assert!(!judge(&given_up, &nodes(&[Dead, Dead])).salvage);
    }

    #[test]
    fn only_good_replicas_that_somebody_vouches_for_back_a_loss() {
        let some = Holding { bad: vec![3], ..chunk(&[1, 2, 3, 4, 5]) };
        let all = nodes(&[Live, Live, Live, Suspect, Live]);
        assert_eq!(some.backing(&all, 3, |_| true), 3);
        assert_eq!(some.backing(&all, 1, |_| true), 2);
        assert_eq!(some.backing(&all, 1, |node| node == 5), 1);
    }

    #[test]
    fn dropped_replicas_are_deleted_only_while_a_good_one_is_live() {
        let dropped = Holding { dropping: vec![4], ..chunk(&[1]) };
        assert_eq!(judge(&dropped, &nodes(&[Live, Dead, Dead, Live])).delete, [4]);
        assert!(judge(&dropped, &nodes(&[Dead, Dead, Dead, Live])).delete.is_empty());
        assert!(judge(&dropped, &nodes(&[Live, Dead, Dead, Dead])).delete.is_empty(), "nobody to tell");
    }
}
