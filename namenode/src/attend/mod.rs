//! Datanodes as the leader sees them.
//!
//! The planners of `cairn_metadata::plan` are pure; this module is their executor. It keeps the leader's soft state
//! ([`leading`]), holds the datanodes' streams ([`stream`]), and goes round after round ([`round`]): read some chunk
//! records ([`scan`]), judge them, then order what follows - seal, copy, delete - or propose it to the log. Answers
//! ([`answers`]) lead to the next proposal, and every proposal to a new reading of its chunk. Nothing is ever assumed
//! to have happened. `docs/decisions/0003-planner-and-executor.md` says why it is built like this.

mod answers;
mod balance;
mod compaction;
mod inventory;
mod leading;
mod map;
mod orders;
mod progress;
mod purges;
mod report;
mod roster;
mod round;
mod scan;
mod service;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_host::clock::Clock;
use cairn_metadata::plan::placement::{self, Ask};
use cairn_metadata::records;
use cairn_metadata::store::Store;
use cairn_proto::control::{BadReplica, DatanodeMessage, NamenodeMessage, ScrubRequest};
use cairn_proto::fs::{
    AddReplica, BeginCompaction, ChunkState, Command, DropReplica, ForgetReplica, Outcome, PurgeChunk,
    RecordDigest, SwapExtents, mutation,
};
use cairn_proto::limits::{CHUNK_SIZE, MAX_REPLICATION};
use cairn_proto::store::Chunk;
use cairn_proto::{Error, ErrorCode, fs};
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use self::leading::{Change, Leading, Proposal};
pub use self::map::Tally;
use self::orders::Task;
pub use self::settings::Settings;
use crate::capabilities::Capabilities;
use crate::fatal::Alarm;
use crate::propose::{Proposer, own};

/// Puts a command into the log and waits for its outcome.
type Propose = Arc<dyn Fn(Command) -> BoxFuture<'static, Result<Outcome, Error>> + Send + Sync>;

/// Answers to orders that come within this time are taken in together.
const HURRY: Duration = Duration::from_millis(5);

/// The leader's view of datanodes and replicas, and what makes it true. Cheap to clone.
#[derive(Clone)]
pub struct Datanodes(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    propose: Propose,
    clock: Arc<dyn Clock>,
    settings: Settings,
    capabilities: Capabilities,
    alarm: Alarm,
    origin: Instant,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    generations: u64,
    leading: Option<Leading>,
}

impl Datanodes {
    /// Nothing is done before [`Datanodes::lead`].
    pub fn new(
        store: Arc<dyn Store>,
        proposer: Proposer,
        clock: Arc<dyn Clock>,
        settings: Settings,
        alarm: Alarm,
    ) -> Datanodes {
        let propose: Propose = Arc::new(move |command| {
            let proposer = proposer.clone();
            Box::pin(async move { proposer.propose(command).await })
        });
        Datanodes::with(store, propose, clock, settings, alarm)
    }

