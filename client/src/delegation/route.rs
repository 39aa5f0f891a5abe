//! For each operation: whether it can be carried out here, and what comes first if it cannot.

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::fs::{
    FileKind, NodeRef, RenameMode, answer, clone_range, file_commit, mutation, outcome, query,
};
use cairn_proto::limits::{MAX_LIST_PAGE, MAX_NAME};
use cairn_proto::{ErrorCode, Result, fs};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::tree::{Place, Seed, Tree};
use super::{Delegations, RESERVE, RESERVE_AT};
use crate::engine::Engine;
use crate::namespace::root;
use crate::session::Session;

const SETGID: u32 = 0o2000;

/// What to take in when the namenode has carried an operation out itself.
enum After {
    Nothing,
    /// A directory that may have been delegated is at this place now.
    Made(Place),
    /// The name of what may be a root.
    Removed(Place),
    Moved(Place, Place),
    /// Of an inode that is this client's own.
    Content,
}

/// What became of an attempt to do something here.
enum Attempt<T> {
    Done(Result<T>),
    /// Not here.
    Elsewhere,
    /// Numbers for new inodes have run out.
    NoNumbers,
}

/// The directory and the one name in it that `at` says, if it is like that.
fn place(at: &Option<NodeRef>) -> Option<Place> {
    let at = at.as_ref()?;
    let plain = !at.path.is_empty() && at.path.len() <= MAX_NAME && !at.path.contains(&b'/');
    let special = matches!(&at.path[..], b"." | b"..");
    (plain && !special).then(|| (at.inode, at.path.clone()))
}

/// The inode that `at` says by its number.
fn number(at: &Option<NodeRef>) -> Option<u64> {
    at.as_ref().filter(|at| at.path.is_empty()).map(|at| at.inode)
}

