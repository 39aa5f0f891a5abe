//! What all files of one inode share.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::{Error, ErrorCode, fs};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::overlay::Overlay;
use crate::delegation::change_attr;
use crate::engine::Engine;
use crate::heard::Losses;
use crate::read::{LayoutCache, WINDOW};
use crate::write::{Lane, OwnLane};

/// See the module.
pub(crate) struct Inode {
    number: u64,
    pub(super) engine: Arc<Engine>,
    state: Mutex<State>,
    /// Told whenever an append has landed or was given up.
    pub(super) landed: Notify,
    /// Held over each commit: commits of one file go in order.
    pub(super) committing: tokio::sync::Mutex<()>,
    /// Whether a background commit is under way.
    pub(super) busy: AtomicBool,
}

pub(super) struct State {
    pub(super) attr: fs::Attr,
    pub(super) cred: fs::Cred,
    pub(super) overlay: Overlay,
    /// Spans of the overlay that the engine knows of.
    counted: usize,
    pub(super) layout: LayoutCache,
    /// Appends under way, and where each of them went.
    pub(super) flying: BTreeMap<u64, Arc<Lane>>,
    /// What time of change own content will get; set while it is uncommitted.
    pub(super) mtime_ns: Option<i64>,
    /// When own content was last written.
    pub(super) written_ns: i64,
    /// Nobody else can see or change it (`crate::delegation`): its attributes are decided here.
    pub(super) own: bool,
    /// Since when something is uncommitted.
    pub(super) dirty_since: Option<Instant>,
    /// For each chunk own bytes went to, up to where they are not known to be on disk.
    pub(super) unsynced: BTreeMap<u64, u64>,
    /// Committed bytes that may not be on disk, whoever put them there.
    pub(super) doubtful: Option<(u64, u64)>,
    /// How often that was widened.
    pub(super) doubts: u64,
    /// How often written bytes were lost, and why the last time; everybody who has the file open then is to hear of it.
    pub(super) losses: Losses,
    /// The lane this file has to itself, and the run of sequential writes that earned it.
    pub(super) own_lane: Option<OwnLane>,
    pub(super) streak: u64,
    pub(super) streak_end: u64,
}

