//! A sealed replica that arrives from another datanode.

use std::path::PathBuf;
use std::sync::Arc;

use cairn_host::disk::Handle;
use cairn_proto::checksum::{BlockCrc, pieces};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{ErrorCode, Result};

use super::Store;
use super::directory::Directory;
use super::format::{Seal, encode_file};
use super::replica::{Replica, Sealed, State};

/// A copy under way: files in `tmp` that count for nothing until [`Incoming::finish`].
#[derive(Debug)]
pub struct Incoming {
    chunk: u64,
    length: u64,
    dir: Arc<Directory>,
    data: Handle,
    path: Option<PathBuf>,
    tail: BlockCrc,
    crcs: Vec<u32>,
    hasher: blake3::Hasher,
    /// The replica that it is a copy of, and takes the place of.
    original: Option<Arc<Replica>>,
}

impl Incoming {
    pub(super) fn new(chunk: u64, length: u64, dir: Arc<Directory>) -> Result<Incoming> {
        let path = dir.tmp_path(&format!("{chunk:016x}.data"));
        let data = dir.create(&path)?;
        dir.preallocate(&*data, 0, length);
        Ok(Incoming {
            chunk,
            length,
            dir,
            data,
            path: Some(path),
            tail: BlockCrc::default(),
            crcs: Vec::new(),
            hasher: blake3::Hasher::new(),
            original: None,
        })
    }

    /// It counts only if `original` is still this datanode's replica in the end.
    pub(super) fn instead_of(mut self, original: Arc<Replica>) -> Incoming {
        self.original = Some(original);
        self
    }

    /// Bytes it has.
    pub fn held(&self) -> u64 {
        self.tail.length()
    }

    /// Bytes it still needs.
    pub fn missing(&self) -> u64 {
        self.length - self.held()
    }

    /// Adds verified bytes at its end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.missing() {
            return Err(
                ErrorCode::Malformed.because(format!("chunk {}: more bytes than asked for", self.chunk))
            );
        }
        self.dir.reserve(bytes.len() as u64)?;
        self.dir.write_at(&*self.data, bytes, self.held())?;
        let first = pieces(self.held(), bytes.len()).next().map_or(0, |(block, ..)| block);
        let crcs = self.tail.append(bytes);
        self.crcs.truncate(first as usize);
        self.crcs.extend_from_slice(&crcs);
        self.hasher.update(bytes);
        Ok(())
    }

    /// Compares the whole, makes it durable and puts it in its place, where it replaces whatever this
    /// datanode had of the chunk.
    pub fn finish(mut self, store: &Store, blake3: &[u8]) -> Result<Seal> {
        let chunk = self.chunk;
        if self.missing() != 0 {
            return Err(ErrorCode::PastEnd.because(format!("chunk {chunk}: the copy is not whole")));
        }
        let seal = Seal { length: self.length, blake3: *self.hasher.finalize().as_bytes() };
        if !blake3.is_empty() && *blake3 != seal.blake3 {
            return Err(ErrorCode::Corrupt.because(format!("chunk {chunk}: the copy has another BLAKE3")));
        }
        debug_assert_eq!(self.crcs.len(), self.length.div_ceil(BLOCK_SIZE as u64) as usize);
        let dir = self.dir.clone();
        dir.sync_file(&*self.data)?;
        let content = encode_file(chunk, self.length, &self.crcs, Some(&seal));
        let _claim = store.claim(chunk)?;
        // What was synced proves nothing on a disk that failed meanwhile, where others were told of it.
        dir.working()?;
        if let Some(original) = &self.original
            && !store.get(chunk).is_ok_and(|held| Arc::ptr_eq(&held, original))
        {
            return Err(ErrorCode::ChunkUnknown.because(format!("chunk {chunk}: it was removed meanwhile")));
        }
        // Over what may be there, which is not removed first: its good blocks are good in the new file, too, so a
        // stop between the two renames loses none. Data first: a data file without checksums is removed by a start,
        // the other way round it would be taken for damage.
        if let Some(path) = &self.path {
            dir.rename(path, &dir.data_path(chunk))?;
        }
        self.path = None;
        let was_known = store.knows_in(chunk, &dir);
        dir.replace(&dir.sums_path(chunk), &content).inspect_err(|_| {
            // On a disk that failed, nobody knows what is there.
            if !was_known && !dir.is_fenced() {
                // Nobody would have it removed before the next start.
                let _ = dir.remove_files(chunk);
            }
        })?;
        // What it would take the place of may be good, and its files go.
        dir.working()?;
        dir.gained(self.length);
        let state = State::Sealed(Sealed::whole(seal));
        store.supersede(Arc::new(Replica::new(chunk, dir, state, seal.length)))?;
        Ok(seal)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // A start clears what cannot be removed now.
            let _ = self.dir.disk().remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bytes, open, read, with_chunk};
    use super::*;

    #[test]
    fn what_arrives_on_a_disk_that_has_failed_takes_nobodys_place() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = bytes(1, 3000);
        let (store, appender, _peer) = with_chunk(one.path(), 5, &data, 3000);
        drop(appender);
        let seal = store.seal(5, 3000).unwrap();
        drop(store);
        let store = open(&[one.path(), other.path()], None).unwrap();
        store.set_draining(&[one.path().to_owned()]);
        let held = store.get(5).unwrap();
        let mut incoming = store.incoming(5, 3000, &seal.blake3, true).unwrap().unwrap();
        incoming.write(&data).unwrap();
        incoming.dir.fence("test");
        assert_eq!(incoming.finish(&store, &seal.blake3).unwrap_err().code, ErrorCode::DiskFailed);
        assert!(Arc::ptr_eq(&store.get(5).unwrap(), &held));
        assert_eq!(read(&held, 0, 3000).unwrap(), data);
    }
}
