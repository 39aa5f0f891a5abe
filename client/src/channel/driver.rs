//! The task that owns the stream to the leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_host::request::RequestId;
use cairn_proto::control::{self, Call, CallBatch, ReplyBatch};
use cairn_proto::error::Reaction;
use cairn_proto::limits::{MAX_BATCH_CALLS, MAX_MESSAGE};
use cairn_proto::{Error, ErrorCode, Result, fs};
use futures::future::{BoxFuture, OptionFuture};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Kind, Pending, Replied, Shared, is_refusal, status_text};
use crate::backoff::Backoff;
use crate::metrics::Counters;
use crate::namespace::root;
use crate::session::Session;

/// Calls sent and not answered, at most; more wait in the queue.
const MAX_UNANSWERED: usize = 16 << 10;
/// How often deadlines and stalls are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a namenode may take to accept the conversation.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// Batches on their way into the connection.
const OUTGOING: usize = 2;
/// Probes between two sendings of a call that nobody answers on a stream that lives: a leader that was deposed
/// and came back forgot it.
const PROBES_BEFORE_RESEND: u32 = 4;

/// See the module.
pub(super) struct Driver {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Pending>,
    unanswered: BTreeMap<u64, Flight>,
    outbox: VecDeque<u64>,
    next_id: u64,
    conversations: u64,
    last_named: Option<Instant>,
    doubt: Option<Doubt>,
}

/// The leader has said that a session does not exist any more, and may be wrong.
struct Doubt {
    session: u64,
    /// The call that asks whether it does.
    probe: u64,
}

struct Flight {
    pending: Pending,
    queued: bool,
    sent: Option<Instant>,
    /// When it was first sent on this stream: a leader that only puts off is no better than a silent one.
    first_sent: Option<Instant>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// The session its last batch named: the answer proves that the leader heard a renewal.
    named: Option<Arc<Session>>,
}

struct Stream {
    address: String,
    outgoing: mpsc::Sender<CallBatch>,
    incoming: Streaming<ReplyBatch>,
}

