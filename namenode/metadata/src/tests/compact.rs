use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AddReplica, BeginCompaction, ChunkPiece, ClearRange, CloneRange, ExpireSession, ExtentsSwapped,
    OpenInode, PurgeChunk, SealChunk, SetAttr, SetReplication, SwapExtents, Unlink, clone_range,
};

use super::*;

fn piece(chunk: u64, offset: u64, length: u64, new_offset: u64) -> ChunkPiece {
    ChunkPiece { chunk, offset, length, new_offset }
}

impl World {
    /// A file of 1000 bytes that are all of a sealed chunk.
    fn sealed_file(&mut self, path: &str) -> (u64, u64) {
        let inode = self.create(path).unwrap().inode;
        let chunk = self.allocate();
        self.commit(inode, vec![extent(0, chunk, 0, 1000)]).unwrap();
        self.run(Op::Seal(SealChunk { chunk, length: 1000 })).unwrap();
        (inode, chunk)
    }

    fn begin_compaction(&mut self, length: u64) -> u64 {
        let ask = BeginCompaction { length, replication: 3 };
        match self.leader(Op::BeginCompaction(ask)).unwrap() {
            outcome::Result::Allocated(made) => made.chunk.unwrap().chunk,
            other => panic!("{other:?}"),
        }
    }

    /// A chunk gathered by all three datanodes.
    fn gathered(&mut self, length: u64) -> u64 {
        let chunk = self.begin_compaction(length);
        for node in 1..=3 {
            self.leader(Op::AddReplica(AddReplica { chunk, node, blake3: vec![7; 32].into() })).unwrap();
        }
        chunk
    }

