//! Second replicas of a chunk, in another directory than the one that counts.
//!
//! They come about when a disk is away, or hangs, while its replicas are made up for, some of them on this very datanode,
//! and then returns. The namenode knows of one replica a datanode and orders nothing about another, so they are this
//! store's own to remove: with the one that counts, or as soon as that was read and found whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cairn_proto::Result;

use super::directory::Directory;
use super::replica::{Phase, Replica};
use super::{Store, locked, speaks_against};

/// Replicas that are not counted on, by chunk.
#[derive(Debug, Default)]
pub(super) struct Doubles(Mutex<BTreeMap<u64, Vec<Arc<Replica>>>>);

impl Doubles {
    /// Takes one in.
    pub fn add(&self, replica: Arc<Replica>) {
        tracing::warn!(
            chunk = replica.chunk(),
            "a second replica lies in {}",
            replica.dir().path().display()
        );
        locked(&self.0).entry(replica.chunk()).or_default().push(replica);
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Replica>> {
        locked(&self.0).values().flatten().cloned().collect()
    }

    /// Takes one in for another of the same chunk.
    fn swap(&self, out: &Arc<Replica>, replica: &Arc<Replica>) {
        let mut doubles = locked(&self.0);
        let of_chunk = doubles.entry(replica.chunk()).or_default();
        of_chunk.retain(|double| !Arc::ptr_eq(double, out));
        of_chunk.push(replica.clone());
    }

    /// Refuses when the disk of one of a chunk's does not answer.
    pub fn answer(&self, chunk: u64) -> Result<()> {
        let hung = |replica: &&Arc<Replica>| replica.dir().is_hung();
        match locked(&self.0).get(&chunk).and_then(|replicas| replicas.iter().find(hung)) {
            Some(replica) => replica.dir().usable(),
            None => Ok(()),
        }
    }

    /// Removes those of a chunk. What is on a failed disk is found by a later start; what cannot be removed now stays one
    /// of them. In `taken`, another replica has taken the place of one.
    pub fn remove(&self, chunk: u64, taken: Option<&Arc<Directory>>) -> Result<()> {
        let replicas = locked(&self.0).remove(&chunk).unwrap_or_default();
        let mut result = Ok(());
        for replica in replicas {
            let dir = replica.dir();
            let is_gone = dir.is_fenced() || taken.is_some_and(|taken| Arc::ptr_eq(taken, dir));
            let removed = if is_gone { Ok(()) } else { dir.usable().and_then(|()| dir.remove_files(chunk)) };
            match removed {
                Ok(()) => dir.lost(replica.length().min(dir.used())),
                Err(error) => {
                    if !dir.is_hung() {
                        result = Err(error);
                    }
                    locked(&self.0).entry(chunk).or_default().push(replica);
                }
            }
        }
        result
    }
}

impl Store {
    /// Removes second replicas where the first is whole. It is read for that: the second may have the last good copy of
    /// a block. `stop` is asked between stretches. Meant to be called again and again: those on disks that hang are left
    /// for later.
    pub(super) fn settle_doubles(&self, stop: &dyn Fn() -> bool) {
        for double in self.doubles.all() {
            if stop() {
                return;
            }
            let chunk = double.chunk();
            // Two that are bad would be read each time, and wait for a copy all the same.
            let is_hopeless = self.notices().is_bad(chunk) && !may_stand_in(&double);
            if double.dir().is_hung() || is_hopeless {
                continue;
            }
            let Ok(_claim) = self.claim(chunk) else { continue };
            let Ok(counted) = self.get(chunk) else { continue };
            let Some(seal) = counted.seal_record() else { continue };
            if double.phase() == Phase::Sealed && double.seal_record() != Some(seal) {
                // Only the log knows which of them is right.
                continue;
            }
            match counted.verify(&mut |_| !stop()) {
                Ok(true) => {
                    if let Err(error) = self.doubles.remove(chunk, None) {
                        tracing::warn!(chunk, %error, "a second replica was not removed");
                    }
                }
                Ok(false) => return,
                Err(error) if speaks_against(error.code) => {
                    if !self.stands_in(&counted, &double, stop) {
                        self.notices().bad(chunk, &error.to_string());
                    }
                }
                Err(error) => tracing::debug!(chunk, %error, "a second replica stays for now"),
            }
        }
    }

