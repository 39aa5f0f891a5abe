//! What placement and repair do in a large cluster: how evenly it fills, how long repair takes, and how likely data is lost
//! when several datanodes fail at once, with replicas placed as the leader places them and within copysets (Cidon et al.,
//! "Copysets: Reducing the Frequency of Data Loss in Cloud Storage", USENIX ATC 2013).
//!
//!     cargo run --release -p cairn-metadata --example placement [NODES [RACKS [CHUNKS]]]
//!
//! The planners are the ones that ship; only time is simulated: a copy gets half of the bandwidth of its datanodes.

use std::collections::{BTreeMap, BTreeSet};

use cairn_metadata::plan::backoff::Backoff;
use cairn_metadata::plan::placement::{Ask, choose};
use cairn_metadata::plan::problems::Problems;
use cairn_metadata::plan::random::Random;
use cairn_metadata::plan::repair::{Copy, Flights, Limits, plan};
use cairn_metadata::plan::verdict::Holding;
use cairn_metadata::plan::{Node, Nodes};
use cairn_proto::fs::{AdminState, Liveness};

/// Bytes of a chunk.
const CHUNK: u64 = 64 << 20;
const REPLICAS: usize = 3;
/// How full the cluster is made, in percent.
const FULL: u64 = 60;
/// Bytes a second that a datanode writes, and reads, for repair.
const BANDWIDTH: u64 = 100 << 20;
/// The leader's round, in milliseconds.
const ROUND_MS: u64 = 200;
/// The leader's limits (`namenode/src/attend/settings.rs`).
const PER_NODE: usize = 2;
const LEAST_IN_ALL: usize = 256;
const LOOKS: usize = 512;
/// Draws of failed datanodes for each probability.
const DRAWS: usize = 2_000;

fn below(random: &mut Random, bound: u64) -> u64 {
    ((u128::from(random.draw()) * u128::from(bound)) >> 64) as u64
}

fn shuffle<T>(random: &mut Random, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(random, last as u64 + 1) as usize);
    }
}

fn main() {
    let number = |at: usize, default: u64| {
        std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"))
    };
    let (count, racks, chunks) = (number(1, 1_000), number(2, 40), number(3, 100_000));
    let empty = cluster(count, racks, chunks);
    println!(
        "{count} datanodes in {racks} racks, of three sizes (2:3:4), {chunks} chunks of 64 MiB, {REPLICAS} replicas"
    );
    println!("\nfilling to {FULL} %");
    println!("  placement             mean   emptiest    fullest   distinct sets of datanodes");
    let mut filled = empty.clone();
    let placed = fill(&mut filled, chunks);
    print_balance("as the leader places", &filled, &placed);
    let mut grouped = Vec::new();
    for scatter in [10, 30] {
        let mut nodes = empty.clone();
        let sets = copysets(&nodes, scatter, &mut Random::new(7));
        let placed = fill_copysets(&mut nodes, chunks, &sets);
        print_balance(&format!("copysets, scatter {scatter}"), &nodes, &placed);
        grouped.push((scatter, placed));
    }

    let in_all = LEAST_IN_ALL.max(count as usize);
    println!(
        "\nrepair at {} MiB/s a datanode, {PER_NODE} copies a datanode and {in_all} in all at once",
        BANDWIDTH >> 20
    );
    println!("  lost                 replicas lost   seconds   copies of the busiest target");
    let one: BTreeSet<u32> = BTreeSet::from([1]);
    repair("one datanode", &filled, &placed, &one);
    let rack: BTreeSet<u32> =
        filled.iter().filter(|(_, node)| node.rack == "rack0").map(|(id, _)| *id).collect();
    repair(&format!("a rack of {}", rack.len()), &filled, &placed, &rack);

    println!("\nprobability that some chunk is lost when datanodes fail at once, before repair");
    println!("  failed        as placed   copysets 10   copysets 30   as placed, 100 times the chunks");
    for failed in [3, 5, 10, 20, 50] {
        let sets = placed.iter().collect::<BTreeSet<_>>().len() as f64;
        let as_placed = loss(count, failed, &placed);
        let others: Vec<f64> = grouped.iter().map(|(_, placed)| loss(count, failed, placed)).collect();
        let single = choose_3(failed) / choose_3(count);
        let large = 1.0 - (1.0 - single).powf(sets * 100.0);
        println!(
            "  {failed:6}      {:9.3} %   {:9.3} %   {:9.3} %   {:9.3} % (computed)",
            as_placed * 100.0,
            others[0] * 100.0,
            others[1] * 100.0,
            large * 100.0
        );
    }
}

fn choose_3(n: u64) -> f64 {
    n as f64 * (n as f64 - 1.0) * (n as f64 - 2.0) / 6.0
}

fn cluster(count: u64, racks: u64, chunks: u64) -> Nodes {
    let mean = chunks * REPLICAS as u64 * CHUNK / count * 100 / FULL;
    let node = |id: u64| {
        let capacity = mean * (2 + id % 3) / 3;
        Node {
            liveness: Liveness::Live,
            admin: AdminState::Normal,
            host: format!("host{id}"),
            rack: format!("rack{}", id % racks),
            available: capacity,
            capacity,
        }
    };
    (1..=count).map(|id| (id as u32, node(id))).collect()
}

fn take(nodes: &mut Nodes, holders: &[u32]) {
    for holder in holders {
        let node = nodes.get_mut(holder).expect("a datanode");
        node.available = node.available.saturating_sub(CHUNK);
    }
}

fn fill(nodes: &mut Nodes, chunks: u64) -> Vec<Vec<u32>> {
    let avoid = BTreeSet::new();
    let mut placed = Vec::new();
    for seed in 0..chunks {
        let ask = Ask { replicas: REPLICAS, room: CHUNK, host: "", avoid: &avoid, seed };
        let mut holders = choose(nodes, &ask).expect("room");
        take(nodes, &holders);
        holders.sort_unstable();
        placed.push(holders);
    }
    placed
}

