//! Connections between processes.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::tls::peer::Caller;

/// A connection: bytes in order, both ways.
pub trait Connection: AsyncRead + AsyncWrite + Debug + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin + 'static> Connection for T {}

/// A connection of whatever kind.
pub type Stream = Box<dyn Connection>;

/// The way to other processes.
pub trait Network: Debug + Send + Sync + 'static {
    /// Connects to `address`, `host:port`.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>>;

    /// Listens at `address`.
    fn bind(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Listener>>>;
}

/// Takes connections in.
pub trait Listener: Debug + Send + 'static {
    /// The next connection, and who it is from. After an error that is about one connection alone there may be more.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Caller)>>;
}

/// TCP without delay.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealNetwork;

impl Network for RealNetwork {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Stream>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn bind(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        Box::pin(
            async move { Ok(Box::new(RealListener(TcpListener::bind(address).await?)) as Box<dyn Listener>) },
        )
    }
}

#[derive(Debug)]
struct RealListener(TcpListener);

impl Listener for RealListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Caller)>> {
        self.0.poll_accept(cx).map(|accepted| {
            let (stream, _) = accepted?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Stream, Caller::Unchecked))
        })
    }
}

/// A network as an HTTP client asks for connections: by the authority of an address.
#[derive(Debug, Clone)]
pub struct Connector(pub Arc<dyn Network>);

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let network = self.0.clone();
        Box::pin(async move {
            let authority = uri.authority().ok_or(io::ErrorKind::InvalidInput)?;
            let stream = network.connect(authority.as_str()).await?;
            Ok(TokioIo::new(Box::new(Wary { stream, heard: false }) as Stream))
        })
    }
}

/// How an alert of TLS begins (RFC 8446, 5.1). An HTTP/2 server begins with the length of its settings, which is small.
const ALERT: u8 = 21;

/// A connection on which HTTP is to be spoken: says so when the other side answers by TLS, instead of taking that for noise.
#[derive(Debug)]
struct Wary {
    stream: Stream,
    heard: bool,
}

impl AsyncRead for Wary {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        if !std::mem::replace(&mut self.heard, true) && into.filled().get(before) == Some(&ALERT) {
            let why =
                "it wants TLS: give the directory of a certificate (tls, --tls or CAIRN_TLS; see `cairn ca`)";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wary {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_by_tls_is_told_from_others() {
        for (said, good) in [([ALERT, 3], false), ([0, ALERT], true)] {
            let (mut far, near) = tokio::io::duplex(64);
            let mut near = Wary { stream: Box::new(near), heard: false };
            far.write_all(&said).await.unwrap();
            let heard = near.read_exact(&mut [0; 2]).await;
            assert_eq!(heard.map_err(|error| error.kind()).is_ok(), good);
            if good {
                // Only the beginning tells.
                far.write_all(&[ALERT]).await.unwrap();
                assert_eq!(near.read_u8().await.unwrap(), ALERT);
            }
        }
    }
}
