//! The checksum file, byte by byte (`docs/formats/chunk.md` draws it).
//!
//! ```text
//! open:    header (32) | record (16) | record | ...        appended as the chunk grows
//! sealed:  header (32) | seal (64) | record (16) a block   written once
//! ```
//!
//! All integers are little endian. Records and seals are checksummed together with the chunk's id, so that
//! bytes of another file that a crash leaves in ours are never taken for our own.

use cairn_proto::checksum::{crc32c, crc32c_append};
use cairn_proto::limits::BLOCK_SIZE;

/// Bytes of the header.
pub const HEADER: usize = 32;
/// Bytes of a record.
pub const RECORD: usize = 16;
/// Bytes of a seal.
pub const SEAL: usize = 64;
/// The one version this program writes and reads.
pub const VERSION: u32 = 1;

const HEADER_MAGIC: [u8; 8] = *b"CAIRNCRC";
const SEAL_MAGIC: [u8; 8] = *b"CAIRNSEL";

/// What follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A log of records.
    Open = 0,
    /// A seal and one record a block.
    Sealed = 1,
}

/// Why a header cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A later version wrote it: nothing may be concluded about the chunk.
    Newer(u32),
    /// It is not what was written.
    Damaged(&'static str),
}

/// The first bytes of a checksum file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The chunk it belongs to.
    pub chunk: u64,
    /// What follows.
    pub kind: Kind,
}

impl Header {
    /// The header as stored.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..8].copy_from_slice(&HEADER_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.chunk.to_le_bytes());
        out[24..28].copy_from_slice(&(self.kind as u32).to_le_bytes());
        let crc = crc32c(&out[..28]);
        out[28..32].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of the file that should be `chunk`'s.
    pub fn decode(bytes: &[u8; HEADER], chunk: u64) -> Result<Header, Refused> {
        if bytes[0..8] != HEADER_MAGIC {
            return Err(Refused::Damaged("no checksum file's magic"));
        }
        if crc32c(&bytes[..28]) != u32_at(bytes, 28) {
            return Err(Refused::Damaged("the header's checksum does not hold"));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Refused::Newer(version));
        }
        if u32_at(bytes, 12) != BLOCK_SIZE as u32 {
            return Err(Refused::Damaged("another block size"));
        }
        if u64_at(bytes, 16) != chunk {
            return Err(Refused::Damaged("it belongs to another chunk"));
        }
        let kind = match u32_at(bytes, 24) {
            0 => Kind::Open,
            1 => Kind::Sealed,
            _ => return Err(Refused::Damaged("unknown kind")),
        };
        Ok(Header { chunk, kind })
    }
}

/// The checksum of the first `length` bytes of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The block's number.
    pub block: u32,
    /// How many of its bytes are covered: 1 to [`BLOCK_SIZE`].
    pub length: u32,
    /// CRC-32C of those bytes.
    pub crc: u32,
}

impl Record {
    /// The record as stored in `chunk`'s file.
    pub fn encode(&self, chunk: u64) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        out[0..4].copy_from_slice(&self.block.to_le_bytes());
        out[4..8].copy_from_slice(&self.length.to_le_bytes());
        out[8..12].copy_from_slice(&self.crc.to_le_bytes());
        let crc = salted(chunk, &out[..12]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The record in `bytes`, if it is whole and `chunk`'s.
    pub fn decode(bytes: &[u8; RECORD], chunk: u64) -> Option<Record> {
        let record = Record { block: u32_at(bytes, 0), length: u32_at(bytes, 4), crc: u32_at(bytes, 8) };
        let sound = salted(chunk, &bytes[..12]) == u32_at(bytes, 12)
            && (1..=BLOCK_SIZE as u32).contains(&record.length);
        sound.then_some(record)
    }
}

/// The end of a chunk's growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The chunk's length for ever.
    pub length: u64,
    /// BLAKE3 of its whole content.
    pub blake3: [u8; 32],
}

impl Seal {
    /// How many records follow it.
    pub fn blocks(&self) -> u64 {
        self.length.div_ceil(BLOCK_SIZE as u64)
    }

