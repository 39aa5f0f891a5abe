//! The executor over the real state machine, with datanodes that keep their replicas in a map.

mod compaction;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cairn_host::clock::{Clock, RealClock};
use cairn_metadata::apply;
use cairn_metadata::memory::MemoryStore;
use cairn_metadata::store::{Durability, Store};
use cairn_proto::control::{
    self, DatanodeMessage, DiskSpace, Heartbeat, Inventory, NamenodeMessage, OrderDone, Register, ReplicaBad,
    ReplicaReport, datanode_message, namenode_message, order,
};
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    self, AllocateChunk, ChunkState, Command, CommandBatch, CommitExtents, CreateFile, Cred, Extent,
    FileCommit, FormCluster, Liveness, Mutation, NodeRef, OpenSession, SealChunk, Unlink, file_commit,
    outcome,
};
use cairn_proto::store::Chunk;
use cairn_proto::{Error, ErrorCode, ROOT_INODE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Datanodes, Settings, stream};
use crate::fatal::Alarm;

const LENGTH: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Replica {
    length: u64,
    sealed: bool,
    good: bool,
}

type Disk = Arc<Mutex<BTreeMap<u64, Replica>>>;

/// A cluster's log, store and leader.
struct Bed {
    store: Arc<MemoryStore>,
    datanodes: Datanodes,
    disks: Arc<Mutex<BTreeMap<String, Disk>>>,
    session: u64,
    seq: u64,
}

fn settings() -> Settings {
    Settings {
        suspect_after: Duration::from_millis(600),
        dead_after: Duration::from_millis(1200),
        garbage_grace: Duration::from_millis(100),
        round: Duration::from_millis(20),
        scan_interval: Duration::from_millis(20),
        scan_slice: 3,
        ask_again: Duration::from_millis(100),
        compaction: false,
        ..Settings::default()
    }
}

fn apply_one(store: &MemoryStore, command: Command) -> fs::Outcome {
    let batch = CommandBatch { time_ns: RealClock.now_ns(), commands: vec![command] };
    let mut outcome = fs::Outcome::default();
    let work = &mut |txn: &mut dyn cairn_metadata::store::Txn| {
        outcome = apply(txn, &batch)?.remove(0);
        Ok(())
    };
    store.write(Durability::Applied, work).unwrap();
    outcome
}

impl Bed {
    async fn new(settings: Settings) -> Bed {
        let store = Arc::new(MemoryStore::default());
        let log = store.clone();
        let propose: super::Propose = Arc::new(move |command| {
            let log = log.clone();
            Box::pin(async move { Ok(apply_one(&log, command)) })
        });
        let datanodes =
            Datanodes::with(store.clone(), propose, Arc::new(RealClock), settings, Alarm::default());
        let mut bed = Bed { store, datanodes, disks: Arc::default(), session: 0, seq: 0 };
        bed.run(Op::FormCluster(FormCluster {
            cluster_id: "toy".into(),
            default_replication: 3,
            ..FormCluster::default()
        }));
        let Some(outcome::Result::Session(opened)) = bed.run(Op::OpenSession(OpenSession::default())) else {
            panic!("no session");
        };
        bed.session = opened.session;
        bed.datanodes.lead(1).await;
        bed
    }

    /// With datanodes 1 to `nodes`, all attending.
    async fn with_nodes(nodes: u32) -> (Bed, Vec<Fake>) {
        Bed::with_settings(nodes, settings()).await
    }

    async fn with_settings(nodes: u32, settings: Settings) -> (Bed, Vec<Fake>) {
        let bed = Bed::new(settings).await;
        let mut fakes = Vec::new();
        for number in 1..=nodes {
            fakes.push(bed.start(number).await.unwrap());
        }
        bed.until("all are live", |bed| bed.live() == nodes as usize).await;
        (bed, fakes)
    }

    fn run(&mut self, op: Op) -> Option<outcome::Result> {
        self.seq += 1;
        let (session, seq) = if self.session == 0 { (0, 0) } else { (self.session, self.seq) };
        let cred = Some(Cred::default());
        let mutation = Some(Mutation { op: Some(op) });
        apply_one(&self.store, Command { session, seq, acked: 0, cred, mutation }).result
    }

    fn live(&self) -> usize {
        let count = |leading: &mut super::Leading, _| leading.roster.live() as usize;
        self.datanodes.0.with(None, count).unwrap_or(0)
    }

