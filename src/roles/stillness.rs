//! A process in which nothing moves any more ends.
//!
//! A namenode notices by itself that its disk does not answer ([`cairn_namenode`]), as long as something of it still
//! runs. But whoever reads the store waits for whoever writes it: with a disk that hangs, all threads of the runtime may
//! come to wait, timers among what they do not get to. So this one is none of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::exit;

/// Steps are counted, not time: a process that was stopped and goes on did not stand still meanwhile.
const STEP: Duration = Duration::from_secs(5);
/// So many steps without a beat are an end. A half more than it takes to notice a hung disk otherwise.
const STEPS: u32 = 9;
/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);

/// Ends the process when its runtime, in which this is called, has stood still for three quarters of a minute. What was
/// acknowledged is on disk.
pub fn watch() -> std::io::Result<()> {
    watch_every(STEP, BEAT)
}

fn watch_every(step: Duration, beat: Duration) -> std::io::Result<()> {
    let beats = Arc::new(AtomicU64::new(0));
    let heart = beats.clone();
    tokio::spawn(async move {
        loop {
            heart.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(beat).await;
        }
    });
    let watcher = std::thread::Builder::new().name("watchdog".into());
    watcher.spawn(move || {
        let mut seen = Seen::default();
        while !seen.still(beats.load(Ordering::Relaxed)) {
            std::thread::sleep(step);
        }
        tracing::error!("the disk does not answer: nothing moves in this process; it ends");
        std::process::exit(i32::from(exit::FAILED));
    })?;
    Ok(())
}

#[derive(Default)]
struct Seen {
    beats: u64,
    steps: u32,
}

impl Seen {
    /// Whether there was no beat for too many looks.
    fn still(&mut self, beats: u64) -> bool {
        self.steps = if beats == self.beats { self.steps + 1 } else { 0 };
        self.beats = beats;
        self.steps >= STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alone;

    #[test]
    fn every_beat_counts_from_the_beginning() {
        let mut seen = Seen::default();
        for beat in 1..100 {
            let looks = (1..=STEPS).map(|_| seen.still(beat)).collect::<Vec<_>>();
            assert!(!looks.contains(&true), "{beat}");
        }
        assert!(seen.still(99), "and one look more");
    }

    /// What the next test runs in a process of its own.
    #[test]
    #[ignore = "another test starts it, and sees how it ends"]
    fn a_runtime_all_of_whose_threads_wait() {
        if !alone::is_asked_for() {
            return;
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            watch_every(Duration::from_millis(10), Duration::from_millis(1)).unwrap();
            for _ in 0..2 {
                tokio::spawn(async { std::thread::sleep(Duration::from_secs(600)) });
            }
            std::future::pending::<()>().await;
        });
    }

    #[test]
    fn a_process_that_stands_still_ends() {
        let name = "roles::stillness::tests::a_runtime_all_of_whose_threads_wait";
        let ended = alone::command(name).output().unwrap();
        assert_eq!(ended.status.code(), Some(i32::from(exit::FAILED)), "{ended:?}");
    }
}
