use std::ops::ControlFlow;

use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    ClearRange, Discard, FileKind, Link, ListQuotas, OpenInode, PurgeTrash, Rename, RenameMode, Rmdir,
    SetAttr, SetQuota, SetTrash, StatFs, TreeUsage, Unlink,
};
use cairn_proto::store::{Inode, Meta};
use prost::Message;

use super::*;
use crate::memory::Tables;
use crate::store::{Table, Txn};

impl World {
    fn limit(&mut self, path: &str, names: Option<u64>, bytes: Option<u64>) -> Result<TreeUsage, Error> {
        let ask = SetQuota { at: at(path), max_names: names, max_bytes: bytes, ..SetQuota::default() };
        match self.run(Op::SetQuota(ask))? {
            outcome::Result::Usage(usage) => Ok(usage),
            other => panic!("{other:?}"),
        }
    }

    fn counts(&self, path: &str) -> (u64, u64) {
        let tree = self.usage(path).unwrap().tree.unwrap();
        (tree.names, tree.bytes)
    }

    /// A file of so many bytes.
    pub(super) fn filled(&mut self, path: &str, bytes: u64) -> Result<u64, Error> {
        let inode = self.create(path)?.inode;
        let chunk = self.allocate();
        self.commit(inode, vec![extent(0, chunk, 0, bytes)])?;
        Ok(inode)
    }

    fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> Result<(), Error> {
        self.run(Op::Rename(Rename { from: at(from), to: at(to), mode: mode.into() })).map(drop)
    }

    fn unlink(&mut self, path: &str) {
        self.run(Op::Unlink(Unlink { at: at(path) })).unwrap();
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code, ErrorCode::QuotaExceeded, "{error}");
    error.to_string()
}

#[test]
fn names_and_bytes_are_limited_and_the_refusal_names_the_directory() {
    let mut world = World::new();
    world.mkdir("a").unwrap();
    world.mkdir("a/q").unwrap();
    world.limit("a/q", Some(2), Some(100)).unwrap();
    let file = world.filled("a/q/f", 60).unwrap();
    world.mkdir("a/q/d").unwrap();
    let said = refused(world.create("a/q/d/g"));
    assert!(said.contains("/a/q would have 3 names of at most 2: quota exceeded (delete"), "{said}");
    let chunk = world.allocate();
    let said = refused(world.commit(file, vec![extent(60, chunk, 0, 41)]));
    assert!(said.contains("/a/q would hold 101 bytes of at most 100"), "{said}");
    world.commit(file, vec![extent(60, chunk, 0, 40)]).unwrap();
    world.commit(file, vec![extent(0, chunk, 0, 40)]).expect("overwriting adds nothing");
    assert_eq!((world.counts("a/q"), world.counts("a"), world.counts("")), ((2, 100), (3, 100), (4, 100)));
    world.assert_sound();
}

#[test]
fn what_is_over_its_limit_only_may_not_grow() {
    let mut world = World::new();
    world.mkdir("q").unwrap();
    let file = world.filled("q/f", 60).unwrap();
    world.create("q/g").unwrap();
    let shown = world.limit("q", Some(1), Some(10)).unwrap();
    assert_eq!((shown.names, shown.bytes, &shown.path[..]), (2, 60, &b"/q"[..]));
    let chunk = world.allocate();
    refused(world.commit(file, vec![extent(60, chunk, 0, 1)]));
    world.commit(file, vec![extent(0, chunk, 0, 60)]).unwrap();
    world.rename("q/f", "q/h", RenameMode::NoReplace).unwrap();
    let punch = ClearRange { inode: file, offset: 0, length: 20, ..ClearRange::default() };
    world.run(Op::ClearRange(punch)).unwrap();
    world.run(Op::SetAttr(SetAttr { at: at("q/h"), size: Some(30), ..SetAttr::default() })).unwrap();
    assert_eq!(world.counts("q"), (2, 10));
    world.run(Op::SetAttr(SetAttr { at: at("q/h"), size: Some(1 << 40), ..SetAttr::default() })).unwrap();
    world.unlink("q/g");
    world.unlink("q/h");
    assert_eq!(world.counts("q"), (0, 0));
    world.assert_sound();
}

#[test]
fn the_nearest_and_the_farthest_quota_both_hold() {
    let mut world = World::new();
    world.mkdir("a").unwrap();
    world.mkdir("a/b").unwrap();
    world.limit("a", Some(3), None).unwrap();
    world.limit("a/b", Some(5), None).unwrap();
    world.create("a/b/1").unwrap();
    world.create("a/b/2").unwrap();
    assert!(refused(world.create("a/b/3")).contains("/a would"));
    let limits = world.usage("a/b").unwrap().limits;
    let paths: Vec<&[u8]> = limits.iter().map(|limit| &limit.path[..]).collect();
    assert_eq!(paths, [&b"/a/b"[..], b"/a"]);
    let ask = SetQuota { at: at("a"), clear_names: true, ..SetQuota::default() };
    world.run(Op::SetQuota(ask)).unwrap();
    world.create("a/b/3").unwrap();
    match world.query(query::Op::ListQuotas(ListQuotas::default())).unwrap() {
        answer::Result::Quotas(page) => {
            assert!(page.end && page.trees.len() == 1 && page.trees[0].path == "/a/b", "{page:?}");
        }
        other => panic!("{other:?}"),
    }
    world.assert_sound();
}

