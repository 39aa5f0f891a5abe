//! What somebody who has a file open was told of losses.
//!
//! Each is told once to every descriptor that was open when it happened ([`crate::heard`]).

use cairn_proto::{Error, ErrorCode};

use super::Inode;
use super::inode::State;
use crate::heard::Heard;

/// One descriptor of a file. Clones share what they were told.
#[derive(Clone)]
pub(crate) struct Descriptor {
    /// Losses of bytes that were written to the file.
    bytes: Heard,
    /// Those of them for which a write was refused.
    refused: Heard,
    /// Losses of changes of names.
    pub(super) names: Heard,
}

impl Descriptor {
    /// For somebody who opens the file now.
    pub(crate) fn new(inode: &Inode) -> Descriptor {
        let names = inode.engine.delegations.listen();
        let state = inode.state();
        Descriptor { bytes: Heard::from_now(&state.losses), refused: Heard::from_now(&state.losses), names }
    }

    /// The latest loss of bytes, if it was not told.
    pub(super) fn unheard<'a>(&self, state: &'a State) -> Option<&'a Error> {
        self.bytes.unheard(&state.losses)
    }

    /// As [`Descriptor::unheard`], and it is from now on.
    pub(super) fn hear(&self, state: &mut State) -> Option<Error> {
        self.bytes.hear(&mut state.losses)
    }

    /// Why a write is to be refused: bytes did not fit in a quota, and neither a flush nor a write has said so. A flush has
    /// yet to say it all the same; but who never asks for one must be able to go on once there is room.
    pub(super) fn refusal(&self, state: &mut State) -> Option<Error> {
        self.unheard(state).filter(|error| error.code == ErrorCode::QuotaExceeded)?;
        self.refused.hear(&mut state.losses)
    }
}
