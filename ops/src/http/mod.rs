//! A small HTTP server for people, for Prometheus, and for whatever watches whether a process lives.
//!
//! It answers GET and HEAD, one request a connection, and changes nothing in the cluster. Everything about it is
//! bounded: connections, the size and time of a request's head, the time a reader may take, and streams of events
//! (`guests`). A request whose `Host` is not an address or a name of this machine is refused (`names`), so that a web
//! page somewhere cannot read the cluster through the browser of somebody who can reach it.

mod answer;
mod guests;
mod names;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_host::net::Stream;
use cairn_host::tls::peer::Caller;
use cairn_host::tls::{Tls, accept_http};
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::metrics::{self, Source};
pub use answer::{Answer, Events};
use guests::{Guests, Pass};
pub use names::Names;

/// For the head of a request.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Lines of a request's head.
const HEADERS: usize = 64;
/// After an error of the listener, such as too many open files: it passes, and spinning would not help.
const PAUSE: Duration = Duration::from_millis(50);

/// What a role has to show.
pub trait Role: Source {
    /// Whether it can do its work; otherwise why not, in a line.
    fn ready(&self) -> Result<(), String>;

    /// Pages of its own; `None` where it has none.
    fn page(&self, _asked: Asked) -> BoxFuture<'static, Option<Answer>> {
        Box::pin(std::future::ready(None))
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The path, as it came.
    pub path: String,
    /// The query without its question mark, as it came.
    pub query: String,
}

impl Asked {
    /// The first value under `name` in the query, decoded; bytes, because names in the cluster are bytes.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
    }
}

/// Undoes percent-encoding; what is none is left as it is.
fn decoded(text: &str) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[2..];
            }
            None => {
                plain.push(if first == b'+' { b' ' } else { first });
                rest = tail;
            }
        }
    }
    plain
}

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Serving {
    /// Where it listens.
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens at `address`, and serves; over TLS, if there is a certificate: then only who has one, too, sees more than
/// whether the role lives and works. The error says what cannot be done.
pub async fn start(
    address: SocketAddr,
    names: Names,
    tls: Option<Tls>,
    role: Arc<dyn Role>,
) -> Result<Serving, String> {
    let failed = |error: std::io::Error| format!("cannot listen for HTTP on {address}: {error}");
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let task = tokio::spawn(serve(listener, names, tls, role)).abort_handle();
    tracing::info!(%address, "HTTP ready");
    Ok(Serving { address, task })
}

/// Serves for as long as the future is polled; every connection ends when it is dropped.
async fn serve(listener: TcpListener, names: Names, tls: Option<Tls>, role: Arc<dyn Role>) {
    let guests = Arc::new(Guests::default());
    let names = Arc::new(names);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // When all are busy with answers, whoever comes now may come again.
                    let Some(pass) = guests.admit() else { continue };
                    let (stream, caller) = secured(stream, tls.as_ref());
                    connections.spawn(converse(stream, caller, pass, names.clone(), role.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept for HTTP");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

fn secured(stream: TcpStream, tls: Option<&Tls>) -> (Stream, Caller) {
    match tls {
        Some(tls) => accept_http(tls, Box::new(stream)),
        None => (Box::new(stream), Caller::Unchecked),
    }
}

async fn converse(stream: Stream, caller: Caller, pass: Pass, names: Arc<Names>, role: Arc<dyn Role>) {
    let ticket = pass.ticket();
    let service = service_fn(|request: Request<Incoming>| {
        let (names, role, ticket, caller) = (names.clone(), role.clone(), ticket.clone(), caller.clone());
        async move {
            ticket.is_known();
            let is_head = request.method() == Method::HEAD;
            let answer = answer(request, &names, &caller, role).await;
            Ok::<_, Infallible>(answer.into_response(is_head, ticket))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Whatever went wrong, it was the other side's.
        _ = connection => {}
        () = pass.over() => {}
    }
}

async fn answer(request: Request<Incoming>, names: &Names, caller: &Caller, role: Arc<dyn Role>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET: nothing is changed over HTTP\n");
    }
    let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    if let Some(host) = host.filter(|host| !names.are(host)) {
        let why = format!("{host}: not a name of this machine; the key http_names has more names\n");
        return Answer::text(StatusCode::MISDIRECTED_REQUEST, why);
    }
    let uri = request.uri();
    match uri.path() {
        "/healthz" => Answer::text(StatusCode::OK, "alive\n"),
        "/readyz" => match role.ready() {
            Ok(()) => Answer::text(StatusCode::OK, "ready\n"),
            // The reason has names and addresses in it.
            Err(_) if !caller.is_known() => Answer::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            Err(why) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        path if !may_see(caller, path) => {
            Answer::text(StatusCode::FORBIDDEN, "this needs a certificate that allows it\n")
        }
        "/metrics" => Answer::of(metrics::CONTENT_TYPE, metrics::render(role)),
        path => {
            let asked = Asked { path: path.to_owned(), query: uri.query().unwrap_or_default().to_owned() };
            let nothing =
                || Answer::text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n");
            role.page(asked).await.unwrap_or_else(nothing)
        }
    }
}

/// Figures are for everybody with a certificate; pages show every name in the cluster.
fn may_see(caller: &Caller, path: &str) -> bool {
    match path {
        "/metrics" => caller.is_known(),
        _ => caller.may_administer(),
    }
}

#[cfg(test)]
mod tests;