#[test]
fn a_move_is_checked_where_it_goes_and_is_whole_or_nothing() {
    let mut world = World::new();
    for path in ["from", "from/tree", "to"] {
        world.mkdir(path).unwrap();
    }
    world.filled("from/tree/f", 50).unwrap();
    world.filled("to/old", 30).unwrap();
    world.limit("to", Some(3), Some(60)).unwrap();
    assert!(refused(world.rename("from/tree", "to/tree", RenameMode::Replace)).contains("80 bytes"));
    assert_eq!((world.counts("from"), world.counts("to")), ((2, 50), (1, 30)));
    world.rename("from/tree/f", "to/old", RenameMode::Replace).expect("what is replaced makes room");
    assert_eq!((world.counts("from"), world.counts("to")), ((1, 0), (1, 50)));
    world.filled("from/big", 70).unwrap();
    refused(world.rename("from/big", "to/old", RenameMode::Exchange));
    world.filled("from/small", 10).unwrap();
    world.rename("from/small", "to/old", RenameMode::Exchange).unwrap();
    assert_eq!((world.counts("from"), world.counts("to")), ((3, 120), (1, 10)));
    world.rename("to", "from/tree/to", RenameMode::Replace).expect("a quota moves with its directory");
    assert!(refused(world.filled("from/tree/to/x", 51)).contains("/from/tree/to would"));
    world.assert_sound();
}

#[test]
fn a_file_with_several_names_is_counted_in_its_oldest_directory() {
    let mut world = World::new();
    world.mkdir("old").unwrap();
    world.mkdir("new").unwrap();
    world.filled("new/f", 50).unwrap();
    world.limit("old", None, Some(10)).unwrap();
    let link = |from: &str, to: &str| Op::Link(Link { from: at(from), at: at(to) });
    refused(world.run(link("new/f", "old/f")));
    world.limit("old", None, Some(50)).unwrap();
    world.run(link("new/f", "old/f")).unwrap();
    world.run(link("new/f", "old/g")).unwrap();
    assert_eq!((world.counts("old"), world.counts("new")), ((2, 50), (1, 0)));
    world.unlink("old/f");
    world.rename("old/g", "new/g", RenameMode::Replace).unwrap();
    assert_eq!((world.counts("old"), world.counts("new"), world.counts("")), ((0, 0), (2, 50), (4, 50)));
    world.unlink("new/f");
    world.unlink("new/g");
    assert_eq!(world.counts(""), (2, 0));
    world.assert_sound();
}

/// A file of 50 bytes with a name in `a`, which counts them, and one in `b`, where only 10 may lie.
fn shared() -> World {
    let mut world = World::new();
    world.mkdir("a").unwrap();
    world.mkdir("b").unwrap();
    world.filled("a/f", 50).unwrap();
    world.run(Op::Link(Link { from: at("a/f"), at: at("b/g") })).unwrap();
    world.limit("b", None, Some(10)).unwrap();
    world
}

#[test]
fn taking_a_name_away_is_never_refused() {
    let mut world = shared();
    world.unlink("a/f");
    assert_eq!((world.counts("a"), world.counts("b")), ((0, 0), (1, 50)));
    refused(world.filled("b/h", 1));
    world.assert_sound();
    let mut world = shared();
    world.filled("a/other", 5).unwrap();
    world.rename("a/other", "a/f", RenameMode::Replace).expect("what is replaced loses a name");
    assert_eq!((world.counts("a"), world.counts("b")), ((1, 5), (1, 50)));
    world.assert_sound();
    let mut world = shared();
    world.run(Op::SetTrash(SetTrash { keep_ns: 1 << 60 })).unwrap();
    world.run(Op::Discard(Discard { at: at("a") })).unwrap();
    let item = world.trash(false).unwrap().items[0].item;
    world.run(Op::PurgeTrash(PurgeTrash { item })).unwrap();
    assert_eq!(world.counts("b"), (1, 50));
    world.assert_sound();
}

#[test]
fn what_is_put_where_a_name_was_lost_is_checked() {
    let mut world = World::new();
    for path in ["oldest", "x", "q"] {
        world.mkdir(path).unwrap();
    }
    world.rename("x", "q/x", RenameMode::Replace).unwrap();
    world.filled("q/x/f", 50).unwrap();
    world.run(Op::Link(Link { from: at("q/x/f"), at: at("q/g") })).unwrap();
    world.filled("oldest/h", 80).unwrap();
    world.limit("q", None, Some(60)).unwrap();
    // For a moment the bytes of `f` belong to `q`; then they lie in the oldest directory.
    refused(world.rename("q/x/f", "oldest/h", RenameMode::Exchange));
    world.limit("q", None, Some(80)).unwrap();
    world.rename("q/x/f", "oldest/h", RenameMode::Exchange).unwrap();
    assert_eq!((world.counts("q"), world.counts("oldest")), ((3, 80), (1, 50)));
    world.assert_sound();
}

