use std::collections::BTreeSet;

use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    Discard, ListTrash, PurgeTrash, Rename, Restore, SetQuota, SetTrash, TrashItem, TrashList, TrashPurged,
};

use super::*;
use crate::plan::trash::due;

const KEEP: i64 = 1_000_000;

impl World {
    fn keeping() -> World {
        let mut world = World::new();
        world.run(Op::SetTrash(SetTrash { keep_ns: KEEP })).unwrap();
        // Everybody may make things in the root of these tests.
        let open = cairn_proto::fs::SetAttr { at: at(""), mode: Some(0o777), ..Default::default() };
        world.run(Op::SetAttr(open)).unwrap();
        world
    }

    fn discard(&mut self, path: &str) -> Result<TrashItem, Error> {
        match self.run(Op::Discard(Discard { at: at(path) }))? {
            outcome::Result::Trash(item) => Ok(item),
            other => panic!("{other:?}"),
        }
    }

    fn restore(&mut self, item: u64, to: Option<&str>, parents: bool) -> Result<String, Error> {
        match self.run(Op::Restore(Restore { item, to: to.and_then(at), parents }))? {
            outcome::Result::Trash(item) => Ok(String::from_utf8(item.path.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn trash(&self, all: bool) -> Result<TrashList, Error> {
        match self.query(query::Op::ListTrash(ListTrash { all, after: 0 }))? {
            answer::Result::Trash(list) => Ok(list),
            other => panic!("{other:?}"),
        }
    }

    fn purge(&mut self, item: u64, leader: bool) -> Result<TrashPurged, Error> {
        let op = Op::PurgeTrash(PurgeTrash { item });
        match if leader { self.leader(op) } else { self.run(op) }? {
            outcome::Result::TrashPurged(done) => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn next_inode(&self) -> u64 {
        self.view(|view| crate::records::meta(view).unwrap().unwrap().next_inode)
    }

    fn due(&self) -> Option<u64> {
        self.view(|view| due(view, self.time_ns, 0).unwrap())
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn what_is_discarded_comes_back_as_it_was() {
    let mut world = World::keeping();
    world.mkdir("d").unwrap();
    let tree = world.mkdir("d/tree").unwrap();
    world.create("d/tree/f").unwrap();
    let item = world.discard("d/tree").unwrap();
    assert_eq!((&item.path[..], item.names), (&b"/d/tree"[..], 2));
    assert_eq!(code(world.stat("d/tree")), ErrorCode::NotFound);
    assert_eq!(world.stat(&format!(".trash/0/{}/tree", item.item)).unwrap().inode, tree.inode);
    world.assert_sound();
    assert_eq!(world.restore(item.item, None, false).unwrap(), "/d/tree");
    assert_eq!(world.stat("d/tree").unwrap().inode, tree.inode);
    assert!(world.trash(false).unwrap().items.is_empty());
    assert_eq!(code(world.restore(item.item, None, false)), ErrorCode::NotFound);
    world.assert_sound();
}

#[test]
fn names_never_collide_and_a_place_that_is_taken_or_gone_is_said() {
    let mut world = World::keeping();
    world.mkdir("d").unwrap();
    let items: Vec<u64> = (0..3)
        .map(|_| {
            world.create("d/f").unwrap();
            world.discard("d/f").unwrap().item
        })
        .collect();
    assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), 3);
    world.create("d/f").unwrap();
    assert_eq!(code(world.restore(items[0], None, false)), ErrorCode::Exists);
    assert_eq!(world.restore(items[0], Some("d/g"), false).unwrap(), "/d/g");
    world.discard("d").unwrap();
    assert_eq!(code(world.restore(items[1], None, false)), ErrorCode::NotFound);
    assert_eq!(world.restore(items[1], None, true).unwrap(), "/d/f");
    assert_eq!(world.trash(false).unwrap().items.len(), 2);
    world.assert_sound();
}

#[test]
fn it_is_off_at_first_and_takes_nothing_twice() {
    let mut world = World::new();
    world.create("f").unwrap();
    assert_eq!(code(world.discard("f")), ErrorCode::NotSupported);
    world.run(Op::SetTrash(SetTrash { keep_ns: KEEP })).unwrap();
    let item = world.discard("f").unwrap().item;
    for path in [".trash", ".trash/0", &format!(".trash/0/{item}/f")] {
        assert_eq!(code(world.discard(path)), ErrorCode::Invalid, "{path}");
    }
    world.assert_sound();
}

#[test]
fn each_user_has_a_trash_that_others_cannot_see() {
    let mut world = World::keeping();
    world.cred = user(7);
    world.create("f").unwrap();
    let item = world.discard("f").unwrap().item;
    world.cred = user(8);
    assert!(world.trash(false).unwrap().items.is_empty());
    assert_eq!(code(world.trash(true)), ErrorCode::NotPermitted);
    assert_eq!(code(world.restore(item, None, false)), ErrorCode::NotPermitted);
    assert_eq!(code(world.purge(item, false)), ErrorCode::NotPermitted);
    assert_eq!(code(world.stat(&format!(".trash/7/{item}/f"))), ErrorCode::PermissionDenied);
    assert_eq!(code(world.run(Op::SetTrash(SetTrash { keep_ns: 0 })).map(drop)), ErrorCode::NotPermitted);
    world.cred = user(7);
    world.mkdir("mine").unwrap();
    world.cred = user(8);
    world.create("g").unwrap();
    assert_eq!(code(world.discard("mine")), ErrorCode::PermissionDenied, "as a rename would be");
    world.cred = root();
    assert_eq!(world.trash(true).unwrap().items.len(), 1);
    world.restore(item, None, false).unwrap();
    world.assert_sound();
}

#[test]
fn what_is_old_goes_once_and_in_parts() {
    let mut world = World::keeping();
    world.mkdir("big").unwrap();
    world.mkdir("big/sub").unwrap();
    for number in 0..1500 {
        world.create(&format!("big/sub/{number}")).unwrap();
    }
    let big = world.discard("big").unwrap().item;
    world.create("young").unwrap();
    assert_eq!(world.due(), None);
    world.time_ns += KEEP - 100;
    let young = world.discard("young").unwrap().item;
    assert_eq!(world.purge(big, true).unwrap(), TrashPurged { names: 0, end: true }, "not yet");
    world.time_ns += 100;
    assert_eq!(world.due(), Some(big));
    assert_eq!(world.view(|view| due(view, world.time_ns + KEEP, big).unwrap()), Some(young));
    let first = world.purge(big, true).unwrap();
    assert!(!first.end && first.names == 1024, "{first:?}");
    assert_eq!(code(world.restore(big, None, false)), ErrorCode::NotFound);
    world.assert_sound();
    let second = world.purge(big, true).unwrap();
    assert_eq!(second, TrashPurged { names: 1500 + 3 - 1024, end: true });
    assert_eq!(world.purge(big, true).unwrap(), TrashPurged { names: 0, end: true }, "another leader's");
    assert_eq!(world.due(), None, "the other one is young");
    assert!(world.purge(young, false).unwrap().end, "its owner need not wait");
    world.assert_sound();
}

#[test]
fn what_is_taken_out_by_hand_is_no_item_any_more() {
    let mut world = World::keeping();
    for name in ["a", "b"] {
        world.create(name).unwrap();
    }
    let (first, second) = (world.discard("a").unwrap().item, world.discard("b").unwrap().item);
    let rename = |from: String, to: &str| Op::Rename(Rename { from: at(&from), to: at(to), mode: 0 });
    world.run(rename(format!(".trash/0/{first}"), "kept")).unwrap();
    world.run(rename(format!(".trash/0/{second}/b"), "b")).unwrap();
    world.time_ns += KEEP;
    assert_eq!(world.due(), Some(second));
    assert!(world.purge(second, true).unwrap().end);
    assert_eq!(world.due(), None);
    assert!(world.stat("kept/a").is_ok() && world.stat("b").is_ok());
    world.assert_sound();
}

#[test]
fn discarding_makes_room_in_a_quota_and_restoring_needs_it() {
    let mut world = World::keeping();
    world.mkdir("q").unwrap();
    let limit = |path: &str, names| SetQuota { at: at(path), max_names: Some(names), ..SetQuota::default() };
    world.run(Op::SetQuota(limit("q", 1))).unwrap();
    world.create("q/f").unwrap();
    let item = world.discard("q/f").unwrap().item;
    world.create("q/f2").unwrap();
    assert_eq!(code(world.restore(item, None, false)), ErrorCode::QuotaExceeded);
    world.run(Op::SetQuota(limit(".trash", 3))).unwrap();
    assert_eq!(code(world.discard("q/f2")), ErrorCode::QuotaExceeded);
    assert!(world.stat("q/f2").is_ok());
    world.assert_sound();
}

#[test]
fn something_else_may_be_in_the_way() {
    let mut world = World::keeping();
    world.create("f").unwrap();
    world.cred = user(7);
    world.mkdir(".trash").unwrap();
    world.cred = root();
    let refused = world.discard("f").unwrap_err();
    assert!(refused.to_string().contains("/.trash is in the way"), "{refused}");
    assert!(world.stat("f").is_ok());
}

#[test]
fn what_a_user_makes_in_the_trash_is_never_an_item() {
    let mut world = World::keeping();
    world.cred = user(7);
    world.create("first").unwrap();
    world.discard("first").unwrap();
    let next = world.next_inode();
    let taken = [next + 5, next + 6];
    let files = taken.map(|number| {
        world.mkdir(&format!(".trash/7/{number}")).unwrap();
        world.create(&format!(".trash/7/{number}/f")).unwrap().inode
    });
    world.create("f").unwrap();
    assert_eq!(world.next_inode(), taken[0]);
    let item = world.discard("f").unwrap().item;
    assert_eq!(item, taken[1] + 1);
    world.assert_sound();
    world.time_ns += KEEP;
    while let Some(due) = world.due() {
        world.purge(due, true).unwrap();
    }
    for (number, file) in taken.into_iter().zip(files) {
        assert_eq!(world.stat(&format!(".trash/7/{number}/f")).unwrap().inode, file);
        let chunk = world.allocate();
        world.commit(file, vec![extent(0, chunk, 0, 10)]).unwrap();
    }
    world.assert_sound();
}

#[test]
fn what_was_moved_away_with_all_of_a_trash_is_kept() {
    let mut world = World::keeping();
    world.create("a").unwrap();
    let item = world.discard("a").unwrap().item;
    let rename = Rename { from: at(".trash/0"), to: at("rescued"), mode: 0 };
    world.run(Op::Rename(rename)).unwrap();
    assert!(world.trash(true).unwrap().items.is_empty());
    assert_eq!(code(world.restore(item, None, false)), ErrorCode::NotFound);
    assert_eq!(code(world.purge(item, false)), ErrorCode::NotFound);
    world.time_ns += KEEP;
    assert_eq!(world.due(), Some(item));
    assert!(world.purge(item, true).unwrap().end);
    assert_eq!(world.due(), None);
    assert!(world.stat(&format!("rescued/{item}/a")).is_ok());
    world.assert_sound();
}