    /// The seal as stored in `chunk`'s file.
    pub fn encode(&self, chunk: u64) -> [u8; SEAL] {
        let mut out = [0; SEAL];
        out[0..8].copy_from_slice(&SEAL_MAGIC);
        out[8..16].copy_from_slice(&self.length.to_le_bytes());
        out[16..48].copy_from_slice(&self.blake3);
        let crc = salted(chunk, &out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The seal in `bytes`, if it is whole and `chunk`'s.
    pub fn decode(bytes: &[u8; SEAL], chunk: u64) -> Option<Seal> {
        if bytes[0..8] != SEAL_MAGIC || salted(chunk, &bytes[..60]) != u32_at(bytes, 60) {
            return None;
        }
        let mut blake3 = [0; 32];
        blake3.copy_from_slice(&bytes[16..48]);
        Some(Seal { length: u64_at(bytes, 8), blake3 })
    }
}

/// One record a block of a chunk of `length` bytes, from the CRCs of its blocks.
pub fn records(length: u64, crcs: &[u32]) -> impl Iterator<Item = Record> {
    crcs.iter().enumerate().map(move |(block, &crc)| {
        let rest = length - (block * BLOCK_SIZE) as u64;
        Record { block: block as u32, length: rest.min(BLOCK_SIZE as u64) as u32, crc }
    })
}

/// A whole checksum file of a chunk of `length` bytes whose blocks have `crcs`.
pub fn encode_file(chunk: u64, length: u64, crcs: &[u32], seal: Option<&Seal>) -> Vec<u8> {
    let kind = if seal.is_some() { Kind::Sealed } else { Kind::Open };
    let mut out = Vec::with_capacity(HEADER + SEAL + RECORD * crcs.len());
    out.extend_from_slice(&Header { chunk, kind }.encode());
    if let Some(seal) = seal {
        out.extend_from_slice(&seal.encode(chunk));
    }
    for record in records(length, crcs) {
        out.extend_from_slice(&record.encode(chunk));
    }
    out
}

fn salted(chunk: u64, bytes: &[u8]) -> u32 {
    crc32c_append(crc32c(&chunk.to_le_bytes()), bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let header = Header { chunk: 0x0102_0304_0506_0708, kind: Kind::Open }.encode();
        assert_eq!(hex(&header), GOLDEN_HEADER);
        let record = Record { block: 3, length: 777, crc: 0xdead_beef }.encode(42);
        assert_eq!(hex(&record), GOLDEN_RECORD);
        let seal = Seal { length: 65537, blake3: [0xab; 32] }.encode(42);
        assert_eq!(hex(&seal), GOLDEN_SEAL);
    }

    const GOLDEN_HEADER: &str = "434149524e4352430100000000000100080706050403020100000000e1dc1cd0";
    const GOLDEN_RECORD: &str = "0300000009030000efbeadde3adeaf70";
    const GOLDEN_SEAL: &str = concat!(
        "434149524e53454c0100010000000000",
        "abababababababababababababababababababababababababababababababab",
        "0000000000000000000000004f556004"
    );

    #[test]
    fn everything_reads_back_and_no_flipped_bit_passes() {
        let header = Header { chunk: 7, kind: Kind::Sealed };
        let record = Record { block: 1, length: 5, crc: 9 };
        let seal = Seal { length: 99, blake3: [3; 32] };
        assert_eq!(Header::decode(&header.encode(), 7), Ok(header));
        assert_eq!(Record::decode(&record.encode(7), 7), Some(record));
        assert_eq!(Seal::decode(&seal.encode(7), 7), Some(seal));
        for bit in 0..HEADER * 8 {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Header::decode(&bytes, 7), Err(Refused::Damaged(_))), "bit {bit}");
        }
        for bit in 0..RECORD * 8 {
            let mut bytes = record.encode(7);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bytes, 7), None, "bit {bit}");
        }
        for bit in 0..SEAL * 8 {
            let mut bytes = seal.encode(7);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Seal::decode(&bytes, 7), None, "bit {bit}");
        }
    }

    #[test]
    fn bytes_of_another_chunk_are_not_ours() {
        assert_eq!(Record::decode(&Record { block: 1, length: 5, crc: 9 }.encode(8), 7), None);
        assert_eq!(Seal::decode(&Seal { length: 1, blake3: [0; 32] }.encode(8), 7), None);
        assert!(Header::decode(&Header { chunk: 8, kind: Kind::Open }.encode(), 7).is_err());
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut bytes = Header { chunk: 7, kind: Kind::Open }.encode();
        bytes[8] = 2;
        let crc = crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes, 7), Err(Refused::Newer(2)));
    }
}