    /// Writes a chunk of `LENGTH` bytes through its datanodes, commits it as a file, and seals it.
    fn write(&mut self) -> u64 {
        let targets = self.datanodes.choose_targets(&AllocateChunk::default(), 3).unwrap();
        let allocate = AllocateChunk { targets: targets.clone(), ..AllocateChunk::default() };
        let Some(outcome::Result::Allocated(made)) = self.run(Op::Allocate(allocate)) else {
            panic!("no chunk");
        };
        let chunk = made.chunk.unwrap().chunk;
        for node in targets {
            // Some replicas hold more than was acknowledged.
            let length = LENGTH + u64::from(node) * 10;
            let replica = Replica { length, sealed: false, good: true };
            self.disk(node).lock().unwrap().insert(chunk, replica);
        }
        let at = Some(NodeRef { inode: ROOT_INODE, path: format!("f{chunk}").into_bytes().into() });
        let file = FileCommit {
            target: Some(file_commit::Target::Create(CreateFile {
                at,
                mode: 0o644,
                ..CreateFile::default()
            })),
            extents: vec![Extent { file_offset: 0, chunk, chunk_offset: 0, length: LENGTH }],
            ..FileCommit::default()
        };
        self.run(Op::Commit(CommitExtents { files: vec![file] }));
        self.run(Op::Seal(SealChunk { chunk, length: LENGTH }));
        chunk
    }

    fn remove(&mut self, chunk: u64) {
        let at = Some(NodeRef { inode: ROOT_INODE, path: format!("f{chunk}").into_bytes().into() });
        self.run(Op::Unlink(Unlink { at }));
    }

    fn chunk(&self, id: u64) -> Option<Chunk> {
        self.datanodes.0.read_chunk(id).unwrap()
    }

    fn disk(&self, node: u32) -> Disk {
        self.disks.lock().unwrap().entry(format!("dn{node}:1")).or_default().clone()
    }

    fn holders(&self, chunk: u64) -> BTreeSet<u32> {
        let disks = self.disks.lock().unwrap();
        let number = |address: &str| address[2..address.len() - 2].parse().unwrap();
        disks
            .iter()
            .filter(|(_, disk)| disk.lock().unwrap().contains_key(&chunk))
            .map(|(address, _)| number(address))
            .collect()
    }

    /// The records and the disks agree on three good, sealed replicas, all on `nodes`.
    fn is_whole(&self, chunk: u64, nodes: &[u32]) -> bool {
        let Some(record) = self.chunk(chunk) else { return false };
        let counted: Vec<u32> = record.replicas.iter().copied().filter(|node| nodes.contains(node)).collect();
        let sealed = Replica { length: LENGTH, sealed: true, good: true };
        counted.len() == 3
            && record.blake3.len() == 32
            && counted.iter().all(|node| self.disk(*node).lock().unwrap().get(&chunk) == Some(&sealed))
    }

