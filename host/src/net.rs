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
use tokio::io::{AsyncRead, AsyncWrite};
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
            network.connect(authority.as_str()).await.map(TokioIo::new)
        })
    }
}
