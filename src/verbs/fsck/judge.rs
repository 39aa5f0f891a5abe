//! What is wrong with chunks, and what it all comes to. Pure.

use std::collections::BTreeMap;

use cairn_client::fs::{ChunkInfo, ChunkState, Extent, Liveness};

/// How a chunk that files have bytes in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As many good replicas as wanted.
    Fine,
    /// More than wanted.
    Over,
    /// Fewer than wanted.
    Under,
    /// Nobody who is not dead has it.
    Missing,
    /// Those who have it have it damaged.
    Corrupt,
    /// There is no such chunk.
    Unknown,
}

impl State {
    /// Bytes in it cannot be read.
    pub fn is_lost(self) -> bool {
        self >= State::Missing
    }

    /// In capitals, as it stands before a chunk that hurts a file.
    pub fn word(self) -> &'static str {
        match self {
            State::Fine => "OK",
            State::Over => "OVER-REPLICATED",
            State::Under => "UNDER-REPLICATED",
            State::Missing => "MISSING",
            State::Corrupt => "CORRUPT",
            State::Unknown => "UNKNOWN",
        }
    }
}

/// Replicas that can be read, as far as is known.
pub fn good(chunk: &ChunkInfo) -> usize {
    chunk.replicas.iter().filter(|replica| !replica.bad && replica.liveness() != Liveness::Dead).count()
}

/// Replicas known to be damaged, on datanodes that are not dead.
pub fn bad(chunk: &ChunkInfo) -> usize {
    chunk.replicas.iter().filter(|replica| replica.bad && replica.liveness() != Liveness::Dead).count()
}

/// Judges a chunk that files have bytes in. While it is open, its writer looks after the number of its replicas.
pub fn judge(chunk: &ChunkInfo) -> State {
    let wanted = chunk.replication.max(1) as usize;
    match (good(chunk), bad(chunk)) {
        (0, 0) => State::Missing,
        (0, _) => State::Corrupt,
        _ if chunk.state() == ChunkState::Open => State::Fine,
        (good, _) if good < wanted => State::Under,
        (good, _) if good > wanted => State::Over,
        _ => State::Fine,
    }
}

/// Most ranges listed for one file and chunk.
const MOST_RANGES: usize = 100;

/// Where a chunk hurts a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hurt {
    pub chunk: u64,
    pub state: State,
    /// `[from, to)` in the file, in order, neighbours joined.
    pub ranges: Vec<(u64, u64)>,
    /// Bytes in all ranges, also those not listed.
    pub bytes: u64,
}

/// The lost chunks of one file, gathered page after page.
#[derive(Debug, Default)]
pub struct Hurts(BTreeMap<u64, Hurt>);

impl Hurts {
    /// An extent lies in a chunk that is lost.
    pub fn add(&mut self, extent: &Extent, state: State) {
        let (from, to) = (extent.file_offset, extent.file_offset.saturating_add(extent.length));
        let fresh = Hurt { chunk: extent.chunk, state, ranges: Vec::new(), bytes: 0 };
        let hurt = self.0.entry(extent.chunk).or_insert(fresh);
        hurt.bytes += extent.length;
        if let Some(last) = hurt.ranges.last_mut().filter(|last| last.1 == from) {
            last.1 = to;
        } else if hurt.ranges.len() < MOST_RANGES {
            hurt.ranges.push((from, to));
        }
    }

    /// By chunk.
    pub fn into_all(self) -> impl Iterator<Item = Hurt> {
        self.0.into_values()
    }
}

/// Ids of a page of [`Seen`].
const PAGE: u64 = 4096;

/// Which chunks were met: a bit for each, as many files share one.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<u64, Box<[u64; PAGE as usize / 64]>>);

impl Seen {
    /// True the first time.
    pub fn insert(&mut self, chunk: u64) -> bool {
        let page = self.0.entry(chunk / PAGE).or_insert_with(|| Box::new([0; PAGE as usize / 64]));
        let (word, bit) = ((chunk % PAGE / 64) as usize, 1 << (chunk % 64));
        let is_new = page[word] & bit == 0;
        page[word] |= bit;
        is_new
    }
}

