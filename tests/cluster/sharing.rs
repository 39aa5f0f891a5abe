//! Two mounts that work on the same files at the same time.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::two_mounts::TwoMounts;

/// Long enough that a busy machine ends no session.
const LEASE: &str = "20";

#[test]
fn two_mounts_agree_on_who_was_first() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    each_name_is_made_once(&mounts);
    appends_are_all_there_once_and_whole(&mounts);
    a_moved_file_has_one_name(&mounts);
    a_replaced_file_is_always_there_and_whole(&mounts);
    what_was_closed_is_seen_by_the_next_open(&mounts);
}

fn each_name_is_made_once(mounts: &TwoMounts) {
    const NAMES: usize = 40;
    let made: Vec<AtomicUsize> = (0..NAMES).map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| {
        for point in [&mounts.first, &mounts.second, &mounts.first, &mounts.second] {
            let made = &made;
            scope.spawn(move || {
                for (number, made) in made.iter().enumerate() {
                    match OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .open(point.join(format!("only{number}")))
                    {
                        Ok(_) => _ = made.fetch_add(1, Ordering::Relaxed),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
                    }
                }
            });
        }
    });
    assert!(made.iter().all(|made| made.load(Ordering::Relaxed) == 1), "{made:?}");
}

fn appends_are_all_there_once_and_whole(mounts: &TwoMounts) {
    const EACH: usize = 60;
    let writers = [&mounts.first, &mounts.second, &mounts.first, &mounts.second];
    let line = |writer: usize, number: usize| format!("{writer} {number} {}\n", "x".repeat(number * 7 % 300));
    thread::scope(|scope| {
        for (writer, point) in writers.iter().enumerate() {
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).create(true).open(point.join("log")).unwrap();
                for number in 0..EACH {
                    assert_eq!(
                        log.write(line(writer, number).as_bytes()).unwrap(),
                        line(writer, number).len()
                    );
                }
            });
        }
    });
    for point in [&mounts.first, &mounts.second] {
        let content = fs::read_to_string(point.join("log")).unwrap();
        let found: Vec<String> = content.lines().map(|line| format!("{line}\n")).collect();
        let expected: BTreeSet<String> =
            (0..writers.len()).flat_map(|writer| (0..EACH).map(move |number| line(writer, number))).collect();
        assert_eq!(found.len(), expected.len());
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

/// Runs `change` again and again until `look` has been called `looks` times beside it.
fn beside(looks: usize, mut change: impl FnMut() + Send, mut look: impl FnMut()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        let changing = scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                change();
            }
        });
        for _ in 0..looks {
            // When the changes fail, their own panic is the one to see.
            if changing.is_finished() {
                break;
            }
            look();
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn names_in(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn a_moved_file_has_one_name(mounts: &TwoMounts) {
    let (here, there) = (mounts.first.join("moving"), mounts.second.join("moving"));
    fs::create_dir(&here).unwrap();
    fs::write(here.join("left"), "content").unwrap();
    mounts.wait_for("the directory", || there.exists());
    let swing = || {
        fs::rename(here.join("left"), here.join("right")).unwrap();
        fs::rename(here.join("right"), here.join("left")).unwrap();
    };
    let mut seen = BTreeSet::new();
    beside(200, swing, || {
        let names = names_in(&there);
        assert_eq!(names.len(), 1, "{names:?}");
        seen.extend(names);
    });
    assert_eq!(seen.len(), 2, "it was seen under both names, one at a time");
}

fn a_replaced_file_is_always_there_and_whole(mounts: &TwoMounts) {
    let (here, there) = (mounts.first.join("current"), mounts.second.join("current"));
    let replacement = mounts.first.join("next");
    let content = |version: u8| vec![version; 1000 + usize::from(version) * 100];
    fs::write(&here, content(0)).unwrap();
    mounts.wait_for("the file", || there.exists());
    let mut version = 0_u8;
    let replace = || {
        version = version.wrapping_add(1);
        fs::write(&replacement, content(version)).unwrap();
        fs::rename(&replacement, &here).unwrap();
    };
    beside(100, replace, || {
        let found = fs::read(&there).unwrap();
        assert_eq!(found, content(found[0]));
    });
}

fn what_was_closed_is_seen_by_the_next_open(mounts: &TwoMounts) {
    let (here, there) = (mounts.first.join("turns"), mounts.second.join("turns"));
    fs::write(&here, "").unwrap();
    mounts.wait_for("the file", || there.exists());
    for turn in 0..50 {
        let (writer, reader) = if turn % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let content = format!("turn {turn} {}", "-".repeat(turn));
        fs::write(writer, &content).unwrap();
        assert_eq!(fs::read_to_string(reader).unwrap(), content);
        let size = fs::metadata(reader).unwrap().len();
        assert_eq!(size, content.len() as u64, "after an open, its attributes are current too");
    }
}
