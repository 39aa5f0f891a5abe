//! Runs of a whole cluster in one thread, each under the faults of its seed, and some of them twice. More:
//! `just sim 0..100000`.
//!
//! There is no harness: each run is a copy of this process, which may have one thread only.

use std::process::ExitCode;

use cairn_sim::entropy;
use cairn_sim::runner::Batch;

/// Seeds that are run.
const SEEDS: u64 = 200;
/// Seeds that are run twice.
const TWICE: u64 = 5;

fn main() -> ExitCode {
    // As a test: `cargo test NAME` runs it when its name fits, and whatever lists tests finds this one.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("simulation: test");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("runs {SEEDS} seeds; `just sim FROM..TO` runs others");
        return ExitCode::SUCCESS;
    }
    let mut names = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
    if names.peek().is_some() && !names.any(|name| "simulation".contains(name.as_str())) {
        return ExitCode::SUCCESS;
    }
    assert!(entropy::is_repeatable(), "randomness is not under control in this build");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds = Batch { from: 0, to: SEEDS, jobs, twice: false, keep_going: true, trace: false };
    let twice = Batch { to: TWICE, twice: true, ..seeds.clone() };
    if seeds.run() + twice.run() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
