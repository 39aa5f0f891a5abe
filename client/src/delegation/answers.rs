//! Questions that are answered here.

use cairn_proto::fs::{FileKind, NodeRef, answer, query};
use cairn_proto::limits::MAX_LIST_PAGE;
use cairn_proto::{ErrorCode, Result, fs};

use super::Delegations;
use super::places::{number, place};
use crate::engine::Engine;

impl Delegations {
    /// What is known here for sure.
    pub(super) fn answer(&self, engine: &Engine, op: &query::Op) -> Option<Result<answer::Result>> {
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
    pub(super) fn attr(&self, inode: u64) -> Option<fs::Attr> {
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
}
