//! Locks that hold across mounts, and signals that get programs out.

use std::fs::{self, File};
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::support::text;
use crate::two_mounts::{PATIENCE, TwoMounts, open};

/// Sessions are to end soon after their mounts do, in seconds.
const LEASE: &str = "2";
/// What must not come is waited for so long.
const A_WHILE: Duration = Duration::from_millis(700);

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed.
    done(unsafe { libc::flock(file.as_raw_fd(), operation) })
}

fn record(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: i32, kind: i32, start: i64, length: i64) -> io::Result<libc::flock> {
    let mut asked = record(kind, start, length);
    // SAFETY: the descriptor is open while `file` is borrowed, and the record lives through the call.
    done(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut asked) })?;
    Ok(asked)
}

fn set(file: &File, kind: i32, start: i64, length: i64) -> io::Result<()> {
    fcntl(file, libc::F_SETLK, kind, start, length).map(drop)
}

#[track_caller]
fn assert_blocked(result: io::Result<()>) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
}

/// Runs what may wait in a thread of its own.
fn waiting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(work()));
    receiver
}

#[track_caller]
fn assert_waits<T>(outcome: &Receiver<T>) {
    assert!(matches!(outcome.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout)), "it should wait");
}

#[track_caller]
fn came<T>(outcome: &Receiver<T>) -> T {
    outcome.recv_timeout(PATIENCE).expect("it ends")
}

#[test]
fn locks_hold_across_mounts() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    flocks_exclude_and_share(&mounts);
    ranges_exclude_and_share(&mounts);
    a_waiter_gets_what_is_given_back(&mounts);
    what_was_written_under_a_lock_is_seen_under_the_next(&mounts);
    a_signal_gets_a_waiter_out(&mounts);
    two_processes_of_one_mount_exclude_each_other(&mounts);
}

fn flocks_exclude_and_share(mounts: &TwoMounts) {
    let (one, two) = mounts.both("flock");
    flock(&one, libc::LOCK_SH).unwrap();
    flock(&two, libc::LOCK_SH | libc::LOCK_NB).unwrap();
    assert_blocked(flock(&two, libc::LOCK_EX | libc::LOCK_NB));
    flock(&one, libc::LOCK_EX | libc::LOCK_NB).expect("the refused change gave the other's lock back");
    assert_blocked(flock(&two, libc::LOCK_SH | libc::LOCK_NB));
    set(&two, libc::F_WRLCK, 0, 0).expect("the kinds do not see each other");
    flock(&one, libc::LOCK_UN).unwrap();
    flock(&two, libc::LOCK_EX | libc::LOCK_NB).unwrap();
    drop(two);
    mounts.wait_for("the close to give the lock back", || flock(&one, libc::LOCK_EX | libc::LOCK_NB).is_ok());
}

fn ranges_exclude_and_share(mounts: &TwoMounts) {
    let (one, two) = mounts.both("ranges");
    set(&one, libc::F_WRLCK, 100, 100).unwrap();
    assert_blocked(set(&two, libc::F_RDLCK, 199, 1));
    set(&two, libc::F_WRLCK, 200, 10).unwrap();
    let seen = fcntl(&two, libc::F_GETLK, libc::F_WRLCK, 0, 0).unwrap();
    assert_eq!((i32::from(seen.l_type), seen.l_start, seen.l_len), (libc::F_WRLCK, 100, 100));
    assert_eq!(seen.l_pid, 0, "a process of another mount has no number here");
    set(&one, libc::F_UNLCK, 140, 20).unwrap();
    set(&two, libc::F_RDLCK, 140, 20).unwrap();
    set(&one, libc::F_RDLCK, 140, 20).unwrap();
    assert_blocked(set(&one, libc::F_WRLCK, 140, 1));
    drop(open(&mounts.first.join("ranges")));
    mounts.wait_for("any close to give a process's locks back", || set(&two, libc::F_WRLCK, 0, 0).is_ok());
}

