//! One record of the log, and its frame on disk.
//!
//! ```text
//! 0   u32 magic "REC1"
//! 4   u32 payload length
//! 8   u64 index
//! 16  u64 term
//! 24  u64 flushed   records below this index were on disk when this one was written
//! 32  u32 zero
//! 36  u32 CRC-32C of bytes 0..36 and the payload
//! 40  payload, padded with zeros to a multiple of 8
//! ```

use bytes::Bytes;
use cairn_proto::checksum::{crc32c, crc32c_append};
use serde::{Deserialize, Serialize};

const MAGIC: u32 = u32::from_le_bytes(*b"REC1");
/// Bytes before the payload.
pub const HEAD: usize = 40;
const CRC_AT: usize = 36;
/// Frames start at multiples of this.
pub const ALIGN: usize = 8;

/// A place in the log: which record, proposed by the leader of which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Number of the record; the first is 0.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
}

impl Ord for Position {
    fn cmp(&self, other: &Position) -> std::cmp::Ordering {
        (self.index, self.term).cmp(&(other.index, other.term))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Position) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub at: Position,
    /// What it says; opaque here.
    pub payload: Bytes,
}

/// Bytes a payload of `length` takes on disk.
pub fn framed(length: usize) -> usize {
    (HEAD + length).next_multiple_of(ALIGN)
}

/// Appends the frame of `record` to `out`.
pub fn encode(record: &Record, flushed: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&record.at.index.to_le_bytes());
    out.extend_from_slice(&record.at.term.to_le_bytes());
    out.extend_from_slice(&flushed.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let crc = crc32c_append(crc32c(&out[start..]), &record.payload);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&record.payload);
    out.resize(start + framed(record.payload.len()), 0);
}

/// Bytes of the frame at the start of `bytes`, if one starts there; its end need not be there.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..8)?;
    let word = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    (word(0)? == MAGIC).then_some(framed(word(4)? as usize))
}

/// A frame found whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Where the record stands.
    pub at: Position,
    /// Records below this index were on disk when this frame was written.
    pub flushed: u64,
    /// The record's payload.
    pub payload: &'a [u8],
}

/// The frame at the start of `bytes`, if there is a whole one.
pub fn decode(bytes: &[u8]) -> Option<Frame<'_>> {
    let head = bytes.get(..HEAD)?;
    let word = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let long = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    if word(0)? != MAGIC {
        return None;
    }
    let payload = bytes.get(HEAD..HEAD.checked_add(word(4)? as usize)?)?;
    if crc32c_append(crc32c(&head[..CRC_AT]), payload) != word(CRC_AT)? {
        return None;
    }
    Some(Frame { at: Position { index: long(8)?, term: long(16)? }, flushed: long(24)?, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_of(payload: &'static [u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&Record { at: Position { index: 5, term: 2 }, payload: payload.into() }, 4, &mut out);
        out
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = frame_of(b"abc");
        assert_eq!(bytes.len(), 48);
        assert_eq!(&bytes[..4], b"REC1");
        assert_eq!(bytes[4..8], 3u32.to_le_bytes());
        assert_eq!(bytes[8..16], 5u64.to_le_bytes());
        assert_eq!(bytes[16..24], 2u64.to_le_bytes());
        assert_eq!(bytes[24..32], 4u64.to_le_bytes());
        assert_eq!(&bytes[40..], b"abc\0\0\0\0\0");
        let frame = decode(&bytes).unwrap();
        assert_eq!(
            (frame.at, frame.flushed, frame.payload),
            (Position { index: 5, term: 2 }, 4, &b"abc"[..])
        );
    }

    #[test]
    fn any_changed_or_missing_byte_makes_it_no_frame() {
        let bytes = frame_of(b"abcdefgh");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(decode(&changed).is_none(), "changed byte {at}");
            assert!(decode(&bytes[..at]).is_none(), "cut at {at}");
        }
    }
}
