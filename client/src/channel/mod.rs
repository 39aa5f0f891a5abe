//! The conversation with the leader: calls go in, answers come out, whoever leads.
//!
//! One task, the [`driver`], owns the stream. Callers hand it their calls through a bounded queue and wait for
//! the answer or their deadline; what is queued when the stream can take a message goes in one batch.

mod driver;
mod namenodes;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cairn_host::request::{Errand, RequestId};
use cairn_proto::{Error, ErrorCode, Result, control, fs};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::metrics::Counters;
use crate::namespace::root;
use crate::session::{Session, Ticket};
use crate::silence::Silence;

pub(crate) use namenodes::{Namenodes, is_refusal, status_text};

/// Calls waiting for the driver.
const QUEUE: usize = 4096;
/// Longer than any session, and than any cluster is away.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a report about a bad replica may take; nobody waits for it.
const REPORT_LIMIT: Duration = Duration::from_secs(2);

/// The way to the leader. Clones share one conversation.
#[derive(Clone)]
pub(crate) struct Channel {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Pending>,
}

/// What callers and the driver share.
struct Shared {
    config: Config,
    counters: Arc<Counters>,
    namenodes: Namenodes,
    session: Mutex<Option<Arc<Session>>>,
    opening: tokio::sync::Mutex<()>,
    silence: Silence,
    lost: AtomicU64,
    on_lost: OnceLock<OnLost>,
    on_recalled: OnceLock<OnRecalled>,
}

/// Told of a session that expired.
pub(crate) type OnLost = Box<dyn Fn(u64) + Send + Sync>;

/// Told of directories that others wait for.
pub(crate) type OnRecalled = Box<dyn Fn(Vec<u64>) + Send + Sync>;

/// A call and whoever waits for its answer.
struct Pending {
    /// For whose sake.
    request: RequestId,
    cred: fs::Cred,
    kind: Kind,
    deadline: Instant,
    reply: oneshot::Sender<Result<Replied>>,
}

enum Kind {
    Query(fs::Query),
    /// Sent under the ticket's session; without one (opening a session) it is not numbered.
    Write(Option<Ticket>, fs::Mutation),
}

enum Replied {
    Answer(fs::answer::Result),
    /// With the time the call was last sent.
    Outcome(fs::outcome::Result, Instant),
}

