//! Setting and removing access control lists, and keeping the mode in agreement.

use cairn_proto::ErrorCode;
use cairn_proto::fs::{Cred, FileKind, SetXattr, outcome};
use cairn_proto::store::Inode;

use crate::acl::Acl;
use crate::core::Core;
use crate::fault::Fallible;
use crate::permission::{SETGID, in_group};
use crate::records;
use crate::resolve::Found;

/// Which list of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Who may do what to the inode.
    Access,
    /// What a directory's new entries inherit.
    Default,
}

impl List {
    /// Both.
    pub(crate) const ALL: [List; 2] = [List::Access, List::Default];

    /// The list that Linux keeps under this extended attribute.
    pub(crate) fn named(name: &[u8]) -> Option<List> {
        List::ALL.into_iter().find(|list| list.name() == name)
    }

    /// Its extended attribute.
    pub(crate) fn name(self) -> &'static [u8] {
        match self {
            List::Access => b"system.posix_acl_access",
            List::Default => b"system.posix_acl_default",
        }
    }

    /// An inode's list, encoded, if it has one.
    pub(crate) fn of(self, inode: &Inode) -> Option<Vec<u8>> {
        let list = match self {
            List::Access => &inode.access_acl,
            List::Default => &inode.default_acl,
        };
        (!list.is_empty()).then(|| list.to_vec())
    }
}

/// Sets a list, as its owner may. Unlike other attributes it is set whether it is there or not, and the outcome is the
/// inode's attributes, because the mode follows.
pub(crate) fn set(
    core: &mut Core,
    cred: &Cred,
    mut found: Found,
    list: List,
    ask: &SetXattr,
) -> Fallible<outcome::Result> {
    let Some(acl) = Acl::decode(&ask.value)? else { return remove(core, found, list) };
    let inode = &mut found.inode;
    match (list, inode.kind()) {
        (_, FileKind::Symlink) => return Err(ErrorCode::NotSupported.because("a symbolic link").into()),
        (List::Default, FileKind::Directory) => inode.default_acl = acl.encode().into(),
        (List::Default, _) => {
            return Err(ErrorCode::PermissionDenied.because("only directories hand a list down").into());
        }
        (List::Access, _) => {
            let outsider = cred.uid != 0 && !in_group(cred, inode.gid);
            if ask.drop_setgid || outsider {
                inode.mode &= !SETGID;
            }
            inode.mode = inode.mode & !0o777 | acl.mode_bits();
            inode.access_acl = if acl.is_minimal() { Vec::new() } else { acl.encode() }.into();
        }
    }
    Ok(changed(core, found))
}

/// Removes a list; the mode stays. One that is not there is no error.
pub(crate) fn remove(core: &mut Core, mut found: Found, list: List) -> Fallible<outcome::Result> {
    if list.of(&found.inode).is_some() {
        match list {
            List::Access => found.inode.access_acl.clear(),
            List::Default => found.inode.default_acl.clear(),
        }
        return Ok(changed(core, found));
    }
    Ok(outcome::Result::Attr(records::attr(found.id, &found.inode)))
}

fn changed(core: &mut Core, mut found: Found) -> outcome::Result {
    core.touch(&mut found.inode);
    core.set_inode(found.id, &found.inode);
    outcome::Result::Attr(records::attr(found.id, &found.inode))
}