fn a_waiter_gets_what_is_given_back(mounts: &TwoMounts) {
    let (one, two) = mounts.both("waited");
    flock(&one, libc::LOCK_EX).unwrap();
    let waiter = waiting(move || flock(&two, libc::LOCK_EX).map(|()| two));
    assert_waits(&waiter);
    flock(&one, libc::LOCK_UN).unwrap();
    let two = came(&waiter).unwrap();
    assert_blocked(flock(&one, libc::LOCK_SH | libc::LOCK_NB));
    set(&two, libc::F_WRLCK, 0, 10).unwrap();
    let waiter = waiting(move || fcntl(&one, libc::F_SETLKW, libc::F_WRLCK, 5, 10).map(drop));
    assert_waits(&waiter);
    drop(two);
    came(&waiter).unwrap();
    // A holder that ends, whatever it had in mind.
    let (_one, two) = mounts.both("ends");
    let path = mounts.first.join("ends");
    let mut holder =
        Command::new("flock").arg("-x").arg(&path).args(["sleep", "60"]).process_group(0).spawn().unwrap();
    mounts.wait_for("the holder", || {
        flock(&two, libc::LOCK_EX | libc::LOCK_NB).is_err() || flock(&two, libc::LOCK_UN).is_err()
    });
    let waiter = waiting(move || flock(&two, libc::LOCK_EX));
    assert_waits(&waiter);
    // The lock is on a description that its child shares, so both have to go.
    // SAFETY: the holder has not been waited for, so the number of its group is its own.
    assert_eq!(unsafe { libc::kill(-(holder.id() as i32), libc::SIGKILL) }, 0);
    holder.wait().unwrap();
    came(&waiter).unwrap();
}

fn what_was_written_under_a_lock_is_seen_under_the_next(mounts: &TwoMounts) {
    let (one, two) = mounts.both("counter");
    one.write_all_at(&0u64.to_le_bytes(), 0).unwrap();
    one.sync_all().unwrap();
    const ROUNDS: u64 = 20;
    let count = |file: File| {
        for _ in 0..ROUNDS {
            fcntl(&file, libc::F_SETLKW, libc::F_WRLCK, 0, 0)?;
            let mut number = [0; 8];
            file.read_exact_at(&mut number, 0)?;
            file.write_all_at(&(u64::from_le_bytes(number) + 1).to_le_bytes(), 0)?;
            fcntl(&file, libc::F_SETLK, libc::F_UNLCK, 0, 0)?;
        }
        io::Result::Ok(file)
    };
    let (left, right) = (waiting(move || count(one)), waiting(move || count(two)));
    let file = came(&left).unwrap();
    came(&right).unwrap();
    set(&file, libc::F_RDLCK, 0, 0).unwrap();
    let mut number = [0; 8];
    file.read_exact_at(&mut number, 0).unwrap();
    assert_eq!(u64::from_le_bytes(number), 2 * ROUNDS);
}

fn a_signal_gets_a_waiter_out(mounts: &TwoMounts) {
    let (one, _two) = mounts.both("signal");
    flock(&one, libc::LOCK_EX).unwrap();
    // Not SIGINT, which whoever started the tests in the background has ignored.
    for (signal, path) in
        [(libc::SIGTERM, mounts.second.join("signal")), (libc::SIGKILL, mounts.first.join("signal"))]
    {
        let mut program = Command::new("flock").arg("-x").arg(path).arg("true").spawn().unwrap();
        thread::sleep(A_WHILE);
        assert!(program.try_wait().unwrap().is_none(), "it waits");
        // SAFETY: the child has not been waited for, so its number is its own.
        assert_eq!(unsafe { libc::kill(program.id() as i32, signal) }, 0);
        mounts.wait_for("the program to end", || program.try_wait().unwrap().is_some());
    }
    flock(&one, libc::LOCK_UN).unwrap();
    flock(&open(&mounts.second.join("signal")), libc::LOCK_EX | libc::LOCK_NB).expect("nobody is left");
}

