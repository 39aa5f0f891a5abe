//! What was written to one file and is not committed yet, in file order.
//!
//! A span is *buffered* (bytes in memory), then *flying* (on its way into a chunk, still in memory), then
//! *placed* (in a chunk, acknowledged, no longer in memory), and goes when its commit is done. A later write
//! cuts whatever it overlaps, in any state, so reading and committing see the last write only.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use cairn_proto::fs;

use crate::write::Place;

/// Where the bytes of a span are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// In memory only.
    Buffered(Bytes),
    /// In memory, and from byte `at` on in the append `job`.
    Flying { job: u64, at: u64, data: Bytes },
    /// In a chunk; `committing` while a commit that names it is under way.
    Placed { chunk: u64, offset: u64, committing: bool },
}

#[derive(Clone, Debug)]
struct Span {
    length: u64,
    content: Content,
    /// Bytes of memory that buffered data keeps: more than its length when it was cut out of something larger.
    held: u64,
}

/// One append made of buffered spans, and where they lie in the file.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) data: Bytes,
    /// `(file offset, length)`, in the order of `data`.
    pub(crate) ranges: Vec<(u64, u64)>,
}

/// A stretch of a file as a reader sees it; without content, the committed layout shows through.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) content: Option<Content>,
}

/// The uncommitted writes of one file.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    spans: BTreeMap<u64, Span>,
    buffered: u64,
    bytes: u64,
    next_job: u64,
}

impl Overlay {
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Spans, of any state.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Bytes not committed yet.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that no append has taken yet.
    pub(crate) fn buffered(&self) -> u64 {
        self.buffered
    }

    /// Where the last span ends.
    pub(crate) fn end(&self) -> u64 {
        self.spans.last_key_value().map_or(0, |(start, span)| start + span.length)
    }

    /// Puts `data` at `offset`, over whatever is there. Returns how many buffered bytes it replaced.
    pub(crate) fn write(&mut self, offset: u64, data: Bytes) -> u64 {
        let length = data.len() as u64;
        if length == 0 {
            return 0;
        }
        let before = self.buffered;
        self.cut(offset, offset + length);
        let replaced = before - self.buffered;
        self.put(offset, Span { length, content: Content::Buffered(data), held: length });
        replaced
    }

    /// Forgets everything. Returns how many bytes were buffered.
    pub(crate) fn clear(&mut self) -> u64 {
        self.spans.clear();
        self.bytes = 0;
        std::mem::take(&mut self.buffered)
    }

    /// Takes everything buffered as appends of at most `most` bytes each. The spans become flying.
    pub(crate) fn take_off(&mut self, most: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        let mut from = 0;
        while self.buffered > 0 {
            let mut ranges = Vec::new();
            let mut parts = Vec::new();
            let mut total = 0;
            for (&start, span) in self.spans.range(from..) {
                let Content::Buffered(data) = &span.content else { continue };
                if total + data.len() > most && total > 0 {
                    break;
                }
                total += data.len();
                ranges.push((start, span.length));
                parts.push(data.clone());
            }
            let Some(&(last, length)) = ranges.last() else { break };
            from = last + length;
            let data = joined(parts, total);
            let id = self.next_job;
            self.next_job += 1;
            let mut at = 0;
            for &(start, length) in &ranges {
                if let Some(span) = self.spans.get_mut(&start) {
                    let data = data.slice(at as usize..(at + length) as usize);
                    span.content = Content::Flying { job: id, at, data };
                }
                self.buffered -= length;
                at += length;
            }
            jobs.push(Job { id, data, ranges });
        }
        jobs
    }

    /// The number the next append will have.
    pub(crate) fn next_job(&self) -> u64 {
        self.next_job
    }

