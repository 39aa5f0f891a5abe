//! A toy cluster that the planners look after: nodes die, return, lose and spoil replicas, orders fail, and when the
//! faults stop everything must end at the wanted number of replicas. Records change by the real state machine.

use std::collections::{BTreeMap, BTreeSet};

use cairn_proto::control::ReplicaReport;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AddReplica, AdminState, AllocateChunk, ChunkState, Command, CommandBatch, DropReplica, ForgetReplica,
    FormCluster, Liveness, Mutation, OpenSession, RegisterDatanode, SealChunk, SetDatanodeState, outcome,
};
use cairn_proto::store::Chunk;
use proptest::prelude::*;
use prost::Message;

use super::backoff::Backoff;
use super::placement::{Ask, choose};
use super::problems::Problems;
use super::reconcile::{Action, Stretch, reconcile};
use super::repair::{Copy, Flights, Limits, plan};
use super::verdict::Holding;
use super::{Node, Nodes};
use crate::memory::Tables;
use crate::store::{Table, Txn, View};
use crate::{apply, key, records};

const LENGTH: u64 = 1000;
const LIMITS: Limits = Limits { per_target: 2, per_source: 2, total: 5, bytes: 4 * LENGTH, looks: 8 };

/// What may happen to the cluster.
#[derive(Debug, Clone)]
enum Event {
    Kill(u32),
    Suspect(u32),
    Return(u32),
    Wipe(u32),
    /// Damages one block.
    Spoil(u32, u64, u8),
    Leave(u32),
    /// The next orders fail.
    Fail(u8),
    /// Ticks without a fault.
    Run(u8),
}

struct Disk {
    /// By chunk: a bit for each block that is good.
    replicas: BTreeMap<u64, u8>,
}

/// Blocks of a chunk, all of them good.
const WHOLE: u8 = 0b111;

struct Cluster {
    store: Tables,
    nodes: Nodes,
    disks: BTreeMap<u32, Disk>,
    known_bad: BTreeSet<(u64, u32)>,
    problems: Problems,
    flights: Flights,
    backoff: Backoff,
    resume: Option<super::problems::Rank>,
    now_ms: u64,
    failing: u8,
}

impl Cluster {
    fn new(nodes: u32, chunks: u64, wanted: u32) -> Cluster {
        let mut cluster = Cluster {
            store: Tables::default(),
            nodes: Nodes::new(),
            disks: BTreeMap::new(),
            known_bad: BTreeSet::new(),
            problems: Problems::default(),
            flights: Flights::default(),
            backoff: Backoff::default(),
            resume: None,
            now_ms: 0,
            failing: 0,
        };
        let form =
            FormCluster { cluster_id: "toy".into(), default_replication: wanted, ..FormCluster::default() };
        cluster.propose(0, Op::FormCluster(form));
        for number in 1..=nodes {
            cluster.add_node(number);
        }
        let session = match cluster.propose(0, Op::OpenSession(OpenSession::default())) {
            Some(outcome::Result::Session(opened)) => opened.session,
            other => panic!("no session: {other:?}"),
        };
        for _ in 0..chunks {
            cluster.add_chunk(session, wanted);
        }
        cluster
    }

    fn add_node(&mut self, number: u32) {
        let register = RegisterDatanode {
            uuid: format!("n{number}"),
            address: format!("n{number}:1"),
            ..RegisterDatanode::default()
        };
        let Some(outcome::Result::Datanode(registered)) = self.propose(0, Op::RegisterDatanode(register))
        else {
            panic!("node {number} is not registered");
        };
        let node = Node {
            liveness: Liveness::Live,
            admin: AdminState::Normal,
            host: format!("h{number}"),
            rack: format!("r{}", number % 2),
            available: 1 << 40,
            capacity: 1 << 41,
        };
        self.nodes.insert(registered.node, node);
        self.disks.insert(registered.node, Disk { replicas: BTreeMap::new() });
    }

