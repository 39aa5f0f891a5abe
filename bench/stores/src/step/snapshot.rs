//! A snapshot streamed while writing goes on, as a namenode does for one that lags behind.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cairn_metadata::store::{Store, Table};

use crate::Failure;
use crate::measure::Figures;
use crate::population::{Population, mixed};
use crate::step::create::BATCH;
use crate::writer::{Writer, files};

/// Streams a snapshot to a sink while another thread creates files.
pub fn snapshot(store: &dyn Store, population: Population) -> Result<Figures, Failure> {
    let done = AtomicBool::new(false);
    let held = files(store)?;
    let view = store.snapshot()?;
    let (streamed, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<_, Failure> {
            let mut writer = Writer::begin(store)?;
            let first = files(store)?;
            let mut next = first;
            let start = Instant::now();
            while !done.load(Ordering::Relaxed) {
                writer.create(population, next..next + BATCH)?;
                next += BATCH;
            }
            let rate = (next - first) as f64 / start.elapsed().as_secs_f64();
            Ok((rate, writer.applied.worst_ms(), writer.durable.worst_ms()))
        });
        let start = Instant::now();
        let mut sum = 0u64;
        let mut bytes = 0u64;
        let mut result = Ok(());
        for table in Table::ALL {
            result = result.and_then(|()| {
                view.scan(table, &[], &[], &mut |key, value| {
                    bytes += (key.len() + value.len()) as u64;
                    sum = mixed(
                        sum ^ value.iter().chain(key).fold(0u64, |sum, &byte| {
                            u64::wrapping_add(u64::wrapping_mul(sum, 31), u64::from(byte))
                        }),
                    );
                    ControlFlow::Continue(())
                })
            });
        }
        std::hint::black_box(sum);
        let seconds = start.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        let written = writer.join().unwrap_or_else(|_| Err(Failure::Wrong("the writer panicked".into())));
        (result.map(|()| (seconds, bytes)), written)
    });
    drop(view);
    let (seconds, bytes) = streamed?;
    let (rate, applied, durable) = written?;
    let mut figures = Figures::default();
    figures.add("snapshot s", seconds);
    figures.add("snapshot content bytes/file", bytes as f64 / held as f64);
    figures.add("creates/s during it", rate);
    figures.add("apply worst ms during it", applied.max(durable));
    Ok(figures)
}
