//! Snapshots: what is seen in them, what they refuse, and what becomes of what they kept.

use cairn_proto::ErrorCode;
use cairn_proto::fs::{
    CloneRange, CloseInodes, CreateSnapshot, Discard, FileRead, GetXattr, Link, ListDirectory, ListSnapshots,
    Listing, MarkRead, OpenInode, PurgeSnapshot, RemoveSnapshot, Rename, Rmdir, SetAttr, SetReplication,
    SetTrash, SetXattr, SnapshotInfo, Symlink, Unlink, clone_range,
};
use cairn_proto::snapshot::{is_inside, number, parts};

use super::*;

impl World {
    pub(super) fn snapshot(&mut self, path: &str, name: &str) -> Result<SnapshotInfo, Error> {
        let ask = CreateSnapshot { at: at(path), name: name.as_bytes().to_vec().into() };
        match self.run(Op::CreateSnapshot(ask))? {
            outcome::Result::Snapshot(info) => Ok(info),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn remove_snapshot(&mut self, path: &str, name: &str) -> Result<(), Error> {
        let ask = RemoveSnapshot { at: at(path), name: name.as_bytes().to_vec().into() };
        self.run(Op::RemoveSnapshot(ask)).map(drop)
    }

    /// Lets go of all that snapshots kept that were given up.
    pub(super) fn purge_snapshots(&mut self) {
        while let Some(seq) = self.view(|view| crate::plan::snapshot::going(view).unwrap()) {
            self.leader(Op::PurgeSnapshot(PurgeSnapshot { seq })).unwrap();
        }
    }

    pub(super) fn list_at(&self, at: Option<NodeRef>, after: &[u8], limit: u32) -> Result<Listing, Error> {
        let ask = ListDirectory { at, after: after.to_vec().into(), limit };
        match self.query(query::Op::List(ask))? {
            answer::Result::Listing(listing) => Ok(listing),
            other => panic!("{other:?}"),
        }
    }

    fn names_in(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().cloned().unwrap_or_default();
            let page = self.list_at(at(path), after.as_bytes(), 100).unwrap();
            names.extend(page.entries.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()));
            if page.end {
                return names;
            }
        }
    }

    fn file(&mut self, path: &str, extents: Vec<Extent>) -> u64 {
        let inode = self.create(path).unwrap().inode;
        self.commit(inode, extents).unwrap();
        inode
    }

    fn moved(&mut self, from: &str, to: &str) -> Result<(), Error> {
        self.run(Op::Rename(Rename { from: at(from), to: at(to), ..Rename::default() })).map(drop)
    }

    fn removed(&mut self, path: &str) -> Result<(), Error> {
        self.run(Op::Unlink(Unlink { at: at(path) })).map(drop)
    }

    fn truncate(&mut self, path: &str, size: u64) -> Result<(), Error> {
        let ask = SetAttr { at: at(path), size: Some(size), ..SetAttr::default() };
        self.run(Op::SetAttr(ask)).map(drop)
    }

    fn bytes_at(&self, path: &str) -> Vec<(u64, u64, u64, u64)> {
        let inode = self.stat(path).unwrap().inode;
        let shown = |extent: Extent| (extent.file_offset, extent.chunk, extent.chunk_offset, extent.length);
        self.extents(inode).into_iter().map(shown).collect()
    }

