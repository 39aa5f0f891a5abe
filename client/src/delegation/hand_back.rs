//! Letting others into directories that were this client's own.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cairn_proto::limits::MAX_DEEDS;
use cairn_proto::{Result, fs};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Delegations, MOST_DISOWNED, MOST_INODES, State};
use crate::engine::{Engine, commit_each};
use crate::session::Session;

/// A directory that was not used for so long is handed back, in seconds.
const IDLE: u64 = 60;
/// How often that is looked at.
const ROUND: Duration = Duration::from_secs(5);
/// After which what could not be committed is tried again.
const PAUSE: Duration = Duration::from_millis(100);

impl Delegations {
    /// Waits while the directory of any of these inodes is being handed back.
    pub(super) async fn until_stable(&self, inodes: &[u64]) -> Result<()> {
        let leaving = |state: &State| inodes.iter().any(|&inode| state.tree.is_leaving(inode));
        self.wait_while(&self.handed_back, "a directory to be handed back", leaving).await
    }

    /// Of directories that somebody asks for, those that are not on their way already.
    fn staying(&self, mut directories: Vec<u64>) -> Vec<u64> {
        directories.sort_unstable();
        directories.dedup();
        let state = self.lock();
        directories.retain(|&directory| !state.tree.is_leaving(directory));
        directories
    }

    /// Directories that somebody asks for and that this client does not know: it may hear of them later.
    fn disown(&self, session: Option<Arc<Session>>, directories: &[u64]) -> Vec<u64> {
        let mut state = self.lock();
        if state.session.is_none() {
            // The answer to the first of all may have been lost.
            state.session = session;
        }
        let unknown: Vec<u64> =
            directories.iter().copied().filter(|&asked| !state.tree.is_directory(asked)).collect();
        for &directory in &unknown {
            state.disowned.insert(directory);
            if state.disowned.len() > MOST_DISOWNED {
                state.disowned.pop_first();
            }
        }
        unknown
    }
}

impl Engine {
    /// Somebody else waits for these directories, and says so again and again until they are handed back.
    pub(crate) fn recalled(self: &Arc<Engine>, directories: Vec<u64>) {
        if !self.delegations.enabled {
            return;
        }
        let wanted = self.delegations.staying(directories);
        if wanted.is_empty() {
            return;
        }
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            let unknown = engine.delegations.disown(engine.channel.live_session(), &wanted);
            engine.begin_to_part(&wanted, true);
            if !unknown.is_empty() {
                engine.tell_back(&unknown).await;
            }
        });
    }

    /// Hands everything back, soon.
    pub(super) fn hand_back_all(self: &Arc<Engine>) {
        let all = self.delegations.lock().tree.inodes();
        self.begin_to_part(&all, false);
    }

    /// Lets everybody into these directories, and those around them: with all that was done and written in them.
    /// An error: that is not so yet, but will be.
    pub(crate) fn hand_back(self: &Arc<Engine>, wanted: Vec<u64>) -> BoxFuture<'static, Result<()>> {
        self.begin_to_part(&wanted, false);
        let delegations = Arc::clone(&self.delegations);
        // Others may be on their way already.
        async move { delegations.until_stable(&wanted).await }.boxed()
    }

    /// Begins to hand directories back. `with_those_in_them`: and those, since whoever comes is likely to go on.
    fn begin_to_part(self: &Arc<Engine>, wanted: &[u64], with_those_in_them: bool) {
        let directories = self.delegations.lock().tree.part_with(wanted, with_those_in_them);
        if directories.is_empty() {
            return;
        }
        let engine = Arc::clone(self);
        // It goes on for longer than anybody waits for it, and when whoever asked goes away: half handed back, a directory
        // would stay closed to both.
        tokio::spawn(async move { engine.part_with(&directories).await });
    }

    async fn part_with(self: &Arc<Engine>, directories: &[u64]) {
        let files = self.delegations.lock().tree.files_in(directories);
        self.commit_for_others(files).await;
        self.tell_back(directories).await;
        let gone = self.delegations.lock().tree.forget(directories);
        self.let_go(&gone);
        self.delegations.handed_back.notify_waiters();
    }

    /// Commits what was written to these files. Its writers may have been told that all is well, so whoever comes must see
    /// it: it is tried until that works, or is known not to, or the session is over. What waits for room waits for it in
    /// memory: it may be that others come to make room.
    async fn commit_for_others(self: &Arc<Engine>, mut files: Vec<u64>) {
        loop {
            let known = files.drain(..).filter_map(|file| self.find(file));
            let dirty = known.filter(|file| file.is_dirty()).collect();
            for (inode, committed) in commit_each(dirty).await {
                match committed {
                    Ok(()) => {}
                    Err(error) if !error.code.is_final() => {
                        tracing::debug!(inode, %error, "what was written is not everybody's yet");
                        files.push(inode);
                    }
                    Err(error) => tracing::warn!(inode, %error, "what was written is not everybody's yet"),
                }
            }
            if files.is_empty() || !self.delegations.has_session() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has the namenode let others in; until it has, or the session is over.
    async fn tell_back(&self, directories: &[u64]) {
        for some in directories.chunks(MAX_DEEDS) {
            loop {
                if !self.delegations.has_session() {
                    return;
                }
                let op = fs::mutation::Op::HandBack(fs::HandBack { directories: some.to_vec() });
                match self.delegations.perform(self.now_ns(), op).await {
                    Ok(_) => break,
                    // The deed stays in the stream: once more is harmless.
                    Err(error) => tracing::debug!(%error, "directories are not handed back yet"),
                }
            }
        }
    }

    /// Tells open files of a session that is over that they are everybody's.
    pub(super) fn comfort(&self) {
        let bereft = std::mem::take(&mut self.delegations.lock().bereft);
        self.let_go(&bereft);
    }

    /// The attributes of these are the namenode's again.
    fn let_go(&self, inodes: &[u64]) {
        inodes.iter().filter_map(|&inode| self.find(inode)).for_each(|live| live.set_own(false));
    }
}

impl Delegations {
    pub(super) fn has_session(&self) -> bool {
        self.lock().session.is_some()
    }

    /// Directories that nobody here has used lately; more of them while there are too many inodes.
    fn idle(&self) -> Vec<u64> {
        let now = self.seconds();
        let state = self.lock();
        let idle = match state.tree.len() / MOST_INODES {
            0 => IDLE,
            1 => IDLE / 10,
            // Memory comes before speed.
            _ => return state.tree.inodes(),
        };
        state.tree.idle_since(now.saturating_sub(idle))
    }
}

/// Hands back what is not used, for as long as the client is there.
pub(crate) async fn tidy(engine: Weak<Engine>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(engine) = engine.upgrade() else { return };
        let idle = engine.delegations.idle();
        if !idle.is_empty() {
            let directories = idle.len();
            if let Err(error) = engine.hand_back(idle).await {
                tracing::warn!(directories, %error, "not handed back yet");
            }
        }
    }
}
