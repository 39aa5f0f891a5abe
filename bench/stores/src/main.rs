//! Compares the store engines that could hold the namespace, by the namespace's own workload.
//!
//! Every figure comes from the real state machine (`cairn_metadata::apply` and `answer`) over an engine. Each step
//! runs in a process of its own, and the engines take turns within a step, so that what else the machine does falls
//! on all of them alike. `docs/decisions/0002-namespace-store.md` holds what came out.
//!
//! ```text
//! cargo run --release -- compare                            # a million files, every engine, medians of 3
//! cargo run --release -- compare --files 10000000 --rounds 1
//! cargo run --release -- crash                              # kill -9, ten times each
//! ```

mod compare;
mod crash_test;
mod engine;
mod measure;
mod population;
mod step;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

use cairn_metadata::store::StoreError;
use clap::{Parser, Subcommand};

use crate::engine::Engine;
use crate::step::{Step, Work};

/// Why a comparison ended early.
#[derive(Debug)]
pub enum Failure {
    /// The engine failed.
    Store(StoreError),
    /// The namespace refused what must succeed.
    Refused(cairn_proto::Error),
    /// The namespace answered something else than was asked.
    Wrong(String),
    /// A process or a file.
    Io(std::io::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Store(error) => error.fmt(f),
            Failure::Refused(error) => write!(f, "refused: {error}"),
            Failure::Wrong(what) => f.write_str(what),
            Failure::Io(error) => error.fmt(f),
        }
    }
}

#[derive(Debug, Parser)]
#[command(about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

/// What every comparison needs to know.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Engines, in the order they take turns.
    #[arg(long, value_delimiter = ',', default_value = "redb,fjall,lmdb,lmdb-sync")]
    engines: Vec<Engine>,
    /// Files each store is filled with.
    #[arg(long, default_value_t = 1_000_000)]
    files: u64,
    /// Times everything is done (medians are shown), or times a writer is killed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The engines' own cache, in MiB.
    #[arg(long, default_value_t = 1_024)]
    cache_mib: usize,
    /// Where the stores lie while they are compared; by default a temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fill, read, snapshot and reopen each engine's store, and print a table.
    Compare(Settings),
    /// Kill a writer at random moments and check what is left.
    Crash(Settings),
    /// One step over one store, as the other commands run it.
    #[command(hide = true)]
    Step {
        step: Step,
        #[command(flatten)]
        work: Work,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Compare(settings) => compare::compare(&settings),
        Task::Crash(settings) => crash_test::crash_test(&settings),
        Task::Step { step, work } => step::run(step, &work).map(|figures| figures.print()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
