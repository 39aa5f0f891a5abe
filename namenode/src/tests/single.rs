//! One namenode alone.

use super::*;

#[test]
fn a_namenode_alone_forms_a_cluster_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let configs = configs(dir.path(), 1);
    let mut node = Node::start(configs[0].clone());
    let mut client = Client::new(&configs);
    client.open_session();
    assert_eq!(error_of(&client.mkdir("a")), None);
    let cluster = client.status().fs.unwrap().cluster_id;
    assert!(!cluster.is_empty());
    assert_eq!(node.stop(), Ok(()));
    node.restart();
    assert!(client.exists("a"));
    assert_eq!(error_of(&client.mkdir("b")), None);
    // Not a clean end: the store falls back to its last durable commit, the log makes up for the rest.
    node.restart();
    assert!(client.exists("b"));
    assert_eq!(client.status().fs.unwrap().cluster_id, cluster);
}

#[test]
fn a_mutation_sent_twice_happens_once() {
    let dir = tempfile::tempdir().unwrap();
    let configs = configs(dir.path(), 1);
    let mut node = Node::start(configs[0].clone());
    let mut client = Client::new(&configs);
    client.open_session();
    let first = client.change_as(9, mkdir("a"));
    assert_eq!(error_of(&first), None);
    assert_eq!(client.change_as(9, mkdir("a")), first);
    node.restart();
    assert_eq!(client.change_as(9, mkdir("a")), first);
    assert_eq!(error_of(&client.change_as(10, mkdir("a"))), Some(ErrorCode::Exists));
}

#[test]
fn a_silent_session_expires_and_a_talking_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs = configs(dir.path(), 1);
    configs[0].session_lease_ms = 2000;
    let _node = Node::start(configs[0].clone());
    let (mut silent, mut talking) = (Client::new(&configs), Client::new(&configs));
    talking.open_session();
    silent.open_session();
    // Queries of the talking client renew its lease.
    talking.wait_status("one session expires", |status| status.sessions == 1);
    assert_eq!(error_of(&talking.mkdir("a")), None);
    assert_eq!(error_of(&silent.mkdir("b")), Some(ErrorCode::SessionExpired));
    let batch = CallBatch { session: silent.session, calls: Vec::new() };
    let reply = silent.block_on(Client::converse(&silent.addresses[0], batch)).unwrap();
    assert!(reply.session_expired);
    assert_eq!(reply.lease_ms, 2000);
}

#[test]
fn what_only_the_leader_may_do_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let configs = configs(dir.path(), 1);
    let _node = Node::start(configs[0].clone());
    let mut client = Client::new(&configs);
    client.open_session();
    let op = mutation::Op::ExpireSession(cairn_proto::fs::ExpireSession { session: client.session });
    let write = Write { seq: 1, acked: 0, mutation: Some(Mutation { op: Some(op) }) };
    let reply = client.ask_one(&client.addresses[0], call::Kind::Write(write)).unwrap();
    match reply.result {
        Some(reply::Result::Error(error)) => assert_eq!(Error::from(error).code, ErrorCode::NotPermitted),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_used_directory_a_taken_port_and_a_lost_log_are_said_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let configs = configs(dir.path(), 2);
    let mut config = configs[0].clone();
    config.peers = vec![config.advertise.clone()];
    let mut node = Node::start(config.clone());
    let client = Client::new(&configs[..1]);
    client.status();
    let error = Node::start(config.clone()).result().unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    let mut other = config.clone();
    other.dir = dir.path().join("other");
    let error = Node::start(other).result().unwrap_err();
    assert!(error.to_string().contains("listening"), "{error}");
    node.kill();
    std::fs::remove_dir_all(config.dir.join("log")).unwrap();
    let error = Node::start(config).result().unwrap_err();
    assert!(error.to_string().contains("no log"), "{error}");
}
