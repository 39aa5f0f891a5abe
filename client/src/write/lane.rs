//! A lane: always a chain to write into, whatever happens to the chains.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_host::net::Network;
use cairn_proto::error::Reaction;
use cairn_proto::limits::MAX_PAYLOAD;
use cairn_proto::{Error, ErrorCode, fs};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::chain::{Chain, End, NOBODY, Taken};
use super::piece::Piece;
use super::{Append, Control, Pace};
use crate::backoff::Backoff;
use crate::metrics::Counters;
use crate::wire;

/// Chains of one lane that ended and are not looked at yet.
const ENDS: usize = 16;

/// What every lane of a client shares.
pub(super) struct Yard {
    pub(super) control: Arc<dyn Control>,
    pub(super) network: Arc<dyn Network>,
    pub(super) pace: Pace,
    pub(super) counters: Arc<Counters>,
    pub(super) chains: Chains,
    pub(super) closed: AtomicBool,
    excluded: Mutex<BTreeMap<u32, Instant>>,
    /// When there was no room for a chunk the last time it was asked for one, and what the namenode said.
    full: Mutex<Option<(Instant, Error)>>,
}

/// Chains by chunk, also for a while after they ended: for syncs, and for reading what is not committed yet.
#[derive(Default)]
pub(super) struct Chains(Mutex<BTreeMap<u64, Arc<Chain>>>);

/// How many chains are remembered.
const MAX_CHAINS: usize = 512;

/// See the module.
pub(crate) struct Lane {
    replication: u32,
    yard: Arc<Yard>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Chain>>,
    next: Option<Arc<Chain>>,
    /// What no chain has taken yet.
    waiting: VecDeque<Piece>,
    closed: bool,
}

type Opening = BoxFuture<'static, Result<Arc<Chain>, Error>>;

impl Lane {
    pub(super) fn start(replication: u32, yard: Arc<Yard>) -> Arc<Lane> {
        let lane = Arc::new(Lane { replication, yard, state: Mutex::default(), wake: Notify::new() });
        tokio::spawn(Supervisor::new(Arc::clone(&lane)).run());
        lane
    }

    /// Takes an append in. It is told its places when every replica holds it, also after failures.
    pub(crate) fn append(&self, append: Append) {
        let piece = append.into_piece();
        if piece.data.is_empty() || piece.data.len() > MAX_PAYLOAD {
            let detail = format!("an append of {} bytes", piece.data.len());
            return piece.failed(ErrorCode::TooLarge.because(detail));
        }
        let mut state = self.state();
        if state.closed {
            drop(state);
            return piece.failed(ErrorCode::Unavailable.because("the client is being closed"));
        }
        state.waiting.push_back(piece);
        let attention = state.hand_out();
        drop(state);
        if attention {
            self.wake.notify_one();
        }
    }

    /// Whether something waits in it for a chunk.
    pub(crate) fn lacks_room(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    /// Ends the lane; what it has not placed fails.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let chains = [state.current.take(), state.next.take()];
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        chains.into_iter().flatten().for_each(|chain| chain.abort());
        self.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives waiting pieces to the chains there are; true: the supervisor has something to do.
    fn hand_out(&mut self) -> bool {
        while let Some(piece) = self.waiting.pop_front() {
            if self.current.is_none() {
                self.current = self.next.take();
            }
            let Some(chain) = &self.current else {
                self.waiting.push_front(piece);
                return true;
            };
            match chain.push(piece) {
                Taken::Whole => {}
                Taken::Rest(rest) => {
                    chain.finish();
                    self.current = None;
                    self.waiting.push_front(rest);
                }
                Taken::Refused(piece) => {
                    self.current = None;
                    self.waiting.push_front(piece);
                }
            }
        }
        self.next.is_none() && self.current.as_ref().is_some_and(|chain| chain.nearly_full())
    }

    /// Takes out what nobody waits for any more, or what `refused` has put an end to.
    fn give_up(&mut self, refused: Option<ErrorCode>) -> VecDeque<Piece> {
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        let is_over = |piece: &Piece| match refused {
            None => false,
            Some(ErrorCode::NoSpace) => !piece.is_lasting(),
            Some(_) => true,
        };
        let (failed, kept) = waiting.into_iter().partition(|piece| is_over(piece) || piece.deadline() <= now);
        self.waiting = kept;
        failed
    }

    fn wants_chain(&self) -> bool {
        (self.current.is_none() && self.next.is_none() && !self.waiting.is_empty())
            || (self.next.is_none() && self.current.as_ref().is_some_and(|chain| chain.nearly_full()))
    }
}

/// The task that opens a lane's chains and buries the dead ones.
struct Supervisor {
    lane: Arc<Lane>,
    ends_in: mpsc::Sender<End>,
    ends: mpsc::Receiver<End>,
    opening: Option<Opening>,
    burials: FuturesUnordered<BoxFuture<'static, ()>>,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Supervisor {
    fn new(lane: Arc<Lane>) -> Supervisor {
        let (ends_in, ends) = mpsc::channel(ENDS);
        Supervisor {
            lane,
            ends_in,
            ends,
            opening: None,
            burials: FuturesUnordered::new(),
            backoff: Backoff::new(),
            not_before: None,
        }
    }