    /// The append `job` came to lie at `places`.
    pub(crate) fn placed(&mut self, job: u64, ranges: &[(u64, u64)], places: &[Place]) {
        for (start, span) in self.remove_job(job, ranges) {
            let Content::Flying { at, .. } = span.content else { continue };
            let mut done = 0;
            for (from, place) in starts(places) {
                let (low, high) = (from.max(at), (from + place.length).min(at + span.length));
                if low >= high {
                    continue;
                }
                let content = Content::Placed {
                    chunk: place.chunk,
                    offset: place.offset + (low - from),
                    committing: false,
                };
                self.put(start + done, Span { length: high - low, content, held: 0 });
                done += high - low;
            }
        }
    }

    /// The append `job` was given up: its bytes are lost.
    pub(crate) fn lost(&mut self, job: u64, ranges: &[(u64, u64)]) {
        self.remove_job(job, ranges);
    }

    /// The extents of what is placed, merged, at most `most`; they are marked until the commit is over.
    pub(crate) fn start_commit(&mut self, most: usize) -> Vec<fs::Extent> {
        let mut extents: Vec<fs::Extent> = Vec::new();
        for (&start, span) in &mut self.spans {
            let Content::Placed { chunk, offset, committing } = &mut span.content else { continue };
            let follows = extents.last().is_some_and(|last| {
                last.chunk == *chunk
                    && last.chunk_offset + last.length == *offset
                    && last.file_offset + last.length == start
            });
            let full = extents.len() >= most;
            match extents.last_mut() {
                Some(last) if follows => last.length += span.length,
                _ if full => break,
                _ => extents.push(fs::Extent {
                    file_offset: start,
                    chunk: *chunk,
                    chunk_offset: *offset,
                    length: span.length,
                }),
            }
            *committing = true;
        }
        extents
    }

    /// The commit is over. Done: what it named, and nothing wrote over since, is forgotten. Otherwise it stays
    /// for another attempt.
    pub(crate) fn end_commit(&mut self, done: bool) {
        let mut gone = 0;
        self.spans.retain(|_, span| match &mut span.content {
            Content::Placed { committing, .. } if *committing => {
                *committing = false;
                if done {
                    gone += span.length;
                }
                !done
            }
            _ => true,
        });
        self.bytes -= gone;
    }

    /// `[start, end)` as a reader sees it, without gaps.
    pub(crate) fn view(&self, start: u64, end: u64) -> Vec<Stretch> {
        let mut view = Vec::new();
        let mut at = start;
        let first = self.spans.range(..start).next_back();
        let inside = self.spans.range(start..end.max(start));
        for (&from, span) in first.into_iter().chain(inside) {
            let (low, high) = (from.max(start), (from + span.length).min(end));
            if low >= high {
                continue;
            }
            if low > at {
                view.push(Stretch { offset: at, length: low - at, content: None });
            }
            let content = Some(span.content.part(low - from, high - low));
            view.push(Stretch { offset: low, length: high - low, content });
            at = high;
        }
        if at < end {
            view.push(Stretch { offset: at, length: end - at, content: None });
        }
        view
    }

    fn put(&mut self, start: u64, span: Span) {
        self.bytes += span.length;
        if let Content::Buffered(_) = span.content {
            self.buffered += span.length;
        }
        self.spans.insert(start, span);
    }

    fn take(&mut self, start: u64) -> Option<Span> {
        let span = self.spans.remove(&start)?;
        self.bytes -= span.length;
        if let Content::Buffered(_) = span.content {
            self.buffered -= span.length;
        }
        Some(span)
    }

    /// Takes `[start, end)` out of all spans.
    fn cut(&mut self, start: u64, end: u64) {
        let first = self.spans.range(..start).next_back().map(|(&from, _)| from);
        let touched: Vec<u64> =
            first.into_iter().chain(self.spans.range(start..end).map(|(&from, _)| from)).collect();
        for from in touched {
            let Some(length) = self.spans.get(&from).map(|span| span.length) else { continue };
            let until = from + length;
            if until <= start {
                continue;
            }
            let Some(span) = self.take(from) else { continue };
            if from < start {
                self.put(from, span.part(0, start - from));
            }
            if until > end {
                self.put(end, span.part(end - from, until - end));
            }
        }
    }

