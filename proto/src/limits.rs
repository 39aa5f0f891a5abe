//! Sizes both sides of a conversation agree on.

/// Checksummed unit of a chunk, in bytes.
pub const BLOCK_SIZE: usize = 64 << 10;
/// Most bytes one data-plane frame carries.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Most bytes of a data-plane frame's header.
pub const MAX_HEADER: usize = 64 << 10;
/// Bytes a chunk holds unless the cluster was formed with another size.
pub const CHUNK_SIZE: u64 = 64 << 20;
/// Largest chunk size a cluster may be formed with, in bytes.
pub const MAX_CHUNK_SIZE: u64 = 1 << 30;
/// Replicas of a chunk unless told otherwise.
pub const REPLICATION: u32 = 3;
/// Most replicas anybody may ask for.
pub const MAX_REPLICATION: u32 = 16;
/// Most bytes of one name (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Most bytes of a path (`PATH_MAX`, without its NUL).
pub const MAX_PATH: usize = 4095;
/// Largest file, in bytes: the largest `off_t`.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;
/// Most bytes of an extended attribute's value (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 64 << 10;
/// Most bytes of one control-plane message.
pub const MAX_MESSAGE: usize = 8 << 20;
/// Most calls in one batch of a client's conversation.
pub const MAX_BATCH_CALLS: usize = 4096;
/// Most extents in one commit of one file.
pub const MAX_COMMIT_EXTENTS: usize = 16 << 10;
/// Most entries of one page of a listing.
pub const MAX_LIST_PAGE: u32 = 4096;
/// Most extents of one page of a layout.
pub const MAX_LAYOUT_PAGE: u32 = 4096;
/// A session's lease, in milliseconds: one that is not renewed for so long is expired.
/// Its client stops writing after half of it.
pub const SESSION_LEASE_MS: u64 = 30_000;
/// How often a datanode reports, in milliseconds.
pub const HEARTBEAT_MS: u64 = 1_000;
/// Most locked ranges of one file, over all owners.
pub const MAX_FILE_LOCKS: u64 = 4096;
/// Most locked ranges of one session, over all files.
pub const MAX_SESSION_LOCKS: u64 = 65_536;
/// Most names of one inode.
pub const MAX_LINKS: u32 = 65_000;
/// Most deeds of one series.
pub const MAX_DEEDS: usize = 2048;
/// Most numbers of inodes in one reservation.
pub const MAX_RESERVED_INODES: u32 = 64 << 10;
/// Most files in one report of what was read.
pub const MAX_FILE_READS: usize = 4096;
