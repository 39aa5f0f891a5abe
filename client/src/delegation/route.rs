//! For each operation: whether it can be carried out here, and what comes first if it cannot.

use std::sync::Arc;

use cairn_proto::fs::{FileKind, RenameMode, answer, file_commit, mutation, outcome, query};
use cairn_proto::{ErrorCode, Result, fs};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Delegations;
use super::changes::Attempt;
use super::places::{named, number, numbers, place};
use super::tree::{Place, Tree};
use crate::engine::Engine;
use crate::session::Session;

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

impl Engine {
    /// Changes something: here, if it is this client's own business, or at the namenode.
    pub(crate) async fn mutate(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        op: mutation::Op,
    ) -> Result<outcome::Result> {
        use mutation::Op;
        let shows = !matches!(op, Op::MarkRead(_) | Op::Open(_) | Op::Close(_) | Op::ReserveInodes(_));
        let done = self.mutate_anywhere(cred, op).await;
        if shows {
            self.count_change();
        }
        done
    }

    async fn mutate_anywhere(
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
        match &mut found {
            answer::Result::Attr(attr) => *attr = self.ahead(*attr),
            answer::Result::Listing(listing) => {
                for attr in listing.entries.iter_mut().filter_map(|entry| entry.attr.as_mut()) {
                    // The namenode does not know yet what was done in it.
                    *attr = self.ahead(self.delegations.attr(attr.inode).unwrap_or(*attr));
                }
            }
            _ => {}
        }
        Ok(found)
    }

    /// What the namenode says of an inode; of one of the client's own that was written to, what it does not know yet.
    fn ahead(&self, attr: fs::Attr) -> fs::Attr {
        self.find(attr.inode).and_then(|live| live.attr_if_ahead()).unwrap_or(attr)
    }

    /// Shows an open file what became of its names.
    pub(super) fn show(&self, tree: &Tree, inode: u64, now: i64) {
        if let Some(live) = self.find(inode) {
            live.set_links(tree.node(inode).map_or(0, |node| node.attr.nlink), now);
        }
    }

    /// The attributes of an inode that is here, with what was written to it.
    pub(super) fn seen(&self, attr: fs::Attr) -> fs::Attr {
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
        let about: Vec<u64> = named(op).into_iter().flatten().map(|at| at.inode).chain(numbers(op)).collect();
        loop {
            delegations.until_stable(&about).await?;
            delegations.admit().await?;
            if let mutation::Op::Rename(ask) = op
                && let Some(moved) = delegations.replaces(ask)
            {
                self.commit_first(moved).await?;
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

    /// What replaces a file is complete before it does, or does not replace it: a program that writes a new file and moves
    /// it over the old one has one of the two, whatever happens.
    fn commit_first(self: &Arc<Engine>, inode: u64) -> BoxFuture<'static, Result<()>> {
        let file = self.find(inode).filter(|file| file.is_dirty());
        async move {
            let Some(file) = file else { return Ok(()) };
            match file.commit_all_owned().await {
                // It was removed meanwhile, so that it replaces nothing: whoever moves it hears that.
                Err(error) if error.code == ErrorCode::Stale => Ok(()),
                // Also where its content was refused for good: the old one is better than what is left of it.
                done => done,
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
        delegations.until_stable(&[target.inode]).await?;
        let usable = cred.uid == 0 && !self.channel.fenced();
        if usable && let Some(found) = delegations.answer(self, op) {
            return found.map(Some);
        }
        if number(at).is_some() {
            // What it says by its number is asked for where it is known.
            delegations.until_born(target.inode).await?;
        }
        // A listing, or attributes, of what is here and cannot be said here now: the namenode is to know all of it.
        let is_own = matches!(op, query::Op::Stat(_) | query::Op::Access(_) | query::Op::List(_))
            && delegations.attr(target.inode).is_some();
        if (is_own || number(at).is_none() || cred.uid != 0) && delegations.is_busy() {
            delegations.until_told().await?;
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
        let moved = match &op {
            Op::Rename(ask) => delegations.may_replace(ask),
            _ => None,
        };
        let back = delegations.in_the_way(&op);
        if !back.is_empty() {
            self.hand_back(back).await?;
        }
        if let Some(moved) = moved {
            // A directory is handed back without what has no room on the disks.
            self.commit_first(moved).await?;
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
        // It sets times, which an earlier deed must not set back.
        let on_content = matches!(
            &op,
            Op::SetAttr(fs::SetAttr { size: Some(_), .. }) | Op::ClearRange(_) | Op::CloneRange(_)
        );
        if (by_name || session_ends || barrier || on_content) && delegations.is_busy() {
            delegations.until_told().await?;
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
            (After::Content, Some(attr)) => self.take_in_content(&attr),
            _ => {}
        }
    }

    /// The namenode has changed the content of an inode that may be this client's own.
    pub(crate) fn take_in_content(&self, attr: &fs::Attr) {
        self.delegations.note_content(attr, &[]);
        if let Some(live) = self.find(attr.inode) {
            live.learn_content(attr, true);
        }
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
            return !ask.inodes.is_empty() && state.is_busy();
        }
        let by_ref = named(op).into_iter().flatten().map(|at| at.inode);
        by_ref.chain(numbers(op)).any(|inode| state.tree.node(inode).is_some())
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
            Op::Create(ask) if !ask.exclusive => {
                if let Some((directory, name)) = place(&ask.at)
                    && state.tree.child(directory, &name).is_ok_and(|child| !state.tree.is_leaving(child))
                {
                    return Vec::new();
                }
            }
            Op::SetXattr(fs::SetXattr { at, name, .. }) | Op::RemoveXattr(fs::RemoveXattr { at, name }) => {
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
        if named(op).into_iter().flatten().any(|at| at.path.contains(&b'/')) {
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

    /// What would take the place of a file that is not here, if there is one.
    fn may_replace(&self, ask: &fs::Rename) -> Option<u64> {
        let from = place(&ask.from).filter(|_| ask.mode() == RenameMode::Replace)?;
        self.lock().tree.child(from.0, &from.1).ok()
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

    /// Whether this commit goes with the deeds: the namenode may not know the file yet, and what comes after it must not
    /// overtake it.
    pub(crate) fn commits(&self, file: &fs::FileCommit) -> bool {
        let Some(file_commit::Target::Inode(inode)) = file.target else { return false };
        if !self.enabled || file.mode() != fs::CommitMode::Set {
            return false;
        }
        let state = self.lock();
        state.tree.node(inode).is_some() || state.unborn.contains(&inode)
    }
}