/// Everything an operation names.
fn named(op: &mutation::Op) -> Vec<&Option<NodeRef>> {
    use mutation::Op;
    match op {
        Op::Create(ask) => vec![&ask.at],
        Op::Mkdir(ask) => vec![&ask.at],
        Op::Mknod(ask) => vec![&ask.at],
        Op::Symlink(ask) => vec![&ask.at],
        Op::Link(ask) => vec![&ask.from, &ask.at],
        Op::Rename(ask) => vec![&ask.from, &ask.to],
        Op::Unlink(ask) => vec![&ask.at],
        Op::Rmdir(ask) => vec![&ask.at],
        Op::SetAttr(ask) => vec![&ask.at],
        Op::SetReplication(ask) => vec![&ask.at],
        Op::SetXattr(ask) => vec![&ask.at],
        Op::RemoveXattr(ask) => vec![&ask.at],
        Op::SetQuota(ask) => vec![&ask.at],
        Op::Discard(ask) => vec![&ask.at],
        Op::Restore(ask) => vec![&ask.to],
        Op::Commit(ask) => {
            let created = ask.files.iter().filter_map(|file| match &file.target {
                Some(file_commit::Target::Create(create)) => Some(&create.at),
                _ => None,
            });
            created.collect()
        }
        Op::CloneRange(ask) => match &ask.target {
            Some(clone_range::Target::Create(create)) => vec![&create.at],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Inodes that an operation says by their numbers, and that must exist when it gets there.
fn numbers(op: &mutation::Op) -> Vec<u64> {
    use mutation::Op;
    match op {
        Op::SetLock(ask) => vec![ask.inode],
        Op::ClearRange(ask) => vec![ask.inode],
        Op::CloneRange(ask) => match ask.target {
            Some(clone_range::Target::Inode(inode)) => vec![ask.source, inode],
            _ => vec![ask.source],
        },
        Op::Open(ask) => vec![ask.inode],
        Op::Commit(ask) => {
            let plain = ask.files.iter().filter_map(|file| match file.target {
                Some(file_commit::Target::Inode(inode)) => Some(inode),
                _ => None,
            });
            plain.collect()
        }
        _ => named(op).into_iter().filter_map(number).collect(),
    }
}

impl Engine {
    /// Changes something: here, if it is this client's own business, or at the namenode.
    pub(crate) async fn mutate(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        op: mutation::Op,
    ) -> Result<outcome::Result> {
        if !self.delegations.enabled {
            return self.channel.mutate(cred, op).await;
        }
        if let Some(done) = self.try_here(cred, &op).await? {
            return Ok(done);
        }
        let (op, after) = self.prepare(cred, op).await?;
        let session = self.channel.session_in_time().await?;
        let done = self.channel.mutate_in(&session, cred, op).await?;
        self.take_in(&session, after, &done);
        Ok(done)
    }

    /// Asks something: here, if it is about what is this client's own, or the namenode.
    pub(crate) async fn query(self: &Arc<Engine>, cred: &fs::Cred, op: query::Op) -> Result<answer::Result> {
        if !self.delegations.enabled {
            return self.channel.query(cred, op).await;
        }
        if let Some(found) = self.try_to_answer(cred, &op).await? {
            return Ok(found);
        }
        let mut found = self.channel.query(cred, op).await?;
        if let answer::Result::Listing(listing) = &mut found {
            for attr in listing.entries.iter_mut().filter_map(|entry| entry.attr.as_mut()) {
                // The namenode does not know yet what was done in it.
                *attr = self.delegations.attr(attr.inode).unwrap_or(*attr);
            }
        }
        Ok(found)
    }

    /// Shows an open file what became of its names.
    fn show(&self, tree: &Tree, inode: u64, now: i64) {
        if let Some(live) = self.find(inode) {
            live.set_links(tree.node(inode).map_or(0, |node| node.attr.nlink), now);
        }
    }

    /// The attributes of an inode that is here, with what was written to it.
    fn seen(&self, attr: fs::Attr) -> fs::Attr {
        match self.find(attr.inode) {
            Some(live) if attr.kind() == FileKind::File => live.attr(),
            _ => attr,
        }
    }

    /// Only root's requests are looked at here: others' rights would have to be.
    async fn try_here(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        op: &mutation::Op,
    ) -> Result<Option<outcome::Result>> {
        let delegations = &self.delegations;
        if cred.uid != 0 || !delegations.touches(op) {
            return Ok(None);
        }
        loop {
            for inode in named(op).into_iter().flatten().map(|at| at.inode).chain(numbers(op)) {
                delegations.until_stable(inode).await?;
            }
            delegations.admit().await?;
            if let mutation::Op::Rename(ask) = op
                && let Some(moved) = delegations.replaces(ask)
            {
                self.commit_first(moved).await;
            }
            match delegations.attempt(self, op) {
                Attempt::Done(done) => {
                    delegations.work.notify_one();
                    if delegations.wants_numbers() {
                        let engine = Arc::clone(self);
                        // Failing here, it is tried again when a number is needed.
                        tokio::spawn(async move { engine.reserve().await });
                    }
                    return done.map(Some);
                }
                Attempt::Elsewhere => return Ok(None),
                Attempt::NoNumbers => self.reserve().await?,
            }
        }
    }

    /// What replaces a file is complete before it does: a program that writes a new file and moves it over the old one
    /// has one of the two, whatever happens.
    fn commit_first(self: &Arc<Engine>, inode: u64) -> BoxFuture<'static, ()> {
        let file = self.find(inode).filter(|file| file.is_dirty());
        async move {
            if let Some(file) = file
                && let Err(error) = file.commit_all_owned().await
            {
                tracing::warn!(inode, %error, "a file replaces another one before its content is committed");
            }
        }
        .boxed()
    }

    async fn try_to_answer(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        op: &query::Op,
    ) -> Result<Option<answer::Result>> {
        let delegations = &self.delegations;
        let at = match op {
            query::Op::Stat(ask) => &ask.at,
            query::Op::Access(ask) => &ask.at,
            query::Op::ReadLink(ask) => &ask.at,
            query::Op::List(ask) => &ask.at,
            query::Op::GetXattr(ask) => &ask.at,
            query::Op::ListXattr(ask) => &ask.at,
            query::Op::Layout(ask) => &ask.at,
            query::Op::Usage(ask) => &ask.at,
            query::Op::CheckFile(ask) => &ask.at,
            query::Op::GetLock(ask) => {
                delegations.until_born(ask.inode).await?;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let Some(target) = at else { return Ok(None) };
        delegations.until_stable(target.inode).await?;
        let usable = cred.uid == 0 && !self.channel.fenced();
        if usable && let Some(found) = delegations.answer(self, op) {
            return found.map(Some);
        }
        if number(at).is_some() {
            // What it says by its number is asked for where it is known.
            delegations.until_born(target.inode).await?;
        }
        if (number(at).is_none() || cred.uid != 0) && delegations.is_busy() {
            delegations.flush().await?;
        }
        Ok(None)
    }

    /// Makes ready for the namenode to carry an operation out: what was done here is told before, and what it would
    /// change behind this client's back is handed back.
    async fn prepare(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        mut op: mutation::Op,
    ) -> Result<(mutation::Op, After)> {
        use mutation::Op;
        let delegations = &self.delegations;
        let mut after = After::Nothing;
        let back = delegations.in_the_way(&op);
        if !back.is_empty() {
            self.hand_back(back, false).await;
        }
        match &mut op {
            Op::Mkdir(ask) if !ask.parents && cred.uid == 0 => {
                if let Some(place) = place(&ask.at) {
                    ask.delegate = true;
                    after = After::Made(place);
                }
            }
            Op::Rmdir(ask) => after = place(&ask.at).map_or(After::Nothing, After::Removed),
            Op::Rename(ask) => {
                if let (Some(from), Some(to)) = (place(&ask.from), place(&ask.to)) {
                    after = After::Moved(from, to);
                }
            }
            Op::Create(_) | Op::SetAttr(_) | Op::ClearRange(_) | Op::CloneRange(_) | Op::Commit(_) => {
                after = After::Content;
            }
            Op::MarkRead(ask) => delegations.note_reads(ask),
            _ => {}
        }
        // By name, it may be about anything.
        let by_name = named(&op).into_iter().flatten().any(|at| !at.path.is_empty());
        let session_ends = matches!(op, Op::CloseSession(_));
        let barrier = matches!(&op, Op::Close(ask) if ask.inodes.is_empty());
        if (by_name || session_ends || barrier) && delegations.is_busy() {
            delegations.flush().await?;
        }
        for inode in numbers(&op) {
            delegations.until_born(inode).await?;
        }
        Ok((op, after))
    }

    fn take_in(self: &Arc<Engine>, session: &Arc<Session>, after: After, done: &outcome::Result) {
        let attr = match done {
            outcome::Result::Attr(attr) => Some(*attr),
            outcome::Result::Created(created) => created.attr,
            outcome::Result::Range(range) => range.attr,
            outcome::Result::Commit(commit) => {
                match commit.files.first().and_then(|file| file.result.as_ref()) {
                    Some(fs::file_outcome::Result::Attr(attr)) => Some(*attr),
                    _ => None,
                }
            }
            _ => None,
        };
        match (after, attr) {
            (After::Made(place), Some(attr)) if attr.delegated => {
                self.delegations.begin(session, place, attr);
            }
            (After::Removed(place), _) => _ = self.delegations.lock().tree.root_removed(&place),
            (After::Moved(from, to), _) => {
                self.delegations.lock().tree.root_moved(&from, to, self.now_ns());
            }
            (After::Content, Some(attr)) => {
                self.delegations.note_content(&attr, &[]);
                if let Some(live) = self.find(attr.inode) {
                    live.learn_content(&attr, true);
                }
            }
            _ => {}
        }
    }

    /// Takes numbers for more inodes.
    async fn reserve(&self) -> Result<()> {
        let Some(session) = self.delegations.may_take_numbers() else {
            return self.delegations.until_numbered().await;
        };
        let asked = async {
            let stats = fs::StatFs::default();
            let answer::Result::Fs(stats) = self.channel.query(&root(), query::Op::StatFs(stats)).await?
            else {
                return Err(ErrorCode::Malformed.because("the namenode's answer to statfs"));
            };
            let op = mutation::Op::ReserveInodes(fs::ReserveInodes { count: RESERVE });
            match self.channel.mutate_in(&session, &root(), op).await? {
                outcome::Result::Reserved(range) => Ok((range, stats.default_replication)),
                _ => Err(ErrorCode::Malformed.because("the outcome of reserving inodes")),
            }
        };
        let asked = asked.await;
        self.delegations.give_numbers(&session, asked)
    }

    /// Commits a file that the namenode may not know yet, in its place among what else was done.
    pub(crate) async fn commit_as_deed(
        &self,
        written_ns: i64,
        file: &fs::FileCommit,
    ) -> Option<Result<outcome::Result>> {
        let Some(file_commit::Target::Inode(inode)) = file.target else { return None };
        if file.mode() != fs::CommitMode::Set || !self.delegations.is_own(inode) {
            return None;
        }
        let op = mutation::Op::Commit(fs::CommitExtents { files: vec![file.clone()] });
        Some(self.delegations.perform(written_ns, op).await)
    }
}

impl Delegations {
    /// Whether it is about something that is here, or may be.
    fn touches(&self, op: &mutation::Op) -> bool {
        let state = self.lock();
        if state.tree.is_empty() {
            return false;
        }
        if let mutation::Op::Close(ask) = op {
            return !ask.inodes.is_empty() && state.counted > state.settled;
        }
        let by_ref = named(op).into_iter().flatten().map(|at| at.inode);
        by_ref.chain(numbers(op)).any(|inode| state.tree.node(inode).is_some())
    }

    fn attempt(&self, engine: &Engine, op: &mutation::Op) -> Attempt<outcome::Result> {
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
                self.lock().push(now, 0, op.clone());
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
    ) -> Attempt<outcome::Result> {
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
    ) -> Attempt<outcome::Result> {
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
    fn replaces(&self, ask: &fs::Rename) -> Option<u64> {
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

    fn link(&self, engine: &Engine, ask: &fs::Link, now: i64) -> Attempt<outcome::Result> {
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

    fn set_attr(&self, engine: &Engine, ask: &fs::SetAttr, now: i64) -> Attempt<outcome::Result> {
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

    /// What is known here for sure.
    fn answer(&self, engine: &Engine, op: &query::Op) -> Option<Result<answer::Result>> {
        let attr_of = |at: &Option<NodeRef>, follow: bool| {
            let found = self.find(at)?;
            let link = |attr: &fs::Attr| attr.kind() == FileKind::Symlink;
            // A link may lead anywhere.
            if follow && found.as_ref().is_ok_and(link) {
                return None;
            }
            Some(found)
        };
        let attr = |found: Result<fs::Attr>| found.map(|attr| answer::Result::Attr(engine.seen(attr)));
        match op {
            query::Op::Stat(ask) => attr_of(&ask.at, ask.follow).map(attr),
            query::Op::Access(ask) => attr_of(&ask.at, ask.follow).map(attr),
            query::Op::ReadLink(ask) => {
                let found = self.find(&ask.at)?;
                let target = found.and_then(|attr| self.lock().tree.target(attr.inode));
                Some(target.map(answer::Result::Bytes))
            }
            query::Op::List(ask) => self.list(engine, ask),
            query::Op::GetXattr(ask) => match self.find(&ask.at)? {
                Ok(attr) if self.is_bare(attr.inode) => {
                    Some(Err(ErrorCode::NoAttribute.because(cairn_proto::path::shown(&ask.name))))
                }
                _ => None,
            },
            query::Op::ListXattr(ask) => match self.find(&ask.at)? {
                Ok(attr) if self.is_bare(attr.inode) => Some(Ok(answer::Result::Names(fs::Names::default()))),
                _ => None,
            },
            _ => None,
        }
    }

    /// The attributes of an inode that is here.
    fn attr(&self, inode: u64) -> Option<fs::Attr> {
        self.lock().tree.node(inode).map(|node| node.attr)
    }

    /// What `at` says, if it is here; `None`: it is not, or may not be.
    fn find(&self, at: &Option<NodeRef>) -> Option<Result<fs::Attr>> {
        let mut state = self.lock();
        let inode = match place(at) {
            Some(place) if state.tree.is_directory(place.0) => match state.tree.child(place.0, &place.1) {
                Ok(inode) => inode,
                Err(error) => return Some(Err(error)),
            },
            Some(_) => return None,
            None => number(at)?,
        };
        let attr = state.tree.node(inode)?.attr;
        if let Some(directory) = state.tree.directory_of(inode) {
            state.tree.used(directory, self.seconds());
        }
        if state.tree.is_leaving(inode) {
            return None;
        }
        Some(Ok(attr))
    }

    /// Whether an inode has no extended attributes.
    fn is_bare(&self, inode: u64) -> bool {
        let state = self.lock();
        state.tree.node(inode).is_some_and(|node| !node.has_xattrs && !node.attr.acl)
    }

    fn list(&self, engine: &Engine, ask: &fs::ListDirectory) -> Option<Result<answer::Result>> {
        let inode = number(&ask.at)?;
        let listing = {
            let mut state = self.lock();
            if !state.tree.is_directory(inode) || state.tree.is_leaving(inode) {
                return None;
            }
            state.tree.used(inode, self.seconds());
            let limit = if ask.limit == 0 { MAX_LIST_PAGE } else { ask.limit.min(MAX_LIST_PAGE) };
            state.tree.list(inode, &ask.after, limit as usize)
        };
        Some(listing.map(|mut listing| {
            for entry in &mut listing.entries {
                entry.attr = entry.attr.map(|attr| engine.seen(attr));
            }
            answer::Result::Listing(listing)
        }))
    }

    /// Directories whose content the namenode would change, or whose inodes in a way that is not followed here.
    fn in_the_way(&self, op: &mutation::Op) -> Vec<u64> {
        use mutation::Op;
        let mut state = self.lock();
        if state.tree.is_empty() {
            return Vec::new();
        }
        match op {
            // Names and content stay as they are, or are taken in afterwards.
            Op::SetAttr(fs::SetAttr { size: Some(_), .. }) => return Vec::new(),
            Op::Create(ask) if !ask.exclusive && place(&ask.at).is_some() => {
                let place = place(&ask.at).unwrap_or_default();
                if state.tree.child(place.0, &place.1).is_ok_and(|child| !state.tree.is_leaving(child)) {
                    return Vec::new();
                }
            }
            Op::SetXattr(_) | Op::RemoveXattr(_) => {
                let (at, name) = match op {
                    Op::SetXattr(ask) => (&ask.at, &ask.name),
                    Op::RemoveXattr(ask) => (&ask.at, &ask.name),
                    _ => return Vec::new(),
                };
                if !name.starts_with(b"system.")
                    && let Some(inode) = number(at)
                {
                    if let Some(node) = state.tree.node_mut(inode) {
                        node.has_xattrs = true;
                    }
                    return Vec::new();
                }
            }
            _ => {}
        }
        let whole_path = |at: &&NodeRef| at.path.contains(&b'/');
        if named(op).into_iter().flatten().any(|at| whole_path(&at)) {
            return state.tree.inodes();
        }
        let mut back = Vec::new();
        for at in named(op).into_iter().flatten() {
            let child = state.tree.child(at.inode, &at.path).ok();
            let moves_whole = !matches!(op, Op::Rename(_) | Op::Rmdir(_));
            let root = state.tree.root_at(&(at.inode, at.path.clone())).filter(|_| moves_whole);
            let own = state.tree.directory_of(at.inode);
            back.extend(
                [own, child.and_then(|child| state.tree.directory_of(child)), root].into_iter().flatten(),
            );
        }
        if let Op::Rename(ask) = op
            && ask.mode() == RenameMode::Exchange
        {
            let roots = [&ask.from, &ask.to].into_iter().filter_map(place);
            back.extend(roots.filter_map(|place| state.tree.root_at(&place)));
        }
        back
    }

    /// The first directory of a session, or one more, unless others were faster.
    fn begin(&self, session: &Arc<Session>, place: Place, attr: fs::Attr) {
        let mut state = self.lock();
        if session.expired() || state.disowned.remove(&attr.inode) {
            return;
        }
        match &state.session {
            Some(own) if own.id() != session.id() => return,
            _ => state.session = Some(Arc::clone(session)),
        }
        state.tree.add_root(place, attr);
        state.tree.used(attr.inode, self.seconds());
    }

    fn wants_numbers(&self) -> bool {
        let state = self.lock();
        !state.numbers.asked && state.numbers.left() < RESERVE_AT
    }

    /// Waits while somebody else takes numbers.
    async fn until_numbered(&self) -> Result<()> {
        self.wait_while(&self.done, "numbers for new inodes", |state| {
            state.numbers.asked && state.numbers.left() == 0
        })
        .await
    }

    /// The session to take numbers for, unless somebody does or there are enough.
    fn may_take_numbers(&self) -> Option<Arc<Session>> {
        let mut state = self.lock();
        if state.numbers.asked || state.numbers.left() >= RESERVE_AT {
            return None;
        }
        let session = state.session.clone()?;
        state.numbers.asked = true;
        Some(session)
    }

    fn give_numbers(&self, session: &Arc<Session>, asked: Result<(fs::InodesReserved, u32)>) -> Result<()> {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|own| own.id() == session.id()) {
            state.numbers.asked = false;
            self.done.notify_waiters();
            let (range, replication) = asked?;
            state.numbers.ranges.push_back(range.first..range.first + u64::from(range.count));
            state.numbers.replication = replication;
        }
        Ok(())
    }

    fn is_own(&self, inode: u64) -> bool {
        let state = self.lock();
        state.tree.node(inode).is_some() || state.unborn.contains_key(&inode)
    }

    fn note_reads(&self, ask: &fs::MarkRead) {
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
