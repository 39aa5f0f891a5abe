//! Emptying a data directory into the datanode's others, so that its disk can be taken out.

use std::path::PathBuf;
use std::sync::Arc;

use cairn_proto::fs::DrainingDirectory;
use cairn_proto::limits::MAX_PAYLOAD;
use cairn_proto::{Error, ErrorCode, Result};

use super::{Incoming, Phase, Replica, Scratch, Seal, Store, read_locked, speaks_against};

/// Directories that are told of.
const TOLD: usize = 64;

impl Store {
    /// These directories take no new replicas from now on; others of the same names are passed over.
    pub fn set_draining(&self, paths: &[PathBuf]) {
        self.dirs
            .iter()
            .filter(|dir| paths.iter().any(|path| path == dir.path()))
            .for_each(|dir| dir.drain());
    }

    /// The sealed replica with the least chunk from `first` on that is to be moved.
    pub fn next_to_drain(&self, first: u64) -> Option<Arc<Replica>> {
        if !self.dirs.iter().any(|dir| dir.is_draining()) {
            return None;
        }
        let is_wanted = |replica: &&Arc<Replica>| {
            let dir = replica.dir();
            dir.is_draining()
                && dir.is_usable()
                && replica.phase() == Phase::Sealed
                && !self.notices.is_bad(replica.chunk())
        };
        read_locked(&self.replicas).range(first..).map(|(_, replica)| replica).find(is_wanted).cloned()
    }

    /// What is left in directories that are being drained.
    pub fn draining(&self) -> Vec<DrainingDirectory> {
        let dirs = self.dirs.iter().filter(|dir| dir.is_draining() && !dir.is_fenced()).take(TOLD);
        let replicas = read_locked(&self.replicas);
        dirs.map(|dir| {
            let held = replicas.values().filter(|replica| Arc::ptr_eq(replica.dir(), dir));
            let (count, bytes) =
                held.fold((0, 0), |(count, bytes), replica| (count + 1, bytes + replica.length()));
            DrainingDirectory { path: dir.path().display().to_string(), replicas: count, bytes }
        })
        .collect()
    }

    /// Moves a sealed replica into another directory, verified on the way; `go_on` is told of bytes that are about to be
    /// moved. Until it is there whole, the old one is the replica.
    pub fn move_away(
        &self,
        replica: &Arc<Replica>,
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Seal>> {
        let chunk = replica.chunk();
        let seal =
            replica.seal_record().ok_or_else(|| ErrorCode::ChunkUnknown.because(format!("chunk {chunk}")))?;
        let target = self.roomiest(seal.length)?;
        let mut incoming = Incoming::new(chunk, seal.length, target)?.instead_of(replica.clone());
        let mut scratch = Scratch::default();
        while incoming.missing() > 0 {
            let length = incoming.missing().min(MAX_PAYLOAD as u64) as usize;
            if !go_on(length) {
                return Ok(None);
            }
            let read = replica.read(incoming.held(), length, &mut scratch);
            let read = read.inspect_err(|error| self.accuse_for(replica, error))?;
            incoming.write(scratch.bytes(read))?;
        }
        let moved = incoming.finish(self, &seal.blake3).inspect_err(|error| {
            // An error of the disk would be the other directory's.
            if error.code == ErrorCode::Corrupt {
                self.accuse_for(replica, error);
            }
        })?;
        // Nobody ordered it, and its old directory may have been reported gone while it was moved.
        self.notices.changed(chunk);
        Ok(Some(moved))
    }

    /// A replica that cannot be read whole is made up for by the namenode; it is not offered for moving again.
    fn accuse_for(&self, replica: &Arc<Replica>, error: &Error) {
        if speaks_against(error.code) {
            self.accuse(replica, &format!("moving it: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{append, bytes, flip, open, stream, with_chunk};
    use super::*;

    #[test]
    fn a_replica_that_cannot_be_read_is_accused_and_not_offered_again() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, appender, _peer) = with_chunk(one.path(), 5, &bytes(1, 100_000), 50_000);
        drop(appender);
        store.seal(5, 100_000).unwrap();
        drop(store);
        let store = open(&[one.path(), other.path()], None).unwrap();
        store.set_draining(&[one.path().to_owned()]);
        let replica = store.next_to_drain(0).unwrap();
        flip(&replica.dir().data_path(5), 70_000);
        assert_eq!(store.move_away(&replica, &mut |_| true).unwrap_err().code, ErrorCode::Corrupt);
        assert!(store.notices().is_bad(5) && store.next_to_drain(0).is_none());
    }

    #[test]
    fn a_drained_directory_is_empty_and_everything_is_in_the_other() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open(&[one.path(), other.path()], None).unwrap();
        let content = |chunk: u64| bytes(chunk, 100_000 + chunk as usize * 1_000);
        let mut peers = Vec::new();
        for chunk in 1..=8 {
            let (socket, peer) = stream();
            peers.push(peer);
            let mut appender = store.open_appender(chunk, 0, &socket).unwrap();
            append(&mut appender, &content(chunk)).unwrap();
            drop(appender);
            store.seal(chunk, content(chunk).len() as u64).unwrap();
        }
        store.set_draining(&[one.path().to_owned()]);
        assert_eq!(store.draining().len(), 1);
        let before = store.draining()[0].replicas;
        assert!(before > 0 && before < 8, "both have some: {before}");
        // Deleted while it is being moved: it does not come back.
        let gone = store.next_to_drain(0).unwrap();
        let mut deleted = false;
        let moved = store.move_away(&gone, &mut |_| {
            if !std::mem::replace(&mut deleted, true) {
                store.delete(gone.chunk()).unwrap();
            }
            true
        });
        assert!(moved.is_err() && store.get(gone.chunk()).is_err());
        // Stopped in the middle: it stays where it was.
        let kept = store.next_to_drain(0).unwrap();
        assert_eq!(store.move_away(&kept, &mut |_| false).unwrap(), None);
        assert!(Arc::ptr_eq(&store.get(kept.chunk()).unwrap(), &kept));
        while let Some(replica) = store.next_to_drain(0) {
            store.notices().take();
            store.move_away(&replica, &mut |_| true).unwrap().unwrap();
            assert!(store.notices().take().changed.contains(&replica.chunk()));
        }
        let left = &store.draining()[0];
        assert_eq!((left.replicas, left.bytes), (0, 0));
        let check = |store: &Store| {
            for chunk in (1..=8).filter(|chunk| *chunk != gone.chunk()) {
                let replica = store.get(chunk).unwrap();
                assert!(replica.verify(&mut |_| true).unwrap());
                let mut scratch = Scratch::default();
                let length = content(chunk).len();
                let read = replica.read(0, length, &mut scratch).unwrap();
                assert_eq!(scratch.bytes(read), content(chunk));
            }
        };
        check(&store);
        store.close();
        drop(store);
        // The disk is taken out.
        drop(one);
        check(&open(&[other.path()], None).unwrap());
    }
}
