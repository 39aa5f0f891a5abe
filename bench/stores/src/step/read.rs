//! Looking files up and listing directories.

use std::time::{Duration, Instant};

use cairn_metadata::store::Store;
use cairn_proto::ROOT_INODE;
use cairn_proto::fs::query::Op;
use cairn_proto::fs::{Cred, ListDirectory, NodeRef, Query, Stat, answer};

use crate::Failure;
use crate::measure::Figures;
use crate::population::{LISTED, Population, mixed};

const READ_FOR: Duration = Duration::from_secs(4);
const LIST_LIMIT: u32 = 1_000;
/// Passes over the listed directories; the median of all listings is shown.
const LIST_PASSES: u64 = 3;

fn ask(store: &dyn Store, op: Op) -> Result<answer::Result, Failure> {
    let query = Query { op: Some(op) };
    let mut result = None;
    store.read(&mut |view| {
        result = cairn_metadata::answer(view, &Cred::default(), &query)?.result;
        Ok(())
    })?;
    match result {
        Some(answer::Result::Error(error)) => Err(Failure::Refused(error.into())),
        Some(result) => Ok(result),
        None => Err(Failure::Wrong("no answer".into())),
    }
}

fn stat(store: &dyn Store, at: Option<NodeRef>) -> Result<(), Failure> {
    match ask(store, Op::Stat(Stat { at, follow: false }))? {
        answer::Result::Attr(_) => Ok(()),
        other => Err(Failure::Wrong(format!("a stat came to {other:?}"))),
    }
}

/// Asks for random files for a while; returns how many a second.
fn lookups(
    store: &dyn Store,
    seed: u64,
    at: impl Fn(u64) -> Option<NodeRef>,
    files: u64,
) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < READ_FOR {
        for _ in 0..64 {
            stat(store, at(mixed(seed + done) % files))?;
            done += 1;
        }
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// Milliseconds for 1,000 entries with their attributes: the first pass, and the median of the later ones.
fn listings(store: &dyn Store, directories: impl Fn(u64) -> u64) -> Result<(f64, f64), Failure> {
    let mut passes = Vec::new();
    for _ in 0..LIST_PASSES {
        let mut times = Vec::new();
        for index in 0..LISTED {
            let at = Some(NodeRef { inode: directories(index), path: Default::default() });
            let start = Instant::now();
            let list = ListDirectory { at, limit: LIST_LIMIT, ..ListDirectory::default() };
            let answer::Result::Listing(listing) = ask(store, Op::List(list))? else {
                return Err(Failure::Wrong("a listing came to something else".into()));
            };
            let entries = listing.entries.len();
            if entries == 0 {
                return Err(Failure::Wrong("a listed directory is empty".into()));
            }
            times.push(start.elapsed().as_secs_f64() * 1e3 * f64::from(LIST_LIMIT) / entries as f64);
        }
        times.sort_by(f64::total_cmp);
        passes.push(times[times.len() / 2]);
    }
    let first = passes.remove(0);
    passes.sort_by(f64::total_cmp);
    Ok((first, passes[passes.len() / 2]))
}

/// Everything that only reads.
pub fn read(store: &dyn Store, population: Population) -> Result<Figures, Failure> {
    let directory = |number| population.directory_inode(number);
    // First of all, while the engine's own cache is cold.
    let (cold, scattered) = listings(store, |index| directory(population.scattered(index)))?;
    let (_, together) = listings(store, |index| directory(population.together(index)))?;
    let files = population.files;
    let mut figures = Figures::default();
    // One pass to warm the engine's cache before anything counts.
    lookups(store, 1 << 40, |file| population.by_path(file), files)?;
    figures.add("path lookups/s, 1 thread", lookups(store, 1 << 41, |file| population.by_path(file), files)?);
    let inode = |file| {
        let first = ROOT_INODE + 1 + population.directories();
        Some(NodeRef { inode: first + file, path: Default::default() })
    };
    figures.add("inode lookups/s, 1 thread", lookups(store, 1 << 42, inode, files)?);
    let both = std::thread::scope(|scope| {
        let run = |seed| scope.spawn(move || lookups(store, seed, |file| population.by_path(file), files));
        let threads = [run(1 << 43), run(1 << 44)];
        threads
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Failure::Wrong("a reader panicked".into()))))
    });
    let [one, other] = both;
    figures.add("path lookups/s, 2 threads", one? + other?);
    figures.add("list 1,000 scattered, first ms", cold);
    figures.add("list 1,000 scattered, ms", scattered);
    figures.add("list 1,000 together, ms", together);
    Ok(figures)
}
