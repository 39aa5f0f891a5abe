//! Files over the real state machine and chunks in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cairn_proto::{ErrorCode, ROOT_INODE, fs};
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fake::{Datanode, Group, Mood};
use crate::{Cluster, File};

fn root() -> fs::Cred {
    fs::Cred::default()
}

fn ask(name: &str) -> fs::CreateFile {
    let at = fs::NodeRef { inode: ROOT_INODE, path: name.to_owned().into() };
    fs::CreateFile { at: Some(at), mode: 0o644, truncate: true, ..Default::default() }
}

async fn make(cluster: &Cluster, name: &str) -> File {
    let created = cluster.create(&root(), ask(name)).await.unwrap();
    cluster.open(&root(), created.attr.unwrap())
}

async fn small_cluster() -> (Group, Vec<Datanode>) {
    let first = Datanode::start(Mood::Well).await;
    let second = Datanode::sharing(Mood::Well, Arc::clone(&first.chunks)).await;
    let datanodes = vec![first, second];
    datanodes.iter().for_each(|datanode| datanode.sealed.store(true, Ordering::Relaxed));
    (Group::start(1, &datanodes).await, datanodes)
}

/// What another client sees.
async fn seen_by_others(group: &Group, inode: u64) -> Vec<u8> {
    let other = group.client().await;
    let at = fs::NodeRef { inode, path: Bytes::new() };
    let attr = other.stat(&root(), at, false).await.unwrap();
    let pieces: Vec<Bytes> = other.read_stream(&attr, 0, u64::MAX).try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn random_writes_reads_and_truncations_agree_with_a_vector() {
    let (group, _datanodes) = small_cluster().await;
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = group.client().await;
        let file = make(&cluster, &format!("f{seed}")).await;
        let mut model: Vec<u8> = Vec::new();
        for step in 0..150 {
            match rng.random_range(0..15) {
                0..6 => {
                    let at = rng.random_range(0..1_500_000);
                    let length = *[1, 100, 5000, 300_000].get(rng.random_range(0..4)).unwrap();
                    let data = vec![rng.random::<u8>(); rng.random_range(1..=length)];
                    model.resize(model.len().max(at + data.len()), 0);
                    model[at..at + data.len()].copy_from_slice(&data);
                    file.write_at(at as u64, data.into()).await.unwrap();
                }
                6 => drop(file.flush().await.unwrap()),
                7 => {
                    let size = rng.random_range(0..1_800_000);
                    model.resize(size, 0);
                    assert_eq!(file.truncate(size as u64).await.unwrap().size, size as u64);
                }
                8 => {
                    let data = vec![rng.random::<u8>(); rng.random_range(1..100_000)];
                    let at = file.append(data.clone().into()).await.unwrap();
                    assert_eq!(at, model.len() as u64);
                    model.extend_from_slice(&data);
                }
                9 => {
                    let (at, length) = (rng.random_range(0..1_800_000), rng.random_range(1..400_000));
                    let grow = rng.random();
                    file.clear_range(at as u64, length as u64, grow).await.unwrap();
                    if grow {
                        model.resize(model.len().max(at + length), 0);
                    }
                    let end = (at + length).min(model.len());
                    model[at.min(end)..end].fill(0);
                }
                10 => {
                    let (at, to) = (rng.random_range(0..1_800_000), rng.random_range(0..1_500_000));
                    let length = rng.random_range(1..400_000usize).min(model.len().saturating_sub(at));
                    let cloned = file.clone_range(at as u64, &file, to as u64, length as u64).await;
                    if at.abs_diff(to) < length {
                        assert_eq!(cloned.unwrap_err().code, ErrorCode::Invalid);
                    } else {
                        assert_eq!(cloned.unwrap(), length as u64);
                        if length > 0 {
                            model.resize(model.len().max(to + length), 0);
                            model.copy_within(at..at + length, to);
                        }
                    }
                }
                11 => {
                    let size = rng.random_range(0..1_800_000);
                    file.allocate(Some(size as u64)).await.unwrap();
                    model.resize(model.len().max(size), 0);
                }
                _ => {
                    let at = rng.random_range(0..2_000_000usize);
                    let length = rng.random_range(0..400_000usize);
                    let got = file.read_at(at as u64, length).await.unwrap();
                    let wanted = &model[at.min(model.len())..(at + length).min(model.len())];
                    assert!(got == wanted, "seed {seed} step {step}: read {length} at {at}");
                }
            }
            assert_eq!(file.attr().size, model.len() as u64, "seed {seed} step {step}");
        }
        let attr = file.sync().await.unwrap();
        assert_eq!((attr.size, file.dirty_bytes()), (model.len() as u64, 0));
        assert!(seen_by_others(&group, file.inode()).await == model, "seed {seed}");
        cluster.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_clone_sees_what_was_written_before_and_nothing_after() {
    let (group, datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let from = make(&cluster, "from").await;
    let to = make(&cluster, "to").await;
    from.write_at(0, Bytes::from_static(b"first words")).await.unwrap();
    to.write_at(0, Bytes::from_static(b"overwritten, kept")).await.unwrap();
    let stored = |datanodes: &[Datanode]| -> usize {
        datanodes[0].chunks.lock().unwrap().values().map(|chunk| chunk.len()).sum()
    };
    from.flush().await.unwrap();
    to.flush().await.unwrap();
    let before = stored(&datanodes);
    assert_eq!(from.clone_range(0, &to, 0, 100).await.unwrap(), 11);
    assert_eq!(stored(&datanodes), before, "no byte is moved");
    from.write_at(0, Bytes::from_static(b"FIRST")).await.unwrap();
    from.sync().await.unwrap();
    to.sync().await.unwrap();
    assert_eq!(&to.read_at(0, 100).await.unwrap()[..], b"first words, kept");
    assert_eq!(seen_by_others(&group, to.inode()).await, b"first words, kept");
    let copy = cluster.clone_file(&root(), to.inode(), ask("copy"), Some(42)).await.unwrap();
    assert_eq!((copy.size, copy.mtime_ns), (17, 42));
    assert_eq!(seen_by_others(&group, copy.inode).await, b"first words, kept");
}

#[tokio::test]
async fn a_sync_covers_what_was_there_before() {
    let (group, datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let on_disk = || datanodes.iter().map(|node| node.on_disk.load(Ordering::Relaxed)).sum::<u64>();
    let write = async |name: &str| {
        let file = make(&cluster, name).await;
        file.write_at(0, Bytes::from_static(b"not on disk yet")).await.unwrap();
        file.flush().await.unwrap()
    };
    let attr = write("closed").await;
    assert_eq!(on_disk(), 0);
    cluster.open(&root(), attr).sync().await.unwrap();
    assert_eq!(on_disk(), 15, "written through another open of the file");
    let attr = write("source").await;
    let copy = make(&cluster, "copy").await;
    cluster.open(&root(), attr).clone_range(0, &copy, 0, 15).await.unwrap();
    copy.sync().await.unwrap();
    assert_eq!(on_disk(), 30, "a copy is as durable as the chunks it shares");
    for (delegate, expected) in [(false, 45), (true, 60)] {
        let config =
            crate::Config { namenodes: group.addresses.clone(), delegate, ..crate::Config::default() };
        let cluster = Cluster::connect(config).await.unwrap();
        let open = make(&cluster, "open").await;
        open.sync().await.unwrap();
        let content = Bytes::from_static(b"not on disk yet");
        cluster.put_small(&root(), ask("open"), content, None, false).await.unwrap();
        // Two at once: neither returns before it is there.
        let (one, two) = futures::join!(
            async {
                open.sync().await.unwrap();
                on_disk()
            },
            async {
                open.sync().await.unwrap();
                on_disk()
            }
        );
        assert_eq!((one, two), (expected, expected), "put under a name of a file that is open");
    }
}

#[tokio::test]
async fn a_sync_covers_what_was_committed_before_the_rest_was_given_up() {
    let (group, datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let on_disk = || datanodes.iter().map(|node| node.on_disk.load(Ordering::Relaxed)).sum::<u64>();
    let file = make(&cluster, "f").await;
    file.write_at(0, Bytes::from_static(b"committed")).await.unwrap();
    file.flush().await.unwrap();
    file.write_at(9, Bytes::from_static(b", given up")).await.unwrap();
    file.abandon(ErrorCode::Io.because("the lock was lost"));
    assert_eq!(file.sync().await.unwrap_err().code, ErrorCode::Io);
    file.sync().await.unwrap();
    assert_eq!(on_disk(), 9);
    assert_eq!(seen_by_others(&group, file.inode()).await, b"committed");
}

/// Nobody has the replicas of such a chunk sealed, so whoever waits for that waits for ever.
#[tokio::test]
async fn a_sync_does_not_wait_for_a_sealed_chunk_that_no_file_names() {
    let (group, datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = make(&cluster, "f").await;
    file.write_at(0, Bytes::from(vec![1; 5 << 20])).await.unwrap();
    file.flush().await.unwrap();
    // Full chunks are sealed in the background.
    while cluster.status().await.unwrap().sealed_chunks == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    file.truncate(0).await.unwrap();
    file.write_at(0, Bytes::from_static(b"what stays")).await.unwrap();
    datanodes.iter().for_each(|datanode| datanode.sealed.store(false, Ordering::Relaxed));
    let synced = tokio::time::timeout(std::time::Duration::from_secs(30), file.sync()).await;
    synced.expect("the sync ends").unwrap();
    assert_eq!(seen_by_others(&group, file.inode()).await, b"what stays");
}

/// The replicas of the file's chunk can never be sealed: all of them lost what another file had at its end.
#[tokio::test]
async fn a_sync_takes_what_is_on_the_disks_of_a_chunk_that_cannot_be_sealed() {
    let (group, datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = make(&cluster, "f").await;
    // More than a chunk: the first one ends.
    file.write_at(0, Bytes::from(vec![1; 5 << 20])).await.unwrap();
    datanodes.iter().for_each(|datanode| datanode.sealed.store(false, Ordering::Relaxed));
    let limit = std::time::Duration::from_secs(2);
    assert!(tokio::time::timeout(limit, file.sync()).await.is_err(), "nobody says that it is on disk");
    datanodes[0].recovered.store(1 << 20, Ordering::Relaxed);
    assert!(tokio::time::timeout(limit, file.sync()).await.is_err(), "one replica is not all");
    datanodes[1].recovered.store(1 << 20, Ordering::Relaxed);
    let synced = tokio::time::timeout(std::time::Duration::from_secs(30), file.sync()).await;
    synced.expect("the sync ends").unwrap();
}

#[tokio::test]
async fn a_big_file_goes_through_and_comes_back() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = make(&cluster, "big").await;
    let content: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut at = 0;
    for piece in content.chunks(131_072) {
        file.write_at(at, Bytes::copy_from_slice(piece)).await.unwrap();
        at += piece.len() as u64;
    }
    file.flush().await.unwrap();
    assert!(seen_by_others(&group, file.inode()).await == content);
    let node = fs::NodeRef { inode: file.inode(), path: Bytes::new() };
    let layout = cluster.layout(&root(), node, false, 0, u64::MAX).await.unwrap();
    assert!(layout.extents.len() <= 30, "contiguous appends merge: {}", layout.extents.len());
    // Read where nothing was written, and past the end.
    assert_eq!(file.read_at(20_000_000, 10).await.unwrap().len(), 0);
    assert_eq!(file.read_at(19_999_990, 100).await.unwrap().len(), 10);
}

#[tokio::test]
async fn small_files_appear_whole_and_share_chunks() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let puts = (0..100u32).map(|i| {
        let cluster = cluster.clone();
        async move {
            let content = Bytes::from(vec![i as u8; i as usize * 50]);
            cluster.put_small(&root(), ask(&format!("s{i}")), content, Some(7), i % 10 == 0).await.unwrap()
        }
    });
    let attrs = futures::future::join_all(puts).await;
    for (i, attr) in attrs.iter().enumerate() {
        assert_eq!((attr.size, attr.mtime_ns), (i as u64 * 50, 7));
        assert!(seen_by_others(&group, attr.inode).await == vec![i as u8; i * 50]);
    }
    assert!(cluster.status().await.unwrap().open_chunks <= 4);
}

#[tokio::test]
async fn a_bad_replica_is_passed_over_and_reported() {
    for mood in [Mood::Rotten, Mood::Empty, Mood::Frozen] {
        let (group, datanodes) = small_cluster().await;
        let cluster = group.client().await;
        let content = Bytes::from(vec![5; 700_000]);
        let attr = cluster.put_small(&root(), ask("f"), content.clone(), None, false).await.unwrap();
        *datanodes[0].mood.lock().unwrap() = mood;
        // Replicas are tried in random order: sooner or later the bad one comes first.
        for reader in 0.. {
            assert!(reader < 100, "nobody reports one that is {mood:?}");
            assert!(seen_by_others(&group, attr.inode).await == content, "{mood:?}");
            if reader >= 8 && (mood == Mood::Frozen || !group.bad().is_empty()) {
                break;
            }
        }
    }
}

#[tokio::test]
async fn three_replicas_damaged_in_different_places_are_one_good_file() {
    let first = Datanode::start(Mood::Well).await;
    let second = Datanode::sharing(Mood::Well, Arc::clone(&first.chunks)).await;
    let third = Datanode::sharing(Mood::Well, Arc::clone(&first.chunks)).await;
    let datanodes = vec![first, second, third];
    datanodes.iter().for_each(|datanode| datanode.sealed.store(true, Ordering::Relaxed));
    let group = Group::start(1, &datanodes).await;
    let cluster = group.client().await;
    let content: Vec<u8> = (0..1_000_000u32).map(|i| (i / 77) as u8).collect();
    let attr = cluster.put_small(&root(), ask("f"), content.clone().into(), None, false).await.unwrap();
    for (datanode, bad) in datanodes.iter().zip([0b0110_1101_1011, 0b1101_1011_0110, 0b1011_0110_1101]) {
        *datanode.mood.lock().unwrap() = Mood::Bad(bad);
    }
    assert!(seen_by_others(&group, attr.inode).await == content);
    // A range no longer than a block may touch two of them.
    let file = group.client().await.open(&root(), attr);
    for (at, length) in [(65_000, 1000), (100, 65_536), (131_071, 2), (65_536, 65_536), (999_999, 1)] {
        assert!(file.read_at(at as u64, length).await.unwrap() == content[at..at + length], "{at}");
    }
    *datanodes[0].mood.lock().unwrap() = Mood::Bad(1);
    *datanodes[1].mood.lock().unwrap() = Mood::Bad(1);
    *datanodes[2].mood.lock().unwrap() = Mood::Bad(1);
    assert_eq!(file.read_at(0, 10).await.unwrap_err().code, ErrorCode::Corrupt);
    assert!(file.read_at(65_536, 10).await.unwrap() == content[65_536..65_546]);
}

#[tokio::test]
async fn a_replica_that_stalls_does_not_hold_up_a_read() {
    let (group, datanodes) = small_cluster().await;
    let content = Bytes::from(vec![5; 700_000]);
    let cluster = group.client().await;
    let attr = cluster.put_small(&root(), ask("f"), content.clone(), None, false).await.unwrap();
    let patient = crate::Config {
        namenodes: group.addresses.clone(),
        operation_timeout: std::time::Duration::from_secs(3600),
        read_timeout: std::time::Duration::from_secs(3600),
        ..crate::Config::default()
    };
    let cluster = Cluster::connect(patient).await.unwrap();
    let file = cluster.open(&root(), attr);
    for frozen in [0, 1] {
        *datanodes[frozen].mood.lock().unwrap() = Mood::Frozen;
        // With replicas asked in random order, at first, some of these meet the one that stalls.
        for _ in 0..40 {
            assert!(file.read_at(0, content.len()).await.unwrap() == content);
        }
        *datanodes[frozen].mood.lock().unwrap() = Mood::Well;
    }
    assert!(cluster.metrics().hedged_reads >= 1, "{:?}", cluster.metrics());
}

#[tokio::test]
async fn writing_goes_on_when_a_chain_fails() {
    let first = Datanode::start(Mood::FailsAt(200_000, 1)).await;
    let second = Datanode::sharing(Mood::Well, Arc::clone(&first.chunks)).await;
    let datanodes = vec![first, second];
    let group = Group::start(1, &datanodes).await;
    let cluster = group.client().await;
    let file = make(&cluster, "f").await;
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 1000) as u8).collect();
    for (i, piece) in content.chunks(50_000).enumerate() {
        file.write_at(i as u64 * 50_000, Bytes::copy_from_slice(piece)).await.unwrap();
    }
    datanodes.iter().for_each(|datanode| datanode.sealed.store(true, Ordering::Relaxed));
    file.sync().await.unwrap();
    assert!(cluster.metrics().chain_failures >= 1);
    assert!(seen_by_others(&group, file.inode()).await == content);
}

#[tokio::test]
async fn losing_the_session_is_reported_once() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = make(&cluster, "f").await;
    file.write_at(0, Bytes::from_static(b"committed")).await.unwrap();
    file.flush().await.unwrap();
    file.write_at(0, Bytes::from(vec![1; 2 << 20])).await.unwrap();
    file.inode.settle().await.unwrap();
    group.expire(group.seen().last().unwrap().0);
    let error = file.flush().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::SessionExpired);
    file.flush().await.unwrap();
    assert_eq!(&file.read_at(0, 100).await.unwrap()[..], b"committed");
    file.write_at(9, Bytes::from_static(b" again")).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(seen_by_others(&group, file.inode()).await, b"committed again");
}

#[tokio::test]
async fn everybody_who_has_the_file_open_hears_of_a_loss_once() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let one = make(&cluster, "f").await;
    let two = one.reopened();
    one.write_at(0, Bytes::from_static(b"lost")).await.unwrap();
    one.inode.abandon(ErrorCode::Io.because("on purpose"));
    let later = one.reopened();
    assert_eq!(one.sync().await.unwrap_err().code, ErrorCode::Io);
    one.sync().await.expect("it has been said");
    for _ in 0..2 {
        assert_eq!(two.close().await.unwrap_err().code, ErrorCode::Io);
    }
    assert_eq!(two.sync().await.unwrap_err().code, ErrorCode::Io, "said to the other one only");
    two.close().await.expect("it has been said");
    later.sync().await.expect("not open then");
}