    /// Moreover nobody else has it, or is expected to.
    fn is_tidy(&self, chunk: u64, nodes: &[u32]) -> bool {
        let record = self.chunk(chunk).unwrap_or_default();
        self.is_whole(chunk, nodes) && record.dropping.is_empty() && {
            self.holders(chunk) == record.replicas.iter().copied().collect()
        }
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut(&Bed) -> bool) {
        // A machine may be slow; only what never comes fails.
        for _ in 0..3000 {
            if is_so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let state = self.datanodes.0.with(None, |leading, _| format!("{leading:#?}"));
        panic!("never came: {what}\n{}", state.unwrap_or_default());
    }

    async fn start(&self, number: u32) -> Result<Fake, Error> {
        Fake::start(self, number, register(number)).await
    }

    fn repair(&self) -> fs::RepairInfo {
        let status = fs::answer::Result::Status(fs::ClusterStatus::default());
        let mut answer = fs::Answer { result: Some(status) };
        self.datanodes.decorate(&mut answer);
        match answer.result {
            Some(fs::answer::Result::Status(status)) => status.repair.unwrap_or_default(),
            _ => fs::RepairInfo::default(),
        }
    }
}

fn register(number: u32) -> Register {
    Register {
        uuid: format!("uuid{number}"),
        cluster_id: "toy".into(),
        address: format!("dn{number}:1"),
        rack: "r".into(),
        host: format!("h{number}"),
        space: Some(space()),
    }
}

fn space() -> DiskSpace {
    DiskSpace { capacity: 1 << 40, available: 1 << 39, ..DiskSpace::default() }
}

/// A datanode's stream; it dies when dropped.
struct Fake {
    up: mpsc::Sender<Result<DatanodeMessage, Status>>,
    task: tokio::task::JoinHandle<Option<Error>>,
    /// Copies that are to fail.
    failing: Arc<Mutex<u32>>,
    /// Its disk does not answer, and it has noticed.
    hung: Arc<Mutex<bool>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn up(kind: datanode_message::Kind) -> Result<DatanodeMessage, Status> {
    Ok(DatanodeMessage { kind: Some(kind) })
}

impl Fake {
    async fn start(bed: &Bed, number: u32, register: Register) -> Result<Fake, Error> {
        let (up_sender, up_receiver) = mpsc::channel(64);
        let (down_sender, mut down) = mpsc::channel(256);
        let shared = bed.datanodes.0.clone();
        tokio::spawn(async move {
            stream::serve(&shared, ReceiverStream::new(up_receiver), down_sender).await;
        });
        up_sender.send(up(datanode_message::Kind::Register(register))).await.unwrap();
        let first: NamenodeMessage = down.recv().await.unwrap().unwrap();
        match first.kind {
            Some(namenode_message::Kind::Registered(registered)) => assert_eq!(registered.node, number),
            Some(namenode_message::Kind::Refused(error)) => return Err(error.into()),
            other => panic!("{other:?}"),
        }
        let (failing, hung) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
        let node = Node {
            disk: bed.disk(number),
            disks: bed.disks.clone(),
            failing: failing.clone(),
            hung: hung.clone(),
        };
        let task = tokio::spawn(node.live(up_sender.clone(), down));
        Ok(Fake { up: up_sender, task, failing, hung })
    }
}

struct Node {
    disk: Disk,
    disks: Arc<Mutex<BTreeMap<String, Disk>>>,
    failing: Arc<Mutex<u32>>,
    hung: Arc<Mutex<bool>>,
}

impl Node {
    async fn live(
        self,
        up_sender: mpsc::Sender<Result<DatanodeMessage, Status>>,
        mut down: mpsc::Receiver<Result<NamenodeMessage, Status>>,
    ) -> Option<Error> {
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        let mut was_hung = false;
        up_sender.send(up(self.inventory())).await.ok()?;
        loop {
            let answer = tokio::select! {
                _ = beat.tick() => Some(self.tell(&mut was_hung)),
                message = down.recv() => match message?.ok()?.kind? {
                    namenode_message::Kind::Order(order) => Some(self.obey(order)),
                    namenode_message::Kind::Refused(error) => return Some(error.into()),
                    _ => None,
                }
            };
            if let Some(kind) = answer {
                up_sender.send(up(kind)).await.ok()?;
            }
        }
    }

    /// That it is there, or what it has when its disk answers no more, or again.
    fn tell(&self, was_hung: &mut bool) -> datanode_message::Kind {
        let is_hung = *self.hung.lock().unwrap();
        if std::mem::replace(was_hung, is_hung) != is_hung {
            return self.inventory();
        }
        datanode_message::Kind::Heartbeat(Heartbeat { space: Some(space()), ..Heartbeat::default() })
    }

    fn inventory(&self) -> datanode_message::Kind {
        let report = |(chunk, replica): (&u64, &Replica)| ReplicaReport {
            chunk: *chunk,
            length: replica.length,
            sealed: replica.sealed,
            ..ReplicaReport::default()
        };
        let is_hung = *self.hung.lock().unwrap();
        let replicas = self.disk.lock().unwrap().iter().filter(|_| !is_hung).map(report).collect();
        datanode_message::Kind::Inventory(Inventory { first: 0, next: 0, replicas })
    }

    fn obey(&self, order: control::Order) -> datanode_message::Kind {
        let id = order.id;
        let is_hung = *self.hung.lock().unwrap();
        let result: Result<(u64, Bytes), Error> = match order.kind {
            Some(order::Kind::Inventory(_)) => return self.inventory(),
            Some(_) if is_hung => Err(ErrorCode::DiskFailed.into()),
            Some(order::Kind::Seal(seal)) => self.seal(seal.chunk, seal.length),
            Some(order::Kind::Delete(delete)) => {
                self.disk.lock().unwrap().remove(&delete.chunk);
                Ok((0, Bytes::new()))
            }
            Some(order::Kind::Copy(copy)) => self.copy(&copy),
            Some(order::Kind::Gather(gather)) => self.gather(&gather),
            Some(order::Kind::Scrub(_)) => Ok((0, Bytes::new())),
            None => Err(ErrorCode::Malformed.into()),
        };
        let done = match result {
            Ok((length, blake3)) => OrderDone { order: id, error: None, length, blake3 },
            Err(error) => OrderDone { order: id, error: Some(error.into()), ..OrderDone::default() },
        };
        datanode_message::Kind::Done(done)
    }

