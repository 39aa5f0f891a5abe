//! Runs seeds: `cairn-sim --seeds 0..1000`, or `cairn-sim --seed 7 --trace` to see one.

use std::process::ExitCode;

use cairn_sim::entropy;
use cairn_sim::runner::Batch;
use clap::Parser;

/// A whole CairnFS cluster in one thread, driven by a seed.
#[derive(Parser)]
struct Arguments {
    /// Seeds to run, `from..to`.
    #[arg(long, value_parser = range, conflicts_with = "seed")]
    seeds: Option<(u64, u64)>,
    /// One seed, in detail.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints every event, and what the cluster logs at the level of `RUST_LOG` or `info`.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Runs every seed twice and compares the traces.
    #[arg(long)]
    twice: bool,
    /// Seeds that run at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Goes on after a violation.
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("want from..to")?;
    let number = |part: &str| part.parse::<u64>().map_err(|error| format!("{part}: {error}"));
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !entropy::is_repeatable() {
        eprintln!("randomness or time is not under control in this build: runs cannot be repeated");
        return ExitCode::FAILURE;
    }
    let (from, to) = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(seeds)) => seeds,
        (None, None) => (0, 200),
    };
    let batch = Batch {
        from,
        to,
        jobs: arguments.jobs,
        twice: arguments.twice,
        keep_going: arguments.keep_going,
        trace: arguments.trace,
    };
    if batch.run() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
