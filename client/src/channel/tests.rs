//! The conversation against namenodes that change, freeze and forget.

use std::collections::BTreeSet;

use cairn_proto::{ErrorCode, ROOT_INODE, fs};

use crate::fake::Group;
use crate::{Cluster, Config};

fn root() -> fs::Cred {
    fs::Cred::default()
}

fn at(path: &str) -> fs::NodeRef {
    fs::NodeRef { inode: ROOT_INODE, path: path.to_owned().into() }
}

fn directory(name: &str) -> fs::Mkdir {
    fs::Mkdir { at: Some(at(name)), mode: 0o755, ..Default::default() }
}

#[tokio::test]
async fn answers_find_their_callers() {
    let group = Group::start(1, &[]).await;
    let cluster = group.client().await;
    assert_eq!(cluster.cluster_id(), "cluster");
    let made = (0..300).map(|i| {
        let cluster = cluster.clone();
        async move { cluster.mkdir(&root(), directory(&format!("d{i}"))).await.unwrap().inode }
    });
    let inodes: BTreeSet<u64> = futures::future::join_all(made).await.into_iter().collect();
    assert_eq!(inodes.len(), 300);
    let error = cluster.mkdir(&root(), directory("d7")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Exists);
    let error = cluster.stat(&root(), at("nothing"), true).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    let page = cluster.list(&root(), at(""), bytes::Bytes::new(), 1000).await.unwrap();
    assert_eq!(page.entries.len(), 300);
    cluster.close().await.unwrap();
}

#[tokio::test]
async fn a_call_follows_the_leader() {
    let group = Group::start(3, &[]).await;
    let cluster = group.client().await;
    for (i, leader) in [0, 2, 1, 0].into_iter().enumerate() {
        group.lead(leader);
        cluster.mkdir(&root(), directory(&format!("d{i}"))).await.unwrap();
    }
    assert!(cluster.metrics().leader_changes >= 3);
    assert_eq!(cluster.who_leads().await.unwrap().leader_address, group.addresses[0]);
}

#[tokio::test]
async fn a_frozen_leader_is_left_for_its_successor() {
    let group = Group::start(3, &[]).await;
    let cluster = group.client().await;
    cluster.mkdir(&root(), directory("before")).await.unwrap();
    group.freeze(0);
    group.lead(1);
    cluster.mkdir(&root(), directory("after")).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_number() {
    let group = Group::start(1, &[]).await;
    let cluster = group.client().await;
    cluster.mkdir(&root(), directory("first")).await.unwrap();
    group.swallow(2);
    // Done twice it would answer "file exists".
    cluster.mkdir(&root(), directory("second")).await.unwrap();
    let seen = group.seen();
    let last = *seen.last().unwrap();
    assert_eq!(seen.iter().filter(|&&call| call == last).count(), 3, "{seen:?}");
    assert!(cluster.metrics().retries >= 2);
}

#[tokio::test]
async fn an_expired_session_fails_its_mutations_and_is_replaced() {
    let group = Group::start(1, &[]).await;
    let cluster = group.client().await;
    cluster.mkdir(&root(), directory("before")).await.unwrap();
    let session = group.seen().last().unwrap().0;
    group.expire(session);
    let error = cluster.mkdir(&root(), directory("lost")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::SessionExpired);
    cluster.mkdir(&root(), directory("after")).await.unwrap();
    assert_ne!(group.seen().last().unwrap().0, session);
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_them() {
    let config = Config {
        namenodes: vec!["127.0.0.1:1".into()],
        operation_timeout: std::time::Duration::from_millis(300),
        ..Config::default()
    };
    let error = Cluster::connect(config).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::NoLeader);
    assert!(error.detail.contains("127.0.0.1:1"), "{error}");
    let none = Cluster::connect(Config::default()).await.err().unwrap();
    assert_eq!(none.code, ErrorCode::Invalid);
}

#[tokio::test]
async fn a_session_is_given_up_only_when_the_log_says_so() {
    let group = Group::start(1, &[]).await;
    let cluster = group.client().await;
    cluster.mkdir(&root(), directory("before")).await.unwrap();
    let session = group.seen().last().unwrap().0;
    group.confuse(true);
    for i in 0..5 {
        cluster.mkdir(&root(), directory(&format!("d{i}"))).await.unwrap();
    }
    group.confuse(false);
    cluster.mkdir(&root(), directory("after")).await.unwrap();
    assert_eq!(group.seen().last().unwrap().0, session);
}
