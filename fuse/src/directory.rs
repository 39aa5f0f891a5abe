//! One open directory: which names the kernel's offsets stand for.
//!
//! The namenode lists by name ("entries after this one"); the kernel asks by number. An offset here counts entries:
//! 0 is before `.`, 1 before `..`, and `2 + k` before the k-th entry. The current page answers the usual case, the
//! kernel going back a little because the reader's buffer was full. The names of earlier pages are kept for a while,
//! so going further back is exact too; beyond that every thousandth is, and entries are counted from there.
//! Whatever is created or removed meanwhile, an entry that stays is listed exactly once by one pass forward.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use cairn_proto::fs::{Attr, DirectoryEntry, Listing};

/// Offsets before the first entry: `.` and `..`.
pub(crate) const DOTS: u64 = 2;
/// Names of earlier pages kept for going back.
const TRAIL: usize = 8192;
/// Of the names that fall out of the trail, one in so many is kept.
const MARK_EVERY: u64 = 1024;

/// A page that must be listed before an offset can be served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// List the names after this one; empty: from the start.
    pub after: Bytes,
    /// Number of the first entry that comes.
    pub start: u64,
}

/// When a page was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub at: Instant,
    /// What had been changed through this mount by then.
    pub changes: u64,
}

/// The state of one open directory. It never talks to anybody.
#[derive(Default)]
pub(crate) struct DirectoryStream {
    /// Of the current page.
    pub asked: Option<Asked>,
    attr: Option<Attr>,
    loaded: bool,
    page: Vec<DirectoryEntry>,
    page_start: u64,
    ended: bool,
    trail: VecDeque<Bytes>,
    marks: Vec<(u64, Bytes)>,
}

impl DirectoryStream {
    /// What has to be listed to serve `offset`; nothing if it can be served.
    ///
    /// To be asked again after [`DirectoryStream::supply`]: going far back takes several pages.
    pub(crate) fn missing(&self, offset: u64) -> Option<Fetch> {
        let entry = offset.saturating_sub(DOTS);
        if !self.loaded {
            return Some(Fetch { after: Bytes::new(), start: 0 });
        }
        let page_end = self.page_start + self.page.len() as u64;
        if entry >= page_end {
            return match self.page.last() {
                _ if self.ended => None,
                Some(last) => Some(Fetch { after: last.name.clone(), start: page_end }),
                None => None,
            };
        }
        if entry >= self.page_start {
            return None;
        }
        Some(self.back_to(entry))
    }

    fn back_to(&self, entry: u64) -> Fetch {
        let from_start = Fetch { after: Bytes::new(), start: 0 };
        let Some(before) = entry.checked_sub(1) else { return from_start };
        let trail_start = self.page_start - self.trail.len() as u64;
        if before >= trail_start
            && let Some(name) = self.trail.get((before - trail_start) as usize)
        {
            return Fetch { after: name.clone(), start: entry };
        }
        let older = self.marks.partition_point(|(number, _)| *number <= before);
        match older.checked_sub(1).and_then(|at| self.marks.get(at)) {
            Some((number, name)) => Fetch { after: name.clone(), start: number + 1 },
            None => from_start,
        }
    }

    /// Forgets everything, as `rewinddir` demands: the next page is listed anew.
    pub(crate) fn rewind(&mut self) {
        *self = DirectoryStream::default();
    }

    /// Takes in the page that `fetch` asked for.
    pub(crate) fn supply(&mut self, fetch: &Fetch, listing: Listing) {
        let page_end = self.page_start + self.page.len() as u64;
        if self.loaded && fetch.start == page_end {
            self.trail.extend(self.page.drain(..).map(|entry| entry.name));
        } else {
            let trail_start = self.page_start - self.trail.len() as u64;
            self.trail.truncate(fetch.start.saturating_sub(trail_start) as usize);
            if fetch.start < trail_start {
                self.trail.clear();
            }
            self.marks.retain(|(number, _)| *number < fetch.start);
        }
        self.loaded = true;
        // A page without entries would be asked for again for ever.
        self.ended = listing.end || listing.entries.is_empty();
        self.page = listing.entries;
        self.page_start = fetch.start;
        self.attr = listing.directory.or(self.attr.take());
        self.shorten_trail();
    }

    fn shorten_trail(&mut self) {
        while self.trail.len() > TRAIL {
            let number = self.page_start - self.trail.len() as u64;
            let Some(name) = self.trail.pop_front() else { return };
            if number % MARK_EVERY == MARK_EVERY - 1 {
                self.marks.push((number, name));
            }
        }
    }

    /// The entries of the current page from `offset` on, each with the offset that follows it.
    pub(crate) fn entries(&self, offset: u64) -> impl Iterator<Item = (u64, &DirectoryEntry)> {
        let entry = offset.saturating_sub(DOTS);
        let skip = entry.saturating_sub(self.page_start).min(self.page.len() as u64) as usize;
        let first = self.page_start + skip as u64 + DOTS + 1;
        self.page[skip..].iter().enumerate().map(move |(at, entry)| (first + at as u64, entry))
    }

