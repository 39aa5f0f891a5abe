//! What this client may do in its own directories without asking (`namenode/metadata/src/delegation.rs`).
//!
//! [`tree`] has what is in them; every operation is carried out there at once and joins the [`stream`] of deeds that
//! tells the namenode. [`route`] says of each operation whether it can be ([`changes`], [`answers`]), and what must be done
//! first if it cannot.
//! [`hand_back`] lets others in: when somebody asks, when a directory is not used, or when an operation needs it.
//!
//! What was done is not on any disk before the stream says so: `fsync` waits for that, and so does whoever comes to a
//! directory from elsewhere. If this client dies before, the latest deeds are lost; each of them whole, and none but
//! the latest.

mod answers;
mod changes;
mod hand_back;
mod numbers;
mod places;
mod route;
#[cfg(test)]
mod scenes;
mod stream;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{ErrorCode, Result, fs};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::heard::{Heard, Losses};
use crate::session::Session;
pub(crate) use hand_back::tidy;
use numbers::Numbers;
use stream::Queued;
pub(crate) use stream::run;
use tree::Tree;
pub(crate) use tree::change_attr;

/// Inodes kept in memory, about; the directories used longest ago are handed back above that.
const MOST_INODES: usize = 256 << 10;
/// Files in more extents than this are not worth remembering where they lie.
const FEW_EXTENTS: usize = 4;
/// Directories handed back whose making this client may yet hear of.
const MOST_DISOWNED: usize = 4096;

/// Everything delegated to this client.
pub(crate) struct Delegations {
    enabled: bool,
    patience: Duration,
    began: Instant,
    state: Mutex<State>,
    /// The stream has something to do.
    work: Notify,
    /// Deeds were done, or never will be.
    done: Notify,
    /// Directories were handed back.
    handed_back: Notify,
    /// What the client as a whole has heard of losses.
    heard: Heard,
}

#[derive(Default)]
struct State {
    /// Whose all of this is.
    session: Option<Arc<Session>>,
    tree: Tree,
    numbers: Numbers,
    queue: VecDeque<Queued>,
    /// Deeds there have been, and those of them that are done.
    counted: u64,
    settled: u64,
    /// The stream is to be sent up to here, at once.
    urgent: u64,
    /// When the oldest deed that is not done was queued.
    oldest: Option<Instant>,
    /// Inodes that are made by deeds that are not done.
    unborn: HashSet<u64>,
    /// Deeds that were promised and refused, or lost with their session.
    losses: Losses,
    /// Directories that were asked for before this client knew of them.
    disowned: BTreeSet<u64>,
    /// Inodes of a session that is over, whose open files are to be told.
    bereft: Vec<u64>,
}

impl State {
    /// Nothing that was delegated under an ended session is this client's any more.
    fn end_if_over(&mut self) -> bool {
        if !self.session.as_ref().is_some_and(|session| session.expired()) {
            return false;
        }
        let (deeds, inodes) = (self.counted - self.settled, self.tree.len());
        if deeds > 0 {
            tracing::error!(deeds, "the session is over: the latest changes in its directories are lost");
        } else if inodes > 0 {
            tracing::warn!(inodes, "the session is over, and with it what was delegated to it");
        }
        let mut bereft = std::mem::take(&mut self.bereft);
        bereft.extend(self.tree.inodes());
        if deeds > 0 {
            // Whoever waits for any of them, or asks later, is not to take them for done.
            self.losses.add(ErrorCode::SessionExpired.because("changes were lost with it"));
        }
        let counted = self.counted;
        *self = State {
            counted,
            settled: counted,
            urgent: counted,
            bereft,
            losses: std::mem::take(&mut self.losses),
            ..State::default()
        };
        true
    }
}

/// Whether `extents` are a file of `size` bytes from its beginning to its end.
fn is_all(extents: &[fs::Extent], size: u64) -> bool {
    let mut end = 0;
    for extent in extents {
        if extent.file_offset != end {
            return false;
        }
        end += extent.length;
    }
    end == size && size > 0
}

