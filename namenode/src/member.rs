//! This namenode as a member of its group: everything that runs once it has its place.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_host::clock::Clock;
use cairn_host::disk::{Disk, SharedDisk};
use cairn_host::net::Network;
use cairn_host::work::blocking;
use cairn_metadata::records;
use cairn_metadata::store::{Store, StoreError, View};
use cairn_proto::capability::KEY;
use cairn_proto::fs::{Answer, CommandBatch, FormCluster, Outcome, answer, mutation, outcome};
use cairn_proto::limits::REPLICATION;
use cairn_proto::{Error, ErrorCode};
use prost::Message;
use tokio::task::AbortHandle;

use crate::attend::Datanodes;
use crate::chores::{EmptyTrash, ReleaseSnapshots, attend_to};
use crate::config::Config;
use crate::counters::Counters;
use crate::fatal::Alarm;
use crate::identity::{Identity, Phase};
use crate::leader_clock::LeaderClock;
use crate::log::{Log, LogError, LogOptions};
use crate::propose::{Proposer, own};
use crate::raft::{Group, GroupSettings};
use crate::sessions::Sessions;
use crate::store::RedbStore;

/// The log, below a namenode's directory.
pub const LOG: &str = "log";
/// The store, below it.
pub const STORE: &str = "store.redb";
const INCOMING: &str = "incoming";
/// How often a leader looks for learners that have caught up, and retries what failed when it took over.
const LEADER_ROUND: Duration = Duration::from_millis(200);

