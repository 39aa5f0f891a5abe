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
        let (data, held, crcs) = {
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
                    (log.data.clone(), log.tail.length(), log.crcs.clone())
                }
                State::Sealed(sealed) => {
                    let had = sealed.seal.length;
                    let detail = format!("chunk {chunk} at {had}, not at {length}");
                    return Err(ErrorCode::ChunkSealed.because(detail));
                }
                other => return Err(other.refusal(chunk)),
            }
        };
        let hashed = self.hash(&*data, held, length, crcs);
        let sealed = hashed.and_then(|(seal, crcs)| self.finish_seal(&*data, seal, &crcs));
        if sealed.is_err()
            && let State::Open(log) = &mut *self.lock()
        {
            // Appends may go on: the namenode's next order, or its writer, decides.
            log.sealing = false;
        }
        sealed
    }

    /// Makes what was hashed durable, and the seal after it.
    fn finish_seal(&self, data: &dyn DiskFile, seal: Seal, crcs: &[u32]) -> Result<Seal> {
        let (chunk, dir) = (self.chunk(), self.dir());
        let _alone = self.alone_at_the_disk();
        // A sync that failed while the cache was being hashed was told so instead of the one below.
        self.check_open(&self.lock())?;
        if let Err(error) = dir.sync_file(data) {
            self.fail_sync(&mut self.lock(), &error);
            return Err(error);
        }
        dir.working()?;
        let content = encode_file(chunk, seal.length, crcs, Some(&seal));
        dir.replace(&dir.sums_path(chunk), &content)?;
        let mut state = self.lock();
        self.check_open(&state)?;
        let before = self.length();
        self.enter(&mut state, State::Sealed(Sealed::whole(seal)));
        drop(state);
        dir.lost(before - seal.length);
        // The seal stands already. What is left beyond it is cut at the next start if it cannot be cut now.
        let _ = dir.truncate(data, seal.length);
        Ok(seal)
    }

    fn check_open(&self, state: &State) -> Result<()> {
        match state {
            State::Open(_) => Ok(()),
            other => Err(other.refusal(self.chunk())),
        }
    }

    /// Reads the first `length` bytes once: checks every block, and hashes them all. The CRC of the last
    /// block changes when the cut goes through it. `held`: bytes that were appended.
    fn hash(
        &self,
        data: &dyn DiskFile,
        held: u64,
        length: u64,
        mut crcs: Vec<u32>,
    ) -> Result<(Seal, Vec<u32>)> {
        let chunk = self.chunk();
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

#[cfg(test)]
mod tests {
    use super::super::Phase;
    use super::super::tests::{bytes, open, with_chunk};
    use super::*;

    #[test]
    fn a_sync_that_fails_beside_a_seal_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(1, 100_000);
        let (store, mut appender, _peer) = with_chunk(dir.path(), 5, &data, 50_000);
        let replica = appender.replica().clone();
        let (file, crcs) = match &*replica.lock() {
            State::Open(log) => (log.data.clone(), log.crcs.clone()),
            other => panic!("{other:?}"),
        };
        let (seal, crcs) = replica.hash(&*file, 100_000, 90_000, crcs).unwrap();
        let lost = ErrorCode::DiskFull.because("written back too late");
        replica.fail_sync(&mut replica.lock(), &lost);
        // The disk is well again, and says nothing more of what it dropped.
        assert_eq!(replica.finish_seal(&*file, seal, &crcs).unwrap_err().code, ErrorCode::Corrupt);
        assert_eq!(appender.sync().unwrap_err().code, ErrorCode::Corrupt);
        assert_eq!((replica.phase(), replica.digest()), (Phase::Damaged, None));
        drop((appender, replica, store));
        let store = open(&[dir.path()], None).unwrap();
        assert_eq!(store.get(5).unwrap().phase(), Phase::Unchecked, "no seal reached the disk");
    }
}
