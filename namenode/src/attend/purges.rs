//! Purges whose answer was lost: they may have been carried out, or may yet be.

use std::collections::{BTreeMap, BTreeSet};

/// Purges remembered at once; the replicas of more are found by their datanodes' inventories.
const PURGES: usize = 10_000;

/// By chunk: who had a replica of it, or was still to delete one. The record that says so goes with the purge.
#[derive(Debug, Default)]
pub(super) struct Purges(BTreeMap<u64, BTreeSet<u32>>);

impl Purges {
    /// Nobody knows whether this purge was carried out. False if that is not remembered: too many are.
    pub fn doubt(&mut self, chunk: u64, holders: &[u32]) -> bool {
        if self.0.len() >= PURGES && !self.0.contains_key(&chunk) {
            return false;
        }
        self.0.entry(chunk).or_default().extend(holders);
        true
    }

    /// It is known now how the chunk's purges ended. Returns who had a replica when they were asked for.
    pub fn settle(&mut self, chunk: u64) -> BTreeSet<u32> {
        self.0.remove(&chunk).unwrap_or_default()
    }

    /// Chunks in doubt that are gone: `known` are all there are with ids in `[from, to)`; `to` 0 is the end.
    pub fn gone(&self, from: u64, to: u64, known: &BTreeSet<u64>) -> Vec<u64> {
        let last = if to == 0 { u64::MAX } else { to - 1 };
        if from > last {
            return Vec::new();
        }
        self.0.range(from..=last).map(|(chunk, _)| *chunk).filter(|chunk| !known.contains(chunk)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_of_all_purges_of_a_chunk_are_remembered_within_bounds() {
        let mut purges = Purges::default();
        assert!(purges.doubt(7, &[1, 2]) && purges.doubt(7, &[2, 3]));
        assert_eq!(purges.settle(7), [1, 2, 3].into());
        assert_eq!(purges.settle(7), BTreeSet::new());
        assert!((0..PURGES as u64).all(|chunk| purges.doubt(chunk, &[1])));
        assert!(purges.doubt(7, &[2]) && !purges.doubt(PURGES as u64, &[1]));
    }

    #[test]
    fn what_a_stretch_of_the_table_does_not_have_is_gone() {
        let mut purges = Purges::default();
        for chunk in [3, 5, 8, 9] {
            purges.doubt(chunk, &[1]);
        }
        let known = [5, 6].into();
        assert_eq!(purges.gone(4, 9, &known), [8]);
        assert_eq!(purges.gone(4, 0, &known), [8, 9]);
        assert_eq!(purges.gone(0, 4, &known), [3]);
        assert!(purges.gone(4, 4, &known).is_empty());
    }
}
