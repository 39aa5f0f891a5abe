//! The data plane's listener: accepts, counts, and ends connections.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use cairn_host::seldom::Seldom;
use cairn_proto::data::{Failure, Response, response};
use cairn_proto::{Error, ErrorCode, Result};
use socket2::{Domain, SockRef, Type};

use crate::connection;
use crate::counters::Counters;
use crate::settings::Settings;
use crate::socket::{self, Socket};
use crate::store::{Store, locked};

/// How long a connection that waits for its next request is not cut in favour of a new one.
const SPARED: Duration = Duration::from_secs(5);
/// Stack of a connection's thread: nothing in it recurses, and its buffers are on the heap.
const STACK: usize = 256 << 10;

/// What all connections share.
pub struct Shared {
    /// The replicas.
    pub store: Arc<Store>,
    /// Limits and times.
    pub settings: Arc<Settings>,
    /// What they did.
    pub counters: Arc<Counters>,
    node: Arc<AtomicU32>,
    door: OnceLock<String>,
    stopping: AtomicBool,
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Arc<Guest>>>,
    ended: Condvar,
}

/// A connection, as far as it matters for who has to go when there are too many.
pub struct Guest {
    stream: Arc<Socket>,
    ease: Mutex<Ease>,
}

#[derive(Clone, Copy)]
enum Ease {
    /// It has not said hello since it came.
    Stranger(Instant),
    /// It waits for its next request; its client makes another connection when it needs one.
    Idle(Instant),
    Busy,
}

impl Guest {
    /// The socket.
    pub fn stream(&self) -> &Arc<Socket> {
        &self.stream
    }

    /// It said hello, and waits for its next request from now on.
    pub fn is_idle(&self) {
        *locked(&self.ease) = Ease::Idle(Instant::now());
    }

    /// It is being served.
    pub fn is_busy(&self) {
        *locked(&self.ease) = Ease::Busy;
    }

    /// Who goes first: strangers before guests, those that wait longest before others. `None`: it stays.
    fn rank(&self) -> Option<(bool, Instant)> {
        match *locked(&self.ease) {
            Ease::Stranger(since) => Some((false, since)),
            Ease::Idle(since) if since.elapsed() >= SPARED => Some((true, since)),
            Ease::Idle(_) | Ease::Busy => None,
        }
    }
}

/// A running data plane. Dropping it cuts every connection.
pub struct Server {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    local: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Shared {
    /// This datanode's number; 0 until it is registered.
    pub fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    /// Where this datanode's number is kept.
    pub fn numbered(&self) -> &Arc<AtomicU32> {
        &self.node
    }

    /// Clients are told that there is a door for those on this host.
    pub fn tell_door(&self, path: &Path) {
        let _ = self.door.set(path.display().to_string());
    }

    /// Where that door is; empty if there is none.
    pub fn door(&self) -> String {
        self.door.get().cloned().unwrap_or_default()
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        locked(&self.connections).len()
    }

    /// A refusal as a frame; its own number names this datanode as the failed link.
    pub fn failure(&self, error: Error, node: u32) -> Response {
        Response { kind: Some(response::Kind::Failure(Failure { error: Some(error.into()), node })) }
    }
}

/// Binds the data plane's address.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bind = || -> std::io::Result<TcpListener> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    bind().map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "; another process listens there: stop it, or choose another port"
            }
            std::io::ErrorKind::AddrNotAvailable => "; this host does not have that address",
            _ => "",
        };
        ErrorCode::Unavailable.because(format!("cannot listen on {address}: {error}{hint}"))
    })
}

