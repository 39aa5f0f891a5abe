//! Changes that are carried out here.

use bytes::Bytes;
use cairn_proto::fs::{FileKind, NodeRef, RenameMode, mutation, outcome};
use cairn_proto::{ErrorCode, Result, fs};

use super::Delegations;
use super::places::{number, place};
use super::tree::{Place, SETGID, Seed, Tree};
use crate::engine::Engine;

/// What became of an attempt to do something here.
pub(super) enum Attempt {
    Done(Result<outcome::Result>),
    /// Not here.
    Elsewhere,
    /// Numbers for new inodes have run out.
    NoNumbers,
}

impl Delegations {
    pub(super) fn attempt(&self, engine: &Engine, op: &mutation::Op) -> Attempt {
        use mutation::Op;
        let now = engine.now_ns();
        let attr = |attr| outcome::Result::Attr(attr);
        match op {
            Op::Create(ask) => {
                let seed = seed(FileKind::File, ask.mode & !ask.umask, ask.uid, ask.gid);
                let created =
                    |attr| outcome::Result::Created(fs::Created { attr: Some(attr), existed: false });
                match place(&ask.at).map(|place| self.lock().tree.child(place.0, &place.1)) {
                    // It is opened, and perhaps emptied.
                    Some(Ok(_)) if !ask.exclusive => Attempt::Elsewhere,
                    _ => self.make(&ask.at, Seed { replication: ask.replication, ..seed }, now, op, created),
                }
            }
            Op::Mkdir(ask) if !ask.parents && ask.mode & SETGID == 0 => {
                let seed = seed(FileKind::Directory, ask.mode & !ask.umask, ask.uid, ask.gid);
                let mut ask = ask.clone();
                ask.delegate = true;
                let at = ask.at.clone();
                self.make(&at, seed, now, &Op::Mkdir(ask), attr)
            }
            Op::Mknod(ask) => {
                let seed = seed(ask.kind(), ask.mode & !ask.umask, ask.uid, ask.gid);
                self.make(&ask.at, Seed { rdev: ask.rdev, ..seed }, now, op, attr)
            }
            Op::Symlink(ask) => {
                let seed = seed(FileKind::Symlink, 0o777, ask.uid, ask.gid);
                self.make(&ask.at, Seed { target: ask.target.clone(), ..seed }, now, op, attr)
            }
            Op::Unlink(ask) => self.change(&[&ask.at], now, op, |tree, places, now| {
                let inode = tree.unlink(&places[0], now)?;
                engine.show(tree, inode, now);
                Ok(())
            }),
            Op::Rmdir(ask) => {
                self.change(&[&ask.at], now, op, |tree, places, now| tree.rmdir(&places[0], now).map(drop))
            }
            Op::Link(ask) => self.link(engine, ask, now),
            Op::Rename(ask) if ask.mode() != RenameMode::Exchange && self.may_move(ask) => {
                self.change(&[&ask.from, &ask.to], now, op, |tree, places, now| {
                    let moved = tree.child(places[0].0, &places[0].1)?;
                    let replaced = tree.rename(&places[0], &places[1], ask.mode(), now)?;
                    for inode in [Some(moved), replaced].into_iter().flatten() {
                        engine.show(tree, inode, now);
                    }
                    Ok(())
                })
            }
            Op::SetAttr(ask) => self.set_attr(engine, ask, now),
            Op::Open(ask) => {
                let mut state = self.lock();
                let Some(node) = state.tree.node(ask.inode) else { return Attempt::Elsewhere };
                if state.tree.is_leaving(ask.inode) {
                    return Attempt::Elsewhere;
                }
                let known = node.attr;
                state.push(now, 0, op.clone());
                drop(state);
                Attempt::Done(Ok(attr(engine.seen(known))))
            }
            Op::Close(_) => {
                let mut state = self.lock();
                // What it had to follow may be done by now, or lost with its session.
                if !state.is_busy() {
                    return Attempt::Elsewhere;
                }
                state.push(now, 0, op.clone());
                Attempt::Done(Ok(outcome::Result::Nothing(fs::Nothing {})))
            }
            _ => Attempt::Elsewhere,
        }
    }

    fn make(
        &self,
        at: &Option<NodeRef>,
        mut seed: Seed,
        now: i64,
        op: &mutation::Op,
        outcome: impl FnOnce(fs::Attr) -> outcome::Result,
    ) -> Attempt {
        let Some(place) = place(at) else { return Attempt::Elsewhere };
        let mut state = self.lock();
        if !state.tree.is_directory(place.0) || state.tree.is_leaving(place.0) {
            return Attempt::Elsewhere;
        }
        if state.tree.child(place.0, &place.1).is_ok() {
            return Attempt::Done(Err(ErrorCode::Exists.because(cairn_proto::path::shown(&place.1))));
        }
        let Some(inode) = state.numbers.next() else { return Attempt::NoNumbers };
        seed.inode = inode;
        if seed.replication == 0 && matches!(seed.kind, FileKind::File | FileKind::Fifo | FileKind::Socket) {
            seed.replication = state.numbers.replication;
        }
        let made = state.tree.make(&place, seed, now);
        if made.is_ok() {
            state.tree.used(place.0, self.seconds());
            state.push(now, inode, op.clone());
        }
        Attempt::Done(made.map(outcome))
    }