    fn swap(&mut self, into: u64, pieces: Vec<ChunkPiece>) -> Result<ExtentsSwapped, Error> {
        match self.leader(Op::SwapExtents(SwapExtents { into, pieces }))? {
            outcome::Result::Swapped(done) => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    fn live(&self, chunk: u64) -> u64 {
        self.chunk(chunk).unwrap().live_bytes
    }
}

#[test]
fn extents_change_over_and_nothing_else_about_a_file_does() {
    let mut world = World::new();
    let (file, old) = world.sealed_file("f");
    let before = world.stat("f").unwrap();
    let new = world.gathered(1000);
    world.assert_sound();
    let done = world.swap(new, vec![piece(old, 0, 1000, 0)]).unwrap();
    assert_eq!(done, ExtentsSwapped { pieces: 1, extents: 1, bytes: 1000 });
    assert_eq!(world.extents(file), vec![extent(0, new, 0, 1000)]);
    assert_eq!(world.stat("f").unwrap(), before);
    assert_eq!((world.live(old), world.live(new)), (0, 1000));
    assert!(world.chunk(old).unwrap().dead_since_ns > 0 && world.chunk(new).unwrap().dead_since_ns == 0);
    world.assert_sound();
    assert_eq!(world.swap(new, vec![piece(old, 0, 1000, 0)]).unwrap().extents, 0, "again changes nothing");
    world.leader(Op::PurgeChunk(PurgeChunk { chunk: old })).unwrap();
    assert_eq!(world.swap(new, vec![piece(old, 0, 1000, 0)]).unwrap().pieces, 1, "nor after the purge");
    world.assert_sound();
}

#[test]
fn whatever_changed_the_file_meanwhile_has_won() {
    let mut world = World::new();
    let (file, old) = world.sealed_file("f");
    let (gone, other) = world.sealed_file("g");
    let new = world.gathered(2000);
    let tail = world.allocate();
    // Overwritten in the middle, cut at its end, a hole in it.
    world.commit(file, vec![extent(200, tail, 0, 100)]).unwrap();
    let at = Some(NodeRef { inode: file, path: Default::default() });
    world.run(Op::SetAttr(SetAttr { at, size: Some(900), ..SetAttr::default() })).unwrap();
    world
        .run(Op::ClearRange(ClearRange { inode: file, offset: 500, length: 50, ..Default::default() }))
        .unwrap();
    world.run(Op::Unlink(Unlink { at: super::at("g") })).unwrap();
    let done = world.swap(new, vec![piece(old, 0, 1000, 0), piece(other, 0, 1000, 1000)]).unwrap();
    assert_eq!((done.pieces, done.bytes), (2, 750));
    let expected = vec![
        extent(0, new, 0, 200),
        extent(200, tail, 0, 100),
        extent(300, new, 300, 200),
        extent(550, new, 550, 350),
    ];
    assert_eq!(world.extents(file), expected);
    assert!(
        world
            .query(query::Op::Layout(cairn_proto::fs::GetLayout {
                at: Some(NodeRef { inode: gone, path: Default::default() }),
                ..Default::default()
            }))
            .is_err()
    );
    assert_eq!((world.live(old), world.live(other), world.live(new)), (0, 0, 750));
    world.assert_sound();
}

#[test]
fn an_extent_across_the_edge_of_a_piece_is_cut_there() {
    let mut world = World::new();
    let (file, old) = world.sealed_file("f");
    let new = world.gathered(300);
    world.swap(new, vec![piece(old, 0, 300, 0)]).unwrap();
    assert_eq!(world.extents(file), vec![extent(0, new, 0, 300), extent(300, old, 300, 700)]);
    let second = world.gathered(600);
    // The extent begins before this piece: it is left alone, and its chunk stays.
    world.swap(second, vec![piece(old, 400, 600, 0)]).unwrap();
    assert_eq!((world.live(old), world.live(second)), (700, 0));
    world.assert_sound();
}

#[test]
fn clones_move_in_every_file_and_raise_the_replication() {
    let mut world = World::new();
    let (file, old) = world.sealed_file("f");
    let copy = world.create("g").unwrap().inode;
    let ask = CloneRange {
        source: file,
        source_offset: 100,
        length: 500,
        target: Some(clone_range::Target::Inode(copy)),
        offset: 50,
        ..CloneRange::default()
    };
    world.run(Op::CloneRange(ask)).unwrap();
    world.run(Op::SetReplication(SetReplication { at: at("g"), replication: 4 })).unwrap();
    assert_eq!(world.live(old), 1500);
    let new = world.gathered(1000);
    assert_eq!(world.swap(new, vec![piece(old, 0, 1000, 0)]).unwrap().extents, 2);
    assert_eq!(world.extents(file), vec![extent(0, new, 0, 1000)]);
    assert_eq!(world.extents(copy), vec![extent(50, new, 100, 500)]);
    assert_eq!((world.live(old), world.live(new)), (0, 1500));
    assert_eq!(world.chunk(new).unwrap().replication, 4);
    world.assert_sound();
}

#[test]
fn an_unlinked_file_that_is_open_moves_too() {
    let mut world = World::new();
    let (file, old) = world.sealed_file("f");
    world.run(Op::Open(OpenInode { inode: file })).unwrap();
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    let new = world.gathered(1000);
    assert_eq!(world.swap(new, vec![piece(old, 0, 1000, 0)]).unwrap().bytes, 1000);
    world.assert_sound();
    let session = world.session;
    world.leader(Op::ExpireSession(ExpireSession { session })).unwrap();
    assert_eq!(world.live(new), 0);
    world.assert_sound();
}

#[test]
fn a_commit_after_the_gathering_stays_where_it_is() {
    let mut world = World::new();
    let inode = world.create("f").unwrap().inode;
    let old = world.allocate();
    world.commit(inode, vec![extent(0, old, 0, 100)]).unwrap();
    world.run(Op::Seal(SealChunk { chunk: old, length: 1000 })).unwrap();
    let new = world.gathered(100);
    // The session was late with the rest of its bytes; the extent grows over the edge of what was gathered.
    world.commit(inode, vec![extent(100, old, 100, 900)]).unwrap();
    world.swap(new, vec![piece(old, 0, 100, 0)]).unwrap();
    assert_eq!(world.extents(inode), vec![extent(0, new, 0, 100), extent(100, old, 100, 900)]);
    world.assert_sound();
    let refused = world.leader(Op::PurgeChunk(PurgeChunk { chunk: old })).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Invalid);
}

#[test]
fn bytes_never_move_to_fewer_replicas_or_past_an_end() {
    let mut world = World::new();
    let (file, old) = world.sealed_file("f");
    let new = world.begin_compaction(1000);
    let code = |result: Result<ExtentsSwapped, Error>| result.unwrap_err().code;
    assert_eq!(code(world.swap(new, vec![piece(old, 0, 1000, 0)])), ErrorCode::Invalid, "no replica yet");
    for node in 1..=2 {
        world.leader(Op::AddReplica(AddReplica { chunk: new, node, ..AddReplica::default() })).unwrap();
    }
    assert_eq!(code(world.swap(new, vec![piece(old, 0, 1000, 0)])), ErrorCode::Invalid, "two of three");
    world.leader(Op::AddReplica(AddReplica { chunk: new, node: 3, ..AddReplica::default() })).unwrap();
    for wrong in [piece(old, 0, 1000, 1), piece(old, 1, 1000, 0), piece(old, 0, 0, 0), piece(new, 0, 10, 20)]
    {
        assert_eq!(code(world.swap(new, vec![wrong])), ErrorCode::Invalid, "{wrong:?}");
    }
    assert_eq!(code(world.swap(99, vec![])), ErrorCode::ChunkUnknown);
    let open = world.allocate();
    assert_eq!(code(world.swap(open, vec![])), ErrorCode::Invalid);
    assert_eq!(world.extents(file), vec![extent(0, old, 0, 1000)]);
    let wrong = [(0, 3), (1 << 40, 3), (10, 0), (10, 99)];
    for (length, replication) in wrong {
        let ask = BeginCompaction { length, replication };
        assert_eq!(world.leader(Op::BeginCompaction(ask)).unwrap_err().code, ErrorCode::Invalid);
    }
    assert!(
        world.run(Op::BeginCompaction(BeginCompaction { length: 10, replication: 3 })).is_err(),
        "a client"
    );
    assert!(world.run(Op::SwapExtents(SwapExtents { into: new, pieces: vec![] })).is_err(), "a client");
    world.assert_sound();
}

#[test]
fn one_command_moves_a_bounded_number_of_extents_and_says_how_far_it_came() {
    let mut world = World::new();
    let inode = world.create("f").unwrap().inode;
    let old = world.allocate();
    // Every second byte, so that nothing joins.
    for first in (0..3000).step_by(500) {
        let extents = (first..first + 500).map(|n| extent(n * 2, old, n * 2, 1)).collect();
        world.commit(inode, extents).unwrap();
    }
    world.run(Op::Seal(SealChunk { chunk: old, length: 6000 })).unwrap();
    let pieces = world.view(|view| crate::plan::compact::pieces(view, &[old], 1 << 20)).unwrap();
    assert_eq!(pieces.len(), 3000);
    let new = world.gathered(3000);
    assert_eq!(world.swap(new, pieces.clone()).unwrap_err().code, ErrorCode::Invalid, "too many at once");
    let mut from = 0;
    while from < pieces.len() {
        let some = pieces[from..].iter().take(1024).copied().collect();
        let done = world.swap(new, some).unwrap();
        assert!(done.extents <= 1024 && done.pieces > 0);
        from += done.pieces as usize;
        world.assert_sound();
    }
    assert_eq!((world.live(old), world.live(new)), (0, 3000));
    // Many files over the same bytes: one piece takes several commands.
    let sources = world.sealed_file("shared");
    for number in 0..1500 {
        let copy = world.create(&format!("c{number}")).unwrap().inode;
        let target = Some(clone_range::Target::Inode(copy));
        let ask = CloneRange { source: sources.0, length: 1000, target, ..CloneRange::default() };
        world.run(Op::CloneRange(ask)).unwrap();
    }
    let new = world.gathered(1000);
    let whole = piece(sources.1, 0, 1000, 0);
    assert_eq!(
        world.swap(new, vec![whole]).unwrap(),
        ExtentsSwapped { pieces: 0, extents: 1024, bytes: 1_024_000 }
    );
    assert_eq!(
        world.swap(new, vec![whole]).unwrap(),
        ExtentsSwapped { pieces: 1, extents: 477, bytes: 477_000 }
    );
    assert_eq!(world.live(sources.1), 0);
    world.assert_sound();
}

#[test]
fn a_gathered_chunk_nobody_swaps_into_is_garbage() {
    let mut world = World::new();
    let new = world.begin_compaction(10);
    let add = AddReplica { chunk: new, node: 1, blake3: vec![1; 32].into() };
    world.leader(Op::AddReplica(add.clone())).unwrap();
    let other = AddReplica { node: 2, blake3: vec![2; 32].into(), ..add.clone() };
    assert_eq!(world.leader(Op::AddReplica(other)).unwrap_err().code, ErrorCode::Corrupt);
    let record = world.chunk(new).unwrap();
    assert_eq!((record.replicas, record.blake3), (vec![1], add.blake3));
    assert!(record.dead_since_ns > 0);
    world.leader(Op::PurgeChunk(PurgeChunk { chunk: new })).unwrap();
    world.assert_sound();
}

#[test]
fn what_a_snapshot_has_as_it_is_changes_over_with_the_file() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    let (_, old) = world.sealed_file("d/f");
    let (_, cut) = world.sealed_file("d/g");
    world.snapshot("d", "s").unwrap();
    let new = world.gathered(1000);
    world.swap(new, vec![piece(old, 0, 1000, 0)]).unwrap();
    let then = world.stat("d/.snapshot/s/f").unwrap().inode;
    assert_eq!(world.extents(then), vec![extent(0, new, 0, 1000)]);
    assert!(crate::records::is_dead(&world.chunk(old).unwrap()), "nothing was kept");
    world.assert_sound();
    // An extent that is cut is another one.
    let part = world.gathered(1000);
    world.swap(part, vec![piece(cut, 0, 400, 0), piece(cut, 400, 100, 400)]).unwrap();
    let then = world.stat("d/.snapshot/s/g").unwrap().inode;
    assert_eq!(world.extents(then), vec![extent(0, cut, 0, 1000)]);
    assert_eq!(world.chunk(cut).unwrap().kept_bytes, 1000);
    world.assert_sound();
    // What only the snapshot has stays where it is.
    world.run(Op::Unlink(Unlink { at: super::at("d/f") })).unwrap();
    let newer = world.gathered(1000);
    let refused = world.swap(newer, vec![piece(new, 0, 1000, 0)]).unwrap_err();
    assert!(refused.code == ErrorCode::Invalid && refused.detail.contains("snapshots"), "{refused}");
    world.assert_sound();
}

