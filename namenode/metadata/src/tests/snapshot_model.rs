//! Snapshots against a model that copies the whole tree.
//!
//! Whatever is done to the namespace, what is found in a snapshot is what was found in its directory when it was made:
//! names, attributes, extended attributes, and where each byte was first written.

use std::collections::BTreeMap;

use cairn_proto::fs::{
    AddReplica, BeginCompaction, ChunkState, ClearRange, CloneRange, CloseInodes, Discard, FileKind,
    GetXattr, Link, ListXattr, OpenInode, PurgeChunk, PurgeSnapshot, PurgeTrash, RemoveXattr, Rename,
    RenameMode, Restore, Rmdir, SealChunk, SetAttr, SetTrash, SetXattr, SwapExtents, Symlink, Unlink,
    clone_range,
};
use cairn_proto::snapshot::{number, parts};
use proptest::prelude::*;

use super::*;
use crate::plan::compact;

/// Where a byte of a file was first written, or nowhere in a hole.
type Byte = Option<(u64, u64)>;

/// What was found under a name.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    attr: Attr,
    bytes: Vec<Byte>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    target: Vec<u8>,
}

type Tree = BTreeMap<String, Found>;

/// A snapshot as the model has it.
struct Copied {
    seq: u64,
    directory: u64,
    name: String,
    tree: Tree,
}

#[derive(Default)]
struct State {
    copies: Vec<Copied>,
    /// The chunk being written, and how far.
    tail: (u64, u64),
    /// Where each byte of a gathered chunk was first written.
    gathered: BTreeMap<u64, Vec<(u64, u64)>>,
    opened: Vec<u64>,
    made: usize,
}

#[derive(Debug, Clone)]
enum Step {
    Create(String),
    Mkdir(String),
    Unlink(String),
    Rmdir(String),
    Link(String, String),
    Rename(String, String, bool),
    /// Many small writes when the last is set: a file of many extents.
    Write(String, u64, u64, bool),
    Truncate(String, u64),
    Clear(String, u64, u64),
    Clone(String, u64, u64, String, u64),
    Chmod(String, u32),
    Xattr(String, u8, bool),
    Symlink(String, String),
    Open(String),
    CloseAll,
    Compact(u64, usize),
    PurgeChunks,
    Discard(String),
    Restore(usize),
    Empty(usize),
    Snapshot(String),
    Remove(usize),
    /// One step of the leader.
    Purge,
    /// Clones a file back from a snapshot.
    PutBack(usize, usize),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => path().prop_map(Step::Create),
        4 => path().prop_map(Step::Mkdir),
        2 => path().prop_map(Step::Unlink),
        1 => path().prop_map(Step::Rmdir),
        2 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        4 => (path(), path(), any::<bool>()).prop_map(|(from, to, swap)| Step::Rename(from, to, swap)),
        6 => (path(), 0u64..200, 1u64..80, any::<bool>())
            .prop_map(|(path, offset, length, many)| Step::Write(path, offset, length, many)),
        2 => (path(), 0u64..200).prop_map(|(path, size)| Step::Truncate(path, size)),
        1 => (path(), 0u64..200, 1u64..80).prop_map(|(path, at, length)| Step::Clear(path, at, length)),
        2 => (path(), 0u64..200, 1u64..80, path(), 0u64..200)
            .prop_map(|(from, offset, length, to, at)| Step::Clone(from, offset, length, to, at)),
        1 => (path(), 0u32..0o1000).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        1 => (path(), any::<u8>(), any::<bool>()).prop_map(|(path, value, set)| Step::Xattr(path, value, set)),
        1 => (path(), path()).prop_map(|(path, target)| Step::Symlink(path, target)),
        1 => path().prop_map(Step::Open),
        1 => Just(Step::CloseAll),
        2 => (any::<u64>(), 1usize..12).prop_map(|(which, count)| Step::Compact(which, count)),
        1 => Just(Step::PurgeChunks),
        1 => path().prop_map(Step::Discard),
        1 => (0usize..3).prop_map(Step::Restore),
        1 => (0usize..3).prop_map(Step::Empty),
        4 => prop_oneof![1 => Just(String::new()), 4 => path()].prop_map(Step::Snapshot),
        2 => (0usize..6).prop_map(Step::Remove),
        2 => Just(Step::Purge),
        1 => (0usize..6, 0usize..10).prop_map(|(which, file)| Step::PutBack(which, file)),
    ]
}

