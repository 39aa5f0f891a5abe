//! Scrubbing: everything that is held is read and verified in the background, so that damage is found and mended
//! while other replicas are good, also where nobody reads.
//!
//! One thread goes through the sealed replicas in order of their chunks, at a rate, and at a quarter of it while
//! clients use the same disk. Bad replicas are reported like those that a client comes across. Where it is, it keeps
//! in a small file, written once a minute at most besides the beginning and the end of a pass.

mod progress;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cairn_proto::fs::ScrubInfo;
use cairn_proto::{ErrorCode, Result};

use crate::pace::Pace;
use crate::store::{Phase, Replica, Store, locked, speaks_against};
use progress::Progress;

/// Between two looks at whether a pass is due.
const LOOK: Duration = Duration::from_secs(1);
/// Between two writes of the file.
const SAVE: Duration = Duration::from_secs(60);
/// What a step costs while clients use the disk.
const BUSY_COST: usize = 4;

/// How often and how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// From one pass's beginning to the next one's; zero: only when asked.
    pub period: Duration,
    /// Most bytes read a second; 0: as fast as the disks give them.
    pub bytes_per_second: u64,
}

/// The scrubber of one datanode.
pub struct Scrubber {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: Arc<Store>,
    plan: Plan,
    progress: Mutex<Progress>,
    wake: Condvar,
    stopping: AtomicBool,
}

impl Scrubber {
    /// Goes on where the last run stopped.
    pub fn start(store: Arc<Store>, plan: Plan) -> Result<Scrubber> {
        let progress = store.load_scrub().and_then(|text| Progress::decode(&text)).unwrap_or_default();
        store
            .notices()
            .remember(progress.found, progress.mended, &progress.bad, |chunk| store.get(chunk).is_ok());
        let shared = Arc::new(Shared {
            store,
            plan,
            progress: Mutex::new(progress),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        let worker = shared.clone();
        let thread = Builder::new()
            .name("scrub".into())
            .spawn(move || worker.run())
            .map_err(|error| ErrorCode::Unavailable.because(format!("scrubbing: {error}")))?;
        Ok(Scrubber { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Reads these replicas soon, or all of them when none is named.
    pub fn ask_for(&self, chunks: &[u64]) {
        let total = self.shared.store.replica_count();
        let mut progress = locked(&self.shared.progress);
        if chunks.is_empty() {
            progress.begin(total, now_ns());
            tracing::info!(replicas = progress.total, "scrubbing everything, as ordered");
        }
        progress.ask_for(chunks);
        self.shared.wake.notify_all();
    }

    /// How far it is.
    pub fn info(&self) -> ScrubInfo {
        let (found, mended) = self.shared.store.notices().counts();
        let progress = locked(&self.shared.progress);
        let period = self.shared.plan.period;
        let next = if period.is_zero() { None } else { progress.due_ns(period) };
        ScrubInfo {
            enabled: !period.is_zero(),
            verified: progress.verified,
            left: progress.left(),
            pass_began_ns: progress.began_ns,
            full_pass_ns: progress.full_ns,
            next_pass_ns: next.unwrap_or(0),
            found,
            mended,
        }
    }

    /// Ends it and keeps where it was.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake.notify_all();
        if let Some(thread) = locked(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        let mut saved = Instant::now();
        let mut kept = locked(&self.progress).clone();
        let mut pace = Pace::new(self.plan.bytes_per_second);
        while !self.stopping.load(Ordering::Acquire) {
            let (worked, at_an_edge) = self.step(&mut pace);
            if at_an_edge || saved.elapsed() >= SAVE {
                self.save(&mut kept);
                saved = Instant::now();
            }
            if !worked {
                let progress = locked(&self.progress);
                let waited = self.wake.wait_timeout(progress, LOOK);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
        self.save(&mut kept);
    }

    /// Reads one replica, if there is one to read; and says whether a pass began or ended.
    fn step(&self, pace: &mut Pace) -> (bool, bool) {
        let mut progress = locked(&self.progress);
        if let Some(chunk) = progress.take_asked() {
            drop(progress);
            if let Ok(replica) = self.store.get(chunk) {
                self.verify(&replica, pace);
            }
            return (true, false);
        }
        let Some(next) = progress.next else {
            let due = !self.plan.period.is_zero() && progress.is_due(self.plan.period, now_ns());
            if due {
                progress.begin(self.store.replica_count(), now_ns());
                tracing::info!(replicas = progress.total, "scrubbing everything");
            }
            return (due, due);
        };
        let Some(replica) = self.store.sealed_from(next) else {
            progress.finish(now_ns());
            tracing::info!(replicas = progress.verified, "everything is scrubbed");
            return (true, true);
        };
        let began = progress.began_ns;
        drop(progress);
        let done = self.verify(&replica, pace);
        let mut progress = locked(&self.progress);
        // Another pass may have been ordered meanwhile.
        if done && progress.began_ns == began && progress.next == Some(next) {
            progress.passed(replica.chunk());
        }
        (true, false)
    }

    /// False when the datanode stops before the replica's end.
    fn verify(&self, replica: &Arc<Replica>, pace: &mut Pace) -> bool {
        let mut seen = replica.dir().activity();
        let result = replica.verify(&mut |bytes| {
            let activity = replica.dir().activity();
            let busy = std::mem::replace(&mut seen, activity) != activity;
            // In short waits, so that a stop does not have to wait for a slow rate.
            pace.wait_while(if busy { bytes * BUSY_COST } else { bytes }, || {
                !self.stopping.load(Ordering::Acquire)
            })
        });
        match result {
            Ok(whole) => whole,
            Err(error) => {
                let is_bad = speaks_against(error.code);
                if is_bad && replica.phase() == Phase::Sealed {
                    self.store.accuse(replica, &format!("scrubbing: {error}"));
                } else {
                    tracing::debug!(chunk = replica.chunk(), %error, "not scrubbed");
                }
                true
            }
        }
    }

    fn save(&self, kept: &mut Progress) {
        let notices = self.store.notices();
        let progress = {
            let mut progress = locked(&self.progress);
            (progress.found, progress.mended) = notices.counts();
            progress.bad = notices.all_bad();
            progress.clone()
        };
        if progress == *kept {
            return;
        }
        match self.store.save_scrub(&progress.encode()) {
            Ok(()) => *kept = progress,
            Err(error) => {
                tracing::warn!(%error, "where scrubbing is cannot be kept; a restart begins a new pass")
            }
        }
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
