//! POSIX access control lists: their encoding, what makes one valid, and whom they let do what.
//!
//! The rules are those of POSIX.1e draft 17 as Linux has them. A list is kept in the encoding of Linux' extended
//! attributes (little-endian: version 2, then 8 bytes an entry), because that is how it comes and goes.

use cairn_proto::fs::{Cred, FileKind};
use cairn_proto::store::Inode;
use cairn_proto::{ErrorCode, Result};

/// Version of the encoding.
const VERSION: u32 = 2;
/// Bytes before the first entry.
const HEADER: usize = 4;
/// Bytes of one entry: tag, permissions, id.
const ENTRY: usize = 8;
/// Most entries of one list; about what ext4 takes.
const MAX_ENTRIES: usize = 500;
/// All three permissions.
const ALL: u32 = 0o7;

/// Whom an entry is about, in the order in which entries stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    /// Most that anybody but the owner and the others may do.
    Mask,
    Others,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads and checks a list; one without entries is no list.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Acl>> {
        let invalid = |what: &str| ErrorCode::Invalid.because(format!("access control list: {what}"));
        let Some((version, body)) = bytes.split_first_chunk::<HEADER>() else {
            return if bytes.is_empty() { Ok(None) } else { Err(invalid("too short")) };
        };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(ErrorCode::NotSupported.because("an access control list of another version"));
        }
        let (entries, []) = body.as_chunks::<ENTRY>() else {
            return Err(invalid("half an entry"));
        };
        if entries.len() > MAX_ENTRIES {
            return Err(
                ErrorCode::NoSpace.because(format!("an access control list of {} entries", entries.len()))
            );
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries = entries.iter().map(|entry| Entry::decode(*entry)).collect::<Result<Vec<Entry>>>()?;
        let acl = Acl { entries };
        if acl.is_valid() {
            Ok(Some(acl))
        } else {
            Err(invalid("entries are missing, doubled or out of order"))
        }
    }

    /// The list as it is stored and shown.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + ENTRY * self.entries.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            entry.encode(&mut bytes);
        }
        bytes
    }

    /// One entry each for owner, owning group and others; a mask if anybody is named; in order, nobody twice.
    fn is_valid(&self) -> bool {
        let count = |wanted: fn(&Tag) -> bool| self.entries.iter().filter(|entry| wanted(&entry.tag)).count();
        let once = [Tag::Owner, Tag::OwningGroup, Tag::Others];
        let ordered = self.entries.windows(2).all(|pair| {
            let (first, second) = (pair[0].tag, pair[1].tag);
            // Named users and groups stand in any order among themselves.
            first.rank() < second.rank() || (first.rank() == second.rank() && first.names_somebody())
        });
        let mut named: Vec<Tag> =
            self.entries.iter().map(|entry| entry.tag).filter(|tag| tag.names_somebody()).collect();
        named.sort_unstable();
        ordered
            && once.iter().all(|tag| self.get(*tag).is_some())
            && named.windows(2).all(|pair| pair[0] != pair[1])
            && (named.is_empty() || count(|tag| *tag == Tag::Mask) == 1)
    }

    fn get(&self, tag: Tag) -> Option<u32> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    fn set(&mut self, tag: Tag, permissions: u32) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.tag == tag) {
            entry.permissions = permissions & ALL;
        }
    }

    /// The entry that the mode's group bits stand for.
    fn group_class(&self) -> Tag {
        if self.get(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwningGroup }
    }

    /// The nine permission bits of a mode that agree with the list.
    pub(crate) fn mode_bits(&self) -> u32 {
        let of = |tag| self.get(tag).unwrap_or(0);
        of(Tag::Owner) << 6 | of(self.group_class()) << 3 | of(Tag::Others)
    }

    /// Whether a mode says the same.
    pub(crate) fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// Makes the list agree with a mode that was set.
    pub(crate) fn follow_mode(&mut self, mode: u32) {
        self.set(Tag::Owner, mode >> 6);
        self.set(self.group_class(), mode >> 3);
        self.set(Tag::Others, mode);
    }

    /// Keeps of the list what a mode asked for at creation allows.
    fn restrict(&mut self, mode: u32) {
        let bits = self.mode_bits() & mode;
        self.follow_mode(bits);
    }

    /// Whether it lets `cred` do all of `wanted` to a file of this owner and group.
    pub(crate) fn permits(&self, cred: &Cred, (uid, gid): (u32, u32), wanted: u32) -> bool {
        let allows = |permissions: u32| permissions & wanted == wanted;
        let masked = |permissions: u32| allows(permissions & self.get(Tag::Mask).unwrap_or(ALL));
        if cred.uid == uid {
            return self.get(Tag::Owner).is_some_and(allows);
        }
        if let Some(permissions) = self.get(Tag::User(cred.uid)) {
            return masked(permissions);
        }
        let mut member = false;
        for entry in &self.entries {
            let group = match entry.tag {
                Tag::OwningGroup => gid,
                Tag::Group(group) => group,
                _ => continue,
            };
            if crate::permission::in_group(cred, group) {
                member = true;
                if masked(entry.permissions) {
                    return true;
                }
            }
        }
        !member && self.get(Tag::Others).is_some_and(allows)
    }
}