impl Channel {
    /// Finds the cluster: waits until a namenode that belongs to one answers.
    pub(crate) async fn connect(config: Config, counters: Arc<Counters>) -> Result<Channel> {
        let namenodes = Namenodes::new(config.namenodes.clone(), config.machine.network.clone())?;
        let deadline = Instant::now() + config.operation_timeout;
        let mut backoff = Backoff::new();
        loop {
            match namenodes.who_leads().await {
                Ok(reply) if !reply.cluster_id.is_empty() => {
                    let leader = Some(reply.leader_address).filter(|address| !address.is_empty());
                    namenodes.set_leader(leader);
                    break;
                }
                Ok(_) => namenodes.note("no cluster was formed yet"),
                Err(error) if matches!(error.code, ErrorCode::WrongCluster | ErrorCode::NotPermitted) => {
                    return Err(error);
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(namenodes.out_of_time(config.operation_timeout));
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        let shared = Arc::new(Shared {
            config,
            counters,
            namenodes,
            session: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            silence: Silence::new(),
            lost: AtomicU64::new(0),
            on_lost: OnceLock::new(),
            on_recalled: OnceLock::new(),
        });
        let (queue, calls) = mpsc::channel(QUEUE);
        tokio::spawn(driver::Driver::new(Arc::clone(&shared), calls).run());
        Ok(Channel { shared, queue })
    }

    pub(crate) fn namenodes(&self) -> &Namenodes {
        &self.shared.namenodes
    }

    /// Asks the leader.
    pub(crate) async fn query(&self, cred: &fs::Cred, op: fs::query::Op) -> Result<fs::answer::Result> {
        let limit = self.shared.config.operation_timeout;
        let kind = Kind::Query(fs::Query { op: Some(op) });
        match self.call(cred, kind, limit).await? {
            Replied::Answer(fs::answer::Result::Error(error)) => Err(error.into()),
            Replied::Answer(answer) => Ok(answer),
            Replied::Outcome(..) => Err(ErrorCode::Malformed.because("an outcome for a query")),
        }
    }

    /// Has the leader change something, exactly once.
    pub(crate) async fn mutate(&self, cred: &fs::Cred, op: fs::mutation::Op) -> Result<fs::outcome::Result> {
        // Many may wait for one session to be opened: together no longer than each would alone.
        let session = self.session_in_time().await?;
        self.mutate_in(&session, cred, op).await
    }

    /// As [`Channel::mutate`], under a session of the caller's choice.
    pub(crate) async fn mutate_in(
        &self,
        session: &Arc<Session>,
        cred: &fs::Cred,
        op: fs::mutation::Op,
    ) -> Result<fs::outcome::Result> {
        let limit = self.shared.config.operation_timeout;
        self.write(cred, Some(session.ticket()), op, limit).await.map(|(outcome, _)| outcome)
    }

    /// As [`Channel::mutate_in`], for as long as the session lives: an error that leaves it alive means that nothing was
    /// done.
    pub(crate) async fn mutate_lasting(
        &self,
        session: &Arc<Session>,
        cred: &fs::Cred,
        op: fs::mutation::Op,
    ) -> Result<fs::outcome::Result> {
        self.write(cred, Some(session.ticket()), op, FOR_EVER).await.map(|(outcome, _)| outcome)
    }

    /// The session, opened now if there is none, within the time of an operation.
    pub(crate) async fn session_in_time(&self) -> Result<Arc<Session>> {
        let limit = self.shared.config.operation_timeout;
        match tokio::time::timeout(limit, self.session()).await {
            Ok(session) => session,
            Err(_) => Err(self.shared.namenodes.out_of_time(limit)),
        }
    }

    /// The session, opened now if there is none.
    pub(crate) async fn session(&self) -> Result<Arc<Session>> {
        if let Some(session) = self.live_session() {
            return Ok(session);
        }
        let _one_at_a_time = self.shared.opening.lock().await;
        if let Some(session) = self.live_session() {
            return Ok(session);
        }
        let open = fs::OpenSession { client: self.shared.config.name.clone(), ..Default::default() };
        let op = fs::mutation::Op::OpenSession(open);
        let (outcome, sent) = self.write(&root(), None, op, self.shared.config.operation_timeout).await?;
        let fs::outcome::Result::Session(opened) = outcome else {
            return Err(ErrorCode::Malformed.because("the outcome of opening a session"));
        };
        let session = Session::new(opened.session, sent);
        *self.shared.session() = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Whether the session there is has not been renewed for half its lease.
    pub(crate) fn fenced(&self) -> bool {
        self.shared.session().as_ref().is_some_and(|session| session.fenced(Instant::now()))
    }

    /// How many sessions have expired.
    pub(crate) fn sessions_lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Acquire)
    }

    /// Has `told` called with each session that expires, before another is opened.
    pub(crate) fn on_session_lost(&self, told: OnLost) {
        // Whoever came first stays.
        let _ = self.shared.on_lost.set(told);
    }

    /// Has `told` called with directories of the session that others wait for.
    pub(crate) fn on_recalled(&self, told: OnRecalled) {
        // Whoever came first stays.
        let _ = self.shared.on_recalled.set(told);
    }

    /// For how long the leader has owed an answer.
    pub(crate) fn silent_for(&self) -> Duration {
        self.shared.silence.length(Instant::now())
    }

    /// Gives the session back, if there is one: its chunks are sealed and its open files closed at once.
    pub(crate) async fn close(&self, limit: Duration) -> Result<()> {
        let Some(session) = self.live_session() else { return Ok(()) };
        let op = fs::mutation::Op::CloseSession(fs::CloseSession {});
        let closed = self.write(&root(), Some(session.ticket()), op, limit).await;
        session.expire();
        *self.shared.session() = None;
        match closed {
            Err(error) if error.code != ErrorCode::SessionExpired => Err(error),
            _ => Ok(()),
        }
    }

    /// Tells the leader about a bad replica, as well as it goes.
    pub(crate) fn report_bad(&self, bad: control::BadReplica) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let Some(leader) = shared.namenodes.leader() else { return };
            let Ok(mut stub) = shared.namenodes.stub(&leader) else { return };
            let told = tokio::time::timeout(REPORT_LIMIT, stub.report_bad_replica(bad.clone())).await;
            tracing::warn!(
                chunk = bad.chunk,
                node = bad.node,
                reason = bad.reason,
                told = matches!(told, Ok(Ok(_))),
                "bad replica"
            );
        });
    }

    /// Has the leader change the membership of the namenode group.
    pub(crate) async fn change_membership(
        &self,
        ask: control::MembershipRequest,
    ) -> Result<control::MembershipReply> {
        let ask = &ask;
        self.ask_leader(
            |mut stub| async move { stub.change_membership(ask.clone()).await },
            |reply| Some((reply.error.clone()?, reply.leader_address.clone())),
        )
        .await
    }

    /// Has the leader order datanodes to verify what they hold.
    pub(crate) async fn scrub(&self, ask: control::ScrubRequest) -> Result<control::ScrubReply> {
        let ask = &ask;
        self.ask_leader(
            |mut stub| async move { stub.scrub(ask.clone()).await },
            |reply| Some((reply.error.clone()?, reply.leader_address.clone())),
        )
        .await
    }

    pub(crate) async fn set_datanode(
        &self,
        ask: control::SetDatanodeRequest,
    ) -> Result<control::SetDatanodeReply> {
        self.ask_leader(
            |mut stub| async move { stub.set_datanode(ask).await },
            |reply| Some((reply.error.clone()?, reply.leader_address.clone())),
        )
        .await
    }

    /// Has the leader move replicas for the next seconds.
    pub(crate) async fn balance(&self, ask: control::BalanceRequest) -> Result<control::BalanceReply> {
        self.ask_leader(
            |mut stub| async move { stub.balance(ask).await },
            |reply| Some((reply.error.clone()?, reply.leader_address.clone())),
        )
        .await
    }

    /// The first part of the leader's store as a stream, and the rest.
    pub(crate) async fn snapshot_metadata(&self) -> Result<(control::MetadataPart, MetadataParts)> {
        self.ask_leader(
            |mut stub| async move {
                let mut parts =
                    stub.snapshot_metadata(control::SnapshotMetadataRequest {}).await?.into_inner();
                let first = parts.message().await?;
                let first = first.ok_or_else(|| tonic::Status::unavailable("the stream ended at once"))?;
                Ok(tonic::Response::new((first, parts)))
            },
            |(first, _)| Some((first.error.clone()?, first.leader_address.clone())),
        )
        .await
    }

    /// One call outside of the conversation, to whoever leads. `refusal` finds the error in a reply, and where it
    /// says the leader is.
    async fn ask_leader<R, F>(
        &self,
        ask: impl Fn(namenodes::Stub) -> F,
        refusal: impl Fn(&R) -> Option<(fs::Error, String)>,
    ) -> Result<R>
    where
        F: Future<Output = std::result::Result<tonic::Response<R>, tonic::Status>>,
    {
        let limit = self.shared.config.operation_timeout;
        let deadline = Instant::now() + limit;
        let namenodes = &self.shared.namenodes;
        let mut backoff = Backoff::new();
        let mut target = namenodes.leader();
        while Instant::now() < deadline {
            if target.is_none() {
                let reply = namenodes.who_leads().await.ok();
                target = reply.map(|reply| reply.leader_address).filter(|address| !address.is_empty());
            }
            if let Some(address) = target.take() {
                let stub = namenodes.stub(&address)?;
                match timeout_at(deadline, ask(stub)).await {
                    Ok(Ok(reply)) => {
                        let reply = reply.into_inner();
                        let Some((error, leader)) = refusal(&reply) else { return Ok(reply) };
                        let error = Error::from(error);
                        if !matches!(error.code, ErrorCode::NotLeader | ErrorCode::NoLeader) {
                            return Err(error);
                        }
                        target = Some(leader).filter(|address| !address.is_empty());
                    }
                    Ok(Err(status)) if is_refusal(&status) => {
                        let detail = format!("namenode {address}: {}", status.message());
                        return Err(ErrorCode::NotPermitted.because(detail));
                    }
                    Ok(Err(status)) => namenodes.note(format!("{address}: {}", status_text(&status))),
                    Err(_) => break,
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        Err(namenodes.out_of_time(limit))
    }

    /// The session, if there is one.
    pub(crate) fn live_session(&self) -> Option<Arc<Session>> {
        self.shared.session().as_ref().filter(|session| !session.expired()).cloned()
    }

    async fn write(
        &self,
        cred: &fs::Cred,
        ticket: Option<Ticket>,
        op: fs::mutation::Op,
        limit: Duration,
    ) -> Result<(fs::outcome::Result, Instant)> {
        let kind = Kind::Write(ticket, fs::Mutation { op: Some(op) });
        match self.call(cred, kind, limit).await? {
            Replied::Outcome(fs::outcome::Result::Error(error), _) => Err(error.into()),
            Replied::Outcome(outcome, sent) => Ok((outcome, sent)),
            Replied::Answer(_) => Err(ErrorCode::Malformed.because("an answer for a mutation")),
        }
    }

    async fn call(&self, cred: &fs::Cred, kind: Kind, limit: Duration) -> Result<Replied> {
        let deadline = Instant::now() + limit;
        let _waiting = self.shared.silence.wait();
        let (reply, answer) = oneshot::channel();
        let what = if matches!(kind, Kind::Query(_)) { "query" } else { "mutation" };
        let (errand, since) = (Errand::begin(), Instant::now());
        let pending = Pending { request: errand.request, cred: cred.clone(), kind, deadline, reply };
        let wait = async {
            self.queue.send(pending).await.ok()?;
            answer.await.ok()
        };
        let result = match timeout_at(deadline, wait).await {
            Ok(Some(result)) => result,
            _ => Err(self.shared.namenodes.out_of_time(limit)),
        };
        errand.done(what, since.elapsed(), result.is_err());
        result
    }
}

/// Parts of the leader's store.
pub(crate) type MetadataParts = tonic::Streaming<control::MetadataPart>;

impl Shared {
    fn session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
