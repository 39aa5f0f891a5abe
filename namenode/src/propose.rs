//! Group commit: many clients' commands in one log entry, under one time and one fsync.
//!
//! Commands wait in one bounded queue. Whenever fewer than a few entries are under way, everything that waits (up
//! to a bound) becomes the next entry; so a lone command goes at once, and under load entries grow by themselves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_host::clock::Clock;
use cairn_host::request::{self, RequestId};
use cairn_proto::fs::{Command, CommandBatch, Cred, Mutation, Outcome, mutation, outcome};
use cairn_proto::limits::MAX_MESSAGE;
use cairn_proto::{Error, ErrorCode};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::counters::{Counters, mutation_name, mutation_number};
use crate::fatal::Alarm;
use crate::raft::{Group, Pending};

/// Commands that may wait.
const QUEUE: usize = 16 << 10;
/// Commands in one entry, at most.
const BATCH_COMMANDS: usize = 2048;
/// Encoded bytes in one entry, at most, unless one command alone is larger.
const BATCH_BYTES: usize = 1 << 20;
/// Entries under way at once.
const ENTRIES_AHEAD: usize = 3;
/// How long [`Proposer::propose`] waits for an outcome.
const PATIENCE: Duration = Duration::from_secs(10);

/// Called with the outcome of a command, or with why there is none.
pub type Settle = Box<dyn FnOnce(Result<Outcome, Error>) + Send>;

/// A command of the leader itself, of no session.
pub fn own(op: mutation::Op) -> Command {
    Command { cred: Some(Cred::default()), mutation: Some(Mutation { op: Some(op) }), ..Command::default() }
}

/// Puts commands into the log. Clones share one queue.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
    group: Group,
    counters: Arc<Counters>,
}

struct Waiting {
    command: Command,
    bytes: usize,
    asked: Asked,
}

/// Who waits for an outcome, and what is counted when it is there.
struct Asked {
    request: RequestId,
    settle: Settle,
    operation: usize,
    since: Instant,
    counters: Arc<Counters>,
}

impl Asked {
    fn settle(self, result: Result<Outcome, Error>) {
        let done =
            matches!(&result, Ok(Outcome { result }) if !matches!(result, Some(outcome::Result::Error(_))));
        let took = self.since.elapsed();
        self.counters.mutations.record(self.operation, done, took);
        request::done(self.request, mutation_name(self.operation), took, !done);
        (self.settle)(result);
    }
}

impl Proposer {
    /// Starts the queue of a group; it ends with the last clone.
    pub fn start(group: Group, clock: Arc<dyn Clock>, counters: Arc<Counters>, alarm: &Alarm) -> Proposer {
        let (queue, waiting) = mpsc::channel(QUEUE);
        alarm.spawn("the task that fills the log", drain(group.clone(), clock, counters.clone(), waiting));
        Proposer { queue, group, counters }
    }

    /// Puts a command into the log and waits for its outcome. An error means that it was not executed, or, with
    /// `Unavailable`, that nobody knows.
    pub async fn propose(&self, command: Command) -> Result<Outcome, Error> {
        let (sender, outcome) = oneshot::channel();
        // The caller may have stopped waiting.
        let settle = Box::new(move |result| drop(sender.send(result)));
        self.submit(RequestId::default(), command, settle).await;
        match tokio::time::timeout(PATIENCE, outcome).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ErrorCode::Unavailable.because("the namenode is stopping")),
            Err(_) => Err(ErrorCode::Unavailable.because("no majority of the namenodes answers")),
        }
    }

    /// Queues a command for the sake of `request`; `settle` is called exactly once, possibly before this returns. Waits while the queue is full.
    pub async fn submit(&self, request: RequestId, command: Command, settle: Settle) {
        let op = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref());
        let operation = op.map_or(usize::MAX, mutation_number);
        let counters = self.counters.clone();
        let asked = Asked { request, settle, operation, since: Instant::now(), counters };
        if let Some(error) = self.group.refusal() {
            return asked.settle(Err(error));
        }
        let bytes = command.encoded_len();
        if bytes > MAX_MESSAGE {
            return asked.settle(Err(ErrorCode::TooLarge.because(format!("a change of {bytes} bytes"))));
        }
        if let Err(unsent) = self.queue.send(Waiting { command, bytes, asked }).await {
            unsent.0.asked.settle(Err(ErrorCode::Unavailable.because("the namenode is stopping")));
        }
    }
}

async fn drain(
    group: Group,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    mut waiting: mpsc::Receiver<Waiting>,
) {
    let entries = Arc::new(Semaphore::new(ENTRIES_AHEAD));
    let mut held: Option<Waiting> = None;
    loop {
        let Ok(permit) = entries.clone().acquire_owned().await else { return };
        let Some(first) = (match held.take() {
            Some(first) => Some(first),
            None => waiting.recv().await,
        }) else {
            return;
        };
        let mut bytes = first.bytes;
        let mut commands = vec![first.command];
        let mut settles = vec![first.asked];
        while commands.len() < BATCH_COMMANDS {
            let Ok(next) = waiting.try_recv() else { break };
            if bytes + next.bytes > BATCH_BYTES {
                held = Some(next);
                break;
            }
            bytes += next.bytes;
            commands.push(next.command);
            settles.push(next.asked);
        }
        let batch = CommandBatch { time_ns: clock.now_ns(), commands };
        counters.proposed(settles.len());
        let since = Instant::now();
        // In order: the next entry is handed over only when this one is.
        match group.write(Bytes::from(batch.encode_to_vec())).await {
            Ok(pending) => {
                let counters = counters.clone();
                drop(tokio::spawn(async move {
                    deliver(pending, settles, permit, || counters.commits.observe(since.elapsed())).await;
                }));
            }
            Err(error) => settles.into_iter().for_each(|asked| asked.settle(Err(error.clone()))),
        }
    }
}

/// Tells everybody the outcome; `applied` is called when there is one.
async fn deliver(
    pending: Pending,
    settles: Vec<Asked>,
    permit: OwnedSemaphorePermit,
    applied: impl FnOnce(),
) {
    let result = match pending.await {
        Ok(result) => result,
        Err(_) => Err(ErrorCode::Unavailable.because("the namenode is stopping")),
    };
    drop(permit);
    match result {
        Ok(outcomes) => {
            applied();
            let mut outcomes = outcomes.into_iter();
            for asked in settles {
                let missing = || ErrorCode::Io.because("the log gave no outcome for a command");
                asked.settle(outcomes.next().ok_or_else(missing));
            }
        }
        Err(error) => settles.into_iter().for_each(|asked| asked.settle(Err(error.clone()))),
    }
}
