//! Tests that run in a process of their own, since what they do ends it. Each is ignored unless another test starts it.

use std::process::Command;

const ASKED: &str = "CAIRN_TEST_ALONE";

/// Runs the test of this name, with its modules, in a process of its own.
pub fn command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", test]).env(ASKED, test);
    command
}

/// Whether this process was started for that.
pub fn is_asked_for() -> bool {
    std::env::var_os(ASKED).is_some()
}