    /// The directory's own attributes, as of the latest page.
    pub(crate) fn attr(&self) -> Option<&Attr> {
        self.attr.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A namenode's directory, listed in pages.
    struct Names(BTreeSet<Bytes>, usize);

    impl Names {
        fn of(count: u64, page: usize) -> Names {
            Names((0..count).map(name).collect(), page)
        }

        fn list(&self, after: &Bytes) -> Listing {
            let rest: Vec<_> = self.0.iter().filter(|name| *name > after).collect();
            let entries = rest.iter().take(self.1).map(|name| DirectoryEntry {
                name: (*name).clone(),
                attr: Some(Attr { inode: 7, ..Attr::default() }),
            });
            Listing { entries: entries.collect(), end: rest.len() <= self.1, directory: None }
        }
    }

    fn name(number: u64) -> Bytes {
        Bytes::from(format!("{number:08}"))
    }

    /// Up to `count` names from `offset`, and the offset that follows them.
    fn read(stream: &mut DirectoryStream, names: &Names, offset: u64, count: usize) -> (Vec<Bytes>, u64) {
        while let Some(fetch) = stream.missing(offset) {
            let listing = names.list(&fetch.after);
            stream.supply(&fetch, listing);
        }
        let got: Vec<_> =
            stream.entries(offset).take(count).map(|(next, entry)| (next, entry.name.clone())).collect();
        let next = got.last().map_or(offset, |(next, _)| *next);
        (got.into_iter().map(|(_, name)| name).collect(), next)
    }

    fn read_all(stream: &mut DirectoryStream, names: &Names, mut offset: u64, step: usize) -> Vec<Bytes> {
        let mut all = Vec::new();
        loop {
            let (some, next) = read(stream, names, offset, step);
            if some.is_empty() {
                return all;
            }
            all.extend(some);
            offset = next;
        }
    }

    #[test]
    fn every_entry_comes_once_whatever_the_reader_s_buffer() {
        for (count, page, step) in [(0, 4, 3), (1, 4, 1), (8, 4, 3), (9, 4, 100), (1000, 7, 5)] {
            let names = Names::of(count, page);
            let mut stream = DirectoryStream::default();
            let expected: Vec<_> = (0..count).map(name).collect();
            assert_eq!(read_all(&mut stream, &names, DOTS, step), expected, "{count} {page} {step}");
        }
    }

    #[test]
    fn removing_what_was_listed_skips_nothing() {
        let mut names = Names::of(1000, 16);
        let mut stream = DirectoryStream::default();
        let mut offset = DOTS;
        let mut seen = 0;
        loop {
            let (some, next) = read(&mut stream, &names, offset, 5);
            if some.is_empty() {
                break;
            }
            for gone in &some {
                names.0.remove(gone);
            }
            seen += some.len();
            offset = next;
        }
        assert_eq!((seen, names.0.len()), (1000, 0));
    }

    #[test]
    fn the_kernel_may_go_back_within_what_it_was_given() {
        let mut names = Names::of(100, 10);
        let mut stream = DirectoryStream::default();
        read_all(&mut stream, &names, DOTS, 10);
        // Names 0 to 19 go; the position after name 29 still leads to name 30.
        for number in 0..20 {
            names.0.remove(&name(number));
        }
        let (some, _) = read(&mut stream, &names, DOTS + 30, 2);
        assert_eq!(some, vec![name(30), name(31)]);
        // A position inside what is gone leads to what comes next.
        let (some, _) = read(&mut stream, &names, DOTS + 5, 1);
        assert_eq!(some, vec![name(20)]);
    }

    #[test]
    fn far_back_is_found_by_counting_from_a_mark() {
        let count = 3 * TRAIL as u64;
        let names = Names::of(count, 512);
        let mut stream = DirectoryStream::default();
        assert_eq!(read_all(&mut stream, &names, DOTS, 512).len() as u64, count);
        assert!(stream.trail.len() <= TRAIL && !stream.marks.is_empty());
        for number in [count - 3, 9000, 1024, 1023, 1, 5000] {
            let (some, _) = read(&mut stream, &names, DOTS + number, 1);
            assert_eq!(some, vec![name(number)]);
        }
    }

    #[test]
    fn an_offset_past_the_end_is_the_end() {
        let names = Names::of(3, 10);
        let mut stream = DirectoryStream::default();
        assert!(read(&mut stream, &names, 4711, 10).0.is_empty());
    }

    #[test]
    fn rewinding_sees_what_is_new() {
        let mut names = Names::of(3, 10);
        let mut stream = DirectoryStream::default();
        assert_eq!(read_all(&mut stream, &names, DOTS, 10).len(), 3);
        names.0.insert(name(77));
        stream.rewind();
        assert_eq!(read_all(&mut stream, &names, DOTS, 10).len(), 4);
    }

    #[test]
    fn a_server_that_never_ends_does_not_hold_the_reader() {
        let mut stream = DirectoryStream::default();
        let fetch = stream.missing(DOTS).unwrap();
        stream.supply(&fetch, Listing { entries: Vec::new(), end: false, directory: None });
        assert_eq!(stream.missing(DOTS), None);
    }
}
