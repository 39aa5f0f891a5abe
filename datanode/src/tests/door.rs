//! Lending files to clients on this host.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use cairn_host::passing;
use cairn_proto::checksum::crc32c;
use cairn_proto::data::{Hello, OpenReplica, Request, Response, request, response};
use cairn_proto::frame::{self, Lengths, PREFIX};
use cairn_proto::{Error, ErrorCode};

use super::{CLUSTER, Client, LONG, Node, bytes};
use crate::door::Door;

const BLOCK: usize = 64 << 10;

fn open_door(node: &Node) -> (Door, PathBuf) {
    let door = Door::open(node._dir.path(), node.server.shared()).unwrap();
    (door, node.server.shared().door().into())
}

fn send(stream: &UnixStream, kind: request::Kind) {
    let head = frame::encode_head(&Request { kind: Some(kind), request: 0 }, 0).unwrap();
    passing::send(stream, &head, None).unwrap();
}

/// The next answer, with the file that came with it; nothing when the connection is closed.
fn receive(stream: &UnixStream) -> Option<(response::Kind, Option<fs::File>)> {
    let mut prefix = [0; PREFIX];
    let passed = passing::receive_all(stream, &mut prefix).ok()?;
    let mut header = vec![0; Lengths::parse(prefix).unwrap().header];
    passing::receive_all(stream, &mut header).ok()?;
    Some((frame::decode_header::<Response>(&header).unwrap().kind.unwrap(), passed))
}

fn enter(path: &Path, cluster_id: &str) -> (UnixStream, Option<response::Kind>) {
    let stream = passing::connect(path, LONG).unwrap();
    send(&stream, request::Kind::Hello(Hello { version: 1, cluster_id: cluster_id.into() }));
    let answer = receive(&stream).map(|(kind, _)| kind);
    (stream, answer)
}

fn borrow(stream: &UnixStream, chunk: u64) -> Result<(fs::File, u64, Vec<u32>), Error> {
    send(stream, request::Kind::Lend(OpenReplica { chunk }));
    match receive(stream) {
        Some((response::Kind::Lent(lent), Some(file))) => Ok((file, lent.length, lent.crcs)),
        Some((response::Kind::Failure(failure), None)) => Err(failure.error.unwrap().into()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn open_and_sealed_replicas_are_lent_to_be_read_only() {
    let node = Node::start(3);
    let (_door, path) = open_door(&node);
    let data = bytes(3 * BLOCK + 100);
    let mut writer = Client::connect(&node);
    writer.open(7, &[]);
    writer.append_all(&data);
    let (stream, welcome) = enter(&path, CLUSTER);
    assert!(matches!(welcome, Some(response::Kind::Hello(reply)) if reply.node == 3));
    for sealed in [false, true] {
        if sealed {
            node.store().seal(7, data.len() as u64).unwrap();
        }
        let (file, length, crcs) = borrow(&stream, 7).unwrap();
        assert_eq!(length, data.len() as u64);
        assert_eq!(crcs, data.chunks(BLOCK).map(crc32c).collect::<Vec<_>>());
        let mut read = vec![0; data.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == data);
        assert!((&file).write_all(b"x").is_err(), "a borrower changes nothing");
    }
    // What is not lent leaves the connection usable.
    assert_eq!(borrow(&stream, 8).unwrap_err().code, ErrorCode::ChunkUnknown);
    assert!(borrow(&stream, 7).is_ok());
}

#[test]
fn a_growing_replica_is_lent_as_far_as_it_reaches() {
    let node = Node::start(3);
    let (_door, path) = open_door(&node);
    let data = bytes(2 * BLOCK);
    let mut writer = Client::connect(&node);
    writer.open(7, &[]);
    let (stream, _) = enter(&path, CLUSTER);
    assert_eq!(borrow(&stream, 7).unwrap_err().code, ErrorCode::NotSupported, "nothing to lend yet");
    writer.append_all(&data[..BLOCK + 5]);
    let (file, length, crcs) = borrow(&stream, 7).unwrap();
    writer.append_all(&data[BLOCK + 5..]);
    assert_eq!((length, crcs.len()), (BLOCK as u64 + 5, 2));
    let mut read = vec![0; length as usize];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read.chunks(BLOCK).map(crc32c).collect::<Vec<_>>(), crcs, "it is as it was when it was lent");
    assert_eq!(borrow(&stream, 7).unwrap().1, data.len() as u64);
}

#[test]
fn strangers_get_nothing_and_the_door_closes_with_the_datanode() {
    let node = Node::start(3);
    let (door, path) = open_door(&node);
    node.put(7, b"content");
    let (stream, answer) = enter(&path, "another");
    assert!(matches!(answer, Some(response::Kind::Failure(_))));
    assert!(receive(&stream).is_none());
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[8, 0, 0, 0, 0, 0, 0, 0, 1]] {
        let stream = passing::connect(&path, LONG).unwrap();
        passing::send(&stream, garbage, None).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(receive(&stream).is_none());
    }
    // Those that say nothing take no more than their places.
    let silent: Vec<UnixStream> = (0..200).filter_map(|_| passing::connect(&path, LONG).ok()).collect();
    drop(silent);
    let served = || {
        let (stream, answer) = enter(&path, CLUSTER);
        answer.is_some() && borrow(&stream, 7).is_ok()
    };
    while !served() {
        thread::yield_now();
    }
    let (stream, _) = enter(&path, CLUSTER);
    drop(door);
    assert!(!path.exists() && receive(&stream).is_none());
}
