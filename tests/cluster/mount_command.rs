//! Mounting as an administrator does it: by mount(8), with options, in the background, after a crash.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::mounting::can_mount;
use crate::support::{Cluster, over_tls, text};

/// The ordinary user `nobody`.
const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster's addresses, as a mount's source.
fn source(cluster: &Cluster) -> String {
    let status = cluster.wait_for("namenodes", |status| status["namenodes"].is_array());
    let nodes = status["namenodes"].as_array().expect("namenodes").iter();
    nodes.map(|node| node["address"].as_str().expect("an address")).collect::<Vec<_>>().join(",")
}

/// The program under the name by which it is mount(8)'s helper.
fn helper(cluster: &Cluster) -> PathBuf {
    let path = cluster.scratch("mount.fuse.cairn");
    match symlink(env!("CARGO_BIN_EXE_cairn"), &path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => panic!("{}: {error}", path.display()),
        _ => path,
    }
}

/// Mounts as mount(8) would.
pub fn mount_helper(cluster: &Cluster, directory: &Path, options: &str) -> Output {
    let mut command = Command::new(helper(cluster));
    command.envs(certificate(cluster));
    command.arg(source(cluster)).arg(directory).args(["-o", options]);
    command.output().expect("the helper starts")
}

/// What programs of a test's own need in their environment to reach the cluster.
fn certificate(cluster: &Cluster) -> Option<(&'static str, PathBuf)> {
    over_tls().then(|| ("CAIRN_TLS", cluster.dir().join("ca/users/client")))
}

#[track_caller]
fn mount(cluster: &Cluster, directory: &Path, options: &str) {
    let output = mount_helper(cluster, directory, options);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The kernel's options of what is mounted at `directory`.
fn mounted_with(directory: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(1) == directory.to_str())?;
    line.split(' ').nth(3).map(String::from)
}

/// Kills the process that serves `directory`, and only that.
fn kill_server(directory: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|&byte| byte == 0);
        let ours = arguments.next().is_some_and(|name| name.ends_with(b"mount.fuse.cairn"));
        if ours && arguments.any(|argument| argument == text(directory).as_bytes()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
            return;
        }
    }
    panic!("nobody serves {}", directory.display());
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_administrator_mounts_as_ever() {
    if !can_mount() || !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let point = tempfile::tempdir().unwrap();
    the_options_are_honoured(&cluster, point.path());
    what_is_wrong_is_said(&cluster, point.path());
    a_mount_whose_process_was_killed_is_taken_away(&cluster, point.path());
    files_seem_to_belong_to_whom_it_was_asked(&cluster, point.path());
    the_background_is_left_alone(&cluster, point.path());
    a_closed_terminal_ends_it_in_order(&cluster, point.path());
    mount_finds_its_helper(&cluster, point.path());
    an_ordinary_user_mounts(&cluster);
}

fn the_options_are_honoured(cluster: &Cluster, point: &Path) {
    mount(cluster, point, "rw,noexec,dev,suid,noatime,_netdev,nofail,x-systemd.automount");
    let options = mounted_with(point).expect("mounted when the helper returns");
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    assert!(has("rw") && has("noexec") && has("noatime") && has("allow_other"), "{options}");
    assert!(!has("nodev") && !has("nosuid"), "{options}");
    fs::write(point.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(point.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let error = Command::new(point.join("script")).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "noexec");
    cluster.ok(&["umount", text(point)]);
    mount(cluster, point, "ro,sync");
    let error = fs::write(point.join("new"), "").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read_to_string(point.join("script")).unwrap(), "#!/bin/sh\n");
    cluster.ok(&["umount", text(point)]);
}