    fn change(
        &self,
        at: &[&Option<NodeRef>],
        now: i64,
        op: &mutation::Op,
        change: impl FnOnce(&mut Tree, &[Place], i64) -> Result<()>,
    ) -> Attempt {
        let places: Vec<Place> = at.iter().filter_map(|at| place(at)).collect();
        let mut state = self.lock();
        let here = |place: &Place| state.tree.is_directory(place.0) && !state.tree.is_leaving(place.0);
        // Nor may what is moved or removed be on its way out.
        let child_leaves = |place: &Place| {
            state.tree.child(place.0, &place.1).is_ok_and(|child| state.tree.is_leaving(child))
        };
        if places.len() < at.len() || !places.iter().all(here) || places.iter().any(child_leaves) {
            return Attempt::Elsewhere;
        }
        let done = change(&mut state.tree, &places, now);
        if done.is_ok() {
            let seconds = self.seconds();
            places.iter().for_each(|place| state.tree.used(place.0, seconds));
            state.push(now, 0, op.clone());
        }
        Attempt::Done(done.map(|()| outcome::Result::Nothing(fs::Nothing {})))
    }

    /// The file that would take the place of another one.
    pub(super) fn replaces(&self, ask: &fs::Rename) -> Option<u64> {
        let (from, to) = (place(&ask.from)?, place(&ask.to)?);
        let state = self.lock();
        let moved = state.tree.child(from.0, &from.1).ok()?;
        state.tree.child(to.0, &to.1).ok().filter(|replaced| *replaced != moved).map(|_| moved)
    }

    fn may_move(&self, ask: &fs::Rename) -> bool {
        match (place(&ask.from), place(&ask.to)) {
            (Some(from), Some(to)) => self.lock().tree.may_move(&from, &to),
            _ => false,
        }
    }

    fn link(&self, engine: &Engine, ask: &fs::Link, now: i64) -> Attempt {
        let (Some(inode), Some(place)) = (number(&ask.from), place(&ask.at)) else {
            return Attempt::Elsewhere;
        };
        let mut state = self.lock();
        if !state.tree.may_link(inode, place.0) || state.tree.is_leaving(place.0) {
            return Attempt::Elsewhere;
        }
        let linked = state.tree.link(inode, &place, now);
        if let Ok(attr) = &linked {
            engine.show(&state.tree, attr.inode, now);
            state.tree.used(place.0, self.seconds());
            state.push(now, 0, mutation::Op::Link(ask.clone()));
        }
        drop(state);
        Attempt::Done(linked.map(|attr| outcome::Result::Attr(engine.seen(attr))))
    }

    fn set_attr(&self, engine: &Engine, ask: &fs::SetAttr, now: i64) -> Attempt {
        let Some(inode) = number(&ask.at) else { return Attempt::Elsewhere };
        let mut state = self.lock();
        let Some(node) = state.tree.node(inode) else { return Attempt::Elsewhere };
        let directory = node.attr.kind() == FileKind::Directory;
        // What a directory hands down is the namenode's business.
        let special = directory && ask.mode.is_some_and(|mode| mode & SETGID != 0);
        if ask.size.is_some() || special || node.attr.acl || state.tree.is_leaving(inode) {
            return Attempt::Elsewhere;
        }
        // Exact times, so that both sides set the same.
        let mut ask = ask.clone();
        if std::mem::take(&mut ask.atime_now) {
            ask.atime_ns.get_or_insert(now);
        }
        if std::mem::take(&mut ask.mtime_now) {
            ask.mtime_ns.get_or_insert(now);
        }
        let changed = state.tree.set_attr(inode, &ask, now);
        if let Some(live) = engine.find(inode) {
            live.change_attr(&ask, now);
        }
        state.push(now, 0, mutation::Op::SetAttr(ask));
        drop(state);
        Attempt::Done(changed.map(|attr| outcome::Result::Attr(engine.seen(attr))))
    }

    pub(super) fn note_reads(&self, ask: &fs::MarkRead) {
        let mut state = self.lock();
        for read in &ask.files {
            if let Some(node) = state.tree.node_mut(read.inode) {
                node.attr.atime_ns = node.attr.atime_ns.max(read.atime_ns);
            }
        }
    }
}

fn seed(kind: FileKind, mode: u32, uid: u32, gid: u32) -> Seed {
    Seed { kind, mode: mode & 0o7777, uid, gid, target: Bytes::new(), ..Seed::default() }
}