impl Server {
    /// Serves `store` on a bound listener.
    pub fn start(listener: TcpListener, store: Arc<Store>, settings: Settings) -> Result<Server> {
        let failed = |error: std::io::Error| ErrorCode::Unavailable.because(format!("data plane: {error}"));
        let local = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            store,
            settings: Arc::new(settings),
            counters: Arc::default(),
            node: Arc::default(),
            door: OnceLock::new(),
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(0),
            connections: Mutex::new(HashMap::new()),
            ended: Condvar::new(),
        });
        let listener = Arc::new(listener);
        let (accepting, with) = (listener.clone(), shared.clone());
        let acceptor =
            Builder::new().name("accept".into()).spawn(move || accept(&accepting, &with)).map_err(failed)?;
        Ok(Server { shared, listener, local, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What its connections share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Accepts no more, lets connections finish what they have received for up to `grace`, then cuts them.
    pub fn stop(mut self, grace: Duration) {
        self.stop_accepting();
        self.shut_connections(Shutdown::Read);
        if !self.wait_for_none(grace) {
            self.shut_connections(Shutdown::Both);
            self.wait_for_none(grace);
        }
    }

    fn stop_accepting(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes the accepting thread; a listener that cannot be shut down is one that accepts nothing.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }

    pub(crate) fn shut_connections(&self, how: Shutdown) {
        for guest in locked(&self.shared.connections).values() {
            let _ = guest.stream.shutdown(how);
        }
    }

    fn wait_for_none(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut connections = locked(&self.shared.connections);
        while !connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.ended.wait_timeout(connections, left);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        self.shut_connections(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopping.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, from)) => admit(stream, from, shared),
            Err(_) if shared.stopping.load(Ordering::Acquire) => return,
            Err(error) => {
                // Out of descriptors or memory: it passes, and spinning would not help.
                tracing::warn!(%error, "cannot accept");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn admit(stream: TcpStream, from: SocketAddr, shared: &Arc<Shared>) {
    let settings = &shared.settings;
    if let Err(error) = socket::tune(&stream, settings.tick(), settings.frame) {
        tracing::debug!(%from, %error, "connection lost at once");
        return;
    }
    let stream = match Socket::accepted(stream, settings.trust.tls()) {
        Ok(stream) => Arc::new(stream),
        Err(error) => return tracing::warn!(%from, %error, "no TLS"),
    };
    let guest = Arc::new(Guest { stream: stream.clone(), ease: Mutex::new(Ease::Stranger(Instant::now())) });
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    {
        let mut connections = locked(&shared.connections);
        if connections.len() >= settings.max_connections && !make_room(&mut connections) {
            drop(connections);
            static LINES: Seldom = Seldom::new();
            if let Some(left_out) = LINES.admit() {
                tracing::warn!(%from, limit = settings.max_connections, left_out, "too many connections");
            }
            if stream.is_secure() {
                // Nothing can be said before a handshake, for which there is no thread.
                return;
            }
            let full = shared.failure(ErrorCode::Unavailable.because("too many connections"), shared.node());
            let _ = socket::write_message(&stream, &full, Duration::ZERO);
            return;
        }
        connections.insert(id, guest.clone());
    }
    let with = shared.clone();
    let name = format!("data {from}");
    let spawned = Builder::new().name(name).stack_size(STACK).spawn(move || {
        let _registered = Registered { shared: with.clone(), id };
        static LINES: Seldom = Seldom::new();
        if let Err(error) = connection::serve(&guest, &with)
            && let Some(left_out) = LINES.admit()
        {
            tracing::info!(%from, %error, left_out, "connection ended");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%from, %error, "no thread for a connection");
        locked(&shared.connections).remove(&id);
    }
}

/// Cuts the connection that can best be done without; false when all are needed.
fn make_room(connections: &mut HashMap<u64, Arc<Guest>>) -> bool {
    let ranked = connections.iter().filter_map(|(id, guest)| Some((guest.rank()?, *id)));
    let Some((_, id)) = ranked.min() else { return false };
    if let Some(guest) = connections.remove(&id) {
        tracing::debug!("a connection is cut to make room for another");
        let _ = guest.stream.shutdown(Shutdown::Both);
    }
    true
}

/// Takes a connection off the list when its thread ends, however it does.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        locked(&self.shared.connections).remove(&self.id);
        self.shared.ended.notify_all();
    }
}
