//! What is in the delegated directories: all of it, since they were empty when they came.
//!
//! Pure: every change is given the time it happens at, and does what the namenode will do when it hears of it
//! (`namenode/metadata/src/namespace/`), with the same refusals.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use bytes::Bytes;
use cairn_proto::fs::{Attr, DirectoryEntry, Extent, FileKind, Listing, RenameMode, SetAttr};
use cairn_proto::limits::MAX_LINKS;
use cairn_proto::{ErrorCode, Result, path};

const SETUID: u32 = 0o4000;
pub(super) const SETGID: u32 = 0o2000;

/// A directory and a name in it.
pub(crate) type Place = (u64, Bytes);

/// Delegated directories and what is in them, by inode.
///
/// As long as a directory is here, so are the directories in it.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: HashMap<u64, Node>,
    /// Delegated directories whose own name is in somebody else's directory.
    roots: HashMap<Place, u64>,
}

/// An inode that nobody else knows of; or, of a root, whose entries nobody else knows of.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attr: Attr,
    /// The directory that has its name, or all its names.
    parent: u64,
    /// Of a symbolic link.
    target: Bytes,
    /// Where all of its content lies, if it was committed at once.
    pub(crate) extents: Vec<Extent>,
    /// It may have extended attributes: the namenode knows.
    pub(crate) has_xattrs: bool,
    directory: Option<Directory>,
}

#[derive(Debug, Default)]
struct Directory {
    entries: BTreeMap<Bytes, u64>,
    leaving: bool,
    /// When it was last of use, on the caller's clock.
    used: u64,
}

/// What is to be made.
#[derive(Debug, Default)]
pub(crate) struct Seed {
    pub(crate) inode: u64,
    pub(crate) kind: FileKind,
    /// With the umask taken off.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) replication: u32,
    pub(crate) target: Bytes,
}

impl Node {
    fn is_directory(&self) -> bool {
        self.directory.is_some()
    }

    fn touch(&mut self, now: i64) {
        self.attr.ctime_ns = self.attr.ctime_ns.max(now);
    }
}

impl Tree {
    /// A directory that was just made by this session and is its own.
    pub(crate) fn add_root(&mut self, place: Place, attr: Attr) {
        self.roots.insert(place.clone(), attr.inode);
        let directory = Some(Directory::default());
        let node = Node {
            attr,
            parent: place.0,
            target: Bytes::new(),
            extents: Vec::new(),
            has_xattrs: false,
            directory,
        };
        self.nodes.insert(attr.inode, node);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, inode: u64) -> Option<&Node> {
        self.nodes.get(&inode)
    }