impl Tag {
    fn rank(self) -> u16 {
        match self {
            Tag::Owner => 0x01,
            Tag::User(_) => 0x02,
            Tag::OwningGroup => 0x04,
            Tag::Group(_) => 0x08,
            Tag::Mask => 0x10,
            Tag::Others => 0x20,
        }
    }

    fn names_somebody(self) -> bool {
        matches!(self, Tag::User(_) | Tag::Group(_))
    }
}

impl Entry {
    fn decode(bytes: [u8; ENTRY]) -> Result<Entry> {
        let [tag_low, tag_high, low, high, id @ ..] = bytes;
        let permissions = u32::from(u16::from_le_bytes([low, high]));
        let id = u32::from_le_bytes(id);
        let tag = match u16::from_le_bytes([tag_low, tag_high]) {
            0x01 => Tag::Owner,
            0x02 if id != u32::MAX => Tag::User(id),
            0x04 => Tag::OwningGroup,
            0x08 if id != u32::MAX => Tag::Group(id),
            0x10 => Tag::Mask,
            0x20 => Tag::Others,
            _ => return Err(ErrorCode::Invalid.because("an entry of an access control list")),
        };
        if permissions & !ALL != 0 {
            return Err(ErrorCode::Invalid.because("permissions of an access control list"));
        }
        Ok(Entry { tag, permissions })
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let id = match self.tag {
            Tag::User(id) | Tag::Group(id) => id,
            _ => u32::MAX,
        };
        bytes.extend_from_slice(&self.tag.rank().to_le_bytes());
        bytes.extend_from_slice(&(self.permissions as u16).to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
}

/// What a new inode gets: its mode and its lists, encoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub mode: u32,
    pub access: Vec<u8>,
    pub default: Vec<u8>,
}

/// What an inode of `kind` made with `mode` in `parent` inherits. A directory's default list takes the umask's place.
pub(crate) fn inherit(parent: &Inode, kind: FileKind, mode: u32, umask: u32) -> Inherited {
    if kind == FileKind::Symlink {
        return Inherited { mode, ..Inherited::default() };
    }
    let Ok(Some(mut acl)) = Acl::decode(&parent.default_acl) else {
        return Inherited { mode: mode & !(umask & 0o777), ..Inherited::default() };
    };
    let default = if kind == FileKind::Directory { parent.default_acl.to_vec() } else { Vec::new() };
    acl.restrict(mode);
    let mode = mode & !0o777 | acl.mode_bits();
    let access = if acl.is_minimal() { Vec::new() } else { acl.encode() };
    Inherited { mode, access, default }
}

/// What is wrong with the lists of an inode, in words, for the state checker.
pub(crate) fn unsound(inode: &Inode) -> Option<&'static str> {
    if inode.kind() != FileKind::Directory && !inode.default_acl.is_empty() {
        return Some("has a default access control list and is no directory");
    }
    if !inode.default_acl.is_empty() && !matches!(Acl::decode(&inode.default_acl), Ok(Some(_))) {
        return Some("has a default access control list that is not valid");
    }
    if inode.access_acl.is_empty() {
        return None;
    }
    match Acl::decode(&inode.access_acl) {
        _ if inode.kind() == FileKind::Symlink => Some("is a symbolic link with an access control list"),
        Ok(Some(acl)) if acl.is_minimal() => Some("has an access control list that only repeats its mode"),
        Ok(Some(acl)) if acl.mode_bits() != inode.mode & 0o777 => {
            Some("has an access control list that disagrees with its mode")
        }
        Ok(Some(_)) => None,
        _ => Some("has an access control list that is not valid"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(Tag, u32)]) -> Acl {
        Acl { entries: entries.iter().map(|&(tag, permissions)| Entry { tag, permissions }).collect() }
    }

    fn usual() -> Acl {
        acl(&[
            (Tag::Owner, 6),
            (Tag::User(7), 6),
            (Tag::User(8), 4),
            (Tag::OwningGroup, 4),
            (Tag::Group(50), 6),
            (Tag::Mask, 4),
            (Tag::Others, 0),
        ])
    }

