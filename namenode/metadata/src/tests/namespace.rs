use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    FileRead, Link, ListDirectory, MarkRead, Rename, RenameMode, Rmdir, SetAttr, SetXattr, Stat, Symlink,
    Unlink, XattrMode,
};

use super::*;

fn rename(world: &mut World, from: &str, to: &str, mode: RenameMode) -> Result<(), ErrorCode> {
    let ask = Rename { from: at(from), to: at(to), mode: mode.into() };
    world.run(Op::Rename(ask)).map(|_| ()).map_err(|error| error.code)
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    result.unwrap_err().code
}

#[test]
fn a_refused_command_leaves_no_trace() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    let before = world.stat("").unwrap();
    assert_eq!(code(world.mkdir("d")), ErrorCode::Exists);
    assert_eq!(code(world.create("d/missing/f")), ErrorCode::NotFound);
    assert_eq!(code(world.create("d/..")), ErrorCode::Invalid);
    assert_eq!(world.stat("").unwrap(), before);
    world.assert_sound();
}

#[test]
fn mkdir_with_parents_makes_what_is_missing() {
    let mut world = World::new();
    let ask = Mkdir { at: at("a/b/c"), mode: 0o755, parents: true, ..Mkdir::default() };
    world.run(Op::Mkdir(ask.clone())).unwrap();
    world.run(Op::Mkdir(ask)).expect("an existing directory is no error");
    world.create("f").unwrap();
    let through = Mkdir { at: at("f/x"), mode: 0o755, parents: true, ..Mkdir::default() };
    assert_eq!(code(world.run(Op::Mkdir(through))), ErrorCode::NotDirectory);
    let onto = Mkdir { at: at("f"), mode: 0o755, parents: true, ..Mkdir::default() };
    assert_eq!(code(world.run(Op::Mkdir(onto))), ErrorCode::Exists);
    world.assert_sound();
}

#[test]
fn rename_replaces_moves_and_refuses_loops() {
    let mut world = World::new();
    for path in ["a", "a/b", "c"] {
        world.mkdir(path).unwrap();
    }
    let file = world.create("a/f").unwrap();
    world.create("c/f").unwrap();
    use RenameMode::{Exchange, NoReplace, Replace};
    assert_eq!(rename(&mut world, "a", "a/b/x", Replace), Err(ErrorCode::Invalid));
    assert_eq!(rename(&mut world, "a/f", "c/f", NoReplace), Err(ErrorCode::Exists));
    assert_eq!(rename(&mut world, "a/f", "c", Replace), Err(ErrorCode::IsDirectory));
    assert_eq!(rename(&mut world, "c", "a", Replace), Err(ErrorCode::NotEmpty));
    assert_eq!(rename(&mut world, "a/f", "c/f", Replace), Ok(()));
    assert_eq!(world.stat("c/f").unwrap().inode, file.inode);
    assert_eq!(rename(&mut world, "a/b", "c/f", Exchange), Ok(()));
    assert_eq!(world.stat("a/b").unwrap().inode, file.inode);
    assert_eq!(rename(&mut world, "c/f", "b", Replace), Ok(()));
    assert_eq!(rename(&mut world, "b", "b", Replace), Ok(()));
    world.assert_sound();
}

#[test]
fn exchanging_within_one_directory_keeps_its_counts() {
    let mut world = World::new();
    let directory = world.mkdir("d").unwrap();
    let file = world.create("f").unwrap();
    assert_eq!(rename(&mut world, "d", "f", RenameMode::Exchange), Ok(()));
    assert_eq!(world.stat("f").unwrap().inode, directory.inode);
    assert_eq!(world.stat("d").unwrap().inode, file.inode);
    world.assert_sound();
}

#[test]
fn hard_links_share_an_inode_until_the_last_name_goes() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    world.run(Op::Link(Link { from: at("f"), at: at("g") })).unwrap();
    assert_eq!(rename(&mut world, "f", "g", RenameMode::Replace), Ok(()));
    assert_eq!(
        world.stat("f").unwrap().nlink,
        2,
        "renaming one name over another of the same file does nothing"
    );
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    assert_eq!(world.stat("g").unwrap().inode, file.inode);
    world.mkdir("d").unwrap();
    assert_eq!(code(world.run(Op::Link(Link { from: at("d"), at: at("e") }))), ErrorCode::NotPermitted);
    assert_eq!(code(world.run(Op::Unlink(Unlink { at: at("d") }))), ErrorCode::IsDirectory);
    assert_eq!(code(world.run(Op::Rmdir(Rmdir { at: at("g") }))), ErrorCode::NotDirectory);
    world.assert_sound();
}

#[test]
fn symbolic_links_lead_on_and_loops_end() {
    let mut world = World::new();
    world.mkdir("a").unwrap();
    world.mkdir("a/b").unwrap();
    let file = world.create("a/f").unwrap();
    let link = |path: &str, target: &str| {
        let target = target.as_bytes().to_vec().into();
        Op::Symlink(Symlink { at: at(path), target, uid: 0, gid: 0 })
    };
    world.run(link("a/b/up", "../f")).unwrap();
    world.run(link("abs", "/a/./b")).unwrap();
    world.run(link("loop", "loop")).unwrap();
    let follow =
        |world: &World, path: &str| world.query(query::Op::Stat(Stat { at: at(path), follow: true }));
    match follow(&world, "abs/up").unwrap() {
        answer::Result::Attr(attr) => assert_eq!(attr.inode, file.inode),
        other => panic!("{other:?}"),
    }
    assert_eq!(code(follow(&world, "loop")), ErrorCode::Loop);
    assert_eq!(world.stat("loop").unwrap().size, 4);
}

