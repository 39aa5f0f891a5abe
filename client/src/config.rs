//! What a client is told: plain data with defaults.

use std::time::Duration;

use cairn_host::Host;

/// Settings of one [`crate::Cluster`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of the namenodes, `host:port`. Not all need to be up.
    pub namenodes: Vec<String>,
    /// What this client is called in status pages and logs: `program@host:pid`.
    pub name: String,
    /// Name of this host: replicas here are preferred, for writing and for reading.
    pub host: String,
    /// How long an operation waits through leader changes and failing datanodes.
    pub operation_timeout: Duration,
    /// Most bytes a lane has sent and not seen acknowledged.
    pub window_bytes: usize,
    /// Most bytes a sequential reader has in flight ahead of its consumer.
    pub read_ahead_bytes: usize,
    /// Lanes shared by small writes, for each replication in use.
    pub lanes: usize,
    /// Most bytes of written data in memory, over all files: what is buffered or not acknowledged yet.
    pub dirty_bytes: usize,
    /// Bytes of one file that may lie in chunks without a commit before one is made in the background.
    pub uncommitted_bytes: u64,
    /// Uncommitted pieces of all files, buffered or in chunks, that ask for commits; at twice as many, writers wait
    /// for them. Each takes some 150 bytes of memory beside its content.
    pub uncommitted_pieces: usize,
    /// About how many bytes of memory the known layouts of files may take, over all files.
    pub layout_bytes: usize,
    /// How old an uncommitted write may get before it is committed in the background.
    pub commit_after: Duration,
    /// How long a chain may owe acknowledgements without any progress before it is abandoned; one of more than four
    /// datanodes a fifth longer for each more.
    pub stall_timeout: Duration,
    /// How long a datanode may take for a connection, or for the next piece of a read.
    pub read_timeout: Duration,
    /// How long a call may stay unanswered before the client looks for another leader.
    pub probe_after: Duration,
    /// A lane without work for so long seals its chunk.
    pub lane_idle: Duration,
    /// How long a datanode a chain failed on is left out of new chunks.
    pub exclude_for: Duration,
    /// Whether directories made here are asked for, to work in them without asking (decision 17). For root's
    /// requests only.
    pub delegate: bool,
    /// Whether replicas on this machine are read from their files, where the datanode lends them (decision 19).
    pub short_circuit: bool,
    /// Its network and its clock: the machine's, unless somebody puts others in their place.
    pub machine: Host,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            namenodes: Vec::new(),
            name: format!("client:{}", std::process::id()),
            host: String::new(),
            operation_timeout: Duration::from_secs(60),
            window_bytes: 8 << 20,
            read_ahead_bytes: 8 << 20,
            lanes: 2,
            dirty_bytes: 64 << 20,
            uncommitted_bytes: 64 << 20,
            uncommitted_pieces: 128 << 10,
            layout_bytes: 32 << 20,
            commit_after: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(2),
            probe_after: Duration::from_secs(1),
            lane_idle: Duration::from_secs(30),
            exclude_for: Duration::from_secs(30),
            delegate: false,
            short_circuit: true,
            machine: Host::default(),
        }
    }
}