/// The parts of a running member.
pub struct Member {
    /// The group.
    pub group: Group,
    /// The namespace.
    pub store: Arc<RedbStore>,
    /// The way into the log.
    pub proposer: Proposer,
    /// Datanodes, as the leader sees them.
    pub datanodes: Datanodes,
    /// Clients' leases, as the leader keeps them.
    pub sessions: Sessions,
    /// What it counts.
    pub counters: Arc<Counters>,
    /// Where fatal errors go.
    pub alarm: Alarm,
    log: Log,
    disk: SharedDisk,
    /// This namenode leads, and everything a leader needs is set up.
    ready: Arc<AtomicBool>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Member {
    /// Opens what is on disk under `identity` and starts. Writes down that the identity is active before Raft runs.
    pub async fn start(config: &Config, identity: &mut Identity, alarm: Alarm) -> Result<Arc<Member>, Error> {
        let (log, store) = open(config, identity).await?;
        if identity.phase != Phase::Active {
            identity.phase = Phase::Active;
            identity.save(&*config.disk, &config.dir)?;
        }
        let settings = GroupSettings {
            election_timeout_ms: config.election_timeout_ms,
            heartbeat_ms: config.heartbeat_ms,
            snapshot_every: config.snapshot_every,
            log_keep: config.log_keep,
            checkpoint_every: Duration::from_millis(config.checkpoint_ms),
            incoming: config.dir.join(INCOMING),
            network: config.host.network.clone(),
            disk: config.disk.clone(),
        };
        let cluster_id = identity.cluster_id.clone();
        let group =
            Group::start(identity.id, cluster_id, log.clone(), store.clone(), settings, alarm.clone())
                .await?;
        if !identity.first_members.is_empty() {
            // Also after a crash between writing the identity down and forming the group: it does nothing when the
            // group has a membership already.
            group.initialize(&identity.first_members).await?;
        }
        let counters = Arc::new(Counters::default());
        let clock = LeaderClock::new(config.host.clock.clone());
        let proposer = Proposer::start(group.clone(), Arc::new(clock.clone()), counters.clone(), &alarm);
        let datanodes = Datanodes::new(
            store.clone(),
            proposer.clone(),
            Arc::new(clock.clone()),
            config.attend_settings(),
            alarm.clone(),
        );
        let sessions = Sessions::new(Duration::from_millis(config.session_lease_ms));
        let ready = Arc::new(AtomicBool::new(false));
        let leader = Leader {
            group: group.clone(),
            store: store.clone(),
            proposer: proposer.clone(),
            datanodes: datanodes.clone(),
            sessions: sessions.clone(),
            ready: ready.clone(),
            form: founding(config, identity),
            clock: clock.clone(),
            network: config.host.network.clone(),
        };
        let expiring = sessions.clone().watch(group.clone(), store.clone(), proposer.clone(), alarm.clone());
        let emptying = EmptyTrash(Arc::new(clock.clone()));
        let emptying = attend_to(emptying, sessions.clone(), store.clone(), proposer.clone(), alarm.clone());
        let releasing =
            attend_to(ReleaseSnapshots, sessions.clone(), store.clone(), proposer.clone(), alarm.clone());
        let comparing = clock.keep(group.clone(), config.host.network.clone());
        let tasks = vec![
            alarm.spawn("the task that takes over and hands over", leader.watch()),
            alarm.spawn("the task that compares the clocks", comparing),
            alarm.spawn("the task that ends sessions", expiring),
            alarm.spawn("the task that empties the trash", emptying),
            alarm.spawn("the task that releases snapshots", releasing),
        ];
        tracing::info!(id = identity.id, cluster = %identity.cluster_id, "this namenode is a member of its group");
        let disk = config.disk.clone();
        Ok(Arc::new(Member {
            group,
            store,
            proposer,
            datanodes,
            sessions,
            counters,
            alarm,
            log,
            disk,
            ready,
            tasks,
        }))
    }

    /// Why this namenode cannot serve clients now; nothing if it leads.
    pub fn refusal(&self) -> Option<Error> {
        match self.group.refusal() {
            None if self.ready.load(Ordering::Acquire) => None,
            None => Some(ErrorCode::NoLeader.because("the new leader is taking over")),
            refusal => refusal,
        }
    }

    /// Runs `body` over a view of the namespace. A store that fails ends the namenode.
    pub fn view<T: Default>(
        &self,
        mut body: impl FnMut(&dyn View) -> Result<T, StoreError>,
    ) -> Result<T, Error> {
        let mut found = T::default();
        let read = self.store.read(&mut |view| {
            found = body(view)?;
            Ok(())
        });
        match read {
            Ok(()) => Ok(found),
            Err(error) => {
                self.alarm.raise(error.to_string());
                // Another namenode has the same records.
                Err(ErrorCode::Unavailable.because(error.to_string()))
            }
        }
    }

    /// Whose a session is, if it exists; empty: anybody's.
    pub fn owner_of(&self, session: u64) -> Result<Option<String>, Error> {
        self.view(|view| Ok(records::session(view, session)?.map(|session| session.owner)))
    }

    /// Replicas of a chunk when nobody says how many.
    pub fn default_replication(&self) -> Result<u32, Error> {
        let meta = self.view(records::meta)?;
        Ok(meta.map_or(REPLICATION, |meta| meta.default_replication))
    }

    /// Adds to an answer what only the leader knows.
    pub fn decorate(&self, answer: &mut Answer) {
        self.datanodes.decorate(answer);
        if let Some(answer::Result::Status(status)) = &mut answer.result {
            status.namenodes = self.group.namenodes();
            status.term = self.group.leadership().term;
            status.applied = self.group.applied();
            status.work = Some(Box::new(self.counters.work()));
        }
    }

    /// Stops taking part; what was acknowledged is on disk when this returns.
    pub async fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.ready.store(false, Ordering::Release);
        self.datanodes.follow().await;
        self.sessions.follow();
        self.group.shutdown().await;
        let log = self.log.clone();
        if blocking(&self.disk, move || log.close()).await.is_err() {
            tracing::warn!("the log was not closed");
        }
    }
}

/// The cluster's first record, should this namenode be its first leader.
fn founding(config: &Config, identity: &Identity) -> FormCluster {
    // SAFETY: these calls only read what the process is; they cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    FormCluster {
        cluster_id: identity.cluster_id.clone(),
        default_replication: config.default_replication,
        chunk_size: config.chunk_size,
        uid,
        gid,
        secret: if config.tls.is_some() { rand::random::<[u8; KEY]>().to_vec().into() } else { Bytes::new() },
    }
}

