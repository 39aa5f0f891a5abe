use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::metrics::Page;

struct Example;

impl Source for Example {
    fn metrics(&self, page: &mut Page<'_>) {
        page.gauge("cairn_example", "An example", 1.0);
    }
}

impl Role for Example {
    fn ready(&self) -> Result<(), String> {
        Err("it rains".into())
    }

    fn page(&self, asked: Asked) -> BoxFuture<'static, Option<Answer>> {
        Box::pin(async move {
            if asked.path != "/events" {
                return None;
            }
            let (answer, events) = Answer::events();
            tokio::spawn(async move {
                for number in 0..3 {
                    events.send(&number.to_string()).await.unwrap();
                }
            });
            Some(answer)
        })
    }
}

async fn server() -> Serving {
    start(SocketAddr::from(([127, 0, 0, 1], 0)), Names::default(), None, Arc::new(Example)).await.unwrap()
}

impl Serving {
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // Whoever says too much is not heard to the end.
        let _ = stream.write_all(bytes).await;
        let mut heard = Vec::new();
        match stream.read_to_end(&mut heard).await {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8_lossy(&heard).into_owned(),
        }
    }

    async fn get(&self, path: &str) -> String {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).as_bytes()).await
    }
}

#[tokio::test]
async fn every_role_tells_how_it_is() {
    let server = server().await;
    assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"));
    let ready = server.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("not ready: it rains\n"), "{ready}");
    let metrics = server.get("/metrics").await;
    assert!(metrics.contains("cairn_example 1.0\n") && metrics.contains("version=0.0.4"), "{metrics}");
    assert!(metrics.contains("default-src 'none'"), "{metrics}");
    assert!(server.get("/elsewhere").await.starts_with("HTTP/1.1 404"));
    let events = server.get("/events").await;
    assert!(events.contains("text/event-stream") && events.contains("data: 2\n\n"), "{events}");
}

#[tokio::test]
async fn nothing_is_changed_and_no_stranger_is_believed() {
    let server = server().await;
    let post = server.say(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    let other = server.say(b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 421"), "{other}");
    let head = server.say(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn huge_and_broken_requests_are_refused() {
    let server = server().await;
    let huge = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(4 * HEAD_BYTES));
    assert!(!server.say(huge.as_bytes()).await.contains("200 OK"));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2 * HEADERS));
    assert!(!server.say(many.as_bytes()).await.contains("200 OK"));
    assert!(!server.say(b"\x00\xff\r\n\r\n").await.contains("200 OK"));
    assert!(server.get("/healthz").await.contains("200 OK"));
}

#[tokio::test]
async fn a_silent_crowd_keeps_nobody_out() {
    let server = server().await;
    let mut crowd = Vec::new();
    for _ in 0..3 * guests::PLACES {
        crowd.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert!(server.get("/healthz").await.contains("200 OK"));
}

#[test]
fn queries_are_decoded() {
    let asked = Asked { path: "/".into(), query: "a=1&path=%2Fx%ff%zz+y&path=no".into() };
    assert_eq!(asked.value("path").unwrap(), b"/x\xff%zz y");
    assert_eq!(asked.value("b"), None);
}