#[tokio::test]
async fn everybody_who_has_something_open_hears_of_lost_names_once() {
    let (group, _datanodes) = small_cluster().await;
    let config = crate::Config { namenodes: group.addresses.clone(), delegate: true, ..Default::default() };
    let cluster = Cluster::connect(config).await.unwrap();
    let one = make(&cluster, "f").await;
    let (two, names) = (one.reopened(), cluster.names());
    cluster.engine().delegations.lose(ErrorCode::SessionExpired.because("on purpose"));
    assert_eq!(one.sync().await.unwrap_err().code, ErrorCode::SessionExpired);
    let later = two.reopened();
    assert_eq!(two.sync().await.unwrap_err().code, ErrorCode::SessionExpired, "said to the other one only");
    assert_eq!(names.sync().await.unwrap_err().code, ErrorCode::SessionExpired, "and to files only");
    one.sync().await.expect("it has been said");
    two.sync().await.expect("it has been said");
    names.sync().await.expect("it has been said");
    later.sync().await.expect("not open then");
}

#[tokio::test]
async fn what_is_being_written_takes_room() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = make(&cluster, "f").await;
    file.write_at(4096, Bytes::from(vec![1; 4096])).await.unwrap();
    assert_eq!((file.attr().size, file.attr().allocated), (8192, 4096), "or it would be taken for a hole");
}

