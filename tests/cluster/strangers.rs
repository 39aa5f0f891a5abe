//! Strangers at every port, and a datanode that says nothing: whoever belongs here is served all the same.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Cluster, digest, make_file, text};

/// What every HTTP/2 client says first, with empty settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// The head of a frame of 5 bytes of headers on stream 1, of which none follow.
const HALF_OPEN: &[u8] = &[0, 0, 5, 1, 0, 0, 0, 0, 1];
/// The head of a frame as long as a frame can say it is.
const HUGE: &[u8] = &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];

/// Addresses of all nodes: namenodes first.
fn ports(cluster: &Cluster, datanodes: usize) -> Vec<SocketAddr> {
    let status = cluster.wait_for("datanodes", |status| {
        status["datanodes"].as_array().is_some_and(|nodes| nodes.len() == datanodes)
    });
    let of = |role: &str| -> Vec<SocketAddr> {
        let nodes = status[role].as_array().unwrap().iter();
        nodes.map(|node| node["address"].as_str().unwrap().parse().unwrap()).collect()
    };
    [of("namenodes"), of("datanodes")].concat()
}

#[track_caller]
fn works(cluster: &Cluster, name: &str) {
    let local = cluster.scratch(name);
    make_file(&local, 1 << 20, 3);
    let path = format!("/{name}");
    cluster.ok(&["put", text(&local), &path]);
    assert!(cluster.run(&["cat", &path]).stdout == fs::read(&local).unwrap());
}

#[test]
fn strangers_that_say_odd_things_stop_nobody() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let ports = ports(&cluster, 3);
    let over = Arc::new(AtomicBool::new(false));
    let mut kept = Vec::new();
    let mut dawdlers = Vec::new();
    for port in &ports {
        let half_open = [HTTP2, HALF_OPEN, b"\x82"].concat();
        let huge = [HTTP2, HUGE, &[7; 100_000]].concat();
        let most: &[u8] = &[0xff; 64];
        // A frame of our own that is as long as allowed, and never comes.
        let long: &[u8] = &[0, 0, 1, 0, 0, 0, 16, 0, 1, 2, 3];
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], most, long, HTTP2, &half_open, &huge, &[0; 64], b"x"] {
            for _ in 0..8 {
                let mut stream = TcpStream::connect(port).unwrap();
                let _ = stream.write_all(bytes);
                kept.push(stream);
            }
        }
        let (port, over) = (*port, over.clone());
        dawdlers.push(thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect(port) else { continue };
                for byte in HTTP2 {
                    if over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }));
    }
    works(&cluster, "one");
    works(&cluster, "two");
    over.store(true, Ordering::Relaxed);
    dawdlers.into_iter().for_each(|dawdler| dawdler.join().unwrap());
    assert_eq!(cluster.status().expect("a status")["health"], "healthy");
}

#[test]
fn ten_thousand_idle_connections_stop_nobody() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let ports = ports(&cluster, 3);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let per_port = (most.saturating_sub(500) / 2).min(5_000) as usize;
    assert!(per_port >= 1_500, "this host lets a process open {most} files only");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut idle = Vec::new();
    for port in &ports[..2] {
        for _ in 0..per_port {
            // One that is not let in at once is as good: what counts is that there is a crowd.
            idle.extend(TcpStream::connect_timeout(port, Duration::from_secs(2)));
        }
    }
    works(&cluster, "in-the-crowd");
    drop(idle);
    works(&cluster, "after-it");
}

#[test]
fn reading_goes_on_while_a_datanode_is_stopped() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "600"]);
    let local = cluster.scratch("f");
    make_file(&local, 20 << 20, 4);
    cluster.ok(&["put", text(&local), "/f"]);
    cluster.wait_healed();
    let stopped = Pid::from_raw(cluster.pid("dn1") as i32);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let patient = cluster.impatient(30);
    for round in 0..4 {
        let back = cluster.scratch(&format!("back{round}"));
        cluster.ok(&["--config", text(&patient), "get", "/f", text(&back)]);
        assert_eq!(digest(&local), digest(&back));
    }
    kill(stopped, Signal::SIGCONT).unwrap();
    cluster.wait_healed();
}