    fn seal(&mut self, chunk: u64, length: u64) {
        self.run(Op::Seal(cairn_proto::fs::SealChunk { chunk, length })).unwrap();
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn a_snapshot_has_what_was_there_whatever_happens() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    world.mkdir("d/sub").unwrap();
    world.file("d/kept", vec![extent(0, chunk, 0, 10)]);
    world.file("d/gone", vec![extent(0, chunk, 10, 10)]);
    world.file("d/moved", vec![extent(0, chunk, 20, 10)]);
    world.file("d/sub/cut", vec![extent(0, chunk, 30, 10)]);
    let before = world.stat("d/sub/cut").unwrap();
    let info = world.snapshot("d", "one").unwrap();
    assert_eq!((&info.path[..], &info.name[..]), (&b"/d"[..], &b"one"[..]));

    let kept = world.stat("d/kept").unwrap().inode;
    world.commit(kept, vec![extent(5, chunk, 40, 10)]).unwrap();
    world.removed("d/gone").unwrap();
    world.moved("d/moved", "elsewhere").unwrap();
    world.truncate("elsewhere", 3).unwrap();
    world.truncate("d/sub/cut", 0).unwrap();
    world.moved("d/sub", "sub").unwrap();
    world.create("sub/new").unwrap();
    world.create("d/new").unwrap();
    world.assert_sound();

    assert_eq!(world.names_in("d"), ["kept", "new"]);
    assert_eq!(world.names_in("d/.snapshot"), ["one"]);
    assert_eq!(world.names_in("d/.snapshot/one"), ["gone", "kept", "moved", "sub"]);
    assert_eq!(world.names_in("d/.snapshot/one/sub"), ["cut"]);
    assert_eq!(world.bytes_at("d/.snapshot/one/kept"), [(0, chunk, 0, 10)]);
    assert_eq!(world.bytes_at("d/.snapshot/one/gone"), [(0, chunk, 10, 10)]);
    assert_eq!(world.bytes_at("d/.snapshot/one/moved"), [(0, chunk, 20, 10)]);
    let cut = world.stat("d/.snapshot/one/sub/cut").unwrap();
    assert!(is_inside(cut.inode));
    assert_eq!(Attr { inode: before.inode, ..cut }, before);
    // By its number, as a mount asks.
    let by_number = Some(NodeRef { inode: info.inode, path: b"sub/cut".to_vec().into() });
    let stat = cairn_proto::fs::Stat { at: by_number, follow: false };
    let answer::Result::Attr(found) = world.query(query::Op::Stat(stat)).unwrap() else { panic!() };
    assert_eq!(found, cut);
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    world.file("d/f", vec![extent(0, chunk, 0, 10)]);
    world.snapshot("d", "s").unwrap();
    let inside = world.stat("d/.snapshot/s/f").unwrap().inode;
    let here = |inode: u64, name: &str| Some(NodeRef { inode, path: name.as_bytes().to_vec().into() });
    let top = world.stat("d/.snapshot/s").unwrap().inode;
    assert_eq!(code(world.create("d/.snapshot/s/x")), ErrorCode::ReadOnly);
    assert_eq!(code(world.mkdir("d/.snapshot/x")), ErrorCode::ReadOnly);
    assert_eq!(code(world.mkdir("d/.snapshot")), ErrorCode::ReadOnly);
    assert_eq!(code(world.removed("d/.snapshot/s/f")), ErrorCode::ReadOnly);
    assert_eq!(code(world.run(Op::Unlink(Unlink { at: here(top, "f") }))), ErrorCode::ReadOnly);
    assert_eq!(code(world.run(Op::Rmdir(Rmdir { at: at("d/.snapshot") }))), ErrorCode::ReadOnly);
    assert_eq!(code(world.moved("d/.snapshot/s/f", "d/x")), ErrorCode::ReadOnly);
    assert_eq!(code(world.moved("d/f", "d/.snapshot/s/x")), ErrorCode::ReadOnly);
    assert_eq!(code(world.truncate("d/.snapshot/s/f", 0)), ErrorCode::ReadOnly);
    assert_eq!(code(world.commit(inside, vec![extent(0, chunk, 10, 1)])), ErrorCode::ReadOnly);
    let link = Link { from: at("d/.snapshot/s/f"), at: at("d/x") };
    assert_eq!(code(world.run(Op::Link(link))), ErrorCode::ReadOnly);
    assert_eq!(code(world.snapshot("d/.snapshot/s", "t")), ErrorCode::ReadOnly);
    let create = CreateFile { at: here(top, "f"), truncate: true, ..CreateFile::default() };
    assert_eq!(code(world.run(Op::Create(create))), ErrorCode::ReadOnly);
    // What leaves no trace is done.
    let opened = world.run(Op::Open(OpenInode { inode: inside })).unwrap();
    assert!(matches!(opened, outcome::Result::Attr(attr) if attr.inode == inside && attr.size == 10));
    world.run(Op::Close(CloseInodes { inodes: vec![inside] })).unwrap();
    let read = FileRead { inode: inside, atime_ns: i64::MAX, version: 1 };
    world.run(Op::MarkRead(MarkRead { files: vec![read] })).unwrap();
    world.assert_sound();
}

#[test]
fn the_name_is_nobodys_and_leads_nowhere_without_snapshots() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    assert_eq!(code(world.stat("d/.snapshot")), ErrorCode::NotFound);
    assert_eq!(code(world.mkdir("d/.snapshot")), ErrorCode::Invalid);
    assert_eq!(code(world.create("d/.snapshot")), ErrorCode::Invalid);
    world.create("d/f").unwrap();
    assert_eq!(code(world.moved("d/f", "d/.snapshot")), ErrorCode::Invalid);
    world.snapshot("d", "s").unwrap();
    assert_eq!(world.names_in("d"), ["f"]);
    assert_eq!(world.names_in("d/.snapshot"), ["s"]);
    assert_eq!(code(world.stat("d/.snapshot/t")), ErrorCode::NotFound);
    assert_eq!(code(world.stat("d/.snapshot/s/.snapshot")), ErrorCode::NotFound);
    assert_eq!(code(world.snapshot("d", "s")), ErrorCode::Exists);
    assert_eq!(code(world.snapshot("d/f", "s")), ErrorCode::NotDirectory);
    let unnamed = world.snapshot("d", "").unwrap();
    assert!(unnamed.name.starts_with(b"s1970"), "{unnamed:?}");
    world.assert_sound();
}