    fn seal(&self, chunk: u64, length: u64) -> Result<(u64, Bytes), Error> {
        let mut disk = self.disk.lock().unwrap();
        let replica = disk.get_mut(&chunk).ok_or(ErrorCode::ChunkUnknown)?;
        if replica.length < length {
            return Err(ErrorCode::PastEnd.into());
        }
        replica.length = length;
        replica.sealed = true;
        Ok((length, digest(chunk, length)))
    }

    fn copy(&self, copy: &control::CopyReplica) -> Result<(u64, Bytes), Error> {
        let mut failing = self.failing.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return Err(ErrorCode::Timeout.into());
        }
        let disks = self.disks.lock().unwrap().clone();
        let good = |source: &String| {
            let replica = disks.get(source)?.lock().unwrap().get(&copy.chunk).copied()?;
            (replica.good && replica.length >= copy.length).then_some(replica)
        };
        copy.sources.iter().find_map(good).ok_or(ErrorCode::ChunkUnknown)?;
        let replica = Replica { length: copy.length, sealed: true, good: true };
        self.disk.lock().unwrap().insert(copy.chunk, replica);
        Ok((copy.length, digest(copy.chunk, copy.length)))
    }
}

impl Node {
    fn gather(&self, gather: &control::GatherReplica) -> Result<(u64, Bytes), Error> {
        let mut failing = self.failing.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return Err(ErrorCode::Timeout.into());
        }
        let disks = self.disks.lock().unwrap().clone();
        for piece in &gather.pieces {
            let source = &gather.sources[piece.source as usize];
            let has = |address: &String| {
                let disk = disks.get(address).map(|disk| disk.lock().unwrap().get(&source.chunk).copied());
                disk.flatten().is_some_and(|held| held.good && held.length >= piece.offset + piece.length)
            };
            source.addresses.iter().any(has).then_some(()).ok_or(ErrorCode::ChunkUnknown)?;
        }
        let replica = Replica { length: gather.length, sealed: true, good: true };
        self.disk.lock().unwrap().insert(gather.chunk, replica);
        Ok((gather.length, digest(gather.chunk, gather.length)))
    }
}

fn digest(chunk: u64, length: u64) -> Bytes {
    let mut content = chunk.to_be_bytes().to_vec();
    content.extend(length.to_be_bytes());
    Bytes::copy_from_slice(blake3::hash(&content).as_bytes())
}

#[tokio::test]
async fn a_sealed_chunk_is_cut_hashed_and_recorded_on_all_its_nodes() {
    let (mut bed, _fakes) = Bed::with_nodes(3).await;
    let chunks: Vec<u64> = (0..10).map(|_| bed.write()).collect();
    bed.until("all are sealed", |bed| chunks.iter().all(|chunk| bed.is_tidy(*chunk, &[1, 2, 3]))).await;
    assert_eq!(bed.chunk(chunks[0]).unwrap().blake3, digest(chunks[0], LENGTH));
}

#[tokio::test]
async fn a_dead_node_is_made_up_for_and_its_return_leaves_no_surplus() {
    let (mut bed, mut fakes) = Bed::with_nodes(5).await;
    let chunks: Vec<u64> = (0..20).map(|_| bed.write()).collect();
    *fakes[3].failing.lock().unwrap() = 2;
    drop(fakes.remove(0));
    let others = [2, 3, 4, 5];
    bed.until("repaired", |bed| chunks.iter().all(|chunk| bed.is_whole(*chunk, &others))).await;
    let repaired = bed.repair();
    assert!(repaired.chunks_repaired > 0 && repaired.bytes_copied >= repaired.chunks_repaired * LENGTH);
    fakes.push(bed.start(1).await.unwrap());
    let all = [1, 2, 3, 4, 5];
    bed.until("tidied up", |bed| chunks.iter().all(|chunk| bed.is_tidy(*chunk, &all))).await;
    bed.until("no problem is left", |bed| {
        let repair = bed.repair();
        (repair.under_replicated, repair.surplus, repair.in_flight, repair.bytes_left) == (0, 0, 0, 0)
    })
    .await;
    assert_eq!(bed.repair().seconds_left, Some(0));
}

