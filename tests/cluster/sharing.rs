//! Two mounts that work on the same files at the same time.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

use crate::mount_command::mount_helper;
use crate::support::text;
use crate::two_mounts::TwoMounts;

/// Long enough that a busy machine ends no session.
const LEASE: &str = "20";

#[test]
fn two_mounts_agree_on_who_was_first() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    each_name_is_made_once(&mounts);
    a_name_that_was_taken_meanwhile_is_opened_with_all_checks(&mounts);
    appends_are_all_there_once_and_whole(&mounts);
    what_appends_only_now_overwrites_nothing(&mounts);
    a_moved_file_has_one_name(&mounts);
    a_replaced_file_is_always_there_and_whole(&mounts);
    what_was_closed_is_seen_by_the_next_open(&mounts);
    what_was_closed_is_seen_whoever_read_past_the_kernel_before(&mounts);
    a_write_takes_set_id_bits_away_that_the_other_mount_gave(&mounts);
    what_replaced_an_open_file_is_seen_by_the_next_open(&mounts);
    a_name_is_exchanged_or_kept_as_asked(&mounts);
    an_unlinked_file_lives_while_the_other_mount_has_it_open(&mounts);
    what_stays_is_listed_once_while_names_come_and_go(&mounts);
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

/// Has this thread act as a user without any rights, for the rest of its life.
fn become_nobody() {
    const NOBODY: libc::c_long = 65_534;
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: the bare system call takes numbers only, and concerns this thread alone.
        assert_eq!(unsafe { libc::syscall(call, NOBODY, NOBODY, NOBODY) }, 0);
    }
}

/// The kernel found no such name and asks for a new file; by then another mount has made a link or a file of that name.
fn a_name_that_was_taken_meanwhile_is_opened_with_all_checks(mounts: &TwoMounts) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped in part: only root can act as other users");
        return;
    }
    let (here, there) = (mounts.first.join("taken"), mounts.second.join("taken"));
    fs::create_dir(&here).unwrap();
    fs::set_permissions(&here, Permissions::from_mode(0o777)).unwrap();
    fs::write(here.join("secret"), "secret").unwrap();
    fs::set_permissions(here.join("secret"), Permissions::from_mode(0o600)).unwrap();
    mounts.wait_for("the secret", || there.join("secret").exists());
    let both = Barrier::new(2);
    for round in 0..40 {
        let (name, is_link) = (format!("{round}"), round % 2 == 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let path = there.join(&name);
                become_nobody();
                both.wait();
                if is_link {
                    if let Err(error) = OpenOptions::new().write(true).create(true).truncate(true).open(path)
                    {
                        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
                    }
                } else {
                    // Whoever made it, it is there to be read.
                    let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
                    nix::fcntl::open(&path, flags, Mode::from_bits_truncate(0o644)).unwrap();
                }
            });
            both.wait();
            // Either may be first.
            let _ = match is_link {
                true => symlink("secret", here.join(&name)),
                false => OpenOptions::new().write(true).create_new(true).open(here.join(&name)).map(drop),
            };
        });
        assert_eq!(fs::read_to_string(here.join("secret")).unwrap(), "secret", "round {round}");
    }
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

/// As `fdopen` does: the kernel believes in an older end of the file, and keeps pages.
fn what_appends_only_now_overwrites_nothing(mounts: &TwoMounts) {
    let (mut one, mut other) = mounts.both("late");
    one.write_all(b"first ").unwrap();
    one.sync_all().unwrap();
    fcntl(&one, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
    let mut expected = b"first ".to_vec();
    for round in 0..5 {
        for (file, who) in [(&mut other, "other"), (&mut one, "one")] {
            fcntl(&*file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
            let words = format!("{who} {round} ");
            file.write_all(words.as_bytes()).unwrap();
            expected.extend_from_slice(words.as_bytes());
        }
    }
    for file in [&mut one, &mut other] {
        // The kernel is told of the right end in a moment.
        mounts.wait_for("all that was appended", || {
            let mut found = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut found).unwrap();
            found == expected
        });
    }
}

/// Runs `change` again and again until `look` has been called `looks` times beside it.
fn beside(looks: usize, mut change: impl FnMut() + Send, mut look: impl FnMut()) {
    /// Ends the changes, also when a look panics.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        let _over = Over(over);
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
    // On a busy machine the names may not change once while it is looked 200 times.
    for _ in 0..100 {
        beside(200, swing, || {
            let names = names_in(&there);
            assert_eq!(names.len(), 1, "{names:?}");
            seen.extend(names);
        });
        if seen.len() == 2 {
            break;
        }
    }
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
    beside(400, replace, || {
        let found = fs::read(&there).unwrap();
        assert!(found == content(found[0]), "{} bytes of {}", found.len(), found[0]);
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

/// The mount hears of a change for the sake of a read that goes around the kernel's pages; the kernel does not.
fn what_was_closed_is_seen_whoever_read_past_the_kernel_before(mounts: &TwoMounts) {
    let patient = tempfile::tempdir().unwrap();
    let output = mount_helper(&mounts.cluster, patient.path(), "noatime,attr_timeout=60,entry_timeout=60");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (here, there) = (patient.path().join("grown"), mounts.second.join("grown"));
    fs::write(&there, "one").unwrap();
    let other = patient.path().join("other");
    fs::write(&other, "").unwrap();
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&here).unwrap();
    assert_eq!(fs::metadata(&here).unwrap().len(), 3);
    OpenOptions::new().append(true).open(&there).unwrap().write_all(b" two").unwrap();
    // From a removal on, the mount asks again for what it knows of open files; the kernel does so after a minute.
    fs::remove_file(other).unwrap();
    let mut found = [0; 100];
    assert_eq!(direct.read_at(&mut found, 0).unwrap(), 7);
    let mut opened = fs::File::open(&here).unwrap();
    assert_eq!(opened.read(&mut found).unwrap(), 7);
    assert_eq!(&found[..7], b"one two");
    drop((direct, opened));
    mounts.cluster.ok(&["umount", text(patient.path())]);
}

fn a_write_takes_set_id_bits_away_that_the_other_mount_gave(mounts: &TwoMounts) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped in part: only root can act as other users");
        return;
    }
    let (here, there) = (mounts.first.join("program"), mounts.second.join("program"));
    let mode = |path: &Path| fs::metadata(path).map(|found| found.mode() & 0o7777).unwrap_or(0);
    fs::write(&here, "x").unwrap();
    fs::set_permissions(&here, Permissions::from_mode(0o777)).unwrap();
    mounts.wait_for("the program", || mode(&there) == 0o777);
    let both = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            become_nobody();
            let opened = OpenOptions::new().write(true).open(&there);
            both.wait();
            both.wait();
            // So long may a mount believe what it knows.
            thread::sleep(Duration::from_millis(1200));
            opened.unwrap().write_all(b"mine").unwrap();
        });
        both.wait();
        fs::set_permissions(&here, Permissions::from_mode(0o4777)).unwrap();
        both.wait();
    });
    mounts.wait_for("the set-user-id bit to go", || mode(&here) == 0o777);
    assert_eq!(fs::read_to_string(&here).unwrap(), "mine");
}

