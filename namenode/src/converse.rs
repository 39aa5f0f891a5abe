//! A client's conversation: batches of calls in, coalesced answers out.
//!
//! Every call takes its room in the bounded queue of answers before it is executed, so an answer never waits for
//! room, and a client that does not read stops only itself.

use std::sync::Arc;

use cairn_metadata::store::{StoreError, View};
use cairn_proto::control::{Call, CallBatch, Reply, ReplyBatch, call, reply};
use cairn_proto::fs::{self, Answer, Command, Cred, Outcome, Query, answer, mutation};
use cairn_proto::limits::MAX_BATCH_CALLS;
use cairn_proto::{Error, ErrorCode};
use prost::Message;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::counters::query_number;
use crate::edge;
use crate::member::Member;
use crate::seat::Seat;

/// Calls of one conversation under way, at most.
const CALLS_AHEAD: usize = 2 * MAX_BATCH_CALLS;
/// An answering message is sent when it has reached this many bytes.
const REPLY_BYTES: usize = 1 << 20;
/// Queries answered from one view, before others get their turn.
const QUERIES_AT_ONCE: usize = 64;

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
    mut incoming: Streaming<CallBatch>,
    outgoing: mpsc::Sender<Result<ReplyBatch, Status>>,
) {
    let (replies, said) = mpsc::channel(CALLS_AHEAD);
    let hearing = async {
        loop {
            match incoming.message().await {
                Ok(Some(batch)) if batch.calls.len() <= MAX_BATCH_CALLS => {
                    if hear(&seat, batch, &replies).await.is_err() {
                        return None;
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
        () = speak(said, outgoing.clone()) => {}
        refused = hearing => {
            if let Some(status) = refused {
                // The client may be gone.
                let _ = outgoing.send(Err(status)).await;
            }
        }
    }
}

/// Sends what was said, as much as is there in one message.
async fn speak(mut said: mpsc::Receiver<Said>, outgoing: mpsc::Sender<Result<ReplyBatch, Status>>) {
    while let Some(first) = said.recv().await {
        let mut batch = ReplyBatch::default();
        let mut bytes = add(&mut batch, first);
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

async fn hear(seat: &Seat, batch: CallBatch, replies: &Replies) -> Result<(), Gone> {
    let Some(member) = seat.member() else {
        return refuse_all(
            replies,
            batch,
            ErrorCode::NoLeader.because("this namenode is not part of a group yet"),
        )
        .await;
    };
    if let Some(error) = member.refusal() {
        return refuse_all(replies, batch, error).await;
    }
    // Once for the whole batch: sessions and queries must see everything acknowledged before it.
    if let Err(error) = member.group.ensure_readable().await {
        return refuse_all(replies, batch, error).await;
    }
    let expired = match batch.session {
        0 => false,
        session => match member.has_session(session) {
            Ok(exists) => !exists || !member.sessions.renew(session, Instant::now()),
            Err(error) => return refuse_all(replies, batch, error).await,
        },
    };
    let heard = Said::Heard { expired, lease_ms: member.sessions.length_ms() };
    replies.send(heard).await.map_err(|_| Gone)?;
    let mut asked = Vec::new();
    for Call { id, cred, kind } in batch.calls {
        let room = room(replies).await?;
        match kind {
            Some(call::Kind::Write(write)) => match edge::command(batch.session, cred, write) {
                Ok(command) => change(&member, id, command, room).await,
                Err(error) => refuse(room, id, error),
            },
            Some(call::Kind::Query(query)) => match edge::check_cred(cred.as_ref()) {
                Ok(()) => asked.push(Asked { id, cred: cred.unwrap_or_else(nobody), query, room }),
                Err(error) => refuse(room, id, error),
            },
            None => refuse(room, id, ErrorCode::Malformed.because("an empty call")),
        }
    }
    answer_all(&member, asked).await;
    Ok(())
}

/// A caller that does not say who it is has no rights of its own.
fn nobody() -> Cred {
    Cred { uid: u32::MAX, gid: u32::MAX, groups: Vec::new() }
}

/// Proposes a command; its answer takes `room` when it is there.
async fn change(member: &Member, id: u64, mut command: Command, room: Room) {
    if let Some(mutation::Op::Allocate(ask)) =
        command.mutation.as_mut().and_then(|mutation| mutation.op.as_mut())
        && let Err(error) = choose_targets(member, ask)
    {
        return refuse(room, id, error);
    }
    let sealed = match command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) {
        Some(mutation::Op::Seal(ask)) => Some((ask.chunk, member.datanodes.clone())),
        _ => None,
    };
    let settle = move |result: Result<Outcome, Error>| match result {
        Ok(outcome) => {
            if let Some((chunk, datanodes)) = sealed {
                datanodes.look_at(chunk);
            }
            let result = Some(reply::Result::Outcome(outcome));
            room.send(Said::Reply(Box::new(Reply { id, result, leader_address: String::new() })));
        }
        Err(error) => refuse(room, id, error),
    };
    member.proposer.submit(command, Box::new(settle)).await;
}

fn choose_targets(member: &Member, ask: &mut fs::AllocateChunk) -> Result<(), Error> {
    ask.targets.clear();
    ask.targets = member.datanodes.choose_targets(ask, member.default_replication()?)?;
    Ok(())
}

struct Asked {
    id: u64,
    cred: Cred,
    query: Query,
    room: Room,
}

fn answered(member: &Member, view: &dyn View, asked: &Asked) -> Result<Answer, StoreError> {
    let since = Instant::now();
    let answer = cairn_metadata::answer(view, &asked.cred, &asked.query)?;
    let done = !matches!(answer.result, Some(answer::Result::Error(_)));
    let operation = asked.query.op.as_ref().map_or(usize::MAX, query_number);
    member.counters.queries.record(operation, done, since.elapsed());
    Ok(answer)
}

/// Answers queries in place: each takes microseconds, less than handing it to another thread.
async fn answer_all(member: &Member, asked: Vec<Asked>) {
    let mut asked = asked.into_iter();
    loop {
        let some: Vec<Asked> = asked.by_ref().take(QUERIES_AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        let answered = member.view(|view| some.iter().map(|asked| answered(member, view, asked)).collect());
        match answered {
            Ok::<Vec<Answer>, Error>(answers) => {
                for (Asked { id, room, .. }, mut answer) in some.into_iter().zip(answers) {
                    member.decorate(&mut answer);
                    let result = Some(reply::Result::Answer(answer));
                    room.send(Said::Reply(Box::new(Reply { id, result, leader_address: String::new() })));
                }
            }
            Err(error) => some.into_iter().for_each(|asked| refuse(asked.room, asked.id, error.clone())),
        }
        tokio::task::yield_now().await;
    }
}
