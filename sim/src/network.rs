//! The network between the machines.
//!
//! A connection is two pipes. What is written to a pipe arrives after a time of the seed, in order; pipes do not wait
//! for each other. While a link is cut, what is sent on it is kept and comes when the link is mended, as TCP sends
//! again; a cut may be in one direction only. A connection may be reset at any time, with what is under way lost, and
//! all connections of a process are when it ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use cairn_host::net::{Listener, Network, Stream};
use cairn_host::tls::peer::Caller;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::machine::{Id, STEP, instant_of, now};
use crate::random::Random;

/// Bytes under way in a pipe, at most: who writes more waits.
const WINDOW: usize = 256 << 10;
/// How often a connection that nobody answers is tried again.
const AGAIN: Duration = Duration::from_millis(400);

/// How long messages take, in nanoseconds beyond one step, and how fast they go.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The shortest time.
    pub least: u64,
    /// The longest.
    pub most: u64,
    /// Nanoseconds for each byte.
    pub byte: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { least: 0, most: 5_000_000, byte: 0 }
    }
}

#[derive(Debug)]
struct Pipe {
    from: Id,
    to: Id,
    /// With when each arrives; `u64::MAX`: the link was cut.
    parts: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last: u64,
    /// When the end arrives, once nothing more is written.
    end: Option<u64>,
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn break_off(&mut self) {
        self.broken = true;
        self.parts.clear();
        self.bytes = 0;
        self.wake();
    }
}

type PipeId = u64;

#[derive(Debug)]
struct Queue {
    machine: Id,
    waiting: VecDeque<SimulatedStream>,
    acceptor: Option<Waker>,
}

#[derive(Debug)]
struct State {
    random: Random,
    pipes: BTreeMap<PipeId, Pipe>,
    next: PipeId,
    listeners: BTreeMap<String, Queue>,
    /// Links on which nothing gets through, by direction.
    cut: BTreeSet<(Id, Id)>,
    paces: BTreeMap<(Id, Id), Pace>,
    pace: Pace,
}

impl State {
    fn arrival(&mut self, from: Id, to: Id, bytes: usize) -> u64 {
        if self.cut.contains(&(from, to)) {
            return u64::MAX;
        }
        let pace = self.paces.get(&(from, to)).copied().unwrap_or(self.pace);
        now() + STEP + self.random.between(pace.least, pace.most) + pace.byte * bytes as u64
    }

    fn pipe(&mut self, from: Id, to: Id) -> PipeId {
        let id = self.next;
        self.next += 1;
        let pipe = Pipe {
            from,
            to,
            parts: VecDeque::new(),
            bytes: 0,
            last: 0,
            end: None,
            broken: false,
            reader: None,
            writer: None,
        };
        self.pipes.insert(id, pipe);
        id
    }

    fn send(&mut self, id: PipeId, bytes: Bytes) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        let (from, to) = (pipe.from, pipe.to);
        let arrival = self.arrival(from, to, bytes.len());
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        pipe.last = arrival.max(pipe.last);
        pipe.bytes += bytes.len();
        pipe.parts.push_back((pipe.last, bytes));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
    }
}