/// Sums of a check.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub size: u64,
    pub directories: u64,
    pub files: u64,
    pub symlinks: u64,
    pub others: u64,
    pub chunks: u64,
    pub chunk_bytes: u64,
    pub open_chunks: u64,
    pub replicas: u64,
    pub minimally: u64,
    pub under: u64,
    pub over: u64,
    pub missing: u64,
    pub corrupt: u64,
    pub bad_replicas: u64,
    pub damaged_files: u64,
    pub unreadable: u64,
}

impl Tally {
    /// Counts a chunk that was not met before.
    pub fn chunk(&mut self, chunk: &ChunkInfo) {
        self.chunks += 1;
        self.chunk_bytes = self.chunk_bytes.saturating_add(chunk.length);
        self.open_chunks += u64::from(chunk.state() == ChunkState::Open);
        self.replicas += good(chunk) as u64;
        self.bad_replicas += bad(chunk) as u64;
        self.minimally += u64::from(good(chunk) > 0);
        match judge(chunk) {
            State::Fine => {}
            State::Over => self.over += 1,
            State::Under => self.under += 1,
            State::Missing => self.missing += 1,
            State::Corrupt => self.corrupt += 1,
            State::Unknown => {}
        }
    }
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Healthy,
    /// Everything can be read, but something is not as it should be.
    Degraded,
    /// Some bytes cannot be read.
    Corrupt,
}

impl Verdict {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Healthy => "HEALTHY",
            Verdict::Degraded => "DEGRADED",
            Verdict::Corrupt => "CORRUPT",
        }
    }

    /// What `cairn fsck` exits with.
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_client::fs::ReplicaInfo;

    fn chunk(replicas: &[(Liveness, bool)]) -> ChunkInfo {
        let replicas = replicas.iter().zip(1..).map(|(&(liveness, bad), node)| ReplicaInfo {
            node,
            liveness: liveness.into(),
            bad,
            ..Default::default()
        });
        ChunkInfo {
            chunk: 1,
            state: ChunkState::Sealed.into(),
            replication: 3,
            replicas: replicas.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_chunk_is_as_good_as_its_good_replicas() {
        use Liveness::{Dead, Live, Suspect, Unknown};
        let state = |replicas: &[(Liveness, bool)]| judge(&chunk(replicas));
        assert_eq!(state(&[(Live, false), (Suspect, false), (Unknown, false)]), State::Fine);
        assert_eq!(state(&[(Live, false), (Live, true), (Live, false)]), State::Under);
        assert_eq!(state(&[(Live, false); 4]), State::Over);
        assert_eq!(state(&[(Dead, false), (Dead, false)]), State::Missing);
        assert_eq!(state(&[(Live, true), (Dead, false)]), State::Corrupt);
        assert_eq!(state(&[]), State::Missing);
        let open = ChunkInfo { state: ChunkState::Open.into(), ..chunk(&[(Live, false)]) };
        assert_eq!(judge(&open), State::Fine);
        let lost = ChunkInfo { state: ChunkState::Open.into(), ..chunk(&[(Dead, false)]) };
        assert_eq!(judge(&lost), State::Missing);
    }

    #[test]
    fn hurts_join_neighbours_and_keep_chunks_apart() {
        let extent = |file_offset, chunk, length| Extent { file_offset, chunk, chunk_offset: 0, length };
        let mut hurts = Hurts::default();
        hurts.add(&extent(0, 7, 10), State::Missing);
        hurts.add(&extent(10, 7, 5), State::Missing);
        hurts.add(&extent(15, 8, 5), State::Unknown);
        hurts.add(&extent(20, 7, 5), State::Missing);
        let all: Vec<Hurt> = hurts.into_all().collect();
        assert_eq!((all[0].ranges.as_slice(), all[0].bytes), ([(0, 15), (20, 25)].as_slice(), 20));
        assert_eq!((all[1].chunk, all[1].ranges.as_slice()), (8, [(15, 20)].as_slice()));
        let mut many = Hurts::default();
        (0..1000).for_each(|n| many.add(&extent(n * 10, 7, 5), State::Missing));
        let all: Vec<Hurt> = many.into_all().collect();
        assert_eq!((all[0].ranges.len(), all[0].bytes), (MOST_RANGES, 5000));
    }

    #[test]
    fn each_chunk_counts_once() {
        let mut seen = Seen::default();
        for id in [0, 1, 63, 64, 4095, 4096, u64::MAX] {
            assert!(seen.insert(id) && !seen.insert(id), "{id}");
        }
    }
}