#[tokio::test]
async fn two_files_of_one_inode_are_one() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let one = make(&cluster, "f").await;
    let two = cluster.open(&root(), one.attr());
    one.write_at(3, Bytes::from_static(b"def")).await.unwrap();
    assert_eq!(&two.read_at(0, 10).await.unwrap()[..], b"\0\0\0def");
    assert_eq!(two.attr().size, 6);
    // A time set after a write is not undone by the commit of that write.
    let at = fs::NodeRef { inode: one.inode(), path: Bytes::new() };
    let times = fs::SetAttr { at: Some(at), mtime_ns: Some(42), ..Default::default() };
    cluster.set_attr(&root(), times).await.unwrap();
    assert_eq!(one.flush().await.unwrap().mtime_ns, 42);
}

#[tokio::test]
async fn the_budget_bounds_what_is_buffered() {
    let (group, _datanodes) = small_cluster().await;
    let config = crate::Config {
        namenodes: group.addresses.clone(),
        dirty_bytes: 4 << 20,
        operation_timeout: std::time::Duration::from_secs(20),
        ..Default::default()
    };
    let cluster = Cluster::connect(config).await.unwrap();
    // Together these buffer more than the budget, and none enough to be sent by itself.
    let mut files = Vec::new();
    for i in 0..12 {
        let file = make(&cluster, &format!("f{i}")).await;
        file.write_at(0, Bytes::from(vec![i; 700_000])).await.unwrap();
        files.push(file);
    }
    for (i, file) in files.iter().enumerate() {
        file.flush().await.unwrap();
        assert!(seen_by_others(&group, file.inode()).await == vec![i as u8; 700_000]);
    }
}

