//! A client's conversation: batches of calls in, coalesced answers out.
//!
//! Every call takes its room in the bounded queue of answers before it is executed, so an answer never waits for
//! room, and a client that does not read stops only itself.

use std::sync::Arc;
use std::time::Duration;

use cairn_host::request::{self, RequestId};
use cairn_host::tls::peer::Caller;
use cairn_metadata::store::{StoreError, View};
use cairn_proto::control::{Call, CallBatch, Reply, ReplyBatch, call, reply};
use cairn_proto::fs::{self, Answer, Command, Cred, Outcome, Query, answer, mutation, outcome};
use cairn_proto::limits::MAX_BATCH_CALLS;
use cairn_proto::{Delegated, Error, ErrorCode};
use prost::Message;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::caller;
use crate::counters::{query_name, query_number};
use crate::edge;
use crate::member::Member;
use crate::recalls::Recalls;
use crate::seat::Seat;

/// Calls of one conversation under way, at most.
const CALLS_AHEAD: usize = 2 * MAX_BATCH_CALLS;
/// An answering message is sent when it has reached this many bytes.
const REPLY_BYTES: usize = 1 << 20;
/// Queries answered from one view, before others get their turn.
const QUERIES_AT_ONCE: usize = 64;

/// How long a query waits here for what is delegated to somebody else.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a conversation has to say.
enum Said {
    /// A batch was heard; its session, if it named one, lives or does not.
    Heard {
        expired: bool,
        lease_ms: u32,
    },
    Reply(Box<Reply>),
}

type Replies = mpsc::Sender<Said>;
type Room = OwnedPermit<Said>;

/// The client has hung up.
struct Gone;

/// Holds the conversation until the client hangs up or this task is dropped.
pub async fn converse(
    seat: Arc<Seat>,
    caller: Caller,
    mut incoming: Streaming<CallBatch>,
    outgoing: mpsc::Sender<Result<ReplyBatch, Status>>,
) {
    let (replies, said) = mpsc::channel(CALLS_AHEAD);
    let (mut listener, recalled) = seat.recalls.listen();
    let asker = Asker { owner: caller::owner(&caller), caller };
    let hearing = async {
        loop {
            match incoming.message().await {
                Ok(Some(batch)) if batch.calls.len() <= MAX_BATCH_CALLS => {
                    let session = batch.session;
                    match hear(&seat, &asker, batch, &replies).await {
                        Ok(true) if session != 0 => listener.speaks_for(session),
                        Ok(_) => {}
                        Err(Gone) => return None,
                    }
                }
                Ok(Some(batch)) => {
                    return Some(Status::invalid_argument(format!(
                        "{} calls in one batch",
                        batch.calls.len()
                    )));
                }
                Ok(None) | Err(_) => return None,
            }
        }
    };
    tokio::select! {
        // Ends when the client does not listen any more.
        () = speak(said, recalled, outgoing.clone()) => {}
        refused = hearing => {
            if let Some(status) = refused {
                // The client may be gone.
                let _ = outgoing.send(Err(status)).await;
            }
        }
    }
}

/// Sends what was said, as much as is there in one message.
async fn speak(
    mut said: mpsc::Receiver<Said>,
    mut recalled: mpsc::Receiver<u64>,
    outgoing: mpsc::Sender<Result<ReplyBatch, Status>>,
) {
    loop {
        let mut batch = ReplyBatch::default();
        let mut bytes = tokio::select! {
            first = said.recv() => match first {
                Some(first) => add(&mut batch, first),
                None => return,
            },
            Some(directory) = recalled.recv() => {
                batch.recalled.push(directory);
                0
            }
        };
        while bytes < REPLY_BYTES && batch.replies.len() < MAX_BATCH_CALLS {
            match said.try_recv() {
                Ok(next) => bytes += add(&mut batch, next),
                Err(_) => break,
            }
        }
        if outgoing.send(Ok(batch)).await.is_err() {
            return;
        }
    }
}

fn add(batch: &mut ReplyBatch, said: Said) -> usize {
    match said {
        Said::Heard { expired, lease_ms } => {
            batch.session_expired |= expired;
            batch.lease_ms = lease_ms;
            0
        }
        Said::Reply(reply) => {
            let bytes = reply.encoded_len();
            batch.replies.push(*reply);
            bytes
        }
    }
}

async fn room(replies: &Replies) -> Result<Room, Gone> {
    replies.clone().reserve_owned().await.map_err(|_| Gone)
}

