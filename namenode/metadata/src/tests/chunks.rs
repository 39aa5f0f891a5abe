use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AddReplica, CommitMode, DropReplica, ForgetReplica, PurgeChunk, RecordDigest, SealChunk, SetAttr,
    SetReplication, Unlink,
};

use super::*;

#[test]
fn overwriting_trims_what_lies_below() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    world.commit(file.inode, vec![extent(0, chunk, 0, 1000)]).unwrap();
    let attr = world.commit(file.inode, vec![extent(400, chunk, 1000, 200)]).unwrap();
    assert_eq!((attr.size, attr.allocated), (1000, 1000));
    let expected =
        vec![extent(0, chunk, 0, 400), extent(400, chunk, 1000, 200), extent(600, chunk, 600, 400)];
    assert_eq!(world.extents(file.inode), expected);
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 1000);
    world.assert_sound();
}

#[test]
fn a_chunk_is_kept_as_often_as_what_is_committed_to_it_wants() {
    let mut world = World::new();
    world.create("f").unwrap();
    world.run(Op::SetReplication(SetReplication { at: at("f"), replication: 5 })).unwrap();
    let chunk = world.allocate();
    let create = CreateFile { at: at("f"), ..CreateFile::default() };
    let target = Some(file_commit::Target::Create(create));
    let extents = vec![extent(0, chunk, 0, 10)];
    world.commit_file(FileCommit { target, extents, ..FileCommit::default() }).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().replication, 5);
    world.assert_sound();
}

#[test]
fn a_run_of_one_chunk_stays_one_extent() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    for part in 0..20 {
        world.commit(file.inode, vec![extent(part * 10, chunk, part * 10, 10)]).unwrap();
    }
    assert_eq!(world.extents(file.inode), vec![extent(0, chunk, 0, 200)]);
    world.assert_sound();
}

#[test]
fn many_extents_spill_and_come_back() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    for part in (0..50).rev() {
        world.commit(file.inode, vec![extent(part * 20, chunk, part * 10, 10)]).unwrap();
    }
    assert_eq!(world.extents(file.inode).len(), 50);
    world.assert_sound();
    let at = Some(NodeRef { inode: file.inode, path: Default::default() });
    let cut = SetAttr { at: at.clone(), size: Some(25), ..SetAttr::default() };
    world.run(Op::SetAttr(cut)).unwrap();
    assert_eq!(world.extents(file.inode), vec![extent(0, chunk, 0, 10), extent(20, chunk, 10, 5)]);
    let empty = SetAttr { at, size: Some(0), ..SetAttr::default() };
    world.run(Op::SetAttr(empty)).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 0);
    world.assert_sound();
}

#[test]
fn appends_land_one_after_another() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    for part in 0..3 {
        let append = FileCommit {
            target: Some(file_commit::Target::Inode(file.inode)),
            extents: vec![extent(0, chunk, part * 100, 7)],
            mode: CommitMode::Append.into(),
            ..FileCommit::default()
        };
        assert_eq!(world.commit_file(append).unwrap().size, (part + 1) * 7);
    }
    let offsets: Vec<u64> = world.extents(file.inode).iter().map(|extent| extent.file_offset).collect();
    assert_eq!(offsets, [0, 7, 14]);
    world.assert_sound();
}

#[test]
fn a_file_can_appear_whole_or_not_at_all() {
    let mut world = World::new();
    let chunk = world.allocate();
    let create = |path: &str| CreateFile { at: at(path), mode: 0o644, ..CreateFile::default() };
    let whole = FileCommit {
        target: Some(file_commit::Target::Create(create("f"))),
        extents: vec![extent(0, chunk, 0, 10)],
        ..FileCommit::default()
    };
    assert_eq!(world.commit_file(whole).unwrap().size, 10);
    let broken = FileCommit {
        target: Some(file_commit::Target::Create(create("g"))),
        extents: vec![extent(0, chunk + 1, 0, 10)],
        ..FileCommit::default()
    };
    assert_eq!(world.commit_file(broken).unwrap_err().code, ErrorCode::ChunkUnknown);
    assert_eq!(world.stat("g").unwrap_err().code, ErrorCode::NotFound);
    world.assert_sound();
}