fn what_replaced_an_open_file_is_seen_by_the_next_open(mounts: &TwoMounts) {
    let (one, other) = (&mounts.first, &mounts.second);
    for round in 0..20 {
        let (old, new) = (format!("old {round}"), format!("new {round}"));
        fs::write(one.join("replaced"), &old).unwrap();
        let held = fs::File::open(other.join("replaced")).unwrap();
        fs::write(one.join("replacement"), &new).unwrap();
        fs::metadata(other.join("replaced")).unwrap();
        fs::rename(one.join("replacement"), one.join("replaced")).unwrap();
        assert_eq!(fs::read_to_string(other.join("replaced")).unwrap(), new);
        let by_descriptor = format!("/proc/self/fd/{}", held.as_raw_fd());
        assert_eq!(fs::read_to_string(by_descriptor).unwrap(), old, "held, so it lives");
    }
}

fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> std::io::Result<()> {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (from, to) = (name(from), name(to));
    // SAFETY: both names live through the call.
    match unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn a_name_is_exchanged_or_kept_as_asked(mounts: &TwoMounts) {
    let here = mounts.first.join("exchange");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("file"), "content").unwrap();
    fs::create_dir(here.join("directory")).unwrap();
    let refused = rename(&here.join("file"), &here.join("directory"), libc::RENAME_NOREPLACE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    rename(&here.join("file"), &here.join("directory"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(here.join("directory")).unwrap(), "content");
    assert!(here.join("file").is_dir());
    rename(&here.join("directory"), &here.join("free"), libc::RENAME_NOREPLACE).unwrap();
    let there = mounts.second.join("exchange");
    assert_eq!(
        names_in(&there).into_iter().collect::<BTreeSet<_>>(),
        ["file", "free"].map(String::from).into()
    );
}

fn an_unlinked_file_lives_while_the_other_mount_has_it_open(mounts: &TwoMounts) {
    let (here, there) = (mounts.first.join("orphan"), mounts.second.join("orphan"));
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(&here, &content).unwrap();
    mounts.wait_for("the file", || there.exists());
    let mut open = OpenOptions::new().read(true).append(true).open(&there).unwrap();
    fs::remove_file(&here).unwrap();
    // Longer than a mount remembers a file that it has closed itself.
    thread::sleep(Duration::from_secs(3));
    open.write_all(b"end").unwrap();
    open.rewind().unwrap();
    let mut found = Vec::new();
    open.read_to_end(&mut found).unwrap();
    assert!(found == [content.as_slice(), b"end"].concat());
    assert!(!names_in(&mounts.second).contains(&"orphan".to_string()));
}

fn what_stays_is_listed_once_while_names_come_and_go(mounts: &TwoMounts) {
    const STAY: usize = 1500;
    let (here, there) = (mounts.first.join("crowd"), mounts.second.join("crowd"));
    fs::create_dir(&here).unwrap();
    thread::scope(|scope| {
        for part in 0..8 {
            let here = &here;
            scope.spawn(move || {
                (part..STAY)
                    .step_by(8)
                    .for_each(|number| fs::write(here.join(format!("stays{number}")), "").unwrap());
            });
        }
    });
    let mut number = 0;
    let churn = || {
        number += 1;
        let name = here.join(format!("{number:05}comes{}", number * 7919 % 1000));
        fs::write(&name, "").unwrap();
        fs::remove_file(&name).unwrap();
    };
    beside(3, churn, || {
        let names = names_in(&there);
        let staying: Vec<&String> = names.iter().filter(|name| name.starts_with("stays")).collect();
        assert_eq!(staying.len(), STAY);
        assert_eq!(staying.into_iter().collect::<BTreeSet<_>>().len(), STAY);
    });
}
