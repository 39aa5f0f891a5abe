use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{Access, Mknod, RemoveXattr, SetAttr, SetXattr, Symlink};

use super::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn encoded(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// A list whose classes have these bits, with user 7 and group 50 named.
pub(super) fn list_of(bits: u32) -> Vec<u8> {
    let class = |shift: u32| (bits >> shift & 7) as u16;
    encoded(&[
        (0x01, class(6), u32::MAX),
        (0x02, 7, 7),
        (0x04, 5, u32::MAX),
        (0x08, 6, 50),
        (0x10, class(3), u32::MAX),
        (0x20, class(0), u32::MAX),
    ])
}

fn minimal(bits: u32) -> Vec<u8> {
    let class = |shift: u32| (bits >> shift & 7) as u16;
    encoded(&[(0x01, class(6), u32::MAX), (0x04, class(3), u32::MAX), (0x20, class(0), u32::MAX)])
}

fn set(world: &mut World, path: &str, name: &'static str, value: Vec<u8>) -> Result<Attr, Error> {
    let ask = SetXattr { at: at(path), name: name.into(), value: value.into(), ..SetXattr::default() };
    match world.run(Op::SetXattr(ask))? {
        outcome::Result::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

fn chmod(world: &mut World, path: &str, mode: u32) -> Attr {
    let ask = SetAttr { at: at(path), mode: Some(mode), ..SetAttr::default() };
    match world.run(Op::SetAttr(ask)).unwrap() {
        outcome::Result::Attr(attr) => attr,
        other => panic!("{other:?}"),
    }
}

fn get(world: &World, path: &str, name: &'static str) -> Result<Vec<u8>, ErrorCode> {
    let ask = cairn_proto::fs::GetXattr { at: at(path), name: name.into() };
    match world.query(query::Op::GetXattr(ask)) {
        Ok(answer::Result::Bytes(bytes)) => Ok(bytes.to_vec()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.code),
    }
}

fn may(world: &mut World, cred: Cred, path: &str, mask: u32) -> bool {
    let before = std::mem::replace(&mut world.cred, cred);
    let answered = world.query(query::Op::Access(Access { at: at(path), follow: true, mask }));
    world.cred = before;
    match answered {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.code, ErrorCode::PermissionDenied);
            false
        }
    }
}

#[test]
fn the_mode_follows_the_list_and_the_list_the_mode() {
    let mut world = World::new();
    world.create("f").unwrap();
    let attr = set(&mut world, "f", ACCESS, list_of(0o640)).unwrap();
    assert_eq!((attr.mode, attr.acl), (0o640, true));
    let attr = chmod(&mut world, "f", 0o4751);
    assert_eq!((attr.mode, attr.acl), (0o4751, true));
    assert_eq!(get(&world, "f", ACCESS), Ok(list_of(0o751)), "the group's own entry stays");
    let attr = set(&mut world, "f", ACCESS, minimal(0o604)).unwrap();
    assert_eq!((attr.mode, attr.acl), (0o4604, false));
    assert_eq!(get(&world, "f", ACCESS), Err(ErrorCode::NoAttribute));
    set(&mut world, "f", ACCESS, list_of(0o670)).unwrap();
    let remove = || Op::RemoveXattr(RemoveXattr { at: at("f"), name: ACCESS.into() });
    world.run(remove()).unwrap();
    world.run(remove()).expect("a list that is not there is no error");
    assert_eq!((world.stat("f").unwrap().mode, world.stat("f").unwrap().acl), (0o4670, false));
    world.assert_sound();
}

#[test]
fn lists_decide_for_everybody_but_the_owner_and_root() {
    let mut world = World::new();
    world.cred = user(1);
    world.cred.uid = 0;
    world.mkdir("d").unwrap();
    world.create("d/f").unwrap();
    chmod(&mut world, "d/f", 0o600);
    assert!(!may(&mut world, user(7), "d/f", 4));
    set(&mut world, "d/f", ACCESS, list_of(0o640)).unwrap();
    assert!(may(&mut world, user(7), "d/f", 4) && !may(&mut world, user(7), "d/f", 2));
    let in_fifty = Cred { uid: 9, gid: 9, groups: vec![50] };
    assert!(may(&mut world, in_fifty.clone(), "d/f", 4));
    assert!(!may(&mut world, user(9), "d/f", 4));
    assert!(may(&mut world, root(), "d/f", 7));
    // The directory's list decides who may pass.
    set(&mut world, "d", ACCESS, list_of(0o700)).unwrap();
    assert!(!may(&mut world, in_fifty.clone(), "d/f", 4));
    set(&mut world, "d", ACCESS, list_of(0o770)).unwrap();
    assert!(may(&mut world, user(7), "d/f", 4));
    assert!(!may(&mut world, in_fifty, "d/f", 4), "group 50 may read the directory but not search it");
    world.assert_sound();
}

#[test]
fn new_entries_inherit_and_the_umask_counts_only_without_a_list() {
    let mut world = World::new();
    world.mkdir("d").unwrap();
    set(&mut world, "d", DEFAULT, list_of(0o750)).unwrap();
    let create = |path: &str| CreateFile { at: at(path), mode: 0o666, umask: 0o077, ..CreateFile::default() };
    world.run(Op::Create(create("d/f"))).unwrap();
    assert_eq!((world.stat("d/f").unwrap().mode, world.stat("d/f").unwrap().acl), (0o640, true));
    assert_eq!(get(&world, "d/f", DEFAULT), Err(ErrorCode::NoAttribute));
    world.run(Op::Create(create("f"))).unwrap();
    assert_eq!(world.stat("f").unwrap().mode, 0o600);
    let mkdir = Mkdir { at: at("d/e"), mode: 0o777, umask: 0o077, ..Mkdir::default() };
    world.run(Op::Mkdir(mkdir)).unwrap();
    assert_eq!(world.stat("d/e").unwrap().mode, 0o750);
    assert_eq!(get(&world, "d/e", DEFAULT), Ok(list_of(0o750)));
    let fifo = cairn_proto::fs::FileKind::Fifo.into();
    let mknod = Mknod { at: at("d/e/p"), kind: fifo, mode: 0o644, umask: 0o777, ..Mknod::default() };
    world.run(Op::Mknod(mknod)).unwrap();
    assert_eq!(world.stat("d/e/p").unwrap().mode, 0o640);
    let symlink = Symlink { at: at("d/l"), target: "x".into(), ..Symlink::default() };
    world.run(Op::Symlink(symlink)).unwrap();
    assert_eq!((world.stat("d/l").unwrap().mode, world.stat("d/l").unwrap().acl), (0o777, false));
    world.assert_sound();
}

#[test]
fn a_list_is_only_set_where_it_may_be_by_who_may() {
    let mut world = World::new();
    chmod(&mut world, "", 0o777);
    world.cred = user(5);
    world.create("f").unwrap();
    let code = |result: Result<Attr, Error>| result.unwrap_err().code;
    assert_eq!(code(set(&mut world, "f", DEFAULT, list_of(0o750))), ErrorCode::PermissionDenied);
    assert!(set(&mut world, "f", DEFAULT, Vec::new()).is_ok(), "nothing to inherit is no list");
    assert_eq!(code(set(&mut world, "f", ACCESS, b"nonsense".to_vec())), ErrorCode::NotSupported);
    let symlink = Symlink { at: at("l"), target: "f".into(), uid: 5, gid: 5 };
    world.run(Op::Symlink(symlink)).unwrap();
    assert_eq!(code(set(&mut world, "l", ACCESS, list_of(0o750))), ErrorCode::NotSupported);
    world.cred = user(6);
    assert_eq!(code(set(&mut world, "f", ACCESS, list_of(0o750))), ErrorCode::NotPermitted);
    world.assert_sound();
}

#[test]
fn a_list_set_from_outside_of_the_group_takes_its_bit_away() {
    let mut world = World::new();
    world.create("f").unwrap();
    chmod(&mut world, "f", 0o2755);
    assert_eq!(set(&mut world, "f", ACCESS, list_of(0o755)).unwrap().mode, 0o2755);
    let ask = SetXattr {
        at: at("f"),
        name: ACCESS.into(),
        value: list_of(0o755).into(),
        drop_setgid: true,
        ..SetXattr::default()
    };
    world.run(Op::SetXattr(ask)).unwrap();
    assert_eq!(world.stat("f").unwrap().mode, 0o755);
}