/// Something to begin with, so that most steps have something to do: two directories, one of them with a snapshot.
fn furnish() -> Vec<Step> {
    let owned = |paths: [&str; 4], step: fn(String) -> Step| paths.map(|path| step(path.to_owned()));
    let files = ["a/c", "a/a/b", "b/c", "b/a/c"];
    let mut steps = owned(["a", "a/a", "b", "b/a"], Step::Mkdir).to_vec();
    steps.extend(owned(files, Step::Create));
    steps.extend(files.map(|path| Step::Write(path.to_owned(), 0, 50, path.starts_with("a/a"))));
    steps.push(Step::Snapshot("a".into()));
    steps
}

fn here(inode: u64) -> Option<NodeRef> {
    Some(NodeRef { inode, path: Default::default() })
}

impl State {
    fn bytes(&self, world: &World, attr: &Attr) -> Vec<Byte> {
        let mut bytes = vec![None; attr.size as usize];
        for extent in world.extents(attr.inode) {
            for step in 0..extent.length {
                let (chunk, offset) = (extent.chunk, extent.chunk_offset + step);
                let first = self.gathered.get(&chunk).map_or((chunk, offset), |from| from[offset as usize]);
                bytes[(extent.file_offset + step) as usize] = Some(first);
            }
        }
        bytes
    }

    /// What an inode is, as itself or in a snapshot.
    fn look(&self, world: &World, attr: Attr) -> Found {
        let at = here(attr.inode);
        let listed = world.query(query::Op::ListXattr(ListXattr { at: at.clone() })).unwrap();
        let answer::Result::Names(names) = listed else { panic!("{listed:?}") };
        let value = |name: &bytes::Bytes| {
            let ask = GetXattr { at: at.clone(), name: name.clone() };
            match world.query(query::Op::GetXattr(ask)).unwrap() {
                answer::Result::Bytes(value) => (name.to_vec(), value.to_vec()),
                other => panic!("{other:?}"),
            }
        };
        let target = match attr.kind() {
            FileKind::Symlink => {
                let ask = cairn_proto::fs::ReadLink { at: at.clone() };
                match world.query(query::Op::ReadLink(ask)).unwrap() {
                    answer::Result::Bytes(target) => target.to_vec(),
                    other => panic!("{other:?}"),
                }
            }
            _ => Vec::new(),
        };
        let bytes = if attr.kind() == FileKind::File { self.bytes(world, &attr) } else { Vec::new() };
        let inode = parts(attr.inode).map_or(attr.inode, |(_, inode)| inode);
        let xattrs = names.names.iter().map(value).collect();
        Found { attr: Attr { inode, ..attr }, bytes, xattrs, target }
    }

    fn tree(&self, world: &World, top: u64) -> Tree {
        let mut found = Tree::new();
        let mut left = vec![(String::new(), top)];
        while let Some((path, inode)) = left.pop() {
            let mut after = Vec::new();
            loop {
                let page = world.list_at(here(inode), &after, 2).unwrap();
                if after.is_empty() {
                    found.insert(path.clone(), self.look(world, page.directory.unwrap()));
                }
                for entry in page.entries {
                    after = entry.name.to_vec();
                    let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                    let attr = entry.attr.unwrap();
                    if attr.kind() == FileKind::Directory {
                        left.push((path, attr.inode));
                    } else {
                        found.insert(path, self.look(world, attr));
                    }
                }
                if page.end {
                    break;
                }
            }
        }
        found
    }

    fn check(&self, world: &World) {
        world.assert_sound();
        for copy in &self.copies {
            let found = self.tree(world, number(copy.seq, copy.directory));
            assert_eq!(found, copy.tree, "snapshot {} of {}", copy.seq, copy.directory);
        }
    }

    fn write(&mut self, world: &mut World, path: &str, offset: u64, length: u64) {
        let Ok(attr) = world.stat(path) else { return };
        let (chunk, at) = self.tail;
        self.tail.1 += length;
        let _ = world.commit(attr.inode, vec![extent(offset, chunk, at, length)]);
    }