#[test]
fn a_file_without_a_name_is_nobodys() {
    let mut world = World::new();
    world.mkdir("q").unwrap();
    world.limit("q", None, Some(50)).unwrap();
    let file = world.filled("q/f", 50).unwrap();
    world.run(Op::Open(OpenInode { inode: file })).unwrap();
    world.unlink("q/f");
    assert_eq!(world.counts("q"), (0, 0));
    let chunk = world.allocate();
    world.commit(file, vec![extent(50, chunk, 0, 50)]).unwrap();
    world.assert_sound();
}

#[test]
fn one_file_of_a_commit_is_refused_alone() {
    let mut world = World::new();
    world.mkdir("q").unwrap();
    world.limit("q", Some(1), Some(10)).unwrap();
    let chunk = world.allocate();
    let file = |path: &str, offset| FileCommit {
        target: Some(file_commit::Target::Create(CreateFile { at: at(path), ..CreateFile::default() })),
        extents: vec![extent(0, chunk, offset, 10)],
        ..FileCommit::default()
    };
    let files = vec![file("q/a", 0), file("q/b", 10), file("c", 20)];
    let outcome::Result::Commit(done) = world.run(Op::Commit(CommitExtents { files })).unwrap() else {
        panic!("not a commit")
    };
    let refused = done.files.iter().map(|file| matches!(file.result, Some(file_outcome::Result::Error(_))));
    assert_eq!(refused.collect::<Vec<_>>(), [false, true, false]);
    assert!(world.stat("q/b").is_err());
    assert_eq!(world.counts("q"), (1, 10));
    world.assert_sound();
}

#[test]
fn quotas_are_roots_to_set_and_go_with_their_directory() {
    let mut world = World::new();
    world.mkdir("q").unwrap();
    world.create("f").unwrap();
    world.cred = user(7);
    assert_eq!(world.limit("q", Some(1), None).unwrap_err().code, ErrorCode::NotPermitted);
    assert!(world.query(query::Op::ListQuotas(ListQuotas::default())).is_err());
    world.cred = root();
    assert_eq!(world.limit("f", Some(1), None).unwrap_err().code, ErrorCode::NotDirectory);
    let inode = world.limit("q", Some(0), None).unwrap().inode;
    refused(world.create("q/f"));
    let space = |world: &World, inode| match world.query(query::Op::StatFs(StatFs { inode })).unwrap() {
        answer::Result::Fs(stats) => stats.limits.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!((space(&world, inode), space(&world, ROOT_INODE), space(&world, 0)), (1, 0, 0));
    world.run(Op::Rmdir(Rmdir { at: at("q") })).unwrap();
    assert_eq!(space(&world, inode), 0);
    world.assert_sound();
}

#[test]
fn a_refused_command_is_remembered_as_refused() {
    let mut world = World::new();
    world.mkdir("q").unwrap();
    world.limit("q", Some(0), None).unwrap();
    let create = Op::Create(CreateFile { at: at("q/f"), mode: 0o644, ..CreateFile::default() });
    let first = world.submit(world.session, 100, 0, create.clone());
    let more = SetQuota { at: at("q"), max_names: Some(1), ..SetQuota::default() };
    opened(world.submit(world.session, 101, 0, Op::SetQuota(more))).unwrap();
    assert_eq!(world.submit(world.session, 100, 0, create), first);
    assert!(world.stat("q/f").is_err());
}

#[test]
fn a_store_of_an_earlier_version_is_counted_once() {
    let mut world = World::new();
    for path in ["a", "a/b", "c"] {
        world.mkdir(path).unwrap();
    }
    world.filled("a/b/f", 40).unwrap();
    world.filled("c/g", 5).unwrap();
    let open = world.filled("c/open", 3).unwrap();
    world.run(Op::Link(Link { from: at("c/g"), at: at("a/b/g") })).unwrap();
    world.run(Op::Open(OpenInode { inode: open })).unwrap();
    world.unlink("c/open");
    let (mut today, mut earlier) = (Tables::default(), Tables::default());
    for (table, key, value) in world.view(rows) {
        today.put(table, &key, &value).unwrap();
        let value = match table {
            Table::Tree | Table::Link | Table::Quota => continue,
            Table::Meta => {
                let mut meta = Meta::decode(&value[..]).unwrap();
                meta.counted = false;
                meta.encode_to_vec()
            }
            Table::Inode => {
                let mut inode = Inode::decode(&value[..]).unwrap();
                if inode.kind() != FileKind::Directory {
                    inode.parent = 0;
                }
                inode.encode_to_vec()
            }
            _ => value,
        };
        earlier.put(table, &key, &value).unwrap();
    }
    assert_ne!(earlier, today);
    crate::apply(&mut earlier, &CommandBatch::default()).unwrap();
    assert_eq!(earlier, today);
    crate::upgrade(&mut earlier).unwrap();
    assert_eq!(earlier, today);
}

fn rows(view: &dyn View) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        view.scan(table, &[], &[], &mut |key, value| {
            rows.push((table, key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    rows
}
