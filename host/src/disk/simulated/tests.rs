//! That the disk is as bad as it says, and no worse.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::super::{Access, Disk, Found, Handle, create_dirs, read, replace};
use super::*;

const SEEDS: u64 = 300;

fn make(disk: &Mount, path: &str) -> Handle {
    disk.open(Path::new(path), Access::Create).unwrap()
}

fn content(disk: &SimulatedDisk, path: &str) -> Vec<u8> {
    disk.content(path).unwrap()
}

#[test]
fn what_was_synced_survives_and_the_rest_may_not() {
    let mut ends = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let mount = disk.mount();
        let file = make(&mount, "/a");
        file.write_at(&[1; 1024], 0).unwrap();
        file.sync_data().unwrap();
        mount.sync_dir(Path::new("/")).unwrap();
        file.write_at(&[2; 1024], 512).unwrap();
        disk.crash();
        let found = content(&disk, "/a");
        assert_eq!(found[..512], [1; 512], "synced and not touched since");
        for sector in found[512..].chunks(SECTOR) {
            assert!([0, 1, 2].iter().any(|byte| sector.iter().all(|held| held == byte)), "whole sectors");
        }
        ends.insert((found.len(), found.get(512).copied(), found.get(1024).copied()));
    }
    assert!(ends.contains(&(1024, Some(1), None)), "nothing of it: {ends:?}");
    assert!(ends.contains(&(1536, Some(2), Some(2))), "all of it: {ends:?}");
    assert!(ends.contains(&(1536, Some(1), Some(2))), "out of order: {ends:?}");
    assert!(ends.contains(&(1536, Some(2), Some(0))), "a length without its bytes: {ends:?}");
}

#[test]
fn a_sector_is_as_it_was_at_some_moment() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let mount = disk.mount();
        let file = make(&mount, "/a");
        mount.sync_dir(Path::new("/")).unwrap();
        file.write_at(b"one", 0).unwrap();
        file.write_at(b"two", 3).unwrap();
        disk.crash();
        seen.insert(content(&disk, "/a"));
    }
    assert!(!seen.contains(&b"\0\0\0two"[..]), "the later bytes of a sector without the earlier");
    assert!(
        seen.contains(&b""[..]) && seen.contains(&b"one"[..]) && seen.contains(&b"onetwo"[..]),
        "{seen:?}"
    );
}

#[test]
fn what_was_cut_does_not_come_back_behind_what_was_written_after() {
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let mount = disk.mount();
        let file = make(&mount, "/a");
        file.write_at(&[1; 2048], 0).unwrap();
        file.sync_all().unwrap();
        mount.sync_dir(Path::new("/")).unwrap();
        file.set_length(0).unwrap();
        file.write_at(&[2; 2048], 0).unwrap();
        disk.crash();
        let found = content(&disk, "/a");
        assert!(!(found.contains(&1) && found.contains(&2)), "seed {seed}");
    }
}

#[test]
fn names_are_lost_without_a_sync_and_a_rename_is_whole() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let mount = disk.mount();
        replace(&mount, Path::new("/a"), b"old").unwrap();
        let fresh = make(&mount, "/fresh");
        fresh.write_at(b"new", 0).unwrap();
        fresh.sync_all().unwrap();
        mount.rename(Path::new("/fresh"), Path::new("/a")).unwrap();
        disk.crash();
        match &content(&disk, "/a")[..] {
            b"old" => old += 1,
            b"new" => new += 1,
            other => panic!("{other:?}"),
        }
        let mount = disk.mount();
        replace(&mount, Path::new("/a"), b"newer").unwrap();
        disk.crash();
        assert_eq!(content(&disk, "/a"), b"newer");
    }
    assert!(old > 0 && new > 0);
}

#[test]
fn a_directory_takes_what_is_in_it_along() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let mount = disk.mount();
        mount.create_dir(Path::new("/d")).unwrap();
        make(&mount, "/d/a").sync_all().unwrap();
        mount.sync_dir(Path::new("/d")).unwrap();
        disk.crash();
        lost += u32::from(disk.mount().look(Path::new("/d/a")).unwrap().is_none());
        let mount = disk.mount();
        create_dirs(&mount, Path::new("/e/f")).unwrap();
        disk.crash();
        assert_eq!(disk.mount().look(Path::new("/e/f")).unwrap(), Some(Found::Directory));
    }
    assert!(lost > 0);
}

#[test]
fn the_dead_change_nothing() {
    let disk = SimulatedDisk::new(1);
    let mount = disk.mount();
    let file = make(&mount, "/a");
    let lock = mount.lock(Path::new("/lock")).unwrap();
    assert_eq!(mount.lock(Path::new("/lock")).unwrap_err().kind(), ErrorKind::WouldBlock);
    mount.sync_dir(Path::new("/")).unwrap();
    disk.crash();
    assert!(mount.is_dead());
    assert!(file.write_at(b"x", 0).is_err() && file.sync_all().is_err() && file.length().is_err());
    assert!(mount.open(Path::new("/b"), Access::Create).is_err());
    assert!(mount.remove(Path::new("/a")).is_err() && mount.sync_dir(Path::new("/")).is_err());
    let next = disk.mount();
    let held = next.lock(Path::new("/lock")).unwrap();
    drop(lock);
    assert!(next.lock(Path::new("/lock")).is_err(), "the dead one's lock is not ours to give back");
    drop(held);
    next.lock(Path::new("/lock")).unwrap();
    assert_eq!(content(&disk, "/a"), b"");
}