#[test]
fn listings_come_in_pages_in_order() {
    let mut world = World::new();
    for number in 0..25 {
        world.create(&format!("f{number:02}")).unwrap();
    }
    let mut after = Vec::new();
    let mut names = Vec::new();
    loop {
        let ask = ListDirectory { at: at(""), after: after.clone().into(), limit: 10 };
        let answer::Result::Listing(page) = world.query(query::Op::List(ask)).unwrap() else { panic!() };
        assert!(page.entries.len() <= 10);
        names.extend(page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
        if page.end {
            break;
        }
        after = page.entries.last().unwrap().name.to_vec();
    }
    let expected: Vec<String> = (0..25).map(|number| format!("f{number:02}")).collect();
    assert_eq!(names, expected);
}

#[test]
fn permissions_hold_for_everybody_but_root() {
    let mut world = World::new();
    world.mkdir("private").unwrap();
    world.mkdir("public").unwrap();
    let mode =
        |path: &str, mode| Op::SetAttr(SetAttr { at: at(path), mode: Some(mode), ..SetAttr::default() });
    world.run(mode("private", 0o700)).unwrap();
    world.run(mode("public", 0o1777)).unwrap();
    world.create("public/roots").unwrap();
    world.cred = user(1000);
    assert_eq!(code(world.create("private/f")), ErrorCode::PermissionDenied);
    assert_eq!(code(world.stat("private/f")), ErrorCode::PermissionDenied);
    world.create("public/mine").unwrap();
    assert_eq!(code(world.run(Op::Unlink(Unlink { at: at("public/roots") }))), ErrorCode::NotPermitted);
    assert_eq!(code(world.run(mode("public/roots", 0o777))), ErrorCode::NotPermitted);
    let away = SetAttr { at: at("public/mine"), uid: Some(0), ..SetAttr::default() };
    assert_eq!(code(world.run(Op::SetAttr(away))), ErrorCode::NotPermitted);
    world.cred = user(1001);
    assert_eq!(code(world.run(Op::Unlink(Unlink { at: at("public/mine") }))), ErrorCode::NotPermitted);
    world.assert_sound();
}

#[test]
fn a_setgid_directory_hands_its_group_down() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    let ask = SetAttr { at: at("d"), mode: Some(0o2775), gid: Some(50), ..SetAttr::default() };
    world.run(Op::SetAttr(ask)).unwrap();
    assert_eq!(world.create("d/f").unwrap().gid, 50);
    let below = world.mkdir("d/e").unwrap();
    assert_eq!((below.gid, below.mode & 0o2000), (50, 0o2000));
}

#[test]
fn extended_attributes_are_kept_and_go_with_the_file() {
    let mut world = World::new();
    world.create("f").unwrap();
    let set = |name: &str, mode: XattrMode| {
        let name = name.as_bytes().to_vec().into();
        Op::SetXattr(SetXattr {
            at: at("f"),
            name,
            value: b"v".to_vec().into(),
            mode: mode.into(),
            drop_setgid: false,
        })
    };
    assert_eq!(code(world.run(set("user.a", XattrMode::Replace))), ErrorCode::NoAttribute);
    world.run(set("user.a", XattrMode::Create)).unwrap();
    assert_eq!(code(world.run(set("user.a", XattrMode::Create))), ErrorCode::Exists);
    assert_eq!(code(world.run(set("nonsense", XattrMode::Set))), ErrorCode::NotSupported);
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    world.assert_sound();
}

#[test]
fn reading_raises_the_time_of_access_and_nothing_else() {
    let mut world = World::new();
    let file = world.create("f").unwrap();
    let read = |atime_ns: i64, version: u64| {
        Op::MarkRead(MarkRead { files: vec![FileRead { inode: file.inode, atime_ns, version }] })
    };
    world.time_ns += 1_000_000;
    let at = file.atime_ns + 1000;
    world.run(read(at, file.version)).unwrap();
    let after = world.stat("f").unwrap();
    assert_eq!(after, Attr { atime_ns: at, ..file });
    world.run(read(at - 10, file.version)).unwrap();
    assert_eq!(world.stat("f").unwrap().atime_ns, at, "it never goes back");
    world.run(read(i64::MAX, file.version)).unwrap();
    assert!(world.stat("f").unwrap().atime_ns <= world.time_ns, "nor past the log's own time");
    // Times set after the read stay as they were set.
    let ask = SetAttr { at: super::at("f"), atime_ns: Some(7), ..SetAttr::default() };
    world.run(Op::SetAttr(ask)).unwrap();
    world.run(read(at, file.version)).unwrap();
    assert_eq!(world.stat("f").unwrap().atime_ns, 7);
    let gone = FileRead { inode: 999, atime_ns: at, version: 1 };
    world.run(Op::MarkRead(MarkRead { files: vec![gone] })).expect("a file that is gone is passed over");
    let many = vec![gone; 5000];
    assert_eq!(code(world.run(Op::MarkRead(MarkRead { files: many }))), ErrorCode::TooLarge);
    world.assert_sound();
}