    fn add_chunk(&mut self, session: u64, wanted: u32) {
        let none = BTreeSet::new();
        let ask = Ask { replicas: wanted as usize, room: LENGTH, host: "", avoid: &none, seed: self.now_ms };
        self.now_ms += 1;
        let targets = choose(&self.nodes, &ask).unwrap();
        let allocate =
            AllocateChunk { replication: wanted, targets: targets.clone(), ..AllocateChunk::default() };
        let Some(outcome::Result::Allocated(made)) = self.propose(session, Op::Allocate(allocate)) else {
            panic!("no chunk");
        };
        let id = made.chunk.unwrap().chunk;
        self.propose(session, Op::Seal(SealChunk { chunk: id, length: LENGTH }));
        // As if a file had bytes in it.
        let mut chunk = self.chunk(id);
        chunk.live_bytes = 1;
        self.store.put(Table::Chunk, &key::one(id), &chunk.encode_to_vec()).unwrap();
        for target in targets {
            self.disks.get_mut(&target).unwrap().replicas.insert(id, WHOLE);
        }
    }

    fn propose(&mut self, session: u64, op: Op) -> Option<outcome::Result> {
        static SEQ: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let seq = if session == 0 { 0 } else { SEQ.fetch_add(1, std::sync::atomic::Ordering::Relaxed) };
        let command =
            Command { session, seq, mutation: Some(Mutation { op: Some(op) }), ..Command::default() };
        let batch = CommandBatch { time_ns: 1 + self.now_ms as i64, commands: vec![command] };
        apply(&mut self.store, &batch).unwrap().remove(0).result
    }

    fn chunk(&self, id: u64) -> Chunk {
        records::chunk(&self.store, id).unwrap().unwrap()
    }

    fn chunks(&self) -> BTreeMap<u64, Chunk> {
        let mut chunks = BTreeMap::new();
        let mut visit = |key: &[u8], value: &[u8]| {
            chunks.insert(key::number(key, 0).unwrap(), records::decode(Table::Chunk, value).unwrap());
            std::ops::ControlFlow::Continue(())
        };
        self.store.scan(Table::Chunk, &[], &[], &mut visit).unwrap();
        chunks
    }

