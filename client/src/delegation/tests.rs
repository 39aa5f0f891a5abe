//! What happens here is what the namenode makes of it: random changes, in the tree and in the real state machine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_metadata::memory::MemoryStore;
use cairn_metadata::store::{Durability, Store};
use cairn_proto::fs::{FileKind, NodeRef, RenameMode, mutation::Op, outcome};
use cairn_proto::{ErrorCode, ROOT_INODE, Result, fs};
use proptest::prelude::*;
use tokio::time::Instant;

use super::Delegations;
use super::tree::{Place, Seed, Tree};
use crate::session::Session;

const OWN: &str = "own";

/// Directories and names are chosen by number, so that operations meet.
#[derive(Debug, Clone)]
enum Step {
    Make { kind: FileKind, at: (usize, u8), mode: u32 },
    Link { inode: usize, at: (usize, u8) },
    Unlink { at: (usize, u8) },
    Rmdir { at: (usize, u8) },
    Rename { from: (usize, u8), to: (usize, u8), no_replace: bool },
    SetAttr { inode: usize, ask: Box<fs::SetAttr> },
}

fn place() -> impl Strategy<Value = (usize, u8)> {
    (0usize..4, 0u8..5)
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        3 => Just(FileKind::File),
        3 => Just(FileKind::Directory),
        1 => Just(FileKind::Symlink),
        1 => Just(FileKind::Fifo)
    ];
    let times = (any::<bool>(), any::<bool>(), prop::option::of(0i64..9_000), prop::option::of(0i64..9_000));
    let owners = (prop::option::of(0u32..3), prop::option::of(0u32..3), prop::option::of(0u32..0o2000));
    let ask = (times, owners).prop_map(|((atime_now, mtime_now, atime_ns, mtime_ns), (uid, gid, mode))| {
        Box::new(fs::SetAttr {
            uid,
            gid,
            mode,
            atime_now,
            mtime_now,
            atime_ns,
            mtime_ns,
            ..Default::default()
        })
    });
    prop_oneof![
        6 => (kind, place(), 0u32..0o2000).prop_map(|(kind, at, mode)| Step::Make { kind, at, mode }),
        2 => (0usize..8, place()).prop_map(|(inode, at)| Step::Link { inode, at }),
        2 => place().prop_map(|at| Step::Unlink { at }),
        2 => place().prop_map(|at| Step::Rmdir { at }),
        4 => (place(), place(), any::<bool>())
            .prop_map(|(from, to, no_replace)| Step::Rename { from, to, no_replace }),
        2 => (0usize..8, ask).prop_map(|(inode, ask)| Step::SetAttr { inode, ask }),
    ]
}

/// The tree beside a namenode that is told of everything.
struct Pair {
    tree: Tree,
    store: MemoryStore,
    session: u64,
    seq: u64,
    root: u64,
    next: u64,
    now: i64,
    directories: Vec<u64>,
    inodes: Vec<u64>,
}

fn node((directory, name): &Place) -> Option<NodeRef> {
    Some(NodeRef { inode: *directory, path: name.clone() })
}

impl Pair {
    fn new() -> Pair {
        let mut pair = Pair {
            tree: Tree::default(),
            store: MemoryStore::default(),
            session: 0,
            seq: 0,
            root: 0,
            next: 0,
            now: 10_000,
            directories: Vec::new(),
            inodes: Vec::new(),
        };
        let form = fs::FormCluster { cluster_id: "c".into(), default_replication: 3, ..Default::default() };
        pair.apply(Op::FormCluster(form));
        if let outcome::Result::Session(opened) = pair.apply(Op::OpenSession(fs::OpenSession::default())) {
            pair.session = opened.session;
        }
        let place = (ROOT_INODE, Bytes::from_static(OWN.as_bytes()));
        let ask = fs::Mkdir { at: node(&place), mode: 0o755, delegate: true, ..Default::default() };
        if let outcome::Result::Attr(attr) = pair.apply(Op::Mkdir(ask)) {
            pair.root = attr.inode;
            pair.directories.push(attr.inode);
            pair.tree.add_root(place, attr);
        }
        if let outcome::Result::Reserved(range) =
            pair.apply(Op::ReserveInodes(fs::ReserveInodes { count: 1000 }))
        {
            pair.next = range.first;
        }
        pair
    }