#[tokio::test]
async fn pieces_and_layouts_of_many_files_take_bounded_memory() {
    let (group, _datanodes) = small_cluster().await;
    let config = crate::Config {
        namenodes: group.addresses.clone(),
        uncommitted_pieces: 200,
        layout_bytes: 20_000,
        commit_after: std::time::Duration::from_secs(3600),
        ..Default::default()
    };
    let cluster = Cluster::connect(config).await.unwrap();
    let engine = Arc::clone(cluster.engine());
    let mut files = Vec::new();
    for i in 0..20 {
        let file = make(&cluster, &format!("f{i}")).await;
        for piece in 0..50 {
            file.write_at(piece * 10, Bytes::from(vec![i + 1; 5])).await.unwrap();
            assert!(engine.spans() <= 2 * 200 + 1, "{} pieces are uncommitted", engine.spans());
        }
        files.push(file);
    }
    for file in &files {
        file.flush().await.unwrap();
    }
    assert_eq!(engine.spans(), 0);
    let known = || engine.layout_bytes.load(Ordering::Relaxed);
    let mut largest = 0;
    for (i, file) in files.iter().enumerate() {
        let content = file.read_at(0, 500).await.unwrap();
        assert!(content.chunks(10).all(|piece| piece[..5] == [i as u8 + 1; 5]));
        assert!(known() > 0);
        largest = largest.max(known());
    }
    assert!(largest <= 20_000, "layouts took {largest} bytes");
    drop(files);
    assert_eq!(known(), 0);
}