fn two_processes_of_one_mount_exclude_each_other(mounts: &TwoMounts) {
    let path = mounts.first.join("turns");
    let script = format!(
        "for round in 1 2 3 4 5 6 7 8 9 10; do flock -x {0}.lock sh -c 'n=$(cat {0}); echo $((n + 1)) > {0}'; done",
        text(&path)
    );
    fs::write(&path, "0\n").unwrap();
    let mut shells: Vec<Child> =
        (0..3).map(|_| Command::new("sh").arg("-c").arg(&script).spawn().unwrap()).collect();
    for shell in &mut shells {
        mounts.wait_for("a shell to end", || shell.try_wait().unwrap().is_some());
        assert!(shell.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "30\n");
}

#[test]
fn a_lock_outlives_its_mount_by_a_lease_and_no_longer() {
    let Some(mut mounts) = TwoMounts::up(LEASE) else { return };
    let (one, two) = mounts.both("held");
    two.write_all_at(b"committed", 0).unwrap();
    two.sync_all().unwrap();
    flock(&two, libc::LOCK_EX).unwrap();
    set(&two, libc::F_WRLCK, 0, 0).unwrap();
    let waiter = waiting(move || {
        flock(&one, libc::LOCK_EX)?;
        fcntl(&one, libc::F_SETLKW, libc::F_WRLCK, 0, 0)?;
        let mut content = vec![0; 9];
        one.read_exact_at(&mut content, 0)?;
        io::Result::Ok(content)
    });
    assert_waits(&waiter);
    mounts.serving.kill().unwrap();
    mounts.serving.wait().unwrap();
    assert_eq!(came(&waiter).unwrap(), b"committed");
}

#[test]
fn a_mount_that_slept_through_its_lease_knows_that_its_locks_are_lost() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    let (one, two) = mounts.both("slept");
    let bystander = open(&mounts.second.join("bystander"));
    flock(&two, libc::LOCK_EX).unwrap();
    two.write_all_at(b"old and never committed", 0).unwrap();
    mounts.signal(libc::SIGSTOP);
    let waiter = waiting(move || {
        flock(&one, libc::LOCK_EX)?;
        one.write_all_at(b"new", 0)?;
        one.sync_all()?;
        io::Result::Ok(one)
    });
    let one = came(&waiter).unwrap();
    mounts.signal(libc::SIGCONT);
    let refused = two.write_all_at(b"late", 0).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert_eq!(two.read_at(&mut [0; 4], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(two);
    bystander.write_all_at(b"files without locks go on", 0).unwrap();
    bystander.sync_all().unwrap();
    thread::sleep(A_WHILE);
    fs::remove_file(mounts.first.join("bystander")).unwrap();
    bystander.write_all_at(b", open under the next session", 25).unwrap();
    bystander.sync_all().unwrap();
    let again = open(&mounts.second.join("slept"));
    assert_blocked(flock(&again, libc::LOCK_EX | libc::LOCK_NB));
    flock(&one, libc::LOCK_UN).unwrap();
    flock(&again, libc::LOCK_EX).expect("a new open has new locks");
    let mut content = Vec::new();
    io::Read::read_to_end(&mut { again }, &mut content).unwrap();
    assert_eq!(content, b"new");
}

#[test]
fn a_program_can_be_killed_while_no_namenode_answers() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    fs::write(mounts.first.join("there"), "content").unwrap();
    let script = format!("exec 3>>{0}; cat >&3; echo more > {0}.more", text(&mounts.first.join("there")));
    let mut writer = Command::new("sh").arg("-c").arg(&script).stdin(Stdio::piped()).spawn().unwrap();
    thread::sleep(A_WHILE);
    for name in ["nn1", "nn2", "nn3"] {
        mounts.cluster.kill(name);
    }
    let mut asker =
        Command::new("ls").arg(mounts.first.join("elsewhere")).stderr(Stdio::null()).spawn().unwrap();
    let mut interrupted =
        Command::new("ls").arg(mounts.first.join("nowhere")).stderr(Stdio::null()).spawn().unwrap();
    io::Write::write_all(writer.stdin.as_mut().unwrap(), b"line\n").unwrap();
    drop(writer.stdin.take());
    thread::sleep(A_WHILE);
    for (program, signal) in
        [(&mut writer, libc::SIGKILL), (&mut asker, libc::SIGKILL), (&mut interrupted, libc::SIGTERM)]
    {
        assert!(program.try_wait().unwrap().is_none(), "it waits for the cluster");
        // SAFETY: the child has not been waited for, so its number is its own.
        assert_eq!(unsafe { libc::kill(program.id() as i32, signal) }, 0);
        mounts.wait_for("the program to end", || program.try_wait().unwrap().is_some());
    }
    for name in ["nn1", "nn2", "nn3"] {
        mounts.cluster.start(name);
    }
    mounts.wait_for("the mount to go on", || {
        fs::read_to_string(mounts.first.join("there")).is_ok_and(|content| content.starts_with("content"))
    });
}
