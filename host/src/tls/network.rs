//! TLS around another network's connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Tls;
use super::peer::{Caller, Peer};
use super::watch::Watch;
use crate::net::{Listener, Network, Stream};
use crate::seldom::Seldom;

/// How long the other side may take for its part of a handshake. Who accepts has limits of its own, in which the first
/// words that follow are counted, too.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// For how long, and how many bytes of, whoever was refused is heard on.
const PARTING: Duration = Duration::from_secs(1);
const PARTING_BYTES: usize = 256 << 10;

/// Another network, with TLS on every connection.
#[derive(Debug, Clone)]
pub struct TlsNetwork {
    inner: Arc<dyn Network>,
    tls: Tls,
}

impl TlsNetwork {
    /// Puts TLS on all that `inner` connects.
    pub fn new(inner: Arc<dyn Network>, tls: Tls) -> TlsNetwork {
        TlsNetwork { inner, tls }
    }
}

/// The host of `host:port`, as certificates name it.
pub(super) fn server_name(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// What went wrong, for whoever has to mend it. A refusal says nothing, so this says where to look.
pub(super) fn explained(error: io::Error) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                error.kind(),
                "the connection was closed while TLS was being set up: is TLS on there, too?",
            ),
            _ => error,
        };
    };
    let (kind, hint) = match cause {
        rustls::Error::AlertReceived(
            AlertDescription::AccessDenied | AlertDescription::CertificateRequired,
        ) => (io::ErrorKind::PermissionDenied, "it refuses this certificate, and its log says why"),
        rustls::Error::InvalidCertificate(_) => {
            (io::ErrorKind::PermissionDenied, "its certificate is not to be trusted")
        }
        rustls::Error::AlertReceived(_) => (error.kind(), "it refuses this connection, and its log says why"),
        rustls::Error::InvalidMessage(_) => (error.kind(), "it does not speak TLS"),
        _ => return error,
    };
    io::Error::new(kind, format!("{hint} ({cause})"))
}

impl Network for TlsNetwork {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let (name, connecting) = (server_name(address), self.inner.connect(address));
        let connector = TlsConnector::from(self.tls.client());
        Box::pin(async move {
            let name = name?;
            let stream = connecting.await?;
            let shaking = tokio::time::timeout(HANDSHAKE, connector.connect(name, stream));
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "TLS was not set up in time");
            let stream = shaking.await.map_err(late)?.map_err(explained)?;
            Ok(Box::new(Explaining(stream)) as Stream)
        })
    }

    fn bind(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        let (binding, tls) = (self.inner.bind(address), self.tls.clone());
        Box::pin(async move {
            let listener = TlsListener { inner: binding.await?, tls };
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }
}

#[derive(Debug)]
struct TlsListener {
    inner: Box<dyn Listener>,
    tls: Tls,
}

impl Listener for TlsListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Caller)>> {
        let (stream, _) = ready!(self.inner.poll_accept(cx))?;
        let caller = Caller::unknown();
        let guest = Guest::new(self.tls.server(), &self.tls, stream, caller.clone());
        Poll::Ready(Ok((Box::new(guest) as Stream, caller)))
    }
}

/// TLS for HTTP on a connection that was accepted; its handshake is part of reading from it.
pub fn accept_http(tls: &Tls, stream: Stream) -> (Stream, Caller) {
    let caller = Caller::unknown();
    (Box::new(Guest::new(tls.http(), tls, stream, caller.clone())), caller)
}

/// A connection that was accepted. Its handshake is made by whoever reads from it or writes to it first, so that one
/// that is silent holds up nobody but its own reader, who has limits.
struct Guest {
    state: State,
    caller: Caller,
    watch: Watch,
}

enum State {
    Shaking(Box<IntoFallible>),
    Open(Box<TlsStream<Stream>>),
    Parting(Box<Parting>),
    Refused,
}

type IntoFallible = tokio_rustls::FallibleAccept<Stream>;

/// A connection that was refused. What the other side sends is read on for a while: a close with unread bytes would reset
/// the connection, and the refusal would be lost.
struct Parting {
    stream: Stream,
    until: Pin<Box<tokio::time::Sleep>>,
    left: usize,
    over: bool,
    error: Option<io::Error>,
}

impl Parting {
    fn new(stream: Stream, error: io::Error) -> Parting {
        let until = Box::pin(tokio::time::sleep(PARTING));
        Parting { stream, until, left: PARTING_BYTES, over: false, error: Some(error) }
    }

    /// Ready with the reason when enough was heard.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.over && Pin::new(&mut self.stream).poll_shutdown(cx).is_ready() {
            self.over = true;
        }
        let mut sink = [0; 4096];
        while self.left > 0 && self.until.as_mut().poll(cx).is_pending() {
            let mut heard = ReadBuf::new(&mut sink);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut heard)) {
                Ok(()) if !heard.filled().is_empty() => {
                    self.left = self.left.saturating_sub(heard.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(self.error.take().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()))
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Guest").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Guest {
    fn new(config: Arc<ServerConfig>, tls: &Tls, stream: Stream, caller: Caller) -> Guest {
        let shaking = TlsAcceptor::from(config).accept(stream).into_fallible();
        Guest { state: State::Shaking(Box::new(shaking)), caller, watch: Watch::new(tls) }
    }

    /// Refuses somebody who would not be let in any more.
    fn check(&mut self) -> io::Result<()> {
        match &self.state {
            State::Open(stream) => self.watch.check(stream.get_ref().1.peer_certificates()),
            _ => Ok(()),
        }
    }

    /// The connection once it is set up.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<Stream>>>> {
        if let State::Shaking(shaking) = &mut self.state {
            match ready!(Pin::new(shaking.as_mut()).poll(cx)) {
                Ok(stream) => {
                    self.introduce(stream.get_ref().1);
                    self.state = State::Open(Box::new(stream));
                }
                Err((error, stream)) => {
                    static LINES: Seldom = Seldom::new();
                    if let Some(left_out) = LINES.admit() {
                        tracing::info!(%error, left_out, "a connection was refused");
                    }
                    self.state = State::Parting(Box::new(Parting::new(stream, error)));
                }
            }
        }
        if let State::Parting(parting) = &mut self.state {
            let error = ready!(parting.poll(cx));
            self.state = State::Refused;
            return Poll::Ready(Err(error));
        }
        match &mut self.state {
            State::Open(stream) => Poll::Ready(Ok(Pin::new(stream.as_mut()))),
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    fn introduce(&self, connection: &ServerConnection) {
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        if let (Caller::Checked(known), Some(peer)) = (&self.caller, certificate.and_then(Peer::of)) {
            // Set once, here.
            let _ = known.set(peer);
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        self.check()?;
        ready!(self.poll_open(cx))?.poll_read(cx, into)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.state {
            // Nothing was written yet.
            State::Shaking(_) => Poll::Ready(Ok(())),
            _ => ready!(self.poll_open(cx))?.poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// A connection that was made. The other side verifies this one's certificate when the handshake is over here
/// already, so its refusal comes with the first read.
#[derive(Debug)]
struct Explaining(tokio_rustls::client::TlsStream<Stream>);

impl AsyncRead for Explaining {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(cx, into)) {
            // A peer that was killed says no goodbye. Frames know their lengths, so an end is never taken for more.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => Poll::Ready(read.map_err(explained)),
        }
    }
}

impl AsyncWrite for Explaining {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
