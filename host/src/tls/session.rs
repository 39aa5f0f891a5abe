//! TLS on a blocking socket that one thread reads and others write.
//!
//! The library's connection is behind a lock that is held to encrypt and decrypt only: nobody waits for the network
//! with it. Who reads holds the incoming buffer, who writes the outgoing one.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, Connection, ServerConnection};
use socket2::SockRef;

use super::Tls;
use super::network::{explained, server_name};
use super::peer::Peer;
use super::watch::Watch;

/// Bytes read at once, as they come from the network.
const INCOMING: usize = 64 << 10;
/// Bytes encrypted at once: as many as the network takes without waiting, about.
const PIECE: usize = 256 << 10;

/// One connection's TLS. The socket is handed in with every call.
#[derive(Debug)]
pub struct Session {
    connection: Mutex<Connection>,
    /// Of a connection that was accepted.
    watch: Option<Mutex<Watch>>,
    incoming: Mutex<Incoming>,
    /// Encrypted, and not yet written: after a write that failed half way nothing else may come before it.
    outgoing: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Session {
    /// For a connection that was accepted.
    pub fn accept(tls: &Tls) -> io::Result<Session> {
        let connection = ServerConnection::new(tls.server()).map_err(io::Error::other)?;
        Ok(Session::over(Connection::Server(connection), Some(Watch::new(tls))))
    }

    /// For a connection that was made to `address`, `host:port`.
    pub fn connect(tls: &Tls, address: &str) -> io::Result<Session> {
        let connection =
            ClientConnection::new(tls.client(), server_name(address)?).map_err(io::Error::other)?;
        Ok(Session::over(Connection::Client(connection), None))
    }

    fn over(mut connection: Connection, watch: Option<Watch>) -> Session {
        // What is encrypted is written out before more is.
        connection.set_buffer_limit(None);
        let bytes = vec![0; INCOMING].into_boxed_slice();
        Session {
            connection: Mutex::new(connection),
            watch: watch.map(Mutex::new),
            incoming: Mutex::new(Incoming { bytes, start: 0, end: 0 }),
            outgoing: Mutex::default(),
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        locked(&self.connection)
    }

    /// Sets the connection up, and returns who is at the other end. The socket's own limit on reads says how often the
    /// clock is looked at.
    pub fn handshake(&self, tcp: &TcpStream, limit: Duration) -> io::Result<Option<Peer>> {
        let deadline = Instant::now() + limit;
        let mut incoming = locked(&self.incoming);
        loop {
            self.flush(tcp, deadline)?;
            if !self.connection().is_handshaking() {
                break;
            }
            match incoming.fill(tcp) {
                Ok(0) => return Err(explained(ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if is_wait(&error) && Instant::now() < deadline => continue,
                Err(error) if is_wait(&error) => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "TLS was not set up in time"));
                }
                Err(error) => return Err(error),
            }
            let mut connection = self.connection();
            while connection.is_handshaking() && incoming.start < incoming.end {
                if let Err(error) = incoming.decrypt(&mut connection) {
                    drop(connection);
                    // Whoever is refused is told that it is.
                    let _ = self.flush(tcp, deadline);
                    return Err(explained(error));
                }
            }
        }
        let connection = self.connection();
        Ok(connection.peer_certificates().and_then(<[_]>::first).and_then(Peer::of))
    }

    /// Reads what there is, or waits for some as long as the socket does; 0 at the end.
    pub fn read(&self, tcp: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let mut incoming = locked(&self.incoming);
        loop {
            let mut connection = self.connection();
            let read = incoming.drain(&mut connection, into);
            let answers = connection.wants_write();
            if let Some(watch) = &self.watch {
                locked(watch).check(connection.peer_certificates())?;
            }
            drop(connection);
            if answers {
                self.flush_soon(tcp);
            }
            if let Some(read) = read.map_err(explained)? {
                return Ok(read);
            }
            if incoming.fill(tcp)? == 0 {
                // A peer that was killed says no goodbye. Frames know their lengths: an end is never taken for more.
                return Ok(0);
            }
        }
    }

    /// Writes all of `parts`, within `limit`.
    pub fn write(&self, tcp: &TcpStream, parts: &mut [IoSlice<'_>], limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        let mut outgoing = locked(&self.outgoing);
        let mut left = parts;
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() || !outgoing.is_empty() {
            let mut room = PIECE;
            let mut connection = self.connection();
            while room > 0
                && let Some(part) = left.first()
            {
                let taken = connection.writer().write(&part[..part.len().min(room)])?;
                IoSlice::advance_slices(&mut left, taken);
                room -= taken;
            }
            take_encrypted(&mut connection, &mut outgoing)?;
            drop(connection);
            send(tcp, &mut outgoing, deadline)?;
        }
        Ok(())
    }

    /// Says goodbye, if that can be done at once.
    pub fn close(&self, tcp: &TcpStream) {
        self.connection().send_close_notify();
        self.flush_soon(tcp);
    }

    fn flush(&self, tcp: &TcpStream, deadline: Instant) -> io::Result<()> {
        let mut outgoing = locked(&self.outgoing);
        take_encrypted(&mut self.connection(), &mut outgoing)?;
        send(tcp, &mut outgoing, deadline)
    }

    /// Writes what the library has to say, unless somebody writes just now, who takes it along.
    fn flush_soon(&self, tcp: &TcpStream) {
        let Ok(mut outgoing) = self.outgoing.try_lock() else { return };
        let taken = take_encrypted(&mut self.connection(), &mut outgoing);
        // What cannot be said, or not at once, is found out by who writes or reads next.
        if taken.is_ok()
            && let Ok(sent) = SockRef::from(tcp).send_with_flags(&outgoing, libc::MSG_DONTWAIT)
        {
            outgoing.drain(..sent);
        }
    }
}

impl Incoming {
    /// Waits for more from the network, when all there was is decrypted.
    fn fill(&mut self, mut tcp: &TcpStream) -> io::Result<usize> {
        if self.start < self.end {
            return Ok(self.end - self.start);
        }
        let received = tcp.read(&mut self.bytes)?;
        (self.start, self.end) = (0, received);
        Ok(received)
    }

    /// Decrypts some of it.
    fn decrypt(&mut self, connection: &mut Connection) -> io::Result<()> {
        self.start += connection.read_tls(&mut &self.bytes[self.start..self.end])?;
        connection.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(())
    }

    /// Decrypts into `into` as much as there is and fits; nothing if more has to come from the network first.
    fn drain(&mut self, connection: &mut Connection, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        loop {
            match connection.reader().read(&mut into[filled..]) {
                Ok(0) => return Ok(Some(filled)),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(filled)),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Err(_) if self.start == self.end => return Ok((filled > 0).then_some(filled)),
                Err(_) => self.decrypt(connection)?,
            }
            if filled == into.len() {
                return Ok(Some(filled));
            }
        }
    }
}

fn take_encrypted(connection: &mut Connection, outgoing: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(outgoing)?;
    }
    Ok(())
}

/// Writes all of `bytes` and leaves them empty; after an error, what was not written is left.
fn send(mut tcp: &TcpStream, bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    let mut sent = 0;
    let result = loop {
        if sent == bytes.len() {
            break Ok(());
        }
        match tcp.write(&bytes[sent..]) {
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            Ok(written) => sent += written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if sent < bytes.len() && Instant::now() > deadline {
            break Err(ErrorKind::TimedOut.into());
        }
    };
    bytes.drain(..sent);
    result
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