#[test]
fn only_the_owner_makes_and_removes_snapshots() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    let ask = SetAttr { at: at("d"), uid: Some(7), mode: Some(0o700), ..SetAttr::default() };
    world.run(Op::SetAttr(ask)).unwrap();
    world.snapshot("d", "roots").unwrap();
    world.cred = user(7);
    world.snapshot("d", "own").unwrap();
    let listed = |world: &World| {
        let found = world.query(query::Op::ListSnapshots(ListSnapshots::default())).unwrap();
        let answer::Result::Snapshots(list) = found else { panic!("{found:?}") };
        list.snapshots
            .into_iter()
            .map(|info| String::from_utf8(info.name.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(&world), ["own", "roots"]);
    world.cred = user(8);
    assert_eq!(code(world.snapshot("d", "other")), ErrorCode::NotPermitted);
    assert_eq!(code(world.remove_snapshot("d", "own")), ErrorCode::NotPermitted);
    assert_eq!(code(world.stat("d/.snapshot/own")), ErrorCode::PermissionDenied);
    assert!(listed(&world).is_empty());
    world.cred = user(7);
    world.remove_snapshot("d", "roots").unwrap();
    assert_eq!(code(world.remove_snapshot("d", "roots")), ErrorCode::NotFound);
    world.cred = root();
    assert_eq!(listed(&world), ["own"]);
}

#[test]
fn a_directory_with_snapshots_stays_where_it_is() {
    let mut world = World::new();
    world.run(Op::SetTrash(SetTrash { keep_ns: 1 })).unwrap();
    world.mkdir("up").unwrap();
    world.mkdir("up/d").unwrap();
    world.snapshot("up/d", "s").unwrap();
    let refused = world.run(Op::Rmdir(Rmdir { at: at("up/d") })).unwrap_err();
    assert!(refused.code == ErrorCode::Busy && refused.detail.contains("cairn snapshot"), "{refused}");
    assert_eq!(code(world.moved("up/d", "up/e")), ErrorCode::Busy);
    assert_eq!(code(world.run(Op::Discard(Discard { at: at("up/d") }))), ErrorCode::Busy);
    world.mkdir("up/f").unwrap();
    assert_eq!(code(world.moved("up/f", "up/d")), ErrorCode::Busy);
    // With what is above it, it moves.
    world.moved("up", "moved").unwrap();
    assert_eq!(world.names_in("moved/d/.snapshot"), ["s"]);
    // And what is above it can go to the trash, and goes from there with the snapshot.
    world.run(Op::Discard(Discard { at: at("moved") })).unwrap();
    let item = world.trash(false).unwrap().items.remove(0).item;
    world.run(Op::PurgeTrash(cairn_proto::fs::PurgeTrash { item })).unwrap();
    world.purge_snapshots();
    world.assert_sound();
    assert_eq!(world.view(|view| crate::meta(view).unwrap().unwrap().snapshots), 0);
}

#[test]
fn snapshots_go_from_the_trash_in_steps() {
    let mut world = World::new();
    world.run(Op::SetTrash(SetTrash { keep_ns: 1 << 60 })).unwrap();
    world.mkdir("a").unwrap();
    world.mkdir("a/b").unwrap();
    for number in 0..1500 {
        world.snapshot("a/b", &format!("{}", number * 7919 % 1500)).unwrap();
    }
    world.run(Op::Discard(Discard { at: at("a") })).unwrap();
    let item = world.trash(false).unwrap().items[0].item;
    let purge = cairn_proto::fs::PurgeTrash { item };
    let left = |world: &World| world.view(|view| crate::meta(view).unwrap().unwrap().snapshots);
    for (end, snapshots) in [(false, 1500 - 1024), (true, 0)] {
        match world.run(Op::PurgeTrash(purge)).unwrap() {
            outcome::Result::TrashPurged(done) => assert_eq!(done.end, end),
            other => panic!("{other:?}"),
        }
        assert_eq!(left(&world), snapshots);
        world.assert_sound();
    }
}

#[test]
fn what_lies_too_deep_to_be_looked_for_is_kept() {
    let mut world = World::new();
    let chunk = world.allocate();
    let mut path = "d".to_string();
    world.mkdir(&path).unwrap();
    for _ in 0..crate::snapshot::purge::MAX_DEPTH + 2 {
        path.push_str("/d");
        world.mkdir(&path).unwrap();
    }
    let file = world.file(&format!("{path}/f"), vec![extent(0, chunk, 0, 10)]);
    world.snapshot("d", "old").unwrap();
    world.snapshot("d", "new").unwrap();
    let before = world.bytes_at(&format!("d/.snapshot/old/{}/f", &path[2..]));
    world.commit(file, vec![extent(0, chunk, 20, 10)]).unwrap();
    world.remove_snapshot("d", "new").unwrap();
    world.purge_snapshots();
    assert_eq!(world.bytes_at(&format!("d/.snapshot/old/{}/f", &path[2..])), before);
    world.assert_sound();
}

#[test]
fn what_snapshots_have_is_no_garbage() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    world.file("d/f", vec![extent(0, chunk, 0, 10)]);
    world.snapshot("d", "s").unwrap();
    world.removed("d/f").unwrap();
    world.seal(chunk, 10);
    let record = world.chunk(chunk).unwrap();
    assert_eq!((record.live_bytes, record.kept_bytes, record.dead_since_ns), (0, 10, 0));
    let purge = cairn_proto::fs::PurgeChunk { chunk };
    assert_eq!(code(world.leader(Op::PurgeChunk(purge))), ErrorCode::Invalid);
    world.assert_sound();
    world.remove_snapshot("d", "s").unwrap();
    world.assert_sound();
    assert_eq!(code(world.stat("d/.snapshot")), ErrorCode::NotFound);
    world.purge_snapshots();
    let record = world.chunk(chunk).unwrap();
    assert!(record.kept_bytes == 0 && record.dead_since_ns > 0);
    world.leader(Op::PurgeChunk(purge)).unwrap();
    world.assert_sound();
}

