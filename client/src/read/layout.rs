//! What is known of where a file's committed bytes lie.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cairn_proto::fs;

/// Bytes of a file whose layout is fetched at once.
pub(crate) const WINDOW: u64 = 256 << 20;
/// Windows kept for one file.
const MAX_WINDOWS: usize = 16;

/// Memory of a window beside what it lists, about, in bytes.
const WINDOW_BYTES: usize = 256;
/// Memory of a replica's names and addresses, about, in bytes.
const REPLICA_BYTES: usize = 256;

/// Windows of one version of a file's layout.
#[derive(Debug, Default)]
pub(crate) struct LayoutCache {
    version: u64,
    windows: BTreeMap<u64, Window>,
    /// Whether it was looked at since the last [`LayoutCache::sweep`].
    used: AtomicBool,
    /// Memory of all caches that share it, about, in bytes.
    memory: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Window {
    end: u64,
    extents: Vec<fs::Extent>,
    chunks: BTreeMap<u64, Arc<[fs::ReplicaInfo]>>,
}

/// A stretch of committed content: a range of a chunk, or a hole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Chunk, offset in it, replicas; none for a hole.
    pub(crate) at: Option<(u64, u64, Arc<[fs::ReplicaInfo]>)>,
}

impl LayoutCache {
    /// One of the caches that count what they take in `memory`.
    pub(crate) fn new(memory: Arc<AtomicUsize>) -> LayoutCache {
        LayoutCache { version: 0, windows: BTreeMap::new(), used: AtomicBool::new(false), memory }
    }

    /// Forgets everything if it was not used since the last sweep, or in any case.
    pub(crate) fn sweep(&mut self, in_any_case: bool) {
        if !self.used.swap(false, Ordering::Relaxed) || in_any_case {
            self.clear();
        }
    }

    /// Forgets what is not of `version`.
    pub(crate) fn keep(&mut self, version: u64) {
        if self.version != version {
            self.clear();
            self.version = version;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        let freed: usize = self.windows.values().map(Window::bytes).sum();
        self.memory.fetch_sub(freed, Ordering::Relaxed);
        self.windows.clear();
    }

    /// Takes in the answer to a layout of `[start, end)`. An older version than the one known is dropped.
    pub(crate) fn learn(&mut self, start: u64, end: u64, layout: fs::Layout) {
        let version = layout.attr.as_ref().map_or(0, |attr| attr.version);
        if version < self.version {
            return;
        }
        self.keep(version);
        let covered = match layout.extents.last() {
            Some(last) if !layout.end => end.min(last.file_offset + last.length),
            _ => end,
        };
        if covered <= start {
            return;
        }
        while self.windows.len() >= MAX_WINDOWS {
            // The farthest from here is the least likely to be read next.
            let first = self.windows.keys().next().copied();
            let last = self.windows.keys().next_back().copied();
            let (Some(first), Some(last)) = (first, last) else { break };
            let far = if start.abs_diff(first) > start.abs_diff(last) { first } else { last };
            self.remove(far);
        }
        let chunks = layout.chunks.into_iter().map(|info| (info.chunk, info.replicas.into())).collect();
        self.remove(start);
        let window = Window { end: covered, extents: layout.extents, chunks };
        self.memory.fetch_add(window.bytes(), Ordering::Relaxed);
        self.windows.insert(start, window);
    }

    fn remove(&mut self, start: u64) {
        if let Some(window) = self.windows.remove(&start) {
            self.memory.fetch_sub(window.bytes(), Ordering::Relaxed);
        }
    }

    /// `[start, end)` as committed, or from where on it is not known.
    pub(crate) fn view(&self, start: u64, end: u64) -> Result<Vec<Piece>, u64> {
        self.used.store(true, Ordering::Relaxed);
        let mut pieces = Vec::new();
        let mut at = start;
        while at < end {
            let before = self.windows.range(..=at).next_back();
            let Some((_, window)) = before.filter(|(_, window)| window.end > at) else { return Err(at) };
            let until = end.min(window.end);
            window.view(at, until, &mut pieces);
            at = until;
        }
        Ok(pieces)
    }

    /// The chunks named, for tests and logs.
    #[cfg(test)]
    fn chunks(&self) -> std::collections::BTreeSet<u64> {
        self.windows.values().flat_map(|window| window.chunks.keys().copied()).collect()
    }
}

impl Drop for LayoutCache {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Window {
    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        let replicas: usize = self.chunks.values().map(|replicas| replicas.len()).sum();
        WINDOW_BYTES + self.extents.len() * size_of::<fs::Extent>() + replicas * REPLICA_BYTES
    }

