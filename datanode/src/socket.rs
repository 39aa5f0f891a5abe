//! Sockets of the data plane: how they are tuned, and frames over them with deadlines.
//!
//! The data plane runs on blocking sockets and a thread a connection, because prototypes of it were measured to be both
//! faster and simpler here than tasks (docs/formats/wire.md gives the figures): the thread that reads a frame
//! verifies it, forwards it and writes it to disk, so a small append wakes one thread a hop, and a disk that
//! stalls holds up its own chains only, never the runtime that sends the heartbeats.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_host::tls::peer::Caller;
use cairn_host::tls::{Session, Tls};
use cairn_proto::frame::{self, Lengths, PREFIX};
use cairn_proto::{Error, ErrorCode, Result};
use prost::Message;
use socket2::{SockRef, TcpKeepalive};

use crate::store::Upstream;

/// Bytes read at once. Small frames come in bunches; of a large one, no more than this is copied twice.
const READ_AHEAD: usize = 64 << 10;
/// For how long whoever was refused is heard on.
const PARTING: Duration = Duration::from_secs(1);
/// A connection whose peer's host is gone is given up after about this long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A socket of the data plane, plain or under TLS; one thread may read from it while others write.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    session: Option<Session>,
}

impl Socket {
    /// Without TLS.
    pub fn plain(tcp: TcpStream) -> Socket {
        Socket { tcp, session: None }
    }

    /// One that was accepted; under TLS, if there is a certificate, once the [handshake](Socket::handshake) is over.
    pub fn accepted(tcp: TcpStream, tls: Option<&Tls>) -> io::Result<Socket> {
        Ok(Socket { tcp, session: tls.map(Session::accept).transpose()? })
    }

    /// Sets TLS up, if there is any, and says who is at the other end.
    pub fn handshake(&self, limit: Duration) -> io::Result<Caller> {
        let Some(session) = &self.session else { return Ok(Caller::Unchecked) };
        let known = std::sync::OnceLock::new();
        let met = session.handshake(&self.tcp, limit).inspect_err(|_| self.part())?;
        if let Some(peer) = met {
            // Set once, here.
            let _ = known.set(peer);
        }
        Ok(Caller::Checked(Arc::new(known)))
    }

    /// Hears whoever was refused on for a while: a close with unread bytes would reset the connection, and the refusal
    /// would be lost.
    fn part(&self) {
        let until = Instant::now() + PARTING;
        let _ = self.tcp.shutdown(Shutdown::Write);
        let mut sink = [0; 4096];
        while Instant::now() < until {
            match (&self.tcp).read(&mut sink) {
                Ok(0) => return,
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return;
                }
                _ => {}
            }
        }
    }

    /// Whether nothing can be said on it before its handshake.
    pub fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// Ends it in one direction or both, whoever reads or writes just now.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let (Some(session), Shutdown::Write) = (&self.session, how) {
            session.close(&self.tcp);
        }
        self.tcp.shutdown(how)
    }

    /// Whether the peer has closed its side or the connection is broken, without reading from it.
    pub fn has_hung_up(&self) -> bool {
        has_hung_up(&self.tcp)
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &self.session {
            None => (&self.tcp).read(into),
            Some(session) => session.read(&self.tcp, into),
        }
    }
}

/// Sets what every data-plane socket has in common. `tick` is how often a waiting reader looks up;
/// `patience` how long a write may make no progress.
pub fn tune(stream: &TcpStream, tick: Duration, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(tick))?;
    stream.set_write_timeout(Some(patience))?;
    // Buffer sizes are left to the kernel: a size that is set is cut to `rmem_max` (208 KiB where nobody
    // raised it) and never grows again, while the kernel's own tuning goes to several MiB.
    SockRef::from(stream).set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 5).with_retries(5),
    )
}

