//! Limits on what may lie below a directory.

use std::ops::ControlFlow;

use cairn_proto::fs::{Cred, FileKind, ListQuotas, QuotaList, SetQuota, TreeUsage, answer, outcome};
use cairn_proto::store::Tree;
use cairn_proto::{ErrorCode, ROOT_INODE, path};

use crate::core::Core;
use crate::fault::Fallible;
use crate::resolve::resolve;
use crate::store::{StoreError, Table, View};
use crate::usage::{self, Change};
use crate::{key, records};

/// Most directories of one page.
const MAX_PAGE: usize = 256;

/// Sets or clears the limits of a directory. What lies there already may be more: then it only may not grow.
pub(crate) fn set(core: &mut Core, cred: &Cred, ask: &SetQuota) -> Fallible<outcome::Result> {
    let found = resolve(core, cred, &ask.at, true)?;
    if found.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.because("a quota is a directory's").into());
    }
    if cred.uid != 0 {
        return Err(ErrorCode::NotPermitted.because("only root sets quotas").into());
    }
    let mut tree = usage::tree(core, found.id)?;
    tree.max_names = if ask.clear_names { None } else { ask.max_names.or(tree.max_names) };
    tree.max_bytes = if ask.clear_bytes { None } else { ask.max_bytes.or(tree.max_bytes) };
    usage::set_tree(core, found.id, &tree);
    if is_limited(&tree) {
        core.set(Table::Quota, &key::one(found.id), Vec::new());
    } else {
        core.remove(Table::Quota, &key::one(found.id));
    }
    Ok(outcome::Result::Usage(usage::shown(core, found.id, &tree)?))
}

/// A directory that is removed takes its limits with it.
pub(crate) fn forget(core: &mut Core, id: u64) {
    core.remove(Table::Quota, &key::one(id));
}

pub(crate) fn is_limited(tree: &Tree) -> bool {
    tree.max_names.is_some() || tree.max_bytes.is_some()
}

/// Refuses a directory that grew by `change` to more than it may hold. One that shrinks, only inherited, or was over its
/// limit before and did not grow, never is.
pub(crate) fn admit(view: &dyn View, id: u64, grown: &Tree, change: Change) -> Fallible<()> {
    let detail = match (grown.max_names, grown.max_bytes) {
        (Some(most), _) if change.names > 0 && grown.names > most => {
            format!("would have {} names of at most {most}", grown.names)
        }
        (_, Some(most)) if change.bytes > change.inherited && grown.bytes > most => {
            format!("would hold {} bytes of at most {most}", grown.bytes)
        }
        _ => return Ok(()),
    };
    let shown = path::shown(&usage::path_of(view, id)?);
    Err(ErrorCode::QuotaExceeded.because(format!("{shown} {detail}")).into())
}

/// The limits that hold in a directory: its own and those further up, the nearest first.
pub(crate) fn above(view: &dyn View, id: u64) -> Result<Vec<TreeUsage>, StoreError> {
    let mut found = Vec::new();
    let mut at = id;
    loop {
        let tree = usage::tree(view, at)?;
        if is_limited(&tree) {
            found.push(usage::shown(view, at, &tree)?);
        }
        if at == ROOT_INODE {
            return Ok(found);
        }
        at = tree.parent;
    }
}

/// The limits that hold for an inode, of whatever kind. One that is gone has none.
pub(crate) fn above_inode(view: &dyn View, id: u64) -> Result<Vec<TreeUsage>, StoreError> {
    let Some(inode) = records::inode(view, id)? else { return Ok(Vec::new()) };
    let directory = if inode.kind() == FileKind::Directory { id } else { inode.parent };
    if directory == 0 || records::tree(view, directory)?.is_none() {
        return Ok(Vec::new());
    }
    above(view, directory)
}

/// A page of the directories that have limits.
pub(crate) fn list(view: &dyn View, cred: &Cred, ask: &ListQuotas) -> Fallible<answer::Result> {
    if cred.uid != 0 {
        return Err(ErrorCode::NotPermitted.because("only root may list all quotas").into());
    }
    let limit = if ask.limit == 0 { MAX_PAGE } else { MAX_PAGE.min(ask.limit as usize) };
    let mut ids = Vec::new();
    let mut page = QuotaList { end: true, ..QuotaList::default() };
    view.scan(Table::Quota, &key::one(ask.after.saturating_add(1)), &[], &mut |at, _| {
        if ids.len() >= limit {
            page.end = false;
            return ControlFlow::Break(());
        }
        ids.extend(key::number(at, 0));
        ControlFlow::Continue(())
    })?;
    for id in ids {
        let tree = usage::tree(view, id)?;
        page.trees.push(usage::shown(view, id, &tree)?);
    }
    Ok(answer::Result::Quotas(page))
}