impl Inode {
    pub(crate) fn new(engine: Arc<Engine>, cred: fs::Cred, attr: fs::Attr) -> Inode {
        let mut layout = LayoutCache::new(Arc::clone(&engine.layout_bytes));
        layout.keep(attr.version);
        let state = State {
            cred,
            overlay: Overlay::default(),
            counted: 0,
            layout,
            flying: BTreeMap::new(),
            mtime_ns: None,
            written_ns: 0,
            own: false,
            dirty_since: None,
            unsynced: BTreeMap::new(),
            doubtful: (attr.size > 0).then_some((0, attr.size)),
            doubts: 0,
            losses: Losses::default(),
            own_lane: None,
            streak: 0,
            streak_end: 0,
            attr,
        };
        Inode {
            number: state.attr.inode,
            engine,
            state: Mutex::new(state),
            landed: Notify::new(),
            committing: tokio::sync::Mutex::default(),
            busy: AtomicBool::new(false),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn attr(&self) -> fs::Attr {
        self.state().shown()
    }

    /// As [`Inode::attr`], if they are decided here and what was written is not all committed, so that nobody else knows
    /// them.
    pub(crate) fn attr_if_ahead(&self) -> Option<fs::Attr> {
        let state = self.state();
        (state.own && !state.overlay.is_empty()).then(|| state.shown())
    }

    pub(crate) fn learn(&self, attr: &fs::Attr) {
        self.state().learn(attr);
    }

    /// As [`Inode::learn`], when somebody opens it again: if others have changed the content meanwhile, that may not be on
    /// disk.
    pub(crate) fn learn_anew(&self, attr: &fs::Attr) {
        let mut state = self.state();
        if attr.version > state.attr.version {
            state.doubt(0, attr.size);
        }
        state.learn(attr);
    }

    /// As [`Inode::learn`], when this client has put content into the file past this state.
    pub(crate) fn learn_put(&self, attr: &fs::Attr) {
        let mut state = self.state();
        state.doubt(0, attr.size);
        state.learn(attr);
    }

    /// Whether its attributes are decided here from now on, or are the namenode's again.
    pub(crate) fn set_own(&self, own: bool) {
        self.state().own = own;
    }

    /// Takes in what the namenode says of the content of a file whose attributes are decided here; `times`: it has
    /// changed them, too.
    pub(crate) fn learn_content(&self, attr: &fs::Attr, times: bool) {
        let mut state = self.state();
        state.learn_content(attr);
        if times && state.own {
            state.attr.mtime_ns = attr.mtime_ns;
            state.attr.ctime_ns = state.attr.ctime_ns.max(attr.ctime_ns);
        }
    }

    /// Takes in how many names a file has that is decided about here.
    pub(crate) fn set_links(&self, nlink: u32, now: i64) {
        let mut state = self.state();
        state.attr.nlink = nlink;
        state.attr.ctime_ns = state.attr.ctime_ns.max(now);
    }

    /// Changes attributes of a file that are decided here.
    pub(crate) fn change_attr(&self, ask: &fs::SetAttr, now: i64) {
        let mut state = self.state();
        change_attr(&mut state.attr, ask, now);
        if ask.mtime_ns.is_some() && state.mtime_ns.is_some() {
            // What was written before gets it with its commit.
            state.mtime_ns = ask.mtime_ns;
        }
    }

    /// Takes in where the whole content lies.
    pub(crate) fn learn_layout(&self, layout: fs::Layout) {
        self.state().layout.learn(0, WINDOW, layout);
    }

    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.state().overlay.bytes()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.state().overlay.is_empty()
    }

    /// For how long something has been uncommitted.
    pub(crate) fn dirty_for(&self) -> Duration {
        self.state().dirty_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Forgets what is not committed: the file was truncated after it was written.
    pub(crate) fn discard(&self) {
        let mut state = self.state();
        let buffered = state.overlay.clear();
        state.settled();
        self.recount(&mut state);
        drop(state);
        self.engine.release(buffered);
    }

    /// Forgets the layout if it was not used lately, or in any case.
    pub(crate) fn sweep_layout(&self, in_any_case: bool) {
        self.state().layout.sweep(in_any_case);
    }

    /// Tells the engine how many uncommitted spans there are now.
    pub(super) fn recount(&self, state: &mut State) {
        let spans = state.overlay.len();
        self.engine.count_spans(state.counted, spans);
        state.counted = spans;
    }

    /// Forgets what is not committed, because it may not be any more, and has the next flush report `error`.
    pub(crate) fn abandon(&self, error: Error) {
        let mut state = self.state();
        if state.overlay.is_empty() {
            return;
        }
        let buffered = state.overlay.clear();
        // Of the chunks written to, only what is committed still has to come to the disks.
        state.unsynced.clear();
        let committed = state.attr.size;
        state.doubt(0, committed);
        state.settled();
        self.recount(&mut state);
        state.fail(error);
        drop(state);
        self.engine.release(buffered);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode itself, as operations name it.
    pub(super) fn node(&self) -> fs::NodeRef {
        fs::NodeRef { inode: self.number, path: bytes::Bytes::new() }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let (counted, buffered) = {
            let state = self.state();
            (state.counted, state.overlay.buffered())
        };
        self.engine.count_spans(counted, 0);
        self.engine.release(buffered);
    }
}

impl State {
    /// The size as this client sees it.
    pub(super) fn size(&self) -> u64 {
        self.attr.size.max(self.overlay.end())
    }

    pub(super) fn shown(&self) -> fs::Attr {
        let mut attr = self.attr;
        attr.size = self.size();
        // Programs take a file without blocks for one that is all hole.
        attr.allocated = attr.allocated.max(self.overlay.bytes());
        if !self.own
            && let Some(mtime_ns) = self.mtime_ns
        {
            attr.mtime_ns = attr.mtime_ns.max(mtime_ns);
            attr.ctime_ns = attr.ctime_ns.max(mtime_ns);
        }
        attr
    }

    pub(super) fn learn(&mut self, attr: &fs::Attr) {
        if self.own || attr.inode != self.attr.inode || attr.version < self.attr.version {
            return;
        }
        self.layout.keep(attr.version);
        self.attr = *attr;
    }

    /// As [`State::learn`]; of a file whose attributes are decided here, what its content is.
    pub(super) fn learn_content(&mut self, attr: &fs::Attr) {
        if !self.own {
            return self.learn(attr);
        }
        if attr.inode != self.attr.inode || attr.version < self.attr.version {
            return;
        }
        self.layout.keep(attr.version);
        self.attr.version = attr.version;
        self.attr.size = attr.size;
        self.attr.allocated = attr.allocated;
    }

    pub(super) fn fail(&mut self, error: Error) {
        if error.code == ErrorCode::Stale {
            // Nobody has a name of it or has it open.
            tracing::debug!(inode = self.attr.inode, "what was written went with its file");
        } else {
            tracing::warn!(inode = self.attr.inode, %error, "written bytes are lost");
        }
        self.losses.add(error);
    }
}
