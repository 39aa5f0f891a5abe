//! Making a replica immutable.

use cairn_host::disk::DiskFile;
use cairn_proto::checksum::crc32c;
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{ErrorCode, Result};

use super::format::{Seal, encode_file};
use super::replica::{Replica, Sealed, State};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes read at a time while hashing.
const STRETCH: usize = 16 * BLOCK_SIZE;

impl Replica {
    /// Cuts the replica to `length`, verifies and hashes what stays, and makes it immutable, durably.
    /// Sealing again at the same length is the same seal.
    pub(super) fn seal(&self, length: u64) -> Result<Seal> {
        let chunk = self.chunk();
        let (data, crcs) = {
            let mut state = self.lock();
            match &mut *state {
                State::Sealed(sealed) if sealed.seal.length == length => return Ok(sealed.seal),
                State::Open(log) if log.tail.length() < length => {
                    let held = log.tail.length();
                    return Err(
                        ErrorCode::PastEnd.because(format!("chunk {chunk}: seal at {length}, length {held}"))
                    );
                }
                State::Open(log) => {
                    log.sealing = true;
                    (log.data.clone(), log.crcs.clone())
                }
                State::Sealed(sealed) => {
                    let had = sealed.seal.length;
                    let detail = format!("chunk {chunk} at {had}, not at {length}");
                    return Err(ErrorCode::ChunkSealed.because(detail));
                }
                other => return Err(other.refusal(chunk)),
            }
        };
        let sealed = self.hash(&*data, length, crcs).and_then(|(seal, crcs)| {
            if let Err(error) = self.dir().sync_file(&*data) {
                self.fail_sync(&mut self.lock(), &error);
                return Err(error);
            }
            let content = encode_file(chunk, length, &crcs, Some(&seal));
            self.dir().replace(&self.dir().sums_path(chunk), &content)?;
            Ok(seal)
        });
        match sealed {
            Ok(seal) => self.finish_seal(&*data, seal),
            Err(error) => {
                // Appends may go on: the namenode's next order, or its writer, decides.
                if let State::Open(log) = &mut *self.lock() {
                    log.sealing = false;
                }
                Err(error)
            }
        }
    }

    fn finish_seal(&self, data: &dyn DiskFile, seal: Seal) -> Result<Seal> {
        let mut state = self.lock();
        let before = self.length();
        self.enter(&mut state, State::Sealed(Sealed::whole(seal)));
        drop(state);
        self.dir().lost(before - seal.length);
        // The seal stands already. What is left beyond it is cut at the next start if it cannot be cut now.
        let _ = self.dir().truncate(data, seal.length);
        Ok(seal)
    }

    /// Reads the first `length` bytes once: checks every block, and hashes them all. The CRC of the last
    /// block changes when the cut goes through it.
    fn hash(&self, data: &dyn DiskFile, length: u64, mut crcs: Vec<u32>) -> Result<(Seal, Vec<u32>)> {
        let chunk = self.chunk();
        let held = self.length();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; STRETCH];
        let mut at = 0;
        while at < length {
            // Whole blocks as they were appended are read, so that the cut block can be verified too.
            let size = ((held - at) as usize).min(STRETCH);
            let stretch = &mut buffer[..size];
            data.read_exact_at(stretch, at).map_err(|error| self.unread(&error))?;
            for (index, block) in stretch.chunks(BLOCK_SIZE).enumerate() {
                let start = at + (index * BLOCK_SIZE) as u64;
                let number = (start / BLOCK) as usize;
                if start >= length {
                    break;
                }
                if crcs.get(number) != Some(&crc32c(block)) {
                    return Err(ErrorCode::Corrupt.because(format!("chunk {chunk}: block {number}")));
                }
                let kept = &block[..block.len().min((length - start) as usize)];
                if kept.len() < block.len() {
                    crcs[number] = crc32c(kept);
                }
                hasher.update(kept);
            }
            at += size as u64;
        }
        crcs.truncate(length.div_ceil(BLOCK) as usize);
        Ok((Seal { length, blake3: *hasher.finalize().as_bytes() }, crcs))
    }
}
