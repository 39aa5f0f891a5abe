//! The state machine over a store in memory: what is left of an operation when log, network and disk are taken away.

use std::hint::black_box;

use cairn_metadata::memory::Tables;
use cairn_proto::ROOT_INODE;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AllocateChunk, Command, CommandBatch, CommitExtents, CreateFile, Cred, Extent, FileCommit, FormCluster,
    ListDirectory, Mkdir, Mutation, NodeRef, OpenSession, Query, RegisterDatanode, Stat, file_commit, outcome, query,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// Operations of a batch, as many clients fill one.
const BATCH: u64 = 64;
/// Files that are there already.
const FILES: u64 = 312 * BATCH;
/// Extents of the file that is written over.
const PIECES: u64 = 1_000;
const BLOCK: u64 = 4096;

/// A namespace with one session that works in it.
#[derive(Clone)]
struct Namespace {
    tables: Tables,
    session: u64,
    seq: u64,
    time_ns: i64,
    directory: u64,
    chunk: u64,
}

impl Namespace {
    fn new() -> Namespace {
        let mut namespace = Namespace {
            tables: Tables::default(),
            session: 0,
            seq: 0,
            time_ns: 1,
            directory: 0,
            chunk: 0,
        };
        namespace.one(Op::FormCluster(FormCluster { cluster_id: "bench".into(), ..Default::default() }));
        for node in 1..=3 {
            let (uuid, address) = (format!("node-{node}"), format!("127.0.0.1:{node}"));
            namespace.one(Op::RegisterDatanode(RegisterDatanode { uuid, address, ..Default::default() }));
        }
        let outcome::Result::Session(opened) = namespace.one(Op::OpenSession(OpenSession::default())) else {
            panic!("no session");
        };
        namespace.session = opened.session;
        let at = node(ROOT_INODE, "dir");
        let outcome::Result::Attr(made) = namespace.one(Op::Mkdir(Mkdir { at, mode: 0o755, ..Default::default() }))
        else {
            panic!("no directory");
        };
        namespace.directory = made.inode;
        let allocate = AllocateChunk { replication: 3, targets: vec![1, 2, 3], ..Default::default() };
        let outcome::Result::Allocated(allocated) = namespace.one(Op::Allocate(allocate)) else {
            panic!("no chunk");
        };
        namespace.chunk = allocated.chunk.expect("a chunk").chunk;
        for first in (0..FILES).step_by(BATCH as usize) {
            let ops = (first..first + BATCH).map(|file| namespace.create(file)).collect();
            namespace.apply(ops);
        }
        namespace
    }

    fn create(&self, file: u64) -> Op {
        let at = node(self.directory, &format!("file-{file:08}"));
        Op::Create(CreateFile { at, mode: 0o644, exclusive: true, ..Default::default() })
    }

    fn write(&self, inode: u64, offset: u64) -> Op {
        let extent = Extent { file_offset: offset, chunk: self.chunk, chunk_offset: offset, length: BLOCK };
        let target = Some(file_commit::Target::Inode(inode));
        Op::Commit(CommitExtents {
            files: vec![FileCommit { target, extents: vec![extent], ..Default::default() }],
        })
    }

    fn one(&mut self, op: Op) -> outcome::Result {
        self.apply(vec![op]).remove(0)
    }

    fn apply(&mut self, ops: Vec<Op>) -> Vec<outcome::Result> {
        let acked = self.seq;
        let commands = ops.into_iter().map(|op| {
            let mut command = Command { cred: Some(Cred::default()), ..Default::default() };
            command.mutation = Some(Mutation { op: Some(op) });
            if self.session != 0 {
                self.seq += 1;
                (command.session, command.seq, command.acked) = (self.session, self.seq, acked);
            }
            command
        });
        self.time_ns += 1_000;
        let batch = CommandBatch { time_ns: self.time_ns, commands: commands.collect() };
        let outcomes = cairn_metadata::apply(&mut self.tables, &batch).expect("a store in memory");
        let accepted = |result| match result {
            Some(outcome::Result::Error(error)) => panic!("{error:?}"),
            other => other.expect("a result"),
        };
        outcomes.into_iter().map(|outcome| accepted(outcome.result)).collect()
    }
}

fn node(inode: u64, path: &str) -> Option<NodeRef> {
    Some(NodeRef { inode, path: path.as_bytes().to_vec().into() })
}

fn mutations(criterion: &mut Criterion) {
    let namespace = Namespace::new();
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("create", |bench| {
        let mut namespace = namespace.clone();
        let mut next = FILES;
        bench.iter(|| {
            let ops = (next..next + BATCH).map(|file| namespace.create(file)).collect();
            next += BATCH;
            namespace.apply(ops)
        });
    });
    let mut written = namespace.clone();
    let create = written.create(FILES);
    let outcome::Result::Created(created) = written.one(create) else { panic!("no file") };
    let inode = created.attr.expect("attributes").inode;
    // Every other block, so that no two extents join.
    for piece in 0..PIECES {
        let op = written.write(inode, piece * 2 * BLOCK);
        written.one(op);
    }
    group.bench_function("commit into a file of 1,000 extents", |bench| {
        let mut at = 0;
        bench.iter_batched_ref(
            || written.clone(),
            |namespace| {
                let place = |step: u64| (at + step * 37) % PIECES * 2 * BLOCK;
                let ops = (0..BATCH).map(|step| namespace.write(inode, place(step))).collect();
                at += BATCH;
                namespace.apply(ops)
            },
            BatchSize::NumIterations(64),
        );
    });
    group.finish();
}

fn queries(criterion: &mut Criterion) {
    let namespace = Namespace::new();
    let ask = |op| {
        let query = Query { op: Some(op) };
        cairn_metadata::answer(&namespace.tables, &Cred::default(), &query).expect("a store in memory")
    };
    let mut group = criterion.benchmark_group("answer");
    group.throughput(Throughput::Elements(1));
    group.bench_function("stat by path", |bench| {
        let mut file = 0;
        bench.iter(|| {
            file = (file + 7_919) % FILES;
            let at = node(ROOT_INODE, &format!("dir/file-{file:08}"));
            black_box(ask(query::Op::Stat(Stat { at, ..Default::default() })))
        });
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("list 1,000 entries with attributes", |bench| {
        bench.iter(|| {
            let at = node(ROOT_INODE, "dir");
            black_box(ask(query::Op::List(ListDirectory { at, limit: 1_000, ..Default::default() })))
        });
    });
    group.finish();
}

criterion_group!(benches, mutations, queries);
criterion_main!(benches);
