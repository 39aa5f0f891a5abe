//! Gathering a chunk out of pieces of others.

use std::cell::Cell;
use std::net::Shutdown;
use std::sync::Arc;

use cairn_proto::ErrorCode;
use cairn_proto::control::{GatherPiece, GatherReplica, GatherSource};
use cairn_proto::limits::{BLOCK_SIZE, MAX_PAYLOAD};

use super::{Client, Node, bytes, settings};
use crate::gather::gather;
use crate::store::Seal;

fn source(chunk: u64, nodes: &[&Node]) -> GatherSource {
    GatherSource { chunk, addresses: nodes.iter().map(|node| node.address()).collect() }
}

/// An order for chunk 9 with these pieces: source, offset, length.
fn order(sources: Vec<GatherSource>, pieces: &[(u32, u64, u64)]) -> GatherReplica {
    let pieces: Vec<GatherPiece> =
        pieces.iter().map(|&(source, offset, length)| GatherPiece { source, offset, length }).collect();
    let length = pieces.iter().map(|piece| piece.length).sum();
    GatherReplica { chunk: 9, length, sources, pieces, bytes_per_second: 0 }
}

fn run(node: &Node, order: &GatherReplica) -> cairn_proto::Result<Seal> {
    gather(node.store(), order, &Arc::new(settings()), &|| false)
}

fn damage(node: &Node, chunk: u64, at: u64) {
    let path = node.store().get(chunk).unwrap().dir().data_path(chunk);
    let mut data = std::fs::read(&path).unwrap();
    data[at as usize] ^= 1;
    std::fs::write(&path, data).unwrap();
}

#[test]
fn pieces_of_own_and_of_others_become_a_sealed_replica() {
    let (one, two) = (Node::start(1), Node::start(2));
    let (first, second) = (bytes(3 * MAX_PAYLOAD), bytes(100_000));
    one.put(1, &first);
    two.put(2, &second);
    let pieces = [(0, 5, 2 * MAX_PAYLOAD as u64 + 7), (1, 99_000, 1_000), (0, 0, 3), (1, 0, 70_000)];
    let order = order(vec![source(1, &[]), source(2, &[&two])], &pieces);
    let seal = run(&one, &order).unwrap();
    let mut wanted = first[5..2 * MAX_PAYLOAD + 12].to_vec();
    wanted.extend(&second[99_000..]);
    wanted.extend(&first[..3]);
    wanted.extend(&second[..70_000]);
    assert_eq!((seal.length, seal.blake3), (wanted.len() as u64, *blake3::hash(&wanted).as_bytes()));
    let mut client = Client::connect(&one);
    assert_eq!(client.read(9, 0, wanted.len() as u64).unwrap(), wanted);
    assert_eq!(run(&one, &order).unwrap(), seal, "the same order again");
}

#[test]
fn a_damaged_replica_is_reported_and_its_piece_taken_from_another() {
    let (one, two, three) = (Node::start(1), Node::start(2), Node::start(3));
    let data = bytes(8 * BLOCK_SIZE);
    for node in [&one, &two, &three] {
        node.put(1, &data);
    }
    // No replica is whole, but every block is good somewhere.
    damage(&one, 1, 2 * BLOCK_SIZE as u64);
    damage(&two, 1, 5 * BLOCK_SIZE as u64);
    let order = order(vec![source(1, &[&two, &three])], &[(0, 0, data.len() as u64)]);
    let seal = run(&one, &order).unwrap();
    assert_eq!(seal.blake3, *blake3::hash(&data).as_bytes());
    assert!(one.store().notices().all_bad().contains_key(&1));
    assert!(two.store().notices().all_bad().contains_key(&1));
}

#[test]
fn a_connection_that_was_cut_while_it_waited_says_nothing_of_its_source() {
    let (one, two, three) = (Node::start(1), Node::start(2), Node::start(3));
    two.put(1, &bytes(1_000));
    three.put(2, &bytes(1_000));
    let sources = vec![source(1, &[&two]), source(2, &[&three])];
    let order = order(sources, &[(0, 0, 10), (1, 0, 10), (0, 10, 10)]);
    let asked = Cell::new(0);
    let cut_before_the_second = || {
        asked.set(asked.get() + 1);
        if asked.get() == 2 {
            two.server.shut_connections(Shutdown::Both);
        }
        false
    };
    let seal = gather(one.store(), &order, &Arc::new(settings()), &cut_before_the_second).unwrap();
    assert_eq!((seal.length, asked.get()), (30, 3));
}

#[test]
fn what_cannot_be_gathered_leaves_nothing_behind() {
    let (one, two) = (Node::start(1), Node::start(2));
    let data = bytes(2 * BLOCK_SIZE);
    two.put(1, &data);
    damage(&two, 1, BLOCK_SIZE as u64);
    let whole = [(0, 0, data.len() as u64)];
    let cases = [
        (order(vec![source(1, &[&two])], &whole), ErrorCode::Corrupt),
        (order(vec![source(7, &[&two])], &[(0, 0, 1)]), ErrorCode::ChunkUnknown),
        (order(vec![source(1, &[&two])], &[(0, 0, data.len() as u64 + 1)]), ErrorCode::PastEnd),
        (order(vec![source(1, &[])], &whole), ErrorCode::ChunkUnknown),
        (order(vec![source(1, &[&two])], &[(1, 0, 1)]), ErrorCode::Malformed),
        (order(vec![source(9, &[&two])], &[(0, 0, 1)]), ErrorCode::Malformed),
        (GatherReplica { length: 2, ..order(vec![source(1, &[&two])], &[(0, 0, 1)]) }, ErrorCode::Malformed),
    ];
    for (order, code) in cases {
        assert_eq!(run(&one, &order).unwrap_err().code, code, "{order:?}");
    }
    assert_eq!(one.store().get(9).unwrap_err().code, ErrorCode::ChunkUnknown);
    assert_eq!(one.store().space().used, 0);
    let stopped =
        gather(one.store(), &order(vec![source(1, &[&two])], &[(0, 0, 1)]), &Arc::new(settings()), &|| true);
    assert_eq!(stopped.unwrap_err().code, ErrorCode::Unavailable);
}
