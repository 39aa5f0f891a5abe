//! Reading a whole sealed replica to see whether it still is what was sealed.

use std::sync::Arc;

use cairn_proto::checksum::crc32c;
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{Error, ErrorCode, Result};

use super::format::{HEADER, Header, Kind, RECORD, Record, SEAL, Seal};
use super::replica::{Replica, State};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes read at a time.
const STRETCH: usize = 16 * BLOCK_SIZE;

impl Replica {
    /// Reads everything: the header, the seal and every record of the checksum file, and every block of the data,
    /// and hashes the whole. `step` is told of bytes that are about to be read, and ends the work by saying false;
    /// then so does this. A replica that is not sealed is passed over. A data file that is too long is cut.
    pub fn verify(self: &Arc<Self>, step: &mut dyn FnMut(usize) -> bool) -> Result<bool> {
        let seal = match &*self.lock() {
            State::Sealed(sealed) => sealed.seal,
            _ => return Ok(true),
        };
        let files = self.open_sealed()?;
        // What the system has cached proves nothing about the disk.
        files.data.reread().and_then(|()| files.sums.reread()).map_err(|error| self.unread(&error))?;
        let crcs = self.verify_sums(&*files.sums, &seal)?;
        let held = files.data.length().map_err(|error| self.unread(&error))?;
        if held < seal.length {
            return Err(self.corrupt(&format!("its data file has {held} bytes of {}", seal.length)));
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; STRETCH];
        let mut at = 0;
        while at < seal.length {
            let size = (seal.length - at).min(STRETCH as u64) as usize;
            if !step(size) {
                return Ok(false);
            }
            let stretch = &mut buffer[..size];
            files.data.read_exact_at(stretch, at).map_err(|error| self.unread(&error))?;
            for (block, bytes) in (at / BLOCK..).zip(stretch.chunks(BLOCK_SIZE)) {
                if crcs.get(block as usize) != Some(&crc32c(bytes)) {
                    return Err(self.corrupt(&format!("block {block}")));
                }
            }
            hasher.update(stretch);
            at += size as u64;
        }
        if *hasher.finalize().as_bytes() != seal.blake3 {
            return Err(self.corrupt("its BLAKE3 is not the seal's"));
        }
        if held > seal.length {
            let path = self.dir().data_path(self.chunk());
            tracing::warn!(chunk = self.chunk(), held, length = seal.length, "a data file was too long; cut");
            let file = self.dir().open_writable(&path)?;
            self.dir().truncate(&*file, seal.length)?;
        }
        Ok(true)
    }

    /// The CRCs of all blocks, from a checksum file that is as it was written.
    fn verify_sums(&self, sums: &dyn cairn_host::disk::DiskFile, seal: &Seal) -> Result<Vec<u32>> {
        let (chunk, blocks) = (self.chunk(), seal.blocks() as usize);
        let size = HEADER + SEAL + blocks * RECORD;
        if sums.length().map_err(|error| self.unread(&error))? != size as u64 {
            return Err(self.corrupt("its checksum file has another size than its seal says"));
        }
        let mut bytes = vec![0; size];
        sums.read_exact_at(&mut bytes, 0).map_err(|error| self.unread(&error))?;
        let header = bytes.first_chunk::<HEADER>().map(|header| Header::decode(header, chunk));
        if !matches!(header, Some(Ok(Header { kind: Kind::Sealed, .. }))) {
            return Err(self.corrupt("the header of its checksum file does not hold"));
        }
        let stored = bytes[HEADER..].first_chunk::<SEAL>().and_then(|stored| Seal::decode(stored, chunk));
        if stored != Some(*seal) {
            return Err(self.corrupt("its seal does not hold"));
        }
        let mut crcs = Vec::with_capacity(blocks);
        for (block, slot) in (0u64..).zip(bytes[HEADER + SEAL..].chunks_exact(RECORD)) {
            let length = (seal.length - block * BLOCK).min(BLOCK);
            let record = slot.try_into().ok().and_then(|slot| Record::decode(slot, chunk));
            match record
                .filter(|record| (u64::from(record.block), u64::from(record.length)) == (block, length))
            {
                Some(record) => crcs.push(record.crc),
                None => return Err(self.corrupt(&format!("the record of block {block} does not hold"))),
            }
        }
        Ok(crcs)
    }

    pub(super) fn corrupt(&self, what: &str) -> Error {
        ErrorCode::Corrupt.because(format!("chunk {}: {what}", self.chunk()))
    }
}