impl Delegations {
    /// None yet. `enabled`: directories made here are asked for.
    pub(crate) fn new(enabled: bool, patience: Duration) -> Delegations {
        Delegations {
            enabled,
            patience,
            began: Instant::now(),
            state: Mutex::default(),
            work: Notify::new(),
            done: Notify::new(),
            handed_back: Notify::new(),
            heard: Heard::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.end_if_over() {
            self.done.notify_waiters();
            self.handed_back.notify_waiters();
            self.work.notify_one();
        }
        state
    }

    /// For somebody who opens something now and may sync it.
    pub(crate) fn listen(&self) -> Heard {
        if !self.enabled {
            return Heard::default();
        }
        Heard::from_last_told(&self.lock().losses)
    }

    #[cfg(test)]
    /// As if something that was promised had been refused.
    pub(crate) fn lose(&self, error: cairn_proto::Error) {
        self.lock().losses.add(error);
    }

    /// Inodes that are here, deeds that are not done, and all there have been.
    pub(crate) fn figures(&self) -> (u64, u64, u64) {
        let state = self.lock();
        (state.tree.len() as u64, state.counted - state.settled, state.counted)
    }

    /// Seconds on a clock of its own.
    fn seconds(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// Whether nobody else can see this inode, so that what is written to it need not be everybody's at once.
    pub(crate) fn defers(&self, inode: u64) -> bool {
        if !self.enabled {
            return false;
        }
        let state = self.lock();
        state.tree.node(inode).is_some()
            && !state.tree.is_leaving(inode)
            && !state.is_fenced()
            && !state.is_stalled()
    }

    /// Runs `mark` if the inode is this client's own, while it is.
    pub(crate) fn if_own(&self, inode: u64, mark: impl FnOnce()) {
        if self.enabled && self.lock().tree.node(inode).is_some() {
            mark();
        }
    }

    /// Runs `work` if the inode is this client's own and its directory is not being handed back; it waits with that.
    pub(crate) fn if_staying(&self, inode: u64, work: impl FnOnce()) {
        let state = self.lock();
        if state.tree.node(inode).is_some() && !state.tree.is_leaving(inode) {
            work();
        }
    }

    /// Where the whole content of a file lies, if that is known.
    pub(crate) fn extents(&self, inode: u64) -> Vec<fs::Extent> {
        if !self.enabled {
            return Vec::new();
        }
        self.lock().tree.node(inode).map(|node| node.extents.clone()).unwrap_or_default()
    }

    /// Takes in what a file's content has become, by a commit of these `extents` or otherwise.
    pub(crate) fn note_content(&self, attr: &fs::Attr, extents: &[fs::Extent]) {
        if !self.enabled {
            return;
        }
        if let Some(node) = self.lock().tree.node_mut(attr.inode) {
            let own = node.attr;
            let all = own.size == 0 && extents.len() <= FEW_EXTENTS && is_all(extents, attr.size);
            node.extents = if all { extents.to_vec() } else { Vec::new() };
            node.attr = fs::Attr {
                size: attr.size,
                allocated: attr.allocated,
                version: attr.version,
                mtime_ns: attr.mtime_ns,
                ctime_ns: own.ctime_ns.max(attr.ctime_ns),
                ..own
            };
        }
    }

    /// Waits while `wait` says so; `notify` is told when it may have changed.
    async fn wait_while(
        &self,
        notify: &Notify,
        what: &str,
        mut wait: impl FnMut(&State) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            let notified = notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if !wait(&self.lock()) {
                return Ok(());
            }
            // A session ends without telling: look again now and then.
            let look = deadline.min(Instant::now() + Duration::from_millis(500));
            if timeout_at(look, notified).await.is_err() && Instant::now() >= deadline {
                return Err(ErrorCode::Timeout.because(what));
            }
        }
    }
}
