//! Second replicas of a chunk, in another directory than the one that counts.
//!
//! They come about when a disk is away while its replicas are made up for, some of them on this very datanode, and
//! then returns. The namenode knows of one replica a datanode and orders nothing about another, so they are this
//! store's own to remove: with the one that counts, or as soon as that was read and found whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cairn_proto::Result;

use super::directory::Directory;
use super::replica::{Phase, Replica};
use super::{Store, locked};

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

    /// Removes those of a chunk, on disks that work; the others are found by a later start. In `taken`, another replica
    /// has taken the place of one.
    pub fn remove(&self, chunk: u64, taken: Option<&Arc<Directory>>) -> Result<()> {
        for replica in locked(&self.0).remove(&chunk).unwrap_or_default() {
            let dir = replica.dir();
            dir.lost(replica.length().min(dir.used()));
            if !dir.is_fenced() && !taken.is_some_and(|taken| Arc::ptr_eq(taken, dir)) {
                dir.remove_files(chunk)?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Removes second replicas where the first is whole. It is read for that: the second may have the last good copy of
    /// a block. `stop` is asked between stretches.
    pub(super) fn settle_doubles(&self, stop: &dyn Fn() -> bool) {
        for double in self.doubles.all() {
            if stop() {
                return;
            }
            let chunk = double.chunk();
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
                Err(error) => self.notices().bad(chunk, &error.to_string()),
            }
        }
    }
}
