//! The namespace as the Raft library's state machine: many entries in one transaction of the store.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cairn_host::work::blocking;
use cairn_metadata::store::{Durability, Store, StoreError, Txn};
use cairn_proto::fs::CommandBatch;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prost::Message;
use tokio::time::Instant;

use super::sending::Sending;
use super::snapshot::{self, APPLIED, Builder, Content, HIGHEST_ID, MEMBERSHIP, Snapshot, put};
use super::types::{Entry, LogId, Outcomes, SnapshotMeta, StoredMembership, Types};
use crate::fatal::{self, Alarm};
use crate::log::Log;
use crate::patience;
use crate::store::RedbStore;

/// Entries in one transaction, at most.
const GROUP_ENTRIES: usize = 256;

/// Applies entries to a store.
pub struct StateMachine {
    store: Arc<RedbStore>,
    log: Log,
    sending: Sending,
    checkpoints: Arc<Checkpoints>,
    alarm: Alarm,
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        // The library's task for it has ended. By itself that happens only by a panic, which nobody else notices.
        self.alarm.raise("the task that applies the log ended");
    }
}

/// What apply and the checkpoint loop tell each other.
#[derive(Debug, Default)]
pub struct Checkpoints {
    /// Groups applied since the process started.
    applied: AtomicU64,
    /// A durable commit is under way and holds the store's writer.
    running: AtomicBool,
}

impl StateMachine {
    /// A state machine over `store`, and what its checkpoint loop needs.
    pub fn new(
        store: Arc<RedbStore>,
        log: Log,
        sending: Sending,
        alarm: Alarm,
    ) -> (StateMachine, Arc<Checkpoints>) {
        let checkpoints = Arc::new(Checkpoints::default());
        let machine = StateMachine { store, log, sending, checkpoints: checkpoints.clone(), alarm };
        (machine, checkpoints)
    }

    async fn apply_group(&self, entries: Vec<Entry>) -> io::Result<Vec<Outcomes>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        self.checkpoints.applied.fetch_add(1, Ordering::Relaxed);
        let store = self.store.clone();
        let work = move || apply(&store, &entries);
        // Applying takes microseconds, but behind a checkpoint it waits for the disk.
        let result = match self.checkpoints.running.load(Ordering::Relaxed) {
            true => blocking(self.store.disk(), work).await.map_err(io::Error::other)?,
            false => work(),
        };
        result.map_err(snapshot::other)
    }
}

/// Makes the store durable every `every`, as long as something was applied. This bounds what is replayed after a
/// crash and lets the engine use its freed pages again. `step` is [`patience::STEP`].
pub async fn checkpoint_loop(
    store: Arc<RedbStore>,
    state: Arc<Checkpoints>,
    every: Duration,
    step: Duration,
    alarm: Alarm,
) {
    let mut covered = 0;
    loop {
        tokio::time::sleep(every).await;
        let applied = state.applied.load(Ordering::Relaxed);
        if applied == covered {
            continue;
        }
        let (store, disk) = (store.clone(), store.disk().clone());
        state.running.store(true, Ordering::Relaxed);
        let result = patience::within(blocking(&disk, move || store.checkpoint()), step).await;
        state.running.store(false, Ordering::Relaxed);
        let Some(result) = result else {
            return alarm.raise("the disk does not answer: the store is not made durable");
        };
        match result {
            Ok(Ok(())) => covered = applied,
            Ok(Err(error)) => return alarm.raise(format!("making the store durable: {error}")),
            Err(error) => return alarm.raise(format!("making the store durable: {error}")),
        }
    }
}