#[test]
fn older_snapshots_inherit_what_they_need_and_others_do_not() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("a").unwrap();
    world.mkdir("b").unwrap();
    world.file("a/old", vec![extent(0, chunk, 0, 10)]);
    world.snapshot("a", "a1").unwrap();
    world.snapshot("b", "b1").unwrap();
    world.file("a/new", vec![extent(0, chunk, 10, 10)]);
    world.snapshot("a", "a2").unwrap();
    world.removed("a/old").unwrap();
    world.removed("a/new").unwrap();
    world.remove_snapshot("a", "a2").unwrap();
    // Between the steps, too.
    assert_eq!(world.names_in("a/.snapshot/a1"), ["old"]);
    world.file("a/old", vec![extent(0, chunk, 20, 5)]);
    world.purge_snapshots();
    world.assert_sound();
    assert_eq!(world.names_in("a/.snapshot/a1"), ["old"]);
    assert_eq!(world.bytes_at("a/.snapshot/a1/old"), [(0, chunk, 0, 10)]);
    assert_eq!(world.chunk(chunk).unwrap().kept_bytes, 10, "nobody has a/new any more");
    world.remove_snapshot("a", "a1").unwrap();
    world.purge_snapshots();
    assert_eq!(world.chunk(chunk).unwrap().kept_bytes, 0);
    world.remove_snapshot("b", "b1").unwrap();
    world.purge_snapshots();
    world.assert_sound();
    assert_eq!(world.view(|view| rows(view, crate::store::Table::Old)), 0);
}