/// Connects to `host:port`, and sets TLS up if there is a certificate. `tick` and `patience` as for [`tune`].
pub fn connect(
    address: &str,
    timeout: Duration,
    tls: Option<&Tls>,
    tick: Duration,
    patience: Duration,
) -> Result<Socket> {
    let tcp = reach(address, timeout)?;
    tune(&tcp, tick, patience).map_err(|error| broken(&error))?;
    let refuse = |error: io::Error| ErrorCode::Unavailable.because(format!("{address}: {error}"));
    let session = tls.map(|tls| Session::connect(tls, address)).transpose().map_err(refuse)?;
    let socket = Socket { tcp, session };
    socket.handshake(timeout).map_err(refuse)?;
    Ok(socket)
}

/// Connects to `host:port`, trying each of its addresses.
fn reach(address: &str, timeout: Duration) -> Result<TcpStream> {
    let refuse = |error: io::Error| ErrorCode::Unavailable.because(format!("{address}: {error}"));
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(refuse)?.take(4).collect();
    let mut last = ErrorCode::Unavailable.because(format!("{address}: no such address"));
    for one in addresses {
        match TcpStream::connect_timeout(&one, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = refuse(error),
        }
    }
    Err(last)
}

fn has_hung_up(stream: &TcpStream) -> bool {
    let events = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid descriptor, a count of one, and no waiting.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready > 0 && poll.revents & events != 0
}

impl Upstream for TcpStream {
    fn has_hung_up(&self) -> bool {
        has_hung_up(self)
    }