#[tokio::test]
async fn one_read_may_cross_pages_of_the_layout() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = make(&cluster, "f").await;
    let pieces = u64::from(cairn_proto::limits::MAX_LAYOUT_PAGE) + 100;
    // From the end, so that no two pieces are one run of a chunk.
    for piece in (0..pieces).rev() {
        file.write_at(piece * 8, Bytes::from(vec![piece as u8 | 1; 4])).await.unwrap();
    }
    file.flush().await.unwrap();
    let content = tokio::time::timeout(std::time::Duration::from_secs(30), file.read_at(0, 1 << 20));
    let content = content.await.expect("an answer").unwrap();
    assert_eq!(content.len() as u64, pieces * 8 - 4);
    for (piece, bytes) in content.chunks(8).enumerate() {
        assert!(bytes.iter().take(4).all(|&byte| byte == piece as u8 | 1), "piece {piece}");
        assert!(bytes.iter().skip(4).all(|&byte| byte == 0));
    }
}

/// A file in a directory that may hold so many bytes.
async fn under_quota(cluster: &Cluster, bytes: u64) -> File {
    let at = fs::NodeRef { inode: ROOT_INODE, path: "q".into() };
    let mkdir = fs::Mkdir { at: Some(at.clone()), mode: 0o755, ..Default::default() };
    cluster.mkdir(&root(), mkdir).await.unwrap();
    set_quota(cluster, bytes).await;
    make(cluster, "q/f").await
}

