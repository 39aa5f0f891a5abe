//! Lanes against datanodes that speak the frames and misbehave on order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cairn_host::net::RealNetwork;
use cairn_proto::{ErrorCode, Result, fs};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Allocated, Append, Control, Lanes, Pace, Place};
use crate::fake::{Datanode, Mood};
use crate::metrics::Counters;

/// A namenode that allocates on the datanodes given, in turn.
struct Chunks {
    nodes: Vec<Datanode>,
    capacity: u64,
    next: AtomicU64,
    session: AtomicU64,
    seals: Mutex<BTreeMap<u64, u64>>,
    refusal: Mutex<Option<ErrorCode>>,
    /// What seals are answered with, before they succeed, and how often they were asked for.
    seal_refusal: Mutex<Option<ErrorCode>>,
    seals_asked: AtomicU64,
}

impl Chunks {
    async fn new(capacity: u64, moods: &[Mood]) -> Arc<Chunks> {
        let mut nodes = Vec::new();
        for &mood in moods {
            nodes.push(Datanode::start(mood).await);
        }
        Arc::new(Chunks {
            nodes,
            capacity,
            next: AtomicU64::new(1),
            session: AtomicU64::new(1),
            seals: Mutex::default(),
            refusal: Mutex::default(),
            seal_refusal: Mutex::default(),
            seals_asked: AtomicU64::new(0),
        })
    }

    fn content(&self, place: &Place) -> Vec<u8> {
        let range = place.offset as usize..(place.offset + place.length) as usize;
        for node in &self.nodes {
            if let Some(bytes) = node.chunks.lock().unwrap().get(&place.chunk) {
                return bytes[range].to_vec();
            }
        }
        panic!("chunk {} is nowhere", place.chunk)
    }
}

impl Control for Chunks {
    fn allocate(&self, _replication: u32, exclude: Vec<u32>) -> BoxFuture<'_, Result<Allocated>> {
        async move {
            if let Some(code) = *self.refusal.lock().unwrap() {
                return Err(code.because("test"));
            }
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            let count = self.nodes.len() as u32;
            let node = (0..count)
                .map(|i| (chunk as u32 - 1 + i) % count + 1)
                .find(|node| !exclude.contains(node))
                .unwrap_or(1);
            let address = self.nodes[node as usize - 1].address.clone();
            let replicas = vec![fs::ReplicaInfo { node, address, ..Default::default() }];
            let info = fs::ChunkInfo { chunk, replicas, ..Default::default() };
            Ok(Allocated { info, capacity: self.capacity, session: self.session.load(Ordering::Relaxed) })
        }
        .boxed()
    }

    fn seal(&self, _session: u64, chunk: u64, length: u64) -> BoxFuture<'_, Result<()>> {
        self.seals_asked.fetch_add(1, Ordering::Relaxed);
        if let Some(code) = *self.seal_refusal.lock().unwrap() {
            return async move { Err(code.because("test")) }.boxed();
        }
        self.seals.lock().unwrap().insert(chunk, length);
        async { Ok(()) }.boxed()
    }

    fn fenced(&self) -> bool {
        false
    }

    fn session(&self) -> u64 {
        self.session.load(Ordering::Relaxed)
    }

    fn cluster_id(&self) -> String {
        "cluster".into()
    }
}

fn pace() -> Pace {
    Pace {
        lanes: 1,
        window_bytes: 64 << 10,
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(800),
        idle: Duration::from_secs(30),
        exclude_for: Duration::from_secs(30),
    }
}

fn lanes(chunks: &Arc<Chunks>) -> (Arc<Lanes>, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let control: Arc<dyn Control> = Arc::clone(chunks) as Arc<dyn Control>;
    (Lanes::new(control, Arc::new(RealNetwork), pace(), Arc::clone(&counters)), counters)
}

type Waiting = oneshot::Receiver<Result<Vec<Place>>>;

fn append(lanes: &Lanes, data: Bytes) -> Waiting {
    let (done, waiting) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_secs(20);
    lanes.shared(3).append(Append::new(data, deadline, move |places| drop(done.send(places))));
    waiting
}

fn pattern(seed: usize, length: usize) -> Bytes {
    (0..length).map(|i| (i * 7 + seed * 31) as u8).collect()
}

/// Appends of many sizes; each must be found where it was said to lie.
async fn appends_survive(chunks: Arc<Chunks>) -> Arc<Counters> {
    let (lanes, counters) = lanes(&chunks);
    let sent: Vec<(Bytes, Waiting)> = (0..60)
        .map(|i| {
            let data = pattern(i, 1 + (i * 977) % 9000);
            (data.clone(), append(&lanes, data))
        })
        .collect();
    for (data, waiting) in sent {
        let places = waiting.await.unwrap().unwrap();
        let found: Vec<u8> = places.iter().flat_map(|place| chunks.content(place)).collect();
        assert_eq!(found, data);
    }
    counters
}

