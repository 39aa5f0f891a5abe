//! Reads, and strangers.

use std::io::{Read as _, Write};
use std::net::TcpStream;
use std::time::Duration;

use cairn_proto::ErrorCode;
use cairn_proto::data::{Read, StatReplica, request, response};

use super::{Client, LONG, Node, bytes, settings};
use crate::settings::Settings;

#[test]
fn any_range_of_open_and_sealed_chunks() {
    let node = Node::start(1);
    let data = bytes(2_500_000);
    let mut writer = Client::connect(&node);
    writer.open(7, &[]);
    writer.append_all(&data);
    let mut client = Client::connect(&node);
    let ranges =
        [(0, 2_500_000), (0, 0), (2_500_000, 0), (65_535, 2), (1_000_000, 1_400_001), (2_499_999, 1)];
    for sealed in [false, true] {
        if sealed {
            node.store().seal(7, data.len() as u64).unwrap();
        }
        for (offset, length) in ranges {
            let got = client.read(7, offset as u64, length as u64).unwrap();
            assert_eq!(got, &data[offset..offset + length]);
        }
    }
}

#[test]
fn a_refused_read_leaves_the_connection_usable() {
    let node = Node::start(1);
    node.put(7, b"content");
    let mut client = Client::connect(&node);
    assert_eq!(client.read(8, 0, 1).unwrap_err().code, ErrorCode::ChunkUnknown);
    assert_eq!(client.read(7, 5, 3).unwrap_err().code, ErrorCode::PastEnd);
    assert_eq!(client.read(7, u64::MAX, 3).unwrap_err().code, ErrorCode::PastEnd);
    assert_eq!(client.read(7, 0, 7).unwrap(), b"content");
    client.send(request::Kind::Stat(StatReplica { chunk: 7, ..StatReplica::default() }), &[]);
    match client.receive() {
        Some(response::Kind::Stat(stat)) => {
            assert_eq!((stat.length, stat.sealed), (7, true));
            assert_eq!(&stat.blake3[..], blake3::hash(b"content").as_bytes());
            assert_eq!(std::fs::read(stat.path).unwrap(), b"content");
        }
        other => panic!("{other:?}"),
    }
    client.send(request::Kind::Stat(StatReplica { chunk: 8, ..StatReplica::default() }), &[]);
    assert_eq!(client.failure().0.code, ErrorCode::ChunkUnknown);
}

#[test]
fn a_damaged_block_is_refused_and_reported() {
    let node = Node::start(1);
    let data = bytes(200_000);
    node.put(7, &data);
    let path = node.store().get(7).unwrap().dir().data_path(7);
    let mut content = std::fs::read(&path).unwrap();
    content[100_000] ^= 1;
    std::fs::write(&path, content).unwrap();
    let mut client = Client::connect(&node);
    assert_eq!(client.read(7, 90_000, 20_000).unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!(client.read(7, 0, 65_536).unwrap(), &data[..65_536]);
    assert_eq!(node.store().notices().take().bad.into_keys().collect::<Vec<_>>(), vec![7]);
}

#[test]
fn strangers_of_another_cluster_or_version_are_refused() {
    let node = Node::start(1);
    for (version, cluster, code) in [
        (1, "other", ErrorCode::WrongCluster),
        (1, "", ErrorCode::WrongCluster),
        (9, super::CLUSTER, ErrorCode::Version),
    ] {
        let mut client = Client::raw(&node.address());
        client.hello(version, cluster);
        assert_eq!(client.failure().0.code, code);
        assert_eq!(client.receive(), None);
    }
    let mut client = Client::raw(&node.address());
    client.send(request::Kind::Read(Read::default()), &[]);
    assert_eq!(client.failure().0.code, ErrorCode::Malformed);
    let mut client = Client::connect(&node);
    client.send(request::Kind::Sync(Default::default()), &[]);
    assert_eq!(client.failure().0.code, ErrorCode::Malformed);
    let mut client = Client::connect(&node);
    client.send(request::Kind::Read(Read::default()), b"payload");
    assert_eq!(client.failure().0.code, ErrorCode::Malformed);
}

/// Sends bytes and reads until the other side closes.
fn shout(node: &Node, bytes: &[u8]) {
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
}

#[test]
fn garbage_is_closed_and_the_server_lives() {
    let node = Node::start(1);
    node.put(7, b"content");
    shout(&node, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    shout(&node, &[0xff; 64]);
    shout(&node, &[4, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    // A header and a payload as large as a frame may announce, or a little larger.
    shout(&node, &[0, 0, 1, 0, 1, 0, 16, 0]);
    shout(&node, &[0; 8]);
    assert_eq!(Client::connect(&node).read(7, 0, 7).unwrap(), b"content");
}

#[test]
fn a_stranger_that_dawdles_is_dropped() {
    let handshake = Duration::from_millis(200);
    let node = Node::start_with(1, Settings { handshake, ..settings() }, None);
    // One says nothing, one a byte at a time: neither may hold a connection.
    shout(&node, &[]);
    let mut stream = TcpStream::connect(node.address()).unwrap();
    while stream.write_all(&[1]).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn strangers_that_say_nothing_make_room_for_a_client() {
    let node = Node::start_with(1, Settings { max_connections: 8, ..settings() }, None);
    node.put(7, b"content");
    let mut strangers = Vec::new();
    for _ in 0..5 {
        strangers.extend((0..50).map(|_| TcpStream::connect(node.address()).unwrap()));
        assert_eq!(Client::connect(&node).read(7, 0, 7).unwrap(), b"content");
    }
}

#[test]
fn idle_readers_are_dropped_and_connections_counted() {
    let short = Settings { idle: Duration::from_millis(100), max_connections: 2, ..settings() };
    let node = Node::start_with(1, short, None);
    let mut idle = Client::connect(&node);
    assert_eq!(idle.failure().0.code, ErrorCode::Timeout);
    let many = Settings { max_connections: 2, ..settings() };
    let node = Node::start_with(1, many, None);
    // Both have a chain: neither can be done without.
    let mut held = [Client::connect(&node), Client::connect(&node)];
    (1..).zip(&mut held).for_each(|(chunk, client)| client.open(chunk, &[]));
    let mut third = Client::raw(&node.address());
    assert_eq!(third.failure().0.code, ErrorCode::Unavailable);
}
