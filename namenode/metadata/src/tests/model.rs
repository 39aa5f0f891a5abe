//! The namespace against a model so simple that it must be right.
//!
//! The model keeps every path in a map and every file as a list of where each of its bytes came from.

use std::collections::BTreeMap;

use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AddReplica, BeginCompaction, ChunkPiece, ChunkState, ClearRange, CloneRange, Discard, Link, PurgeChunk,
    PurgeTrash, Rename, RenameMode, Restore, Rmdir, SealChunk, SetAttr, SetQuota, SetTrash, SetXattr,
    SwapExtents, Unlink, clone_range,
};
use proptest::prelude::*;

use super::acl::list_of;
use super::*;
use crate::plan::compact;

/// Where a byte of a file lies: (chunk, offset), or nowhere in a hole.
type Byte = Option<(u64, u64)>;

/// Limits on names and bytes.
type Limits = (Option<u64>, Option<u64>);

#[derive(Debug, Clone, Default)]
struct Model {
    /// Path to file number, or `None` for a directory.
    paths: BTreeMap<String, Option<usize>>,
    /// Directories with their age: how many were made before. The root, which is `""`, is older than all.
    ages: BTreeMap<String, usize>,
    made: usize,
    /// Directories with a quota.
    quotas: BTreeMap<String, Limits>,
    files: Vec<Vec<Byte>>,
    /// Where each byte of a gathered chunk was first written.
    gathered: BTreeMap<u64, Vec<(u64, u64)>>,
    /// A compaction that is under way: the new chunk, and what is to be swapped into it.
    under_way: Option<(u64, Vec<ChunkPiece>)>,
}

impl Model {
    /// Where a byte was first written, wherever it lies now.
    fn origin(&self, byte: Byte) -> Byte {
        let (chunk, offset) = byte?;
        Some(self.gathered.get(&chunk).map_or((chunk, offset), |origins| origins[offset as usize]))
    }

    fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.paths.get(path) == Some(&None)
    }

    fn has_room(&self, path: &str) -> bool {
        !self.paths.contains_key(path) && self.is_directory(parent(path))
    }

    fn is_empty_directory(&self, path: &str) -> bool {
        self.is_directory(path) && !self.paths.keys().any(|other| other.starts_with(&format!("{path}/")))
    }

    fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(&moved) = self.paths.get(from) else { return false };
        if !self.is_directory(parent(to)) || to.starts_with(&format!("{from}/")) {
            return false;
        }
        match (moved, self.paths.get(to)) {
            (Some(file), Some(Some(other))) if file == *other => return true,
            (None, Some(None)) if from == to => return true,
            (_, None) | (Some(_), Some(Some(_))) => {}
            (None, Some(None)) if self.is_empty_directory(to) => {}
            _ => return false,
        }
        self.remove(to);
        move_keys(&mut self.paths, from, to);
        move_keys(&mut self.ages, from, to);
        move_keys(&mut self.quotas, from, to);
        true
    }

    fn remove(&mut self, path: &str) {
        self.paths.remove(path);
        self.ages.remove(path);
        self.quotas.remove(path);
    }

    fn make_directory(&mut self, path: &str) {
        self.paths.insert(path.into(), None);
        self.ages.insert(path.into(), self.made);
        self.made += 1;
    }

    /// Makes the directory of a new item of the trash, and those above it. Returns where `path` goes.
    fn trash_item(&mut self, next_inode: u64, path: &str) -> String {
        let mut number = next_inode;
        for directory in [".trash", ".trash/0"] {
            if !self.paths.contains_key(directory) {
                self.make_directory(directory);
                number += 1;
            }
        }
        let item = format!(".trash/0/{number}");
        self.make_directory(&item);
        format!("{item}/{}", path.rsplit('/').next().unwrap())
    }

    /// Names below a directory, and the bytes of the files that have their oldest directory there.
    fn usage(&self, directory: &str) -> (u64, u64) {
        let names =
            self.paths.keys().filter(|path| *path != directory && lies_in(path, directory)).count() as u64;
        let homes = self.homes();
        let here = homes.iter().filter(|(_, home)| lies_in(home, directory));
        (names, here.map(|(file, _)| self.held(*file)).sum())
    }

    fn held(&self, file: usize) -> u64 {
        self.files[file].iter().flatten().count() as u64
    }

    /// The oldest directory of each file.
    fn homes(&self) -> BTreeMap<usize, &str> {
        let mut homes: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
        for (path, node) in &self.paths {
            let Some(file) = node else { continue };
            let home = parent(path);
            let age = self.ages.get(home).map_or(0, |age| age + 1);
            let oldest = homes.entry(*file).or_insert((age, home));
            *oldest = (*oldest).min((age, home));
        }
        homes.into_iter().map(|(file, (_, home))| (file, home)).collect()
    }

    /// Bytes that lie below a directory, which was called `old`, only because their file lost its name elsewhere since
    /// it was as `before`.
    fn inherited(&self, before: &Model, old: &str, directory: &str) -> u64 {
        let was = before.homes();
        let had_name = |file: usize, home: &str| {
            let mut names =
                before.paths.iter().filter(|(path, node)| **node == Some(file) && parent(path) == home);
            names.any(|(path, node)| self.paths.get(path) == Some(node))
        };
        let homes = self.homes().into_iter().filter(|(file, home)| {
            let came = was.get(file).is_some_and(|was| !lies_in(was, old));
            came && lies_in(home, directory) && had_name(*file, home)
        });
        homes.map(|(file, _)| self.held(file)).sum()
    }

    /// Whether a directory with a quota has grown over it since it was as `before`.
    fn exceeds(&self, before: &Model) -> bool {
        before.quotas.iter().any(|(old, (max_names, max_bytes))| {
            let age = before.ages.get(old);
            let now = match age {
                None => Some(""),
                Some(age) => self.ages.iter().find(|(_, other)| *other == age).map(|(path, _)| path.as_str()),
            };
            let Some(now) = now else { return false };
            let (was, is) = (before.usage(old), self.usage(now));
            let over = |was: u64, is: u64, most: &Option<u64>| is > was && most.is_some_and(|most| is > most);
            let inherited = self.inherited(before, old, now);
            over(was.0, is.0, max_names) || over(was.1 + inherited, is.1, max_bytes)
        })
    }
}

/// Renames `from` and all that is below it.
fn move_keys<V>(map: &mut BTreeMap<String, V>, from: &str, to: &str) {
    let moved = |path: &String| path == from || path.starts_with(&format!("{from}/"));
    let paths: Vec<String> = map.keys().filter(|path| moved(path)).cloned().collect();
    for path in paths {
        let value = map.remove(&path).unwrap();
        map.insert(format!("{to}{}", &path[from.len()..]), value);
    }
}

