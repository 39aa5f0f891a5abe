//! Waiting until a file's bytes are on the disks of all replicas.
//!
//! What was written through an open file is known by its chunks. What was there before, or was cloned into the file, may
//! be in a chunk that this client still has open, or that was sealed a moment ago: the layout says so, and is asked
//! once. Chunks that another client has open are its own to sync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use cairn_proto::data::ReplicaStat;
use cairn_proto::limits::MAX_LAYOUT_PAGE;
use cairn_proto::{Error, ErrorCode, Result, fs};

use super::Inode;
use super::inode::State;
use crate::namespace::root;

/// Chunks whose disks are waited for at the same time.
const SYNCS_AT_ONCE: usize = 8;
/// Chunks that are known to be on disk.
const MAX_KNOWN: usize = 64 << 10;

/// Sealed chunks all replicas of which were on disk once: nobody has to ask again. Copies made later are on disk before
/// they count.
#[derive(Default)]
pub(crate) struct OnDisk(Mutex<BTreeSet<u64>>);

impl OnDisk {
    fn knows(&self, chunk: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&chunk)
    }

    fn note(&self, chunk: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            // The oldest chunks have the lowest numbers.
            known.pop_first();
        }
        known.insert(chunk);
    }
}

impl State {
    /// The committed bytes at `offset` may not be on disk.
    pub(super) fn doubt(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let end = offset.saturating_add(length);
        let (low, high) = self.doubtful.unwrap_or((offset, end));
        self.doubtful = Some((low.min(offset), high.max(end)));
        self.doubts += 1;
    }
}

impl State {
    /// Chunks are on disk up to these lengths.
    fn synced(&mut self, lengths: &BTreeMap<u64, u64>) {
        self.unsynced.retain(|chunk, end| lengths.get(chunk).is_none_or(|synced| *end > *synced));
    }
}

impl Inode {
    /// Waits for all that has landed in chunks, but for those that were returned: they are sealed and no file names a
    /// byte of them, so nobody has their replicas sealed either. What lies there is overwritten, or not committed yet.
    pub(super) async fn make_durable(&self) -> Result<BTreeMap<u64, u64>> {
        let (unsynced, doubtful, doubts) = {
            let state = self.state();
            (state.unsynced.clone(), state.doubtful, state.doubts)
        };
        let mut wanted = unsynced.clone();
        self.in_doubt(doubtful, &mut wanted).await?;
        let unnamed = self.engine.make_durable(wanted.into_iter().collect()).await?;
        let mut state = self.state();
        // Not before: another sync that comes meanwhile must wait for it, too.
        if state.doubts == doubts {
            state.doubtful = None;
        }
        let synced = unsynced.into_iter().filter(|(chunk, _)| !unnamed.contains_key(chunk)).collect();
        state.synced(&synced);
        Ok(unnamed)
    }

    /// Waits for chunks that no file named before the last commit. Those that none names now hold nothing of it.
    pub(super) async fn make_named_durable(&self, unnamed: BTreeMap<u64, u64>) -> Result<()> {
        let still = self.engine.make_durable(unnamed.clone().into_iter().collect()).await?;
        // Those that no file names even now may be about to be named.
        let synced = unnamed.into_iter().filter(|(chunk, _)| !still.contains_key(chunk)).collect();
        self.state().synced(&synced);
        Ok(())
    }

    /// Adds the chunks of a range of which this client has to make sure.
    async fn in_doubt(&self, range: Option<(u64, u64)>, wanted: &mut BTreeMap<u64, u64>) -> Result<()> {
        let Some((mut start, end)) = range else { return Ok(()) };
        let session = self.engine.channel.live_session().map(|session| session.id());
        while start < end {
            let ask = fs::GetLayout {
                at: Some(self.node()),
                follow: false,
                offset: start,
                length: end - start,
                limit: MAX_LAYOUT_PAGE,
            };
            let answer = self.engine.query(&root(), fs::query::Op::Layout(ask)).await?;
            let fs::answer::Result::Layout(layout) = answer else {
                return Err(ErrorCode::Malformed.because("the namenode's answer to layout"));
            };
            let doubtful: Vec<u64> = layout
                .chunks
                .iter()
                .filter(|chunk| match chunk.state() {
                    fs::ChunkState::Open => Some(chunk.session) == session,
                    // Its digest would say that one replica is on disk, not that all are.
                    _ => true,
                })
                .map(|chunk| chunk.chunk)
                .collect();
            for extent in &layout.extents {
                if doubtful.contains(&extent.chunk) {
                    let end = wanted.entry(extent.chunk).or_default();
                    *end = (extent.chunk_offset + extent.length).max(*end);
                }
            }
            match layout.extents.last() {
                Some(last) if !layout.end => start = last.file_offset + last.length,
                _ => break,
            }
        }
        Ok(())
    }
}

