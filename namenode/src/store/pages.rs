//! The file below the database, with a checksum for every page.
//!
//! redb keeps checksums of its pages but looks at them only when it repairs: a bit that flips on the disk later would
//! become a wrong answer, or be spread by a snapshot. So every 1,020 pages are preceded by one with their CRC-32Cs, and
//! a page that does not match is an error to whoever reads it (`docs/formats/store.md`).
//!
//! Sums go to the disk with the sync that makes their pages durable. What was written after the last one may lie there
//! after a crash without its sum; nobody reads it, since redb never writes over a page that the last durable commit
//! needs. Page 0 is the exception, which is written in place: see [`super::head`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cairn_host::disk::Handle;
use cairn_proto::checksum::crc32c;
use redb::StorageBackend;

use super::head::Head;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// `"CRNPAGE" | version u8 | group u32 | durable slot of page 0 u32`, then the sums.
const HEAD: usize = 16;
/// Pages of a group, without the one that holds their sums.
const GROUP: u64 = (PAGE - HEAD as u64) / 4;
const MAGIC: &[u8; 7] = b"CRNPAGE";
/// Version 1 had page 0 as it is.
const VERSION: u8 = 2;

/// The sums of a group's pages; 0 for one that was never written.
#[derive(Debug)]
struct Group {
    sums: Vec<u32>,
    /// Not on the disk yet.
    changed: bool,
}

impl Group {
    fn new() -> Group {
        Group { sums: vec![0; GROUP as usize], changed: true }
    }
}

/// What is kept in memory of the file.
#[derive(Debug)]
struct Kept {
    groups: Vec<Group>,
    head: Head,
}

/// A file of pages with checksums.
#[derive(Debug)]
pub(super) struct Pages {
    file: Handle,
    path: PathBuf,
    /// Whoever reads or writes pages holds this, so that a page and its sum are always seen together.
    kept: RwLock<Kept>,
}

impl Pages {
    /// An empty file that is to become one of pages.
    pub fn fresh(file: Handle, path: &Path) -> Pages {
        let kept = Kept { groups: Vec::new(), head: Head::new() };
        Pages { file, path: path.to_owned(), kept: RwLock::new(kept) }
    }

    /// A file that is one already.
    pub fn open(file: Handle, path: &Path) -> io::Result<Pages> {
        let pages = file.length()? / PAGE;
        if pages < 2 {
            return Err(damaged(path, "is too short"));
        }
        let mut groups = Vec::new();
        let mut durable = 0;
        for number in 0..pages.div_ceil(GROUP + 1) {
            let mut page = vec![0; PAGE as usize];
            file.read_exact_at(&mut page, number * (GROUP + 1) * PAGE)?;
            let (group, noted) = decode(&page, number, path)?;
            groups.push(group);
            durable = noted.max(durable);
        }
        let mut page = vec![0; PAGE as usize];
        file.read_exact_at(&mut page, place(0))?;
        let head = Head::decode(&page)
            .filter(|head| head.number() >= u64::from(durable))
            .ok_or_else(|| damaged(path, "is damaged in page 0"))?;
        Ok(Pages { file, path: path.to_owned(), kept: RwLock::new(Kept { groups, head }) })
    }

    /// Whether `head`, the first bytes of a file, is a database without checksums, as version 2 kept it.
    pub fn is_plain(head: &[u8]) -> bool {
        head.starts_with(b"redb\x1a\x0a")
    }

    /// Takes in a database without checksums.
    pub fn copy_plain(&self, plain: &Handle) -> io::Result<()> {
        let length = plain.length()?.next_multiple_of(PAGE);
        self.set_len(length)?;
        let mut buffer = vec![0; (GROUP * PAGE) as usize];
        for at in (0..length).step_by(buffer.len()) {
            let bytes = &mut buffer[..((length - at) as usize).min((GROUP * PAGE) as usize)];
            plain.read_exact_at(bytes, at)?;
            self.write(at, bytes)?;
        }
        self.sync_data()
    }

