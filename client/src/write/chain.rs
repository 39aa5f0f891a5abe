//! One open chunk and the connection to the first of its datanodes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_host::net::Network;
use cairn_host::request::RequestId;
use cairn_proto::checksum::BlockCrc;
use cairn_proto::data::{Append, ChainLink, OpenChain, Sync, request, response};
use cairn_proto::limits::{BLOCK_SIZE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result, fs};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use super::piece::Piece;
use super::{Allocated, Control, Pace};
use crate::metrics::Counters;
use crate::wire::{self, Connection, FrameReader, FrameWriter};

/// Small appends that wait together go in one frame of at most so many bytes ...
const GATHER_BYTES: usize = 256 << 10;
/// ... and parts.
const GATHER_PARTS: usize = 48;
/// A disk may take longer over a sync than a chain over an append.
pub(super) const SYNC_PATIENCE: u32 = 10;
/// How often a fenced chain looks whether it may go on.
const FENCE_PAUSE: Duration = Duration::from_millis(50);

/// An open chunk being written. Its connection is served by [`Chain::run`] in a task of its own.
pub(super) struct Chain {
    pub(super) chunk: u64,
    pub(super) replicas: Vec<fs::ReplicaInfo>,
    capacity: u64,
    pub(super) session: u64,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    /// End of what was accepted.
    taken: u64,
    unsent: VecDeque<Piece>,
    unacked: VecDeque<Piece>,
    sent: u64,
    acked: u64,
    synced: u64,
    sync_wanted: u64,
    sync_sent: u64,
    /// Who wanted a sync last.
    sync_for: RequestId,
    sync_waiters: Vec<(u64, oneshot::Sender<()>)>,
    progress: Option<Instant>,
    finishing: bool,
    aborted: bool,
    ended: bool,
}

/// How a chain ended, and what it leaves to others.
pub(super) struct End {
    pub(super) chain: Arc<Chain>,
    pub(super) acked: u64,
    pub(super) leftovers: Vec<Piece>,
    /// Why it was abandoned, and the datanode to blame (0: not known).
    pub(super) failure: Option<(Error, u32)>,
}

/// What became of a piece offered to a chain.
pub(super) enum Taken {
    Whole,
    /// The chunk is full; this much is left.
    Rest(Piece),
    /// The chain has ended.
    Refused(Piece),
}

/// What the sender does next.
enum Step {
    /// What several requests wrote may go together; the first one gives its name.
    Append(u64, RequestId, Vec<Bytes>),
    Sync(RequestId),
    Wait,
    Finished,
}

type Trouble = (Error, u32);

/// Blamed when no datanode is at fault.
pub(super) const NOBODY: u32 = u32::MAX;

impl State {
    /// How long the chain may make no progress, if it owes anything; `append`: where that is no sync.
    fn patience(&self, append: Duration) -> Option<Duration> {
        // A sync may have come along with its bytes, and nobody waits for it before those are acknowledged: which a
        // datanode does after the sync, if it finds both together.
        let syncs = self.sync_sent > self.synced || !self.sync_waiters.is_empty();
        match syncs {
            true => Some(append * SYNC_PATIENCE),
            false => (!self.unacked.is_empty()).then_some(append),
        }
    }
}