#[tokio::test]
async fn appends_go_over_many_chunks() {
    let chunks = Chunks::new(20_000, &[Mood::Well, Mood::Well]).await;
    appends_survive(Arc::clone(&chunks)).await;
    let seals = chunks.seals.lock().unwrap().clone();
    assert!(seals.len() >= 10, "{seals:?}");
    assert!(seals.values().filter(|&&length| length == 20_000).count() >= seals.len() - 1, "{seals:?}");
}

#[tokio::test]
async fn a_failure_in_the_middle_moves_to_another_datanode() {
    let chunks = Chunks::new(1 << 20, &[Mood::FailsAt(30_000, 1), Mood::Well]).await;
    let counters = appends_survive(Arc::clone(&chunks)).await;
    assert_eq!(counters.reading().chain_failures, 1);
    let sealed = chunks.seals.lock().unwrap()[&1];
    assert!(sealed <= 30_000);
}

#[tokio::test]
async fn a_closed_connection_moves_to_another_datanode() {
    let chunks = Chunks::new(1 << 20, &[Mood::ClosesAt(30_000), Mood::Well]).await;
    let counters = appends_survive(chunks).await;
    assert_eq!(counters.reading().chain_failures, 1);
}

#[tokio::test]
async fn a_stall_is_noticed() {
    let chunks = Chunks::new(1 << 20, &[Mood::StallsAt(10_000), Mood::Well]).await;
    let stalling = Arc::clone(&chunks.nodes[0].mood);
    // By the time it is asked whether it lives it is frozen altogether.
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        *stalling.lock().unwrap() = Mood::Frozen;
    });
    let counters = appends_survive(chunks).await;
    assert!(counters.reading().chain_failures >= 1);
}

#[tokio::test]
async fn a_frozen_datanode_does_not_stop_a_chain_from_opening_elsewhere() {
    let chunks = Chunks::new(1 << 20, &[Mood::Frozen, Mood::Well]).await;
    appends_survive(chunks).await;
}

#[tokio::test]
async fn a_datanode_that_greets_and_whose_disk_hangs_is_asked_once() {
    let chunks = Chunks::new(40_000, &[Mood::Hung, Mood::Well]).await;
    let counters = appends_survive(chunks).await;
    assert_eq!(counters.reading().chain_failures, 1, "every chunk after the first is somewhere else");
}

#[tokio::test]
async fn a_disk_that_hangs_under_a_chain_is_left_out_of_the_next() {
    let chunks = Chunks::new(1 << 20, &[Mood::StallsAt(10_000), Mood::Well]).await;
    let counters = appends_survive(chunks).await;
    assert_eq!(counters.reading().chain_failures, 1);
}

#[tokio::test]
async fn a_sync_covers_what_was_appended() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    let (lanes, _) = lanes(&chunks);
    let places = append(&lanes, pattern(1, 5000)).await.unwrap().unwrap();
    assert!(lanes.sync(places[0].chunk, 5000).await);
    assert!(!lanes.sync(4711, 1).await, "a chunk nobody wrote here cannot be synced here");
}

#[tokio::test]
async fn a_disk_that_is_slow_to_sync_is_not_given_up() {
    let chunks = Chunks::new(1 << 20, &[Mood::SyncsFor(1000), Mood::Well]).await;
    let (lanes, counters) = lanes(&chunks);
    let (done, waiting) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_secs(20);
    let append = Append::new(pattern(1, 10), deadline, move |places| drop(done.send(places)));
    lanes.shared(3).append(append.synced(true));
    let places = waiting.await.unwrap().unwrap();
    assert!(lanes.sync(places[0].chunk, 10).await);
    assert_eq!((places[0].chunk, counters.reading().chain_failures), (1, 0));
}

