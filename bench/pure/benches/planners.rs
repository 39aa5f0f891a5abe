//! The planners, in a cluster of a thousand datanodes: what the leader thinks about while it holds its lock.

use std::collections::BTreeSet;
use std::hint::black_box;

use cairn_metadata::plan::backoff::Backoff;
use cairn_metadata::plan::placement::{Ask, choose};
use cairn_metadata::plan::problems::Problems;
use cairn_metadata::plan::repair::{Flights, Limits, plan};
use cairn_metadata::plan::verdict::Holding;
use cairn_metadata::plan::{Node, Nodes};
use cairn_proto::fs::{AdminState, Liveness};
use criterion::{Criterion, criterion_group, criterion_main};

const NODES: u32 = 1_000;
const RACKS: u32 = 40;
const CHUNK: u64 = 64 << 20;
/// Chunks of a rack that is lost.
const LOST: u64 = 100_000;

fn cluster() -> Nodes {
    let node = |id: u32| Node {
        liveness: Liveness::Live,
        admin: AdminState::Normal,
        host: format!("host{id}"),
        rack: format!("rack{}", id % RACKS),
        available: u64::from(2 + id % 3) << 40,
        capacity: 8 << 40,
    };
    (1..=NODES).map(|id| (id, node(id))).collect()
}

fn place(criterion: &mut Criterion) {
    let (nodes, avoid) = (cluster(), BTreeSet::new());
    let mut seed = 0;
    criterion.bench_function("place a chunk among 1,000 datanodes", |bench| {
        bench.iter(|| {
            seed += 1;
            black_box(choose(&nodes, &Ask { replicas: 3, room: CHUNK, host: "", avoid: &avoid, seed }))
        });
    });
}

fn repair(criterion: &mut Criterion) {
    let mut nodes = cluster();
    for (_, node) in nodes.iter_mut().filter(|(id, _)| **id % RACKS == 0) {
        node.liveness = Liveness::Dead;
    }
    let lost: Vec<u32> = nodes.keys().copied().filter(|id| id % RACKS == 0).collect();
    let held = |chunk: u64| {
        let others = [1, 2].map(|step| (chunk * 7 + step * 13) as u32 % (NODES - RACKS) + 1);
        let mut replicas = vec![lost[chunk as usize % lost.len()]];
        replicas.extend(others);
        Holding { length: CHUNK, wanted: 3, live: true, replicas, ..Holding::default() }
    };
    criterion.bench_function("judge a chunk", |bench| {
        let mut problems = Problems::default();
        let mut chunk = 0;
        bench.iter(|| {
            chunk = (chunk + 1) % LOST;
            problems.file(chunk, held(chunk), &nodes);
        });
    });
    let mut problems = Problems::default();
    (0..LOST).for_each(|chunk| problems.file(chunk, held(chunk), &nodes));
    let limits = Limits { per_target: 2, per_source: 2, total: 256, bytes: u64::MAX, looks: 512 };
    criterion.bench_function("plan a round of repair with 100,000 chunks to repair", |bench| {
        let (flights, backoff) = (Flights::default(), Backoff::default());
        bench.iter(|| black_box(plan(&problems, &nodes, &flights, &backoff, limits, (None, 1, 1))));
    });
}

criterion_group!(benches, place, repair);
criterion_main!(benches);
