//! Tests of the state machine as a whole; the model tests are in their own file.

mod acl;
mod chunks;
mod compact;
mod delegation;
mod fsck;
mod locks;
mod model;
mod namespace;
mod quota;
mod ranges;
mod sessions;
mod snapshot;
mod snapshot_model;
mod trash;

use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AllocateChunk, Attr, Command, CommandBatch, CommitExtents, CreateFile, Cred, Extent, FileCommit,
    FormCluster, Mkdir, Mutation, NodeRef, OpenSession, Outcome, Query, RegisterDatanode, answer,
    file_commit, file_outcome, outcome, query,
};
use cairn_proto::{Error, ROOT_INODE};

use crate::memory::MemoryStore;
use crate::store::{Durability, Store, View};

/// A formed cluster with three datanodes and one session.
struct World {
    store: MemoryStore,
    time_ns: i64,
    session: u64,
    seq: u64,
    cred: Cred,
}

fn root() -> Cred {
    Cred::default()
}

fn user(uid: u32) -> Cred {
    Cred { uid, gid: uid, groups: Vec::new() }
}

fn at(path: &str) -> Option<NodeRef> {
    Some(NodeRef { inode: ROOT_INODE, path: path.as_bytes().to_vec().into() })
}

impl World {
    fn new() -> World {
        let store = MemoryStore::default();
        let mut world = World { store, time_ns: 1_000, session: 0, seq: 0, cred: root() };
        let form = FormCluster { cluster_id: "c".into(), default_replication: 3, ..FormCluster::default() };
        world.leader(Op::FormCluster(form)).unwrap();
        for node in 1..=3 {
            let register = RegisterDatanode {
                uuid: format!("uuid{node}"),
                address: format!("host{node}:1"),
                ..RegisterDatanode::default()
            };
            world.leader(Op::RegisterDatanode(register)).unwrap();
        }
        world.session = world.begin();
        world
    }

    fn begin(&mut self) -> u64 {
        match self.leader(Op::OpenSession(OpenSession::default())).unwrap() {
            outcome::Result::Session(opened) => opened.session,
            other => panic!("{other:?}"),
        }
    }

    fn submit(&mut self, session: u64, seq: u64, acked: u64, op: Op) -> Outcome {
        self.time_ns += 10;
        let command = Command {
            session,
            seq,
            acked,
            cred: Some(self.cred.clone()),
            mutation: Some(Mutation { op: Some(op) }),
        };
        let batch = CommandBatch { time_ns: self.time_ns, commands: vec![command] };
        let mut outcomes = Vec::new();
        self.store
            .write(Durability::Applied, &mut |txn| {
                outcomes = crate::apply(txn, &batch)?;
                Ok(())
            })
            .unwrap();
        outcomes.remove(0)
    }

    fn leader(&mut self, op: Op) -> Result<outcome::Result, Error> {
        opened(self.submit(0, 0, 0, op))
    }

    fn run(&mut self, op: Op) -> Result<outcome::Result, Error> {
        self.seq += 1;
        opened(self.submit(self.session, self.seq, self.seq - 1, op))
    }

    fn query(&self, op: query::Op) -> Result<answer::Result, Error> {
        let mut result = None;
        self.store
            .read(&mut |view| {
                result = crate::answer(view, &self.cred, &Query { op: Some(op.clone()) })?.result;
                Ok(())
            })
            .unwrap();
        match result.unwrap() {
            answer::Result::Error(error) => Err(error.into()),
            other => Ok(other),
        }
    }

    fn stat(&self, path: &str) -> Result<Attr, Error> {
        match self.query(query::Op::Stat(cairn_proto::fs::Stat { at: at(path), follow: false }))? {
            answer::Result::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    fn usage(&self, path: &str) -> Result<cairn_proto::fs::Usage, Error> {
        match self.query(query::Op::Usage(cairn_proto::fs::GetUsage { at: at(path) }))? {
            answer::Result::Usage(usage) => Ok(usage),
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, path: &str) -> Result<Attr, Error> {
        let ask = CreateFile {
            at: at(path),
            mode: 0o644,
            uid: self.cred.uid,
            gid: self.cred.gid,
            exclusive: true,
            ..CreateFile::default()
        };
        match self.run(Op::Create(ask))? {
            outcome::Result::Created(created) => Ok(created.attr.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn mkdir(&mut self, path: &str) -> Result<Attr, Error> {
        let (uid, gid) = (self.cred.uid, self.cred.gid);
        let ask = Mkdir { at: at(path), mode: 0o755, uid, gid, ..Mkdir::default() };
        match self.run(Op::Mkdir(ask))? {
            outcome::Result::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    fn allocate(&mut self) -> u64 {
        let ask = AllocateChunk { targets: vec![1, 2, 3], ..AllocateChunk::default() };
        match self.run(Op::Allocate(ask)).unwrap() {
            outcome::Result::Allocated(allocated) => allocated.chunk.unwrap().chunk,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, inode: u64, extents: Vec<Extent>) -> Result<Attr, Error> {
        let target = Some(file_commit::Target::Inode(inode));
        self.commit_file(FileCommit { target, extents, ..FileCommit::default() })
    }

    fn commit_file(&mut self, file: FileCommit) -> Result<Attr, Error> {
        match self.run(Op::Commit(CommitExtents { files: vec![file] }))? {
            outcome::Result::Commit(mut done) => match done.files.remove(0).result.unwrap() {
                file_outcome::Result::Attr(attr) => Ok(attr),
                file_outcome::Result::Error(error) => Err(error.into()),
            },
            other => panic!("{other:?}"),
        }
    }

    fn chunk(&self, id: u64) -> Option<cairn_proto::store::Chunk> {
        let mut found = None;
        self.store
            .read(&mut |view| {
                found = crate::records::chunk(view, id)?;
                Ok(())
            })
            .unwrap();
        found
    }

    fn view<R>(&self, look: impl Fn(&dyn View) -> R) -> R {
        let mut seen = None;
        self.store
            .read(&mut |view| {
                seen = Some(look(view));
                Ok(())
            })
            .unwrap();
        seen.unwrap()
    }

    fn chunks(&self) -> Vec<(u64, cairn_proto::store::Chunk)> {
        let ids = 1..self.view(|view| crate::records::meta(view).unwrap().unwrap().next_chunk);
        ids.filter_map(|id| Some((id, self.chunk(id)?))).collect()
    }

    fn extents(&self, inode: u64) -> Vec<Extent> {
        let at = Some(NodeRef { inode, path: Default::default() });
        let ask = cairn_proto::fs::GetLayout { at, length: u64::MAX, ..Default::default() };
        match self.query(query::Op::Layout(ask)).unwrap() {
            answer::Result::Layout(layout) => layout.extents,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_sound(&self) {
        let mut wrong = Vec::new();
        self.store
            .read(&mut |view| {
                wrong = crate::check::check(view)?;
                Ok(())
            })
            .unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

fn opened(outcome: Outcome) -> Result<outcome::Result, Error> {
    match outcome.result.unwrap() {
        outcome::Result::Error(error) => Err(error.into()),
        other => Ok(other),
    }
}

fn extent(file_offset: u64, chunk: u64, chunk_offset: u64, length: u64) -> Extent {
    Extent { file_offset, chunk, chunk_offset, length }
}
