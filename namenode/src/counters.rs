//! What a namenode counts as it works.

use std::sync::atomic::{AtomicU64, Ordering};

use cairn_ops::metrics::{Histogram, Operations};
use cairn_proto::fs::{WorkInfo, mutation, query};

/// Counters of one namenode, since its start.
#[derive(Debug)]
pub struct Counters {
    /// What was proposed, by the name of the mutation, until its outcome was there.
    pub mutations: Operations,
    /// What was asked, by the name of the query.
    pub queries: Operations,
    /// From handing an entry to the log until it was applied.
    pub commits: Histogram,
    /// Commands in those entries.
    commands: AtomicU64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            mutations: Operations::new(MUTATIONS),
            queries: Operations::new(QUERIES),
            commits: Histogram::default(),
            commands: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// An entry with so many commands was handed to the log.
    pub fn proposed(&self, commands: usize) {
        self.commands.fetch_add(commands as u64, Ordering::Relaxed);
    }

    /// All of it in sums.
    pub fn work(&self) -> WorkInfo {
        let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
        let ((mutations, mutating), (queries, querying)) = (self.mutations.totals(), self.queries.totals());
        WorkInfo {
            mutations,
            mutation_ns: nanoseconds(mutating),
            queries,
            query_ns: nanoseconds(querying),
            commits: self.commits.count(),
            commit_ns: nanoseconds(self.commits.seconds()),
        }
    }

    /// Commands handed to the log.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }
}

/// What a query is called; nothing if it is none.
pub fn query_name(number: usize) -> &'static str {
    QUERIES.get(number).copied().unwrap_or_default()
}

/// What a mutation is called; nothing if it is none.
pub fn mutation_name(number: usize) -> &'static str {
    MUTATIONS.get(number).copied().unwrap_or_default()
}

/// Numbers the variants of an enum, and names them.
macro_rules! named {
    ($names:ident, $number:ident, $op:path, $($variant:ident => $name:literal),+ $(,)?) => {
        const $names: &[&str] = &[$($name),+];

        /// The place of an operation among the counted ones.
        pub fn $number(op: &$op) -> usize {
            use $op::*;
            #[derive(Clone, Copy)]
            enum Place { $($variant),+ }
            match op { $($variant(..) => Place::$variant as usize),+ }
        }
    };
}

named!(MUTATIONS, mutation_number, mutation::Op,
    Create => "create", Mkdir => "mkdir", Mknod => "mknod", Symlink => "symlink", Link => "link",
    Rename => "rename", Unlink => "unlink", Rmdir => "rmdir", SetAttr => "set_attr", SetXattr => "set_xattr",
    RemoveXattr => "remove_xattr", SetReplication => "set_replication", Allocate => "allocate",
    Commit => "commit", Seal => "seal", Open => "open", Close => "close", OpenSession => "open_session",
    CloseSession => "close_session", SetLock => "set_lock", ClearRange => "clear_range",
    CloneRange => "clone_range", MarkRead => "mark_read", FormCluster => "form_cluster",
    RegisterDatanode => "register_datanode", SetDatanodeState => "set_datanode_state",
    ExpireSession => "expire_session", AddReplica => "add_replica", DropReplica => "drop_replica",
    ForgetReplica => "forget_replica", PurgeChunk => "purge_chunk", RecordDigest => "record_digest",
    BeginCompaction => "begin_compaction", SwapExtents => "swap_extents", SetQuota => "set_quota",
    SetTrash => "set_trash", Discard => "discard", Restore => "restore", PurgeTrash => "purge_trash",
    CreateSnapshot => "create_snapshot", RemoveSnapshot => "remove_snapshot",
    PurgeSnapshot => "purge_snapshot", ReserveInodes => "reserve_inodes", Series => "series", HandBack => "hand_back",
);

named!(QUERIES, query_number, query::Op,
    Stat => "stat", ReadLink => "read_link", List => "list", GetXattr => "get_xattr",
    ListXattr => "list_xattr", Layout => "layout", Chunk => "chunk", StatFs => "stat_fs",
    Status => "status", GetLock => "get_lock", Access => "access", CheckFile => "check_file",
    CheckChunks => "check_chunks", CheckNode => "check_node", Usage => "usage",
    ListQuotas => "list_quotas", ListTrash => "list_trash", ListSnapshots => "list_snapshots",
);

#[cfg(test)]
mod tests {
    use cairn_proto::fs;

    use super::*;

    #[test]
    fn every_operation_has_its_name() {
        assert_eq!(MUTATIONS[mutation_number(&mutation::Op::Seal(fs::SealChunk::default()))], "seal");
        assert_eq!(MUTATIONS[mutation_number(&mutation::Op::Create(fs::CreateFile::default()))], "create");
        assert_eq!(QUERIES[query_number(&query::Op::CheckNode(fs::CheckNode::default()))], "check_node");
    }
}