    fn cred(uid: u32, gid: u32, groups: &[u32]) -> Cred {
        Cred { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn a_list_survives_its_encoding() {
        let list = usual();
        assert_eq!(Acl::decode(&list.encode()), Ok(Some(list.clone())));
        assert_eq!(&list.encode()[..12], [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(Acl::decode(&[]), Ok(None));
        assert_eq!(Acl::decode(&[2, 0, 0, 0]), Ok(None));
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        let code = |bytes: &[u8]| Acl::decode(bytes).unwrap_err().code;
        assert_eq!(code(&[2, 0]), ErrorCode::Invalid);
        assert_eq!(code(&[1, 0, 0, 0]), ErrorCode::NotSupported);
        let mut half = usual().encode();
        half.pop();
        assert_eq!(code(&half), ErrorCode::Invalid);
        let mut wide = usual().encode();
        wide[6] = 8;
        assert_eq!(code(&wide), ErrorCode::Invalid);
        let base = [(Tag::Owner, 6), (Tag::OwningGroup, 4), (Tag::Others, 0)];
        let without = |left: usize| acl(&[&base[..left], &base[left + 1..]].concat()).encode();
        for left in 0..3 {
            assert_eq!(code(&without(left)), ErrorCode::Invalid);
        }
        let unmasked = [(Tag::Owner, 6), (Tag::User(1), 4), (Tag::OwningGroup, 4), (Tag::Others, 0)];
        assert_eq!(code(&acl(&unmasked).encode()), ErrorCode::Invalid);
        let swapped = [(Tag::OwningGroup, 4), (Tag::Owner, 6), (Tag::Others, 0)];
        assert_eq!(code(&acl(&swapped).encode()), ErrorCode::Invalid);
        let doubled = [
            (Tag::Owner, 6),
            (Tag::User(1), 4),
            (Tag::User(1), 6),
            (Tag::OwningGroup, 4),
            (Tag::Mask, 4),
            (Tag::Others, 0),
        ];
        assert_eq!(code(&acl(&doubled).encode()), ErrorCode::Invalid);
        let mut long = vec![(Tag::Owner, 6)];
        long.extend((0..600).map(|id| (Tag::User(id), 4)));
        long.extend([(Tag::OwningGroup, 4), (Tag::Mask, 4), (Tag::Others, 0)]);
        assert_eq!(code(&acl(&long).encode()), ErrorCode::NoSpace);
    }

    #[test]
    fn the_most_specific_entry_decides_and_the_mask_bounds_it() {
        let list = usual();
        let may = |cred: &Cred, wanted| list.permits(cred, (1, 20), wanted);
        assert!(may(&cred(1, 1, &[]), 6));
        assert!(may(&cred(7, 1, &[]), 4) && !may(&cred(7, 1, &[]), 2), "the mask takes write away");
        assert!(may(&cred(9, 20, &[]), 4) && !may(&cred(9, 20, &[]), 2));
        assert!(may(&cred(9, 9, &[50]), 4) && !may(&cred(9, 9, &[50]), 2));
        assert!(!may(&cred(9, 9, &[]), 4));
    }

    #[test]
    fn one_group_of_several_must_allow_it_all() {
        let list = acl(&[
            (Tag::Owner, 7),
            (Tag::OwningGroup, 0),
            (Tag::Group(50), 4),
            (Tag::Group(51), 2),
            (Tag::Mask, 7),
            (Tag::Others, 7),
        ]);
        let both = cred(9, 9, &[50, 51]);
        assert!(list.permits(&both, (1, 20), 4) && list.permits(&both, (1, 20), 2));
        assert!(!list.permits(&both, (1, 20), 6));
        assert!(!list.permits(&cred(9, 20, &[]), (1, 20), 4), "a member is not one of the others");
        assert!(list.permits(&cred(9, 9, &[]), (1, 20), 7));
    }

    #[test]
    fn chmod_changes_the_mask_and_not_the_group() {
        let mut list = usual();
        assert_eq!(list.mode_bits(), 0o640);
        list.follow_mode(0o751);
        assert_eq!(list.mode_bits(), 0o751);
        assert_eq!((list.get(Tag::OwningGroup), list.get(Tag::Mask)), (Some(4), Some(5)));
        let mut minimal = acl(&[(Tag::Owner, 6), (Tag::OwningGroup, 4), (Tag::Others, 4)]);
        minimal.follow_mode(0o600);
        assert_eq!((minimal.is_minimal(), minimal.mode_bits()), (true, 0o600));
    }

    #[test]
    fn a_default_list_takes_the_place_of_the_umask() {
        let encoded = usual().encode();
        let parent = Inode { default_acl: encoded.clone().into(), ..Inode::default() };
        let file = inherit(&parent, FileKind::File, 0o666, 0o077);
        assert_eq!((file.mode, file.default.is_empty()), (0o640, true));
        let narrow = inherit(&parent, FileKind::File, 0o4600, 0);
        assert_eq!(narrow.mode, 0o4600);
        assert_eq!(Acl::decode(&narrow.access).unwrap().unwrap().get(Tag::Mask), Some(0));
        let directory = inherit(&parent, FileKind::Directory, 0o777, 0o022);
        assert_eq!((directory.mode, directory.default), (0o640, encoded));
        assert_eq!(inherit(&parent, FileKind::Symlink, 0o777, 0o077).mode, 0o777);
        let plain = inherit(&Inode::default(), FileKind::File, 0o4666, 0o027);
        assert_eq!(plain, Inherited { mode: 0o4640, ..Inherited::default() });
    }

    #[test]
    fn a_default_list_that_a_mode_can_express_becomes_a_mode() {
        let base = acl(&[(Tag::Owner, 7), (Tag::OwningGroup, 5), (Tag::Others, 0)]).encode();
        let parent = Inode { default_acl: base.into(), ..Inode::default() };
        let made = inherit(&parent, FileKind::File, 0o666, 0o077);
        assert_eq!((made.mode, made.access.is_empty()), (0o640, true));
    }
}
