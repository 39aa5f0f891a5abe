//! Whole clients whose datanodes take nothing for a while, in and around their own directories.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ErrorCode, ROOT_INODE, fs};
use futures::TryStreamExt;

use crate::fake::{Datanode, Group, Mood};
use crate::{Cluster, Config, File};

fn root() -> fs::Cred {
    fs::Cred::default()
}

fn at(inode: u64, name: &'static str) -> fs::NodeRef {
    fs::NodeRef { inode, path: Bytes::from_static(name.as_bytes()) }
}

fn moving(from: fs::NodeRef, to: fs::NodeRef) -> fs::Rename {
    fs::Rename { from: Some(from), to: Some(to), mode: fs::RenameMode::Replace.into() }
}

struct Scene {
    group: Group,
    datanodes: Vec<Datanode>,
    cluster: Cluster,
    /// A directory of the client's own.
    own: u64,
}

impl Scene {
    async fn new() -> Scene {
        let first = Datanode::start(Mood::Well).await;
        let second = Datanode::sharing(Mood::Well, Arc::clone(&first.chunks)).await;
        let datanodes = vec![first, second];
        datanodes.iter().for_each(|datanode| datanode.sealed.store(true, Ordering::Relaxed));
        let group = Group::start(1, &datanodes).await;
        let config = Config {
            namenodes: group.addresses.clone(),
            delegate: true,
            operation_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_millis(200),
            ..Config::default()
        };
        let cluster = Cluster::connect(config).await.unwrap();
        let ask = fs::Mkdir { at: Some(at(ROOT_INODE, "own")), mode: 0o755, ..Default::default() };
        let own = cluster.mkdir(&root(), ask).await.unwrap().inode;
        Scene { group, datanodes, cluster, own }
    }

    fn be(&self, mood: Mood) {
        self.datanodes.iter().for_each(|datanode| *datanode.mood.lock().unwrap() = mood);
    }

    /// Writes a new file and closes it.
    async fn write(&self, place: fs::NodeRef, content: &'static str) -> File {
        let ask = fs::CreateFile { at: Some(place), mode: 0o644, ..Default::default() };
        let created = self.cluster.create(&root(), ask).await.unwrap();
        let file = self.cluster.open(&root(), created.attr.unwrap());
        file.write_at(0, Bytes::from_static(content.as_bytes())).await.unwrap();
        file.close().await.unwrap();
        file
    }

    /// Asks again until it is done.
    async fn rename(&self, ask: &fs::Rename) {
        while let Err(error) = self.cluster.rename(&root(), ask.clone()).await {
            if error.code == ErrorCode::NotFound {
                // It was, and only its answer came too late.
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What another client finds.
    async fn seen(&self, place: fs::NodeRef) -> Vec<u8> {
        let other = self.group.client().await;
        let attr = other.stat(&root(), place, false).await.unwrap();
        let pieces: Vec<Bytes> = other.read_stream(&attr, 0, u64::MAX).try_collect().await.unwrap();
        pieces.concat()
    }
}

#[tokio::test]
async fn a_file_whose_content_is_not_there_yet_is_not_moved_over_somebody_elses() {
    let scene = Scene::new().await;
    let shared = at(ROOT_INODE, "shared");
    drop(scene.write(shared.clone(), "the old").await);
    scene.be(Mood::Frozen);
    drop(scene.write(at(scene.own, "new"), "the new one").await);
    let ask = moving(at(scene.own, "new"), shared.clone());
    let refused = scene.cluster.rename(&root(), ask.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Timeout);
    let attr = scene.group.client().await.stat(&root(), shared.clone(), false).await.unwrap();
    assert_eq!(attr.size, 7, "the old one is still there");
    scene.be(Mood::Well);
    scene.rename(&ask).await;
    assert_eq!(scene.seen(shared).await, b"the new one");
}

#[tokio::test]
async fn a_file_whose_content_is_not_there_yet_does_not_replace_one_in_its_own_directory() {
    let scene = Scene::new().await;
    let (old, new) = (at(scene.own, "old"), at(scene.own, "new"));
    let first = scene.write(old.clone(), "the old").await;
    first.sync().await.unwrap();
    scene.be(Mood::Frozen);
    drop(scene.write(new.clone(), "the new one").await);
    let ask = moving(new.clone(), old.clone());
    let refused = scene.cluster.rename(&root(), ask.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Timeout);
    let kept = scene.cluster.stat(&root(), old.clone(), false).await.unwrap();
    assert_eq!((kept.inode, kept.size), (first.inode(), 7));
    scene.cluster.stat(&root(), new, false).await.expect("nothing was moved");
    scene.be(Mood::Well);
    scene.rename(&ask).await;
    let moved = scene.cluster.stat(&root(), old, false).await.unwrap();
    assert_eq!(moved.size, 11);
    assert_ne!(moved.inode, first.inode());
}

/// As it is for everybody while the session was not renewed for a while.
#[tokio::test]
async fn what_the_namenode_is_asked_about_an_own_file_shows_what_was_closed() {
    let scene = Scene::new().await;
    scene.be(Mood::Frozen);
    let file = scene.write(at(scene.own, "f"), "closed").await;
    let somebody = fs::Cred { uid: 7, gid: 7, groups: Vec::new() };
    for place in [at(scene.own, "f"), at(file.inode(), "")] {
        assert_eq!(scene.cluster.stat(&somebody, place, false).await.unwrap().size, 6);
    }
    let listing = scene.cluster.list(&somebody, at(scene.own, ""), Bytes::new(), 10).await.unwrap();
    let sizes: Vec<u64> =
        listing.entries.iter().filter_map(|entry| entry.attr).map(|attr| attr.size).collect();
    assert_eq!(sizes, [6]);
}