    fn is_live(&self, node: u32) -> bool {
        self.nodes[&node].liveness == Liveness::Live
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Kill(node) => self.set_liveness(node, Liveness::Dead),
            Event::Suspect(node) => self.set_liveness(node, Liveness::Suspect),
            Event::Return(node) => self.set_liveness(node, Liveness::Live),
            // Losing a disk takes replicas that count: only where others hold them, as any system must assume.
            Event::Wipe(node) => {
                let held: Vec<u64> = self.disks[&node].replicas.keys().copied().collect();
                let others = |id: &u64| (0..3).map(|block| self.holders(*id, block, Some(node))).min();
                let spared = held.into_iter().filter(|id| others(id) == Some(0)).collect();
                let spared: BTreeSet<u64> = spared;
                self.disks.get_mut(&node).unwrap().replicas.retain(|id, _| spared.contains(id));
            }
            Event::Spoil(node, chunk, block) => {
                // Nobody can tell a spoilt block before it is read: two are left, so that one may be given up.
                if self.holders(chunk, block, Some(node)) > 1
                    && let Some(good) = self.disks.get_mut(&node).unwrap().replicas.get_mut(&chunk)
                {
                    *good &= !(1 << block);
                }
            }
            Event::Leave(node) => {
                let state = AdminState::Decommissioning;
                self.nodes.get_mut(&node).unwrap().admin = state;
                self.propose(
                    0,
                    Op::SetDatanodeState(SetDatanodeState { node, state: state.into(), until_ns: 0 }),
                );
            }
            Event::Fail(times) => self.failing = times,
            Event::Run(ticks) => (0..ticks).for_each(|_| self.tick()),
        }
    }

    fn set_liveness(&mut self, node: u32, liveness: Liveness) {
        self.nodes.get_mut(&node).unwrap().liveness = liveness;
    }

    /// Replicas that have `block` good, on any disk of nodes the records count on, dead or alive.
    fn holders(&self, id: u64, block: u8, except: Option<u32>) -> usize {
        let listed = self.chunk(id).replicas;
        listed.iter().filter(|node| Some(**node) != except && self.good(**node, id) & 1 << block != 0).count()
    }

    /// The good blocks of what is on a disk.
    fn good(&self, node: u32, id: u64) -> u8 {
        self.disks[&node].replicas.get(&id).copied().unwrap_or(0)
    }

    /// One round of the executor: reconcile, finish the last round's copies, judge, drop and delete, order copies.
    fn tick(&mut self) {
        self.now_ms += 5_000;
        self.reconcile_all();
        let flying: Vec<Copy> = self.chunks().keys().flat_map(|id| self.landing(*id)).collect();
        flying.into_iter().for_each(|copy| self.land(copy));
        for (id, chunk) in self.chunks() {
            let bad = |node| self.known_bad.contains(&(id, node));
            if let Some(holding) = Holding::of(&chunk, bad) {
                self.problems.file(id, holding, &self.nodes);
            }
        }
        self.clear_waste();
        let when = (self.resume, self.now_ms, self.now_ms);
        let plan = plan(&self.problems, &self.nodes, &self.flights, &self.backoff, LIMITS, when);
        self.resume = plan.resume;
        assert!(plan.copies.len() + self.flights.total() <= LIMITS.total);
        for copy in plan.copies {
            assert!(!self.chunk(copy.chunk).dropping.contains(&copy.target), "copied to where it is dropped");
            assert!(!self.flights.has(copy.chunk, copy.target), "copied twice to the same node");
            self.flights.start(copy);
        }
        self.check_limits();
        self.backoff.prune(self.now_ms);
    }

    fn check_limits(&self) {
        let mut targets: BTreeMap<u32, usize> = BTreeMap::new();
        for id in self.chunks().keys() {
            for target in self.flights.targets_of(*id) {
                *targets.entry(target).or_default() += 1;
            }
        }
        assert!(targets.values().all(|count| *count <= LIMITS.per_target), "{targets:?}");
    }

    fn reconcile_all(&mut self) {
        let live: Vec<u32> = self.nodes.keys().copied().filter(|node| self.is_live(*node)).collect();
        let records = self.chunks();
        for node in live {
            let replicas: Vec<ReplicaReport> = self.disks[&node]
                .replicas
                .keys()
                .map(|id| ReplicaReport {
                    chunk: *id,
                    length: LENGTH,
                    sealed: true,
                    ..ReplicaReport::default()
                })
                .collect();
            let mine: BTreeMap<u64, Chunk> = records
                .iter()
                .filter(|(id, chunk)| {
                    let holders = chunk.replicas.iter().chain(&chunk.dropping);
                    self.disks[&node].replicas.contains_key(id) || holders.clone().any(|at| *at == node)
                })
                .map(|(id, chunk)| (*id, chunk.clone()))
                .collect();
            let stretch = Stretch {
                node,
                first: 0,
                next: 0,
                replicas: &replicas,
                records: &mine,
                next_chunk: u64::MAX,
                bad: &|chunk, node| self.known_bad.contains(&(chunk, node)),
                vouched: &|_, _| true,
            };
            let actions = reconcile(&stretch, &self.nodes).actions;
            for action in actions {
                self.act(node, action);
            }
        }
    }

    fn act(&mut self, node: u32, action: Action) {
        let chunk = action.chunk();
        if self.flights.has(chunk, node) {
            return;
        }
        match action {
            Action::Check { .. } => match self.disks[&node].replicas.get(&chunk) {
                Some(&WHOLE) => {
                    drop(self.propose(0, Op::AddReplica(AddReplica { chunk, node, ..Default::default() })))
                }
                _ => drop(self.known_bad.insert((chunk, node))),
            },
            Action::Drop { .. } => {
                self.propose(0, Op::DropReplica(DropReplica { chunk, node, bad: false }));
            }
            Action::Delete { .. } => panic!("no chunk of this model is purged"),
            // Every chunk is judged again at every tick.
            Action::Review { .. } => {}
            Action::Forget { .. } => {
                self.propose(0, Op::ForgetReplica(ForgetReplica { chunk, node }));
            }
        }
    }

    fn clear_waste(&mut self) {
        let waste: Vec<_> =
            self.problems.waste(0).map(|(id, problem)| (id, problem.verdict.clone())).collect();
        for (chunk, verdict) in waste {
            if self.flights.targets_of(chunk).next().is_some() {
                continue;
            }
            if let Some(node) = verdict.drop_bad {
                self.propose(0, Op::DropReplica(DropReplica { chunk, node, bad: true }));
                self.known_bad.remove(&(chunk, node));
            }
            if let Some(node) = verdict.surplus {
                self.propose(0, Op::DropReplica(DropReplica { chunk, node, bad: false }));
            }
            verdict.delete.iter().for_each(|node| self.delete(chunk, *node));
        }
    }

    fn delete(&mut self, chunk: u64, node: u32) {
        if !self.is_live(node) {
            return;
        }
        let record = self.chunk(chunk);
        assert!(record.dropping.contains(&node), "deleted while it is counted on");
        for block in (0..3).filter(|block| self.good(node, chunk) & 1 << block != 0) {
            assert!(
                self.holders(chunk, block, None) > 0,
                "the last good block {block} of {chunk} was deleted"
            );
        }
        self.disks.get_mut(&node).unwrap().replicas.remove(&chunk);
        self.propose(0, Op::ForgetReplica(ForgetReplica { chunk, node }));
    }

    fn landing(&self, id: u64) -> Vec<Copy> {
        let copy = |target| Copy { chunk: id, length: LENGTH, target, ..Copy::default() };
        self.flights.targets_of(id).map(copy).collect()
    }

    fn land(&mut self, copy: Copy) {
        let Some(copy) = self.flights.end(copy.chunk, copy.target) else { return };
        let live = copy.sources.iter().copied().filter(|source| self.is_live(*source));
        let blocks = live.fold(0, |blocks, source| blocks | self.good(source, copy.chunk));
        // What a source could not give is known to be bad from then on.
        for source in &copy.sources {
            if self.is_live(*source) && self.good(*source, copy.chunk) != WHOLE {
                self.known_bad.insert((copy.chunk, *source));
            }
        }
        if self.failing > 0 || blocks != WHOLE || !self.is_live(copy.target) {
            self.failing = self.failing.saturating_sub(1);
            self.backoff.fail(copy.chunk, copy.target, self.now_ms);
            return;
        }
        self.disks.get_mut(&copy.target).unwrap().replicas.insert(copy.chunk, WHOLE);
        self.known_bad.remove(&(copy.chunk, copy.target));
        self.propose(
            0,
            Op::AddReplica(AddReplica { chunk: copy.chunk, node: copy.target, ..Default::default() }),
        );
        self.backoff.clear(copy.chunk, copy.target);
    }

    fn settle(&mut self) {
        self.failing = 0;
        let all: Vec<u32> = self.nodes.keys().copied().collect();
        all.iter().for_each(|node| self.set_liveness(*node, Liveness::Live));
        (0..100).for_each(|_| self.tick());
        self.scrub();
        (0..100).for_each(|_| self.tick());
    }

    /// Every replica is read, and the spoilt ones are told of.
    fn scrub(&mut self) {
        for (node, disk) in &self.disks {
            let spoilt = disk.replicas.iter().filter(|(_, good)| **good != WHOLE);
            self.known_bad.extend(spoilt.map(|(chunk, _)| (*chunk, *node)));
        }
    }

    fn assert_whole(&self, wanted: usize) {
        let staying = self.nodes.values().filter(|node| node.admin == AdminState::Normal).count();
        for (id, chunk) in self.chunks() {
            assert_eq!(chunk.state(), ChunkState::Sealed);
            let good = chunk
                .replicas
                .iter()
                .filter(|node| self.nodes[node].admin == AdminState::Normal)
                .filter(|node| self.good(**node, id) == WHOLE)
                .count();
            assert_eq!(good, wanted.min(staying), "chunk {id}: {chunk:?}");
            assert!(chunk.dropping.is_empty(), "chunk {id}: {chunk:?}");
        }
        assert_eq!(self.flights.total(), 0);
    }
}