    fn view(&self, start: u64, end: u64, pieces: &mut Vec<Piece>) {
        let mut at = start;
        let first = self.extents.partition_point(|extent| extent.file_offset + extent.length <= start);
        for extent in &self.extents[first..] {
            let (low, high) = (extent.file_offset.max(at), (extent.file_offset + extent.length).min(end));
            if low >= high {
                break;
            }
            if low > at {
                pieces.push(Piece { offset: at, length: low - at, at: None });
            }
            let replicas = self.chunks.get(&extent.chunk).cloned().unwrap_or_else(|| Arc::from([]));
            let within = extent.chunk_offset + (low - extent.file_offset);
            pieces.push(Piece {
                offset: low,
                length: high - low,
                at: Some((extent.chunk, within, replicas)),
            });
            at = high;
        }
        if at < end {
            pieces.push(Piece { offset: at, length: end - at, at: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(version: u64, end: bool, extents: &[(u64, u64, u64)]) -> fs::Layout {
        let extents: Vec<_> = extents
            .iter()
            .map(|&(file_offset, chunk, length)| fs::Extent {
                file_offset,
                chunk,
                chunk_offset: 1000,
                length,
            })
            .collect();
        let chunks = extents.iter().map(|e| fs::ChunkInfo { chunk: e.chunk, ..Default::default() }).collect();
        let attr = Some(fs::Attr { version, ..Default::default() });
        fs::Layout { attr, extents, chunks, end }
    }

    /// Offset, length, and chunk with offset in it.
    type Shape = (u64, u64, Option<(u64, u64)>);

    fn shape(pieces: Vec<Piece>) -> Vec<Shape> {
        pieces.into_iter().map(|p| (p.offset, p.length, p.at.map(|(chunk, at, _)| (chunk, at)))).collect()
    }

    #[test]
    fn holes_and_partial_extents() {
        let mut cache = LayoutCache::default();
        cache.learn(0, 1000, layout(1, true, &[(100, 7, 50), (200, 8, 100)]));
        assert_eq!(
            shape(cache.view(120, 400).unwrap()),
            vec![(120, 30, Some((7, 1020))), (150, 50, None), (200, 100, Some((8, 1000))), (300, 100, None)]
        );
        assert!(cache.view(900, 1001).is_err());
    }

    #[test]
    fn a_page_that_ends_early_covers_up_to_its_last_extent() {
        let mut cache = LayoutCache::default();
        cache.learn(0, 1000, layout(1, false, &[(0, 7, 50), (50, 8, 100)]));
        assert!(cache.view(0, 150).is_ok());
        assert_eq!(cache.view(0, 151), Err(150), "the next page begins there");
        cache.learn(150, 1000, layout(1, true, &[(150, 9, 10)]));
        assert_eq!(cache.view(0, 1000).unwrap().len(), 4);
    }

    #[test]
    fn what_is_not_used_goes_first() {
        let memory = Arc::new(AtomicUsize::new(0));
        let mut one = LayoutCache::new(Arc::clone(&memory));
        let mut two = LayoutCache::new(Arc::clone(&memory));
        one.learn(0, 100, layout(1, true, &[(0, 7, 100)]));
        one.learn(0, 100, layout(1, true, &[(0, 7, 50), (50, 8, 50)]));
        let first = memory.load(Ordering::Relaxed);
        two.learn(0, 100, layout(1, true, &[(0, 7, 100)]));
        assert!(memory.load(Ordering::Relaxed) > first);
        assert!(one.view(0, 100).is_ok());
        [&mut one, &mut two].into_iter().for_each(|cache| cache.sweep(false));
        assert_eq!(memory.load(Ordering::Relaxed), first, "the one that was used stays");
        one.sweep(true);
        assert_eq!(memory.load(Ordering::Relaxed), 0);
        two.learn(0, 100, layout(1, true, &[(0, 7, 100)]));
        drop(two);
        assert_eq!(memory.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn versions_do_not_mix() {
        let mut cache = LayoutCache::default();
        cache.learn(0, 100, layout(2, true, &[(0, 7, 100)]));
        cache.learn(100, 200, layout(1, true, &[(100, 6, 100)]));
        assert!(cache.view(100, 200).is_err(), "an older answer must not be mixed in");
        cache.learn(100, 200, layout(3, true, &[(100, 8, 100)]));
        assert!(cache.view(0, 100).is_err());
        assert_eq!(cache.chunks(), std::collections::BTreeSet::from([8]));
    }
}
