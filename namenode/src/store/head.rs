//! Page 0 of the database, which is written in place, on the disk.
//!
//! redb keeps there where everything else is. Two copies of a commit's root have checksums, but the bit that says which
//! of them counts has none, nor has the shape of the file. So its page in the file holds two slots that are written in
//! turn, each with a number and a checksum: the one that a crash has torn leaves the one before, which is what was there
//! when redb had not written yet.
//!
//! One that was damaged long after it was written looks the same, but then the one before leads to pages that may have
//! been used anew. So whatever is synced after a slot was notes its number ([`Head::durable`]), and an older slot counts
//! only if nothing was.

use cairn_proto::checksum::crc32c;

/// Bytes of a slot; a page has two, in different sectors.
pub(super) const SLOT: usize = 2048;
/// `"CRNHEAD" | version u8 | number u64 | CRC-32C u32`, then the head.
const START: usize = 20;
const MAGIC: &[u8; 8] = b"CRNHEAD\x01";
/// Most bytes that redb may use of page 0 (it uses 320).
pub(super) const CAPACITY: usize = SLOT - START;

/// What is in page 0, and whether the disk has it.
#[derive(Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
    /// Of the slot that holds it, counted from 1.
    number: u64,
    /// Of the newest slot that is known to be on the disk.
    durable: u64,
    changed: bool,
}

impl Head {
    /// Of an empty database.
    pub fn new() -> Head {
        Head { bytes: vec![0; CAPACITY], number: 0, durable: 0, changed: false }
    }

    /// What is in the page of a file; nothing if both slots are damaged.
    pub fn decode(page: &[u8]) -> Option<Head> {
        // Version 1 has no slots; the first one that is written leaves it where it is.
        let plain = page.starts_with(b"redb\x1a\x0a").then(|| (0, page[..CAPACITY].to_vec()));
        let slots = page.chunks_exact(SLOT).filter_map(decode);
        let (number, bytes) = slots.chain(plain).max_by_key(|(number, _)| *number)?;
        // Whoever wrote the newest may have ended before it was synced, but synced the one before.
        Some(Head { bytes, number, durable: number.saturating_sub(1), changed: number == 0 })
    }

    /// Of the slot that holds what is in the page, 0 if none does yet.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The highest number of a slot that no crash can tear any more.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The slot of this number is on the disk.
    pub fn synced(&mut self, number: u64) {
        self.durable = self.durable.max(number);
    }

    /// The bytes of page 0 from `at` on, zeros where nothing is kept.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        let kept = self.bytes.len().saturating_sub(at).min(out.len());
        out[..kept].copy_from_slice(&self.bytes[self.bytes.len().min(at)..][..kept]);
        out[kept..].fill(0);
    }

    /// Takes in bytes of page 0; false: there is no room for them.
    #[must_use]
    pub fn write(&mut self, at: usize, data: &[u8]) -> bool {
        let kept = self.bytes.len().saturating_sub(at).min(data.len());
        if data[kept..].iter().any(|byte| *byte != 0) {
            return false;
        }
        if kept > 0 {
            self.bytes[at..at + kept].copy_from_slice(&data[..kept]);
            self.changed = true;
        }
        true
    }

    /// What has to be written for the next sync, and where in the page; nothing if the disk has it.
    pub fn due(&mut self) -> Option<(usize, Vec<u8>)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.number += 1;
        let place = (self.number % 2) as usize * SLOT;
        Some((place, encode(self.number, &self.bytes)))
    }
}

fn sum_of(number: u64, bytes: &[u8]) -> u32 {
    crc32c(bytes) ^ crc32c(&number.to_le_bytes())
}

fn encode(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut slot = MAGIC.to_vec();
    slot.extend(number.to_le_bytes());
    slot.extend(sum_of(number, bytes).to_le_bytes());
    slot.extend(bytes);
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, Vec<u8>)> {
    let number = u64::from_le_bytes(slot[8..16].try_into().ok()?);
    let sum = u32::from_le_bytes(slot[16..START].try_into().ok()?);
    let bytes = &slot[START..];
    (slot.starts_with(MAGIC) && sum == sum_of(number, bytes)).then(|| (number, bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts() {
        let mut page = vec![0; 2 * SLOT];
        let mut head = Head::new();
        assert!(head.due().is_none());
        for round in 1..6u8 {
            assert!(head.write(3, &[round; 300]));
            let before = page.clone();
            let (place, slot) = head.due().unwrap();
            // Torn anywhere, it leaves what was there before or is whole.
            for torn in 0..slot.len() {
                let mut page = before.clone();
                page[place..place + torn].copy_from_slice(&slot[..torn]);
                match Head::decode(&page) {
                    None => assert_eq!(round, 1),
                    // The rest of a slot is zeros before and after.
                    Some(head) if torn >= START + 303 => assert_eq!(head.bytes[3], round, "{torn} bytes"),
                    Some(head) => assert_eq!(head.bytes[3], round - 1, "{torn} bytes"),
                }
            }
            page[place..place + slot.len()].copy_from_slice(&slot);
            assert_eq!(Head::decode(&page).unwrap().bytes[3..303], [round; 300]);
        }
    }

    #[test]
    fn a_page_without_slots_is_taken_over() {
        let mut page = b"redb\x1a\x0a and more".to_vec();
        page.resize(2 * SLOT, 0);
        let mut head = Head::decode(&page).unwrap();
        for number in 1..3u64 {
            assert!(head.write(100, &[number as u8]));
            let (place, slot) = head.due().unwrap();
            page[place..place + slot.len()].copy_from_slice(&slot);
            head = Head::decode(&page).unwrap();
            assert_eq!((head.number, head.bytes[100], head.bytes[4]), (number, number as u8, 0x1a));
            assert_eq!(page.starts_with(b"redb"), number == 1);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut head = Head::new();
        assert!(!head.write(CAPACITY - 1, &[1, 1]));
        assert!(head.write(CAPACITY - 1, &[1, 0, 0]));
        let mut out = [9; 3];
        head.read(CAPACITY - 1, &mut out);
        assert_eq!(out, [1, 0, 0]);
        head.read(2 * SLOT - 3, &mut out);
        assert_eq!(out, [0; 3]);
    }
}
