//! The group of namenodes. The only folder that knows the Raft library; the rest sees a [`Group`].
//!
//! Which version and which traps: `docs/decisions/0001-raft-library.md`.

mod anew;
mod log_storage;
mod members;
mod network;
mod receive;
mod sending;
mod service;
mod snapshot;
mod state_machine;
mod types;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_host::disk::SharedDisk;
use cairn_host::work::blocking;
use cairn_proto::fs::Outcome;
use cairn_proto::{Error, ErrorCode};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError,
};
use openraft::impls::OneshotResponder;
use openraft::{BasicNode, Instant, LinearizerOption, Raft, ServerState, SnapshotPolicy};
use tokio::task::AbortHandle;

pub use anew::begin_anew;
pub use network::{MESSAGE_LIMIT, send_parts};
pub use service::RaftService;
pub use snapshot::highest_id;

use crate::fatal::Alarm;
use crate::log::Log;
use crate::patience;
use crate::store::RedbStore;
use log_storage::LogStorage;
use network::Network;
use sending::Sending;
use state_machine::StateMachine;
use types::{Proposal, Types};

/// How long a read waits for the leader to be sure of itself.
const READ_WAIT: Duration = Duration::from_millis(1500);
/// How long a snapshot may take until it is installed elsewhere. A snapshot is a whole store: it takes as long as it takes,
/// and one that is given up begins again from nothing. Who falls silent on the way is noticed long before, by what sends
/// (`network.rs`), by what receives (`receive.rs`) and by the connection.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// A leader that has heard no majority for so long takes no more proposals.
const QUORUM_PATIENCE: Duration = Duration::from_secs(2);

/// How the group runs.
#[derive(Debug, Clone)]
pub struct GroupSettings {
    /// Shortest and longest silence before a follower stands for election, in milliseconds.
    pub election_timeout_ms: (u64, u64),
    /// How often a leader is heard, in milliseconds.
    pub heartbeat_ms: u64,
    /// Entries between two points up to which the log may be purged.
    pub snapshot_every: u64,
    /// Entries kept in the log although the store has them, for followers that lag.
    pub log_keep: u64,
    /// How often the store is made durable.
    pub checkpoint_every: Duration,
    /// Where received snapshots are put until they are installed.
    pub incoming: PathBuf,
    /// The way to the other members.
    pub network: Arc<dyn cairn_host::net::Network>,
    /// The disk that log and store are on.
    pub disk: SharedDisk,
}

/// What a namenode knows of its group's leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// Whether this namenode leads, as far as it knows.
    pub leads: bool,
    /// The leader's id and address, if known.
    pub leader: Option<(u64, String)>,
}

impl Leadership {
    /// The leader's address, or nothing.
    pub fn address(&self) -> String {
        self.leader.as_ref().map(|(_, address)| address.clone()).unwrap_or_default()
    }
}

/// A handle on the running group; clones share it.
#[derive(Clone)]
pub struct Group {
    raft: Raft<Types, StateMachine>,
    id: u64,
    cluster_id: String,
    settings: Arc<GroupSettings>,
    store: Arc<RedbStore>,
    /// One change of membership at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
    loops: Arc<Loops>,
    alarm: Alarm,
}

/// Background loops that end with the group.
struct Loops(Vec<AbortHandle>);

impl Drop for Loops {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Outcomes of a batch, when they are there.
pub type Pending = tokio::sync::oneshot::Receiver<Result<Vec<Outcome>, Error>>;

impl Group {
    /// Starts this namenode's part of the group, on a recovered log and store.
    pub async fn start(
        id: u64,
        cluster_id: String,
        log: Log,
        store: Arc<RedbStore>,
        settings: GroupSettings,
        alarm: Alarm,
    ) -> Result<Group, Error> {
        if log.vote().is_some() {
            // A vote or an acknowledgement from before the restart may still hold up the leader's lease, and this
            // process does not remember when it gave it. Nobody gets another one before that lease is over.
            tokio::time::sleep(Duration::from_millis(settings.election_timeout_ms.1)).await;
        }
        let config = raft_config(&cluster_id, &settings)?;
        let network = Network {
            id,
            cluster_id: cluster_id.clone(),
            disk: settings.disk.clone(),
            network: settings.network.clone(),
            sending: Sending::default(),
        };
        let sending = network.sending.clone();
        let (machine, checkpoints) = StateMachine::new(store.clone(), log.clone(), sending, alarm.clone());
        let raft = Raft::new(id, config, network, LogStorage(log.clone()), machine)
            .await
            .map_err(|error| ErrorCode::Io.because(format!("starting Raft: {error}")))?;
        let checkpointing = state_machine::checkpoint_loop(
            store.clone(),
            checkpoints,
            settings.checkpoint_every,
            patience::STEP,
            alarm.clone(),
        );
        let loops = vec![
            alarm.spawn("the task that makes the store durable", checkpointing),
            alarm.spawn("the task that watches Raft", watch_fatal(raft.clone(), alarm.clone())),
            alarm.spawn("the task that watches the log", watch_log(log, patience::STEP, alarm.clone())),
        ];
        let changing = Arc::default();
        Ok(Group {
            raft,
            id,
            cluster_id,
            settings: Arc::new(settings),
            store,
            changing,
            loops: Arc::new(Loops(loops)),
            alarm,
        })
    }

