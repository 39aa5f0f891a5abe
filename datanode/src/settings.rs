//! The data plane's limits and times.

use std::sync::Arc;
use std::time::Duration;

use crate::trust::Trust;

/// The version of the data plane that `Hello` names.
pub const PROTOCOL_VERSION: u32 = 1;

/// How many connections there may be, and how long each of their waits may last.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections at once.
    pub max_connections: usize,
    /// From the accept to a whole `Hello`.
    pub handshake: Duration,
    /// Between the requests of a reader.
    pub idle: Duration,
    /// Between the frames of a chain.
    pub idle_chain: Duration,
    /// From a frame's first byte to its last.
    pub frame: Duration,
    /// To connect to the next link or a source.
    pub connect: Duration,
    /// Without an acknowledgement while bytes are outstanding. Less than the two seconds after which a client
    /// gives the whole chain up, so that it learns which datanode to avoid.
    pub stall: Duration,
    /// The same while a sync is outstanding.
    pub sync_stall: Duration,
    /// Without a byte of a copy.
    pub read_stall: Duration,
    /// Whom it believes.
    pub trust: Arc<Trust>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_connections: 1024,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            idle_chain: Duration::from_secs(600),
            frame: Duration::from_secs(30),
            connect: Duration::from_secs(1),
            stall: Duration::from_millis(1200),
            sync_stall: Duration::from_secs(15),
            read_stall: Duration::from_secs(5),
            trust: Arc::default(),
        }
    }
}

impl Settings {
    /// How often a reader that waits looks at the clock.
    pub fn tick(&self) -> Duration {
        let shortest = self.handshake.min(self.stall).min(self.read_stall).min(self.idle);
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// How long a link with `after` more links behind it waits for an acknowledgement. The first link waits
    /// longest, so that the one next to a stalled datanode names it before the ones above name each other.
    pub fn stall_before(&self, after: usize, syncing: bool) -> Duration {
        let base = if syncing { self.sync_stall } else { self.stall };
        base + (base / 8 + self.tick()) * after as u32
    }
}