impl crate::engine::Engine {
    /// Waits until each chunk is on the disks of its replicas up to the length given. Returns those that are sealed
    /// and that no file names, which nobody waits for.
    pub(crate) async fn make_durable(&self, lengths: Vec<(u64, u64)>) -> Result<BTreeMap<u64, u64>> {
        use futures::{StreamExt, TryStreamExt};
        let unnamed: Vec<Option<(u64, u64)>> = futures::stream::iter(lengths)
            .map(|(chunk, length)| async move {
                let is_named = self.make_chunk_durable(chunk, length).await?;
                Ok::<_, Error>((!is_named).then_some((chunk, length)))
            })
            .buffer_unordered(SYNCS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(unnamed.into_iter().flatten().collect())
    }

    /// Through its chain while that lives. Afterwards the chunk is being sealed, and a replica is sealed only
    /// when it is on disk: wait until those that count say so. False: it is sealed and no file names it.
    async fn make_chunk_durable(&self, chunk: u64, length: u64) -> Result<bool> {
        if self.durable.knows(chunk) || self.lanes.sync(chunk, length).await {
            return Ok(true);
        }
        let deadline = tokio::time::Instant::now() + self.config.operation_timeout;
        let mut backoff = crate::backoff::Backoff::new();
        loop {
            let info = match self.chunk(chunk).await {
                // Purged: everything that lay there was overwritten or deleted since.
                Err(error) if error.code == ErrorCode::ChunkUnknown => return Ok(true),
                info => info?,
            };
            if info.state() == fs::ChunkState::Sealed && info.live_bytes == 0 && info.kept_bytes == 0 {
                return Ok(false);
            }
            let stats =
                counted(&info.replicas).into_iter().map(|replica| self.reader.pool().stat(replica, chunk));
            let stats = futures::future::join_all(stats).await;
            if are_on_disk(&stats, length, !info.blake3.is_empty()) {
                if stats.iter().all(|stat| stat.as_ref().is_ok_and(|stat| stat.sealed)) {
                    self.durable.note(chunk);
                }
                return Ok(true);
            }
            if tokio::time::Instant::now() >= deadline {
                let detail = format!("chunk {chunk} is not on all its disks");
                return Err(ErrorCode::Timeout.because(detail));
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

/// The replicas that have to be on disk: those on datanodes that live, without the bad ones while others are good.
fn counted(replicas: &[fs::ReplicaInfo]) -> Vec<&fs::ReplicaInfo> {
    let living = || replicas.iter().filter(|replica| replica.liveness() != fs::Liveness::Dead);
    let good: Vec<_> = living().filter(|replica| !replica.bad).collect();
    if good.is_empty() { living().collect() } else { good }
}

/// Whether all replicas are on disk that say anything. `hashed`: one was sealed some time, and then nobody waits for those
/// that do not answer, as they do not when a datanode has died.
fn are_on_disk(stats: &[Result<ReplicaStat>], length: u64, hashed: bool) -> bool {
    let mut some = false;
    for stat in stats {
        match stat {
            Ok(stat) if is_on_disk(stat, length) => some = true,
            Err(_) if hashed => {}
            Ok(_) | Err(_) => return false,
        }
    }
    some
}

/// A chunk of which all replicas have lost what was not synced is never sealed, but what they have is on disk.
fn is_on_disk(stat: &ReplicaStat, length: u64) -> bool {
    stat.synced >= length || (stat.sealed && stat.length >= length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_chunk_with_a_digest_only_replicas_that_answer_are_waited_for() {
        let sealed = || Ok(ReplicaStat { length: 7, sealed: true, ..ReplicaStat::default() });
        let open = || Ok(ReplicaStat { length: 7, ..ReplicaStat::default() });
        let silent = || Err(ErrorCode::Unavailable.into());
        let are = |stats: &[Result<ReplicaStat>]| (are_on_disk(stats, 7, false), are_on_disk(stats, 7, true));
        assert_eq!(are(&[sealed(), sealed()]), (true, true));
        assert_eq!(are(&[sealed(), open()]), (false, false));
        assert_eq!(are(&[sealed(), silent()]), (false, true));
        assert_eq!(are(&[silent(), silent()]), (false, false));
        assert_eq!(are(&[]), (false, false));
    }

    #[test]
    fn bad_replicas_are_waited_for_only_if_none_is_good() {
        let replica = |node, bad, dead| {
            let liveness = if dead { fs::Liveness::Dead } else { fs::Liveness::Live };
            fs::ReplicaInfo { node, bad, liveness: liveness.into(), ..Default::default() }
        };
        let of = |replicas: &[fs::ReplicaInfo]| {
            counted(replicas).into_iter().map(|replica| replica.node).collect::<Vec<_>>()
        };
        let (good, bad, dead) = (replica(1, false, false), replica(2, true, false), replica(3, false, true));
        assert_eq!(of(&[good.clone(), bad.clone(), dead.clone()]), [1]);
        assert_eq!(of(&[bad, dead.clone()]), [2]);
        assert!(of(&[dead]).is_empty());
    }
}