    /// Gathers the chunks whose bit is set into a new one, as far as they may be, and swaps some of it.
    fn compact(&mut self, world: &mut World, which: u64, count: usize) {
        world.run(Op::Seal(SealChunk { chunk: self.tail.0, length: self.tail.1 })).unwrap();
        self.tail = (world.allocate(), 0);
        let sealed = world.chunks().into_iter().filter(|(_, chunk)| chunk.state() == ChunkState::Sealed);
        let victims: Vec<u64> = sealed.map(|(id, _)| id).filter(|id| which >> (id % 64) & 1 == 1).collect();
        let pieces = world.view(|view| compact::pieces(view, &victims, 500)).unwrap();
        let length: u64 = pieces.iter().map(|piece| piece.length).sum();
        if length == 0 {
            return;
        }
        let begun = world.leader(Op::BeginCompaction(BeginCompaction { length, replication: 3 })).unwrap();
        let outcome::Result::Allocated(made) = begun else { panic!("{begun:?}") };
        let into = made.chunk.unwrap().chunk;
        let mut origins = Vec::new();
        for piece in &pieces {
            for offset in piece.offset..piece.offset + piece.length {
                let first = self
                    .gathered
                    .get(&piece.chunk)
                    .map_or((piece.chunk, offset), |from| from[offset as usize]);
                origins.push(first);
            }
        }
        self.gathered.insert(into, origins);
        for node in 1..=3 {
            world.leader(Op::AddReplica(AddReplica { chunk: into, node, ..AddReplica::default() })).unwrap();
        }
        let pieces = pieces.into_iter().take(count).collect();
        // Refused where a swap of the same chunk had to keep something for a snapshot.
        let _ = world.leader(Op::SwapExtents(SwapExtents { into, pieces }));
    }

    fn take(&mut self, world: &mut World, step: &Step) {
        let inode = |world: &World, path: &str| world.stat(path).map_or(u64::MAX >> 1, |attr| attr.inode);
        match step {
            Step::Create(path) => _ = world.create(path),
            Step::Mkdir(path) => _ = world.mkdir(path),
            Step::Unlink(path) => _ = world.run(Op::Unlink(Unlink { at: at(path) })),
            Step::Rmdir(path) => _ = world.run(Op::Rmdir(Rmdir { at: at(path) })),
            Step::Link(from, to) => _ = world.run(Op::Link(Link { from: at(from), at: at(to) })),
            Step::Rename(from, to, swap) => {
                let mode = if *swap { RenameMode::Exchange } else { RenameMode::Replace };
                _ = world.run(Op::Rename(Rename { from: at(from), to: at(to), mode: mode.into() }));
            }
            Step::Write(path, offset, length, many) => {
                let parts = if *many { 5 } else { 1 };
                for part in 0..parts {
                    self.write(world, path, offset + part * 2 * length, *length);
                }
            }
            Step::Truncate(path, size) => {
                let ask = SetAttr { at: at(path), size: Some(*size), ..SetAttr::default() };
                _ = world.run(Op::SetAttr(ask));
            }
            Step::Clear(path, offset, length) => {
                let inode = inode(world, path);
                let ask = ClearRange { inode, offset: *offset, length: *length, ..ClearRange::default() };
                _ = world.run(Op::ClearRange(ask));
            }
            Step::Clone(from, offset, length, to, target) => {
                let ask = CloneRange {
                    source: inode(world, from),
                    source_offset: *offset,
                    length: *length,
                    target: Some(clone_range::Target::Inode(inode(world, to))),
                    offset: *target,
                    ..CloneRange::default()
                };
                _ = world.run(Op::CloneRange(ask));
            }
            Step::Chmod(path, mode) => {
                let ask = SetAttr { at: at(path), mode: Some(*mode), ..SetAttr::default() };
                _ = world.run(Op::SetAttr(ask));
            }
            Step::Xattr(path, value, true) => {
                let value = vec![*value].into();
                let ask = SetXattr { at: at(path), name: "user.x".into(), value, ..SetXattr::default() };
                _ = world.run(Op::SetXattr(ask));
            }
            Step::Xattr(path, _, false) => {
                _ = world.run(Op::RemoveXattr(RemoveXattr { at: at(path), name: "user.x".into() }));
            }
            Step::Symlink(path, target) => {
                let target = target.clone().into_bytes().into();
                _ = world.run(Op::Symlink(Symlink { at: at(path), target, ..Symlink::default() }));
            }
            Step::Open(path) => {
                let inode = inode(world, path);
                if world.run(Op::Open(OpenInode { inode })).is_ok() {
                    self.opened.push(inode);
                }
            }
            Step::CloseAll => {
                let inodes = std::mem::take(&mut self.opened);
                world.run(Op::Close(CloseInodes { inodes })).unwrap();
            }
            Step::Compact(which, count) => self.compact(world, *which, *count),
            Step::PurgeChunks => {
                for (chunk, record) in world.chunks() {
                    if record.state() == ChunkState::Sealed && crate::records::is_dead(&record) {
                        world.leader(Op::PurgeChunk(PurgeChunk { chunk })).unwrap();
                    }
                }
            }
            Step::Discard(path) => _ = world.run(Op::Discard(Discard { at: at(path) })),
            Step::Restore(which) => {
                if let Some(item) = world.trash(false).unwrap().items.get(*which).map(|item| item.item) {
                    _ = world.run(Op::Restore(Restore { item, to: None, parents: false }));
                }
            }
            Step::Empty(which) => {
                if let Some(item) = world.trash(false).unwrap().items.get(*which).map(|item| item.item) {
                    world.run(Op::PurgeTrash(PurgeTrash { item })).unwrap();
                }
                let left = |copy: &Copied| world.view(|view| is_there(view, copy));
                self.copies.retain(left);
            }
            Step::Snapshot(path) => self.snapshot(world, path),
            Step::Remove(which) => {
                if *which < self.copies.len() {
                    let Copied { directory, name, .. } = self.copies.remove(*which);
                    let name = name.into_bytes().into();
                    let ask = cairn_proto::fs::RemoveSnapshot { at: here(directory), name };
                    world.run(Op::RemoveSnapshot(ask)).unwrap();
                }
            }
            Step::Purge => {
                if let Some(seq) = world.view(|view| crate::plan::snapshot::going(view).unwrap()) {
                    world.leader(Op::PurgeSnapshot(PurgeSnapshot { seq })).unwrap();
                }
            }
            Step::PutBack(which, file) => self.put_back(world, *which, *file),
        }
    }

