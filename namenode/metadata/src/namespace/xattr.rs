//! Extended attributes.

use std::ops::ControlFlow;

use cairn_proto::fs::{Cred, FileKind, RemoveXattr, SetXattr, XattrMode, outcome};
use cairn_proto::limits::{MAX_NAME, MAX_XATTR_VALUE};
use cairn_proto::{ErrorCode, Result, path};

use crate::apply::NOTHING;
use crate::core::Core;
use crate::fault::Fallible;
use crate::key;
use crate::namespace::acl::{self, List};
use crate::permission::{WRITE, require, require_owner};
use crate::resolve::{Found, resolve};
use crate::store::{StoreError, Table, View};

/// Most attributes of one inode.
const MAX_ATTRIBUTES: usize = 256;

pub(crate) fn set(core: &mut Core, cred: &Cred, ask: &SetXattr) -> Fallible<outcome::Result> {
    let found = writable(cred, resolve(core, cred, &ask.at, false)?, &ask.name)?;
    if let Some(list) = List::named(&ask.name) {
        return acl::set(core, cred, found, list, ask);
    }
    if ask.value.len() > MAX_XATTR_VALUE {
        return Err(ErrorCode::TooLarge.because(format!("a value of {} bytes", ask.value.len())).into());
    }
    let at = key::named(found.id, &ask.name);
    let present = core.get(Table::Xattr, &at)?.is_some();
    match ask.mode() {
        XattrMode::Create if present => return Err(ErrorCode::Exists.because(path::shown(&ask.name)).into()),
        XattrMode::Replace if !present => {
            return Err(ErrorCode::NoAttribute.because(path::shown(&ask.name)).into());
        }
        _ => {}
    }
    if !present && names(core, found.id)?.len() >= MAX_ATTRIBUTES {
        return Err(ErrorCode::NoSpace.because("the inode has too many attributes").into());
    }
    core.set(Table::Xattr, &at, ask.value.to_vec());
    mark(core, found);
    Ok(NOTHING)
}

pub(crate) fn remove(core: &mut Core, cred: &Cred, ask: &RemoveXattr) -> Fallible<outcome::Result> {
    let found = writable(cred, resolve(core, cred, &ask.at, false)?, &ask.name)?;
    if let Some(list) = List::named(&ask.name) {
        return acl::remove(core, found, list);
    }
    let at = key::named(found.id, &ask.name);
    if core.get(Table::Xattr, &at)?.is_none() {
        return Err(ErrorCode::NoAttribute.because(path::shown(&ask.name)).into());
    }
    core.remove(Table::Xattr, &at);
    mark(core, found);
    Ok(NOTHING)
}

fn mark(core: &mut Core, mut found: Found) {
    core.touch(&mut found.inode);
    core.set_inode(found.id, &found.inode);
}

fn writable(cred: &Cred, found: Found, name: &[u8]) -> Fallible<Found> {
    check_name(name)?;
    // As Linux: user attributes only on files and directories; the others belong to root.
    if name.starts_with(b"user.") {
        if !matches!(found.inode.kind(), FileKind::File | FileKind::Directory) {
            return Err(ErrorCode::NotPermitted.because(path::shown(name)).into());
        }
        require(cred, &found.inode, WRITE, &path::shown(name))?;
    } else if name.starts_with(b"trusted.") && cred.uid != 0 {
        return Err(ErrorCode::NotPermitted.because(path::shown(name)).into());
    } else {
        require_owner(cred, &found.inode)?;
    }
    Ok(found)
}

/// Checks an attribute's name: a namespace, a dot, and something after it.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(ErrorCode::NameTooLong.because(path::shown(name)));
    }
    let spaces = [&b"user."[..], b"trusted.", b"security.", b"system."];
    if name.contains(&0) || !spaces.iter().any(|space| name.starts_with(space) && name.len() > space.len()) {
        let detail = format!("{}: names are user.*, trusted.*, security.* or system.*", path::shown(name));
        return Err(ErrorCode::NotSupported.because(detail));
    }
    Ok(())
}

/// The value of an inode's attribute.
pub(crate) fn value(
    view: &dyn View,
    found: &Found,
    name: &[u8],
) -> std::result::Result<Option<Vec<u8>>, StoreError> {
    match List::named(name) {
        Some(list) => Ok(list.of(&found.inode)),
        None => view.get(Table::Xattr, &key::named(found.id, name)),
    }
}

/// Names of all attributes of an inode, its access control lists first.
pub(crate) fn all_names(view: &dyn View, found: &Found) -> std::result::Result<Vec<Vec<u8>>, StoreError> {
    let lists = List::ALL.into_iter().filter(|list| list.of(&found.inode).is_some());
    let mut all: Vec<Vec<u8>> = lists.map(|list| list.name().to_vec()).collect();
    all.extend(names(view, found.id)?);
    Ok(all)
}

/// Names of the attributes in the table, in byte order.
fn names(view: &dyn View, id: u64) -> std::result::Result<Vec<Vec<u8>>, StoreError> {
    let mut found = Vec::new();
    view.scan(Table::Xattr, &key::one(id), &key::after(id), &mut |at, _| {
        found.push(at[8..].to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