/// Lanes whose chain of chunk 1 has ended while its seal is answered with `code`.
async fn refused_seal(code: ErrorCode) -> (Arc<Chunks>, Arc<Lanes>) {
    let chunks = Chunks::new(5000, &[Mood::Well]).await;
    *chunks.seal_refusal.lock().unwrap() = Some(code);
    let (lanes, _) = lanes(&chunks);
    append(&lanes, pattern(1, 5000)).await.unwrap().unwrap();
    while chunks.seals_asked.load(Ordering::Relaxed) == 0 {
        // What comes next needs another chunk, and so the first one's end.
        append(&lanes, pattern(2, 10)).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (chunks, lanes)
}

/// How often a seal is asked for from now on, in a time that is enough for some attempts.
async fn asked_from_now(chunks: &Chunks) -> u64 {
    // One that is under way.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let before = chunks.seals_asked.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    chunks.seals_asked.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn a_seal_is_tried_until_the_namenodes_are_back() {
    let (chunks, _lanes) = refused_seal(ErrorCode::Timeout).await;
    while chunks.seals_asked.load(Ordering::Relaxed) < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(chunks.seals.lock().unwrap().is_empty());
    *chunks.seal_refusal.lock().unwrap() = None;
    while chunks.seals.lock().unwrap().get(&1) != Some(&5000) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(asked_from_now(&chunks).await, 0);
}

#[tokio::test]
async fn a_seal_is_given_up_when_it_is_refused_or_its_session_or_its_client_ends() {
    let (chunks, _lanes) = refused_seal(ErrorCode::ChunkNotOwned).await;
    assert_eq!(asked_from_now(&chunks).await, 0);
    let (chunks, _lanes) = refused_seal(ErrorCode::NoLeader).await;
    assert!(asked_from_now(&chunks).await > 0);
    chunks.session.store(2, Ordering::Relaxed);
    assert_eq!(asked_from_now(&chunks).await, 0);
    let (chunks, lanes) = refused_seal(ErrorCode::NoLeader).await;
    lanes.close();
    assert_eq!(asked_from_now(&chunks).await, 0);
}

#[tokio::test]
async fn chunks_of_an_expired_session_are_left() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    let (lanes, _) = lanes(&chunks);
    let before = append(&lanes, pattern(1, 5000)).await.unwrap().unwrap();
    chunks.session.store(2, Ordering::Relaxed);
    let after = append(&lanes, pattern(2, 5000)).await.unwrap().unwrap();
    assert_ne!(before[0].chunk, after[0].chunk);
}

#[tokio::test]
async fn a_final_refusal_reaches_the_writer() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    *chunks.refusal.lock().unwrap() = Some(ErrorCode::NoSpace);
    let (lanes, _) = lanes(&chunks);
    let error = append(&lanes, pattern(1, 10)).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
}

#[tokio::test]
async fn what_is_lasting_waits_for_room() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    *chunks.refusal.lock().unwrap() = Some(ErrorCode::NoSpace);
    let (lanes, _) = lanes(&chunks);
    let began = Instant::now();
    let (done, waiting) = oneshot::channel();
    let deadline = began + Duration::from_secs(1000);
    let lasting = Append::new(pattern(1, 10), deadline, move |places| drop(done.send(places)));
    lanes.shared(3).append(lasting.lasting(true));
    let error = append(&lanes, pattern(2, 10)).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
    assert_eq!(lanes.full_since(began).map(|error| error.code), Some(ErrorCode::NoSpace));
    *chunks.refusal.lock().unwrap() = None;
    assert_eq!(waiting.await.unwrap().unwrap()[0].length, 10);
    assert!(lanes.full_since(began).is_none());
}

#[tokio::test]
async fn closing_fails_what_waits() {
    let chunks = Chunks::new(1 << 20, &[Mood::Frozen]).await;
    let (lanes, _) = lanes(&chunks);
    let waiting = append(&lanes, pattern(1, 10));
    lanes.close();
    assert_eq!(waiting.await.unwrap().unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn an_own_lane_lays_its_bytes_together() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    let (lanes, _) = lanes(&chunks);
    let own = lanes.own(3).unwrap();
    let mut next = 0;
    for i in 0..20 {
        append(&lanes, pattern(i, 100)).await.unwrap().unwrap();
        let (done, waiting) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(20);
        own.lane().append(Append::new(pattern(i, 1000), deadline, move |places| drop(done.send(places))));
        let places = waiting.await.unwrap().unwrap();
        assert_eq!(places[0].offset, next);
        next += 1000;
    }
}

#[test]
fn a_chain_is_not_given_up_before_its_first_datanode_can_say_who_stalls() {
    let defaults = crate::Config::default();
    let pace = Pace { stall_timeout: defaults.stall_timeout, ..pace() };
    for datanodes in 2..=32 {
        // As datanodes have it: `Settings::stall_before`, and a tick until they look.
        let tick = Duration::from_millis(150);
        let head = |stall: Duration| stall + (stall / 8 + tick) * (datanodes - 2) as u32 + tick;
        let patience = pace.stall_patience(datanodes);
        assert!(head(Duration::from_millis(1200)) < patience, "{datanodes}: {patience:?}");
        let patience = patience * super::chain::SYNC_PATIENCE;
        assert!(head(Duration::from_secs(15)) < patience, "{datanodes}: {patience:?}");
    }
    assert_eq!(pace.stall_patience(4), defaults.stall_timeout);
}