#[tokio::test]
async fn a_node_that_lost_its_disk_is_filled_again() {
    let (mut bed, mut fakes) = Bed::with_nodes(3).await;
    let chunks: Vec<u64> = (0..10).map(|_| bed.write()).collect();
    bed.until("sealed", |bed| chunks.iter().all(|chunk| bed.is_whole(*chunk, &[1, 2, 3]))).await;
    drop(fakes.remove(1));
    bed.disk(2).lock().unwrap().clear();
    fakes.push(bed.start(2).await.unwrap());
    bed.until("filled", |bed| chunks.iter().all(|chunk| bed.is_tidy(*chunk, &[1, 2, 3]))).await;
}

#[tokio::test]
async fn a_loss_that_is_reported_while_a_proposal_waits_is_not_forgotten() {
    let (mut bed, mut fakes) = Bed::with_nodes(3).await;
    let chunk = bed.write();
    bed.until("sealed, and its last proposal settled, which would end the one that is held here", |bed| {
        let idle = |leading: &mut super::Leading, _| leading.pending.is_empty() && leading.settled.is_empty();
        bed.is_whole(chunk, &[1, 2, 3]) && bed.datanodes.0.with(None, idle).unwrap()
    })
    .await;
    let hold = |leading: &mut super::Leading, _| leading.pending.insert((chunk, 2));
    assert!(bed.datanodes.0.with(None, hold).unwrap());
    drop(fakes.remove(1));
    bed.disk(2).lock().unwrap().clear();
    fakes.push(bed.start(2).await.unwrap());
    bed.until("its inventory was looked at", |bed| {
        let seen = |leading: &mut super::Leading, _| {
            // The check may have been answered already.
            leading.roster.attendees[&2].checks.contains_key(&chunk)
                || leading.faults.contains_key(&(chunk, 2))
        };
        bed.datanodes.0.with(None, seen).unwrap()
    })
    .await;
    bed.datanodes
        .0
        .with(None, |leading: &mut super::Leading, _| leading.pending.remove(&(chunk, 2)))
        .unwrap();
    bed.until("filled", |bed| bed.is_tidy(chunk, &[1, 2, 3])).await;
}

#[tokio::test]
async fn a_bad_replica_is_replaced_and_a_clients_word_is_checked() {
    let (mut bed, fakes) = Bed::with_nodes(3).await;
    let chunk = bed.write();
    let other = bed.write();
    bed.until("sealed", |bed| bed.is_whole(chunk, &[1, 2, 3]) && bed.is_whole(other, &[1, 2, 3])).await;

    bed.disk(2).lock().unwrap().get_mut(&chunk).unwrap().good = false;
    let bad = ReplicaBad { chunk, reason: "checksum".into() };
    fakes[1].up.send(up(datanode_message::Kind::Bad(bad))).await.unwrap();
    bed.until("replaced", |bed| bed.is_tidy(chunk, &[1, 2, 3])).await;

    let report = |chunk, node| control::BadReplica { chunk, node, reason: "read failed".into() };
    bed.datanodes.report_bad(report(other, 1));
    bed.disk(3).lock().unwrap().remove(&other);
    bed.datanodes.report_bad(report(other, 3));
    bed.until("the lost one is back", |bed| bed.holders(other).len() == 3).await;
    bed.until("tidy", |bed| bed.is_tidy(other, &[1, 2, 3])).await;
}

#[tokio::test]
async fn what_is_on_a_disk_that_hangs_is_copied_and_too_much_when_it_answers() {
    let (mut bed, fakes) = Bed::with_nodes(4).await;
    let chunks: Vec<u64> = (0..6).map(|_| bed.write()).collect();
    bed.until("sealed", |bed| chunks.iter().all(|chunk| bed.is_tidy(*chunk, &[1, 2, 3, 4]))).await;
    *fakes[1].hung.lock().unwrap() = true;
    bed.until("copied", |bed| chunks.iter().all(|chunk| bed.is_whole(*chunk, &[1, 3, 4]))).await;
    *fakes[1].hung.lock().unwrap() = false;
    bed.until("tidied up", |bed| chunks.iter().all(|chunk| bed.is_tidy(*chunk, &[1, 2, 3, 4]))).await;
}

