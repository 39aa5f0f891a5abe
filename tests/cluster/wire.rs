//! A connection to a node as a test makes it by hand: plain, or under TLS where the cluster is.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_host::tls::{Session, Tls};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(90);

thread_local! {
    /// The certificate of the cluster that this test made last; every test has a thread of its own.
    static CERTIFICATE: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Connections of this test are made with this certificate, or without.
pub fn use_certificate(dir: Option<PathBuf>) {
    CERTIFICATE.set(dir);
}

/// A connection.
pub struct Wire {
    tcp: TcpStream,
    session: Option<Session>,
}

impl Wire {
    /// Connects with the certificate of the test's cluster, if it has any.
    pub fn connect(address: &str) -> io::Result<Wire> {
        match CERTIFICATE.with_borrow(Clone::clone) {
            Some(dir) => Wire::with(address, &dir),
            None => Ok(Wire { tcp: tcp(address)?, session: None }),
        }
    }

    /// Connects with the certificate in `dir`.
    pub fn with(address: &str, dir: &Path) -> io::Result<Wire> {
        let tls = Tls::load(dir).map_err(io::Error::other)?;
        let (tcp, session) = (tcp(address)?, Session::connect(&tls, address)?);
        session.handshake(&tcp, PATIENCE)?;
        Ok(Wire { tcp, session: Some(session) })
    }
}

fn tcp(address: &str) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    Ok(tcp)
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &self.session {
            Some(session) => session.read(&self.tcp, into),
            None => self.tcp.read(into),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.session {
            Some(session) => {
                session.write(&self.tcp, &mut [IoSlice::new(bytes)], PATIENCE).map(|()| bytes.len())
            }
            None => self.tcp.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.tcp.shutdown(Shutdown::Both);
    }
}