    pub(crate) fn node_mut(&mut self, inode: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&inode)
    }

    /// Whether this is a delegated directory.
    pub(crate) fn is_directory(&self, inode: u64) -> bool {
        self.nodes.get(&inode).is_some_and(Node::is_directory)
    }

    /// The directory that an inode here belongs to: itself, or the one it lies in.
    pub(crate) fn directory_of(&self, inode: u64) -> Option<u64> {
        let node = self.nodes.get(&inode)?;
        Some(if node.is_directory() { inode } else { node.parent })
    }

    /// Whether the directory of an inode is being handed back.
    pub(crate) fn is_leaving(&self, inode: u64) -> bool {
        let directory = self.directory_of(inode).and_then(|directory| self.nodes.get(&directory));
        directory.and_then(|node| node.directory.as_ref()).is_some_and(|directory| directory.leaving)
    }

    /// Notes that a directory is of use.
    pub(crate) fn used(&mut self, directory: u64, now: u64) {
        if let Some(directory) = self.nodes.get_mut(&directory).and_then(|node| node.directory.as_mut()) {
            directory.used = now;
        }
    }

    fn entries(&self, directory: u64) -> Result<&BTreeMap<Bytes, u64>> {
        let node = self.nodes.get(&directory).ok_or(ErrorCode::Stale)?;
        Ok(&node.directory.as_ref().ok_or(ErrorCode::NotDirectory)?.entries)
    }

    /// The inode under a name.
    pub(crate) fn child(&self, directory: u64, name: &[u8]) -> Result<u64> {
        let found = self.entries(directory)?.get(name).copied();
        found.ok_or_else(|| ErrorCode::NotFound.because(path::shown(name)))
    }

    /// Where a symbolic link leads.
    pub(crate) fn target(&self, inode: u64) -> Result<Bytes> {
        let node = self.nodes.get(&inode).ok_or(ErrorCode::Stale)?;
        if node.attr.kind() != FileKind::Symlink {
            return Err(ErrorCode::Invalid.because("not a symbolic link"));
        }
        Ok(node.target.clone())
    }

    /// One page of a directory.
    pub(crate) fn list(&self, directory: u64, after: &[u8], limit: usize) -> Result<Listing> {
        let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let mut rest = self.entries(directory)?.range::<[u8], _>((start, Bound::Unbounded));
        let entries = rest.by_ref().take(limit).map(|(name, inode)| DirectoryEntry {
            name: name.clone(),
            attr: self.nodes.get(inode).map(|node| node.attr),
        });
        let entries = entries.collect();
        let attr = self.nodes.get(&directory).map(|node| node.attr);
        Ok(Listing { entries, end: rest.next().is_none(), directory: attr })
    }

    /// Makes an inode under a name.
    pub(crate) fn make(&mut self, (directory, name): &Place, seed: Seed, now: i64) -> Result<Attr> {
        if self.entries(*directory)?.contains_key(name) {
            return Err(ErrorCode::Exists.because(path::shown(name)));
        }
        let is_directory = seed.kind == FileKind::Directory;
        let attr = Attr {
            inode: seed.inode,
            kind: seed.kind.into(),
            mode: seed.mode,
            uid: seed.uid,
            gid: seed.gid,
            nlink: if is_directory { 2 } else { 1 },
            size: seed.target.len() as u64,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            rdev: seed.rdev,
            replication: seed.replication,
            delegated: is_directory,
            ..Attr::default()
        };
        self.nodes.insert(
            seed.inode,
            Node {
                attr,
                parent: *directory,
                target: seed.target,
                extents: Vec::new(),
                has_xattrs: false,
                directory: is_directory.then(Directory::default),
            },
        );
        self.enter(*directory, name.clone(), seed.inode, now);
        Ok(attr)
    }

    /// Whether a file may get a name there: next to its others, so that all of them are handed back together.
    pub(crate) fn may_link(&self, inode: u64, directory: u64) -> bool {
        let node = self.nodes.get(&inode);
        node.is_some_and(|node| {
            !node.is_directory() && node.parent == directory && node.attr.nlink < MAX_LINKS
        })
    }

    /// Gives a file another name in its directory.
    pub(crate) fn link(&mut self, inode: u64, (directory, name): &Place, now: i64) -> Result<Attr> {
        if self.entries(*directory)?.contains_key(name) {
            return Err(ErrorCode::Exists.because(path::shown(name)));
        }
        let node = self.nodes.get_mut(&inode).ok_or(ErrorCode::Stale)?;
        node.attr.nlink += 1;
        node.touch(now);
        let attr = node.attr;
        self.enter(*directory, name.clone(), inode, now);
        Ok(attr)
    }

    /// Takes away a name of anything but a directory, and with the last one the inode.
    pub(crate) fn unlink(&mut self, (directory, name): &Place, now: i64) -> Result<u64> {
        let inode = self.child(*directory, name)?;
        if self.is_directory(inode) {
            return Err(ErrorCode::IsDirectory.because(path::shown(name)));
        }
        self.leave(*directory, name, now);
        self.lose_name(inode, now);
        Ok(inode)
    }

    fn lose_name(&mut self, inode: u64, now: i64) {
        let Some(node) = self.nodes.get_mut(&inode) else { return };
        if node.is_directory() || node.attr.nlink <= 1 {
            self.nodes.remove(&inode);
            return;
        }
        node.attr.nlink -= 1;
        node.touch(now);
    }

    /// Takes away an empty directory.
    pub(crate) fn rmdir(&mut self, (directory, name): &Place, now: i64) -> Result<u64> {
        let inode = self.child(*directory, name)?;
        if !self.is_directory(inode) {
            return Err(ErrorCode::NotDirectory.because(path::shown(name)));
        }
        if !self.entries(inode)?.is_empty() {
            return Err(ErrorCode::NotEmpty.because(path::shown(name)));
        }
        self.leave(*directory, name, now);
        self.nodes.remove(&inode);
        Ok(inode)
    }

    /// Moves a name, within and between directories that are here; never an exchange. Returns the inode that lost its
    /// name to it.
    pub(crate) fn rename(
        &mut self,
        from: &Place,
        to: &Place,
        mode: RenameMode,
        now: i64,
    ) -> Result<Option<u64>> {
        let moved = self.child(from.0, &from.1)?;
        let target = self.entries(to.0)?.get(&to.1).copied();
        self.refuse_loop(moved, to.0)?;
        if let Some(target) = target {
            if mode == RenameMode::NoReplace {
                return Err(ErrorCode::Exists.because(path::shown(&to.1)));
            }
            if target == moved {
                return Ok(None);
            }
            match (self.is_directory(moved), self.is_directory(target)) {
                (true, false) => return Err(ErrorCode::NotDirectory.because(path::shown(&to.1))),
                (false, true) => return Err(ErrorCode::IsDirectory.because(path::shown(&to.1))),
                (true, true) if !self.entries(target)?.is_empty() => {
                    return Err(ErrorCode::NotEmpty.because(path::shown(&to.1)));
                }
                _ => {}
            }
            self.leave(to.0, &to.1, now);
            self.lose_name(target, now);
        }
        self.leave(from.0, &from.1, now);
        self.enter(to.0, to.1.clone(), moved, now);
        if let Some(node) = self.nodes.get_mut(&moved) {
            node.parent = to.0;
            node.touch(now);
        }
        Ok(target)
    }

    /// Whether a name can be moved there without tearing a file's names apart.
    pub(crate) fn may_move(&self, from: &Place, to: &Place) -> bool {
        let moved = self.child(from.0, &from.1).ok().and_then(|inode| self.nodes.get(&inode));
        from.0 == to.0 || moved.is_none_or(|node| node.is_directory() || node.attr.nlink == 1)
    }

    fn refuse_loop(&self, moved: u64, into: u64) -> Result<()> {
        let mut at = into;
        while let Some(node) = self.nodes.get(&at) {
            if at == moved {
                return Err(ErrorCode::Invalid.because("a directory cannot move into itself"));
            }
            at = node.parent;
        }
        Ok(())
    }

    fn enter(&mut self, directory: u64, name: Bytes, inode: u64, now: i64) {
        let is_directory = self.is_directory(inode);
        self.change(directory, now, |entries, attr| {
            entries.insert(name, inode);
            attr.nlink += u32::from(is_directory);
        });
    }

    fn leave(&mut self, directory: u64, name: &Bytes, now: i64) {
        let inode = self.child(directory, name).unwrap_or(0);
        let is_directory = self.is_directory(inode);
        self.change(directory, now, |entries, attr| {
            entries.remove(name);
            attr.nlink -= u32::from(is_directory);
        });
    }

    fn change(
        &mut self,
        directory: u64,
        now: i64,
        change: impl FnOnce(&mut BTreeMap<Bytes, u64>, &mut Attr),
    ) {
        let Some(node) = self.nodes.get_mut(&directory) else { return };
        if let Some(directory) = &mut node.directory {
            change(&mut directory.entries, &mut node.attr);
            node.attr.mtime_ns = now;
            node.touch(now);
        }
    }

    /// Changes attributes other than the size.
    pub(crate) fn set_attr(&mut self, inode: u64, ask: &SetAttr, now: i64) -> Result<Attr> {
        let node = self.nodes.get_mut(&inode).ok_or(ErrorCode::Stale)?;
        change_attr(&mut node.attr, ask, now);
        Ok(node.attr)
    }

    /// All that has to be handed back with `wanted`: the directories around them that are here, and, if asked, those
    /// in them. From now on they are leaving; those that were already are not returned.
    pub(crate) fn part_with(&mut self, wanted: &[u64], with_those_in_them: bool) -> Vec<u64> {
        let mut found = Vec::new();
        let mut rest: Vec<u64> = wanted.iter().copied().filter(|&inode| self.is_directory(inode)).collect();
        for &inode in wanted {
            let mut at = inode;
            while let Some(parent) = self.nodes.get(&at).map(|node| node.parent)
                && self.is_directory(parent)
            {
                found.push(parent);
                at = parent;
            }
        }
        while let Some(inode) = rest.pop() {
            found.push(inode);
            if with_those_in_them && let Ok(entries) = self.entries(inode) {
                rest.extend(entries.values().copied().filter(|&child| self.is_directory(child)));
            }
        }
        found.sort_unstable();
        found.dedup();
        found.retain(|inode| {
            let directory = self.nodes.get_mut(inode).and_then(|node| node.directory.as_mut());
            directory.is_some_and(|directory| !std::mem::replace(&mut directory.leaving, true))
        });
        found
    }

    /// What lies in these directories and is none.
    pub(crate) fn files_in(&self, directories: &[u64]) -> Vec<u64> {
        let entries = directories.iter().filter_map(|&directory| self.entries(directory).ok());
        let all = entries.flat_map(|entries| entries.values().copied());
        let mut files: Vec<u64> = all.filter(|&inode| !self.is_directory(inode)).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Forgets directories that were handed back, with the files in them. Returns everything that is forgotten.
    pub(crate) fn forget(&mut self, directories: &[u64]) -> Vec<u64> {
        let mut gone = Vec::new();
        for &inode in directories {
            let Some(Node { directory: Some(directory), .. }) = self.nodes.remove(&inode) else { continue };
            gone.push(inode);
            for (name, child) in directory.entries {
                if self.is_directory(child) {
                    self.roots.insert((inode, name), child);
                } else if self.nodes.remove(&child).is_some() {
                    gone.push(child);
                }
            }
        }
        self.roots.retain(|_, root| self.nodes.contains_key(root));
        gone
    }

    /// Directories that were not used since `before`, each only if those around it were not either.
    pub(crate) fn idle_since(&self, before: u64) -> Vec<u64> {
        let idle = |node: &Node| node.directory.as_ref().is_some_and(|own| own.used < before && !own.leaving);
        let around = |node: &Node| {
            let mut at = node.parent;
            while let Some(parent) = self.nodes.get(&at) {
                if !idle(parent) {
                    return false;
                }
                at = parent.parent;
            }
            true
        };
        let found = self.nodes.iter().filter(|(_, node)| idle(node) && around(node));
        let mut found: Vec<u64> = found.map(|(&inode, _)| inode).collect();
        found.sort_unstable();
        found
    }

    /// The root under a name in somebody else's directory.
    pub(crate) fn root_at(&self, place: &Place) -> Option<u64> {
        self.roots.get(place).copied()
    }

    /// The name of a root was moved: over another one, perhaps.
    pub(crate) fn root_moved(&mut self, from: &Place, to: Place, now: i64) {
        if *from == to {
            return;
        }
        self.root_removed(&to);
        if let Some(root) = self.roots.remove(from) {
            if let Some(node) = self.nodes.get_mut(&root) {
                node.parent = to.0;
                node.touch(now);
            }
            self.roots.insert(to, root);
        }
    }

    /// A root, which was empty, was removed.
    pub(crate) fn root_removed(&mut self, place: &Place) -> Option<u64> {
        let root = self.roots.remove(place)?;
        self.nodes.remove(&root);
        Some(root)
    }

    /// Everything that is here.
    pub(crate) fn inodes(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }
}

/// As `chown`, `chmod` and `utimensat` by root.
pub(crate) fn change_attr(attr: &mut Attr, ask: &SetAttr, now: i64) {
    if ask.uid.is_some() || ask.gid.is_some() {
        attr.uid = ask.uid.unwrap_or(attr.uid);
        attr.gid = ask.gid.unwrap_or(attr.gid);
        if attr.kind() != FileKind::Directory {
            attr.mode &= !SETUID;
            if attr.mode & 0o010 != 0 {
                attr.mode &= !SETGID;
            }
        }
    }
    if let Some(mode) = ask.mode {
        attr.mode = mode & 0o7777;
    }
    if let Some(time) = ask.atime_ns.or(ask.atime_now.then_some(now)) {
        attr.atime_ns = time;
    }
    if let Some(time) = ask.mtime_ns.or(ask.mtime_now.then_some(now)) {
        attr.mtime_ns = time;
    }
    attr.ctime_ns = attr.ctime_ns.max(now);
}
