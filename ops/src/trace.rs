//! Traces: what this process does of requests, sent to a collector.
//!
//! In OTLP over HTTP with JSON bodies, which every collector takes at port 4318 (the protocol's specification: OpenTelemetry
//! Protocol 1.x, section "OTLP/HTTP"). A request is a trace; the request itself is its root, and every part of it, in
//! whatever process, a span below. Nobody waits for a collector: what it does not take in time is left out, and counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use cairn_host::request::{self, Part, RequestId, Sink};
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// Parts that wait to be sent.
const QUEUE: usize = 8192;
/// Parts in one message.
const BATCH: usize = 1024;
/// How long a part waits for others to go with.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a collector may take over one message.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a command that is done waits for it.
const FAREWELL: Duration = Duration::from_millis(500);
/// Between two lines in the log about a collector that does not answer.
const QUIET: Duration = Duration::from_secs(60);
/// Where traces are taken, unless the address says otherwise.
const PATH: &str = "/v1/traces";

/// Numbers of the protocol: `SpanKind` INTERNAL and SERVER, `StatusCode` ERROR.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const ERROR: u8 = 2;

/// What becomes of what this process knows of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tracing {
    /// What takes as long is logged. Zero: nothing is.
    pub slow: Duration,
    /// A collector, `http://HOST:PORT`; empty: there is none.
    pub collector: String,
    /// One of so many requests is sent there, the same ones by every process. 0 is as 1.
    pub one_of: u64,
}

/// Follows requests from now on, as `service` on `instance`. Must be called within a runtime.
pub fn start(tracing: &Tracing, service: &str, instance: &str) -> Result<(), String> {
    if tracing.collector.is_empty() {
        request::follow(tracing.slow, None);
        return Ok(());
    }
    let collector = Collector::parse(&tracing.collector)?;
    let (queue, parts) = mpsc::channel(QUEUE);
    let left_out = Arc::new(AtomicU64::new(0));
    if OUTGOING.set(queue.clone()).is_err() {
        return Ok(());
    }
    let sink = Queue { queue, one_of: tracing.one_of.max(1), left_out: left_out.clone() };
    let resource = resource(service, instance);
    tokio::spawn(send_all(collector, resource, parts, left_out));
    request::follow(tracing.slow, Some(Box::new(sink)));
    Ok(())
}

/// Whether a collector's address can be used; else why not.
pub fn check(collector: &str) -> Result<(), String> {
    Collector::parse(collector).map(drop)
}

/// Waits until what was done so far is sent, but not for long.
pub async fn flush() {
    let Some(queue) = OUTGOING.get() else { return };
    let (sent, wait) = oneshot::channel();
    let flushed = async {
        if queue.send(Queued::Flush(sent)).await.is_ok() {
            // An error means that nothing is sent any more.
            let _ = wait.await;
        }
    };
    let _ = timeout(FAREWELL, flushed).await;
}

static OUTGOING: OnceLock<mpsc::Sender<Queued>> = OnceLock::new();

enum Queued {
    Part(Part),
    /// Somebody waits until all before it is gone.
    Flush(oneshot::Sender<()>),
}

/// Where a collector listens.
#[derive(Debug, PartialEq, Eq)]
struct Collector {
    /// `HOST:PORT`.
    address: String,
    path: String,
}

impl Collector {
    fn parse(text: &str) -> Result<Collector, String> {
        let refuse = |why: &str| Err(format!("the trace collector {text:?}: {why}"));
        let Ok(uri) = text.parse::<Uri>() else { return refuse("not an address such as http://HOST:4318") };
        let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return refuse("only http:// is spoken; let a collector on this machine pass traces on by TLS");
        };
        let path = if uri.path() == "/" { PATH } else { uri.path() };
        Ok(Collector { address: format!("{host}:{}", uri.port_u16().unwrap_or(4318)), path: path.to_owned() })
    }
}

struct Queue {
    queue: mpsc::Sender<Queued>,
    one_of: u64,
    left_out: Arc<AtomicU64>,
}

impl Sink for Queue {
    fn take(&self, part: Part) {
        let wanted = part.request.0.is_multiple_of(self.one_of);
        if wanted && self.queue.try_send(Queued::Part(part)).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends what comes, until nobody is left who could say something.
async fn send_all(
    collector: Collector,
    resource: Value,
    mut queued: mpsc::Receiver<Queued>,
    left_out: Arc<AtomicU64>,
) {
    let mut complained: Option<Instant> = None;
    while let Some(first) = queued.recv().await {
        let (batch, waiting) = gather(first, &mut queued).await;
        if batch.is_empty() {
            drop(waiting);
            continue;
        }
        let body = message(&resource, &batch);
        let sent = timeout(PATIENCE, post(&collector, body)).await;
        let failed = match sent {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        if let Some(why) = failed {
            left_out.fetch_add(batch.len() as u64, Ordering::Relaxed);
            if complained.is_none_or(|at| at.elapsed() >= QUIET) {
                complained = Some(Instant::now());
                let (address, left_out) = (&collector.address, left_out.load(Ordering::Relaxed));
                tracing::warn!(address, left_out, "traces are not taken: {why}");
            }
        }
        // Whoever waits learns that it is over when this is dropped.
        drop(waiting);
    }
}

/// What goes into one message: as much as comes within a moment, unless somebody waits.
async fn gather(
    first: Queued,
    queued: &mut mpsc::Receiver<Queued>,
) -> (Vec<Part>, Option<oneshot::Sender<()>>) {
    let until = Instant::now() + PAUSE;
    let mut batch = Vec::new();
    let mut next = Some(first);
    while let Some(one) = next {
        match one {
            Queued::Part(part) => batch.push(part),
            Queued::Flush(waiting) => return (batch, Some(waiting)),
        }
        if batch.len() >= BATCH {
            break;
        }
        next = tokio::time::timeout_at(until, queued.recv()).await.ok().flatten();
    }
    (batch, None)
}

async fn post(collector: &Collector, body: Vec<u8>) -> Result<(), String> {
    let stream = TcpStream::connect(&collector.address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let asked = Request::builder()
        .method(Method::POST)
        .uri(&collector.path)
        .header(HOST, &collector.address)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(asked).await.map_err(|error| error.to_string());
    connection.abort();
    match answer?.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("it answers {status}")),
    }
}

/// Who speaks.
fn resource(service: &str, instance: &str) -> Value {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    json!({"attributes": [
        attribute("service.namespace", "cairn"),
        attribute("service.name", service),
        attribute("service.instance.id", instance),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
    ]})
}

/// An `ExportTraceServiceRequest`.
fn message(resource: &Value, parts: &[Part]) -> Vec<u8> {
    let spans: Vec<Value> = parts.iter().map(span).collect();
    let scope = json!({"name": "cairn"});
    json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]})
        .to_string()
        .into_bytes()
}

