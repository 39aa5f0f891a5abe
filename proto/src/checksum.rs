//! CRC-32C (Castagnoli) per 64 KiB block of a chunk, as the wire and the disks carry it.

use crc_fast::{CrcAlgorithm, Digest, checksum};

use crate::limits::BLOCK_SIZE;

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// CRC-32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    checksum(ALGORITHM, data) as u32
}

/// CRC-32C of a prefix with checksum `crc` followed by `data`.
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    // The state after the prefix: this checksum's final step is an inversion. Combining two sums costs far more.
    let mut digest = Digest::new_with_init_state(ALGORITHM, u64::from(!crc));
    digest.update(data);
    digest.finalize() as u32
}

/// The pieces of a range of a chunk that lie in one block each: `(block index, start in data, end in data)`.
pub fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        if at >= length {
            return None;
        }
        let position = offset + at as u64;
        let block = position / BLOCK_SIZE as u64;
        let room = BLOCK_SIZE - (position % BLOCK_SIZE as u64) as usize;
        let end = length.min(at + room);
        let piece = (block, at, end);
        at = end;
        Some(piece)
    })
}

/// CRCs of the pieces of `data` as it lies at `offset` of a chunk: what a `Data` frame carries.
pub fn piece_crcs(offset: u64, data: &[u8]) -> Vec<u32> {
    pieces(offset, data.len()).map(|(_, start, end)| crc32c(&data[start..end])).collect()
}

/// The running checksum of a chunk's last, partial block: what an appender and a replica both keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCrc {
    length: u64,
    crc: u32,
}

impl BlockCrc {
    /// At the end of a chunk of `length` bytes whose last partial block has checksum `crc`
    /// (ignored when `length` is a whole number of blocks).
    pub fn at(length: u64, crc: u32) -> BlockCrc {
        BlockCrc { length, crc }
    }

    /// Length of the chunk so far, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes `data` in at the end and returns what an `Append` frame carries: for each touched block the
    /// CRC of its content from its start.
    pub fn append(&mut self, data: &[u8]) -> Vec<u32> {
        let offset = self.length;
        let crcs = pieces(offset, data.len())
            .map(|(_, start, end)| {
                let starts_block = (offset + start as u64).is_multiple_of(BLOCK_SIZE as u64);
                let piece = &data[start..end];
                self.crc = if starts_block { crc32c(piece) } else { crc32c_append(self.crc, piece) };
                self.crc
            })
            .collect();
        self.length += data.len() as u64;
        crcs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_append(crc32c(b"1234"), b"56789"), 0xE306_9283);
    }

    #[test]
    fn appending_in_parts_ends_at_the_same_block_checksums() {
        let data: Vec<u8> = (0..3 * BLOCK_SIZE + 777).map(|i| (i * 31 % 251) as u8).collect();
        let whole = BlockCrc::default().append(&data);
        let mut parts = BlockCrc::default();
        let mut last = Vec::new();
        let mut at = 0;
        for step in [1, 4095, BLOCK_SIZE, 70_000, usize::MAX] {
            let end = data.len().min(at + step.min(data.len()));
            last = parts.append(&data[at..end]);
            at = end;
        }
        assert_eq!(at, data.len());
        assert_eq!(last.last(), whole.last());
        assert_eq!(parts.length(), data.len() as u64);
    }

    #[test]
    fn pieces_never_cross_a_block() {
        let got: Vec<_> = pieces(BLOCK_SIZE as u64 - 1, 2 + BLOCK_SIZE).collect();
        assert_eq!(got, vec![(0, 0, 1), (1, 1, 1 + BLOCK_SIZE), (2, 1 + BLOCK_SIZE, 2 + BLOCK_SIZE)]);
    }
}
