use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{ClearRange, CloneRange, RangeDone, SealChunk, SetReplication, Unlink, clone_range};

use super::*;
use crate::ranges::MAX_EXTENTS;

fn range(result: Result<outcome::Result, Error>) -> Result<RangeDone, Error> {
    match result? {
        outcome::Result::Range(done) => Ok(done),
        other => panic!("{other:?}"),
    }
}

fn clear(world: &mut World, inode: u64, offset: u64, length: u64) -> Result<RangeDone, Error> {
    range(world.run(Op::ClearRange(ClearRange { inode, offset, length, ..ClearRange::default() })))
}

fn clone(
    world: &mut World,
    (source, source_offset): (u64, u64),
    (inode, offset): (u64, u64),
    length: u64,
) -> Result<RangeDone, Error> {
    let target = Some(clone_range::Target::Inode(inode));
    let ask = CloneRange { source, source_offset, length, target, offset, ..CloneRange::default() };
    range(world.run(Op::CloneRange(ask)))
}

fn copy(world: &mut World, source: u64, to: &str) -> Result<RangeDone, Error> {
    let create = CreateFile { at: at(to), mode: 0o644, truncate: true, ..CreateFile::default() };
    let target = Some(clone_range::Target::Create(create));
    range(world.run(Op::CloneRange(CloneRange { source, length: u64::MAX, target, ..CloneRange::default() })))
}

/// A file of `count` extents of 10 bytes with holes of 10 bytes between them.
fn scattered(world: &mut World, path: &str, count: u64) -> u64 {
    let inode = world.create(path).unwrap().inode;
    let chunk = world.allocate();
    let extents: Vec<Extent> = (0..count).map(|n| extent(n * 20, chunk, (count - n) * 10, 10)).collect();
    for batch in extents.chunks(4096) {
        world.commit(inode, batch.to_vec()).unwrap();
    }
    inode
}

#[test]
fn a_cleared_range_gives_its_bytes_back() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    let chunk = world.allocate();
    let before = world.commit(file, vec![extent(0, chunk, 0, 1000)]).unwrap();
    let done = clear(&mut world, file, 100, 300).unwrap();
    let attr = done.attr.unwrap();
    assert_eq!((done.length, attr.size, attr.allocated), (300, 1000, 700));
    assert!(attr.version > before.version && attr.mtime_ns > before.mtime_ns);
    assert_eq!(world.extents(file), vec![extent(0, chunk, 0, 100), extent(400, chunk, 400, 600)]);
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 700);
    // Past the end there is nothing to clear, and the size stays unless it is asked for.
    assert_eq!(clear(&mut world, file, 2000, 50).unwrap().attr.unwrap().size, 1000);
    let grow =
        ClearRange { inode: file, offset: 900, length: 600, size: Some(1500), ..ClearRange::default() };
    let attr = range(world.run(Op::ClearRange(grow))).unwrap().attr.unwrap();
    assert_eq!((attr.size, attr.allocated), (1500, 600));
    world.assert_sound();
}

#[test]
fn one_command_does_a_bounded_part_of_a_range() {
    let mut world = World::new();
    let count = MAX_EXTENTS as u64 + 10;
    let file = scattered(&mut world, "f", count);
    let size = world.stat("f").unwrap().size;
    let done = clear(&mut world, file, 0, size).unwrap();
    assert_eq!(done.length, MAX_EXTENTS as u64 * 20);
    assert_eq!(world.extents(file).len(), 10);
    let rest = clear(&mut world, file, done.length, size - done.length).unwrap();
    assert_eq!((rest.length, rest.attr.unwrap().allocated), (size - done.length, 0));
    world.assert_sound();
}

#[test]
fn a_clone_shares_the_chunks() {
    let mut world = World::new();
    let from = world.create("from").unwrap().inode;
    let to = world.create("to").unwrap().inode;
    let chunk = world.allocate();
    world.commit(from, vec![extent(0, chunk, 0, 1000), extent(2000, chunk, 1000, 500)]).unwrap();
    world.commit(to, vec![extent(0, chunk, 1500, 3000)]).unwrap();
    let done = clone(&mut world, (from, 900), (to, 100), 1200).unwrap();
    assert_eq!((done.length, done.attr.unwrap().size), (1200, 3000));
    let expected = vec![
        extent(0, chunk, 1500, 100),
        extent(100, chunk, 900, 100),
        extent(1200, chunk, 1000, 100),
        extent(1300, chunk, 2800, 1700),
    ];
    assert_eq!(world.extents(to), expected);
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 1000 + 500 + 100 + 100 + 100 + 1700);
    world.assert_sound();
    // The chunk lives for as long as either file needs it.
    world.run(Op::Unlink(Unlink { at: at("from") })).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 2000);
    world.run(Op::Unlink(Unlink { at: at("to") })).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().live_bytes, 0);
    world.assert_sound();
}

