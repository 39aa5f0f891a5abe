use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    CreateFile, Deed, ExpireSession, HandBack, Mutation, OpenInode, Rename, ReserveInodes, Rmdir, Series,
    SeriesOutcome, SetAttr, SetQuota, Unlink,
};
use cairn_proto::{Delegated, ErrorCode};

use super::*;

/// A cluster with a directory `d` that is delegated to its session, and numbers for inodes.
struct Shop {
    world: World,
    directory: u64,
    next: u64,
    time_ns: i64,
}

fn child(directory: u64, name: &str) -> Option<NodeRef> {
    Some(NodeRef { inode: directory, path: name.as_bytes().to_vec().into() })
}

fn inode(inode: u64) -> Option<NodeRef> {
    child(inode, "")
}

impl Shop {
    fn new() -> Shop {
        let mut world = World::new();
        let made = delegate(&mut world, "d").unwrap();
        assert!(made.delegated);
        let next = match world.run(Op::ReserveInodes(ReserveInodes { count: 100 })).unwrap() {
            outcome::Result::Reserved(reserved) => reserved.first,
            other => panic!("{other:?}"),
        };
        Shop { world, directory: made.inode, next, time_ns: 5_000 }
    }

    fn deed(&mut self, op: Op) -> Deed {
        let makes = matches!(op, Op::Create(_) | Op::Mkdir(_));
        self.time_ns += 1;
        let inode = if makes { self.next } else { 0 };
        self.next += u64::from(makes);
        Deed { time_ns: self.time_ns, inode, mutation: Some(Mutation { op: Some(op) }) }
    }

    fn send(&mut self, deeds: Vec<Deed>) -> SeriesOutcome {
        match self.world.run(Op::Series(Series { deeds })).unwrap() {
            outcome::Result::Series(done) => done,
            other => panic!("{other:?}"),
        }
    }

    fn perform(&mut self, op: Op) -> Result<outcome::Result, Error> {
        let deed = self.deed(op);
        opened(self.send(vec![deed]).outcomes.remove(0))
    }

    fn create(&mut self, name: &str) -> u64 {
        let number = self.next;
        let at = child(self.directory, name);
        self.perform(Op::Create(CreateFile { at, mode: 0o644, ..CreateFile::default() })).unwrap();
        number
    }

    fn hand_back(&mut self) {
        self.perform(Op::HandBack(HandBack { directories: vec![self.directory] })).unwrap();
    }

    /// What somebody without a session is told.
    fn stranger(&self, op: query::Op) -> Result<answer::Result, Error> {
        let query = Query { op: Some(op) };
        let found = self.world.view(|view| crate::answer_to(view, 0, &root(), &query).unwrap());
        match found.result.unwrap() {
            answer::Result::Error(error) => Err(error.into()),
            other => Ok(other),
        }
    }
}