/// Why a conversation ended.
enum Ended {
    /// No caller is left.
    Closed,
    /// Go on with the namenode named, or find out.
    Lost(Option<String>),
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Pending>) -> Driver {
        Driver {
            shared,
            queue,
            unanswered: BTreeMap::new(),
            outbox: VecDeque::new(),
            next_id: 1,
            conversations: 0,
            last_named: None,
            doubt: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut target = self.shared.namenodes.leader();
        let mut backoff = Backoff::new();
        loop {
            if self.unanswered.is_empty() && self.live_session().is_none() {
                match self.queue.recv().await {
                    Some(pending) => self.accept(pending),
                    None => return,
                }
            }
            self.sweep();
            match self.open(target.take()).await {
                Ok(stream) => {
                    self.conversations += 1;
                    if self.conversations > 1 {
                        Counters::add(&self.shared.counters.leader_changes, 1);
                    }
                    let opened = Instant::now();
                    match self.converse(stream).await {
                        Ended::Closed => return,
                        Ended::Lost(hint) => target = hint,
                    }
                    if opened.elapsed() > Duration::from_secs(1) {
                        backoff = Backoff::new();
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no conversation");
                    if error.code == ErrorCode::NotPermitted && self.conversations == 0 {
                        // Who was let in before waits, as for any failure: an operator may be renewing certificates.
                        self.give_up(&error);
                    }
                    self.shared.namenodes.note(error.detail);
                }
            }
            if self.queue.is_closed() && self.unanswered.is_empty() && self.queue.is_empty() {
                return;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Opens a conversation with `target`, or with whoever leads. Everything unanswered is to be sent again.
    async fn open(&mut self, target: Option<String>) -> Result<Stream> {
        let address = match target {
            Some(address) => address,
            None => {
                let reply = self.shared.namenodes.who_leads().await?;
                if reply.leader_address.is_empty() {
                    return Err(ErrorCode::NoLeader.because("no leader is known"));
                }
                reply.leader_address
            }
        };
        let mut stub = self.shared.namenodes.dial(&address).await?;
        self.outbox = self.unanswered.keys().copied().collect();
        for flight in self.unanswered.values_mut() {
            if flight.sent.take().is_some() {
                Counters::add(&self.shared.counters.retries, 1);
            }
            flight.queued = true;
            flight.first_sent = None;
            flight.retry_at = None;
        }
        let (outgoing, batches) = mpsc::channel(OUTGOING);
        // The first message goes along: a namenode may wait for it before it accepts.
        let first = self.batch();
        if outgoing.try_send(first).is_err() {
            return Err(ErrorCode::Unavailable.because("the conversation ended before it began"));
        }
        let unwilling = |why: String| ErrorCode::Unavailable.because(format!("namenode {address}: {why}"));
        let incoming = match timeout(OPEN_LIMIT, stub.converse(ReceiverStream::new(batches))).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if is_refusal(&status) => {
                let detail = format!("namenode {address}: {}", status_text(&status));
                return Err(ErrorCode::NotPermitted.because(detail));
            }
            Ok(Err(status)) => return Err(unwilling(status_text(&status))),
            Err(_) => return Err(unwilling("does not accept the conversation".into())),
        };
        self.shared.namenodes.set_leader(Some(address.clone()));
        Ok(Stream { address, outgoing, incoming })
    }

    async fn converse(&mut self, mut stream: Stream) -> Ended {
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        let mut probe: OptionFuture<BoxFuture<'_, Option<String>>> = None.into();
        let mut probing = false;
        let mut probed = Instant::now();
        let mut fresh = Vec::new();
        loop {
            tokio::select! {
                permit = stream.outgoing.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => permit.send(self.batch()),
                    Err(_) => return Ended::Lost(None),
                },
                count = self.queue.recv_many(&mut fresh, 512), if self.unanswered.len() < MAX_UNANSWERED => {
                    if count == 0 {
                        return Ended::Closed;
                    }
                    fresh.drain(..).for_each(|pending| self.accept(pending));
                }
                message = stream.incoming.message() => match message {
                    Ok(Some(batch)) => {
                        if let Some(ended) = self.answered(batch, &stream.address) {
                            return ended;
                        }
                    }
                    Ok(None) => return Ended::Lost(None),
                    Err(status) => {
                        self.shared.namenodes.note(format!("{}: {}", stream.address, status_text(&status)));
                        return Ended::Lost(None);
                    }
                },
                _ = ticker.tick() => {
                    let stalled = self.tick();
                    if stalled && !probing && probed.elapsed() > self.shared.config.probe_after {
                        probed = Instant::now();
                        probing = true;
                        probe = Some(Box::pin(leader_now(&shared)) as BoxFuture<'_, _>).into();
                    }
                }
                found = &mut probe, if probing => {
                    probing = false;
                    probe = None.into();
                    if let Some(Some(leader)) = found && leader != stream.address {
                        return Ended::Lost(Some(leader));
                    }
                }
            }
        }
    }

    fn accept(&mut self, pending: Pending) {
        if pending.deadline <= Instant::now() {
            return;
        }
        if let Kind::Write(Some(ticket), _) = &pending.kind
            && ticket.session().expired()
        {
            let detail = format!("session {}", ticket.session().id());
            let _ = pending.reply.send(Err(ErrorCode::SessionExpired.because(detail)));
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let flight = Flight {
            pending,
            queued: true,
            sent: None,
            first_sent: None,
            retry_at: None,
            backoff: Backoff::new(),
            named: None,
        };
        self.unanswered.insert(id, flight);
        self.outbox.push_back(id);
    }

    /// As many of the outbox's calls as fit one message and name one session.
    fn batch(&mut self) -> CallBatch {
        let now = Instant::now();
        let current = self.live_session();
        let mut named: Option<Option<Arc<Session>>> = None;
        let mut calls = Vec::new();
        let mut bytes = 0;
        while let Some(&id) = self.outbox.front() {
            let Some(flight) = self.unanswered.get_mut(&id) else {
                self.outbox.pop_front();
                continue;
            };
            let own = match &flight.pending.kind {
                Kind::Query(_) => None,
                Kind::Write(ticket, _) => Some(ticket.as_ref().map(|ticket| Arc::clone(ticket.session()))),
            };
            if let Some(own) = own {
                let id_of = |session: &Option<Arc<Session>>| session.as_ref().map(|session| session.id());
                match &named {
                    Some(other) if id_of(other) != id_of(&own) => break,
                    _ => named = Some(own),
                }
            }
            let call = flight.call(id);
            bytes += call.encoded_len() + 16;
            if !calls.is_empty() && (bytes > MAX_MESSAGE / 2 || calls.len() >= MAX_BATCH_CALLS) {
                break;
            }
            self.outbox.pop_front();
            flight.queued = false;
            flight.sent = Some(now);
            flight.first_sent.get_or_insert(now);
            calls.push(call);
        }
        let session = named.unwrap_or(current);
        for call in &calls {
            if let Some(flight) = self.unanswered.get_mut(&call.id) {
                flight.named = session.clone();
            }
        }
        if session.is_some() {
            self.last_named = Some(now);
        }
        CallBatch { session: session.map_or(0, |session| session.id()), calls }
    }

    /// Hands out answers. Some of them end the conversation.
    fn answered(&mut self, batch: ReplyBatch, address: &str) -> Option<Ended> {
        let mut ended = None;
        if !batch.recalled.is_empty()
            && let Some(told) = self.shared.on_recalled.get()
        {
            told(batch.recalled);
        }
        for reply in batch.replies {
            let Some(flight) = self.unanswered.remove(&reply.id) else { continue };
            let sent = flight.sent.unwrap_or_else(Instant::now);
            match reply.result {
                Some(control::reply::Result::Error(error)) => {
                    let error = Error::from(error);
                    match (error.code, error.code.reaction()) {
                        (ErrorCode::NotLeader, _) => {
                            let hint =
                                Some(reply.leader_address).filter(|hint| !hint.is_empty() && hint != address);
                            self.shared.namenodes.note(format!("{address} does not lead"));
                            ended = Some(Ended::Lost(hint));
                            self.unanswered.insert(reply.id, flight);
                        }
                        (ErrorCode::SessionExpired, _) => {
                            self.expire(flight.named.clone());
                            flight.finish(Err(error));
                        }
                        (_, Reaction::Retry) => {
                            self.put_off(reply.id, flight, &error);
                        }
                        _ => flight.finish(Err(error)),
                    }
                }
                Some(control::reply::Result::Answer(fs::Answer {
                    result: Some(fs::answer::Result::Error(error)),
                }))
                | Some(control::reply::Result::Outcome(fs::Outcome {
                    result: Some(fs::outcome::Result::Error(error)),
                })) if error.code == ErrorCode::Delegated as u32 => {
                    // Somebody is asked to hand it back.
                    self.shared.silence.heard();
                    self.put_off(reply.id, flight, &Error::from(error));
                }
                Some(control::reply::Result::Answer(answer)) => {
                    self.shared.silence.heard();
                    if !batch.session_expired {
                        self.renewed(&flight, sent, batch.lease_ms);
                    }
                    let result = answer.result.ok_or_else(|| ErrorCode::Malformed.because("an empty answer"));
                    flight.finish(result.map(Replied::Answer));
                }
                Some(control::reply::Result::Outcome(outcome)) => {
                    self.shared.silence.heard();
                    let result =
                        outcome.result.ok_or_else(|| ErrorCode::Malformed.because("an empty outcome"));
                    match &result {
                        Ok(fs::outcome::Result::Error(error))
                            if error.code == ErrorCode::SessionExpired as u32 =>
                        {
                            self.expire(flight.named.clone());
                        }
                        // Whatever became of it: only under a session that exists.
                        Ok(_) => _ = self.doubt.take_if(|doubt| doubt.probe == reply.id),
                        Err(_) => {}
                    }
                    if !batch.session_expired {
                        self.renewed(&flight, sent, batch.lease_ms);
                    }
                    flight.finish(result.map(|outcome| Replied::Outcome(outcome, sent)));
                }
                None => flight.finish(Err(ErrorCode::Malformed.because("an empty reply"))),
            }
        }
        if batch.session_expired {
            self.ask_whether_it_lives();
        }
        ended
    }

    /// An answer says that the leader heard a renewal; but not where it has said before that there was nothing to renew,
    /// in another part of what it answers a batch with.
    fn renewed(&self, flight: &Flight, sent: Instant, lease_ms: u32) {
        let Some(session) = &flight.named else { return };
        if self.doubt.as_ref().is_none_or(|doubt| doubt.session != session.id()) {
            session.renewed(sent, lease_ms);
        }
    }

    /// Has a call sent again after a while.
    fn put_off(&mut self, id: u64, mut flight: Flight, error: &Error) {
        self.shared.namenodes.note(error.to_string());
        flight.retry_at = Some(Instant::now() + flight.backoff.pause());
        flight.sent = None;
        self.unanswered.insert(id, flight);
    }

    /// A leader that has only just been elected may take a session for expired that lives. Only the log knows:
    /// a mutation that changes nothing is refused if the session is gone.
    fn ask_whether_it_lives(&mut self) {
        let Some(session) = self.live_session() else { return };
        let asks =
            |doubt: &Doubt| doubt.session == session.id() && self.unanswered.contains_key(&doubt.probe);
        if self.doubt.as_ref().is_some_and(asks) {
            return;
        }
        let op = fs::mutation::Op::Close(fs::CloseInodes { inodes: Vec::new() });
        let kind = Kind::Write(Some(session.ticket()), fs::Mutation { op: Some(op) });
        self.doubt = Some(Doubt { session: session.id(), probe: self.next_id });
        self.ask_for_itself(kind);
    }

    /// The session is gone: nothing sent under it can be known to have happened.
    fn expire(&mut self, session: Option<Arc<Session>>) {
        let Some(session) = session.filter(|session| !session.expired()) else { return };
        session.expire();
        tracing::warn!(session = session.id(), "the session has expired");
        self.shared.lost.fetch_add(1, Ordering::AcqRel);
        if let Some(told) = self.shared.on_lost.get() {
            told(session.id());
        }
        let mut current = self.shared.session();
        if current.as_ref().is_some_and(|current| current.id() == session.id()) {
            *current = None;
        }
        drop(current);
        let of_it = |flight: &Flight| match &flight.pending.kind {
            Kind::Write(Some(ticket), _) => ticket.session().id() == session.id(),
            _ => false,
        };
        let dead: Vec<u64> =
            self.unanswered.iter().filter(|(_, flight)| of_it(flight)).map(|(&id, _)| id).collect();
        for id in dead {
            if let Some(flight) = self.unanswered.remove(&id) {
                flight.finish(Err(ErrorCode::SessionExpired.because(format!("session {}", session.id()))));
            }
        }
    }

    /// Looks after deadlines, retries and renewals; says whether the leader owes an answer for too long.
    fn tick(&mut self) -> bool {
        self.sweep();
        let now = Instant::now();
        let probe_after = self.shared.config.probe_after;
        let mut stalled = false;
        for (&id, flight) in &mut self.unanswered {
            let due = flight.retry_at.is_some_and(|at| at <= now);
            let since =
                |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            let owed = since(flight.sent);
            stalled |= since(flight.first_sent) > probe_after;
            if (due || owed > probe_after * PROBES_BEFORE_RESEND) && !flight.queued {
                Counters::add(&self.shared.counters.retries, 1);
                flight.queued = true;
                flight.retry_at = None;
                self.outbox.push_back(id);
            }
        }
        if let Some(doubt) = &self.doubt
            && self.live_session().is_some_and(|session| session.id() == doubt.session)
        {
            // What asked may have been refused, or given up while nobody led.
            self.ask_whether_it_lives();
        }
        if let Some(session) = self.live_session()
            && self.last_named.is_none_or(|at| at.elapsed() >= session.renewal_interval())
        {
            self.renew();
        }
        stalled
    }

    /// A renewal is a call like any other, so that its answer says which renewal was heard, and so that a
    /// leader that does not answer is noticed while nothing else is asked.
    fn renew(&mut self) {
        self.last_named = Some(Instant::now());
        self.ask_for_itself(Kind::Query(fs::Query {
            op: Some(fs::query::Op::StatFs(fs::StatFs::default())),
        }));
    }

    /// A call whose answer only the driver itself looks at.
    fn ask_for_itself(&mut self, kind: Kind) {
        let (reply, _) = oneshot::channel();
        let deadline = Instant::now() + self.shared.config.operation_timeout;
        self.accept(Pending { request: RequestId::default(), cred: root(), kind, deadline, reply });
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.unanswered.retain(|_, flight| flight.pending.deadline > now);
    }

    /// Fails everything that is asked: asking again would change nothing.
    fn give_up(&mut self, error: &Error) {
        for (_, flight) in std::mem::take(&mut self.unanswered) {
            // Whoever waited may be gone.
            let _ = flight.pending.reply.send(Err(error.clone()));
        }
        self.outbox.clear();
    }

    fn live_session(&self) -> Option<Arc<Session>> {
        self.shared.session().as_ref().filter(|session| !session.expired()).cloned()
    }
}

impl Flight {
    fn call(&self, id: u64) -> Call {
        let kind = match &self.pending.kind {
            Kind::Query(query) => control::call::Kind::Query(query.clone()),
            Kind::Write(ticket, mutation) => {
                let (seq, acked) =
                    ticket.as_ref().map_or((0, 0), |ticket| (ticket.seq(), ticket.session().acked()));
                control::call::Kind::Write(control::Write { seq, acked, mutation: Some(mutation.clone()) })
            }
        };
        Call { id, cred: Some(self.pending.cred.clone()), kind: Some(kind), request: self.pending.request.0 }
    }

    fn finish(self, result: Result<Replied>) {
        let Pending { kind, reply, .. } = self.pending;
        // The ticket goes first: whoever gets the answer may rely on its number being acknowledged next.
        drop(kind);
        let _ = reply.send(result);
    }
}

async fn leader_now(shared: &Shared) -> Option<String> {
    let reply = shared.namenodes.who_leads().await.ok()?;
    Some(reply.leader_address).filter(|address| !address.is_empty())
}
