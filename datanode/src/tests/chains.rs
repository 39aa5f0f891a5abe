//! Write chains.

use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use cairn_proto::ErrorCode;
use cairn_proto::data::{ChainLink, OpenChain, request, response};

use super::{Client, Node, bytes, settings};
use crate::settings::Settings;

#[test]
fn three_links_hold_what_is_acknowledged() {
    let nodes = [Node::start(1), Node::start(2), Node::start(3)];
    let data = bytes(3_300_000);
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1], &nodes[2]]);
    for part in data.chunks(1 << 20) {
        client.append(part);
    }
    client.wait_acked(data.len() as u64);
    client.sync();
    client.wait_synced(data.len() as u64);
    for node in &nodes {
        assert_eq!(node.store().get(7).unwrap().length(), data.len() as u64);
        let mut reader = Client::connect(node);
        assert_eq!(reader.read(7, 0, data.len() as u64).unwrap(), data);
    }
}

#[test]
fn many_small_appends_in_flight_all_arrive() {
    let nodes = [Node::start(1), Node::start(2), Node::start(3)];
    let data = bytes(200_000);
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1], &nodes[2]]);
    for part in data.chunks(77) {
        client.append(part);
    }
    client.sync();
    client.wait_synced(data.len() as u64);
    assert_eq!(Client::connect(&nodes[2]).read(7, 0, data.len() as u64).unwrap(), data);
}

#[test]
fn the_same_append_again_succeeds_and_another_one_ends_the_chain() {
    let nodes = [Node::start(1), Node::start(2)];
    let data = bytes(70_000);
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1]]);
    client.append(&data);
    client.wait_acked(70_000);
    let again = client.tail;
    client.tail = Default::default();
    client.append(&data);
    assert_eq!(client.tail, again);
    client.append(b"more");
    client.wait_acked(70_004);
    client.tail = Default::default();
    client.append(b"other bytes");
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::OffsetMismatch, 1));
    assert_eq!(client.receive(), None);
}

#[test]
fn damage_on_the_way_is_found_by_the_next_link() {
    let node = Node::start(4);
    let mut client = Client::connect(&node);
    client.open(7, &[]);
    let crcs = client.tail.append(b"sound");
    client.send(request::Kind::Append(cairn_proto::data::Append { offset: 0, crcs }), b"s0und");
    let (error, link) = client.failure();
    assert_eq!((error.code, link), (ErrorCode::Corrupt, 4));
    assert_eq!(node.store().get(7).unwrap().length(), 0);
}

#[test]
fn a_killed_link_is_named() {
    let mut nodes = vec![Node::start(1), Node::start(2), Node::start(3)];
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1], &nodes[2]]);
    client.append(b"held by all");
    client.wait_acked(11);
    drop(nodes.pop());
    for _ in 0..20 {
        client.append(&bytes(100_000));
    }
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::ChainBroken, 3), "{error}");
    // The survivors hold at least what was acknowledged.
    assert!(nodes[0].store().get(7).unwrap().length() >= 11);
    assert!(nodes[1].store().get(7).unwrap().length() >= 11);
}

#[test]
fn a_link_that_cannot_be_reached_is_named_at_once() {
    let nodes = [Node::start(1), Node::start(2)];
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let links = vec![nodes[1].link(), ChainLink { node: 9, address: gone }];
    let mut client = Client::connect(&nodes[0]);
    client.send(request::Kind::Open(OpenChain { chunk: 7, length: 0, links, ..OpenChain::default() }), &[]);
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::ChainBroken, 9), "{error}");
}

#[test]
fn a_link_that_is_another_datanode_is_not_written_to() {
    let nodes = [Node::start(1), Node::start(2)];
    let links = vec![ChainLink { node: 9, ..nodes[1].link() }];
    let mut client = Client::connect(&nodes[0]);
    client.send(request::Kind::Open(OpenChain { chunk: 7, links, ..OpenChain::default() }), &[]);
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::ChainBroken, 9), "{error}");
    assert!(error.detail.contains("datanode 2 answers"), "{error}");
    assert!(nodes[1].store().get(7).is_err(), "nothing of it is left there");
    for (meant, opens) in [(9, false), (1, true), (0, true)] {
        let chunk = 8 + u64::from(meant);
        let mut client = Client::connect(&nodes[0]);
        client.send(request::Kind::Open(OpenChain { chunk, node: meant, ..OpenChain::default() }), &[]);
        match opens {
            true => assert!(matches!(client.receive(), Some(response::Kind::Opened(_)))),
            false => assert!(client.failure().0.detail.contains("this is datanode 1, not 9")),
        }
        assert_eq!(nodes[0].store().get(chunk).is_ok(), opens);
    }
}

#[test]
fn a_datanode_without_a_number_is_not_written_to() {
    let nodes = [Node::start(1), Node::start(0)];
    let links = vec![ChainLink { node: 2, ..nodes[1].link() }];
    let mut client = Client::connect(&nodes[0]);
    client.send(request::Kind::Open(OpenChain { chunk: 7, length: 0, links, ..OpenChain::default() }), &[]);
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::ChainBroken, 2), "{error}");
    assert!(error.detail.contains("not registered"), "{error}");
}

