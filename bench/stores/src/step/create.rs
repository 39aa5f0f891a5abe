//! Creating files: in batches, one by one, and without end.

use std::time::{Duration, Instant};

use cairn_metadata::store::Store;

use crate::Failure;
use crate::measure::{Figures, anonymous_bytes};
use crate::population::Population;
use crate::writer::{Writer, files};

/// Commands of one transaction, as a busy leader collects them.
pub const BATCH: u64 = 64;
const SINGLE_FOR: Duration = Duration::from_secs(8);

/// Fills an empty store.
pub fn fill(store: &dyn Store, population: Population) -> Result<Figures, Failure> {
    let mut writer = Writer::begin(store)?;
    writer.make_directories(population)?;
    writer.finish()?;
    (writer.applied, writer.durable) = Default::default();
    let start = Instant::now();
    let mut next = 0;
    while next < population.files {
        let end = population.files.min(next + BATCH);
        writer.create(population, next..end)?;
        next = end;
    }
    let seconds = start.elapsed().as_secs_f64();
    writer.finish()?;
    let mut figures = Figures::default();
    figures.add("creates/s, batch 64", population.files as f64 / seconds);
    figures.add("apply p50 ms", writer.applied.quantile_ms(0.5));
    figures.add("apply p99.9 ms", writer.applied.quantile_ms(0.999));
    figures.add("apply worst ms", writer.applied.worst_ms());
    figures.add("durable commit p50 ms", writer.durable.quantile_ms(0.5));
    figures.add("durable commit worst ms", writer.durable.worst_ms());
    figures.add("heap MiB", anonymous_bytes() as f64 / f64::from(1 << 20));
    Ok(figures)
}

/// Creates one file a transaction.
pub fn single(store: &dyn Store, population: Population) -> Result<Figures, Failure> {
    let mut writer = Writer::begin(store)?;
    let first = files(store)?;
    let start = Instant::now();
    let mut next = first;
    while start.elapsed() < SINGLE_FOR {
        writer.create(population, next..next + 1)?;
        next += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    writer.finish()?;
    let mut figures = Figures::default();
    figures.add("creates/s, batch 1", (next - first) as f64 / seconds);
    figures.add("apply p99.9 ms, batch 1", writer.applied.quantile_ms(0.999));
    Ok(figures)
}

/// Creates files until the process is killed.
pub fn flood(store: &dyn Store, population: Population) -> Result<Figures, Failure> {
    let mut writer = Writer::begin(store)?;
    let mut next = files(store)?;
    println!("started");
    loop {
        writer.create(population, next..next + BATCH)?;
        next += BATCH;
    }
}