fn rows(view: &dyn View, table: crate::store::Table) -> usize {
    let mut count = 0;
    view.scan(table, &[], &[], &mut |_, _| {
        count += 1;
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    count
}

#[test]
fn a_file_with_names_inside_and_outside_is_kept() {
    let mut world = World::new();
    let chunk = world.allocate();
    // The older directory, which counts the file's bytes, is not the one with the snapshot.
    world.mkdir("out").unwrap();
    world.mkdir("in").unwrap();
    world.file("out/f", vec![extent(0, chunk, 0, 10)]);
    world.run(Op::Link(Link { from: at("out/f"), at: at("in/f") })).unwrap();
    world.snapshot("in", "s").unwrap();
    world.removed("in/f").unwrap();
    world.truncate("out/f", 0).unwrap();
    world.removed("out/f").unwrap();
    world.assert_sound();
    assert_eq!(world.bytes_at("in/.snapshot/s/f"), [(0, chunk, 0, 10)]);
    assert_eq!(world.stat("in/.snapshot/s/f").unwrap().nlink, 2);
}

#[test]
fn an_open_file_without_a_name_stays_in_its_snapshot() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    let inode = world.file("d/f", vec![extent(0, chunk, 0, 10)]);
    world.run(Op::Open(OpenInode { inode })).unwrap();
    world.snapshot("d", "s").unwrap();
    world.removed("d/f").unwrap();
    world.commit(inode, vec![extent(0, chunk, 10, 10)]).unwrap();
    world.run(Op::Close(CloseInodes { inodes: vec![inode] })).unwrap();
    world.assert_sound();
    assert_eq!(world.bytes_at("d/.snapshot/s/f"), [(0, chunk, 0, 10)]);
}

#[test]
fn files_of_many_extents_and_attributes_are_kept() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    let many = |base: u64| (0..20).map(|n| extent(n * 20, chunk, base + n * 10, 10)).collect::<Vec<_>>();
    let inode = world.file("d/f", many(0));
    let set = |value: &str| {
        let value = value.as_bytes().to_vec().into();
        Op::SetXattr(SetXattr { at: at("d/f"), name: "user.x".into(), value, ..SetXattr::default() })
    };
    world.run(set("then")).unwrap();
    let before = world.bytes_at("d/f");
    world.snapshot("d", "s").unwrap();
    world.commit(inode, vec![extent(25, chunk, 500, 100)]).unwrap();
    world.run(set("now")).unwrap();
    world.truncate("d/f", 7).unwrap();
    world.snapshot("d", "t").unwrap();
    world.truncate("d/f", 0).unwrap();
    world.assert_sound();
    assert_eq!(world.bytes_at("d/.snapshot/s/f"), before);
    assert_eq!(world.bytes_at("d/.snapshot/t/f"), [(0, chunk, 0, 7)]);
    let value = |path: &str| match world
        .query(query::Op::GetXattr(GetXattr { at: at(path), name: "user.x".into() }))
        .unwrap()
    {
        answer::Result::Bytes(value) => String::from_utf8(value.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((value("d/f"), value("d/.snapshot/s/f")), ("now".into(), "then".into()));
}

#[test]
fn a_large_directory_is_listed_as_it_was() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    let name = |n: usize| format!("{n:04}");
    (0..600).for_each(|n| _ = world.create(&format!("d/{}", name(n))).unwrap());
    world.snapshot("d", "s").unwrap();
    (0..600).filter(|n| n % 3 != 0).for_each(|n| world.removed(&format!("d/{}", name(n))).unwrap());
    (0..600).for_each(|n| _ = world.create(&format!("d/{}+", name(n))).unwrap());
    let expected: Vec<String> = (0..600).map(name).collect();
    assert_eq!(world.names_in("d/.snapshot/s"), expected);
    world.assert_sound();
    world.remove_snapshot("d", "s").unwrap();
    world.purge_snapshots();
    world.assert_sound();
    assert_eq!(world.view(|view| rows(view, crate::store::Table::Old)), 0);
}

#[test]
fn what_is_new_since_a_snapshot_costs_it_nothing() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    world.snapshot("d", "s").unwrap();
    world.mkdir("d/new").unwrap();
    let before = world.view(|view| rows(view, crate::store::Table::Old));
    world.file("d/new/f", vec![extent(0, chunk, 0, 10)]);
    world.moved("d/new/f", "d/new/g").unwrap();
    world.removed("d/new/g").unwrap();
    assert_eq!(world.view(|view| rows(view, crate::store::Table::Old)), before);
    let read = world.file("d/new/h", vec![extent(0, chunk, 10, 10)]);
    world.snapshot("d", "t").unwrap();
    let version = world.stat("d/new/h").unwrap().version;
    let files = vec![FileRead { inode: read, atime_ns: world.time_ns + 5, version }];
    world.run(Op::MarkRead(MarkRead { files })).unwrap();
    assert_eq!(world.view(|view| rows(view, crate::store::Table::Old)), before, "reading is no change");
    world.assert_sound();
}