/// Groups of three datanodes in three racks, so that each datanode shares its chunks with about `scatter` others.
fn copysets(nodes: &Nodes, scatter: usize, random: &mut Random) -> Vec<Vec<u32>> {
    let mut sets = Vec::new();
    for _ in 0..scatter.div_ceil(REPLICAS - 1) {
        let mut order: Vec<u32> = nodes.keys().copied().collect();
        shuffle(random, &mut order);
        while order.len() >= REPLICAS {
            let mut set: Vec<u32> = Vec::new();
            for at in (0..order.len()).rev() {
                let rack = |id: &u32| &nodes[id].rack;
                if set.len() < REPLICAS && set.iter().all(|id| rack(id) != rack(&order[at])) {
                    set.push(order.remove(at));
                }
                if set.len() == REPLICAS {
                    break;
                }
            }
            if set.len() < REPLICAS {
                break;
            }
            set.sort_unstable();
            sets.push(set);
        }
    }
    sets
}

/// Each chunk goes to the emptiest of a few sets drawn at random.
fn fill_copysets(nodes: &mut Nodes, chunks: u64, sets: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut random = Random::new(11);
    let mut placed = Vec::new();
    for _ in 0..chunks {
        let room = |set: &Vec<u32>| {
            set.iter().map(|id| nodes[id].available * 1_000 / nodes[id].capacity).min().unwrap_or(0)
        };
        let drawn = (0..4).map(|_| &sets[below(&mut random, sets.len() as u64) as usize]);
        let set = drawn.max_by_key(|set| room(set)).expect("sets").clone();
        take(nodes, &set);
        placed.push(set);
    }
    placed
}

fn print_balance(what: &str, nodes: &Nodes, placed: &[Vec<u32>]) {
    let fullness = |node: &Node| (node.capacity - node.available) as f64 * 100.0 / node.capacity as f64;
    let all: Vec<f64> = nodes.values().map(fullness).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let least = all.iter().copied().fold(f64::MAX, f64::min);
    let most = all.iter().copied().fold(0.0, f64::max);
    let sets: BTreeSet<_> = placed.iter().collect();
    println!("  {what:20} {mean:5.1} %   {least:6.1} %   {most:6.1} %   {}", sets.len());
}

/// Has the planner repair what is lost with `lost`, and prints how long that takes.
fn repair(what: &str, nodes: &Nodes, placed: &[Vec<u32>], lost: &BTreeSet<u32>) {
    let mut nodes = nodes.clone();
    lost.iter().for_each(|id| nodes.get_mut(id).expect("a datanode").liveness = Liveness::Dead);
    let mut problems = Problems::default();
    let mut holders: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (id, set) in (1..).zip(placed) {
        if set.iter().any(|node| lost.contains(node)) {
            problems.file(id, holding(set), &nodes);
            holders.insert(id, set.clone());
        }
    }
    let replicas_lost = problems.totals().bytes_left / CHUNK;
    let (mut flights, mut under_way) = (Flights::default(), Vec::<(u64, Copy)>::new());
    let (mut now_ms, mut resume, backoff) = (0, None, Backoff::default());
    let mut taken: BTreeMap<u32, u64> = BTreeMap::new();
    let copy_ms = CHUNK * 1_000 / (BANDWIDTH / PER_NODE as u64);
    while problems.totals().under_replicated > 0 || !under_way.is_empty() {
        let (done, rest) = under_way.into_iter().partition(|(end_ms, _)| *end_ms <= now_ms);
        under_way = rest;
        let done: Vec<(u64, Copy)> = done;
        for (_, copy) in done {
            flights.end(copy.chunk, copy.target);
            let set = holders.get_mut(&copy.chunk).expect("a chunk");
            set.push(copy.target);
            problems.file(copy.chunk, holding(set), &nodes);
            *taken.entry(copy.target).or_default() += 1;
        }
        let limits = Limits {
            per_target: PER_NODE,
            per_source: PER_NODE,
            total: LEAST_IN_ALL.max(nodes.len()),
            bytes: u64::MAX,
            looks: LOOKS,
        };
        let planned = plan(&problems, &nodes, &flights, &backoff, limits, (resume, now_ms, now_ms));
        resume = planned.resume;
        for copy in planned.copies {
            take(&mut nodes, &[copy.target]);
            flights.start(copy.clone());
            under_way.push((now_ms + copy_ms, copy));
        }
        now_ms += ROUND_MS;
    }
    println!(
        "  {what:20} {replicas_lost:13}   {:7.1}   {}",
        now_ms as f64 / 1_000.0,
        taken.values().max().copied().unwrap_or(0)
    );
}

fn holding(replicas: &[u32]) -> Holding {
    Holding { length: CHUNK, wanted: REPLICAS, live: true, replicas: replicas.to_vec(), ..Holding::default() }
}

/// How often at least one chunk has all its replicas among `failed` datanodes drawn at random.
fn loss(count: u64, failed: u64, placed: &[Vec<u32>]) -> f64 {
    let sets: Vec<&Vec<u32>> = placed.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let mut random = Random::new(failed);
    let mut lost = 0;
    for _ in 0..DRAWS {
        let mut down = vec![false; count as usize + 1];
        let mut left = failed;
        while left > 0 {
            let node = &mut down[1 + below(&mut random, count) as usize];
            left -= u64::from(!*node);
            *node = true;
        }
        lost += usize::from(sets.iter().any(|set| set.iter().all(|node| down[*node as usize])));
    }
    lost as f64 / DRAWS as f64
}