    /// Takes what is left of an append out; later writes may have cut and split it.
    fn remove_job(&mut self, job: u64, ranges: &[(u64, u64)]) -> Vec<(u64, Span)> {
        let mut found = Vec::new();
        for &(start, length) in ranges {
            let of_it =
                |span: &Span| matches!(&span.content, Content::Flying { job: other, .. } if *other == job);
            let starts: Vec<u64> = self
                .spans
                .range(start..start + length)
                .filter(|(_, span)| of_it(span))
                .map(|(&from, _)| from)
                .collect();
            found.extend(starts.into_iter().filter_map(|from| self.take(from).map(|span| (from, span))));
        }
        found
    }
}

impl Content {
    fn part(&self, from: u64, length: u64) -> Content {
        let slice = |data: &Bytes| data.slice(from as usize..(from + length) as usize);
        match self {
            Content::Buffered(data) => Content::Buffered(slice(data)),
            Content::Flying { job, at, data } => {
                Content::Flying { job: *job, at: at + from, data: slice(data) }
            }
            Content::Placed { chunk, offset, committing } => {
                Content::Placed { chunk: *chunk, offset: offset + from, committing: *committing }
            }
        }
    }
}

impl Span {
    fn part(&self, from: u64, length: u64) -> Span {
        match self.content.part(from, length) {
            // What is left of a large write must not keep all of it in memory.
            Content::Buffered(data) if length * 2 < self.held => {
                Span { length, content: Content::Buffered(Bytes::copy_from_slice(&data)), held: length }
            }
            content => Span { length, content, held: self.held },
        }
    }
}

/// Each place with where it begins in its append.
fn starts(places: &[Place]) -> impl Iterator<Item = (u64, &Place)> {
    places.iter().scan(0, |at, place| {
        let from = *at;
        *at += place.length;
        Some((from, place))
    })
}