/// A link that opens and then neither reads nor acknowledges.
fn silent_link() -> (ChainLink, std::thread::JoinHandle<()>) {
    use cairn_proto::data::{ChainOpened, HelloReply, Response, response};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let kinds = [
            response::Kind::Hello(HelloReply { version: 1, node: 8, ..Default::default() }),
            response::Kind::Opened(ChainOpened {}),
        ];
        for kind in kinds {
            let head = cairn_proto::frame::encode_head(&Response { kind: Some(kind) }, 0).unwrap();
            stream.write_all(&head).unwrap();
        }
        // Until the link above gives up.
        while !crate::store::Upstream::has_hung_up(&stream) {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    (ChainLink { node: 8, address }, thread)
}

#[test]
fn a_stalled_link_is_named_by_the_one_before_it() {
    let impatient = || Settings { stall: Duration::from_secs(2), ..settings() };
    let nodes = [Node::start_with(1, impatient(), None), Node::start_with(2, impatient(), None)];
    let (silent, thread) = silent_link();
    let mut client = Client::connect(&nodes[0]);
    let links = vec![nodes[1].link(), silent];
    client.send(request::Kind::Open(OpenChain { chunk: 7, length: 0, links, ..OpenChain::default() }), &[]);
    assert!(client.receive().is_some());
    client.append(&bytes(1000));
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::ChainBroken, 8), "{error}");
    thread.join().unwrap();
}

#[test]
fn nothing_is_owed_for_what_was_acknowledged_before() {
    let impatient = || {
        let stall = Duration::from_secs(1);
        Settings { stall, sync_stall: stall, ..settings() }
    };
    let nodes = [Node::start_with(1, impatient(), None), Node::start_with(2, impatient(), None)];
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1]]);
    client.sync();
    client.append(b"abc");
    client.sync();
    client.wait_synced(3);
    client.sync();
    client.tail = Default::default();
    client.append(b"abc");
    // Longer than an acknowledgement may take.
    std::thread::sleep(Duration::from_millis(1500));
    client.append(b"def");
    client.wait_acked(6);
}

#[test]
fn closing_closes_the_links_below_and_lets_another_chain_in() {
    let nodes = [Node::start(1), Node::start(2)];
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1]]);
    client.append(b"abc");
    client.wait_acked(3);
    let mut second = Client::connect(&nodes[1]);
    second.ask_open(7, 3, &[]);
    assert_eq!(second.failure().0.code, ErrorCode::ChunkBusy);
    client.stream.shutdown(Shutdown::Both).unwrap();
    let mut third = Client::connect(&nodes[0]);
    third.ask_open(7, 3, &[&nodes[1]]);
    // The link below may hear of the end a moment later, and then says so.
    while !matches!(third.receive(), Some(cairn_proto::data::response::Kind::Opened(_))) {
        third = Client::connect(&nodes[0]);
        third.ask_open(7, 3, &[&nodes[1]]);
    }
    let mut tail = cairn_proto::checksum::BlockCrc::default();
    tail.append(b"abc");
    third.tail = tail;
    third.append(b"def");
    third.wait_acked(6);
}

#[test]
fn a_seal_ends_the_chain() {
    let nodes = [Node::start(1), Node::start(2)];
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1]]);
    client.append(b"abcdef");
    client.wait_acked(6);
    nodes[1].store().seal(7, 4).unwrap();
    client.append(b"ghi");
    let (error, node) = client.failure();
    // Its own end is two bytes beyond the seal: either refusal tells the writer to go elsewhere.
    assert!(matches!(error.code, ErrorCode::ChunkSealed | ErrorCode::OffsetMismatch), "{error}");
    assert_eq!(node, 2);
    assert_eq!(nodes[1].store().get(7).unwrap().length(), 4);
}

#[test]
fn a_full_link_says_so() {
    let nodes = [Node::start(1), Node::start_with(2, settings(), Some(50_000))];
    let mut client = Client::connect(&nodes[0]);
    client.open(7, &[&nodes[1]]);
    client.append(&bytes(40_000));
    client.wait_acked(40_000);
    client.append(&bytes(40_000));
    let (error, node) = client.failure();
    assert_eq!((error.code, node), (ErrorCode::DiskFull, 2), "{error}");
}

#[test]
fn a_chain_carries_appends_and_syncs_only_and_a_chunk_has_an_end() {
    let node = Node::start(1);
    let mut client = Client::connect(&node);
    client.open(7, &[]);
    client.send(request::Kind::Stat(Default::default()), &[]);
    assert_eq!(client.failure().0.code, ErrorCode::Malformed);
    let mut client = Client::connect(&node);
    client.open(8, &[]);
    let append = cairn_proto::data::Append { offset: u64::MAX, crcs: vec![0] };
    client.send(request::Kind::Append(append), b"x");
    assert_eq!(client.failure().0.code, ErrorCode::TooLarge);
    let mut client = Client::connect(&node);
    let links = vec![ChainLink::default(); 16];
    client.send(request::Kind::Open(OpenChain { chunk: 9, length: 0, links, ..OpenChain::default() }), &[]);
    assert_eq!(client.failure().0.code, ErrorCode::TooLarge);
}

#[test]
fn an_idle_chain_is_closed() {
    let idle_chain = Duration::from_millis(50);
    let node = Node::start_with(1, Settings { idle_chain, ..settings() }, None);
    let mut client = Client::connect(&node);
    client.open(7, &[]);
    assert_eq!(client.failure().0.code, ErrorCode::Timeout);
}

#[test]
fn a_stop_keeps_what_was_received_and_leaves_a_clean_mark() {
    let node = Node::start(1);
    let data = bytes(500_000);
    let mut client = Client::connect(&node);
    client.open(7, &[]);
    client.append_all(&data);
    let Node { server, _dir: dir, .. } = node;
    let store = server.shared().store.clone();
    server.stop(Duration::from_secs(10));
    store.close();
    assert_eq!(client.receive(), None);
    drop(store);
    let config = crate::store::StoreConfig { dirs: vec![dir.path().join("data")], ..Default::default() };
    let store = crate::store::Store::open(&config).unwrap();
    let replica = store.get(7).unwrap();
    assert_eq!((replica.phase(), replica.length()), (crate::store::Phase::Open, data.len() as u64));
}
