//! The files of the comparison: which exist, and where, follows from their number alone.
//!
//! Most lie in several thousand directories in random order, as many clients at work leave them. Sixteen directories
//! got about 1,250 entries each over the whole time (their inodes lie far apart), sixteen got 1,000 in one go.

use cairn_proto::ROOT_INODE;
use cairn_proto::fs::NodeRef;

/// Directories of each kind that are listed.
pub const LISTED: u64 = 16;
/// Entries of a directory that was filled in one go.
const TOGETHER_ENTRIES: u64 = 1_000;
/// Files among all that go to the scattered directories.
const SCATTERED_FILES: u64 = 20_000;

/// A population of a given size.
#[derive(Debug, Clone, Copy)]
pub struct Population {
    /// Files the store is filled with.
    pub files: u64,
}

/// A well-mixed number from a counter (splitmix64).
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Population {
    /// Directories that most files lie in.
    fn common(self) -> u64 {
        (self.files / 1_000).max(4_000)
    }

    /// All directories.
    pub fn directories(self) -> u64 {
        self.common() + 2 * LISTED
    }

    /// The name of a directory in the root.
    pub fn directory_name(self, directory: u64) -> String {
        format!("project-{directory:05}")
    }

    /// The inode of a directory: they are the first things made.
    pub fn directory_inode(self, directory: u64) -> u64 {
        ROOT_INODE + 1 + directory
    }

    /// A directory whose entries were made over the whole time.
    pub fn scattered(self, index: u64) -> u64 {
        self.common() + index % LISTED
    }

    /// A directory whose entries were made in one go.
    pub fn together(self, index: u64) -> u64 {
        self.common() + LISTED + index % LISTED
    }

    /// The directory and name of a file.
    pub fn place(self, file: u64) -> (u64, String) {
        let random = mixed(file);
        let name = format!("{random:016x}.dat");
        let together = LISTED * TOGETHER_ENTRIES;
        let directory = if file < together {
            self.together(file / TOGETHER_ENTRIES)
        } else if file.is_multiple_of((self.files / SCATTERED_FILES).max(2)) {
            self.scattered(random)
        } else {
            mixed(random) % self.common()
        };
        (directory, name)
    }

    /// A file by its directory's inode and its name.
    pub fn by_parent(self, file: u64) -> Option<NodeRef> {
        let (directory, name) = self.place(file);
        Some(NodeRef { inode: self.directory_inode(directory), path: name.into_bytes().into() })
    }

    /// A file by its path from the root.
    pub fn by_path(self, file: u64) -> Option<NodeRef> {
        let (directory, name) = self.place(file);
        let path = format!("{}/{name}", self.directory_name(directory));
        Some(NodeRef { inode: ROOT_INODE, path: path.into_bytes().into() })
    }
}