fn joined(mut parts: Vec<Bytes>, total: usize) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut data = BytesMut::with_capacity(total);
    parts.iter().for_each(|part| data.extend_from_slice(part));
    data.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 400;

    #[derive(Clone, Debug)]
    enum Act {
        Write(u64, u64),
        TakeOff(usize),
        Land(usize, u64),
        StartCommit(usize),
        EndCommit(bool),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0..SIZE - 60, 1..60u64).prop_map(|(at, length)| Act::Write(at, length)),
            1 => (1..80usize).prop_map(Act::TakeOff),
            2 => (0..8usize, 1..200u64).prop_map(|(which, cut)| Act::Land(which, cut)),
            1 => (1..6usize).prop_map(Act::StartCommit),
            1 => any::<bool>().prop_map(Act::EndCommit),
        ];
        prop::collection::vec(act, 1..80)
    }

    /// A file, its chunk store, and the overlay between them.
    #[derive(Default)]
    struct World {
        overlay: Overlay,
        chunks: BTreeMap<u64, Vec<u8>>,
        committed: Vec<u8>,
        model: Vec<u8>,
        flying: Vec<Job>,
        committing: Option<Vec<fs::Extent>>,
        stamp: u8,
    }

    impl World {
        fn new() -> World {
            World { committed: vec![0; SIZE as usize], model: vec![0; SIZE as usize], ..World::default() }
        }

        fn act(&mut self, act: Act) {
            match act {
                Act::Write(at, length) => {
                    self.stamp = self.stamp.wrapping_add(1).max(1);
                    let data = vec![self.stamp; length as usize];
                    self.model[at as usize..(at + length) as usize].copy_from_slice(&data);
                    self.overlay.write(at, data.into());
                }
                Act::TakeOff(most) => self.flying.extend(self.overlay.take_off(most)),
                Act::Land(which, cut) if !self.flying.is_empty() => {
                    let job = self.flying.remove(which % self.flying.len());
                    self.land(job, cut);
                }
                Act::Land(..) => {}
                Act::StartCommit(most) => {
                    if self.committing.is_none() {
                        self.committing = Some(self.overlay.start_commit(most));
                    }
                }
                Act::EndCommit(done) => self.end_commit(done),
            }
        }

        /// An append lies in one chunk, or is split over two.
        fn land(&mut self, job: Job, cut: u64) {
            let cut = (cut as usize).min(job.data.len());
            let mut places = Vec::new();
            for part in [job.data.slice(..cut), job.data.slice(cut..)] {
                if part.is_empty() {
                    continue;
                }
                let chunk = self.chunks.len() as u64 % 3 + if places.is_empty() { 0 } else { 3 };
                let bytes = self.chunks.entry(chunk).or_default();
                places.push(Place { chunk, offset: bytes.len() as u64, length: part.len() as u64 });
                bytes.extend_from_slice(&part);
            }
            self.overlay.placed(job.id, &job.ranges, &places);
        }

        fn end_commit(&mut self, done: bool) {
            let Some(extents) = self.committing.take() else { return };
            if done {
                for extent in extents {
                    let from = extent.chunk_offset as usize;
                    let bytes = &self.chunks[&extent.chunk][from..from + extent.length as usize];
                    let at = extent.file_offset as usize;
                    self.committed[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            self.overlay.end_commit(done);
        }

        fn read(&self) -> Vec<u8> {
            let mut seen = Vec::new();
            for stretch in self.overlay.view(0, SIZE) {
                assert_eq!(stretch.offset, seen.len() as u64);
                match stretch.content {
                    None => {
                        let from = stretch.offset as usize;
                        seen.extend_from_slice(&self.committed[from..from + stretch.length as usize]);
                    }
                    Some(Content::Buffered(data) | Content::Flying { data, .. }) => {
                        assert_eq!(data.len() as u64, stretch.length);
                        seen.extend_from_slice(&data);
                    }
                    Some(Content::Placed { chunk, offset, .. }) => {
                        let from = offset as usize;
                        seen.extend_from_slice(&self.chunks[&chunk][from..from + stretch.length as usize]);
                    }
                }
            }
            seen
        }
    }

    proptest! {
        #[test]
        fn a_reader_always_sees_the_last_write(acts in acts()) {
            let mut world = World::new();
            for act in acts {
                world.act(act);
                prop_assert_eq!(world.read(), world.model.clone());
                let bytes: u64 = world.overlay.spans.values().map(|span| span.length).sum();
                prop_assert_eq!(bytes, world.overlay.bytes());
            }
            // Everything lands and is committed in the end.
            world.act(Act::EndCommit(false));
            world.act(Act::TakeOff(64));
            while !world.flying.is_empty() {
                world.act(Act::Land(0, 7));
            }
            while !world.overlay.is_empty() {
                world.act(Act::StartCommit(3));
                world.act(Act::EndCommit(true));
            }
            prop_assert_eq!(&world.committed, &world.model);
            prop_assert_eq!((world.overlay.bytes(), world.overlay.buffered()), (0, 0));
        }
    }

    #[test]
    fn what_is_left_of_large_writes_does_not_keep_them_in_memory() {
        let mut overlay = Overlay::default();
        for i in 0..1000 {
            overlay.write(i, vec![i as u8; 10_000].into());
        }
        let held: u64 = overlay.spans.values().map(|span| span.held).sum();
        assert_eq!(overlay.buffered(), 10_999);
        assert!(held <= 2 * overlay.buffered(), "{held} bytes are held");
        let buffered = |span: &Span| matches!(&span.content, Content::Buffered(data) if data[0] == 7);
        assert!(overlay.spans.get(&7).is_some_and(buffered));
    }

    #[test]
    fn a_sequential_writer_commits_one_extent() {
        let mut overlay = Overlay::default();
        for i in 0..16 {
            overlay.write(i * 100, vec![1; 100].into());
        }
        let mut offset = 5000;
        for job in overlay.take_off(400) {
            let place = Place { chunk: 9, offset, length: job.data.len() as u64 };
            offset += place.length;
            overlay.placed(job.id, &job.ranges, &[place]);
        }
        let extents = overlay.start_commit(100);
        assert_eq!(extents, vec![fs::Extent { file_offset: 0, chunk: 9, chunk_offset: 5000, length: 1600 }]);
    }
}