    /// This namenode's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The cluster it serves.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Why nothing can be proposed here now; nothing if this namenode leads.
    pub fn refusal(&self) -> Option<Error> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state == ServerState::Leader {
            let alone = metrics.membership_config.voter_ids().count() <= 1;
            let heard = alone || metrics.last_quorum_acked.is_none_or(|at| at.elapsed() < QUORUM_PATIENCE);
            // Its entries would wait for as long as the others are away.
            return (!heard)
                .then(|| ErrorCode::NoLeader.because("the leader hears no majority of the namenodes"));
        }
        let leader = metrics.current_leader.and_then(|leader| metrics.membership_config.get_node(&leader));
        Some(match leader {
            Some(node) => ErrorCode::NotLeader.because(node.addr.clone()),
            None => ErrorCode::NoLeader.into(),
        })
    }

    /// Makes the first membership. Does nothing if there is one already.
    pub async fn initialize(&self, members: &BTreeMap<u64, String>) -> Result<(), Error> {
        let nodes: BTreeMap<u64, BasicNode> =
            members.iter().map(|(&id, address)| (id, BasicNode::new(address))).collect();
        match self.raft.initialize(nodes).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ErrorCode::Io.because(format!("forming the group: {error}"))),
        }
    }

    /// What is known of the leader.
    pub fn leadership(&self) -> Leadership {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.and_then(|leader| {
            let node = metrics.membership_config.get_node(&leader)?;
            Some((leader, node.addr.clone()))
        });
        Leadership { term: metrics.vote.leader_id.term, leads: metrics.state == ServerState::Leader, leader }
    }

    /// Waits until [`Group::leadership`] differs from `known`; `None` when the group has stopped.
    pub async fn leadership_after(&self, known: &Leadership) -> Option<Leadership> {
        // These change with the leader and the members only, not with every entry.
        let mut metrics = self.raft.server_metrics();
        loop {
            let now = self.leadership();
            if now != *known {
                return Some(now);
            }
            metrics.changed().await.ok()?;
        }
    }

    /// Index of the last entry the store has applied.
    pub fn applied(&self) -> u64 {
        self.raft.metrics().borrow_watched().last_applied.map_or(0, |id| id.index())
    }

    /// Index of the last entry of this namenode's log.
    pub fn last_log(&self) -> u64 {
        self.raft.metrics().borrow_watched().last_log_index.unwrap_or(0)
    }

    /// Puts an encoded `CommandBatch` into the log, in the order of calls. The outcomes come later, or an error:
    /// after `Unavailable` nobody knows whether the batch will be applied.
    pub async fn write(&self, batch: Bytes) -> Result<Pending, Error> {
        let (responder, applied) = OneshotResponder::new_pair();
        self.raft.client_write_ff(Proposal(batch), Some(responder)).await.map_err(stopped)?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let result = match applied.await {
                Ok(Ok(response)) => Ok(response.data.0),
                Ok(Err(error)) => Err(refused(error)),
                Err(_) => Err(ErrorCode::Unavailable.because("the namenode is stopping")),
            };
            // Nobody may wait any more.
            let _ = sender.send(result);
        });
        Ok(receiver)
    }

    /// Returns once a read of the store sees everything acknowledged before the call, by the leader's lease.
    pub async fn ensure_readable(&self) -> Result<(), Error> {
        let option = LinearizerOption::new(None, true).with_wait_timeout(READ_WAIT);
        let ready = async {
            let linearizer = self.raft.get_read_linearizer(option).await?;
            linearizer.try_await_ready(&self.raft, Some(READ_WAIT)).await.map_err(RaftError::Fatal)
        };
        match ready.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ErrorCode::NoLeader.because("the new leader is still catching up")),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => Err(forward(&to)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ErrorCode::NoLeader.because("the leader hears no majority of the namenodes"))
            }
            Err(RaftError::Fatal(error)) => Err(stopped(error)),
        }
    }

    /// Stops taking part and makes the store durable.
    pub async fn shutdown(&self) {
        self.alarm.disarm();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "stopping Raft");
        }
        self.loops.0.iter().for_each(AbortHandle::abort);
        let store = self.store.clone();
        match blocking(&self.settings.disk, move || store.checkpoint()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the store was not made durable at the end; the log has it")
            }
            Err(error) => tracing::warn!(%error, "the store was not made durable at the end; the log has it"),
        }
    }
}