    fn apply(&mut self, op: Op) -> outcome::Result {
        self.seq += u64::from(self.session != 0);
        let command = fs::Command {
            session: self.session,
            seq: self.seq,
            acked: 0,
            cred: Some(fs::Cred::default()),
            mutation: Some(fs::Mutation { op: Some(op) }),
        };
        let batch = fs::CommandBatch { time_ns: self.now, commands: vec![command] };
        let mut outcomes = Vec::new();
        let applied = self.store.write(Durability::Applied, &mut |txn| {
            outcomes = cairn_metadata::apply(txn, &batch)?;
            Ok(())
        });
        applied.unwrap();
        outcomes.remove(0).result.unwrap()
    }

    /// Tells the namenode of a change; its code if it refuses.
    fn tell(&mut self, inode: u64, op: Op) -> Option<u32> {
        let deed = fs::Deed { time_ns: self.now, inode, mutation: Some(fs::Mutation { op: Some(op) }) };
        match self.apply(Op::Series(fs::Series { deeds: vec![deed] })) {
            outcome::Result::Series(mut done) => match done.outcomes.remove(0).result.unwrap() {
                outcome::Result::Error(error) => Some(error.code),
                _ => None,
            },
            other => panic!("{other:?}"),
        }
    }

    fn place(&self, (directory, name): (usize, u8)) -> Place {
        let directory = self.directories[directory % self.directories.len()];
        (directory, Bytes::from(format!("n{name}")))
    }

    fn run(&mut self, step: Step) {
        self.now += 7;
        let now = self.now;
        let (here, there): (Result<()>, Option<u32>) = match step {
            Step::Make { kind, at, mode } => {
                let place = self.place(at);
                let inode = self.next;
                let target =
                    if kind == FileKind::Symlink { Bytes::from_static(b"elsewhere") } else { Bytes::new() };
                let shown = if kind == FileKind::Symlink { 0o777 } else { mode };
                let seed = Seed {
                    inode,
                    kind,
                    mode: shown,
                    uid: 7,
                    gid: 8,
                    replication: if matches!(kind, FileKind::File | FileKind::Fifo) { 3 } else { 0 },
                    target: target.clone(),
                    ..Seed::default()
                };
                let made = self.tree.make(&place, seed, now);
                let (at, uid, gid) = (node(&place), 7, 8);
                let told = self.tell(
                    inode,
                    match kind {
                        FileKind::Directory => {
                            Op::Mkdir(fs::Mkdir { at, mode, uid, gid, delegate: true, ..Default::default() })
                        }
                        FileKind::Symlink => Op::Symlink(fs::Symlink { at, target, uid, gid }),
                        FileKind::Fifo => Op::Mknod(fs::Mknod {
                            at,
                            kind: kind.into(),
                            mode,
                            uid,
                            gid,
                            ..Default::default()
                        }),
                        _ => Op::Create(fs::CreateFile {
                            at,
                            mode,
                            uid,
                            gid,
                            exclusive: true,
                            ..Default::default()
                        }),
                    },
                );
                if made.is_ok() {
                    self.next += 1;
                    self.inodes.push(inode);
                    if kind == FileKind::Directory {
                        self.directories.push(inode);
                    }
                }
                (made.map(drop), told)
            }
            Step::Link { inode, at } => {
                let place = self.place(at);
                let Some(&inode) = self.inodes.get(inode) else { return };
                if !self.tree.may_link(inode, place.0) {
                    return;
                }
                let done = self.tree.link(inode, &place, now);
                let from = Some(NodeRef { inode, path: Bytes::new() });
                (done.map(drop), self.tell(0, Op::Link(fs::Link { from, at: node(&place) })))
            }
            Step::Unlink { at } => {
                let place = self.place(at);
                let done = self.tree.unlink(&place, now);
                (done.map(drop), self.tell(0, Op::Unlink(fs::Unlink { at: node(&place) })))
            }
            Step::Rmdir { at } => {
                let place = self.place(at);
                let done = self.tree.rmdir(&place, now);
                (done.map(drop), self.tell(0, Op::Rmdir(fs::Rmdir { at: node(&place) })))
            }
            Step::Rename { from, to, no_replace } => {
                let (from, to) = (self.place(from), self.place(to));
                if !self.tree.may_move(&from, &to) {
                    return;
                }
                let mode = if no_replace { RenameMode::NoReplace } else { RenameMode::Replace };
                let done = self.tree.rename(&from, &to, mode, now);
                let ask = fs::Rename { from: node(&from), to: node(&to), mode: mode.into() };
                (done.map(drop), self.tell(0, Op::Rename(ask)))
            }
            Step::SetAttr { inode, ask } => {
                let all = [&self.directories[..], &self.inodes[..]].concat();
                let inode = all[inode % all.len()];
                let ask = fs::SetAttr { at: Some(NodeRef { inode, path: Bytes::new() }), ..*ask };
                let done = self.tree.set_attr(inode, &ask, now);
                (done.map(drop), self.tell(0, Op::SetAttr(ask)))
            }
        };
        // What is gone in the tree is not a directory of the session's any more for the namenode either.
        self.directories.retain(|&inode| self.tree.is_directory(inode));
        self.inodes.retain(|&inode| self.tree.node(inode).is_some());
        assert_eq!(here.err().map(|error| error.code as u32), there);
    }