#[test]
fn only_its_own_session_writes_into_a_chunk_and_never_past_the_seal() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    world.run(Op::Seal(SealChunk { chunk, length: 50 })).unwrap();
    world.run(Op::Seal(SealChunk { chunk, length: 50 })).expect("sealing again is the same");
    let other = world.run(Op::Seal(SealChunk { chunk, length: 60 })).unwrap_err();
    assert_eq!(other.code, ErrorCode::ChunkSealed);
    let past = world.commit(file.inode, vec![extent(0, chunk, 0, 51)]).unwrap_err();
    assert_eq!(past.code, ErrorCode::PastEnd);
    world.commit(file.inode, vec![extent(0, chunk, 0, 50)]).expect("committing below the seal");
    world.session = world.begin();
    world.seq = 0;
    let foreign = world.commit(file.inode, vec![extent(0, chunk, 0, 10)]).unwrap_err();
    assert_eq!(foreign.code, ErrorCode::ChunkNotOwned);
    world.assert_sound();
}

#[test]
fn absurd_extents_are_refused() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    for bad in [
        extent(0, chunk, 0, 0),
        extent(0, chunk, u64::MAX, 2),
        extent(u64::MAX - 1, chunk, 0, 5),
        extent(0, chunk, 0, (64 << 20) + 1),
        extent(i64::MAX as u64, chunk, 0, 1),
    ] {
        world.commit(file.inode, vec![bad]).unwrap_err();
    }
    assert_eq!(world.stat("f").unwrap().size, 0);
    world.assert_sound();
}

#[test]
fn replicas_come_and_go_but_the_last_one_stays() {
    let mut world = World::new();
    let chunk = world.allocate();
    let drop = |node, bad| Op::DropReplica(DropReplica { chunk, node, bad });
    world.leader(drop(1, true)).expect_err("an open chunk keeps its chain");
    world.run(Op::Seal(SealChunk { chunk, length: 9 })).unwrap();
    world.leader(drop(1, false)).expect_err("not surplus");
    world.leader(drop(1, true)).unwrap();
    world
        .leader(Op::AddReplica(AddReplica { chunk, node: 1, ..Default::default() }))
        .expect_err("still being deleted");
    world.assert_sound();
    world.leader(Op::ForgetReplica(ForgetReplica { chunk, node: 1 })).unwrap();
    world.leader(Op::AddReplica(AddReplica { chunk, node: 1, ..Default::default() })).unwrap();
    world.leader(drop(1, true)).unwrap();
    world.leader(drop(2, true)).unwrap();
    world.leader(drop(3, true)).expect_err("the last one");
    assert_eq!(world.chunk(chunk).unwrap().replicas, [3]);
    world.assert_sound();
}

#[test]
fn digests_of_one_chunk_agree() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.run(Op::Seal(SealChunk { chunk, length: 9 })).unwrap();
    let record =
        |node, byte: u8| Op::RecordDigest(RecordDigest { chunk, node, blake3: vec![byte; 32].into() });
    world.leader(record(1, 7)).unwrap();
    world.leader(record(2, 7)).unwrap();
    assert_eq!(world.leader(record(3, 8)).unwrap_err().code, ErrorCode::Corrupt);
}

#[test]
fn only_a_dead_chunk_is_purged() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    world.commit(file.inode, vec![extent(0, chunk, 0, 9)]).unwrap();
    let purge = Op::PurgeChunk(PurgeChunk { chunk });
    world.leader(purge.clone()).expect_err("open");
    world.run(Op::Seal(SealChunk { chunk, length: 9 })).unwrap();
    world.leader(purge.clone()).expect_err("live");
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    world.leader(purge).unwrap();
    assert!(world.chunk(chunk).is_none());
    world.assert_sound();
}