#[tokio::test]
async fn what_is_on_a_disk_that_hung_and_nobody_could_copy_counts_again_when_it_answers() {
    let (mut bed, fakes) = Bed::with_nodes(3).await;
    let chunk = bed.write();
    bed.until("sealed", |bed| bed.is_tidy(chunk, &[1, 2, 3])).await;
    *fakes[1].hung.lock().unwrap() = true;
    bed.until("missed", |bed| bed.repair().under_replicated == 1).await;
    *fakes[1].hung.lock().unwrap() = false;
    bed.until("counted again", |bed| bed.repair().under_replicated == 0 && bed.is_tidy(chunk, &[1, 2, 3]))
        .await;
}

#[tokio::test]
async fn garbage_goes_after_its_grace_also_from_nodes_that_were_away() {
    let (mut bed, mut fakes) = Bed::with_nodes(3).await;
    let chunk = bed.write();
    let kept = bed.write();
    bed.until("sealed", |bed| bed.is_whole(chunk, &[1, 2, 3])).await;
    drop(fakes.remove(2));
    bed.remove(chunk);
    bed.until("purged", |bed| bed.chunk(chunk).is_none() && bed.holders(chunk) == [3].into()).await;
    fakes.push(bed.start(3).await.unwrap());
    bed.until("deleted", |bed| bed.holders(chunk).is_empty()).await;
    bed.until("the other stays", |bed| bed.is_tidy(kept, &[1, 2, 3])).await;
}

#[tokio::test]
async fn too_few_nodes_at_first_are_made_up_for_when_more_come() {
    let (mut bed, mut fakes) = Bed::with_nodes(1).await;
    let chunk = bed.write();
    bed.until("known to lack two", |bed| bed.repair().under_replicated == 1).await;
    fakes.push(bed.start(2).await.unwrap());
    fakes.push(bed.start(3).await.unwrap());
    bed.until("copied", |bed| bed.is_tidy(chunk, &[1, 2, 3])).await;
}

#[tokio::test]
async fn a_datanode_whose_address_another_has_taken_is_dead_at_once_to_any_leader() {
    let patient = Settings { dead_after: Duration::from_secs(3600), ..settings() };
    let bed = Bed::new(patient).await;
    drop(bed.start(1).await.unwrap());
    let fresh = Register { uuid: "fresh".into(), ..register(1) };
    let _fresh = Fake::start(&bed, 2, fresh).await.unwrap();
    let dead = |bed: &Bed| {
        let liveness = |leading: &mut super::Leading, _| leading.roster.liveness(1);
        bed.datanodes.0.with(None, liveness).unwrap() == Liveness::Dead
    };
    bed.until("the old one is dead", dead).await;
    bed.datanodes.follow().await;
    bed.datanodes.lead(2).await;
    let fresh = Register { uuid: "fresh".into(), ..register(1) };
    let _again = Fake::start(&bed, 2, fresh).await.unwrap();
    bed.until("the next leader knows as well", dead).await;
}

#[tokio::test]
async fn a_chunk_that_was_sealed_is_looked_at_before_its_turn() {
    let bed = Bed::new(Settings { scan_interval: Duration::from_secs(3600), ..settings() }).await;
    let mut bed = bed;
    let mut fakes = Vec::new();
    for number in 1..=3 {
        fakes.push(bed.start(number).await.unwrap());
    }
    bed.until("everything was read once", |bed| !bed.repair().counting && bed.live() == 3).await;
    let chunk = bed.write();
    bed.datanodes.look_at(chunk);
    bed.until("its replicas are sealed", |bed| bed.is_tidy(chunk, &[1, 2, 3])).await;
}

#[tokio::test]
async fn what_is_not_counted_yet_is_not_called_well() {
    let (mut bed, _fakes) = Bed::with_nodes(3).await;
    let chunk = bed.write();
    bed.until("sealed", |bed| bed.is_whole(chunk, &[1, 2, 3])).await;
    bed.until("counted", |bed| !bed.repair().counting).await;
    let counting = bed.datanodes.0.with(None, |leading, _| {
        leading.scan.want_node(2);
        super::report::repair(leading).counting
    });
    assert_eq!(counting, Some(true));
    bed.until("counted again", |bed| !bed.repair().counting).await;
}