async fn set_quota(cluster: &Cluster, bytes: u64) {
    let at = fs::NodeRef { inode: ROOT_INODE, path: "q".into() };
    let ask = fs::SetQuota { at: Some(at), max_bytes: Some(bytes), ..Default::default() };
    cluster.set_quota(&root(), ask).await.unwrap();
}

#[tokio::test]
async fn bytes_over_a_quota_are_refused_once_and_loudly() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = under_quota(&cluster, 100_000).await;
    file.write_at(0, vec![1; 60_000].into()).await.unwrap();
    file.flush().await.unwrap();
    file.write_at(60_000, vec![2; 60_000].into()).await.unwrap();
    assert_eq!(file.sync().await.unwrap_err().code, ErrorCode::QuotaExceeded);
    file.flush().await.expect("it has been said");
    assert_eq!(file.attr().size, 60_000, "what was refused is not shown any longer");
    assert_eq!(seen_by_others(&group, file.inode()).await, vec![1; 60_000]);
    file.write_at(0, vec![3; 60_000].into()).await.unwrap();
    file.flush().await.expect("overwriting adds nothing");
}

#[tokio::test]
async fn who_wrote_hears_of_a_quota_even_if_somebody_else_had_it_committed() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = under_quota(&cluster, 10).await;
    file.write_at(0, vec![1; 11].into()).await.unwrap();
    assert_eq!(file.commit().await.unwrap_err().code, ErrorCode::QuotaExceeded);
    let more = file.write_at(11, vec![1; 1].into()).await.unwrap_err();
    assert_eq!(more.code, ErrorCode::QuotaExceeded, "no more is taken in");
    for _ in 0..2 {
        assert_eq!(file.close().await.unwrap_err().code, ErrorCode::QuotaExceeded);
    }
    assert_eq!(file.flush().await.unwrap_err().code, ErrorCode::QuotaExceeded);
    file.close().await.unwrap();
    set_quota(&cluster, 11).await;
    file.write_at(0, vec![1; 11].into()).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(file.append(vec![1; 1].into()).await.unwrap_err().code, ErrorCode::QuotaExceeded);
}

