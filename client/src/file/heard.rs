//! Which losses of written bytes somebody who has the file open has heard of.
//!
//! As local file systems do it: each loss is told once to every descriptor that was open when it happened, whichever of
//! them wrote, and to none that is opened later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_proto::Error;

use super::Inode;
use super::inode::State;

/// Of the losses of a file, how many were heard of. Clones share it.
#[derive(Clone)]
pub(crate) struct Heard(Arc<AtomicU64>);

impl Heard {
    /// For somebody who opens the file now.
    pub(crate) fn now(inode: &Inode) -> Heard {
        Heard(Arc::new(AtomicU64::new(inode.state().losses)))
    }

    /// The latest loss, if it was not heard of.
    pub(super) fn unheard<'a>(&self, state: &'a State) -> Option<&'a Error> {
        state.error.as_ref().filter(|_| state.losses > self.0.load(Ordering::Relaxed))
    }

    /// As [`Heard::unheard`], and it is from now on.
    pub(super) fn hear(&self, state: &State) -> Option<Error> {
        let loss = self.unheard(state).cloned();
        self.0.store(state.losses, Ordering::Relaxed);
        loss
    }
}
