//! What failed a moment ago and is not tried again yet.

use std::collections::BTreeMap;

/// First wait after a failure, in milliseconds; it doubles with each further failure.
const FIRST_MS: u64 = 2_000;
/// Longest wait, in milliseconds.
const LONGEST_MS: u64 = 120_000;
/// A failure so long past is forgotten, in milliseconds.
const FORGET_MS: u64 = 2 * LONGEST_MS;

#[derive(Debug, Clone, Copy)]
struct Failure {
    times: u32,
    until_ms: u64,
}

/// Failures per (chunk, node). Only that pair waits: the same chunk goes elsewhere, the same node takes others.
#[derive(Debug, Clone, Default)]
pub struct Backoff(BTreeMap<(u64, u32), Failure>);

impl Backoff {
    /// Something about `chunk` on `node` failed now.
    pub fn fail(&mut self, chunk: u64, node: u32, now_ms: u64) {
        let failure = self.0.entry((chunk, node)).or_insert(Failure { times: 0, until_ms: 0 });
        let wait = (FIRST_MS << failure.times.min(16)).min(LONGEST_MS);
        failure.times = failure.times.saturating_add(1);
        failure.until_ms = now_ms.saturating_add(wait);
    }

    /// It succeeded: the next failure is a first one.
    pub fn clear(&mut self, chunk: u64, node: u32) {
        self.0.remove(&(chunk, node));
    }

    /// Nothing is known against `node` any more: it came back.
    pub fn clear_node(&mut self, node: u32) {
        self.0.retain(|(_, at), _| *at != node);
    }

    /// Whether (chunk, node) has to wait still.
    pub fn waits(&self, chunk: u64, node: u32, now_ms: u64) -> bool {
        self.0.get(&(chunk, node)).is_some_and(|failure| failure.until_ms > now_ms)
    }

    /// Nodes that have to wait for `chunk`.
    pub fn waiting(&self, chunk: u64, now_ms: u64) -> impl Iterator<Item = u32> + '_ {
        self.0
            .range((chunk, 0)..=(chunk, u32::MAX))
            .filter(move |(_, failure)| failure.until_ms > now_ms)
            .map(|((_, node), _)| *node)
    }

    /// Forgets failures of long ago, so that the map stays as small as the trouble.
    pub fn prune(&mut self, now_ms: u64) {
        self.0.retain(|_, failure| failure.until_ms.saturating_add(FORGET_MS) > now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_concern_one_pair() {
        let mut backoff = Backoff::default();
        backoff.fail(1, 1, 0);
        assert!(backoff.waits(1, 1, FIRST_MS - 1));
        assert!(!backoff.waits(1, 1, FIRST_MS));
        assert!(!backoff.waits(1, 2, 0) && !backoff.waits(2, 1, 0));
        backoff.fail(1, 1, 10_000);
        assert!(backoff.waits(1, 1, 10_000 + 2 * FIRST_MS - 1));
        for _ in 0..100 {
            backoff.fail(1, 1, 20_000);
        }
        assert!(!backoff.waits(1, 1, 20_000 + LONGEST_MS));
        assert_eq!(backoff.waiting(1, 20_000).collect::<Vec<_>>(), [1]);
        backoff.prune(20_000 + LONGEST_MS + FORGET_MS);
        assert!(backoff.0.is_empty());
    }
}