/// The trace's number is the request's, and so is the root's; 64-bit numbers go to the lower half, as others do it.
fn span(part: &Part) -> Value {
    let began = part.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut span = json!({
        "traceId": format!("{:032x}", part.request.0),
        "spanId": if part.whole { part.request } else { RequestId::fresh() }.to_string(),
        "name": part.what,
        "kind": if part.whole { INTERNAL } else { SERVER },
        "startTimeUnixNano": began.to_string(),
        "endTimeUnixNano": (began + part.took.as_nanos()).to_string(),
    });
    if !part.whole {
        span["parentSpanId"] = part.request.to_string().into();
    }
    if part.failed {
        span["status"] = json!({"code": ERROR});
    }
    span
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn part(request: u64, whole: bool, began: SystemTime) -> Part {
        Part {
            request: RequestId(request),
            what: "create",
            whole,
            began,
            took: Duration::from_micros(5),
            failed: !whole,
        }
    }

    #[test]
    fn a_collector_is_an_address() {
        let parsed = Collector::parse("http://localhost:4318").unwrap();
        assert_eq!(parsed, Collector { address: "localhost:4318".into(), path: "/v1/traces".into() });
        let parsed = Collector::parse("http://[::1]/otlp/v1/traces").unwrap();
        assert_eq!(parsed, Collector { address: "[::1]:4318".into(), path: "/otlp/v1/traces".into() });
        for bad in ["", "localhost:4318", "https://collector:4318", "http://"] {
            assert!(Collector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_are_spans_below_their_request() {
        let began = UNIX_EPOCH + Duration::from_secs(1);
        let (whole, below) = (span(&part(0xab, true, began)), span(&part(0xab, false, began)));
        assert_eq!(whole["traceId"], "000000000000000000000000000000ab");
        assert_eq!(whole["spanId"], "00000000000000ab");
        assert_eq!(whole["startTimeUnixNano"], "1000000000");
        assert_eq!(whole["endTimeUnixNano"], "1000005000");
        assert_eq!(whole.get("parentSpanId"), None);
        assert_eq!(below["traceId"], whole["traceId"]);
        assert_eq!(below["parentSpanId"], whole["spanId"]);
        assert_ne!(below["spanId"], whole["spanId"]);
        assert_eq!(below["status"]["code"], ERROR);
    }

    #[tokio::test]
    async fn what_is_sent_is_a_message_that_collectors_take() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Collector::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"]}]}]}") {
                assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
            String::from_utf8(heard).unwrap()
        });
        let parts = [part(1, true, UNIX_EPOCH), part(1, false, UNIX_EPOCH)];
        post(&collector, message(&resource("namenode", "a:1"), &parts)).await.unwrap();
        let heard = heard.await.unwrap();
        assert!(heard.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{heard}");
        let body: Value = serde_json::from_str(heard.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let said = &body["resourceSpans"][0];
        assert_eq!(said["scopeSpans"][0]["spans"].as_array().unwrap().len(), 2);
        assert_eq!(said["resource"]["attributes"][1]["value"]["stringValue"], "namenode");
    }

    #[tokio::test]
    async fn what_comes_together_goes_together_unless_somebody_waits() {
        let (send, mut queued) = mpsc::channel(16);
        let one = || Queued::Part(part(1, true, UNIX_EPOCH));
        let (sent, _wait) = oneshot::channel();
        for each in [one(), one(), Queued::Flush(sent), one()] {
            send.try_send(each).ok().unwrap();
        }
        let first = queued.recv().await.unwrap();
        let (batch, waiting) = gather(first, &mut queued).await;
        assert_eq!((batch.len(), waiting.is_some()), (2, true));
        drop(send);
        let first = queued.recv().await.unwrap();
        let (batch, waiting) = gather(first, &mut queued).await;
        assert_eq!((batch.len(), waiting.is_some()), (1, false));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_collector() {
        let (queue, mut parts) = mpsc::channel(1);
        let queue = Queue { queue, one_of: 2, left_out: Arc::default() };
        for request in 1..=4 {
            queue.take(part(request, true, UNIX_EPOCH));
        }
        assert!(matches!(parts.recv().await, Some(Queued::Part(part)) if part.request == RequestId(2)));
        assert_eq!(queue.left_out.load(Ordering::Relaxed), 1);
    }
}