    fn cut(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Upstream for Socket {
    fn has_hung_up(&self) -> bool {
        self.has_hung_up()
    }

    fn cut(&self) {
        let _ = self.tcp.shutdown(Shutdown::Both);
    }
}

/// Writes a frame whose head was encoded by [`frame::encode_head`]. A peer that reads so slowly that the
/// frame takes longer than `limit` is given up.
pub fn write_frame(socket: &Socket, head: &[u8], payload: &[u8], limit: Duration) -> io::Result<()> {
    let started = Instant::now();
    let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
    if let Some(session) = &socket.session {
        return session.write(&socket.tcp, &mut parts, limit);
    }
    let mut left = &mut parts[..];
    IoSlice::advance_slices(&mut left, 0);
    let mut stream = &socket.tcp;
    while !left.is_empty() {
        match stream.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !left.is_empty() && started.elapsed() > limit {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Writes a frame without payload.
pub fn write_message(socket: &Socket, header: &impl Message, limit: Duration) -> Result<()> {
    let head = frame::encode_head(header, 0)?;
    write_frame(socket, &head, &[], limit).map_err(|error| broken(&error))
}

/// A broken connection as a refusal.
pub fn broken(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ErrorCode::Timeout.because("the peer does not read"),
        _ => ErrorCode::Unavailable.because(format!("connection: {error}")),
    }
}

/// What a reader is waiting for, told to whoever decides how long.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// Part of a frame has arrived.
    pub started: bool,
    /// Since when: the frame's first byte, or the end of the frame before.
    pub since: Instant,
}

/// How long a reader waits for a frame.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For its first byte.
    pub idle: Duration,
    /// From its first byte to its last.
    pub frame: Duration,
}

impl Patience {
    /// Refuses to wait any longer when the time is up.
    pub fn check(&self, waiting: Waiting) -> Result<()> {
        let limit = if waiting.started { self.frame } else { self.idle };
        if waiting.since.elapsed() < limit {
            return Ok(());
        }
        let what = if waiting.started { "a whole frame" } else { "any frame" };
        Err(ErrorCode::Timeout.because(format!("not {what} within {} ms", limit.as_millis())))
    }
}

/// Reads frames from a socket through a small buffer. Large payloads go straight to their place.
pub struct FrameReader {
    stream: Arc<Socket>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    since: Instant,
    started: bool,
}

impl FrameReader {
    /// Reads from `stream`, which must have been [tuned](tune).
    pub fn new(stream: Arc<Socket>) -> FrameReader {
        let buffer = vec![0; READ_AHEAD].into_boxed_slice();
        FrameReader { stream, buffer, start: 0, end: 0, since: Instant::now(), started: false }
    }

    /// The socket.
    pub fn stream(&self) -> &Arc<Socket> {
        &self.stream
    }

    /// Reads the next frame's header, and says how long its payload is; the payload must be read next.
    /// `None` when the peer closed between frames. `wait` is asked whenever the frame is not whole yet.
    pub fn head<M: Message + Default>(
        &mut self,
        wait: &mut dyn FnMut(Waiting) -> Result<()>,
    ) -> Result<Option<(M, usize)>> {
        self.since = Instant::now();
        self.started = self.start < self.end;
        let Some(prefix) = self.take(PREFIX, wait)? else { return Ok(None) };
        let mut bytes = [0; PREFIX];
        bytes.copy_from_slice(&prefix);
        let lengths = Lengths::parse(bytes)?;
        let header = match self.take(lengths.header, wait)? {
            Some(header) => header,
            None => return Err(ErrorCode::Unavailable.because("connection: closed within a frame")),
        };
        Ok(Some((frame::decode_header(&header)?, lengths.payload)))
    }

    /// Reads the payload of the frame whose head was read last into the first `length` bytes of `into`,
    /// which grows when it must.
    pub fn payload(
        &mut self,
        length: usize,
        into: &mut Vec<u8>,
        wait: &mut dyn FnMut(Waiting) -> Result<()>,
    ) -> Result<()> {
        if into.len() < length {
            into.resize(length, 0);
        }
        let buffered = length.min(self.end - self.start);
        into[..buffered].copy_from_slice(&self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        let mut at = buffered;
        while at < length {
            match self.receive(Some(&mut into[at..length]), wait)? {
                0 => return Err(ErrorCode::Unavailable.because("connection: closed within a frame")),
                received => at += received,
            }
        }
        Ok(())
    }

    /// Whether the next frame has arrived whole: then reading it does not wait, and what is to be sent may
    /// wait for it.
    pub fn has_frame(&self) -> bool {
        let held = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = held.split_first_chunk::<PREFIX>() else { return false };
        // A prefix that is refused is read without waiting, too.
        Lengths::parse(*prefix).map_or(true, |lengths| rest.len() >= lengths.header + lengths.payload)
    }

    /// The next `length` bytes (a few; at most the buffer's size), or `None` at the end of the stream.
    fn take(
        &mut self,
        length: usize,
        wait: &mut dyn FnMut(Waiting) -> Result<()>,
    ) -> Result<Option<Vec<u8>>> {
        while self.end - self.start < length {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let received = self.receive(None, wait)?;
            if received == 0 && self.end == 0 && !self.started {
                return Ok(None);
            }
            if received == 0 {
                return Err(ErrorCode::Unavailable.because("connection: closed within a frame"));
            }
            self.end += received;
        }
        let taken = self.buffer[self.start..self.start + length].to_vec();
        self.start += length;
        Ok(Some(taken))
    }

    /// Receives some bytes, into the buffer's free end or to `into`; 0 at the end of the stream.
    fn receive(
        &mut self,
        into: Option<&mut [u8]>,
        wait: &mut dyn FnMut(Waiting) -> Result<()>,
    ) -> Result<usize> {
        let target = match into {
            Some(into) => into,
            None => &mut self.buffer[self.end..],
        };
        let mut stream = &*self.stream;
        loop {
            match stream.read(target) {
                Ok(received) => {
                    if received > 0 && !self.started {
                        self.started = true;
                        self.since = Instant::now();
                    } else if received > 0 {
                        // A trickle of bytes must not outlive the deadline either.
                        wait(Waiting { started: true, since: self.since })?;
                    }
                    return Ok(received);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    wait(Waiting { started: self.started, since: self.since })?;
                }
                Err(error) => return Err(broken(&error)),
            }
        }
    }
}

/// Ends a connection so that the peer still reads what was last written to it: a close with unread bytes
/// would reset it and throw that away.
pub fn close_gently(stream: &Socket, limit: Duration) {
    let started = Instant::now();
    let _ = stream.shutdown(Shutdown::Write);
    let mut sink = vec![0; READ_AHEAD];
    let mut from = stream;
    while started.elapsed() < limit {
        match from.read(&mut sink) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(_) => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}
