//! How far scrubbing is: which replica comes next and when a pass begins. Pure; times are given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The one version of the file that this program writes.
const FORMAT: u32 = 1;
/// Replicas that may be asked for by name and wait.
const MAX_ASKED: usize = 100_000;
/// Bad replicas that are remembered over a restart; others are found again.
const MAX_BAD: usize = 10_000;

/// What is kept over restarts.
///
/// A pass goes through the replicas in order of their chunks' ids, so a single number says which of them were read in
/// it, and the times of two passes say since when the others were: no time is kept for each replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    format: u32,
    /// When the pass under way, or the last one, began; nanoseconds since the epoch.
    pub began_ns: i64,
    /// When a whole pass was last done; 0: never.
    pub full_ns: i64,
    /// The least chunk that the pass under way has not come to; nothing when there is none.
    pub next: Option<u64>,
    /// Replicas read in the pass under way.
    pub verified: u64,
    /// Replicas that there were when it began.
    pub total: u64,
    /// Bad replicas found so far.
    pub found: u64,
    /// Of those, replaced or given up.
    pub mended: u64,
    /// Those that are bad still, with the reason.
    pub bad: BTreeMap<u64, String>,
    #[serde(skip)]
    asked: BTreeSet<u64>,
}

impl Progress {
    /// Reads what [`Progress::encode`] wrote. Anything else is as good as nothing: a new pass begins.
    pub fn decode(text: &[u8]) -> Option<Progress> {
        serde_json::from_slice(text).ok().filter(|progress: &Progress| progress.format == FORMAT)
    }

    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let bad = self.bad.iter().take(MAX_BAD).map(|(chunk, reason)| (*chunk, reason.clone())).collect();
        let kept = Progress { format: FORMAT, bad, ..self.clone() };
        serde_json::to_vec_pretty(&kept).unwrap_or_default()
    }

    /// These replicas come first.
    pub fn ask_for(&mut self, chunks: &[u64]) {
        let room = MAX_ASKED.saturating_sub(self.asked.len());
        self.asked.extend(chunks.iter().take(room));
    }

    /// A replica that was asked for by name.
    pub fn take_asked(&mut self) -> Option<u64> {
        self.asked.pop_first()
    }

    /// Starts a pass over `total` replicas from the first one on.
    pub fn begin(&mut self, total: u64, now_ns: i64) {
        self.began_ns = now_ns;
        self.next = Some(0);
        (self.verified, self.total) = (0, total);
    }

    /// A replica was read in the pass under way.
    pub fn passed(&mut self, chunk: u64) {
        self.verified += 1;
        self.next = chunk.checked_add(1);
    }

    /// The pass came to its end.
    pub fn finish(&mut self, now_ns: i64) {
        self.next = None;
        self.full_ns = now_ns;
    }

    /// When the next pass begins; `None` while one is under way.
    pub fn due_ns(&self, period: Duration) -> Option<i64> {
        if self.next.is_some() {
            return None;
        }
        let period = i64::try_from(period.as_nanos()).unwrap_or(i64::MAX);
        Some(self.began_ns.saturating_add(period))
    }

    /// Whether a pass should begin now. A clock that was set back does not put it off for longer than a period.
    pub fn is_due(&self, period: Duration, now_ns: i64) -> bool {
        self.due_ns(period).is_some_and(|due| now_ns >= due || now_ns < self.began_ns)
    }

    /// Replicas still to read in the pass under way, about.
    pub fn left(&self) -> u64 {
        if self.next.is_none() { 0 } else { self.total.saturating_sub(self.verified).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const HOUR_NS: i64 = 3_600_000_000_000;

    #[test]
    fn a_pass_begins_a_period_after_the_last_one_began() {
        let mut progress = Progress::default();
        assert!(progress.is_due(HOUR, HOUR_NS * 1000), "there never was one");
        progress.begin(2, 10);
        assert!(!progress.is_due(HOUR, i64::MAX), "one is under way");
        progress.passed(7);
        assert_eq!((progress.next, progress.left()), (Some(8), 1));
        progress.passed(9);
        progress.finish(20);
        assert_eq!((progress.left(), progress.full_ns), (0, 20));
        assert!(!progress.is_due(HOUR, HOUR_NS));
        assert!(progress.is_due(HOUR, 10 + HOUR_NS));
        assert!(progress.is_due(HOUR, 9), "the clock was set back");
    }

    #[test]
    fn what_is_kept_reads_back_and_anything_else_is_nothing() {
        let mut progress = Progress::default();
        progress.begin(5, 1);
        progress.passed(3);
        progress.bad.insert(4, "x".into());
        let text = progress.encode();
        assert_eq!(Progress::decode(&text).unwrap(), Progress { format: FORMAT, ..progress });
        for bad in [&b""[..], b"{}", b"\xff", &text[..text.len() / 2]] {
            assert_eq!(Progress::decode(bad), None);
        }
    }

    #[test]
    fn those_asked_for_come_first_and_are_bounded() {
        let mut progress = Progress::default();
        progress.ask_for(&(0..2 * MAX_ASKED as u64).collect::<Vec<_>>());
        assert_eq!(progress.asked.len(), MAX_ASKED);
        assert_eq!(progress.take_asked(), Some(0));
    }
}
