//! The store the namespace lives in: ordered tables of bytes, behind three small traits.
//!
//! The core reads through [`View`] and changes through [`Txn`]; the shell owns transactions, durability and
//! snapshots ([`Store`]). Keys are big-endian, so that byte order is numeric order.

use std::ops::ControlFlow;

/// A table of the store. Keys and values are described in `docs/formats/store.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// `""` -> `Meta`.
    Meta = 0,
    /// inode -> `Inode`.
    Inode = 1,
    /// (parent inode, name) -> `Dentry`.
    Dentry = 2,
    /// (inode, end of the extent in the file) -> `ExtentTail`, for files with more extents than fit the inode.
    /// Keyed by its end, so that a forward scan from any offset meets the extent that covers it first.
    Extent = 3,
    /// chunk -> `Chunk`.
    Chunk = 4,
    /// (chunk, chunk offset, inode, file offset) -> length: which files a chunk holds bytes of.
    ChunkRef = 5,
    /// (node, chunk) -> `""`: what a datanode holds, or has been told to delete.
    NodeChunk = 6,
    /// node -> `Datanode`.
    Datanode = 7,
    /// datanode uuid -> node.
    DatanodeUuid = 8,
    /// session -> `Session`.
    Session = 9,
    /// (session, seq) -> `Outcome`.
    Outcome = 10,
    /// (session, chunk) -> `""`: open chunks of a session.
    SessionChunk = 11,
    /// (inode, session) -> count of opens.
    OpenInode = 12,
    /// (session, inode) -> `""`: the other way round.
    SessionInode = 13,
    /// (inode, name) -> value of an extended attribute.
    Xattr = 14,
    /// Owned by the shell: applied log id, membership, snapshot id.
    Raft = 15,
    /// (inode, session, owner, kind) -> `Locks`.
    Lock = 16,
    /// (session, inode) -> count of locked ranges there; (session) -> of all its locked ranges.
    SessionLock = 17,
    /// directory -> `Tree`: what lies below it.
    Tree = 18,
    /// (inode, directory) -> how many names it has there, for files with several names.
    Link = 19,
    /// directory -> `""`: those with a quota.
    Quota = 20,
    /// directory -> `Trash`: the directories that items of the trash lie in.
    Trash = 21,
    /// snapshot, descending -> `Snapshot`.
    Snapshot = 22,
    /// (directory, name) -> snapshot: those that are there.
    SnapshotName = 23,
    /// (table, key, snapshot) -> what was under the key when it was first changed after that snapshot.
    Old = 24,
}

impl Table {
    /// Every table, in order of number.
    pub const ALL: [Table; 25] = [
        Table::Meta,
        Table::Inode,
        Table::Dentry,
        Table::Extent,
        Table::Chunk,
        Table::ChunkRef,
        Table::NodeChunk,
        Table::Datanode,
        Table::DatanodeUuid,
        Table::Session,
        Table::Outcome,
        Table::SessionChunk,
        Table::OpenInode,
        Table::SessionInode,
        Table::Xattr,
        Table::Raft,
        Table::Lock,
        Table::SessionLock,
        Table::Tree,
        Table::Link,
        Table::Quota,
        Table::Trash,
        Table::Snapshot,
        Table::SnapshotName,
        Table::Old,
    ];

    /// The table's name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Inode => "inode",
            Table::Dentry => "dentry",
            Table::Extent => "extent",
            Table::Chunk => "chunk",
            Table::ChunkRef => "chunk_ref",
            Table::NodeChunk => "node_chunk",
            Table::Datanode => "datanode",
            Table::DatanodeUuid => "datanode_uuid",
            Table::Session => "session",
            Table::Outcome => "outcome",
            Table::SessionChunk => "session_chunk",
            Table::OpenInode => "open_inode",
            Table::SessionInode => "session_inode",
            Table::Xattr => "xattr",
            Table::Raft => "raft",
            Table::Lock => "lock",
            Table::SessionLock => "session_lock",
            Table::Tree => "tree",
            Table::Link => "link",
            Table::Quota => "quota",
            Table::Trash => "trash",
            Table::Snapshot => "snapshot",
            Table::SnapshotName => "snapshot_name",
            Table::Old => "old",
        }
    }

    /// The table with this number.
    pub fn from_number(number: u8) -> Option<Table> {
        Table::ALL.get(usize::from(number)).copied()
    }
}

/// The store could not read or write, or holds bytes that do not decode. The namenode stops on it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine below failed.
    #[error("store: {0}")]
    Engine(String),
    /// A record does not decode, or an index and its record disagree.
    #[error("store is damaged: {0}")]
    Damaged(String),
}

/// What a scan calls with each key and value, until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A consistent view of the tables.
pub trait View {
    /// The value under `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits every pair with `start <= key < end` in key order until `visit` breaks.
    /// An empty `end` means the table's end.
    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError>;

    /// The session that looks; 0: somebody without one; `None`: the cluster itself, before which nothing is hidden.
    fn asker(&self) -> Option<u64> {
        None
    }

    /// The snapshot whose state this is; `None`: it is the present.
    fn snapshot(&self) -> Option<u64> {
        None
    }
}

/// A view that can be changed. Changes are seen by later reads of the same transaction.
pub trait Txn: View {
    /// Sets the value under `key`.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
    /// Removes `key`; a missing key is no error.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError>;
}

/// How far a committed transaction has gone when `write` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Later views see it; a crash may lose it. The Raft log has it.
    Applied,
    /// It is on the disk, and with it everything before.
    Durable,
}

/// A body run inside a read transaction.
pub type ReadBody<'a> = &'a mut dyn FnMut(&dyn View) -> Result<(), StoreError>;
/// A body run inside a write transaction; an error rolls back.
pub type WriteBody<'a> = &'a mut dyn FnMut(&mut dyn Txn) -> Result<(), StoreError>;

/// A store engine.
pub trait Store: Send + Sync + 'static {
    /// Runs `body` over a consistent view.
    fn read(&self, body: ReadBody<'_>) -> Result<(), StoreError>;
    /// Runs `body` in a transaction and commits it if it succeeds. There is one writer at a time.
    fn write(&self, durability: Durability, body: WriteBody<'_>) -> Result<(), StoreError>;
    /// A consistent view that lives on its own while writing goes on.
    fn snapshot(&self) -> Result<Box<dyn View + Send>, StoreError>;
}
