//! The door for clients on this host: a socket at which they borrow the data files of replicas, and then read without
//! anybody's help (short-circuit reads).
//!
//! Only the datanode's own user and root can come in; they could read the files anyway.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use cairn_host::passing;
use cairn_proto::data::{Lent as Answer, Request, Response, request, response};
use cairn_proto::frame::{self, Lengths, PREFIX};
use cairn_proto::{Error, ErrorCode, Result};

use crate::connection;
use crate::server::Shared;
use crate::store::Lent;

/// The socket's name in the first data directory.
const NAME: &str = "door.sock";
/// Clients that borrow at the same time.
const MOST_CLIENTS: usize = 128;
/// Longest header of a request that belongs here.
const MOST_HEADER: usize = 4 << 10;
/// How often a connection that waits looks whether the datanode stops.
const TICK: Duration = Duration::from_millis(500);
const STACK: usize = 128 << 10;

/// An open door. Dropping it closes it.
pub struct Door {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens it in a data directory, which must be this process's own, and has the data plane tell clients of it.
    pub fn open(dir: &Path, shared: &Arc<Shared>) -> io::Result<Door> {
        let path = dir.canonicalize()?.join(NAME);
        let listener = passing::listen(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, with) = (stopping.clone(), shared.clone());
        let acceptor = Builder::new().name("door".into()).spawn(move || {
            let clients = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                match stream {
                    Ok(stream) => admit(stream, &with, &stop, &clients),
                    // Out of descriptors or memory: it passes.
                    Err(_) => std::thread::sleep(TICK / 10),
                }
            }
        })?;
        shared.tell_door(&path);
        Ok(Door { path, stopping, acceptor: Some(acceptor) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the acceptor.
        let woken = passing::connect(&self.path, TICK).is_ok();
        let _ = fs::remove_file(&self.path);
        if let Some(acceptor) = self.acceptor.take().filter(|_| woken) {
            let _ = acceptor.join();
        }
    }
}

/// A client's place; given back when it goes.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(stream: UnixStream, shared: &Arc<Shared>, stop: &Arc<AtomicBool>, clients: &Arc<AtomicUsize>) {
    let place = Place(clients.clone());
    if clients.fetch_add(1, Ordering::Relaxed) >= MOST_CLIENTS {
        return;
    }
    let (shared, stop) = (shared.clone(), stop.clone());
    let spawned = Builder::new().name("lender".into()).stack_size(STACK).spawn(move || {
        let _place = place;
        if let Err(error) = converse(&stream, &shared, &stop) {
            tracing::debug!(%error, "a client that borrowed replicas is gone");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a client that borrows replicas");
    }
}

fn converse(stream: &UnixStream, shared: &Shared, stop: &AtomicBool) -> Result<()> {
    stream.set_read_timeout(Some(TICK)).map_err(broken)?;
    stream.set_write_timeout(Some(shared.settings.connect)).map_err(broken)?;
    let Some(request::Kind::Hello(hello)) = next(stream, shared.settings.handshake, stop)? else {
        return Err(ErrorCode::Malformed.because("a connection starts with Hello"));
    };
    match connection::welcome(shared, &hello) {
        Ok(reply) => answer(stream, response::Kind::Hello(reply), None)?,
        Err(error) => {
            refuse(stream, shared, error.clone())?;
            return Err(error);
        }
    }
    while let Some(request) = next(stream, shared.settings.idle, stop)? {
        let request::Kind::Lend(ask) = request else {
            return Err(ErrorCode::Malformed.because("here replicas are lent, and nothing else"));
        };
        match shared.store.get(ask.chunk).and_then(|replica| replica.lend()) {
            Ok(lent) => lend(stream, shared, ask.chunk, lent)?,
            Err(error) => refuse(stream, shared, error)?,
        }
    }
    Ok(())
}

fn lend(stream: &UnixStream, shared: &Shared, chunk: u64, lent: Lent) -> Result<()> {
    if lent.file().is_none() {
        return refuse(stream, shared, ErrorCode::NotSupported.because("this disk has no descriptors"));
    }
    let kind = response::Kind::Lent(Answer { length: lent.length, crcs: lent.crcs.clone(), chunk });
    answer(stream, kind, lent.file())?;
    shared.counters.lent();
    Ok(())
}

fn answer(stream: &UnixStream, kind: response::Kind, file: Option<&fs::File>) -> Result<()> {
    let head = frame::encode_head(&Response { kind: Some(kind) }, 0)?;
    passing::send(stream, &head, file).map_err(broken)
}

fn refuse(stream: &UnixStream, shared: &Shared, error: Error) -> Result<()> {
    let head = frame::encode_head(&shared.failure(error, shared.node()), 0)?;
    passing::send(stream, &head, None).map_err(broken)
}

fn broken(error: io::Error) -> Error {
    ErrorCode::Unavailable.because(error.to_string())
}

/// The next request; none at the end, or when the datanode stops.
fn next(stream: &UnixStream, patience: Duration, stop: &AtomicBool) -> Result<Option<request::Kind>> {
    let until = Instant::now() + patience;
    let mut prefix = [0; PREFIX];
    if !fill(stream, &mut prefix, until, stop)? {
        return Ok(None);
    }
    let lengths = Lengths::parse(prefix)?;
    if lengths.payload > 0 || lengths.header > MOST_HEADER {
        return Err(ErrorCode::TooLarge.because("a request of a size that none has here"));
    }
    let mut header = vec![0; lengths.header];
    if !fill(stream, &mut header, until, stop)? {
        return Err(ErrorCode::Unavailable.because("closed within a frame"));
    }
    let request: Request = frame::decode_header(&header)?;
    request.kind.map(Some).ok_or_else(|| ErrorCode::Malformed.because("unknown request"))
}

/// Whether all of `into` came; not if the client or this datanode ends before the first byte.
fn fill(stream: &UnixStream, into: &mut [u8], until: Instant, stop: &AtomicBool) -> Result<bool> {
    let mut at = 0;
    while at < into.len() {
        match io::Read::read(&mut &*stream, &mut into[at..]) {
            Ok(0) if at == 0 => return Ok(false),
            Ok(0) => return Err(ErrorCode::Unavailable.because("closed within a frame")),
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stop.load(Ordering::Acquire) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(broken(error)),
        }
        if Instant::now() >= until {
            return Err(ErrorCode::Timeout.because("no request"));
        }
    }
    Ok(true)
}
