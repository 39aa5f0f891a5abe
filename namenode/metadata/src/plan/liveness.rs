//! Live, suspect, dead or not known yet.

use cairn_proto::fs::Liveness;

/// How long silence is borne, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Silent for so long: suspect. No new chunks, last for reads.
    pub suspect_after_ms: u64,
    /// Silent for so long: dead. Its replicas are made up for.
    pub dead_after_ms: u64,
}

/// Judges a datanode last heard at `heard_ms` by a leader that leads since `leading_since_ms`.
///
/// Silence before the leader led is nobody's fault: a node that was not heard yet is unknown for the leader's first
/// `dead_after_ms`, so that an election alone never starts a repair.
pub fn judge(heard_ms: Option<u64>, leading_since_ms: u64, now_ms: u64, patience: Patience) -> Liveness {
    match heard_ms {
        Some(heard) => {
            let silence = now_ms.saturating_sub(heard);
            if silence >= patience.dead_after_ms {
                Liveness::Dead
            } else if silence >= patience.suspect_after_ms {
                Liveness::Suspect
            } else {
                Liveness::Live
            }
        }
        None if now_ms.saturating_sub(leading_since_ms) < patience.dead_after_ms => Liveness::Unknown,
        None => Liveness::Dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { suspect_after_ms: 3_000, dead_after_ms: 10_000 };

    #[test]
    fn silence_makes_suspect_then_dead() {
        let at = |now| judge(Some(1_000), 0, now, PATIENCE);
        assert_eq!(at(1_000), Liveness::Live);
        assert_eq!(at(3_999), Liveness::Live);
        assert_eq!(at(4_000), Liveness::Suspect);
        assert_eq!(at(10_999), Liveness::Suspect);
        assert_eq!(at(11_000), Liveness::Dead);
    }

    #[test]
    fn a_new_leader_judges_nobody_before_its_own_first_seconds_are_over() {
        let at = |now| judge(None, 5_000, now, PATIENCE);
        assert_eq!(at(5_000), Liveness::Unknown);
        assert_eq!(at(14_999), Liveness::Unknown);
        assert_eq!(at(15_000), Liveness::Dead);
    }

    #[test]
    fn a_message_from_the_future_is_just_now() {
        assert_eq!(judge(Some(9_000), 0, 1_000, PATIENCE), Liveness::Live);
    }
}