/// Applies `entries` and records how far that is, in one transaction. A panic in the core becomes an error: it
/// must end the process, not one task of it.
fn apply(store: &RedbStore, entries: &[Entry]) -> Result<Vec<Outcomes>, StoreError> {
    let attempt = || {
        let mut outcomes = Vec::with_capacity(entries.len());
        store.write(Durability::Applied, &mut |txn| {
            for entry in entries {
                outcomes.push(apply_entry(txn, entry)?);
            }
            match entries.last() {
                Some(last) => put(txn, APPLIED, &last.log_id),
                None => Ok(()),
            }
        })?;
        Ok(outcomes)
    };
    catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|panic| {
        Err(StoreError::Damaged(format!("applying a command panicked: {}", fatal::said(panic.as_ref()))))
    })
}

fn apply_entry(txn: &mut dyn Txn, entry: &Entry) -> Result<Outcomes, StoreError> {
    match &entry.payload {
        EntryPayload::Blank => Ok(Outcomes::default()),
        EntryPayload::Normal(proposal) => {
            let index = entry.log_id.index();
            let batch = CommandBatch::decode(proposal.0.clone())
                .map_err(|error| StoreError::Damaged(format!("log record {index}: {error}")))?;
            Ok(Outcomes(cairn_metadata::apply(txn, &batch)?))
        }
        EntryPayload::Membership(membership) => {
            let highest = membership.nodes().map(|(&id, _)| id).max().unwrap_or(0);
            let highest = highest.max(snapshot::highest_id(txn)?);
            put(txn, HIGHEST_ID, &highest)?;
            let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
            put(txn, MEMBERSHIP, &stored)?;
            Ok(Outcomes::default())
        }
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Content;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let meta = snapshot::current(&self.store).map_err(snapshot::other)?.meta;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut ended = false;
        while !ended {
            let mut group = Vec::new();
            let mut responders = Vec::new();
            while group.len() < GROUP_ENTRIES && !ended {
                match entries.next().await.transpose()? {
                    Some((entry, responder)) => {
                        group.push(entry);
                        responders.push(responder);
                    }
                    None => ended = true,
                }
            }
            let outcomes = self.apply_group(group).await?;
            for (responder, outcomes) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(outcomes);
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        // Without a new snapshot nothing is purged.
        let waits = !force && self.sending.needs_log(self.log.bytes(), Instant::now());
        (!waits).then(|| Builder(self.store.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.store.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, content: Content) -> io::Result<()> {
        snapshot::install(self.store.clone(), meta.clone(), content).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshot = snapshot::current(&self.store).map_err(snapshot::other)?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogOptions;

    #[tokio::test]
    async fn while_a_snapshot_is_sent_none_is_built_unless_it_must_be() {
        let (dir, disk) = (tempfile::tempdir().unwrap(), cairn_host::disk::real());
        let log = Log::open(&dir.path().join("log"), LogOptions::default(), disk.clone()).unwrap();
        let store = Arc::new(RedbStore::open(&dir.path().join("s"), 1 << 20, disk).unwrap());
        let sending = Sending::default();
        let (mut machine, _) = StateMachine::new(store, log, sending.clone(), Alarm::default());
        let sent = sending.begin();
        assert!(machine.try_create_snapshot_builder(false).await.is_none());
        assert!(machine.try_create_snapshot_builder(true).await.is_some());
        drop(sent);
        while machine.try_create_snapshot_builder(false).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_checkpoint_that_does_not_end_raises_the_alarm() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("s"), 1 << 20, cairn_host::disk::real()).unwrap();
        let (store, alarm, state) = (Arc::new(store), Alarm::default(), Arc::new(Checkpoints::default()));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let writer = store.clone();
        let hanging = std::thread::spawn(move || {
            writer.write(Durability::Applied, &mut |_| {
                // As long as this transaction lasts, no other one begins.
                let _ = held.recv();
                Ok(())
            })
        });
        state.applied.store(1, Ordering::Relaxed);
        let step = Duration::from_millis(2);
        checkpoint_loop(store, state, step * 10, step, alarm.clone()).await;
        assert!(alarm.raised().await.starts_with("the disk does not answer"));
        drop(release);
        hanging.join().unwrap().unwrap();
    }
}