#[test]
fn a_snapshot_is_cloned_back() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    let inode = world.file("d/f", vec![extent(0, chunk, 0, 10)]);
    world.snapshot("d", "s").unwrap();
    world.commit(inode, vec![extent(0, chunk, 10, 10)]).unwrap();
    let source = world.stat("d/.snapshot/s/f").unwrap().inode;
    assert_eq!(parts(source), Some((1, inode)));
    let clone =
        |target| CloneRange { source, length: u64::MAX, target: Some(target), ..CloneRange::default() };
    let create = CreateFile { at: at("d/f"), truncate: true, ..CreateFile::default() };
    world.run(Op::CloneRange(clone(clone_range::Target::Create(create)))).unwrap();
    assert_eq!(world.bytes_at("d/f"), [(0, chunk, 0, 10)]);
    world.run(Op::CloneRange(clone(clone_range::Target::Inode(inode)))).unwrap();
    let create = CreateFile { at: at("copy"), mode: 0o644, ..CreateFile::default() };
    world.run(Op::CloneRange(clone(clone_range::Target::Create(create)))).unwrap();
    assert_eq!(world.bytes_at("copy"), [(0, chunk, 0, 10)]);
    let into = CloneRange { target: Some(clone_range::Target::Inode(source)), ..clone_range_of(inode) };
    assert_eq!(code(world.run(Op::CloneRange(into))), ErrorCode::ReadOnly);
    world.assert_sound();
}