fn refuse(room: Room, id: u64, error: Error) {
    // With NotLeader, the detail is the leader's address.
    let leader_address =
        if error.code == ErrorCode::NotLeader { error.detail.clone() } else { String::new() };
    let result = Some(reply::Result::Error(error.into()));
    room.send(Said::Reply(Box::new(Reply { id, result, leader_address })));
}

async fn refuse_all(replies: &Replies, batch: CallBatch, error: Error) -> Result<(), Gone> {
    if batch.calls.is_empty() {
        // A bare renewal has no call to answer; number 0 is nobody's.
        refuse(room(replies).await?, 0, error);
        return Ok(());
    }
    for call in batch.calls {
        refuse(room(replies).await?, call.id, error.clone());
    }
    Ok(())
}

/// Who asks, in a conversation.
struct Asker {
    caller: Caller,
    /// Of its sessions.
    owner: String,
}

/// Does what a batch asks for; whether it may speak for the session it names.
async fn hear(seat: &Seat, asker: &Asker, batch: CallBatch, replies: &Replies) -> Result<bool, Gone> {
    let Some(member) = seat.member() else {
        let error = ErrorCode::NoLeader.because("this namenode is not part of a group yet");
        return refuse_all(replies, batch, error).await.map(|()| false);
    };
    if let Some(error) = member.refusal() {
        return refuse_all(replies, batch, error).await.map(|()| asker.owner.is_empty());
    }
    // Once for the whole batch: sessions and queries must see everything acknowledged before it.
    if let Err(error) = member.group.ensure_readable().await {
        return refuse_all(replies, batch, error).await.map(|()| asker.owner.is_empty());
    }
    let mut is_own = true;
    let expired = match batch.session {
        0 => false,
        session => match member.owner_of(session) {
            Ok(owner) => {
                // Somebody else's is as good as none.
                is_own = owner.as_ref().is_none_or(|owner| *owner == asker.owner);
                owner.is_none() || !is_own || !member.sessions.renew(session, Instant::now())
            }
            Err(error) => return refuse_all(replies, batch, error).await.map(|()| false),
        },
    };
    let heard = Said::Heard { expired, lease_ms: member.sessions.length_ms() };
    replies.send(heard).await.map_err(|_| Gone)?;
    let mut asked = Vec::new();
    for Call { id, cred, kind, request } in batch.calls {
        let request = RequestId(request);
        let room = room(replies).await?;
        let cred = caller::acting(&asker.caller, cred);
        match kind {
            Some(call::Kind::Write(_)) if !is_own => {
                refuse(room, id, ErrorCode::SessionExpired.because(format!("session {}", batch.session)));
            }
            Some(call::Kind::Write(mut write)) => {
                caller::claim(&asker.caller, cred.as_ref(), write.mutation.as_mut());
                match edge::command(batch.session, &asker.owner, cred, write) {
                    Ok(command) => change(&member, &seat.recalls, (request, id), command, room).await,
                    Err(error) => refuse(room, id, error),
                }
            }
            Some(call::Kind::Query(query)) => match edge::check_cred(cred.as_ref()) {
                Ok(()) => {
                    let session = if is_own { batch.session } else { 0 };
                    let cred = cred.unwrap_or_else(nobody);
                    asked.push(Asked { request, id, session, cred, query, room });
                }
                Err(error) => refuse(room, id, error),
            },
            None => refuse(room, id, ErrorCode::Malformed.because("an empty call")),
        }
    }
    answer_all(&member, &seat.recalls, asked).await;
    Ok(is_own)
}

/// A caller that does not say who it is has no rights of its own.
fn nobody() -> Cred {
    Cred { uid: u32::MAX, gid: u32::MAX, groups: Vec::new() }
}

/// Proposes a command; its answer takes `room` when it is there.
async fn change(
    member: &Member,
    recalls: &Arc<Recalls>,
    (request, id): (RequestId, u64),
    mut command: Command,
    room: Room,
) {
    if let Some(mutation::Op::Allocate(ask)) =
        command.mutation.as_mut().and_then(|mutation| mutation.op.as_mut())
        && let Err(error) = choose_targets(member, ask)
    {
        return refuse(room, id, error);
    }
    let op = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref());
    let sealed = match op {
        Some(mutation::Op::Seal(ask)) => Some((ask.chunk, member.datanodes.clone())),
        _ => None,
    };
    let ends = matches!(op, Some(mutation::Op::Series(_) | mutation::Op::CloseSession(_)));
    let recalls = Arc::clone(recalls);
    let allocated = matches!(op, Some(mutation::Op::Allocate(_)));
    let signing = allocated.then(|| (command.session, member.datanodes.clone()));
    let settle = move |result: Result<Outcome, Error>| match result {
        Ok(mut outcome) => {
            if let Some((session, datanodes)) = signing {
                datanodes.capabilities().sign_outcome(&mut outcome, session);
            }
            if let Some(held) = held_in_outcome(&outcome) {
                recalls.ask(held);
            }
            if ends {
                recalls.changed();
            }
            if let Some((chunk, datanodes)) = sealed {
                datanodes.look_at(chunk);
            }
            let result = Some(reply::Result::Outcome(outcome));
            room.send(Said::Reply(Box::new(Reply { id, result, leader_address: String::new() })));
        }
        Err(error) => refuse(room, id, error),
    };
    member.proposer.submit(request, command, Box::new(settle)).await;
}