#[tokio::test]
async fn who_never_syncs_can_write_again_once_the_quota_has_room() {
    let (group, _datanodes) = small_cluster().await;
    let cluster = group.client().await;
    let file = under_quota(&cluster, 10).await;
    let other = file.reopened();
    file.write_at(0, vec![1; 11].into()).await.unwrap();
    assert_eq!(file.commit().await.unwrap_err().code, ErrorCode::QuotaExceeded);
    set_quota(&cluster, 11).await;
    let refused = file.write_at(0, vec![2; 11].into()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded, "what came before is lost");
    file.write_at(0, vec![2; 11].into()).await.expect("it has been said, and there is room");
    file.commit().await.unwrap();
    assert_eq!(seen_by_others(&group, file.inode()).await, vec![2; 11]);
    assert_eq!(file.sync().await.unwrap_err().code, ErrorCode::QuotaExceeded, "a write is no sync");
    file.sync().await.expect("it has been said");
    let refused = other.write_at(0, vec![3; 1].into()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded, "said to the other one only");
}

/// In a directory of the client's own a close does not wait for the bytes.
#[tokio::test]
async fn what_was_closed_waits_until_there_is_room() {
    let (group, _datanodes) = small_cluster().await;
    let namenodes = group.addresses.clone();
    let config = crate::Config { namenodes, delegate: true, ..crate::Config::default() };
    let cluster = Cluster::connect(config).await.unwrap();
    let at = Some(fs::NodeRef { inode: ROOT_INODE, path: Bytes::from_static(b"own") });
    let own = cluster.mkdir(&root(), fs::Mkdir { at, mode: 0o755, ..Default::default() }).await.unwrap();
    group.fill(true);
    let write = async |name: &str| {
        let at = Some(fs::NodeRef { inode: own.inode, path: name.to_owned().into() });
        let created = cluster.create(&root(), fs::CreateFile { at, ..ask(name) }).await.unwrap();
        let file = cluster.open(&root(), created.attr.unwrap());
        file.write_at(0, Bytes::from(name.to_owned())).await.unwrap();
        file
    };
    let first = write("first").await;
    first.close().await.unwrap();
    let second = write("second").await;
    assert_eq!(second.sync().await.unwrap_err().code, ErrorCode::NoSpace);
    let third = write("third").await;
    assert_eq!(third.close().await.unwrap_err().code, ErrorCode::NoSpace, "it is known now");
    group.fill(false);
    let files = [("first", first.inode()), ("second", second.inode()), ("third", third.inode())];
    drop((first, second, third));
    for (name, inode) in files {
        while seen_by_others(&group, inode).await != name.as_bytes() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// Its writer was told that all is well: whoever comes waits for it, and does not find an empty file.
#[tokio::test]
async fn a_directory_is_not_handed_back_before_what_was_closed_in_it_is_there() {
    let (group, datanodes) = small_cluster().await;
    let config = crate::Config {
        namenodes: group.addresses.clone(),
        delegate: true,
        operation_timeout: std::time::Duration::from_secs(1),
        stall_timeout: std::time::Duration::from_millis(200),
        ..crate::Config::default()
    };
    let cluster = Cluster::connect(config).await.unwrap();
    let at = |inode, name: &'static [u8]| Some(fs::NodeRef { inode, path: Bytes::from_static(name) });
    let ask_own = fs::Mkdir { at: at(ROOT_INODE, b"own"), mode: 0o755, ..Default::default() };
    let own = cluster.mkdir(&root(), ask_own).await.unwrap().inode;
    let be = |mood| datanodes.iter().for_each(|datanode| *datanode.mood.lock().unwrap() = mood);
    be(Mood::Frozen);
    let created = cluster.create(&root(), fs::CreateFile { at: at(own, b"f"), ..ask("f") }).await.unwrap();
    let file = cluster.open(&root(), created.attr.unwrap());
    file.write_at(0, Bytes::from_static(b"closed")).await.unwrap();
    file.close().await.unwrap();
    let other = group.client().await;
    let seen = tokio::spawn(async move {
        loop {
            match other.stat(&root(), at(ROOT_INODE, b"own/f").unwrap(), false).await {
                Ok(attr) => return attr.size,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    });
    cluster.engine().recalled(vec![own]);
    // Longer than the client waits for its bytes.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    be(Mood::Well);
    assert_eq!(seen.await.unwrap(), 6);
}

#[tokio::test]
async fn attributes_of_an_own_file_follow_what_is_set_after_its_last_name_went() {
    let (group, _datanodes) = small_cluster().await;
    let namenodes = group.addresses.clone();
    let config = crate::Config { namenodes, delegate: true, ..crate::Config::default() };
    let cluster = Cluster::connect(config).await.unwrap();
    let at =
        |inode, name: &'static str| Some(fs::NodeRef { inode, path: Bytes::from_static(name.as_bytes()) });
    let ask_own = fs::Mkdir { at: at(ROOT_INODE, "own"), mode: 0o755, ..Default::default() };
    let own = cluster.mkdir(&root(), ask_own).await.unwrap().inode;
    let created = cluster.create(&root(), fs::CreateFile { at: at(own, "f"), ..ask("f") }).await.unwrap();
    let file = cluster.open(&root(), created.attr.unwrap());
    cluster.open_inode(&root(), file.inode()).await.unwrap();
    cluster.unlink(&root(), at(own, "f").unwrap()).await.unwrap();
    let chmod = fs::SetAttr { at: at(file.inode(), ""), mode: Some(0o600), ..Default::default() };
    assert_eq!(cluster.set_attr(&root(), chmod).await.unwrap().mode & 0o777, 0o600);
    assert_eq!(file.attr().mode & 0o777, 0o600);
}