    fn shared(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, groups: &[Group], number: u64, page: &[u8]) -> io::Result<()> {
        let group = groups.get((number / GROUP) as usize);
        let sum = group.map_or(0, |group| group.sums[(number % GROUP) as usize]);
        if sum != 0 && sum != sum_of(page, number) {
            return Err(damaged(&self.path, &format!("is damaged in page {number}")));
        }
        Ok(())
    }
}

/// Where a page lies in the file.
fn place(number: u64) -> u64 {
    (number / GROUP * (GROUP + 1) + 1 + number % GROUP) * PAGE
}

/// The checksum of a page at its place: one that is written or found at another does not match.
fn sum_of(page: &[u8], number: u64) -> u32 {
    (crc32c(page) ^ (number as u32).wrapping_mul(0x9e37_79b9)).max(1)
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} {what}", path.display()))
}

/// `durable`: as of [`Head::durable`]; beyond the 32 bits that it has, the highest is noted, which every later slot has.
fn encode(group: &Group, number: u64, durable: u64) -> Vec<u8> {
    let mut page = MAGIC.to_vec();
    page.push(VERSION);
    page.extend((number as u32).to_le_bytes());
    page.extend(u32::try_from(durable).unwrap_or(u32::MAX).to_le_bytes());
    group.sums.iter().for_each(|sum| page.extend(sum.to_le_bytes()));
    page
}

/// A group, and which slot of page 0 was durable when it was written.
fn decode(page: &[u8], number: u64, path: &Path) -> io::Result<(Group, u32)> {
    if page.iter().all(|byte| *byte == 0) {
        // The file grew, and what was written into it was not synced before a crash.
        return Ok((Group::new(), 0));
    }
    let group = u32::from_le_bytes([page[8], page[9], page[10], page[11]]);
    if &page[..7] != MAGIC || u64::from(group) != number {
        return Err(damaged(path, &format!("is damaged in the checksums of group {number}")));
    }
    if !(1..=VERSION).contains(&page[7]) {
        let what = format!("has pages of version {}; this program knows {VERSION} at most", page[7]);
        return Err(damaged(path, &what));
    }
    let mut numbers =
        page[12..].chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let durable = numbers.next().unwrap_or_default();
    // An older program must see at once what it does not know.
    Ok((Group { sums: numbers.collect(), changed: page[7] != VERSION }, durable))
}

/// The parts of `[offset, offset + length)` that lie in one page each: `(page, start in it, bytes)`.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let start = at % PAGE;
        let bytes = (PAGE - start).min(end - at);
        at += bytes;
        (bytes > 0).then_some(((at - bytes) / PAGE, start as usize, bytes as usize))
    })
}

/// The parts of `[offset, offset + length)` that lie behind one another in the file: `(place, bytes)`.
fn runs(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let from = at;
        at = end.min((at / (GROUP * PAGE) + 1) * GROUP * PAGE);
        (from < at).then(|| (place(from / PAGE) + from % PAGE, (at - from) as usize))
    })
}