fn choose_targets(member: &Member, ask: &mut fs::AllocateChunk) -> Result<(), Error> {
    ask.targets.clear();
    ask.targets = member.datanodes.choose_targets(ask, member.default_replication()?)?;
    Ok(())
}

fn held_in_outcome(outcome: &Outcome) -> Option<Delegated> {
    match &outcome.result {
        Some(outcome::Result::Error(error)) => Delegated::of(error.code, &error.detail),
        _ => None,
    }
}

fn held_in_answer(answer: &Answer) -> Option<Delegated> {
    match &answer.result {
        Some(answer::Result::Error(error)) => Delegated::of(error.code, &error.detail),
        _ => None,
    }
}

fn reply(member: &Member, asked: Asked, mut answer: Answer) {
    member.decorate(&mut answer);
    member.datanodes.capabilities().sign_answer(&mut answer, asked.session, asked.cred.uid);
    let result = Some(reply::Result::Answer(answer));
    asked.room.send(Said::Reply(Box::new(Reply { id: asked.id, result, leader_address: String::new() })));
}

/// Answers when what was asked about is handed back. After a while the client is told to ask again: this may not lead
/// any more, and nobody may listen. As many wait as a conversation has room for answers.
async fn answer_later(member: Arc<Member>, recalls: Arc<Recalls>, asked: Asked) {
    let until = Instant::now() + PATIENCE;
    loop {
        recalls.wait().await;
        if let Some(error) = member.refusal() {
            return refuse(asked.room, asked.id, error);
        }
        let answer = match member.view(|view| Ok(Some(answered(&member, view, &asked)?))) {
            Ok(Some(answer)) => answer,
            Ok(None) => return refuse(asked.room, asked.id, ErrorCode::Unavailable.because("no answer")),
            Err(error) => return refuse(asked.room, asked.id, error),
        };
        match held_in_answer(&answer) {
            None => return reply(&member, asked, answer),
            Some(held) if Instant::now() >= until => return refuse(asked.room, asked.id, held.error()),
            Some(held) => recalls.ask(held),
        }
    }
}

struct Asked {
    request: RequestId,
    id: u64,
    session: u64,
    cred: Cred,
    query: Query,
    room: Room,
}

fn answered(member: &Member, view: &dyn View, asked: &Asked) -> Result<Answer, StoreError> {
    let since = Instant::now();
    let answer = cairn_metadata::answer_to(view, asked.session, &asked.cred, &asked.query)?;
    let done = !matches!(answer.result, Some(answer::Result::Error(_)));
    let operation = asked.query.op.as_ref().map_or(usize::MAX, query_number);
    let took = since.elapsed();
    member.counters.queries.record(operation, done, took);
    request::done(asked.request, query_name(operation), took, !done);
    Ok(answer)
}

/// Answers queries in place: each takes microseconds, less than handing it to another thread.
async fn answer_all(member: &Arc<Member>, recalls: &Arc<Recalls>, asked: Vec<Asked>) {
    let mut asked = asked.into_iter();
    loop {
        let some: Vec<Asked> = asked.by_ref().take(QUERIES_AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        let answered = member.view(|view| some.iter().map(|asked| answered(member, view, asked)).collect());
        match answered {
            Ok::<Vec<Answer>, Error>(answers) => {
                for (asked, answer) in some.into_iter().zip(answers) {
                    match held_in_answer(&answer) {
                        Some(held) => {
                            recalls.ask(held);
                            tokio::spawn(answer_later(Arc::clone(member), Arc::clone(recalls), asked));
                        }
                        None => reply(member, asked, answer),
                    }
                }
            }
            Err(error) => some.into_iter().for_each(|asked| refuse(asked.room, asked.id, error.clone())),
        }
        tokio::task::yield_now().await;
    }
}