    fn snapshot(&mut self, world: &mut World, path: &str) {
        self.made += 1;
        let name = format!("s{}", self.made);
        let Ok(info) = world.snapshot(path, &name) else { return };
        let tree = self.tree(world, info.directory);
        self.copies.push(Copied { seq: info.seq, directory: info.directory, name, tree });
    }

    /// Lets the file of the same inode, if there is one still, be what it was.
    fn put_back(&mut self, world: &mut World, which: usize, file: usize) {
        let Some(copy) = self.copies.get(which) else { return };
        let files = copy.tree.values().filter(|found| found.attr.kind() == FileKind::File);
        let Some(found) = files.into_iter().nth(file) else { return };
        let inode = found.attr.inode;
        let stat = cairn_proto::fs::Stat { at: here(inode), follow: false };
        let Ok(answer::Result::Attr(now)) = world.query(query::Op::Stat(stat)) else { return };
        let truncate = SetAttr { at: here(inode), size: Some(0), ..SetAttr::default() };
        world.run(Op::SetAttr(truncate)).unwrap();
        let ask = CloneRange {
            source: number(copy.seq, inode),
            length: u64::MAX,
            target: Some(clone_range::Target::Inode(inode)),
            whole: true,
            ..CloneRange::default()
        };
        world.run(Op::CloneRange(ask)).unwrap();
        let size = found.bytes.len() as u64;
        assert_eq!(self.bytes(world, &Attr { size, ..now }), found.bytes);
    }
}

/// Its directory may have gone with the trash that it was in.
fn is_there(view: &dyn View, copy: &Copied) -> bool {
    crate::records::snapshot(view, copy.seq).unwrap().is_some_and(|snapshot| !snapshot.going)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_is_what_was_there(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        world.run(Op::SetTrash(SetTrash { keep_ns: 1 << 60 })).unwrap();
        let mut state = State { tail: (world.allocate(), 0), ..State::default() };
        for step in furnish().iter().chain(&steps) {
            state.take(&mut world, step);
            state.check(&world);
        }
        // Nothing is left when all snapshots are gone.
        for Copied { directory, name, .. } in std::mem::take(&mut state.copies) {
            let ask = cairn_proto::fs::RemoveSnapshot { at: here(directory), name: name.into_bytes().into() };
            world.run(Op::RemoveSnapshot(ask)).unwrap();
        }
        world.purge_snapshots();
        world.assert_sound();
        let meta = world.view(|view| crate::meta(view).unwrap().unwrap());
        prop_assert_eq!((meta.snapshots, meta.snapshots_going, meta.kept_bytes), (0, 0, 0));
    }

    #[test]
    fn the_same_log_with_snapshots_gives_the_same_store(steps in prop::collection::vec(step(), 1..40)) {
        let run = || {
            let mut world = World::new();
            world.run(Op::SetTrash(SetTrash { keep_ns: 1 << 60 })).unwrap();
            let mut state = State { tail: (world.allocate(), 0), ..State::default() };
            furnish().iter().chain(&steps).for_each(|step| state.take(&mut world, step));
            format!("{:?}", world.store)
        };
        prop_assert_eq!(run(), run());
    }
}