    async fn run(mut self) {
        loop {
            let (wanted, closed) = {
                let state = self.lane.state();
                (state.wants_chain(), state.closed)
            };
            if closed {
                return;
            }
            if wanted && self.opening.is_none() {
                self.opening = Some(self.open());
            }
            let lane = Arc::clone(&self.lane);
            let opening = async {
                match &mut self.opening {
                    Some(opening) => opening.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = lane.wake.notified() => {}
                Some(end) = self.ends.recv() => self.ended(end),
                Some(()) = self.burials.next() => {}
                opened = opening => {
                    self.opening = None;
                    self.opened(opened);
                }
            }
        }
    }

    /// One attempt to have a chain; a failed one is told apart by its error.
    fn open(&self) -> Opening {
        let yard = Arc::clone(&self.lane.yard);
        let replication = self.lane.replication;
        let ends = self.ends_in.clone();
        let not_before = self.not_before;
        async move {
            if let Some(at) = not_before {
                tokio::time::sleep_until(at).await;
            }
            let allocated = yard.control.allocate(replication, yard.excluded_now()).await?;
            let chain = Chain::new(allocated);
            let connection = match chain.open(&*yard.network, &yard.control.cluster_id(), &yard.pace).await {
                Ok(connection) => connection,
                Err((error, node)) => {
                    Counters::add(&yard.counters.chain_failures, 1);
                    tracing::warn!(chunk = chain.chunk, node, %error, "the chain did not open");
                    let abandoned = Arc::clone(&chain);
                    let burying = Arc::clone(&yard);
                    // Sealing must not hold up the next attempt.
                    tokio::spawn(async move { burying.seal(&abandoned, 0).await });
                    yard.blame(&chain.replicas, node).await;
                    return Err(Error::new(ErrorCode::ChainBroken, error.to_string()));
                }
            };
            yard.chains.insert(Arc::clone(&chain));
            let running = Arc::clone(&chain);
            tokio::spawn(async move {
                let end = running.run(connection, &*yard.control, &yard.counters, yard.pace).await;
                // A lane that is gone needs no report: its pieces fail as they are dropped.
                let _ = ends.send(end).await;
            });
            Ok(chain)
        }
        .boxed()
    }

    fn opened(&mut self, opened: Result<Arc<Chain>, Error>) {
        let mut state = self.lane.state();
        match opened {
            Ok(chain) => {
                self.lane.yard.note_full(None);
                if state.closed {
                    return chain.abort();
                }
                if state.next.is_none() {
                    state.next = Some(chain);
                }
                state.hand_out();
            }
            Err(error) => {
                self.not_before = Some(Instant::now() + self.backoff.pause());
                let hopeless =
                    error.code.reaction() == Reaction::Fail && error.code != ErrorCode::SessionExpired;
                if error.code == ErrorCode::NoSpace {
                    self.lane.yard.note_full(Some(error.clone()));
                }
                let failed = state.give_up(hopeless.then_some(error.code));
                drop(state);
                failed.into_iter().for_each(|piece| piece.failed(error.clone()));
            }
        }
    }

    fn ended(&mut self, end: End) {
        let mut state = self.lane.state();
        for slot in [false, true] {
            let slot = if slot { &mut state.next } else { &mut state.current };
            if slot.as_ref().is_some_and(|chain| chain.chunk == end.chain.chunk) {
                *slot = None;
            }
        }
        let yard = Arc::clone(&self.lane.yard);
        let chunk = end.chain.chunk;
        if let Some((error, node)) = &end.failure {
            Counters::add(&yard.counters.chain_failures, 1);
            Counters::add(&yard.counters.retries, end.leftovers.len() as u64);
            tracing::warn!(chunk, acked = end.acked, node, %error, "the chain failed; writing goes on elsewhere");
            // A chain waiting its turn may go through the same datanode: rather none than a second stall.
            if let Some(next) = state.next.take() {
                next.finish();
            }
        }
        for piece in end.leftovers.into_iter().rev() {
            state.waiting.push_front(piece);
        }
        let failed = if end.failure.is_some() { state.give_up(None) } else { VecDeque::new() };
        state.hand_out();
        drop(state);
        // A chain that held anything was worth opening; one that fails at once is not opened in a tight loop.
        if end.failure.is_none() || end.acked > 0 {
            self.backoff = Backoff::new();
            self.not_before = None;
        } else {
            self.not_before = Some(Instant::now() + self.backoff.pause());
        }
        let mut blamed = NOBODY;
        if let Some((error, node)) = end.failure {
            blamed = node;
            failed.into_iter().for_each(|piece| piece.failed(error.clone()));
        }
        if blamed == 0 {
            // Somebody of the chain is silent; a new chain before the probes tell who may stall again.
            self.not_before = Some(Instant::now() + yard.pace.probe_timeout());
        } else {
            yard.exclude([blamed]);
        }
        self.burials.push(
            async move {
                let probes = async {
                    if blamed == 0 {
                        yard.blame(&end.chain.replicas, 0).await;
                    }
                };
                futures::join!(yard.seal(&end.chain, end.acked), probes);
            }
            .boxed(),
        );
    }
}

impl Yard {
    pub(super) fn new(
        control: Arc<dyn Control>,
        network: Arc<dyn Network>,
        pace: Pace,
        counters: Arc<Counters>,
    ) -> Yard {
        Yard {
            control,
            network,
            pace,
            counters,
            chains: Chains::default(),
            closed: AtomicBool::new(false),
            excluded: Mutex::default(),
            full: Mutex::default(),
        }
    }