/// Whether a path is that of a directory, or leads below it.
fn lies_in(path: &str, directory: &str) -> bool {
    directory.is_empty() || path == directory || path.starts_with(&format!("{directory}/"))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[derive(Debug, Clone)]
enum Step {
    Create(String),
    Mkdir(String),
    Unlink(String),
    Rmdir(String),
    Link(String, String),
    Rename(String, String),
    Write(String, u64, u64),
    Truncate(String, u64),
    Clear(String, u64, u64, bool),
    Clone(String, u64, u64, String, u64),
    Copy(String, String),
    Chmod(String, u32),
    /// Path, whether it is the list that new entries inherit, and the permissions in it.
    Acl(String, bool, u32),
    /// Seals what is being written and has every chunk whose bit is set gathered into a new one.
    Compact(u64),
    /// Swaps so many of the pieces that were gathered last.
    Swap(usize),
    /// Purges every chunk that is dead.
    Purge,
    Quota(String, Option<u64>, Option<u64>),
    Discard(String),
    /// Of the items of the trash, counted from the newest.
    Restore(usize),
    Empty(usize),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn limit(range: std::ops::Range<u64>) -> impl Strategy<Value = Option<u64>> {
    prop_oneof![1 => Just(None), 3 => range.prop_map(Some)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => path().prop_map(Step::Create),
        3 => path().prop_map(Step::Mkdir),
        1 => path().prop_map(Step::Unlink),
        1 => path().prop_map(Step::Rmdir),
        1 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        6 => (path(), 0u64..200, 1u64..80).prop_map(|(path, offset, length)| Step::Write(path, offset, length)),
        2 => (path(), 0u64..200).prop_map(|(path, size)| Step::Truncate(path, size)),
        2 => (path(), 0u64..200, 1u64..80, any::<bool>())
            .prop_map(|(path, offset, length, grow)| Step::Clear(path, offset, length, grow)),
        3 => (path(), 0u64..200, 1u64..80, path(), 0u64..200)
            .prop_map(|(from, offset, length, to, at)| Step::Clone(from, offset, length, to, at)),
        1 => (path(), path()).prop_map(|(from, to)| Step::Copy(from, to)),
        1 => (path(), 0u32..0o10000).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        1 => (path(), any::<bool>(), 0u32..0o1000).prop_map(|(path, default, bits)| Step::Acl(path, default, bits)),
        2 => any::<u64>().prop_map(Step::Compact),
        4 => (1usize..12).prop_map(Step::Swap),
        1 => Just(Step::Purge),
        2 => (prop_oneof![1 => Just(String::new()), 4 => path()], limit(0..8), limit(0..150))
            .prop_map(|(path, names, bytes)| Step::Quota(path, names, bytes)),
        2 => path().prop_map(Step::Discard),
        1 => (0usize..3).prop_map(Step::Restore),
        1 => (0usize..3).prop_map(Step::Empty),
    ]
}

/// Does the step to both and compares whether it was allowed.
fn take(world: &mut World, model: &mut Model, tail: &mut (u64, u64), step: &Step) {
    let before = model.clone();
    let (done, mut expected) = match step {
        Step::Create(path) => {
            let expected = model.has_room(path);
            if expected {
                model.files.push(Vec::new());
                model.paths.insert(path.clone(), Some(model.files.len() - 1));
            }
            (world.create(path).is_ok(), expected)
        }
        Step::Mkdir(path) => {
            let expected = model.has_room(path);
            if expected {
                model.make_directory(path);
            }
            (world.mkdir(path).is_ok(), expected)
        }
        Step::Unlink(path) => {
            let expected = matches!(model.paths.get(path), Some(Some(_)));
            if expected {
                model.remove(path);
            }
            (world.run(Op::Unlink(Unlink { at: at(path) })).is_ok(), expected)
        }
        Step::Rmdir(path) => {
            let expected = model.paths.contains_key(path) && model.is_empty_directory(path);
            if expected {
                model.remove(path);
            }
            (world.run(Op::Rmdir(Rmdir { at: at(path) })).is_ok(), expected)
        }
        Step::Link(from, to) => {
            let file = model.paths.get(from).copied().flatten();
            let expected = file.is_some() && model.has_room(to);
            if expected {
                model.paths.insert(to.clone(), file);
            }
            (world.run(Op::Link(Link { from: at(from), at: at(to) })).is_ok(), expected)
        }
        Step::Rename(from, to) => {
            let expected = model.rename(from, to);
            let ask = Rename { from: at(from), to: at(to), mode: RenameMode::Replace.into() };
            (world.run(Op::Rename(ask)).is_ok(), expected)
        }
        Step::Write(path, offset, length) => write(world, model, tail, (path, *offset, *length)),
        Step::Truncate(path, size) => {
            let file = model.paths.get(path).copied().flatten();
            if let Some(file) = file {
                model.files[file].resize(*size as usize, None);
            }
            let ask = SetAttr { at: at(path), size: Some(*size), ..SetAttr::default() };
            (world.run(Op::SetAttr(ask)).is_ok(), file.is_some())
        }
        Step::Clear(path, offset, length, grow) => clear(world, model, path, (*offset, *length), *grow),
        Step::Clone(from, offset, length, to, target) => {
            clone(world, model, (from, *offset), (to, *target), *length)
        }
        Step::Copy(from, to) => copy(world, model, from, to),
        Step::Chmod(path, mode) => {
            let ask = SetAttr { at: at(path), mode: Some(*mode), ..SetAttr::default() };
            (world.run(Op::SetAttr(ask)).is_ok(), model.paths.contains_key(path))
        }
        Step::Acl(path, default, bits) => {
            let node = model.paths.get(path);
            let expected = if *default { node == Some(&None) } else { node.is_some() };
            let name = if *default { "system.posix_acl_default" } else { "system.posix_acl_access" };
            let ask = SetXattr {
                at: at(path),
                name: name.into(),
                value: list_of(*bits).into(),
                ..SetXattr::default()
            };
            (world.run(Op::SetXattr(ask)).is_ok(), expected)
        }
        Step::Compact(which) => {
            compact(world, model, tail, *which);
            return;
        }
        Step::Swap(count) => {
            swap(world, model, *count);
            return;
        }
        Step::Purge => {
            let dead = world.chunks().into_iter().filter(|(id, chunk)| {
                // The one that is being gathered is kept while its leader lives.
                let is_gathered = model.under_way.as_ref().is_some_and(|(into, _)| into == id);
                chunk.state() == ChunkState::Sealed && chunk.live_bytes == 0 && !is_gathered
            });
            for (id, _) in dead.collect::<Vec<_>>() {
                world.leader(Op::PurgeChunk(PurgeChunk { chunk: id })).unwrap();
            }
            return;
        }
        Step::Quota(path, max_names, max_bytes) => {
            let expected = model.is_directory(path);
            let limits = (*max_names, *max_bytes);
            if expected && limits == (None, None) {
                model.quotas.remove(path);
            } else if expected {
                model.quotas.insert(path.clone(), limits);
            }
            let ask = SetQuota {
                at: at(path),
                max_names: *max_names,
                max_bytes: *max_bytes,
                clear_names: max_names.is_none(),
                clear_bytes: max_bytes.is_none(),
            };
            (world.run(Op::SetQuota(ask)).is_ok(), expected)
        }
        Step::Discard(path) => {
            let expected = model.paths.contains_key(path);
            if expected {
                let item = model.trash_item(world.next_inode(), path);
                assert!(model.rename(path, &item));
            }
            (world.run(Op::Discard(Discard { at: at(path) })).is_ok(), expected)
        }
        Step::Restore(which) => {
            let Some((item, name, was)) = item_of(world, *which) else { return };
            let expected = model.has_room(&was);
            if expected {
                assert!(model.rename(&name, &was));
                model.remove(parent(&name));
            }
            let ask = Restore { item, to: None, parents: false };
            (world.run(Op::Restore(ask)).is_ok(), expected)
        }
        Step::Empty(which) => {
            let Some((item, name, _)) = item_of(world, *which) else { return };
            let going = format!("{}/", parent(&name));
            let paths: Vec<String> =
                model.paths.keys().filter(|path| path.starts_with(&going)).cloned().collect();
            paths.iter().for_each(|path| model.remove(path));
            model.remove(parent(&name));
            (world.run(Op::PurgeTrash(PurgeTrash { item })).is_ok(), true)
        }
    };
    if expected && model.exceeds(&before) {
        expected = false;
        *model = before;
    }
    assert_eq!(done, expected, "{step:?}");
}

/// An item of the trash, its path there, and where it was.
fn item_of(world: &World, which: usize) -> Option<(u64, String, String)> {
    let items = world.trash(false).unwrap().items;
    let item = items.iter().rev().nth(which)?;
    let was = String::from_utf8(item.path[1..].to_vec()).unwrap();
    let name = was.rsplit('/').next().unwrap();
    Some((item.item, format!(".trash/0/{}/{name}", item.item), was))
}

/// Begins a compaction; one that was under way is abandoned as by a leader that died.
fn compact(world: &mut World, model: &mut Model, tail: &mut (u64, u64), which: u64) {
    world.run(Op::Seal(SealChunk { chunk: tail.0, length: tail.1 })).unwrap();
    *tail = (world.allocate(), 0);
    let sealed = world.chunks().into_iter().filter(|(_, chunk)| chunk.state() == ChunkState::Sealed);
    let victims: Vec<u64> = sealed.map(|(id, _)| id).filter(|id| which >> (id % 64) & 1 == 1).collect();
    let pieces = world.view(|view| compact::pieces(view, &victims, 500)).unwrap();
    let length = pieces.iter().map(|piece| piece.length).sum();
    if length == 0 {
        return;
    }
    let begun = world.leader(Op::BeginCompaction(BeginCompaction { length, replication: 3 })).unwrap();
    let outcome::Result::Allocated(made) = begun else { panic!("{begun:?}") };
    let into = made.chunk.unwrap().chunk;
    let bytes = |piece: &ChunkPiece| {
        let chunk = piece.chunk;
        (piece.offset..piece.offset + piece.length).map(move |offset| (chunk, offset)).collect::<Vec<_>>()
    };
    let origins =
        pieces.iter().flat_map(bytes).map(|byte| model.origin(Some(byte)).unwrap()).collect::<Vec<_>>();
    model.gathered.insert(into, origins);
    for node in 1..=3 {
        world.leader(Op::AddReplica(AddReplica { chunk: into, node, ..AddReplica::default() })).unwrap();
    }
    model.under_way = Some((into, pieces));
}

fn swap(world: &mut World, model: &mut Model, count: usize) {
    let Some((into, pieces)) = &mut model.under_way else { return };
    let ask = SwapExtents { into: *into, pieces: pieces.drain(..count.min(pieces.len())).collect() };
    let asked = ask.pieces.len();
    match world.leader(Op::SwapExtents(ask)).unwrap() {
        outcome::Result::Swapped(done) => assert_eq!(done.pieces as usize, asked),
        other => panic!("{other:?}"),
    }
    if pieces.is_empty() {
        model.under_way = None;
    }
}

fn clear(
    world: &mut World,
    model: &mut Model,
    path: &str,
    (offset, length): (u64, u64),
    grow: bool,
) -> (bool, bool) {
    let Some(file) = model.paths.get(path).copied().flatten() else { return (false, false) };
    let bytes = &mut model.files[file];
    let end = (offset + length) as usize;
    if grow && bytes.len() < end {
        bytes.resize(end, None);
    }
    let until = end.min(bytes.len());
    bytes[(offset as usize).min(until)..until].fill(None);
    let inode = world.stat(path).unwrap().inode;
    let size = grow.then_some(offset + length);
    let ask = ClearRange { inode, offset, length, size, ..ClearRange::default() };
    (world.run(Op::ClearRange(ask)).is_ok(), true)
}

fn clone(
    world: &mut World,
    model: &mut Model,
    (from, offset): (&str, u64),
    (to, target): (&str, u64),
    length: u64,
) -> (bool, bool) {
    let file = |path: &str| model.paths.get(path).copied().flatten();
    let (Some(source), Some(copy)) = (file(from), file(to)) else { return (false, false) };
    let length = length.min((model.files[source].len() as u64).saturating_sub(offset));
    let expected = source != copy || offset.abs_diff(target) >= length;
    if expected && length > 0 {
        let shared = model.files[source][offset as usize..(offset + length) as usize].to_vec();
        let bytes = &mut model.files[copy];
        let end = (target + length) as usize;
        bytes.resize(bytes.len().max(end), None);
        bytes[target as usize..end].copy_from_slice(&shared);
    }
    let inode = |path| world.stat(path).unwrap().inode;
    let ask = CloneRange {
        source: inode(from),
        source_offset: offset,
        length,
        target: Some(clone_range::Target::Inode(inode(to))),
        offset: target,
        ..CloneRange::default()
    };
    (world.run(Op::CloneRange(ask)).is_ok(), expected)
}

/// A whole file at once, over what has the name already.
fn copy(world: &mut World, model: &mut Model, from: &str, to: &str) -> (bool, bool) {
    let Some(source) = model.paths.get(from).copied().flatten() else { return (false, false) };
    let expected = match model.paths.get(to) {
        Some(Some(file)) => *file != source,
        Some(None) => false,
        None => model.has_room(to),
    };
    if expected {
        let content = model.files[source].clone();
        match model.paths.get(to).copied().flatten() {
            Some(file) => model.files[file] = content,
            None => {
                model.files.push(content);
                model.paths.insert(to.to_string(), Some(model.files.len() - 1));
            }
        }
    }
    let create = CreateFile { at: at(to), mode: 0o644, truncate: true, ..CreateFile::default() };
    let ask = CloneRange {
        source: world.stat(from).unwrap().inode,
        length: u64::MAX,
        target: Some(clone_range::Target::Create(create)),
        ..CloneRange::default()
    };
    (world.run(Op::CloneRange(ask)).is_ok(), expected)
}

fn write(
    world: &mut World,
    model: &mut Model,
    tail: &mut (u64, u64),
    (path, offset, length): (&str, u64, u64),
) -> (bool, bool) {
    let Some(file) = model.paths.get(path).copied().flatten() else { return (false, false) };
    let (chunk, at) = *tail;
    tail.1 += length;
    let bytes = &mut model.files[file];
    if bytes.len() < (offset + length) as usize {
        bytes.resize((offset + length) as usize, None);
    }
    for step in 0..length {
        bytes[(offset + step) as usize] = Some((chunk, at + step));
    }
    let inode = world.stat(path).unwrap().inode;
    (world.commit(inode, vec![extent(offset, chunk, at, length)]).is_ok(), true)
}

/// A file as the layout describes it, byte by byte.
fn bytes_of(world: &World, attr: &Attr) -> Vec<Byte> {
    let mut bytes = vec![None; attr.size as usize];
    for extent in world.extents(attr.inode) {
        for step in 0..extent.length {
            bytes[(extent.file_offset + step) as usize] = Some((extent.chunk, extent.chunk_offset + step));
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_namespace_behaves_like_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        world.run(Op::SetTrash(SetTrash { keep_ns: 1 << 60 })).unwrap();
        let mut model = Model::default();
        let mut tail = (world.allocate(), 0);
        for step in &steps {
            take(&mut world, &mut model, &mut tail, step);
        }
        world.assert_sound();
        for (path, node) in &model.paths {
            let attr = world.stat(path).unwrap();
            if let Some(file) = node {
                let bytes: Vec<Byte> =
                    bytes_of(&world, &attr).into_iter().map(|byte| model.origin(byte)).collect();
                prop_assert_eq!(&bytes, &model.files[*file], "{}", path);
            }
        }
        for path in model.ages.keys().map(String::as_str).chain([""]) {
            let usage = world.usage(path).unwrap().tree.unwrap();
            prop_assert_eq!((usage.names, usage.bytes), model.usage(path), "{}", path);
            let limits = model.quotas.get(path).copied().unwrap_or_default();
            prop_assert_eq!((usage.max_names, usage.max_bytes), limits, "{}", path);
            prop_assert_eq!(String::from_utf8_lossy(&usage.path), format!("/{path}"));
        }
    }

    #[test]
    fn the_same_log_gives_the_same_store(steps in prop::collection::vec(step(), 1..30)) {
        let run = || {
            let mut world = World::new();
            world.run(Op::SetTrash(SetTrash { keep_ns: 1 << 60 })).unwrap();
            let mut tail = (world.allocate(), 0);
            let mut model = Model::default();
            for step in &steps {
                take(&mut world, &mut model, &mut tail, step);
            }
            format!("{:?}", world.store)
        };
        prop_assert_eq!(run(), run());
    }
}