    /// Has a second replica count from now on, if it is whole, instead of one that was found bad: there may be no other
    /// whole one in the cluster.
    fn stands_in(&self, bad: &Arc<Replica>, double: &Arc<Replica>, stop: &dyn Fn() -> bool) -> bool {
        if !may_stand_in(double) {
            return false;
        }
        match double.verify(&mut |_| !stop()) {
            Ok(true) => {}
            Err(error) if speaks_against(error.code) => {
                double.note_flaw(error.to_string());
                return false;
            }
            Ok(false) | Err(_) => return false,
        }
        let chunk = double.chunk();
        tracing::warn!(chunk, "a second replica counts now: the first is bad");
        self.doubles.swap(double, bad);
        self.enlist(double.clone());
        self.notices().forget(chunk);
        if let Err(error) = self.doubles.remove(chunk, None) {
            tracing::warn!(chunk, %error, "a bad replica was not removed");
        }
        self.notices().changed(chunk);
        true
    }
}

/// Whether nothing is known against a second replica.
fn may_stand_in(double: &Replica) -> bool {
    double.phase() == Phase::Sealed && double.flaw().is_none()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::{bytes, flip, open, read, with_chunk};
    use super::*;

    /// A datanode with two directories. A copy took the place of its only replica, chunk 1, while the disk of that hung;
    /// it does again.
    fn with_double(one: &Path, two: &Path) -> (Store, Arc<Replica>) {
        let (store, appender, _peer) = with_chunk(one, 1, &bytes(1, 3000), 3000);
        drop(appender);
        let seal = store.seal(1, 3000).unwrap();
        drop(store);
        let store = open(&[one, two], None).unwrap();
        let old = store.get(1).unwrap();
        let hung = store.hang(0);
        let mut incoming = store.incoming(1, 3000, &seal.blake3, true).unwrap().unwrap();
        incoming.write(&bytes(1, 3000)).unwrap();
        incoming.finish(&store, &seal.blake3).unwrap();
        store.settle_doubles(&|| false);
        assert_eq!((files(one), files(two)), (2, 2), "nobody can remove it yet");
        drop(hung);
        store.look_at_disks();
        (store, old)
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir.join("chunks/01")).unwrap().count()
    }

    #[test]
    fn a_replica_that_was_made_up_for_goes_once_its_disk_answers_again() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, old) = with_double(one.path(), two.path());
        store.settle_doubles(&|| false);
        assert_eq!((files(one.path()), files(two.path())), (0, 2));
        assert!(!Arc::ptr_eq(store.get(1).unwrap().dir(), old.dir()));
        assert_eq!(read(&store.get(1).unwrap(), 0, 3000).unwrap(), bytes(1, 3000));
        assert_eq!(store.space().used, 3000);
    }

    #[test]
    fn a_replica_whose_disk_answers_again_stands_in_for_a_bad_copy() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, old) = with_double(one.path(), two.path());
        flip(&two.path().join("chunks/01/0000000000000001.data"), 500);
        store.notices().bad(1, "found by a reader");
        store.settle_doubles(&|| false);
        assert!(Arc::ptr_eq(&store.get(1).unwrap(), &old) && !store.notices().is_bad(1));
        assert_eq!((files(one.path()), files(two.path())), (2, 0));
    }

    #[test]
    fn two_that_are_bad_wait_for_a_copy_and_are_not_read_again() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, old) = with_double(one.path(), two.path());
        for dir in [one.path(), two.path()] {
            flip(&dir.join("chunks/01/0000000000000001.data"), 500);
        }
        store.settle_doubles(&|| false);
        assert!(store.notices().is_bad(1) && old.flaw().is_some());
        // As good as new, but nobody looks.
        flip(&one.path().join("chunks/01/0000000000000001.data"), 500);
        store.settle_doubles(&|| false);
        assert!(!Arc::ptr_eq(&store.get(1).unwrap(), &old));
        assert_eq!((files(one.path()), files(two.path())), (2, 2));
    }
}
