//! Who may hold a connection.
//!
//! Everybody is let in, but a stranger has to speak HTTP/2 soon, and when there are too many connections the stranger
//! that came first goes: a crowd that says nothing keeps no client, datanode or namenode out. Whoever has called one
//! of the services is a stranger no more. Those that fall silent later are found by HTTP/2's own pings.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use cairn_host::net::{self, Listener};
use cairn_host::seldom::Seldom;
use cairn_host::tls::peer::Caller;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Bytes that every HTTP/2 client sends first: the preface and the head of its settings.
const GREETING: usize = 24 + 9;
/// How long it may take for them.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an error of the listener, such as too many open files: it passes, and spinning would not help.
const PAUSE: Duration = Duration::from_millis(50);

/// Lets connections in; a stream of them.
pub struct Door {
    listener: Box<dyn Listener>,
    guests: Arc<Guests>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Those inside.
struct Guests {
    limit: usize,
    patience: Duration,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    next: u64,
    /// In the order in which they came.
    passes: BTreeMap<u64, Pass>,
}

/// What is known of a connection; in the extensions of each of its requests.
#[derive(Clone)]
pub struct Pass(Arc<Known>);

struct Known {
    trusted: AtomicBool,
    cut: AtomicBool,
    waker: AtomicWaker,
    caller: Caller,
}

/// A connection that was let in.
pub struct Guest {
    stream: net::Stream,
    number: u64,
    pass: Pass,
    guests: Arc<Guests>,
    /// Until enough was heard.
    greeting: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Door {
    /// Lets at most `limit` connections in at once.
    pub fn new(listener: Box<dyn Listener>, limit: usize) -> Door {
        let guests = Arc::new(Guests { limit: limit.max(1), patience: PATIENCE, inside: Mutex::default() });
        Door { listener, guests, pause: None }
    }

    /// A count of those inside.
    pub fn census(&self) -> Census {
        Census(self.guests.clone())
    }
}

/// Counts those inside.
#[derive(Clone)]
pub struct Census(Arc<Guests>);

impl Census {
    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.0.lock().passes.len()
    }
}

impl Pass {
    /// The pass of the connection that a request came over, if it came through the door.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Pass> {
        request.extensions().get().cloned()
    }

    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.0.caller
    }

    /// It has called a service: it stays when strangers have to go.
    pub fn trust(&self) {
        self.0.trusted.store(true, Ordering::Relaxed);
    }

    fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when it is full of connections that are needed.
    fn admit(self: &Arc<Guests>, stream: net::Stream, caller: Caller) -> Option<Guest> {
        let mut inside = self.lock();
        if inside.passes.len() >= self.limit {
            let stranger = inside.passes.iter().find(|(_, pass)| !pass.0.trusted.load(Ordering::Relaxed));
            let number = *stranger?.0;
            inside.passes.remove(&number)?.cut();
        }
        let number = inside.next;
        inside.next += 1;
        let known = Known {
            trusted: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            caller,
        };
        let pass = Pass(Arc::new(known));
        inside.passes.insert(number, pass.clone());
        drop(inside);
        let greeting = Some((0, Box::pin(tokio::time::sleep(self.patience))));
        Some(Guest { stream, number, pass, guests: self.clone(), greeting })
    }
}

impl Stream for Door {
    type Item = io::Result<Guest>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok((stream, caller)) => match self.guests.admit(stream, caller) {
                    Some(guest) => return Poll::Ready(Some(Ok(guest))),
                    None => {
                        static LINES: Seldom = Seldom::new();
                        if let Some(left_out) = LINES.admit() {
                            tracing::warn!(limit = self.guests.limit, left_out, "too many connections");
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}

impl Guest {
    /// Refuses a connection that was cut, or that does not speak.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.pass.0.waker.register(context.waker());
        if self.pass.0.cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some((_, deadline)) = &mut self.greeting
            && deadline.as_mut().poll(context).is_ready()
        {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 greeting"));
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.lock().passes.remove(&self.number);
    }
}

impl Connected for Guest {
    type ConnectInfo = Pass;

    fn connect_info(&self) -> Pass {
        self.pass.clone()
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = into.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        let read = into.filled().len() - before;
        if let Some((heard, _)) = &mut self.greeting {
            *heard += read;
            if *heard >= GREETING {
                self.greeting = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair(listener: &TcpListener) -> (net::Stream, TcpStream) {
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Box::new(listener.accept().await.unwrap().0), theirs)
    }

    #[tokio::test]
    async fn the_stranger_that_came_first_makes_room_and_those_who_called_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guests = Arc::new(Guests { limit: 2, patience: PATIENCE, inside: Mutex::default() });
        let mut kept = Vec::new();
        let mut admit = async || {
            let (ours, theirs) = pair(&listener).await;
            kept.push(theirs);
            guests.admit(ours, Caller::Unchecked)
        };
        let first = admit().await.unwrap();
        let mut second = admit().await.unwrap();
        first.pass.trust();
        let waiting = tokio::spawn(async move {
            let error = second.read_u8().await.unwrap_err();
            (second, error)
        });
        tokio::task::yield_now().await;
        let third = admit().await.unwrap();
        let (second, error) = waiting.await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        third.pass.trust();
        assert!(admit().await.is_none(), "both are needed");
        drop((second, first));
        assert!(admit().await.is_some());
        assert_eq!(guests.lock().passes.len(), 1, "the last one was dropped at once");
    }

    #[tokio::test]
    async fn a_stranger_that_dawdles_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guests =
            Arc::new(Guests { limit: 2, patience: Duration::from_millis(20), inside: Mutex::default() });
        let (ours, _theirs) = pair(&listener).await;
        let mut guest = guests.admit(ours, Caller::Unchecked).unwrap();
        assert_eq!(guest.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
