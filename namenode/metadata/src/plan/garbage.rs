//! Which chunks hold nothing that anybody can still name.

use std::collections::BTreeMap;

use cairn_proto::fs::ChunkState;
use cairn_proto::store::Chunk;

use crate::records;

/// How long garbage is kept, in the leader's times.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// The leader's wall clock, as it stamps commands with it.
    pub now_ns: i64,
    /// How long a chunk stays after its last live byte went, or after it was sealed without any: longer than a lease,
    /// than any reader's cache, and than a writer may take from sealing to committing.
    pub grace_ns: i64,
    /// How long this leader's times can be compared, by a clock that is never set; see [`Steady`].
    pub steady_ns: i64,
}

/// Since when a leader can trust its clocks with how long a writer has had to commit: since it leads, since the wall clock
/// was last set, and since it was last there for everybody. While it was stopped, or heard no majority, nobody could.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    since_ms: u64,
    /// The last look: when, and how far the wall clock was ahead of the other.
    last: Option<(u64, i64)>,
}

impl Steady {
    /// How far a wall clock may be from where the other one expects it, in milliseconds. Clocks that are slewed stay far
    /// below, one look after the other.
    const TOLERANCE_MS: i64 = 1_000;
    /// From one look to the next, in milliseconds; a leader that looks every round was stopped if it is longer.
    const GAP_MS: u64 = 10_000;

    /// From now on, by the clock that is never set.
    pub fn new(now_ms: u64) -> Steady {
        Steady { since_ms: now_ms, last: None }
    }

    /// Looks at both clocks, and says for how long, in nanoseconds, they have gone on together.
    pub fn look(&mut self, now_ms: u64, now_ns: i64) -> i64 {
        let ahead_ms = (now_ns / 1_000_000).saturating_sub_unsigned(now_ms);
        let broken = self.last.is_some_and(|(at_ms, before)| {
            before.abs_diff(ahead_ms) > Self::TOLERANCE_MS.unsigned_abs()
                || now_ms.saturating_sub(at_ms) > Self::GAP_MS
        });
        if broken {
            self.since_ms = now_ms;
        }
        self.last = Some((now_ms, ahead_ms));
        i64::try_from(now_ms.saturating_sub(self.since_ms)).unwrap_or(i64::MAX).saturating_mul(1_000_000)
    }
}

/// Whether `chunk` may be purged.
///
/// The time the chunk died was stamped by whoever led then, and two leaders' clocks may differ, or one's be set. So a
/// leader also waits the grace from its own start and from when its clock was set: whatever died before has then been dead
/// for that long by one clock.
pub fn is_purgeable(chunk: &Chunk, grace: Grace) -> bool {
    chunk.state() == ChunkState::Sealed
        && records::is_dead(chunk)
        && chunk.dead_since_ns > 0
        && grace.steady_ns >= grace.grace_ns
        && grace.now_ns.saturating_sub(chunk.dead_since_ns) >= grace.grace_ns
}

/// Chunks that died in the future: the log's time was stamped by a leader whose clock was ahead, and stands still until
/// everybody's is there. How long they are dead, this leader tells from when it saw them dead first.
#[derive(Debug, Default)]
pub struct Ahead {
    /// By chunk: when it is said to have died, and when that was seen first, by the clock that is never set.
    seen: BTreeMap<u64, (i64, u64)>,
}

impl Ahead {
    /// As [`is_purgeable`], of a chunk that was just read, `now_ms` by the clock that is never set.
    pub fn is_purgeable(&mut self, id: u64, chunk: &Chunk, grace: Grace, now_ms: u64) -> bool {
        let died_ns = chunk.dead_since_ns;
        let is_garbage = chunk.state() == ChunkState::Sealed && records::is_dead(chunk);
        if !is_garbage || died_ns <= grace.now_ns {
            self.seen.remove(&id);
            return is_purgeable(chunk, grace);
        }
        let seen = self.seen.entry(id).or_insert((died_ns, now_ms));
        if seen.0 != died_ns {
            *seen = (died_ns, now_ms);
        }
        let dead_ms = i64::try_from(now_ms.saturating_sub(seen.1)).unwrap_or(i64::MAX);
        let died_at_the_latest = Chunk {
            dead_since_ns: grace.now_ns.saturating_sub(dead_ms.saturating_mul(1_000_000)).max(1),
            ..chunk.clone()
        };
        is_purgeable(&died_at_the_latest, grace)
    }

    /// There is no such chunk any more.
    pub fn forget(&mut self, id: u64) {
        self.seen.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Grace = Grace { now_ns: 1_000, grace_ns: 100, steady_ns: 500 };

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
        assert!(!is_purgeable(&dead(1), Grace { steady_ns: 99, ..GRACE }));
    }

    #[test]
    fn a_chunk_that_died_in_the_future_waits() {
        assert!(!is_purgeable(&dead(5_000), GRACE));
    }

    #[test]
    fn a_chunk_that_died_in_the_future_goes_a_grace_after_it_was_seen_dead() {
        let second = 1_000_000_000;
        let grace = Grace { now_ns: 1_000 * second, grace_ns: 10 * second, steady_ns: 500 * second };
        let (future, later) = (dead(9_000 * second), dead(9_001 * second));
        let mut ahead = Ahead::default();
        assert!(!ahead.is_purgeable(1, &future, grace, 0));
        assert!(!ahead.is_purgeable(1, &future, grace, 9_999));
        assert!(!ahead.is_purgeable(1, &future, Grace { steady_ns: second, ..grace }, 10_000));
        assert!(ahead.is_purgeable(1, &future, grace, 10_000));
        assert!(ahead.is_purgeable(1, &future, grace, 10_001), "until it is gone");
        assert!(!ahead.is_purgeable(1, &later, grace, 11_000), "it lived again meanwhile");
        assert!(!ahead.is_purgeable(1, &Chunk { live_bytes: 1, ..dead(0) }, grace, 22_000));
        assert!(!ahead.is_purgeable(1, &later, grace, 23_000), "and again");
        ahead.forget(1);
        assert!(!ahead.is_purgeable(1, &later, grace, 40_000));
        assert!(ahead.is_purgeable(2, &dead(900 * second), grace, 0), "the ordinary case");
        let open = Chunk { state: ChunkState::Open as i32, ..future };
        assert!(!ahead.is_purgeable(3, &open, grace, 0));
        assert!(!ahead.is_purgeable(3, &dead(9_000 * second), grace, 60_000), "sealed just now");
    }

    #[test]
    fn a_clock_that_is_set_begins_the_grace_anew() {
        let mut steady = Steady::new(1_000);
        assert_eq!(steady.look(1_500, 7_000_000_000), 500_000_000);
        assert_eq!(steady.look(3_000, 8_500_000_000), 2_000_000_000);
        assert_eq!(steady.look(4_000, 9_900_000_000), 3_000_000_000, "slewed a little");
        assert_eq!(steady.look(5_000, 600_000_000_000), 0, "set forward");
        assert_eq!(steady.look(6_000, 601_000_000_000), 1_000_000_000);
        assert_eq!(steady.look(7_000, 2_000_000_000), 0, "set back");
    }

    #[test]
    fn a_leader_that_was_stopped_begins_the_grace_anew() {
        let mut steady = Steady::new(0);
        let mut look = |now_ms: u64| steady.look(now_ms, now_ms as i64 * 1_000_000) / 1_000_000;
        assert_eq!((look(1_000), look(9_000), look(19_000)), (1_000, 9_000, 19_000), "a busy machine");
        assert_eq!((look(200_000), look(200_200)), (0, 200));
    }
}