    fn with(
        store: Arc<dyn Store>,
        propose: Propose,
        clock: Arc<dyn Clock>,
        settings: Settings,
        alarm: Alarm,
    ) -> Datanodes {
        let capabilities = Capabilities::new(settings.capabilities, store.clone(), clock.clone());
        Datanodes(Arc::new(Shared {
            store,
            capabilities,
            propose,
            clock,
            settings,
            alarm,
            origin: Instant::now(),
            state: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    /// This namenode leads from now on: it starts with an empty memory, and looks around by itself.
    pub async fn lead(&self, term: u64) {
        let generation = {
            let mut state = self.0.lock();
            if state.leading.as_ref().is_some_and(|leading| leading.term == term) {
                return;
            }
            state.generations += 1;
            let generation = state.generations;
            let now_ms = self.0.now_ms();
            state.leading = Some(Leading::new(term, generation, now_ms, self.0.settings.clone()));
            generation
        };
        // Answers may be asked for as soon as this returns.
        self.0.round(generation, true);
        self.0.alarm.spawn("the task that attends to the datanodes", watch(self.0.clone(), generation));
    }

    /// This namenode leads no more: streams end, orders and plans are forgotten.
    pub async fn follow(&self) {
        self.0.lock().leading = None;
        self.0.wake.notify_one();
    }

    /// Datanodes for a new chunk, the client's own host first. At least one; fewer than wanted when fewer can take it.
    pub fn choose_targets(
        &self,
        ask: &fs::AllocateChunk,
        default_replication: u32,
    ) -> Result<Vec<u32>, Error> {
        let wanted = if ask.replication == 0 { default_replication } else { ask.replication };
        let avoid = ask.exclude.iter().copied().collect();
        self.0
            .with(None, |leading, _| {
                let room = if leading.meta.chunk_size == 0 { CHUNK_SIZE } else { leading.meta.chunk_size };
                let ask = Ask {
                    replicas: wanted.clamp(1, MAX_REPLICATION) as usize,
                    room,
                    host: &ask.client_host,
                    avoid: &avoid,
                    seed: rand::random(),
                };
                placement::choose(&leading.roster.nodes, &ask)
            })
            .ok_or_else(stream::not_leading)?
            .map_err(Error::from)
    }

    /// A chunk was just sealed: its replicas are to be sealed as well, and somebody may wait for that. The reading of
    /// all chunks would come to it, too, but later.
    pub fn look_at(&self, chunk: u64) {
        self.0.with(None, |leading, _| leading.touch(chunk));
        self.0.wake.notify_one();
    }

    /// Adds to an answer what only the leader knows: liveness and the order in which to ask replicas, free space, the
    /// progress of repair. Leaves it as it is when this namenode does not lead.
    pub fn decorate(&self, answer: &mut fs::Answer) {
        self.0.with(None, |leading, now_ms| report::decorate(leading, answer, now_ms));
    }

    /// Signs what clients may do with chunks.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// How many chunks of each stretch of ids are in which state, and how many ids are in a stretch; nothing when this
    /// namenode does not lead.
    pub fn map(&self) -> Option<(Vec<Tally>, u64)> {
        self.0.with(None, |leading, _| leading.map.read())
    }

    /// Serves a datanode's stream to its end.
    pub async fn attend(
        &self,
        incoming: Streaming<DatanodeMessage>,
        outgoing: mpsc::Sender<Result<NamenodeMessage, Status>>,
    ) {
        stream::serve(&self.0, incoming, outgoing).await;
    }

    /// A client saw a bad replica. A client is not believed, its network may be what is bad: the datanode is told to
    /// seal the replica once more, which it refuses if the replica is short or gone. One that is corrupt on disk was
    /// reported by the datanode itself when it read it for the client.
    pub fn report_bad(&self, bad: BadReplica) {
        let Ok(Some(record)) = self.0.read_chunk(bad.chunk) else { return };
        if record.state() != ChunkState::Sealed || !record.replicas.contains(&bad.node) {
            return;
        }
        tracing::info!(
            chunk = bad.chunk,
            node = bad.node,
            reason = bad.reason,
            "client reports a bad replica"
        );
        self.0.with(None, |leading, now_ms| {
            leading.want_check(bad.node, bad.chunk, record.length, now_ms);
        });
        self.0.wake.notify_one();
    }
}

/// Chunks that one request to scrub may name.
const MAX_SCRUB: usize = 100_000;

impl Datanodes {
    /// Orders datanodes to read and verify what they hold; says how many were told.
    pub fn scrub(&self, ask: &ScrubRequest) -> Result<u32, Error> {
        if ask.chunks.len() > MAX_SCRUB {
            let detail =
                format!("{} chunks to scrub; name at most {MAX_SCRUB}, or none for all", ask.chunks.len());
            return Err(ErrorCode::TooLarge.because(detail));
        }
        let mut holders: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for &chunk in &ask.chunks {
            let record = self.0.read_chunk(chunk)?;
            let record = record.ok_or_else(|| ErrorCode::ChunkUnknown.because(format!("chunk {chunk}")))?;
            record.replicas.iter().for_each(|node| holders.entry(*node).or_default().push(chunk));
        }
        self.0
            .with(None, |leading, now_ms| scrub(leading, ask, holders, now_ms))
            .ok_or_else(stream::not_leading)?
    }
}

fn scrub(
    leading: &mut Leading,
    ask: &ScrubRequest,
    mut holders: BTreeMap<u32, Vec<u64>>,
    now_ms: u64,
) -> Result<u32, Error> {
    let attending: Vec<u32> = leading.roster.attending().collect();
    if ask.node != 0 && !attending.contains(&ask.node) {
        let detail = format!("datanode {} does not attend; `cairn status` lists those that do", ask.node);
        return Err(ErrorCode::Unavailable.because(detail));
    }
    let mut told = 0;
    for node in attending.into_iter().filter(|node| ask.node == 0 || ask.node == *node) {
        let chunks = holders.remove(&node).unwrap_or_default();
        if ask.chunks.is_empty() || !chunks.is_empty() {
            told += u32::from(leading.send(node, 0, Task::Scrub { chunks }, 0, now_ms));
        }
    }
    Ok(told)
}

/// Goes round after round until the leadership ends.
async fn watch(shared: Arc<Shared>, generation: u64) {
    let mut next = tokio::time::Instant::now() + shared.settings.round;
    loop {
        let due = tokio::select! {
            () = tokio::time::sleep_until(next) => true,
            () = shared.wake.notified() => {
                tokio::time::sleep(HURRY).await;
                false
            }
        };
        if due {
            next = tokio::time::Instant::now() + shared.settings.round;
        }
        if !shared.round(generation, due) {
            return;
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        settings::millis(self.origin.elapsed())
    }

    /// Runs `work` on the leader's memory, and sends off what it wants proposed. `None` when this namenode does not
    /// lead, or not since `generation`.
    fn with<R>(
        self: &Arc<Self>,
        generation: Option<u64>,
        work: impl FnOnce(&mut Leading, u64) -> R,
    ) -> Option<R> {
        let mut state = self.lock();
        let leading = state.leading.as_mut()?;
        if generation.is_some_and(|generation| generation != leading.generation) {
            return None;
        }
        let result = work(leading, self.now_ms());
        let generation = leading.generation;
        let outbox = std::mem::take(&mut leading.outbox);
        drop(state);
        for proposal in outbox {
            tokio::spawn(propose(self.clone(), generation, proposal));
        }
        Some(result)
    }

    fn read_chunk(&self, chunk: u64) -> Result<Option<Chunk>, Error> {
        let mut record = None;
        self.store
            .read(&mut |view| {
                record = records::chunk(view, chunk)?;
                Ok(())
            })
            .map_err(|error| ErrorCode::Io.because(error.to_string()))?;
        Ok(record)
    }

    /// One round. False when the leadership is over.
    fn round(self: &Arc<Self>, generation: u64, due: bool) -> bool {
        if due {
            match round::read_roster(self.store.as_ref()) {
                Ok((meta, records)) => {
                    self.with(Some(generation), |leading, _| {
                        leading.meta = meta;
                        leading.roster.load(records);
                    });
                }
                Err(error) => self.alarm.raise(format!("reading the datanodes' records: {error}")),
            }
        }
        let begun = self.with(Some(generation), |leading, now_ms| {
            round::begin(leading, due, now_ms, self.clock.now_ns())
        });
        let Some((job, settled)) = begun else { return false };
        match scan::read(self.store.as_ref(), &job, self.settings.scan_slice) {
            Ok(read) => self.with(Some(generation), |leading, now_ms| {
                round::end(leading, read, settled, now_ms, self.clock.now_ns());
            }),
            Err(error) => {
                // One that leads and cannot see what to repair is worse than none.
                self.alarm.raise(format!("reading chunk records: {error}"));
                self.with(Some(generation), |leading, _| {
                    leading.touched.extend(job.touched);
                    leading.settled.extend(settled);
                })
            }
        }
        .is_some()
    }
}

/// Proposes and takes the answer in.
async fn propose(shared: Arc<Shared>, generation: u64, proposal: Proposal) {
    let answer = (shared.propose)(own(operation(&proposal))).await;
    shared.with(Some(generation), |leading, now_ms| {
        answers::proposal_done(leading, &proposal, answer, now_ms);
    });
    shared.wake.notify_one();
}

fn operation(proposal: &Proposal) -> mutation::Op {
    let (chunk, node) = (proposal.chunk, proposal.node);
    match &proposal.change {
        Change::Add { .. } => mutation::Op::AddReplica(AddReplica { chunk, node, ..AddReplica::default() }),
        Change::Drop { bad } => mutation::Op::DropReplica(DropReplica { chunk, node, bad: *bad }),
        Change::Forget => mutation::Op::ForgetReplica(ForgetReplica { chunk, node }),
        Change::Purge { .. } => mutation::Op::PurgeChunk(PurgeChunk { chunk }),
        Change::Digest(blake3) => {
            mutation::Op::RecordDigest(RecordDigest { chunk, node, blake3: blake3.clone() })
        }
        Change::Begin { length, replication, .. } => {
            mutation::Op::BeginCompaction(BeginCompaction { length: *length, replication: *replication })
        }
        Change::Gathered { blake3, .. } => {
            mutation::Op::AddReplica(AddReplica { chunk, node, blake3: blake3.clone() })
        }
        Change::Swap { pieces, .. } => {
            mutation::Op::SwapExtents(SwapExtents { into: chunk, pieces: pieces.clone() })
        }
    }
}