    /// Everything below a directory, as the namenode has it.
    fn compare(&self, directory: u64) {
        let at = Some(NodeRef { inode: directory, path: Bytes::new() });
        let ask = fs::query::Op::List(fs::ListDirectory { at, ..Default::default() });
        let mut there = None;
        let read = self.store.read(&mut |view| {
            let query = fs::Query { op: Some(ask.clone()) };
            there = cairn_metadata::answer_to(view, self.session, &fs::Cred::default(), &query)?.result;
            Ok(())
        });
        read.unwrap();
        let Some(fs::answer::Result::Listing(mut there)) = there else { panic!("{there:?}") };
        let here = self.tree.list(directory, b"", 1000).unwrap();
        let entries = there.entries.iter_mut().filter_map(|entry| entry.attr.as_mut());
        entries.chain(there.directory.as_mut()).for_each(|attr| attr.version = 0);
        let mut own = here.clone();
        own.entries.iter_mut().filter_map(|entry| entry.attr.as_mut()).for_each(|attr| attr.version = 0);
        own.directory.iter_mut().for_each(|attr| attr.version = 0);
        assert_eq!(own, there);
        for entry in here.entries.iter().filter_map(|entry| entry.attr) {
            if entry.kind() == FileKind::Directory {
                self.compare(entry.inode);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_and_the_namenode_never_differ(steps in prop::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.run(step);
        }
        pair.compare(pair.root);
        let wrong = {
            let mut wrong = Vec::new();
            pair.store.read(&mut |view| {
                wrong = cairn_metadata::check::check(view)?;
                Ok(())
            }).unwrap();
            wrong
        };
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
    }
}

fn tree_of(directories: &[(u64, u64, &'static str)]) -> Tree {
    let mut tree = Tree::default();
    let attr = |inode| fs::Attr { inode, kind: FileKind::Directory.into(), nlink: 2, ..Default::default() };
    for &(parent, inode, name) in directories {
        let place = (parent, Bytes::from_static(name.as_bytes()));
        if tree.is_directory(parent) {
            let seed = Seed { inode, kind: FileKind::Directory, ..Seed::default() };
            tree.make(&place, seed, 1).unwrap();
        } else {
            tree.add_root(place, attr(inode));
        }
    }
    tree
}

#[test]
fn whoever_comes_gets_what_is_below_and_what_is_around() {
    let mut tree = tree_of(&[(1, 10, "a"), (10, 11, "b"), (11, 12, "c"), (1, 20, "d")]);
    assert_eq!(tree.part_with(&[11], true), [10, 11, 12]);
    assert!(tree.is_leaving(12) && !tree.is_leaving(20));
    assert!(tree.part_with(&[11], true).is_empty(), "it is on its way already");
    assert_eq!(tree.part_with(&[99, 20], false), [20]);
}

#[test]
fn what_is_left_below_a_directory_that_is_gone_is_found_by_its_place() {
    let mut tree = tree_of(&[(1, 10, "a"), (10, 11, "b")]);
    tree.make(
        &(10, Bytes::from_static(b"f")),
        Seed { inode: 12, kind: FileKind::File, ..Seed::default() },
        1,
    )
    .unwrap();
    assert_eq!(tree.part_with(&[10], false), [10]);
    let mut gone = tree.forget(&[10]);
    gone.sort_unstable();
    assert_eq!(gone, [10, 12]);
    let place = (10, Bytes::from_static(b"b"));
    assert_eq!(tree.root_at(&place), Some(11));
    tree.root_moved(&place, (1, Bytes::from_static(b"c")), 2);
    assert_eq!((tree.root_at(&place), tree.root_at(&(1, Bytes::from_static(b"c")))), (None, Some(11)));
    let place = (1, Bytes::from_static(b"c"));
    tree.root_moved(&place, place.clone(), 3);
    assert_eq!(tree.root_at(&place), Some(11), "moved onto itself it stays");
    assert_eq!(tree.root_removed(&place), Some(11));
    assert!(tree.is_empty());
}

#[test]
fn a_directory_is_idle_only_with_those_around_it() {
    let mut tree = tree_of(&[(1, 10, "a"), (10, 11, "b"), (1, 20, "d")]);
    tree.used(10, 100);
    assert_eq!(tree.idle_since(50), [20]);
    tree.used(10, 10);
    tree.used(11, 100);
    assert_eq!(tree.idle_since(50), [10, 20]);
    tree.used(11, 10);
    assert_eq!(tree.idle_since(50), [10, 11, 20]);
}

#[test]
fn a_directory_that_still_has_something_stays() {
    let mut tree = tree_of(&[(1, 10, "a"), (10, 11, "b"), (11, 12, "c")]);
    let refused = tree.rmdir(&(10, Bytes::from_static(b"b")), 5).unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotEmpty);
}

#[tokio::test]
async fn a_deed_that_comes_after_its_session_is_refused_and_in_nobodys_way() {
    let delegations = Delegations::new(true, Duration::from_secs(30));
    // Whoever does so looked when there was a session still.
    let op = Op::HandBack(fs::HandBack { directories: vec![7] });
    let refused = delegations.perform(1, op).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SessionExpired);
    let close = Op::Close(fs::CloseInodes { inodes: vec![7] });
    delegations.lock().push(1, 0, close);
    assert!(!delegations.is_busy());
    delegations.settle().await.unwrap();
    delegations.admit().await.unwrap();
}

/// Has something promised in a new session that is not done yet.
fn promise(delegations: &Delegations, number: u64) -> Arc<Session> {
    let session = Session::new(number, Instant::now());
    let mut state = delegations.lock();
    state.session = Some(session.clone());
    state.push(1, 0, Op::Close(fs::CloseInodes { inodes: vec![7] }));
    session
}

#[tokio::test]
async fn what_is_lost_with_the_session_fails_the_next_sync() {
    let delegations = Delegations::new(true, Duration::from_secs(30));
    let session = promise(&delegations, 9);
    let (one, other) = (delegations.listen(), delegations.listen());
    let end = async { session.expire() };
    let (first, second, ()) = tokio::join!(delegations.flush(&one), delegations.flush(&other), end);
    assert_eq!(first.unwrap_err().code, ErrorCode::SessionExpired);
    assert_eq!(second.unwrap_err().code, ErrorCode::SessionExpired, "both waited for it");
    delegations.flush(&one).await.expect("it has been said");
    delegations.flush(&other).await.expect("it has been said");
    // Nobody waits when it is lost; who only has to come after it does not take the word from who asks.
    promise(&delegations, 10).expire();
    assert!(!delegations.is_busy());
    delegations.until_told().await.unwrap();
    assert_eq!(delegations.flush(&one).await.unwrap_err().code, ErrorCode::SessionExpired);
    delegations.flush(&one).await.expect("it has been said");
}

#[tokio::test]
async fn what_is_answered_after_its_session_ended_counts_as_lost() {
    let delegations = Delegations::new(true, Duration::from_secs(30));
    let heard = delegations.listen();
    let session = promise(&delegations, 9);
    let batch = delegations.lock().take();
    session.expire();
    let outcomes = vec![fs::Outcome { result: Some(outcome::Result::Nothing(fs::Nothing {})) }];
    let done = outcome::Result::Series(fs::SeriesOutcome { outcomes, hand_back: true });
    assert!(!delegations.conclude(&session, batch, Ok(done)), "there is nothing to hand back");
    assert_eq!(delegations.figures(), (0, 0, 1));
    assert_eq!(delegations.flush(&heard).await.unwrap_err().code, ErrorCode::SessionExpired);
    promise(&delegations, 10);
    assert_eq!(delegations.figures(), (0, 1, 2));
}

#[tokio::test]
async fn everybody_who_has_something_open_hears_of_lost_names_once() {
    let delegations = Delegations::new(true, Duration::from_secs(30));
    let (one, two) = (delegations.listen(), delegations.listen());
    promise(&delegations, 9).expire();
    let untold = delegations.listen();
    assert_eq!(delegations.flush(&one).await.unwrap_err().code, ErrorCode::SessionExpired);
    let later = delegations.listen();
    for heard in [&two, &untold] {
        let told = delegations.flush(heard).await;
        assert_eq!(told.unwrap_err().code, ErrorCode::SessionExpired, "said to another one only");
        delegations.flush(heard).await.expect("it has been said");
    }
    delegations.flush(&later).await.expect("not open then");
    assert_eq!(delegations.settle().await.unwrap_err().code, ErrorCode::SessionExpired);
}