impl Chain {
    pub(super) fn new(allocated: Allocated) -> Arc<Chain> {
        Arc::new(Chain {
            chunk: allocated.info.chunk,
            replicas: allocated.info.replicas,
            capacity: allocated.capacity,
            session: allocated.session,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Connects to the first datanode and has the chain opened.
    pub(super) async fn open(
        &self,
        network: &dyn Network,
        cluster_id: &str,
        pace: &Pace,
    ) -> Result<Connection, Trouble> {
        let head = self.replicas.first().ok_or_else(|| (ErrorCode::NoDatanodes.because("empty chain"), 0))?;
        let blame_head = |error: Error| (error, head.node);
        let mut connection =
            wire::dial(network, &head.address, cluster_id, pace.connect_timeout).await.map_err(blame_head)?;
        if connection.node != 0 && connection.node != head.node {
            // One that lost its disk is another datanode, at the same address. What it took would be counted as the
            // other's.
            let detail = format!("datanode {} answers at {}", connection.node, head.address);
            return Err(blame_head(ErrorCode::Unavailable.because(detail)));
        }
        let links = self.replicas[1..]
            .iter()
            .map(|replica| ChainLink { node: replica.node, address: replica.address.clone() })
            .collect();
        let (chunk, node, capability) = (self.chunk, head.node, head.capability.clone());
        let open = OpenChain { chunk, length: 0, links, node, capability };
        let exchange = async {
            connection.writer.send(request::Kind::Open(open), &[]).await.map_err(blame_head)?;
            match connection.reader.next().await.map_err(blame_head)?.0 {
                response::Kind::Opened(_) => Ok(()),
                response::Kind::Failure(failure) => match wire::failure_of(failure) {
                    // One that has no number yet, or that is another one.
                    (error, 0) => Err(blame_head(error)),
                    blamed => Err(blamed),
                },
                _ => Err(blame_head(ErrorCode::Malformed.because("no answer to opening a chain"))),
            }
        };
        match timeout(pace.opening_timeout(self.replicas.len()), exchange).await {
            Ok(result) => result.map(|()| connection),
            Err(_) => Err((ErrorCode::Timeout.because(format!("opening chunk {}", self.chunk)), 0)),
        }
    }

    /// Takes a piece in, as far as the chunk has room.
    pub(super) fn push(&self, mut piece: Piece) -> Taken {
        let mut state = self.state();
        if state.ended || state.finishing {
            return Taken::Refused(piece);
        }
        let room = self.capacity.saturating_sub(state.taken);
        if room == 0 {
            return Taken::Rest(piece);
        }
        let mut rest = None;
        if piece.length() > room {
            let (fits, remains) = piece.split(room as usize);
            piece = fits;
            rest = Some(remains);
        }
        piece.offset = state.taken;
        state.taken = piece.end();
        if piece.sync {
            // With the append: nobody has to say so when it has landed.
            state.sync_wanted = state.taken;
            state.sync_for = piece.request();
        }
        state.unsent.push_back(piece);
        drop(state);
        self.wake.notify_one();
        rest.map_or(Taken::Whole, Taken::Rest)
    }

    /// Whether it is time to have the next chunk ready.
    pub(super) fn nearly_full(&self) -> bool {
        self.state().taken >= self.capacity / 4 * 3
    }

    /// Takes nothing more, and ends when everything taken is acknowledged.
    pub(super) fn finish(&self) {
        self.state().finishing = true;
        self.wake.notify_one();
    }

    /// Ends at once.
    pub(super) fn abort(&self) {
        let mut state = self.state();
        state.aborted = true;
        state.finishing = true;
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn ended(&self) -> bool {
        self.state().ended
    }

    /// Waits until the first `length` bytes are on the disks of the whole chain; false: the chain ended first.
    pub(super) async fn sync(&self, length: u64) -> bool {
        let waiter = {
            let mut state = self.state();
            if state.synced >= length {
                return true;
            }
            if state.ended {
                return false;
            }
            let (done, waiter) = oneshot::channel();
            state.sync_wanted = state.sync_wanted.max(length);
            state.sync_for = RequestId::current();
            state.sync_waiters.push((length, done));
            waiter
        };
        self.wake.notify_one();
        waiter.await.is_ok()
    }

    /// Serves the chain to its end.
    pub(super) async fn run(
        self: Arc<Chain>,
        connection: Connection,
        control: &dyn Control,
        counters: &Counters,
        pace: Pace,
    ) -> End {
        let Connection { reader, writer, .. } = connection;
        let ended = tokio::select! {
            ended = self.send(writer, control, &pace) => ended,
            trouble = self.receive(reader, counters) => Err(trouble),
            trouble = self.watch(&pace) => Err(trouble),
        };
        let mut state = self.state();
        state.ended = true;
        state.sync_waiters.clear();
        let mut leftovers: Vec<Piece> = state.unacked.drain(..).collect();
        leftovers.extend(state.unsent.drain(..));
        let acked = state.acked;
        drop(state);
        End { chain: self, acked, leftovers, failure: ended.err() }
    }

    async fn send(&self, mut writer: FrameWriter, control: &dyn Control, pace: &Pace) -> Result<(), Trouble> {
        let head = self.replicas.first().map_or(0, |replica| replica.node);
        let mut crc = BlockCrc::default();
        let mut idle_since = Instant::now();
        loop {
            match self.step(pace.window_bytes) {
                Step::Append(offset, request, parts) => {
                    self.allowed(control).await?;
                    let crcs = gathered_crcs(&mut crc, &parts);
                    let append = request::Kind::Append(Append { offset, crcs });
                    writer.send_for(request, append, &parts).await.map_err(|error| (error, head))?;
                    idle_since = Instant::now();
                }
                Step::Sync(request) => {
                    let sync = request::Kind::Sync(Sync {});
                    writer.send_for(request, sync, &[]).await.map_err(|error| (error, head))?;
                }
                Step::Finished => return Ok(()),
                Step::Wait => {
                    if timeout(pace.idle, self.wake.notified()).await.is_err() {
                        let mut state = self.state();
                        if state.unacked.is_empty()
                            && state.unsent.is_empty()
                            && idle_since.elapsed() >= pace.idle
                        {
                            state.finishing = true;
                        }
                    }
                }
            }
        }
    }

    fn step(&self, window: u64) -> Step {
        let mut state = self.state();
        if state.aborted {
            return Step::Finished;
        }
        if state.sync_sent < state.sync_wanted && state.sync_wanted <= state.sent {
            state.sync_sent = state.sent;
            state.progress = Some(Instant::now());
            return Step::Sync(state.sync_for);
        }
        let outstanding = state.sent - state.acked;
        let fits = |piece: &Piece| outstanding == 0 || outstanding + piece.length() <= window;
        if !state.unsent.front().is_some_and(fits) {
            let done = state.unsent.is_empty() && state.unacked.is_empty() && state.sync_waiters.is_empty();
            return if state.finishing && done { Step::Finished } else { Step::Wait };
        }
        let offset = state.sent;
        let request = state.unsent.front().map(Piece::request).unwrap_or_default();
        let mut parts = Vec::new();
        let mut bytes = 0;
        if state.unacked.is_empty() {
            state.progress = Some(Instant::now());
        }
        while let Some(piece) = state.unsent.front() {
            let together = bytes + piece.data.len();
            if !parts.is_empty() && (together > GATHER_BYTES || parts.len() >= GATHER_PARTS) {
                break;
            }
            if together > MAX_PAYLOAD {
                break;
            }
            bytes = together;
            parts.push(piece.data.clone());
            state.sent = piece.end();
            if let Some(piece) = state.unsent.pop_front() {
                state.unacked.push_back(piece);
            }
        }
        Step::Append(offset, request, parts)
    }

    async fn receive(&self, mut reader: FrameReader, counters: &Counters) -> Trouble {
        let head = self.replicas.first().map_or(0, |replica| replica.node);
        loop {
            match reader.next().await {
                Ok((response::Kind::Ack(ack), _)) => match self.acknowledge(ack.length, ack.synced) {
                    Ok(placed) => {
                        let bytes = placed.iter().map(Piece::length).sum();
                        Counters::add(&counters.bytes_written, bytes);
                        placed.into_iter().for_each(|piece| piece.placed(self.chunk));
                    }
                    Err(error) => return (error, head),
                },
                Ok((response::Kind::Failure(failure), _)) => return wire::failure_of(failure),
                Ok(_) => return (ErrorCode::Malformed.because("an odd frame on a chain"), head),
                Err(error) => return (error, head),
            }
        }
    }

    fn acknowledge(&self, length: u64, synced: u64) -> Result<Vec<Piece>> {
        let mut state = self.state();
        if length > state.sent || length < state.acked || synced > length {
            let detail = format!("acknowledged {length} ({synced} synced) of {} bytes sent", state.sent);
            return Err(ErrorCode::Malformed.because(detail));
        }
        state.acked = length;
        state.synced = state.synced.max(synced);
        state.progress = Some(Instant::now());
        let mut placed = Vec::new();
        while state.unacked.front().is_some_and(|piece| piece.end() <= length) {
            placed.extend(state.unacked.pop_front());
        }
        let synced = state.synced;
        let waiters = std::mem::take(&mut state.sync_waiters);
        for (target, done) in waiters {
            if target <= synced {
                let _ = done.send(());
            } else {
                state.sync_waiters.push((target, done));
            }
        }
        drop(state);
        self.wake.notify_one();
        Ok(placed)
    }

    /// Ends when the chain owes acknowledgements and makes no progress.
    async fn watch(&self, pace: &Pace) -> Trouble {
        let append_patience = pace.stall_patience(self.replicas.len());
        loop {
            tokio::time::sleep(pace.stall_timeout / 4).await;
            let state = self.state();
            let Some(patience) = state.patience(append_patience) else { continue };
            if state.progress.is_some_and(|at| at.elapsed() > patience) {
                let owed = state.sent - state.acked;
                let detail = format!("chunk {}: {owed} bytes are not acknowledged", self.chunk);
                return (ErrorCode::Timeout.because(detail), 0);
            }
        }
    }

    /// Waits while the session may be about to expire; an error when it has.
    async fn allowed(&self, control: &dyn Control) -> Result<(), Trouble> {
        loop {
            if control.session() != self.session {
                let detail = format!("session {} of chunk {}", self.session, self.chunk);
                return Err((ErrorCode::SessionExpired.because(detail), NOBODY));
            }
            if !control.fenced() {
                return Ok(());
            }
            tokio::time::sleep(FENCE_PAUSE).await;
            self.state().progress = Some(Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The CRCs of one frame whose payload comes in parts: a block that two parts share has one, the later.
fn gathered_crcs(crc: &mut BlockCrc, parts: &[Bytes]) -> Vec<u32> {
    let mut crcs = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let inside_block = !crc.length().is_multiple_of(BLOCK_SIZE as u64);
        if index > 0 && inside_block {
            crcs.pop();
        }
        crcs.extend(crc.append(part));
    }
    crcs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_comes_with_its_bytes_has_the_time_of_a_sync() {
        let info = fs::ChunkInfo { chunk: 1, ..Default::default() };
        let chain = Chain::new(Allocated { info, capacity: 1 << 20, session: 1 });
        let push = |sync| {
            let append = crate::write::Append::new(Bytes::from_static(b"bytes"), Instant::now(), drop);
            assert!(matches!(chain.push(append.synced(sync).into_piece()), Taken::Whole));
        };
        let append = Duration::from_secs(2);
        let patience = || chain.state().patience(append);
        assert_eq!(patience(), None);
        push(false);
        assert!(matches!(chain.step(1 << 20), Step::Append(0, ..)));
        assert_eq!(patience(), Some(append));
        push(true);
        assert!(matches!(chain.step(1 << 20), Step::Append(5, ..)));
        assert!(matches!(chain.step(1 << 20), Step::Sync(_)));
        assert_eq!(patience(), Some(append * SYNC_PATIENCE), "nobody waits for more than the bytes");
        chain.acknowledge(10, 0).unwrap();
        assert_eq!(patience(), Some(append * SYNC_PATIENCE));
        chain.acknowledge(10, 10).unwrap();
        assert_eq!(patience(), None);
    }

    #[test]
    fn gathered_parts_have_the_checksums_of_their_whole() {
        let data: Bytes = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        for cuts in [vec![1, 2, 3], vec![65_536, 65_537], vec![100, 65_000, 131_072], vec![199_999]] {
            let (mut gathered, mut whole) = (BlockCrc::at(0, 0), BlockCrc::at(0, 0));
            assert_eq!(
                gathered_crcs(&mut gathered, &[Bytes::from_static(b"before")]),
                whole.append(b"before")
            );
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([data.len()]) {
                parts.push(data.slice(from..cut));
                from = cut;
            }
            assert_eq!(gathered_crcs(&mut gathered, &parts), whole.append(&data));
        }
    }
}