fn event(nodes: u32, chunks: u64) -> impl Strategy<Value = Event> {
    let node = 1..=nodes;
    prop_oneof![
        3 => node.clone().prop_map(Event::Kill),
        2 => node.clone().prop_map(Event::Suspect),
        3 => node.clone().prop_map(Event::Return),
        1 => node.clone().prop_map(Event::Wipe),
        2 => (node.clone(), 1..=chunks, 0..3u8).prop_map(|(node, chunk, block)| Event::Spoil(node, chunk, block)),
        1 => (1u8..20).prop_map(Event::Fail),
        6 => (1u8..6).prop_map(Event::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_chunk_ends_at_the_wanted_replicas_whatever_happened(
        events in prop::collection::vec(event(6, 12), 1..40),
        leaving in prop::option::of(1u32..=6),
    ) {
        let mut cluster = Cluster::new(6, 12, 3);
        cluster.happen(&Event::Run(2));
        for event in &events {
            cluster.happen(event);
        }
        if let Some(node) = leaving {
            cluster.happen(&Event::Leave(node));
        }
        cluster.settle();
        cluster.assert_whole(3);
    }
}

#[test]
fn a_dead_node_is_made_up_for_and_its_return_is_tidied_up() {
    let mut cluster = Cluster::new(5, 30, 3);
    cluster.happen(&Event::Kill(1));
    cluster.happen(&Event::Run(60));
    for chunk in cluster.chunks().values() {
        let live = chunk.replicas.iter().filter(|node| **node != 1).count();
        assert!(live >= 3, "{chunk:?}");
    }
    cluster.happen(&Event::Return(1));
    cluster.settle();
    cluster.assert_whole(3);
}

#[test]
fn as_many_nodes_as_replicas_heal_in_place() {
    let mut cluster = Cluster::new(3, 10, 3);
    cluster.happen(&Event::Wipe(2));
    cluster.happen(&Event::Spoil(1, 4, 2));
    cluster.settle();
    cluster.assert_whole(3);
}

#[test]
fn replicas_damaged_in_different_places_are_put_together() {
    for nodes in [3, 4, 6] {
        let mut cluster = Cluster::new(nodes, 4, 3);
        for id in 1..=4 {
            for (block, node) in (0..).zip(cluster.chunk(id).replicas) {
                cluster.happen(&Event::Spoil(node, id, block));
            }
        }
        cluster.scrub();
        assert!(cluster.known_bad.len() == 12, "none is whole");
        cluster.settle();
        cluster.assert_whole(3);
    }
}

#[test]
fn a_leaving_node_is_emptied() {
    let mut cluster = Cluster::new(5, 20, 3);
    cluster.happen(&Event::Leave(2));
    cluster.settle();
    cluster.assert_whole(3);
    assert!(cluster.chunks().values().all(|chunk| !chunk.replicas.contains(&2)));
    assert!(cluster.disks[&2].replicas.is_empty());
}

#[test]
fn fewer_nodes_than_wanted_replicas_is_no_storm() {
    let mut cluster = Cluster::new(2, 10, 3);
    cluster.happen(&Event::Run(10));
    assert_eq!(cluster.flights.total(), 0);
    assert_eq!(cluster.problems.totals().under_replicated, 10);
    cluster.add_node(3);
    cluster.settle();
    cluster.assert_whole(3);
}