#[tokio::test]
async fn a_datanode_that_no_round_has_seen_is_not_dead() {
    let (bed, _fakes) = Bed::with_nodes(1).await;
    let datanodes = vec![fs::DatanodeInfo { node: 99, ..fs::DatanodeInfo::default() }];
    let status = fs::ClusterStatus { datanodes, ..fs::ClusterStatus::default() };
    let mut answer = fs::Answer { result: Some(fs::answer::Result::Status(status)) };
    bed.datanodes.decorate(&mut answer);
    let Some(fs::answer::Result::Status(status)) = answer.result else { panic!() };
    assert_eq!(status.datanodes[0].liveness(), Liveness::Unknown);
}

#[tokio::test]
async fn strangers_twins_and_the_unled_are_refused() {
    let (bed, fakes) = Bed::with_nodes(1).await;
    let foreign = Register { cluster_id: "other".into(), ..register(2) };
    let refused = |result: Result<Fake, Error>| result.map(|_| ()).unwrap_err().code;
    assert_eq!(refused(Fake::start(&bed, 2, foreign).await), ErrorCode::WrongCluster);
    let twin = Register { address: "elsewhere:1".into(), ..register(1) };
    assert_eq!(refused(Fake::start(&bed, 1, twin.clone()).await), ErrorCode::Exists);
    drop(fakes);
    bed.until("the first is gone", |bed| {
        let stream = |leading: &mut super::Leading, _| leading.roster.attendees[&1].stream.is_none();
        bed.datanodes.0.with(None, stream).unwrap()
    })
    .await;
    let moved = Fake::start(&bed, 1, twin).await.unwrap();
    bed.datanodes.follow().await;
    assert_eq!(refused(bed.start(2).await), ErrorCode::NotLeader);
    let mut moved = moved;
    let farewell = (&mut moved.task).await.unwrap().unwrap();
    assert_eq!(farewell.code, ErrorCode::NotLeader);
    let ask = AllocateChunk::default();
    assert_eq!(bed.datanodes.choose_targets(&ask, 3).unwrap_err().code, ErrorCode::NotLeader);
}

#[tokio::test]
async fn the_next_leader_starts_with_unknown_nodes_and_goes_on_repairing() {
    let (mut bed, fakes) = Bed::with_nodes(4).await;
    let chunks: Vec<u64> = (0..10).map(|_| bed.write()).collect();
    bed.datanodes.follow().await;
    bed.datanodes.lead(2).await;
    let mut answer = fs::Answer {
        result: Some(fs::answer::Result::Chunk(fs::ChunkInfo {
            chunk: chunks[0],
            state: ChunkState::Sealed.into(),
            replicas: vec![fs::ReplicaInfo { node: 1, ..fs::ReplicaInfo::default() }],
            ..fs::ChunkInfo::default()
        })),
    };
    bed.datanodes.decorate(&mut answer);
    let Some(fs::answer::Result::Chunk(info)) = answer.result else { panic!() };
    assert_eq!(info.replicas[0].liveness(), Liveness::Unknown);
    assert_eq!(bed.datanodes.choose_targets(&AllocateChunk::default(), 3).unwrap().len(), 3);
    drop(fakes);
    let mut back = Vec::new();
    for number in 2..=4 {
        back.push(bed.start(number).await.unwrap());
    }
    bed.until("repaired", |bed| chunks.iter().all(|chunk| bed.is_whole(*chunk, &[2, 3, 4]))).await;
}

#[tokio::test]
async fn readers_are_sent_to_live_replicas_first() {
    let (bed, mut fakes) = Bed::with_nodes(3).await;
    drop(fakes.remove(0));
    bed.until("one is not live", |bed| bed.live() == 2).await;
    let replicas = (1..=3).map(|node| fs::ReplicaInfo { node, ..fs::ReplicaInfo::default() }).collect();
    let chunk = fs::ChunkInfo { chunk: 1, replicas, ..fs::ChunkInfo::default() };
    let layout = fs::Layout { chunks: vec![chunk], ..fs::Layout::default() };
    let mut answer = fs::Answer { result: Some(fs::answer::Result::Layout(layout)) };
    bed.datanodes.decorate(&mut answer);
    let Some(fs::answer::Result::Layout(layout)) = answer.result else { panic!() };
    let order: Vec<u32> = layout.chunks[0].replicas.iter().map(|replica| replica.node).collect();
    assert_eq!(order, [2, 3, 1]);
    assert_ne!(layout.chunks[0].replicas[2].liveness(), Liveness::Live);
}