fn what_is_wrong_is_said(cluster: &Cluster, point: &Path) {
    let output = mount_helper(cluster, point, "rw,colour");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"colour\""));
    let output = mount_helper(cluster, &point.join("missing"), "rw");
    assert_eq!(output.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mkdir -p"));
    let mut command = Command::new(helper(cluster));
    let output = command.args(["127.0.0.1:1", text(point), "-o", "timeout=1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(32), "a cluster that is not there");
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1:1"));
    assert!(mounted_with(point).is_none());
    mount(cluster, point, "rw");
    assert_eq!(mount_helper(cluster, point, "rw").status.code(), Some(32), "mounted already");
    let said = cluster.fails(&["mount", text(point), "-o", "remount,ro"]);
    assert!(said.contains("mount -o remount"), "{said}");
    cluster.ok(&["umount", text(point)]);
}

fn a_mount_whose_process_was_killed_is_taken_away(cluster: &Cluster, point: &Path) {
    mount(cluster, point, "rw");
    fs::write(point.join("kept"), "kept").unwrap();
    fs::create_dir(point.join("open")).unwrap();
    fs::set_permissions(point.join("open"), fs::Permissions::from_mode(0o777)).unwrap();
    // What is done in a directory made here may go with the process that is about to be killed.
    fs::File::open(point.join("open")).unwrap().sync_all().unwrap();
    let open = fs::File::open(point.join("kept")).unwrap();
    kill_server(point);
    let dead = || fs::read_dir(point).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
    wait_until("the mount to be dead", dead);
    cluster.ok(&["umount", text(point)]);
    drop(open);
    assert!(fs::read_dir(point).unwrap().next().is_none());
    mount(cluster, point, "rw");
    assert_eq!(fs::read_to_string(point.join("kept")).unwrap(), "kept");
    kill_server(point);
    wait_until("the mount to be dead", dead);
    mount(cluster, point, "rw");
    assert_eq!(fs::read_to_string(point.join("kept")).unwrap(), "kept", "mounted over what was left behind");
    cluster.ok(&["umount", text(point)]);
    assert!(mounted_with(point).is_none());
}

fn files_seem_to_belong_to_whom_it_was_asked(cluster: &Cluster, point: &Path) {
    use std::os::unix::fs::MetadataExt;
    mount(cluster, point, "uid=1234,gid=4321,umask=027");
    let metadata = fs::metadata(point.join("kept")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (1234, 4321, 0o750));
    cluster.ok(&["umount", text(point)]);
    mount(cluster, point, "rw");
    let metadata = fs::metadata(point.join("kept")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 0, 0o644));
    cluster.ok(&["umount", text(point)]);
}

fn the_background_is_left_alone(cluster: &Cluster, point: &Path) {
    let log = cluster.scratch("mount.log");
    cluster.ok(&["mount", "--daemon", "--log-file", text(&log), text(point), "-o", "fsname=stones"]);
    assert!(fs::read_to_string("/proc/self/mounts").unwrap().contains(&format!("stones {} ", text(point))));
    assert_eq!(fs::read_to_string(point.join("kept")).unwrap(), "kept");
    cluster.ok(&["umount", text(point)]);
    wait_until("the end of the process", || fs::read_to_string(&log).unwrap().contains("unmounted"));
    let said = cluster.fails(&["mount", "--daemon", text(&point.join("missing"))]);
    assert!(said.contains("mkdir -p"), "{said}");
}

/// As the terminal is closed that it was started from: it hangs up on all that runs there, perhaps more than once.
fn a_closed_terminal_ends_it_in_order(cluster: &Cluster, point: &Path) {
    let mut command = cluster.command(&["mount", text(point)]);
    // Whoever started the tests may have it ignored.
    let heard = || {
        // SAFETY: signal is async-signal-safe, and touches no memory of the parent.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: as above.
    let mut server = unsafe { command.pre_exec(heard) }.spawn().expect("the mount starts");
    wait_until("it is mounted", || mounted_with(point).is_some());
    fs::write(point.join("unsynced"), "kept").expect("it can be written to");
    for _ in 0..2 {
        // SAFETY: a signal to a child of ours that nobody has waited for.
        unsafe { libc::kill(server.id() as i32, libc::SIGHUP) };
    }
    assert!(server.wait().expect("it ends").success());
    assert_eq!(mounted_with(point), None);
    assert_eq!(cluster.ok(&["cat", "/unsynced"]), "kept");
}

/// With a `/sbin` of its own, laid over the machine's in a name space of its own.
fn mount_finds_its_helper(cluster: &Cluster, point: &Path) {
    let layer = Path::new("/dev/shm");
    let layer = if layer.is_dir() { tempfile::tempdir_in(layer) } else { tempfile::tempdir() }.unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(layer.path().join(name)).unwrap();
    }
    let script = r#"
        sbin=$(readlink -f /sbin)
        mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$LAYER/upper,workdir=$LAYER/work" "$sbin" || exit 77
        ln -s "$CAIRN" /sbin/mount.cairn && ln -s "$CAIRN" /sbin/mount.fuse.cairn || exit 77
        set -e
        mount -t cairn "$SOURCE" "$POINT"
        grep -q "^$SOURCE $POINT fuse.cairn rw" /proc/self/mounts
        test "$(cat "$POINT/kept")" = kept
        umount "$POINT"
        echo "$SOURCE $POINT fuse.cairn defaults,_netdev,nofail,noatime 0 0" > "$LAYER/fstab"
        mount -T "$LAYER/fstab" "$POINT"
        mount -T "$LAYER/fstab" -a
        test "$(grep -c " $POINT fuse.cairn" /proc/self/mounts)" = 1
        mount -o remount,ro "$POINT"
        if touch "$POINT/new" 2>/dev/null; then exit 1; fi
        umount "$POINT"
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .env("LAYER", layer.path())
        .env("CAIRN", env!("CARGO_BIN_EXE_cairn"))
        .env("SOURCE", source(cluster))
        .env("POINT", point)
        .envs(certificate(cluster))
        .output()
        .expect("unshare");
    if output.status.code() == Some(77) {
        eprintln!("skipped in part: no overlay over /sbin: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// With a `/dev/fuse` that users may open, as is usual, in a name space of its own.
fn an_ordinary_user_mounts(cluster: &Cluster) {
    if Command::new("fusermount3").arg("-V").output().is_err() {
        eprintln!("skipped in part: fusermount3 is not installed");
        return;
    }
    // Both within reach of that user, which what lies below the build's or the cluster's directory need not be.
    let point = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(point.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let tools = tempfile::tempdir().unwrap();
    fs::set_permissions(tools.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_cairn"), tools.path().join("cairn")).unwrap();
    if let Some((_, dir)) = certificate(cluster) {
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(dir.join(file), tools.path().join(file)).unwrap();
            std::os::unix::fs::chown(tools.path().join(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let script = r#"
        mknod -m 666 "$TOOLS/fuse" c 10 229 && mount --bind "$TOOLS/fuse" /dev/fuse || exit 77
        as_user() { setpriv --reuid 65534 --regid 65534 --clear-groups "$TOOLS/cairn" --namenodes "$SOURCE" "$@"; }
        as_user mount --daemon "$POINT" || exit 1
        grep " $POINT fuse.cairn rw,nosuid,nodev,.*user_id=65534" /proc/self/mounts || exit 1
        setpriv --reuid 65534 --regid 65534 --clear-groups cat "$POINT/kept" || exit 1
        # As sudo does: the shell opens the file, and what writes to it is somebody else.
        gain='--inh-caps +setuid,+setgid --ambient-caps +setuid,+setgid'
        setpriv --reuid 65534 --regid 65534 --clear-groups $gain sh -c '
            setpriv --reuid 0 --regid 0 --clear-groups /bin/echo given > "$POINT/open/given" || exit 1
            setpriv --reuid 0 --regid 0 --clear-groups sh -c "read word && test \$word = given" < "$POINT/open/given"
        ' || exit 1
        as_user umount "$POINT" || exit 1
        grep -qx user_allow_other /etc/fuse.conf && exit 0
        as_user mount --daemon -o allow_other "$POINT" 2>&1 | grep user_allow_other
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .env("TOOLS", tools.path())
        .env("SOURCE", source(cluster))
        .env("POINT", point.path())
        .envs(over_tls().then(|| ("CAIRN_TLS", tools.path())))
        .output()
        .expect("unshare");
    if output.status.code() == Some(77) {
        eprintln!("skipped in part: no device of its own: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(output.status.success(), "{output:?}");
}