fn delegate(world: &mut World, path: &str) -> Result<Attr, Error> {
    let ask = Mkdir { at: at(path), mode: 0o755, delegate: true, ..Mkdir::default() };
    match world.run(Op::Mkdir(ask))? {
        outcome::Result::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

fn stat(path: &str) -> query::Op {
    query::Op::Stat(cairn_proto::fs::Stat { at: at(path), follow: false })
}

fn list(path: &str) -> query::Op {
    query::Op::List(cairn_proto::fs::ListDirectory { at: at(path), ..Default::default() })
}

#[test]
fn nobody_else_comes_to_it_until_it_is_handed_back() {
    let mut shop = Shop::new();
    shop.create("f");
    let held = Delegated { directory: shop.directory, session: shop.world.session };
    for op in [stat("d"), stat("d/f"), list("d")] {
        assert_eq!(shop.stranger(op), Err(held.error()));
    }
    assert!(shop.stranger(list("")).is_ok(), "its name is no secret");
    let other = shop.world.begin();
    for op in [Op::Rmdir(Rmdir { at: at("d") }), Op::Unlink(Unlink { at: at("d/f") })] {
        let refused = opened(shop.world.submit(other, 1, 0, op)).unwrap_err();
        assert_eq!(refused, held.error());
    }
    shop.hand_back();
    assert!(shop.stranger(stat("d/f")).is_ok());
    // What had to wait was not remembered as refused.
    opened(shop.world.submit(other, 1, 0, Op::Unlink(Unlink { at: at("d/f") }))).unwrap();
    shop.world.assert_sound();
}

#[test]
fn deeds_have_their_own_numbers_and_times_and_happen_in_order() {
    let mut shop = Shop::new();
    let number = shop.create("f");
    let made = shop.world.stat("d/f").unwrap();
    assert_eq!((made.inode, made.mtime_ns, made.ctime_ns), (number, 5_001, 5_001));
    assert_eq!(shop.world.stat("d").unwrap().mtime_ns, 5_001);
    let directory = shop.directory;
    let deeds = [
        Op::Mkdir(Mkdir { at: child(directory, "sub"), mode: 0o700, delegate: true, ..Mkdir::default() }),
        Op::Rename(Rename { from: child(directory, "f"), to: child(number + 1, "g"), mode: 0 }),
        Op::SetAttr(SetAttr { at: inode(number), mode: Some(0o600), ..SetAttr::default() }),
    ];
    let deeds = deeds.map(|op| shop.deed(op)).to_vec();
    let done = shop.send(deeds);
    assert!(done.outcomes.iter().all(|outcome| opened(outcome.clone()).is_ok()), "{done:?}");
    let moved = shop.world.stat("d/sub/g").unwrap();
    assert_eq!((moved.inode, moved.mode, moved.ctime_ns), (number, 0o600, 5_004));
    assert!(shop.world.stat("d/sub").unwrap().delegated, "a directory in it is delegated, too");
    shop.world.assert_sound();
}

#[test]
fn a_series_that_comes_twice_happens_once() {
    let mut shop = Shop::new();
    let directory = shop.directory;
    let create = CreateFile { at: child(directory, "f"), mode: 0o644, ..CreateFile::default() };
    let deeds = [Op::Create(create), Op::Unlink(Unlink { at: child(directory, "f") })];
    let deeds = deeds.map(|op| shop.deed(op)).to_vec();
    let (session, seq) = (shop.world.session, shop.world.seq + 1);
    let first = shop.world.submit(session, seq, 0, Op::Series(Series { deeds: deeds.clone() }));
    let again = shop.world.submit(session, seq, 0, Op::Series(Series { deeds }));
    assert_eq!(first, again);
    shop.world.assert_sound();
}

#[test]
fn numbers_that_are_not_reserved_or_were_used_are_refused() {
    let mut shop = Shop::new();
    let first = shop.create("a");
    shop.create("b");
    for number in [first, shop.next + 1_000, 0] {
        let create = CreateFile { at: child(shop.directory, "c"), mode: 0o644, ..CreateFile::default() };
        let deed = Deed { inode: number, ..shop.deed(Op::Create(create)) };
        shop.next -= 1;
        let refused = opened(shop.send(vec![deed]).outcomes.remove(0)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Invalid, "{number}");
    }
    shop.create("c");
    let greedy = shop.world.run(Op::ReserveInodes(ReserveInodes { count: u32::MAX })).unwrap_err();
    assert_eq!(greedy.code, ErrorCode::Invalid);
    let refused = (0..10).find_map(|_| shop.world.run(Op::ReserveInodes(ReserveInodes { count: 1 })).err());
    assert_eq!(refused.unwrap().code, ErrorCode::TooLarge);
    shop.world.assert_sound();
}

#[test]
fn deeds_are_only_done_where_the_session_is_alone() {
    let mut shop = Shop::new();
    shop.world.mkdir("public").unwrap();
    let public = shop.world.stat("public").unwrap().inode;
    let create = |at| Op::Create(CreateFile { at, mode: 0o644, ..CreateFile::default() });
    let refused = shop.perform(create(child(public, "f"))).unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotPermitted);
    let nested = Op::Series(Series::default());
    assert_eq!(shop.perform(nested).unwrap_err().code, ErrorCode::Invalid);
    let size = SetAttr { at: inode(public), size: Some(7), ..SetAttr::default() };
    assert_eq!(shop.perform(Op::SetAttr(size)).unwrap_err().code, ErrorCode::Invalid);
    shop.hand_back();
    let refused = shop.perform(create(child(shop.directory, "f"))).unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotPermitted);
    shop.world.assert_sound();
}

#[test]
fn one_refused_deed_leaves_no_trace_and_the_others_are_done() {
    let mut shop = Shop::new();
    let directory = shop.directory;
    let create = |name: &str| {
        let at = child(directory, name);
        Op::Create(CreateFile { at, mode: 0o644, exclusive: true, ..CreateFile::default() })
    };
    let deeds = ["a", "a", "b"].map(|name| shop.deed(create(name))).to_vec();
    let done = shop.send(deeds).outcomes;
    let codes: Vec<_> =
        done.into_iter().map(|outcome| opened(outcome).err().map(|error| error.code)).collect();
    assert_eq!(codes, [None, Some(ErrorCode::Exists), None]);
    assert_eq!(shop.world.usage("d").unwrap().tree.unwrap().names, 2);
    shop.world.assert_sound();
}

