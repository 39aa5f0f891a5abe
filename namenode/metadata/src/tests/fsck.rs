use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    CheckChunks, CheckFile, CheckNode, ChunkState, ChunksCheck, FileCheck, NodeCheck, SealChunk, Unlink,
};
use prost::Message;

use super::*;
use crate::key;
use crate::store::Table;

impl World {
    fn check_file(&self, inode: u64, offset: u64, limit: u32) -> FileCheck {
        let at = Some(NodeRef { inode, path: Default::default() });
        match self.query(query::Op::CheckFile(CheckFile { at, offset, limit })).unwrap() {
            answer::Result::FileCheck(check) => check,
            other => panic!("{other:?}"),
        }
    }

    fn check_chunks(&self, from: u64, limit: u32) -> ChunksCheck {
        match self.query(query::Op::CheckChunks(CheckChunks { from, limit })).unwrap() {
            answer::Result::ChunksCheck(check) => check,
            other => panic!("{other:?}"),
        }
    }

    fn check_node(&self, node: u32, from: u64, limit: u32) -> NodeCheck {
        match self.query(query::Op::CheckNode(CheckNode { node, from, limit })).unwrap() {
            answer::Result::NodeCheck(check) => check,
            other => panic!("{other:?}"),
        }
    }

    fn problems(&self) -> Vec<String> {
        self.check_chunks(0, 0).problems.into_iter().map(|problem| problem.what).collect()
    }

    /// Damages the records behind the state machine's back.
    fn spoil(&self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        self.store
            .write(Durability::Applied, &mut |txn| match &value {
                Some(value) => txn.put(table, key, value),
                None => txn.delete(table, key),
            })
            .unwrap();
    }
}

#[test]
fn pages_tile_files_chunks_and_nodes() {
    let mut world = World::new();
    let inode = world.create("f").unwrap().inode;
    for part in 0..10 {
        let chunk = world.allocate();
        world.commit(inode, vec![extent(part * 100, chunk, 0, 100)]).unwrap();
        world.run(Op::Seal(SealChunk { chunk, length: 150 })).unwrap();
    }
    let (mut at, mut extents, mut pages) = (0, 0, 0);
    loop {
        let page = world.check_file(inode, at, 3);
        assert!(page.problems.is_empty() && page.chunks.len() == page.extents.len());
        extents += page.extents.len();
        pages += 1;
        let Some(last) = page.extents.last().filter(|_| !page.end) else { break };
        at = last.file_offset + last.length;
    }
    assert_eq!((extents, pages), (10, 4));
    let (mut from, mut seen) = (0, Vec::new());
    loop {
        let page = world.check_chunks(from, 4);
        assert!(page.problems.is_empty());
        seen.extend(page.chunks.iter().map(|chunk| chunk.chunk));
        from = page.next;
        if from == 0 {
            break;
        }
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    let (mut from, mut placed) = (0, Vec::new());
    loop {
        let page = world.check_node(2, from, 4);
        assert_eq!(page.next_chunk, 11);
        placed.extend(page.replicas);
        from = page.next;
        if from == 0 {
            break;
        }
    }
    assert!(placed.len() == 10 && placed.iter().all(|replica| replica.length == 150 && !replica.dropping));
    assert!(world.check_node(9, 0, 0).replicas.is_empty());
    world.run(Op::Unlink(Unlink { at: super::at("f") })).unwrap();
    let placed = world.check_node(2, 0, 0).replicas;
    assert!(placed.len() == 10 && placed.iter().all(|replica| replica.dropping), "nobody counts on garbage");
}

#[test]
fn damage_in_the_records_is_found_and_told() {
    let mut world = World::new();
    let inode = world.create("f").unwrap().inode;
    let chunk = world.allocate();
    world.commit(inode, vec![extent(0, chunk, 0, 100)]).unwrap();
    world.run(Op::Seal(SealChunk { chunk, length: 100 })).unwrap();
    assert!(world.problems().is_empty());
    let record = world.chunk(chunk).unwrap();
    let chunk_key = key::one(chunk);
    let wrong = cairn_proto::store::Chunk { live_bytes: 90, ..record.clone() };
    world.spoil(Table::Chunk, &chunk_key, Some(wrong.encode_to_vec()));
    assert_eq!(world.problems(), ["100 bytes are named by files, but 90 are counted"]);
    let short = cairn_proto::store::Chunk { length: 50, replicas: vec![], ..record.clone() };
    world.spoil(Table::Chunk, &chunk_key, Some(short.encode_to_vec()));
    assert_eq!(world.problems(), ["no replica of it is known"]);
    assert!(world.check_file(inode, 0, 0).problems[0].contains("past the end"));
    world.spoil(Table::Chunk, &chunk_key, None);
    let check = world.check_file(inode, 0, 0);
    assert!(check.chunks.is_empty() && check.extents.len() == 1, "a chunk that is not there");
    assert_eq!(world.check_node(1, 0, 0).replicas[0].state(), ChunkState::Unspecified);
    world.spoil(Table::Chunk, &chunk_key, Some(record.encode_to_vec()));
    world.spoil(Table::NodeChunk, &key::node_chunk(2, chunk), None);
    assert_eq!(world.problems(), ["the index of node 2 lacks it"]);
    let reference = key::chunk_ref(chunk, 0, inode, 0);
    world.spoil(Table::ChunkRef, &reference, None);
    assert!(world.check_file(inode, 0, 0).problems[0].contains("index of chunk"));
    world.spoil(Table::ChunkRef, &reference, Some(u64::to_be_bytes(100).to_vec()));
    world.spoil(Table::ChunkRef, &key::chunk_ref(chunk, 10, 999, 0), Some(u64::to_be_bytes(5).to_vec()));
    assert!(world.problems().iter().any(|what| what.contains("inode 999")));
}

#[test]
fn garbage_that_was_forgotten_is_told_and_others_than_root_are_not() {
    let mut world = World::new();
    let inode = world.create("f").unwrap().inode;
    let chunk = world.allocate();
    world.commit(inode, vec![extent(0, chunk, 0, 100)]).unwrap();
    world.run(Op::Seal(SealChunk { chunk, length: 100 })).unwrap();
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    assert!(world.problems().is_empty(), "it is within its grace");
    world.time_ns += 20 * 60 * 1_000_000_000;
    world.create("g").unwrap();
    assert_eq!(world.problems(), ["no file has named a byte of it for 20 minutes, and it is still there"]);
    world.cred = user(7);
    let refused = |op| world.query(op).unwrap_err().code;
    assert_eq!(refused(query::Op::CheckChunks(CheckChunks::default())), ErrorCode::NotPermitted);
    assert_eq!(refused(query::Op::CheckNode(CheckNode::default())), ErrorCode::NotPermitted);
}
