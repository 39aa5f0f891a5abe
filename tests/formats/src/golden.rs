//! What is in `tests/fixtures`.

use bytes::Bytes;
use cairn_metadata::apply;
use cairn_metadata::memory::Tables;
use cairn_proto::checksum::BlockCrc;
use cairn_proto::data::{
    Ack, Append, ChainLink, Data, Failure, Hello, HelloReply, OpenChain, Read, ReplicaStat, Request,
    Response, StatReplica, Sync, request, response,
};
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AddReplica, AllocateChunk, Command, CommandBatch, CommitExtents, CreateFile, CreateSnapshot, Cred,
    DropReplica, Extent, FileCommit, FormCluster, Link, Mkdir, Mutation, NodeRef, OpenSession, RecordDigest,
    RegisterDatanode, RemoveSnapshot, Rename, SealChunk, SetAttr, SetQuota, Symlink, Unlink, file_commit,
};
use cairn_proto::{ErrorCode, ROOT_INODE};

/// The chunks of the data directory: id, bytes, and whether it is sealed.
pub const CHUNKS: [(u64, usize, bool); 3] = [(1, 70_000, false), (2, 131_072, true), (3, 66_000, true)];

/// What a chunk's bytes are.
pub fn content(chunk: u64, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8 ^ chunk as u8).collect()
}

/// The records of the log, from index 0 on.
pub fn records() -> Vec<(u64, Bytes)> {
    (0..9u64).map(|i| (1 + i / 4, Bytes::from(vec![i as u8; 500 * i as usize]))).collect()
}

/// The vote of the log, and the index up to which it is known to be committed.
pub const VOTE: (&[u8], u64) = (b"a vote", 5);

fn at(path: &str) -> Option<NodeRef> {
    Some(NodeRef { inode: ROOT_INODE, path: Bytes::copy_from_slice(path.as_bytes()) })
}

fn batch(time_ns: i64, session: u64, ops: Vec<Op>) -> CommandBatch {
    let command = |(seq, op)| Command {
        session,
        seq: if session == 0 { 0 } else { seq },
        cred: Some(Cred::default()),
        mutation: Some(Mutation { op: Some(op) }),
        ..Command::default()
    };
    let first = time_ns as u64;
    CommandBatch { time_ns, commands: (first..).zip(ops).map(command).collect() }
}

/// Commands that make a small cluster: the leader's, then a client's, then the leader's again.
pub fn commands() -> Vec<CommandBatch> {
    let register = |node: u32| {
        Op::RegisterDatanode(RegisterDatanode {
            uuid: format!("uuid{node}"),
            address: format!("host{node}:7410"),
            rack: "rack".into(),
            capacity: 1 << 40,
            host: format!("host{node}"),
        })
    };
    let form = FormCluster { cluster_id: "golden".into(), default_replication: 2, ..FormCluster::default() };
    let extent = Extent { file_offset: 0, chunk: 1, chunk_offset: 0, length: 5000 };
    let commit = |inode| {
        Op::Commit(CommitExtents {
            files: vec![FileCommit {
                target: Some(file_commit::Target::Inode(inode)),
                extents: vec![extent],
                size: Some(5000),
                ..FileCommit::default()
            }],
        })
    };
    vec![
        batch(
            1,
            0,
            vec![Op::FormCluster(form), register(1), register(2), Op::OpenSession(OpenSession::default())],
        ),
        batch(
            10,
            1,
            vec![
                Op::Mkdir(Mkdir { at: at("d"), mode: 0o755, ..Mkdir::default() }),
                Op::Create(CreateFile { at: at("d/f"), mode: 0o644, ..CreateFile::default() }),
                Op::Create(CreateFile { at: at("gone"), mode: 0o600, ..CreateFile::default() }),
                Op::Symlink(Symlink {
                    at: at("s"),
                    target: Bytes::from_static(b"d/f"),
                    ..Symlink::default()
                }),
                Op::Allocate(AllocateChunk {
                    targets: vec![1, 2],
                    replication: 2,
                    ..AllocateChunk::default()
                }),
                commit(3),
                Op::Link(Link { from: at("d/f"), at: at("hard") }),
                Op::Rename(Rename { from: at("gone"), to: at("d/g"), ..Rename::default() }),
                Op::Unlink(Unlink { at: at("d/g") }),
                Op::Seal(SealChunk { chunk: 1, length: 6000 }),
            ],
        ),
        batch(
            30,
            0,
            vec![
                Op::RecordDigest(RecordDigest { chunk: 1, node: 1, blake3: Bytes::from(vec![7; 32]) }),
                register(3),
                Op::AddReplica(AddReplica { chunk: 1, node: 3, ..Default::default() }),
                Op::DropReplica(DropReplica { chunk: 1, node: 2, bad: true }),
            ],
        ),
    ]
}