#[test]
fn a_session_takes_its_delegations_with_it() {
    let mut shop = Shop::new();
    let held = shop.create("f");
    shop.perform(Op::Open(OpenInode { inode: held })).unwrap();
    shop.perform(Op::Unlink(Unlink { at: child(shop.directory, "f") })).unwrap();
    shop.create("g");
    shop.world.leader(Op::ExpireSession(ExpireSession { session: shop.world.session })).unwrap();
    assert!(shop.stranger(stat("d/g")).is_ok());
    shop.world.session = shop.world.begin();
    shop.world.seq = 0;
    let late = shop.perform(Op::Unlink(Unlink { at: child(shop.directory, "g") })).unwrap_err();
    assert_eq!(late.code, ErrorCode::NotPermitted, "another session has no right to it");
    shop.world.assert_sound();
}

#[test]
fn where_more_than_the_session_has_a_say_nothing_is_delegated() {
    let mut world = World::new();
    world.mkdir("limited").unwrap();
    let quota = SetQuota { at: at("limited"), max_names: Some(3), ..SetQuota::default() };
    world.run(Op::SetQuota(quota)).unwrap();
    assert!(!delegate(&mut world, "limited/d").unwrap().delegated);
    let set_gid = Mkdir { at: at("group"), mode: 0o2755, delegate: true, ..Mkdir::default() };
    world.run(Op::Mkdir(set_gid)).unwrap();
    assert!(!world.stat("group").unwrap().delegated);
}

#[test]
fn a_quota_that_comes_later_holds_once_it_is_handed_back() {
    let mut shop = Shop::new();
    shop.create("a");
    let quota = SetQuota { at: at("d"), max_names: Some(1), ..SetQuota::default() };
    shop.world.run(Op::SetQuota(quota)).unwrap();
    let create = CreateFile { at: child(shop.directory, "b"), mode: 0o644, ..CreateFile::default() };
    let deed = shop.deed(Op::Create(create));
    let done = shop.send(vec![deed]);
    assert!(done.hand_back && opened(done.outcomes[0].clone()).is_ok(), "it was promised already");
    shop.hand_back();
    assert_eq!(shop.world.create("d/c").unwrap_err().code, ErrorCode::QuotaExceeded);
    shop.world.assert_sound();
}

#[test]
fn what_is_written_elsewhere_is_held_to_quotas() {
    let mut shop = Shop::new();
    shop.world.mkdir("q").unwrap();
    let elsewhere = shop.world.filled("q/f", 10).unwrap();
    let own = shop.create("f");
    for path in ["q", "d"] {
        let quota = SetQuota { at: at(path), max_bytes: Some(10), ..SetQuota::default() };
        shop.world.run(Op::SetQuota(quota)).unwrap();
    }
    let chunk = shop.world.allocate();
    let file = |inode, offset| FileCommit {
        target: Some(file_commit::Target::Inode(inode)),
        extents: vec![extent(10, chunk, offset, 20)],
        ..FileCommit::default()
    };
    let files = vec![file(own, 0), file(elsewhere, 20), file(own, 40)];
    let done = shop.perform(Op::Commit(CommitExtents { files })).unwrap();
    let outcome::Result::Commit(done) = done else { panic!("{done:?}") };
    let refused = done.files.iter().map(|file| matches!(file.result, Some(file_outcome::Result::Error(_))));
    assert_eq!(refused.collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(shop.world.usage("q").unwrap().tree.unwrap().bytes, 10);
    shop.world.assert_sound();
}

#[test]
fn a_file_stored_whole_waits_like_anybody() {
    let mut shop = Shop::new();
    let other = shop.world.begin();
    let create = CreateFile { at: at("d/f"), mode: 0o644, ..CreateFile::default() };
    let file = FileCommit { target: Some(file_commit::Target::Create(create)), ..FileCommit::default() };
    let commit = Op::Commit(CommitExtents { files: vec![file] });
    let refused = opened(shop.world.submit(other, 1, 0, commit.clone())).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Delegated);
    shop.hand_back();
    opened(shop.world.submit(other, 1, 0, commit)).unwrap();
    assert!(shop.world.stat("d/f").is_ok());
    shop.world.assert_sound();
}