#[test]
fn what_changes_over_joins_nothing_that_a_snapshot_has_under_another_key() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    let (first, others, later) = (world.allocate(), world.allocate(), world.allocate());
    let file = world.create("d/f").unwrap().inode;
    let apart = (0..4).map(|n| extent(30 + 20 * n, others, 10 + 10 * n, 10));
    let before = [extent(0, first, 0, 10), extent(10, others, 0, 10)].into_iter().chain(apart);
    let before: Vec<Extent> = before.collect();
    world.commit(file, before.clone()).unwrap();
    world.snapshot("d", "s").unwrap();
    world.commit(file, vec![extent(10, later, 0, 10)]).unwrap();
    for chunk in [first, later] {
        world.run(Op::Seal(SealChunk { chunk, length: 10 })).unwrap();
    }
    let new = world.gathered(20);
    world.swap(new, vec![piece(first, 0, 10, 0), piece(later, 0, 10, 10)]).unwrap();
    let mut then = before.clone();
    then[0] = extent(0, new, 0, 10);
    let mut now = then.clone();
    now[1] = extent(10, new, 10, 10);
    assert_eq!(world.extents(file), now);
    let inside = world.stat("d/.snapshot/s/f").unwrap().inode;
    assert_eq!(world.extents(inside), then);
    world.assert_sound();
}