/// The commands of a version's fixtures: each has those of the one before, and what it added.
pub fn commands_of(version: &str) -> Vec<CommandBatch> {
    let mut batches = commands();
    if version != "v1" {
        let quota = |path, max_names, max_bytes| {
            Op::SetQuota(SetQuota { at: at(path), max_names, max_bytes, ..SetQuota::default() })
        };
        batches.push(batch(40, 1, vec![quota("d", Some(10), Some(1 << 20)), quota("", Some(1000), None)]));
    }
    if version == "v3" {
        let name = Bytes::from_static;
        let create = |called| Op::CreateSnapshot(CreateSnapshot { at: at("d"), name: name(called) });
        let cut = SetAttr { at: at("d/f"), size: Some(100), ..SetAttr::default() };
        let remove = RemoveSnapshot { at: at("d"), name: name(b"two") };
        let ops = vec![
            create(&b"one"[..]),
            Op::SetAttr(cut),
            create(&b"two"[..]),
            Op::Unlink(Unlink { at: at("d/f") }),
            Op::RemoveSnapshot(remove),
        ];
        batches.push(batch(60, 1, ops));
    }
    batches
}

/// What the commands come to.
pub fn tables_of(version: &str) -> Tables {
    let mut tables = Tables::default();
    for batch in commands_of(version) {
        for outcome in apply(&mut tables, &batch).expect("the store in memory does not fail") {
            let refused = matches!(outcome.result, None | Some(cairn_proto::fs::outcome::Result::Error(_)));
            assert!(!refused, "{outcome:?}");
        }
    }
    tables
}

/// Requests with their payloads.
pub fn requests() -> Vec<(Request, Bytes)> {
    let payload = Bytes::from(content(9, 100));
    let crcs = BlockCrc::default().append(&payload);
    let link = ChainLink { node: 2, address: "host2:7410".into() };
    [
        (request::Kind::Hello(Hello { version: 1, cluster_id: "golden".into() }), Bytes::new()),
        (
            request::Kind::Open(OpenChain { chunk: 9, length: 0, links: vec![link], ..OpenChain::default() }),
            Bytes::new(),
        ),
        (request::Kind::Append(Append { offset: 0, crcs }), payload),
        (request::Kind::Sync(Sync {}), Bytes::new()),
        (request::Kind::Read(Read { chunk: 9, offset: 1, length: 50, ..Read::default() }), Bytes::new()),
        (request::Kind::Stat(StatReplica { chunk: 9, ..StatReplica::default() }), Bytes::new()),
    ]
    .map(|(kind, payload)| (Request { kind: Some(kind), request: 0 }, payload))
    .to_vec()
}

/// Responses with their payloads.
pub fn responses() -> Vec<(Response, Bytes)> {
    let payload = Bytes::from(content(9, 100)).slice(1..51);
    let crcs = cairn_proto::checksum::piece_crcs(1, &payload);
    let error = ErrorCode::Corrupt.because("chunk 9: block 0");
    let stat = ReplicaStat {
        chunk: 9,
        length: 100,
        sealed: true,
        blake3: Bytes::from(vec![3; 32]),
        path: "/data/chunks/09/0000000000000009.data".into(),
        ..Default::default()
    };
    [
        (response::Kind::Hello(HelloReply { version: 1, node: 1, ..Default::default() }), Bytes::new()),
        (response::Kind::Ack(Ack { length: 100, synced: 50 }), Bytes::new()),
        (response::Kind::Data(Data { offset: 1, crcs, last: true }), payload),
        (response::Kind::Stat(stat), Bytes::new()),
        (response::Kind::Failure(Failure { error: Some(error.into()), node: 2 }), Bytes::new()),
    ]
    .map(|(kind, payload)| (Response { kind: Some(kind) }, payload))
    .to_vec()
}
