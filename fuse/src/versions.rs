//! What the kernel holds of each inode, by version, so that an open knows what of it is stale.
//!
//! Close-to-open: what another client's close returned must be seen by an open here, although the kernel would go on
//! for a while with the attributes and pages it has. An inode that is not remembered counts as stale, so forgetting
//! is safe and the memory is bounded.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cairn_proto::fs::Attr;

/// Inodes remembered per generation; there are two.
const GENERATION: usize = 32 << 10;

#[derive(Clone, Copy, Default)]
struct Seen {
    attributes: Option<u64>,
    pages: Option<u64>,
    /// Whether it had an access control list, and at which version that was so.
    acl: Option<(u64, bool)>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<u64, Seen>,
    old: HashMap<u64, Seen>,
}

impl Generations {
    fn entry(&mut self, inode: u64) -> &mut Seen {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let old = self.old.get(&inode).copied().unwrap_or_default();
        self.young.entry(inode).or_insert(old)
    }
}

/// Versions the kernel has been given.
#[derive(Default)]
pub(crate) struct Versions {
    seen: Mutex<Generations>,
}

impl Versions {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is being given these attributes.
    pub(crate) fn told(&self, attr: &Attr) {
        let mut generations = self.lock();
        let seen = generations.entry(attr.inode);
        seen.attributes = Some(attr.version);
        // An answer that was long on its way must not hide a list that was set since.
        if seen.acl.is_none_or(|(version, _)| version <= attr.version) {
            seen.acl = Some((attr.version, attr.acl));
        }
    }

    /// Whether the inode is known to have no access control list. The kernel forgets lists whenever it takes in
    /// attributes, so this is as fresh as the attributes it goes by.
    pub(crate) fn has_no_acl(&self, inode: u64) -> bool {
        self.lock().entry(inode).acl.is_some_and(|(_, acl)| !acl)
    }

    /// Whether the kernel's attributes, if it still has any, are of this version.
    pub(crate) fn attributes_are(&self, inode: u64, version: u64) -> bool {
        self.lock().entry(inode).attributes == Some(version)
    }

    /// The file is being opened at this version: whether the pages that the kernel may have are of it too.
    ///
    /// Between two opens at the same version nothing changed, so whatever was read meanwhile is of that version.
    pub(crate) fn keep_pages(&self, inode: u64, version: u64) -> bool {
        self.lock().entry(inode).pages.replace(version) == Some(version)
    }

    /// What was written here is lost, and the kernel may still have it: the next open keeps none of its pages.
    pub(crate) fn doubt_pages(&self, inode: u64) {
        self.lock().entry(inode).pages = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(inode: u64, version: u64) -> Attr {
        Attr { inode, version, ..Attr::default() }
    }

    #[test]
    fn a_late_answer_does_not_hide_a_list() {
        let versions = Versions::default();
        assert!(!versions.has_no_acl(5));
        versions.told(&attr(5, 1));
        assert!(versions.has_no_acl(5));
        versions.told(&Attr { acl: true, ..attr(5, 3) });
        versions.told(&attr(5, 2));
        assert!(!versions.has_no_acl(5));
        versions.told(&attr(5, 4));
        assert!(versions.has_no_acl(5));
    }

    #[test]
    fn pages_are_kept_from_one_open_to_the_next_of_the_same_version() {
        let versions = Versions::default();
        assert!(!versions.keep_pages(5, 1));
        assert!(versions.keep_pages(5, 1));
        assert!(!versions.keep_pages(5, 2));
        assert!(!versions.keep_pages(5, 1));
        versions.doubt_pages(5);
        assert!(!versions.keep_pages(5, 1));
        assert!(versions.keep_pages(5, 1));
    }

    #[test]
    fn only_the_latest_attributes_count() {
        let versions = Versions::default();
        assert!(!versions.attributes_are(5, 1));
        versions.told(&attr(5, 1));
        assert!(versions.attributes_are(5, 1));
        versions.told(&attr(5, 2));
        assert!(!versions.attributes_are(5, 1));
    }

    #[test]
    fn what_is_forgotten_is_stale_and_what_is_used_stays() {
        let versions = Versions::default();
        for inode in 0..4 * GENERATION as u64 {
            versions.told(&attr(inode, 9));
            assert!(versions.attributes_are(1, 9) || inode == 0);
        }
        assert!(!versions.attributes_are(2, 9));
        let seen = versions.lock();
        assert!(seen.young.len() <= GENERATION && seen.old.len() <= GENERATION);
    }
}