#[test]
fn a_clone_ends_where_its_source_ends() {
    let mut world = World::new();
    let from = world.create("from").unwrap().inode;
    let to = world.create("to").unwrap().inode;
    let chunk = world.allocate();
    world.commit(from, vec![extent(0, chunk, 0, 100)]).unwrap();
    assert_eq!(clone(&mut world, (from, 60), (to, 5), u64::MAX).unwrap().length, 40);
    let before = world.stat("to").unwrap();
    assert_eq!(before.size, 45);
    assert_eq!(clone(&mut world, (from, 100), (to, 0), 10).unwrap().length, 0);
    assert_eq!(world.stat("to").unwrap(), before);
    let error = clone(&mut world, (from, 0), (to, i64::MAX as u64 - 10), 20).unwrap_err();
    assert_eq!(error.code, ErrorCode::FileTooBig);
    world.assert_sound();
}

#[test]
fn a_file_may_be_cloned_into_itself_where_the_ranges_are_apart() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    let chunk = world.allocate();
    world.commit(file, vec![extent(0, chunk, 0, 100)]).unwrap();
    assert_eq!(clone(&mut world, (file, 0), (file, 50), 60).unwrap_err().code, ErrorCode::Invalid);
    assert_eq!(clone(&mut world, (file, 50), (file, 0), 51).unwrap().length, 50);
    assert_eq!(clone(&mut world, (file, 0), (file, 100), 100).unwrap().length, 100);
    let halves: Vec<Extent> = (0..4).map(|half| extent(half * 50, chunk, 50, 50)).collect();
    assert_eq!(world.extents(file), halves);
    world.assert_sound();
}

#[test]
fn a_clone_is_bounded_by_both_files() {
    let mut world = World::new();
    let count = MAX_EXTENTS as u64 + 5;
    let many = scattered(&mut world, "many", count);
    let few = world.create("few").unwrap().inode;
    let chunk = world.allocate();
    world.commit(few, vec![extent(0, chunk, 0, count * 20)]).unwrap();
    let bound = MAX_EXTENTS as u64 * 20;
    assert_eq!(clone(&mut world, (few, 0), (many, 0), u64::MAX).unwrap().length, bound);
    assert_eq!(clone(&mut world, (few, bound), (many, bound), u64::MAX).unwrap().length, 100);
    assert_eq!(world.extents(many), world.extents(few));
    let many = scattered(&mut world, "again", count);
    assert_eq!(clone(&mut world, (many, 0), (few, 0), u64::MAX).unwrap().length, bound);
    assert_eq!(copy(&mut world, many, "copy").unwrap_err().code, ErrorCode::TooLarge);
    assert!(world.stat("copy").is_err(), "a refused copy leaves nothing behind");
    world.assert_sound();
}

#[test]
fn a_copy_appears_whole() {
    let mut world = World::new();
    let from = scattered(&mut world, "from", 30);
    let attr = copy(&mut world, from, "to").unwrap().attr.unwrap();
    assert_eq!((attr.size, attr.allocated), (590, 300));
    assert_eq!(world.extents(attr.inode), world.extents(from));
    // Onto itself it would be emptied before it is read.
    assert_eq!(copy(&mut world, from, "from").unwrap_err().code, ErrorCode::Invalid);
    assert_eq!(world.extents(from).len(), 30);
    let empty = world.create("empty").unwrap().inode;
    assert_eq!(copy(&mut world, empty, "to").unwrap().attr.unwrap().size, 0);
    assert!(world.extents(attr.inode).is_empty());
    world.assert_sound();
}

#[test]
fn shared_chunks_have_the_replicas_of_whoever_wants_most() {
    let mut world = World::new();
    let from = world.create("from").unwrap().inode;
    let to = world.create("to").unwrap().inode;
    let chunk = world.allocate();
    world.commit(from, vec![extent(0, chunk, 0, 100)]).unwrap();
    world.run(Op::Seal(SealChunk { chunk, length: 100 })).unwrap();
    let replicas = |path, replication| Op::SetReplication(SetReplication { at: at(path), replication });
    world.run(replicas("to", 5)).unwrap();
    clone(&mut world, (from, 0), (to, 0), 100).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().replication, 5);
    world.run(replicas("from", 1)).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().replication, 5, "the other file still wants them");
    world.assert_sound();
}

#[test]
fn ranges_need_the_rights_of_reading_and_writing() {
    let mut world = World::new();
    let mine = scattered(&mut world, "mine", 3);
    world.cred = user(7);
    assert_eq!(clear(&mut world, mine, 0, 10).unwrap_err().code, ErrorCode::PermissionDenied);
    assert_eq!(clone(&mut world, (mine, 0), (mine, 100), 10).unwrap_err().code, ErrorCode::PermissionDenied);
    world.cred = root();
    let directory = world.mkdir("d").unwrap().inode;
    assert_eq!(clear(&mut world, directory, 0, 10).unwrap_err().code, ErrorCode::IsDirectory);
    assert_eq!(clear(&mut world, 999, 0, 10).unwrap_err().code, ErrorCode::Stale);
    let nowhere = CloneRange { source: mine, length: 1, ..CloneRange::default() };
    assert_eq!(range(world.run(Op::CloneRange(nowhere))).unwrap_err().code, ErrorCode::Malformed);
    world.assert_sound();
}
