//! Which chunks hold nothing that anybody can still name.

use cairn_proto::fs::ChunkState;
use cairn_proto::store::Chunk;

use crate::records;

/// How long garbage is kept, in the leader's times.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// The leader's wall clock, as it stamps commands with it.
    pub now_ns: i64,
    /// How long a chunk stays after its last live byte went: longer than a lease and than any reader's cache.
    pub grace_ns: i64,
    /// How long this leader has led, by a clock that is never set.
    pub led_ns: i64,
}

/// Whether `chunk` may be purged.
///
/// The time the chunk died was stamped by whoever led then, and two leaders' clocks may differ. So a leader also
/// waits the grace from its own start: whatever died before it led has then been dead for that long by one clock.
pub fn is_purgeable(chunk: &Chunk, grace: Grace) -> bool {
    chunk.state() == ChunkState::Sealed
        && records::is_dead(chunk)
        && chunk.dead_since_ns > 0
        && grace.led_ns >= grace.grace_ns
        && grace.now_ns.saturating_sub(chunk.dead_since_ns) >= grace.grace_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Grace = Grace { now_ns: 1_000, grace_ns: 100, led_ns: 500 };

    fn dead(since: i64) -> Chunk {
        Chunk { state: ChunkState::Sealed as i32, dead_since_ns: since, ..Chunk::default() }
    }

    #[test]
    fn only_what_is_sealed_dead_and_outlived_the_grace_goes() {
        assert!(is_purgeable(&dead(900), GRACE));
        assert!(!is_purgeable(&dead(901), GRACE));
        assert!(!is_purgeable(&Chunk { live_bytes: 1, ..dead(1) }, GRACE));
        assert!(!is_purgeable(&Chunk { kept_bytes: 1, ..dead(1) }, GRACE));
        assert!(!is_purgeable(&Chunk { state: ChunkState::Open as i32, ..dead(1) }, GRACE));
        assert!(!is_purgeable(&dead(0), GRACE), "no time of death is no death");
    }

    #[test]
    fn a_new_leader_waits_the_grace_whatever_the_old_clock_said() {
        assert!(!is_purgeable(&dead(1), Grace { led_ns: 99, ..GRACE }));
    }

    #[test]
    fn a_chunk_that_died_in_the_future_waits() {
        assert!(!is_purgeable(&dead(5_000), GRACE));
    }
}