impl StorageBackend for Pages {
    fn len(&self) -> io::Result<u64> {
        let pages = self.file.length()? / PAGE;
        let rest = (pages % (GROUP + 1)).saturating_sub(1);
        Ok((pages / (GROUP + 1) * GROUP + rest) * PAGE)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let kept = self.shared();
        let mut done = 0;
        for (place, bytes) in runs(offset, out.len()) {
            self.file.read_exact_at(&mut out[done..done + bytes], place)?;
            done += bytes;
        }
        let mut done = 0;
        for (number, start, bytes) in parts(offset, out.len()) {
            if number == 0 {
                kept.head.read(start, &mut out[done..done + bytes]);
            } else if bytes as u64 == PAGE {
                self.check(&kept.groups, number, &out[done..done + bytes])?;
            } else {
                let mut page = vec![0; PAGE as usize];
                self.file.read_exact_at(&mut page, place(number))?;
                self.check(&kept.groups, number, &page)?;
                out[done..done + bytes].copy_from_slice(&page[start..start + bytes]);
            }
            done += bytes;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if !length.is_multiple_of(PAGE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{length} bytes are not whole pages"),
            ));
        }
        let groups = &mut self.exclusive().groups;
        let pages = length / PAGE;
        self.file.set_length(if pages == 0 { 0 } else { place(pages - 1) + PAGE })?;
        groups.resize_with(pages.div_ceil(GROUP) as usize, Group::new);
        let inside = pages % GROUP;
        if inside > 0
            && let Some(last) = groups.last_mut()
        {
            last.sums[inside as usize..].fill(0);
            last.changed = true;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let of_head = {
            let Kept { groups, head } = &mut *self.exclusive();
            if let Some((at, slot)) = head.due() {
                self.file.write_at(&slot, place(0) + at as u64)?;
            }
            for (number, group) in groups.iter_mut().enumerate().filter(|(_, group)| group.changed) {
                let number = number as u64;
                let page = encode(group, number, head.durable());
                self.file.write_at(&page, number * (GROUP + 1) * PAGE)?;
                group.changed = false;
            }
            head.number()
        };
        self.file.sync_data()?;
        self.exclusive().head.synced(of_head);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut kept = self.exclusive();
        let mut data = data;
        let mut offset = offset;
        if offset < PAGE {
            let (of_head, rest) = data.split_at(data.len().min((PAGE - offset) as usize));
            if !kept.head.write(offset as usize, of_head) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "page 0 has no room for this"));
            }
            (data, offset) = (rest, PAGE);
        }
        let mut done = 0;
        for (place, bytes) in runs(offset, data.len()) {
            self.file.write_at(&data[done..done + bytes], place)?;
            done += bytes;
        }
        let mut done = 0;
        for (number, _, bytes) in parts(offset, data.len()) {
            let page = &data[done..done + bytes];
            done += bytes;
            let sum = if bytes as u64 == PAGE {
                sum_of(page, number)
            } else {
                let mut page = vec![0; PAGE as usize];
                self.file.read_exact_at(&mut page, place(number))?;
                sum_of(&page, number)
            };
            let outside =
                || io::Error::new(io::ErrorKind::InvalidInput, format!("page {number} is past the end"));
            let group = kept.groups.get_mut((number / GROUP) as usize).ok_or_else(outside)?;
            group.sums[(number % GROUP) as usize] = sum;
            group.changed = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cairn_host::disk::{Access, Disk, RealDisk};
    use rand::rngs::StdRng;
    use rand::{Rng, RngCore, SeedableRng};

    use super::*;

    fn file(path: &Path, access: Access) -> Handle {
        RealDisk.open(path, access).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_the_length_is_that_of_the_pages() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut dice = StdRng::seed_from_u64(1);
        let mut model: Vec<u8> = Vec::new();
        let mut pages = Pages::fresh(file(&path, Access::Create), &path);
        for round in 0..200 {
            match dice.random_range(0..10) {
                0 | 1 => {
                    let length = dice.random_range(0..3 * GROUP) * PAGE;
                    pages.set_len(length).unwrap();
                    model.resize(length as usize, 0);
                }
                2 => {
                    pages.sync_data().unwrap();
                    if model.is_empty() {
                        continue;
                    }
                    pages = Pages::open(file(&path, Access::Write), &path).unwrap();
                }
                3..7 if !model.is_empty() => {
                    // Of page 0, redb uses the first 320 bytes.
                    let at = match dice.random_range(0..4) {
                        0 => dice.random_range(0..320),
                        _ => dice.random_range(0..model.len()).max(PAGE as usize).min(model.len()),
                    };
                    let most = if at < 320 { 320 - at } else { (model.len() - at).min(60_000) };
                    let bytes = dice.random_range(0..=most);
                    dice.fill_bytes(&mut model[at..at + bytes]);
                    pages.write(at as u64, &model[at..at + bytes]).unwrap();
                }
                _ if !model.is_empty() => {
                    let at = dice.random_range(0..model.len());
                    let mut out = vec![1; dice.random_range(0..=model.len() - at)];
                    pages.read(at as u64, &mut out).unwrap();
                    assert!(out == model[at..at + out.len()], "round {round}");
                }
                _ => {}
            }
            assert_eq!(pages.len().unwrap(), model.len() as u64, "round {round}");
        }
    }

    #[test]
    fn an_older_slot_of_page_0_counts_only_while_nothing_was_synced_after_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let pages = Pages::fresh(file(&path, Access::Create), &path);
        pages.set_len(20 * PAGE).unwrap();
        let commit = |round: u8| {
            pages.write(0, &[round; 300]).unwrap();
            pages.write(5 * PAGE, &[round; PAGE as usize]).unwrap();
            pages.sync_data().unwrap();
        };
        let open_without = |slot: u64| {
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            bad[(place(0) + slot % 2 * PAGE / 2) as usize + 100] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let opened = Pages::open(file(&path, Access::Write), &path).and_then(|pages| {
                let mut first = [0];
                pages.read(0, &mut first).map(|()| first[0])
            });
            std::fs::write(&path, &good).unwrap();
            opened.map_err(|error| error.kind())
        };
        (1..=3).for_each(commit);
        assert_eq!(open_without(2), Ok(3));
        assert_eq!(open_without(3), Ok(2));
        pages.write(6 * PAGE, &[4; PAGE as usize]).unwrap();
        assert_eq!(open_without(3), Ok(2));
        pages.sync_data().unwrap();
        assert_eq!(open_without(3), Err(io::ErrorKind::InvalidData));
        assert_eq!(open_without(2), Ok(3));

        // Whoever opens the file does not know whether its newest slot was synced.
        drop(pages);
        let pages = Pages::open(file(&path, Access::Write), &path).unwrap();
        assert_eq!((pages.shared().head.number(), pages.shared().head.durable()), (3, 2));
        pages.sync_data().unwrap();
        assert_eq!(pages.shared().head.durable(), 3);
    }

    #[test]
    fn any_flipped_bit_is_found_by_who_reads_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let pages = Pages::fresh(file(&path, Access::Create), &path);
        let length = (GROUP + 10) * PAGE;
        pages.set_len(length).unwrap();
        let mut content = vec![0; length as usize];
        StdRng::seed_from_u64(2).fill_bytes(&mut content[PAGE as usize..]);
        pages.write(0, &content).unwrap();
        pages.sync_data().unwrap();
        let good = std::fs::read(&path).unwrap();
        let mut dice = StdRng::seed_from_u64(3);
        for _ in 0..200 {
            let mut bad = good.clone();
            // Behind page 0, which has two copies.
            let at = dice.random_range(2 * PAGE as usize..bad.len());
            bad[at] ^= 1 << dice.random_range(0..8);
            std::fs::write(&path, &bad).unwrap();
            let read = Pages::open(file(&path, Access::Write), &path)
                .and_then(|pages| pages.read(PAGE, &mut vec![0; (length - PAGE) as usize]));
            let in_the_unused = (GROUP + 1) * PAGE + HEAD as u64 + 10 * 4;
            let unused = in_the_unused..(GROUP + 2) * PAGE;
            let reserved = (GROUP + 1) * PAGE + 12..(GROUP + 1) * PAGE + 16;
            if unused.contains(&(at as u64)) || reserved.contains(&(at as u64)) {
                continue;
            }
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
        // Two pages that changed places.
        let mut bad = good;
        let (one, other) = (place(5) as usize, place(6) as usize);
        let page = bad[one..one + PAGE as usize].to_vec();
        bad.copy_within(other..other + PAGE as usize, one);
        bad[other..other + PAGE as usize].copy_from_slice(&page);
        std::fs::write(&path, &bad).unwrap();
        let pages = Pages::open(file(&path, Access::Write), &path).unwrap();
        assert!(pages.read(5 * PAGE, &mut [0; PAGE as usize]).is_err());
        assert!(pages.read(7 * PAGE, &mut [0; PAGE as usize]).is_ok());
    }
}
