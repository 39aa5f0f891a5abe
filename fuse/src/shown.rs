//! Showing every file as if it belonged to somebody else: the options `uid`, `gid` and `umask`.

use fuser::FileAttr;

/// What is shown in place of every inode's own owner, group and permissions. What is stored stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The permissions are all but these.
    pub umask: Option<u32>,
}

impl Shown {
    /// Whether everything is shown as it is.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Shown::default()
    }

    /// The attributes as they are shown.
    pub(crate) fn dress(&self, attr: FileAttr) -> FileAttr {
        FileAttr {
            uid: self.uid.unwrap_or(attr.uid),
            gid: self.gid.unwrap_or(attr.gid),
            perm: self.umask.map_or(attr.perm, |umask| 0o777 & !(umask as u16)),
            ..attr
        }
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::Attr;

    use super::*;
    use crate::attr::file_attr;

    #[test]
    fn only_what_was_asked_for_is_replaced() {
        let own = file_attr(&Attr { uid: 1, gid: 2, mode: 0o4640, ..Attr::default() });
        assert_eq!(Shown::default().dress(own), own);
        let shown = Shown { uid: Some(7), gid: None, umask: Some(0o027) }.dress(own);
        assert_eq!((shown.uid, shown.gid, shown.perm), (7, 2, 0o750));
        assert!(!Shown { uid: Some(0), ..Shown::default() }.is_nothing());
    }
}
