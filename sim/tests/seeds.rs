//! Some runs of a whole cluster, and some of them twice. More: `just sim 0..100000`.

use std::process::Command;

fn runs(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_cairn-sim")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn seeds_hold_every_invariant() {
    runs(&["--seeds", "21..40", "--jobs", "2", "--keep-going"]);
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    runs(&["--seeds", "40..46", "--twice"]);
}
