//! Who may do what on a mount: access control lists, set-id bits and sticky directories, as different users.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::mounting::mounted;
use crate::support::text;

/// A user and a group that exist nowhere else.
const ALICE: u32 = 61_001;
const BOB: u32 = 61_002;
const TEAM: u32 = 61_050;

/// Runs a shell command as a user with one group; says whether it succeeded.
fn may(uid: u32, gid: u32, directory: &Path, script: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir("/").env("D", directory).uid(uid).gid(gid);
    shell.output().expect("a shell").status.success()
}

/// Runs a program that must succeed and returns what it prints.
#[track_caller]
fn ok(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn chown(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
}

#[test]
fn users_may_do_what_modes_and_lists_let_them() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can act as other users");
        return;
    }
    let Some((cluster, point)) = mounted() else { return };
    sticky_directories_protect_names(&point);
    set_group_directories_hand_their_group_down(&point);
    changes_take_set_id_bits_away(&point);
    if Command::new("setfacl").arg("--version").output().is_ok() {
        lists_let_in_and_keep_out(&point);
        default_lists_are_inherited(&point);
        lists_are_copied(&point);
    } else {
        eprintln!("skipped in part: setfacl is not installed");
    }
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}

fn sticky_directories_protect_names(point: &Path) {
    let directory = point.join("sticky");
    fs::create_dir(&directory).unwrap();
    chmod(&directory, 0o1777);
    assert!(may(ALICE, ALICE, &directory, "echo mine > $D/a"));
    assert!(!may(BOB, BOB, &directory, "rm -f $D/a"));
    assert!(!may(BOB, BOB, &directory, "mv $D/a $D/b"));
    assert!(may(ALICE, ALICE, &directory, "mv $D/a $D/b && rm $D/b"));
}

fn set_group_directories_hand_their_group_down(point: &Path) {
    let directory = point.join("team");
    fs::create_dir(&directory).unwrap();
    chown(&directory, 0, TEAM);
    chmod(&directory, 0o2777);
    assert!(may(ALICE, ALICE, &directory, "umask 022; touch $D/f && mkdir $D/d"));
    let (file, below) =
        (fs::metadata(directory.join("f")).unwrap(), fs::metadata(directory.join("d")).unwrap());
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (ALICE, TEAM, 0o644));
    assert_eq!((below.gid(), below.mode() & 0o7777), (TEAM, 0o2755));
}

fn changes_take_set_id_bits_away(point: &Path) {
    let path = point.join("program");
    fs::write(&path, "x").unwrap();
    chmod(&path, 0o6777);
    assert!(may(ALICE, ALICE, point, "echo y >> $D/program"));
    assert_eq!(mode(&path), 0o777, "a write by somebody else");
    chmod(&path, 0o6777);
    assert!(may(ALICE, ALICE, point, "truncate -s 0 $D/program"));
    assert_eq!(mode(&path), 0o777, "a truncation");
    chmod(&path, 0o6755);
    chown(&path, ALICE, ALICE);
    assert_eq!(mode(&path), 0o755, "a change of owner");
    chown(&path, ALICE, TEAM);
    assert!(may(ALICE, ALICE, point, "chmod 2755 $D/program"));
    assert_eq!(mode(&path), 0o755, "the owner is not in the group");
}

fn lists_let_in_and_keep_out(point: &Path) {
    let path = point.join("listed");
    fs::write(&path, "secret").unwrap();
    chmod(&path, 0o600);
    let read = "cat $D/listed";
    assert!(!may(ALICE, ALICE, point, read));
    ok("setfacl", &["-m", &format!("u:{ALICE}:rw,g:{TEAM}:r"), text(&path)]);
    assert_eq!(mode(&path), 0o660, "the mask shows as the group's bits");
    assert!(may(ALICE, ALICE, point, read) && may(ALICE, ALICE, point, "echo more >> $D/listed"));
    assert!(may(BOB, TEAM, point, read) && !may(BOB, TEAM, point, "echo more >> $D/listed"));
    assert!(!may(BOB, BOB, point, read));
    assert!(ok("ls", &["-l", text(&path)]).starts_with("-rw-rw----+"));
    chmod(&path, 0o640);
    assert!(!may(ALICE, ALICE, point, "echo more >> $D/listed"), "chmod lowers the mask");
    let listed = ok("getfacl", &["-nc", text(&path)]);
    assert!(listed.contains(&format!("user:{ALICE}:rw-\t#effective:r--")), "{listed}");
    ok("setfacl", &["-b", text(&path)]);
    assert!(!may(ALICE, ALICE, point, read));
    assert!(ok("ls", &["-l", text(&path)]).starts_with("-rw------- "), "the group's own entry shows again");
    // A list set by its owner, who is not in the group, takes the set-group-id bit away.
    chown(&path, BOB, TEAM);
    chmod(&path, 0o2755);
    assert!(may(BOB, BOB, point, &format!("setfacl -m u:{ALICE}:r $D/listed")));
    assert_eq!(mode(&path), 0o755);
    assert!(!may(ALICE, ALICE, point, &format!("setfacl -m u:{ALICE}:rwx $D/listed")));
}

fn default_lists_are_inherited(point: &Path) {
    let directory = point.join("inherits");
    fs::create_dir(&directory).unwrap();
    ok("setfacl", &["-d", "-m", &format!("u:{ALICE}:rwx,o::-"), text(&directory)]);
    assert!(may(
        0,
        0,
        &directory,
        "umask 077; echo x > $D/f && mkdir $D/d && echo y > $D/d/g && ln -s f $D/l"
    ));
    assert_eq!((mode(&directory.join("f")), mode(&directory.join("d"))), (0o660, 0o770));
    assert!(may(ALICE, ALICE, &directory, "cat $D/f $D/d/g && echo z > $D/d/h"));
    assert!(!may(BOB, BOB, &directory, "cat $D/f"));
    assert!(
        ok("getfacl", &["-nc", text(&directory.join("d"))]).contains(&format!("default:user:{ALICE}:rwx"))
    );
    ok("setfacl", &["-k", text(&directory)]);
    assert!(may(0, 0, &directory, "umask 077; touch $D/plain"));
    assert_eq!(mode(&directory.join("plain")), 0o600);
}

fn lists_are_copied(point: &Path) {
    let (from, to) = (point.join("copied"), point.join("copy"));
    fs::write(&from, "x").unwrap();
    ok("setfacl", &["-m", &format!("u:{ALICE}:r"), text(&from)]);
    ok("cp", &["-a", text(&from), text(&to)]);
    assert_eq!(ok("getfacl", &["-ncp", text(&from)]), ok("getfacl", &["-ncp", text(&to)]));
}
