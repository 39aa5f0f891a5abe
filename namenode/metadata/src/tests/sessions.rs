use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{ChunkState, ExpireSession, OpenInode, Unlink};

use super::*;

#[test]
fn a_repeated_request_gets_the_first_outcome_and_does_nothing() {
    let mut world = World::new();
    let op = Op::Mkdir(Mkdir { at: at("d"), mode: 0o755, ..Mkdir::default() });
    let first = world.submit(world.session, 7, 0, op.clone());
    let again = world.submit(world.session, 7, 0, op);
    assert_eq!(first, again);
    assert_eq!(world.stat("").unwrap().nlink, 3);
    world.assert_sound();
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut world = World::new();
    let unlink = Op::Unlink(Unlink { at: at("f") });
    let first = world.submit(world.session, 1, 0, unlink.clone());
    let create = CreateFile { at: at("f"), mode: 0o644, ..CreateFile::default() };
    opened(world.submit(world.session, 2, 0, Op::Create(create))).unwrap();
    let again = world.submit(world.session, 1, 0, unlink);
    assert_eq!(first, again, "the late duplicate must not remove the file");
    assert!(world.stat("f").is_ok());
}

#[test]
fn an_acknowledged_request_is_never_run_again() {
    let mut world = World::new();
    world.mkdir("a").unwrap();
    world.mkdir("b").unwrap();
    let late = world.submit(world.session, 1, 0, Op::Mkdir(Mkdir { at: at("z"), ..Mkdir::default() }));
    assert_eq!(opened(late).unwrap_err().code, ErrorCode::Duplicate);
    assert_eq!(world.stat("z").unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn expiry_fences_seals_at_the_committed_length_and_frees_unlinked_files() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let doomed = world.create("doomed").unwrap();
    world.run(Op::Open(OpenInode { inode: doomed.inode })).unwrap();
    world.run(Op::Unlink(Unlink { at: at("doomed") })).unwrap();
    let chunk = world.allocate();
    world.commit(file.inode, vec![extent(0, chunk, 0, 100)]).unwrap();
    world.leader(Op::ExpireSession(ExpireSession { session: world.session })).unwrap();
    let sealed = world.chunk(chunk).unwrap();
    assert_eq!((sealed.state(), sealed.length), (ChunkState::Sealed, 100));
    let late = world.commit(file.inode, vec![extent(100, chunk, 100, 50)]).unwrap_err();
    assert_eq!(late.code, ErrorCode::SessionExpired);
    assert_eq!(world.stat("f").unwrap().size, 100);
    world.assert_sound();
}

#[test]
fn an_unlinked_file_lives_until_its_last_opener_closes_it() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let chunk = world.allocate();
    world.run(Op::Open(OpenInode { inode: file.inode })).unwrap();
    world.run(Op::Open(OpenInode { inode: file.inode })).unwrap();
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    world.commit(file.inode, vec![extent(0, chunk, 0, 10)]).unwrap();
    let close = Op::Close(cairn_proto::fs::CloseInodes { inodes: vec![file.inode] });
    world.run(close.clone()).unwrap();
    assert_eq!(world.extents(file.inode).len(), 1);
    world.assert_sound();
    world.run(close).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 0);
    let gone = world.commit(file.inode, vec![extent(10, chunk, 10, 10)]).unwrap_err();
    assert_eq!(gone.code, ErrorCode::Stale);
    world.assert_sound();
}

#[test]
fn a_client_cannot_do_what_only_the_leader_does() {
    let mut world = World::new();
    let other = world.begin();
    let error = world.run(Op::ExpireSession(ExpireSession { session: other })).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotPermitted);
}
