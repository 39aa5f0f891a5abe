//! A request can be followed through the mount, the namenodes and the datanodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mounting::can_mount;
use crate::support::{Cluster, make_file, text};

/// A span, as far as it matters here.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: Option<String>,
    name: String,
}

/// Takes traces as any collector does that speaks OTLP over HTTP.
struct Collector {
    address: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = spans.clone();
        // Ends with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let found = receive(stream);
                taken.lock().unwrap().extend(found);
            }
        });
        Collector { address, spans }
    }

    /// The traces so far, by their numbers.
    fn traces(&self) -> BTreeMap<String, Vec<Span>> {
        let mut traces: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        for span in self.spans.lock().unwrap().iter() {
            traces.entry(span.trace.clone()).or_default().push(span.clone());
        }
        traces
    }

    /// Waits for a trace whose root has this name, with parts in all of these services.
    #[track_caller]
    fn wait_for(&self, root: &str, services: &[&str]) -> Vec<Span> {
        self.wait_until(root, |spans| {
            let seen: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
            services.iter().all(|service| seen.contains(service))
        })
    }

    /// Waits for a trace whose root has this name, and which has come whole: each process sends its parts by itself.
    #[track_caller]
    fn wait_until(&self, root: &str, is_whole: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let traces = self.traces();
            let found = traces.values().find(|spans| {
                spans.iter().any(|span| span.parent.is_none() && span.name == root) && is_whole(spans)
            });
            if let Some(found) = found {
                return found.clone();
            }
            assert!(Instant::now() < give_up, "no whole {root} in {traces:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// One message, as it must be, and its answer.
fn receive(mut stream: TcpStream) -> Vec<Span> {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).expect("a request");
    assert_eq!(line, "POST /v1/traces HTTP/1.1\r\n");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).expect("a header");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("an answer");
    let message: Value = serde_json::from_slice(&body).expect("JSON");
    let said = &message["resourceSpans"][0];
    let attributes = said["resource"]["attributes"].as_array().expect("attributes");
    let service = attributes.iter().find(|attribute| attribute["key"] == "service.name").expect("a name");
    let service = service["value"]["stringValue"].as_str().expect("a name").to_owned();
    let spans = said["scopeSpans"][0]["spans"].as_array().expect("spans");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let span = |span: &Value| Span {
        service: service.clone(),
        trace: text(&span["traceId"]).expect("a trace"),
        id: text(&span["spanId"]).expect("a number"),
        parent: text(&span["parentSpanId"]),
        name: text(&span["name"]).expect("a name"),
    };
    spans.iter().map(span).collect()
}

#[test]
fn a_request_is_one_trace_through_all_processes() {
    if !can_mount() {
        return;
    }
    let collector = Collector::start();
    let point = tempfile::tempdir().expect("a mount point").keep();
    let cluster = Cluster::up_with(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.address)],
        &["--namenodes", "1", "--datanodes", "3", "--no-short-circuit", "--mount", text(&point)],
    );
    let mut file = File::create(point.join("f")).unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    file.sync_all().unwrap();
    // Each of the chain's datanodes has to sync it.
    let synced = collector.wait_until("fsync", |spans| {
        let from = |service| spans.iter().filter(move |span| span.service == service);
        let syncs = from("datanode").filter(|span| span.name == "sync").count();
        from("mount").next().is_some() && from("namenode").next().is_some() && syncs == 3
    });
    let root = synced.iter().find(|span| span.parent.is_none()).unwrap();
    assert_eq!(root.service, "mount");
    for span in &synced {
        assert!(span.id == root.id || span.parent.as_ref() == Some(&root.id), "{span:?} is below {root:?}");
    }

    // What a command asks for is followed, too, to its end.
    let source = cluster.scratch("source");
    make_file(&source, 3 << 20, 1);
    cluster.ok(&["put", text(&source), "/g"]);
    cluster.ok(&["get", "/g", text(&cluster.scratch("back"))]);
    collector.wait_for("read_chunk", &["cli", "datanode"]);
    collector.wait_for("mutation", &["cli", "namenode"]);
    drop(file);
    drop(cluster);
    std::fs::remove_dir(&point).expect("the mount point is free again");
}

#[test]
fn a_collector_that_does_not_answer_holds_nobody_up() {
    // It accepts, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", address.as_str())];
    let cluster = Cluster::up_with(&environment, &["--namenodes", "1", "--datanodes", "3"]);
    let source = cluster.scratch("source");
    make_file(&source, 1 << 20, 2);
    for number in 0..5 {
        cluster.ok(&["put", text(&source), &format!("/f{number}")]);
    }
    assert!(cluster.ok(&["fsck"]).contains("HEALTHY"));
    let refused = Cluster::up_with(&[], &["--namenodes", "1", "--datanodes", "1"]);
    let mut command = refused.command(&["ls", "/"]);
    let said = command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector").output().unwrap();
    assert!(said.status.success(), "the environment is for all programs: {said:?}");
    let config = refused.scratch("cairn.toml");
    let usual = std::fs::read_to_string(refused.dir().join("cairn.toml")).unwrap();
    std::fs::write(&config, format!("{usual}[trace]\ncollector = \"https://collector\"\n")).unwrap();
    let said = refused.fails(&["--config", text(&config), "ls", "/"]);
    assert!(said.contains("only http:// is spoken"), "{said}");
}