/// All of it, as the run holds it; clones are the same one.
#[derive(Debug, Clone)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    /// No machine is on it yet.
    pub fn new(seed: u64) -> Net {
        Net(Arc::new(Mutex::new(State {
            random: Random::new(seed, "network"),
            pipes: BTreeMap::new(),
            next: 1,
            listeners: BTreeMap::new(),
            cut: BTreeSet::new(),
            paces: BTreeMap::new(),
            pace: Pace::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network as a machine sees it.
    pub fn of(&self, machine: Id) -> Arc<dyn Network> {
        Arc::new(Port { net: self.clone(), machine })
    }

    /// How long messages take where nothing else is said.
    pub fn set_pace(&self, pace: Pace) {
        self.lock().pace = pace;
    }

    /// How long messages take from one machine to another; nothing: as everywhere.
    pub fn set_link(&self, from: Id, to: Id, pace: Option<Pace>) {
        let mut state = self.lock();
        match pace {
            Some(pace) => state.paces.insert((from, to), pace),
            None => state.paces.remove(&(from, to)),
        };
    }

    /// Nothing gets from one machine to another.
    pub fn cut(&self, from: Id, to: Id) {
        self.lock().cut.insert((from, to));
    }

    /// Mends a link: what was sent meanwhile is on its way.
    pub fn mend(&self, from: Id, to: Id) {
        let mut state = self.lock();
        if !state.cut.remove(&(from, to)) {
            return;
        }
        let held: Vec<PipeId> = state
            .pipes
            .iter()
            .filter(|(_, pipe)| (pipe.from, pipe.to) == (from, to))
            .map(|(id, _)| *id)
            .collect();
        for id in held {
            let arrival = state.arrival(from, to, 0);
            let Some(pipe) = state.pipes.get_mut(&id) else { continue };
            for (at, _) in pipe.parts.iter_mut().filter(|(at, _)| *at == u64::MAX) {
                *at = arrival;
            }
            if pipe.last == u64::MAX {
                pipe.last = arrival;
            }
            if pipe.end == Some(u64::MAX) {
                pipe.end = Some(arrival);
            }
            pipe.wake();
        }
    }

    /// Mends everything.
    pub fn mend_all(&self) {
        let cut: Vec<(Id, Id)> = self.lock().cut.iter().copied().collect();
        cut.into_iter().for_each(|(from, to)| self.mend(from, to));
        let mut state = self.lock();
        state.paces.clear();
        state.pace = Pace::default();
    }

    /// Resets some of the connections between two machines, with what is under way.
    pub fn reset(&self, one: Id, other: Id, percent: u64) {
        let mut state = self.lock();
        let ids: Vec<PipeId> = state
            .pipes
            .iter()
            .filter(|(_, pipe)| (pipe.from, pipe.to) == (one, other) || (pipe.to, pipe.from) == (one, other))
            .map(|(id, _)| *id)
            .collect();
        // Pipes come in pairs: an odd number and the even one after it.
        for id in ids {
            if id % 2 == 1 && state.random.chance(percent) {
                for id in [id, id + 1] {
                    state.pipes.get_mut(&id).into_iter().for_each(Pipe::break_off);
                }
            }
        }
    }

    /// A process ended: nobody listens there, and its connections break. What it had sent may still arrive.
    pub fn sever(&self, machine: Id) {
        let mut state = self.lock();
        let (here, elsewhere) =
            std::mem::take(&mut state.listeners).into_iter().partition(|(_, queue)| queue.machine == machine);
        state.listeners = elsewhere;
        drop(state);
        // Connections that nobody took end with their listener; each of them asks for the lock.
        let here: BTreeMap<String, Queue> = here;
        drop(here);
        let mut state = self.lock();
        let swallowed = state.random.chance(50);
        for pipe in state.pipes.values_mut() {
            if pipe.to == machine || (pipe.from == machine && swallowed) {
                pipe.break_off();
            } else if pipe.from == machine {
                pipe.end.get_or_insert(pipe.last.max(now() + STEP));
                pipe.wake();
            }
        }
    }

    /// How many connections there are, those not yet closed by both sides among them.
    pub fn connections(&self) -> usize {
        self.lock().pipes.len() / 2
    }
}

#[derive(Debug, Clone)]
struct Port {
    net: Net,
    machine: Id,
}

/// The number of the machine an address is of: `10.0.0.N:port`.
pub fn machine_at(address: &str) -> Option<Id> {
    address.strip_prefix("10.0.0.")?.split(':').next()?.parse().ok()
}

impl Network for Port {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let (port, address) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let to = machine_at(&address).ok_or(io::ErrorKind::AddrNotAvailable)?;
            let from = port.machine;
            loop {
                let there = port.net.lock().arrival(from, to, 0);
                if there != u64::MAX {
                    tokio::time::sleep_until(instant_of(there)).await;
                    let back = port.net.lock().arrival(to, from, 0);
                    if back != u64::MAX {
                        let stream = port.arrive(to, &address);
                        tokio::time::sleep_until(instant_of(back)).await;
                        return stream.map(|stream| Box::new(stream) as Stream);
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        })
    }

    fn bind(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let address = address.to_string();
        let mut state = self.net.lock();
        let taken = state.listeners.contains_key(&address);
        if !taken {
            let queue = Queue { machine: self.machine, waiting: VecDeque::new(), acceptor: None };
            state.listeners.insert(address.clone(), queue);
        }
        drop(state);
        let listener = SimulatedListener { net: self.net.clone(), address };
        Box::pin(async move {
            if taken {
                Err(io::ErrorKind::AddrInUse.into())
            } else {
                Ok(Box::new(listener) as Box<dyn Listener>)
            }
        })
    }
}

impl Port {
    fn arrive(&self, to: Id, address: &str) -> io::Result<SimulatedStream> {
        let mut state = self.net.lock();
        if !state.listeners.contains_key(address) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (there, back) = (state.pipe(self.machine, to), state.pipe(to, self.machine));
        let stream = |read, write| SimulatedStream { net: self.net.clone(), read, write, sleep: None };
        if let Some(queue) = state.listeners.get_mut(address) {
            queue.waiting.push_back(stream(there, back));
            queue.acceptor.take().into_iter().for_each(Waker::wake);
        }
        Ok(stream(back, there))
    }
}

#[derive(Debug)]
struct SimulatedListener {
    net: Net,
    address: String,
}

impl Listener for SimulatedListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Caller)>> {
        let mut state = self.net.lock();
        let Some(queue) = state.listeners.get_mut(&self.address) else { return Poll::Pending };
        match queue.waiting.pop_front() {
            Some(stream) => Poll::Ready(Ok((Box::new(stream), Caller::Unchecked))),
            None => {
                queue.acceptor = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for SimulatedListener {
    fn drop(&mut self) {
        let queue = self.net.lock().listeners.remove(&self.address);
        // Those that nobody took are dropped without the lock: they break off.
        drop(queue);
    }
}

/// One end of a connection.
#[derive(Debug)]
struct SimulatedStream {
    net: Net,
    read: PipeId,
    write: PipeId,
    sleep: Option<Pin<Box<Sleep>>>,
}

fn reset<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
}

impl AsyncRead for SimulatedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let due = {
                let mut state = self.net.lock();
                let Some(pipe) = state.pipes.get_mut(&self.read) else { return reset() };
                if pipe.broken {
                    return reset();
                }
                match pipe.parts.front_mut() {
                    Some((at, part)) if *at <= now() => {
                        let taken = part.len().min(into.remaining());
                        into.put_slice(&part[..taken]);
                        part.advance(taken);
                        pipe.bytes -= taken;
                        if part.is_empty() {
                            pipe.parts.pop_front();
                        }
                        pipe.writer.take().into_iter().for_each(Waker::wake);
                        return Poll::Ready(Ok(()));
                    }
                    None if pipe.end.is_some_and(|end| end <= now()) => return Poll::Ready(Ok(())),
                    front => {
                        pipe.reader = Some(cx.waker().clone());
                        front.map(|(at, _)| *at).or(pipe.end).filter(|at| *at != u64::MAX)
                    }
                }
            };
            let Some(due) = due else { return Poll::Pending };
            let mut sleep = Box::pin(tokio::time::sleep_until(instant_of(due)));
            if sleep.as_mut().poll(cx).is_pending() {
                self.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for SimulatedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.lock();
        let Some(pipe) = state.pipes.get_mut(&self.write) else { return reset() };
        if pipe.broken {
            return reset();
        }
        if pipe.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.bytes >= WINDOW {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.len().min(WINDOW - pipe.bytes);
        state.send(self.write, Bytes::copy_from_slice(&bytes[..taken]));
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl SimulatedStream {
    fn finish(&self) {
        let mut state = self.net.lock();
        let Some(pipe) = state.pipes.get(&self.write) else { return };
        if pipe.end.is_some() {
            return;
        }
        let (from, to, last) = (pipe.from, pipe.to, pipe.last);
        let end = state.arrival(from, to, 0).max(last);
        if let Some(pipe) = state.pipes.get_mut(&self.write) {
            pipe.end = Some(end);
            pipe.reader.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for SimulatedStream {
    fn drop(&mut self) {
        self.finish();
        // Nobody reads what still comes this way: whoever sends more finds out.
        if let Some(mut pipe) = self.net.lock().pipes.remove(&self.read) {
            pipe.wake();
        }
    }
}