fn raft_config(cluster_id: &str, settings: &GroupSettings) -> Result<Arc<openraft::Config>, Error> {
    let config = openraft::Config {
        cluster_name: cluster_id.to_owned(),
        election_timeout_min: settings.election_timeout_ms.0,
        election_timeout_max: settings.election_timeout_ms.1,
        heartbeat_interval: settings.heartbeat_ms,
        enable_pre_vote: Some(true),
        // A leader that goes on after its restart proposes no entry of its own. It would call itself readable once the
        // first entry of its term is applied again, while those after it, acknowledged long ago, are not.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(settings.snapshot_every.max(1)),
        max_in_snapshot_log_to_keep: settings.log_keep,
        // A follower whose disk lost what it had acknowledged, the end of its log, is sent it again; else it would be asked
        // for ever to go on from what it does not have. What a majority has accepted stays accepted. The library warns of
        // a voter that was wiped, and forgot its votes with its log: here that one never comes back, since ids are not used
        // twice (`members.rs`).
        allow_log_reversion: Some(true),
        install_snapshot_timeout: SNAPSHOT_LIMIT.as_millis() as u64,
        ..openraft::Config::default()
    };
    let config =
        config.validate().map_err(|error| ErrorCode::Invalid.because(format!("Raft options: {error}")))?;
    Ok(Arc::new(config))
}

/// Raises the alarm when the library has stopped for any other reason than being told to.
async fn watch_fatal(raft: Raft<Types, StateMachine>, alarm: Alarm) {
    let mut metrics = raft.metrics();
    loop {
        let state = metrics.borrow_watched().running_state.clone();
        match state {
            Ok(()) => {}
            Err(error) => return alarm.raise(format!("Raft stopped: {error}")),
        }
        if metrics.changed().await.is_err() {
            return alarm.raise("Raft's task ended");
        }
    }
}

/// Raises the alarm when the log's writer does not come to the end of something. `step` is [`patience::STEP`].
async fn watch_log(log: Log, step: Duration, alarm: Alarm) {
    let (mut seen, mut steps) = (None, 0);
    while steps < patience::STEPS {
        tokio::time::sleep(step).await;
        let now = log.under_way();
        steps = if now.is_some() && now == seen { steps + 1 } else { 0 };
        seen = now;
    }
    alarm.raise("the disk does not answer: the log is not written");
}

fn stopped(error: Fatal<Types>) -> Error {
    ErrorCode::Unavailable.because(format!("the namenode is stopping: {error}"))
}

fn forward(to: &ForwardToLeader<Types>) -> Error {
    match &to.leader_node {
        Some(node) => ErrorCode::NotLeader.because(node.addr.clone()),
        None => ErrorCode::NoLeader.into(),
    }
}

fn refused(error: ClientWriteError<Types>) -> Error {
    match error {
        ClientWriteError::ForwardToLeader(to) => forward(&to),
        // It may still be committed by the next leader.
        ClientWriteError::LogEntryDiscarded(_) => {
            ErrorCode::Unavailable.because("the leader changed before the change was known to be made")
        }
        other => ErrorCode::Unavailable.because(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogOptions;

    #[tokio::test]
    async fn a_log_that_is_not_written_raises_the_alarm() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), LogOptions::default(), cairn_host::disk::real()).unwrap();
        assert_eq!(log.under_way(), None);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hang = move |_| assert!(held.recv().is_err());
        log.save_vote(Bytes::from_static(b"vote"), Box::new(hang)).unwrap();
        let alarm = Alarm::default();
        watch_log(log.clone(), Duration::from_millis(5), alarm.clone()).await;
        assert!(alarm.raised().await.starts_with("the disk does not answer"));
        drop(release);
        log.close();
        assert_eq!(log.under_way(), None);
    }
}
