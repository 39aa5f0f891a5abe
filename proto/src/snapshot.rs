//! Numbers of inodes as they are in a snapshot.
//!
//! Whoever looks into a snapshot sees its inodes under numbers of their own, so that nobody takes what was for what is:
//! the highest bit is set, 20 bits are the snapshot's number, and the rest is the inode's. The directory `.snapshot`
//! itself, which nobody ever made, has 0 in the place of the snapshot.

/// The name under which a directory shows its snapshots.
pub const DIRECTORY: &[u8] = b".snapshot";
/// Numbers of snapshots are smaller than this.
pub const MAX_SNAPSHOTS: u64 = 1 << SEQ_BITS;
/// Numbers of inodes that can be in a snapshot are smaller than this.
pub const MAX_INODE: u64 = 1 << INODE_BITS;

const SEQ_BITS: u32 = 20;
const INODE_BITS: u32 = 43;
const MARK: u64 = 1 << 63;

/// The number of an inode as it is in snapshot `seq`; of a directory and 0, that of its `.snapshot`.
pub fn number(seq: u64, inode: u64) -> u64 {
    MARK | ((seq % MAX_SNAPSHOTS) << INODE_BITS) | (inode % MAX_INODE)
}

/// The snapshot and the inode of a number, if it is one of this kind.
pub fn parts(number: u64) -> Option<(u64, u64)> {
    is_inside(number).then_some(((number & !MARK) >> INODE_BITS, number % MAX_INODE))
}

/// Whether an inode number is of something in a snapshot, which never changes.
pub fn is_inside(number: u64) -> bool {
    number & MARK != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_apart_as_they_were_put_together() {
        for (seq, inode) in [(0, 1), (1, 1), (MAX_SNAPSHOTS - 1, MAX_INODE - 1), (77, 1 << 42)] {
            let number = number(seq, inode);
            assert!(is_inside(number));
            assert_eq!(parts(number), Some((seq, inode)));
        }
        assert_eq!(parts(MAX_INODE), None);
    }
}
