//! One file: what is in the cache, what is on the platter, and what lies between them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::name::Name;
use super::{Random, SECTOR};

/// Bytes that wait for a sync; beyond them the oldest go to the platter, as a kernel does it.
const DIRTY_LIMIT: usize = 64 << 20;

/// A change of a file that is not on the platter.
#[derive(Debug)]
enum Edit {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Default)]
pub struct Node {
    /// Where it is, as the machine sees it.
    pub name: Name,
    pub cache: Vec<u8>,
    platter: Vec<u8>,
    edits: Vec<Edit>,
    dirty: usize,
}

pub fn locked(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl Edit {
    fn size(&self) -> usize {
        match self {
            Edit::Write { bytes, .. } => bytes.len(),
            Edit::Length(_) => 0,
        }
    }

    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Edit::Write { offset, bytes } => write(content, *offset, bytes),
            Edit::Length(length) => content.resize(*length, 0),
        }
    }

    /// The length of a file of `length` bytes after it.
    fn length(&self, length: usize) -> usize {
        match self {
            Edit::Write { offset, bytes } => length.max(offset + bytes.len()),
            Edit::Length(length) => *length,
        }
    }
}

impl Node {
    /// An empty file.
    pub fn new(name: &Name) -> Node {
        Node { name: name.clone(), ..Node::default() }
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        write(&mut self.cache, offset, bytes);
        self.edit(Edit::Write { offset, bytes: bytes.to_vec() });
    }

    pub fn set_length(&mut self, length: usize) {
        self.cache.resize(length, 0);
        self.edit(Edit::Length(length));
    }

    fn edit(&mut self, edit: Edit) {
        self.dirty += edit.size();
        self.edits.push(edit);
        if self.dirty > DIRTY_LIMIT {
            let half = self.edits.len().div_ceil(2);
            for edit in self.edits.drain(..half) {
                self.dirty -= edit.size();
                edit.apply(&mut self.platter);
            }
        }
    }

    /// Everything written so far reaches the platter.
    pub fn sync(&mut self) {
        for edit in self.edits.drain(..) {
            edit.apply(&mut self.platter);
        }
        self.dirty = 0;
    }

    /// A sync failed: a part reaches the platter, the rest never will. The cache may go on showing it or may have
    /// dropped it, sector by sector.
    pub fn fail_sync(&mut self, random: &mut Random) {
        self.platter = self.torn(random);
        self.edits.clear();
        self.dirty = 0;
        // Most kernels keep showing all of it until memory is short.
        let short = random.flip();
        for (number, sector) in self.cache.chunks_mut(SECTOR).enumerate() {
            if short && random.flip() {
                let held = self.platter.get(number * SECTOR..).unwrap_or_default();
                let held = &held[..held.len().min(sector.len())];
                sector[..held.len()].copy_from_slice(held);
                sector[held.len()..].fill(0);
            }
        }
    }

    /// What is read from now on is what the platter holds.
    pub fn forget_cache(&mut self) {
        self.cache.clone_from(&self.platter);
    }

    /// The power failed: the cache is what the platter holds.
    pub fn crash(&mut self, random: &mut Random) {
        self.platter = self.torn(random);
        self.cache.clone_from(&self.platter);
        self.edits.clear();
        self.dirty = 0;
    }

    pub fn flip(&mut self, bit: u64) -> bool {
        let (at, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        for content in [&mut self.cache, &mut self.platter] {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= mask;
            }
        }
        at < self.cache.len()
    }

    /// What the platter may hold when nobody waits for the rest: all of it, nothing, as it was at some moment, or
    /// every sector as it was at a moment of its own.
    fn torn(&self, random: &mut Random) -> Vec<u8> {
        if self.edits.is_empty() {
            return self.platter.clone();
        }
        match random.below(4) {
            0 => self.platter.clone(),
            1 => self.at(self.edits.len()),
            2 => self.at(random.below(self.edits.len() as u64 + 1) as usize),
            _ => self.scattered(random),
        }
    }

    fn at(&self, edits: usize) -> Vec<u8> {
        let mut content = self.platter.clone();
        self.edits[..edits].iter().for_each(|edit| edit.apply(&mut content));
        content
    }

    fn scattered(&self, random: &mut Random) -> Vec<u8> {
        let (from, to) = self.epoch(random);
        let mut lengths = vec![self.platter.len()];
        for edit in &self.edits[..to] {
            lengths.push(edit.length(lengths[lengths.len() - 1]));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let history = self.history(&lengths, from, to);
        let mut content = self.platter.clone();
        content.resize(longest.next_multiple_of(SECTOR), 0);
        for (sector, (least, edits)) in history {
            let done = least + random.below((edits.len() - least) as u64 + 1) as usize;
            let start = sector * SECTOR;
            for &edit in &edits[..done] {
                self.edits[edit].apply_within(start, &mut content[start..start + SECTOR]);
            }
        }
        let moment = from + random.below((to - from) as u64 + 1) as usize;
        content.truncate(lengths[moment]);
        content
    }

    /// A cut frees blocks and is a step of the file system's own: either it happened, or nothing after it did.
    /// Returns the number of edits that surely happened to what was cut, and of those that may have happened.
    fn epoch(&self, random: &mut Random) -> (usize, usize) {
        let mut length = self.platter.len();
        let mut cuts = Vec::new();
        for (number, edit) in self.edits.iter().enumerate() {
            let after = edit.length(length);
            if after < length {
                cuts.push(number);
            }
            length = after;
        }
        let happened = random.below(cuts.len() as u64 + 1) as usize;
        let from = happened.checked_sub(1).map_or(0, |last| cuts[last] + 1);
        (from, cuts.get(happened).copied().unwrap_or(self.edits.len()))
    }

    /// For each sector that changed: how many of its edits surely happened, and which there are.
    fn history(&self, lengths: &[usize], from: usize, to: usize) -> BTreeMap<usize, (usize, Vec<usize>)> {
        let mut history: BTreeMap<usize, (usize, Vec<usize>)> = BTreeMap::new();
        for (number, edit) in self.edits[..to].iter().enumerate() {
            let (before, after) = (lengths[number], lengths[number + 1]);
            let (start, end) = match edit {
                Edit::Write { offset, bytes } => (*offset, offset + bytes.len()),
                Edit::Length(_) if after < before => (after, before),
                Edit::Length(_) => continue,
            };
            for sector in start / SECTOR..end.div_ceil(SECTOR) {
                let entry = history.entry(sector).or_default();
                entry.1.push(number);
                if matches!(edit, Edit::Length(_)) && number < from {
                    entry.0 = entry.1.len();
                }
            }
        }
        history
    }
}

impl Edit {
    /// Applies what it does to the sector that starts at `start`.
    fn apply_within(&self, start: usize, sector: &mut [u8]) {
        match self {
            Edit::Write { offset, bytes } => {
                let from = start.max(*offset);
                let to = (start + sector.len()).min(offset + bytes.len());
                if from < to {
                    sector[from - start..to - start].copy_from_slice(&bytes[from - offset..to - offset]);
                }
            }
            Edit::Length(length) => {
                let from = length.saturating_sub(start).min(sector.len());
                sector[from..].fill(0);
            }
        }
    }
}