#[test]
fn a_kill_loses_nothing() {
    let disk = SimulatedDisk::new(1);
    let file = make(&disk.mount(), "/a");
    file.write_at(b"abc", 0).unwrap();
    disk.kill();
    assert!(file.write_at(b"x", 0).is_err());
    assert_eq!(content(&disk, "/a"), b"abc");
}

#[test]
fn the_power_can_fail_at_every_operation() {
    let run = |cut: Option<u64>| {
        let disk = SimulatedDisk::new(7);
        if let Some(cut) = cut {
            disk.cut_after(cut);
        }
        let done = replace(&disk.mount(), Path::new("/a"), b"abc").is_ok();
        disk.crash();
        (done, disk.operations(), disk.content("/a"))
    };
    let (_, all, _) = run(None);
    assert_eq!(all, 5);
    for cut in 0..all {
        let (done, operations, found) = run(Some(cut));
        assert!(!done && operations == cut);
        assert!(found.is_none_or(|found| found == b"abc"), "cut at {cut}");
    }
    assert!(run(Some(all)).0);
}

#[test]
fn a_failed_sync_drops_what_it_did_not_write_for_ever() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimulatedDisk::new(seed);
        let mount = disk.mount();
        let file = make(&mount, "/a");
        file.write_at(&[0; 512], 0).unwrap();
        file.sync_all().unwrap();
        mount.sync_dir(Path::new("/")).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        disk.fail("/", Operation::Sync, libc::EIO, Some(1));
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync_data().unwrap();
        file.reread().unwrap();
        let shown = content(&disk, "/a");
        disk.crash();
        assert_eq!(content(&disk, "/a"), shown);
        lost += u32::from(shown == [0; 512]);
    }
    assert!(lost > 0);
}

#[test]
fn faults_befall_their_prefix_until_mended() {
    let disk = SimulatedDisk::new(1);
    let mount = disk.mount();
    for dir in ["/one", "/two"] {
        create_dirs(&mount, Path::new(dir)).unwrap();
        make(&mount, &format!("{dir}/a")).write_at(b"abc", 0).unwrap();
    }
    disk.fail("/one", Operation::Read, libc::EIO, None);
    disk.fail("/two", Operation::Write, libc::EROFS, None);
    assert_eq!(read(&mount, Path::new("/one/a")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(read(&mount, Path::new("/two/a")).unwrap(), b"abc");
    let refused = mount.open(Path::new("/two/b"), Access::Create).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    make(&mount, "/one/b");
    disk.mend("/one");
    assert_eq!(read(&mount, Path::new("/one/a")).unwrap(), b"abc");
    assert!(make_fails(&mount, "/two/b"));
}

fn make_fails(disk: &Mount, path: &str) -> bool {
    disk.open(Path::new(path), Access::Create).is_err()
}

#[test]
fn a_full_volume_takes_what_fits_and_gets_its_space_back() {
    let disk = SimulatedDisk::new(1);
    let mount = disk.mount();
    create_dirs(&mount, Path::new("/small")).unwrap();
    disk.limit("/small", 1000);
    let file = make(&mount, "/small/a");
    file.write_at(&[1; 900], 0).unwrap();
    let full = file.write_at(&[2; 200], 900).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(file.length().unwrap(), 1000);
    assert_eq!(mount.space(Path::new("/small")).unwrap().available, 0);
    assert_ne!(mount.space(Path::new("/small")).unwrap().device, mount.space(Path::new("/")).unwrap().device);
    file.write_at(&[3; 1000], 0).unwrap();
    make(&mount, "/large").write_at(&[0; 5000], 0).unwrap();
    mount.remove(Path::new("/small/a")).unwrap();
    assert_eq!(mount.space(Path::new("/small")).unwrap().available, 1000);
}

#[test]
fn rot_is_found_by_every_later_read() {
    let disk = SimulatedDisk::new(3);
    let mount = disk.mount();
    make(&mount, "/empty");
    make(&mount, "/a").write_at(&[0; 10], 0).unwrap();
    assert!(disk.flip("/a", 13));
    assert!(!disk.flip("/a", 80) && !disk.flip("/empty", 0) && !disk.flip("/none", 0));
    assert_eq!(content(&disk, "/a")[1], 1 << 5);
    let (path, bit) = disk.flip_somewhere("/").unwrap();
    assert!(path == Path::new("/a") && bit < 80);
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = || {
        let disk = SimulatedDisk::new(42);
        for round in 0..20u8 {
            let mount = disk.mount();
            let file = make(&mount, "/a");
            for at in 0..10 {
                file.write_at(&[round; 700], at * 300).unwrap();
            }
            if round % 3 == 0 {
                file.sync_all().unwrap();
                mount.sync_dir(Path::new("/")).unwrap();
            }
            disk.crash();
        }
        disk.content("/a")
    };
    assert_eq!(run(), run());
}
