//! A map of all chunks by how many good replicas they have, coarse enough to be drawn.
//!
//! The ids that were ever given away are cut into at most [`STRETCHES`] stretches of equal width, a power of two. Each
//! is counted anew as the scan of all chunks comes by, so the map costs no reading of its own and takes the same
//! memory for ten chunks as for a hundred million; it is as old as the scan's last pass.

use cairn_metadata::plan::problems::Problem;
use cairn_metadata::records;
use cairn_proto::fs::ChunkState;
use cairn_proto::store::Chunk;

/// Stretches of the map, at most.
pub const STRETCHES: usize = 512;

/// How many chunks of a stretch are in which state. Chunks that no file has bytes in are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// No good replica in reach.
    pub missing: u64,
    /// One good replica where more are wanted.
    pub last: u64,
    /// More than one, but too few.
    pub few: u64,
    /// As many as are wanted.
    pub whole: u64,
    /// More than are wanted.
    pub many: u64,
    /// Being written.
    pub open: u64,
}

/// The map.
#[derive(Debug, Default)]
pub(super) struct ChunkMap {
    /// Ids of one stretch, as a power of two.
    bits: u32,
    stretches: Vec<Tally>,
    /// The stretch that is being counted, and what was counted so far.
    at: usize,
    counted: Tally,
}

impl ChunkMap {
    /// A pass over the chunks begins; ids from `next_chunk` on were never given away.
    pub fn begin(&mut self, next_chunk: u64) {
        let last = next_chunk.saturating_sub(1);
        while (last >> self.bits) >= STRETCHES as u64 {
            self.bits += 1;
            self.stretches = self
                .stretches
                .chunks(2)
                .map(|pair| pair.iter().copied().fold(Tally::default(), sum))
                .collect();
        }
        let used = (last >> self.bits) as usize + 1;
        self.stretches.resize(used, Tally::default());
        (self.at, self.counted) = (0, Tally::default());
    }

    /// The next chunk, in order of ids, with what is wrong with it.
    pub fn count(&mut self, id: u64, chunk: &Chunk, problem: Option<&Problem>) {
        self.reach((id >> self.bits) as usize);
        let tally = &mut self.counted;
        match (chunk.state(), problem.map(|problem| &problem.verdict)) {
            (ChunkState::Open, _) => tally.open += 1,
            _ if records::is_dead(chunk) => {}
            (_, Some(verdict)) if verdict.missing => tally.missing += 1,
            (_, Some(verdict)) if verdict.lack > 0 && verdict.survivors <= 1 => tally.last += 1,
            (_, Some(verdict)) if verdict.lack > 0 => tally.few += 1,
            (_, Some(verdict)) if verdict.surplus.is_some() => tally.many += 1,
            _ => tally.whole += 1,
        }
    }

    /// All chunks with ids below `next` have been counted; 0: all there are.
    pub fn advance(&mut self, next: u64) {
        match next {
            0 => self.reach(self.stretches.len()),
            next => self.reach((next >> self.bits) as usize),
        }
    }

    /// Every stretch, and how many ids are in one.
    pub fn read(&self) -> (Vec<Tally>, u64) {
        (self.stretches.clone(), 1 << self.bits)
    }

    /// Everything before this stretch is counted.
    fn reach(&mut self, stretch: usize) {
        while self.at < stretch.min(self.stretches.len()) {
            self.stretches[self.at] = std::mem::take(&mut self.counted);
            self.at += 1;
        }
    }
}

fn sum(one: Tally, other: Tally) -> Tally {
    Tally {
        missing: one.missing + other.missing,
        last: one.last + other.last,
        few: one.few + other.few,
        whole: one.whole + other.whole,
        many: one.many + other.many,
        open: one.open + other.open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(map: &mut ChunkMap, ids: impl Iterator<Item = u64>, next: u64) {
        let chunk = Chunk { state: ChunkState::Sealed.into(), live_bytes: 1, ..Chunk::default() };
        map.begin(next);
        ids.for_each(|id| map.count(id, &chunk, None));
        map.advance(0);
    }

    #[test]
    fn every_chunk_is_in_its_stretch_however_many_there_are() {
        let mut map = ChunkMap::default();
        pass(&mut map, 1..10, 10);
        let (stretches, width) = map.read();
        assert_eq!((stretches.len(), width), (10, 1));
        assert!(stretches[1..].iter().all(|tally| tally.whole == 1) && stretches[0] == Tally::default());
        // The same chunks, after many more ids were given away: before they are counted again, and after.
        map.begin(1 << 20);
        assert_eq!(map.read().0[0].whole, 9);
        pass(&mut map, 1..10, 1 << 20);
        let (stretches, width) = map.read();
        assert_eq!((stretches.len(), width), (STRETCHES, 2048));
        assert_eq!(stretches[0].whole, 9);
        pass(&mut map, std::iter::empty(), 1 << 20);
        assert!(map.read().0.iter().all(|tally| *tally == Tally::default()));
    }

    #[test]
    fn a_pass_in_parts_counts_the_same() {
        let mut map = ChunkMap::default();
        let chunk = Chunk { state: ChunkState::Open.into(), ..Chunk::default() };
        map.begin(2000);
        for id in 0..1000 {
            map.count(id, &chunk, None);
        }
        map.advance(1000);
        for id in 1000..2000 {
            map.count(id, &chunk, None);
        }
        map.advance(0);
        let (stretches, width) = map.read();
        assert_eq!(width, 4);
        assert!(stretches.iter().all(|tally| tally.open == 4), "{stretches:?}");
    }
}
