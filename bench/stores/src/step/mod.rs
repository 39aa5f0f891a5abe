//! The steps of the comparison. Each runs in a process of its own over a store that lies in a directory.

mod check;
mod crash;
mod create;
mod read;
mod snapshot;

use std::path::PathBuf;
use std::time::Instant;

use cairn_metadata::store::Store;
use clap::{Args, ValueEnum};

use crate::Failure;
use crate::engine::Engine;
use crate::measure::{Figures, disk_bytes};
use crate::population::Population;
use crate::writer::files;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Create all files, in batches of 64.
    Fill,
    /// Open the store and ask for one record.
    Open,
    /// Create files one a batch.
    Single,
    /// Look files up and list directories.
    Read,
    /// Stream a snapshot while another thread creates.
    Snapshot,
    /// Create until killed.
    Flood,
    /// Create, commit, rename and remove until killed, saying how far it is.
    Crash,
    /// Check everything there is.
    Check,
}

/// Where and on what a step works.
#[derive(Debug, Clone, Args)]
pub struct Work {
    /// The engine.
    #[arg(long)]
    pub engine: Engine,
    /// The store's directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// Files the store is filled with.
    #[arg(long)]
    pub files: u64,
    /// The engine's cache, in MiB.
    #[arg(long)]
    pub cache_mib: usize,
}

impl Work {
    /// The files there are.
    pub fn population(&self) -> Population {
        Population { files: self.files }
    }

    fn open(&self) -> Result<Box<dyn Store>, Failure> {
        Ok(self.engine.open(&self.dir, self.cache_mib << 20)?)
    }
}

/// Runs a step and returns its figures.
pub fn run(step: Step, work: &Work) -> Result<Figures, Failure> {
    let start = Instant::now();
    let store = work.open()?;
    let mut figures = match step {
        Step::Fill => create::fill(&*store, work.population())?,
        Step::Open => {
            let found = files(&*store)?;
            let mut figures = Figures::default();
            figures.add("open ms", start.elapsed().as_secs_f64() * 1e3);
            figures.add("files", found as f64);
            figures
        }
        Step::Single => create::single(&*store, work.population())?,
        Step::Read => read::read(&*store, work.population())?,
        Step::Snapshot => snapshot::snapshot(&*store, work.population())?,
        Step::Flood => create::flood(&*store, work.population())?,
        Step::Crash => crash::crash(&*store)?,
        Step::Check => check::check(&*store)?,
    };
    drop(store);
    if step == Step::Fill {
        figures.add("disk bytes/file", disk_bytes(&work.dir)? as f64 / work.files as f64);
    }
    Ok(figures)
}
