//! Requests that wait, and how a signal gets a program out of them.
//!
//! The kernel says of a request that its waiter was sent a signal, but neither which nor whether the program handles
//! it. A program that waits for a lock is answered at once. Any other request is left alone, because a timer's signal
//! must not disturb an ordinary operation: it is answered with EINTR only after a grace, and then only if the waiter
//! is dying or the cluster does not answer at all. What it began goes on, so nothing is left half done.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long a request goes on after an interrupt, and how long the cluster is silent, before it is given up.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether a request may be given up.
const LOOK: Duration = Duration::from_millis(100);
/// The same for a file that is being closed.
const LOOK_AT_CLOSES: Duration = Duration::from_millis(500);

/// A signal that was sent to whoever waits for a request.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: AtomicBool,
    told: Notify,
}

impl Signal {
    fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    /// Returns once it has come.
    pub(crate) async fn raised(&self) {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if self.raised.load(Ordering::Acquire) {
                return;
            }
            told.await;
        }
    }
}

struct Waiting {
    pid: u32,
    interrupted: bool,
    /// For a request that answers interrupts itself.
    signal: Option<Arc<Signal>>,
}

#[derive(Default)]
struct Requests {
    waiting: HashMap<u64, Waiting>,
    /// Answered with EINTR while what they began goes on.
    abandoned: HashSet<u64>,
}

/// What an interrupt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A request that is not known, or not yet.
    Unknown,
    /// A request that sees to it itself, or has been interrupted before.
    SeenTo,
    /// A request that is to be given up if it does not end by itself.
    Watch,
}

/// The requests of one mount that wait. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Interrupts(Arc<Mutex<Requests>>);

impl Interrupts {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request `unique` of the thread `pid` waits from now on, until the ticket is dropped.
    pub(crate) fn enter(&self, unique: u64, pid: u32, signal: Option<Arc<Signal>>) -> Ticket {
        self.lock().waiting.insert(unique, Waiting { pid, interrupted: false, signal });
        Ticket { interrupts: self.clone(), unique }
    }

    /// Asked just before the answer: whether it will be heard. From then on, nobody else answers.
    pub(crate) fn settle(&self, unique: u64) -> bool {
        let mut requests = self.lock();
        requests.waiting.remove(&unique);
        !requests.abandoned.contains(&unique)
    }

    /// A signal was sent to whoever waits for the request.
    pub(crate) fn interrupt(&self, unique: u64) -> Heard {
        let mut requests = self.lock();
        match requests.waiting.get_mut(&unique) {
            None => Heard::Unknown,
            Some(Waiting { signal: Some(signal), .. }) => {
                signal.raise();
                Heard::SeenTo
            }
            Some(waiting) => match std::mem::replace(&mut waiting.interrupted, true) {
                true => Heard::SeenTo,
                false => Heard::Watch,
            },
        }
    }

    /// Waits until the request is over, or may be given up; true: the caller is to answer it with EINTR.
    pub(crate) async fn gives_up(&self, unique: u64, silence: impl Fn() -> Duration) -> bool {
        let since = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(pid) = self.waiter(unique) else { return false };
            let hopeless = silence() >= GRACE || is_dying(pid);
            if since.elapsed() >= GRACE && hopeless {
                return self.abandon(unique);
            }
        }
    }

    /// As [`Interrupts::gives_up`], for a request whose waiter may be closing its files because it was killed: no
    /// signal interrupts that.
    pub(crate) async fn outlives_its_waiter(&self, unique: u64, silence: impl Fn() -> Duration) -> bool {
        tokio::time::sleep(GRACE).await;
        loop {
            let Some(pid) = self.waiter(unique) else { return false };
            if silence() >= GRACE && is_dying(pid) {
                return self.abandon(unique);
            }
            tokio::time::sleep(LOOK_AT_CLOSES).await;
        }
    }

    fn waiter(&self, unique: u64) -> Option<u32> {
        self.lock().waiting.get(&unique).map(|waiting| waiting.pid)
    }

    fn abandon(&self, unique: u64) -> bool {
        let mut requests = self.lock();
        let waited = requests.waiting.remove(&unique).is_some();
        if waited {
            requests.abandoned.insert(unique);
        }
        waited
    }
}

/// A request that waits.
pub(crate) struct Ticket {
    interrupts: Interrupts,
    unique: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut requests = self.interrupts.lock();
        requests.waiting.remove(&self.unique);
        requests.abandoned.remove(&self.unique);
    }
}

/// Whether a thread has been sent a signal that ends it, or is ending. Unknown threads, as those of another
/// container, count as living.
fn is_dying(pid: u32) -> bool {
    if pid == 0 {
        return false;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    kill_is_pending(&status) || is_exiting(&stat)
}

/// The kernel turns every signal that ends a program into SIGKILL for each of its threads.
fn kill_is_pending(status: &str) -> bool {
    let mask = |name| {
        let line = status.lines().find_map(|line: &str| line.strip_prefix(name));
        line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & (1 << (libc::SIGKILL - 1)) != 0
}

fn is_exiting(stat: &str) -> bool {
    /// `PF_EXITING`, and which field after the program's name holds it.
    const EXITING: u64 = 0x4;
    const FLAGS: usize = 6;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = after_name.split_ascii_whitespace().nth(FLAGS).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ordinary_request_is_left_alone_while_the_cluster_answers() {
        let interrupts = Interrupts::default();
        let _ticket = interrupts.enter(4, 0, None);
        assert_eq!(interrupts.interrupt(5), Heard::Unknown);
        assert_eq!(interrupts.interrupt(4), Heard::Watch);
        assert_eq!(interrupts.interrupt(4), Heard::SeenTo, "watched already");
        let watch = interrupts.gives_up(4, || Duration::ZERO);
        assert!(tokio::time::timeout(GRACE + 3 * LOOK, watch).await.is_err());
        assert!(interrupts.settle(4));
        assert!(!interrupts.gives_up(4, || GRACE).await, "it is over");
    }

    #[tokio::test]
    async fn a_request_nobody_answers_is_given_up_once() {
        let interrupts = Interrupts::default();
        let ticket = interrupts.enter(4, 0, None);
        assert!(interrupts.gives_up(4, || GRACE).await);
        assert!(!interrupts.settle(4), "what comes now is not heard");
        assert!(!interrupts.gives_up(4, || GRACE).await);
        drop(ticket);
        assert!(interrupts.lock().abandoned.is_empty());
    }

    #[tokio::test]
    async fn a_signal_is_heard_before_and_after_it_is_waited_for() {
        let interrupts = Interrupts::default();
        let signal = Arc::new(Signal::default());
        let _ticket = interrupts.enter(4, 0, Some(signal.clone()));
        let waiting = tokio::spawn({
            let signal = signal.clone();
            async move { signal.raised().await }
        });
        assert_eq!(interrupts.interrupt(4), Heard::SeenTo);
        waiting.await.unwrap();
        signal.raised().await;
    }

    #[test]
    fn a_dying_thread_is_told_from_a_living_one() {
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(0) && !is_dying(u32::MAX));
        assert!(kill_is_pending("Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(kill_is_pending("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n"));
        assert!(!kill_is_pending("SigPnd:\t0000000000000002\nShdPnd:\t0000000000000000\n"));
        assert!(is_exiting("77 (a) b) R 1 77 77 0 -1 4194308 0 0"));
        assert!(!is_exiting("77 (a) b) S 1 77 77 0 -1 4194304 0 0"));
        assert!(!is_exiting(""));
    }
}