    fn note_full(&self, error: Option<Error>) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) =
            error.map(|error| (Instant::now(), error));
    }

    /// Why there was no room for a chunk, if that was after `since` and there was none later.
    pub(super) fn full_since(&self, since: Instant) -> Option<Error> {
        let full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        full.as_ref().filter(|(at, _)| *at >= since).map(|(_, error)| error.clone())
    }

    /// Datanodes that new chunks should avoid for now.
    fn excluded_now(&self) -> Vec<u32> {
        let mut excluded = self.excluded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        excluded.retain(|_, until| *until > now);
        excluded.keys().copied().collect()
    }

    /// Remembers who failed; when nobody knows, whoever of the chain does not answer now. If all do, it is the first: it
    /// greets, and would have said by now which of the others keeps it waiting, but its own disk hangs.
    async fn blame(&self, replicas: &[fs::ReplicaInfo], node: u32) {
        if node != 0 {
            return self.exclude([node]);
        }
        let cluster_id = self.control.cluster_id();
        let probes = replicas.iter().map(|replica| {
            wire::dial(&*self.network, &replica.address, &cluster_id, self.pace.probe_timeout())
                .map(|dialed| dialed.is_err().then_some(replica.node))
        });
        let mut silent: Vec<u32> = futures::future::join_all(probes).await.into_iter().flatten().collect();
        if silent.is_empty() {
            silent.extend(replicas.first().map(|head| head.node));
        }
        self.exclude(silent);
    }

    fn exclude(&self, nodes: impl IntoIterator<Item = u32>) {
        let until = Instant::now() + self.pace.exclude_for;
        let mut excluded = self.excluded.lock().unwrap_or_else(PoisonError::into_inner);
        excluded.extend(nodes.into_iter().filter(|&node| node != NOBODY).map(|node| (node, until)));
    }

    /// Seals, however long the namenodes are away: until it is sealed, a chunk is not repaired, and only the session's
    /// end would seal it otherwise.
    async fn seal(&self, chain: &Chain, length: u64) {
        let (chunk, session) = (chain.chunk, chain.session);
        let mut backoff = Backoff::new();
        while let Err(error) = self.control.seal(session, chunk, length).await {
            tracing::debug!(chunk, length, %error, "the chunk was not sealed by its writer");
            if error.code.is_final()
                || self.closed.load(Ordering::Relaxed)
                || self.control.session() != session
            {
                return;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

impl Chains {
    fn insert(&self, chain: Arc<Chain>) {
        let mut chains = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while chains.len() >= MAX_CHAINS {
            let Some(oldest) = chains.iter().find(|(_, chain)| chain.ended()).map(|(&chunk, _)| chunk) else {
                break;
            };
            chains.remove(&oldest);
        }
        chains.insert(chain.chunk, chain);
    }

    pub(super) fn get(&self, chunk: u64) -> Option<Arc<Chain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk).cloned()
    }
}
