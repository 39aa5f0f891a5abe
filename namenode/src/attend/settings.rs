//! How patient the leader is with datanodes, and how hard it drives them.

use std::time::Duration;

use cairn_metadata::plan::liveness::Patience;

/// Plain data; every field has a default that suits a cluster of any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A datanode silent for so long takes no new chunks and is asked last.
    pub suspect_after: Duration,
    /// A datanode silent for so long is dead: its replicas are made up for.
    pub dead_after: Duration,
    /// How long a sealed chunk without live bytes is kept. A writer whose operation takes longer, because datanodes or
    /// namenodes do not answer it, may find what it wrote gone and fail.
    pub garbage_grace: Duration,
    /// Copies one datanode writes, and is read for, at once.
    pub copies_per_node: usize,
    /// Copies in the whole cluster at once; as many as there are live datanodes, if these are more.
    pub copies_total: usize,
    /// Bytes a second that repair may copy for each live datanode; 0: no limit.
    pub copy_bytes_per_second: u64,
    /// A copy is given up when it is slower than this.
    pub copy_slowest_bytes_per_second: u64,
    /// How long an order may take, besides the time its bytes need.
    pub order_patience: Duration,
    /// Whether chunks that are mostly garbage, or many and small, are compacted.
    pub compaction: bool,
    /// A sealed chunk is mostly garbage when less of it is alive than this, in percent.
    pub compaction_live_percent: u32,
    /// Bytes a second that compaction may write for each live datanode; 0: no limit.
    pub compaction_bytes_per_second: u64,
    /// How long a chunk stays unchanged before it is compacted.
    pub compaction_after: Duration,
    /// How often the leader looks around.
    pub round: Duration,
    /// The chunk table is read from its start at most this often.
    pub scan_interval: Duration,
    /// Chunk records read in one round.
    pub scan_slice: usize,
    /// How long a datanode is left alone before its inventory is asked for again to settle a doubt.
    pub ask_again: Duration,
    /// Whether datanodes check capabilities.
    pub capabilities: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            suspect_after: Duration::from_secs(3),
            dead_after: Duration::from_secs(10),
            garbage_grace: Duration::from_secs(180),
            copies_per_node: 2,
            copies_total: 256,
            copy_bytes_per_second: 200 << 20,
            copy_slowest_bytes_per_second: 2 << 20,
            order_patience: Duration::from_secs(20),
            compaction: true,
            compaction_live_percent: 50,
            compaction_bytes_per_second: 20 << 20,
            compaction_after: Duration::from_secs(60),
            round: Duration::from_millis(200),
            scan_interval: Duration::from_secs(1),
            scan_slice: 4096,
            ask_again: Duration::from_secs(15),
            capabilities: false,
        }
    }
}

impl Settings {
    pub(super) fn patience(&self) -> Patience {
        Patience { suspect_after_ms: millis(self.suspect_after), dead_after_ms: millis(self.dead_after) }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    duration.as_millis().min(u128::from(u64::MAX)) as u64
}