/// Opens log and store. An active namenode without its log has forgotten its votes and must not run.
async fn open(config: &Config, identity: &Identity) -> Result<(Log, Arc<RedbStore>), Error> {
    let (dir, disk) = (config.dir.clone(), config.disk.clone());
    let cache_bytes = config.cache_bytes;
    let options =
        LogOptions { segment_bytes: config.log_segment_bytes, recent_bytes: config.log_recent_bytes };
    let active = identity.phase == Phase::Active;
    let work = move || {
        clear(&*disk, &dir.join(INCOMING));
        let log_dir = dir.join(LOG);
        let there = Log::exists(&*disk, &log_dir)
            .map_err(|error| ErrorCode::Io.because(format!("{}: {error}", log_dir.display())))?;
        if active && !there {
            let what = format!(
                "{} has an identity but no log; move the directory away and start empty, to join again",
                dir.display()
            );
            return Err(ErrorCode::Io.because(what));
        }
        let damaged = |error: LogError| ErrorCode::Io.because(error.to_string());
        let log = Log::open(&log_dir, options, disk.clone()).map_err(damaged)?;
        let store = RedbStore::open(&dir.join(STORE), cache_bytes, disk)
            .map_err(|error| ErrorCode::Io.because(error.to_string()))?;
        Ok((log, Arc::new(store)))
    };
    let opened = blocking(&config.disk, work).await;
    opened.map_err(|error| ErrorCode::Io.because(format!("opening the store: {error}")))?
}

/// Snapshots that were being received when the process ended are of no use.
fn clear(disk: &dyn Disk, incoming: &Path) {
    match disk.remove_dir_all(incoming) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %incoming.display(), "unfinished snapshots were not removed");
        }
        _ => {}
    }
}

/// Sets up and takes down what only a leader has.
struct Leader {
    group: Group,
    store: Arc<RedbStore>,
    proposer: Proposer,
    datanodes: Datanodes,
    sessions: Sessions,
    ready: Arc<AtomicBool>,
    form: FormCluster,
    clock: LeaderClock,
    network: Arc<dyn Network>,
}

impl Leader {
    async fn watch(self) {
        let mut led: Option<u64> = None;
        loop {
            let now = self.group.leadership();
            let leads = now.leads.then_some(now.term);
            if led.is_some() && led != leads {
                self.ready.store(false, Ordering::Release);
                self.datanodes.follow().await;
                self.sessions.follow();
                tracing::info!(term = led, "this namenode leads no more");
                led = None;
            }
            let mut wait = Duration::from_secs(3600);
            if let Some(term) = leads {
                wait = LEADER_ROUND;
                if led.is_none() {
                    match self.take_over(term).await {
                        Ok(()) => led = Some(term),
                        Err(error) => tracing::debug!(term, %error, "not leading yet"),
                    }
                } else if let Err(error) = self.group.promote().await {
                    tracing::debug!(%error, "learners were not made voters");
                }
            }
            tokio::select! {
                change = self.group.leadership_after(&now) => if change.is_none() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Everything that must be true before the first client is served: what earlier leaders acknowledged is applied,
    /// and the cluster has its record.
    async fn take_over(&self, term: u64) -> Result<(), Error> {
        let (readable, ()) =
            tokio::join!(self.group.ensure_readable(), self.clock.compare(&self.group, &self.network));
        readable?;
        // A leader that was restarted leads on in the same term, and does not know how much of its log it had
        // acknowledged. Once an entry of now is applied, all of that is.
        let nothing = CommandBatch { time_ns: self.clock.now_ns(), commands: Vec::new() };
        let applied = self.group.write(Bytes::from(nothing.encode_to_vec())).await?;
        applied.await.map_err(|_| ErrorCode::Unavailable.because("the namenode is stopping"))??;
        if !self.is_formed()? {
            // Also a cluster that was formed without TLS, and has it now.
            let command = own(mutation::Op::FormCluster(self.form.clone()));
            let Outcome { result } = self.proposer.propose(command).await?;
            if let Some(outcome::Result::Error(error)) = result {
                return Err(error.into());
            }
        }
        self.datanodes.lead(term).await;
        self.sessions.lead();
        self.ready.store(true, Ordering::Release);
        tracing::info!(term, "this namenode leads");
        Ok(())
    }

    fn is_formed(&self) -> Result<bool, Error> {
        let mut formed = false;
        let mut body = |view: &dyn View| {
            formed = records::meta(view)?.is_some_and(|meta| {
                !meta.cluster_id.is_empty() && (self.form.secret.is_empty() || !meta.secret.is_empty())
            });
            Ok(())
        };
        self.store.read(&mut body).map_err(|error| ErrorCode::Io.because(error.to_string()))?;
        Ok(formed)
    }
}