fn clone_range_of(source: u64) -> CloneRange {
    CloneRange { source, length: u64::MAX, ..CloneRange::default() }
}

#[test]
fn links_lead_into_snapshots_and_stay_in_them() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    world.mkdir("d/sub").unwrap();
    world.create("d/f").unwrap();
    let link = |path: &str, target: &str| {
        let target = target.as_bytes().to_vec().into();
        Op::Symlink(Symlink { at: at(path), target, ..Symlink::default() })
    };
    world.run(link("d/sub/up", "../f")).unwrap();
    world.run(link("d/sub/out", "../..")).unwrap();
    world.snapshot("d", "s").unwrap();
    world.removed("d/f").unwrap();
    world.run(link("yesterday", "d/.snapshot/s")).unwrap();
    let follow = |path: &str| {
        let ask = cairn_proto::fs::Stat { at: at(path), follow: true };
        match world.query(query::Op::Stat(ask)).unwrap() {
            answer::Result::Attr(attr) => attr.inode,
            other => panic!("{other:?}"),
        }
    };
    let file = world.stat("d/.snapshot/s/f").unwrap().inode;
    assert_eq!(follow("yesterday/sub/up"), file);
    let d = world.stat("d").unwrap().inode;
    assert_eq!(follow("yesterday/sub/out"), number(0, d));
    assert_eq!(code(world.create("yesterday/x")), ErrorCode::ReadOnly);
}

#[test]
fn numbers_that_somebody_made_up_lead_nowhere() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    world.snapshot("d", "s").unwrap();
    let d = world.stat("d").unwrap().inode;
    let stat = |world: &World, inode: u64| {
        let at = Some(NodeRef { inode, path: Default::default() });
        world.query(query::Op::Stat(cairn_proto::fs::Stat { at, follow: false })).map(drop)
    };
    stat(&world, number(1, d)).unwrap();
    for made_up in [number(2, d), number(1, 99), number(0, 99), number(0, ROOT_INODE), u64::MAX] {
        assert_eq!(code(stat(&world, made_up)), ErrorCode::Stale, "{made_up:x}");
    }
    world.remove_snapshot("d", "s").unwrap();
    assert_eq!(code(stat(&world, number(1, d))), ErrorCode::Stale);
    assert_eq!(code(stat(&world, number(0, d))), ErrorCode::Stale);
}

#[test]
fn a_refused_command_keeps_nothing() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    world.mkdir("small").unwrap();
    world.file("d/f", vec![extent(0, chunk, 0, 10)]);
    let quota = cairn_proto::fs::SetQuota { at: at("small"), max_bytes: Some(5), ..Default::default() };
    world.run(Op::SetQuota(quota)).unwrap();
    world.snapshot("d", "s").unwrap();
    assert_eq!(code(world.moved("d/f", "small/f")), ErrorCode::QuotaExceeded);
    assert_eq!(world.view(|view| rows(view, crate::store::Table::Old)), 0);
    world.assert_sound();
}

#[test]
fn replication_is_not_lowered_under_a_snapshot() {
    let mut world = World::new();
    let chunk = world.allocate();
    world.mkdir("d").unwrap();
    world.file("d/f", vec![extent(0, chunk, 0, 10)]);
    world.file("d/g", vec![extent(0, chunk, 10, 10)]);
    world.seal(chunk, 20);
    world.snapshot("d", "s").unwrap();
    world.removed("d/g").unwrap();
    world.run(Op::SetReplication(SetReplication { at: at("d/f"), replication: 1 })).unwrap();
    assert_eq!(world.chunk(chunk).unwrap().replication, 3);
}
