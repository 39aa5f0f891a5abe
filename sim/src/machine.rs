//! Machines and the time they live in.
//!
//! Each process has a runtime of its own with a clock that stands still unless it is driven. Time goes on in steps;
//! in each step every machine runs up to its end, one after the other in an order of the seed, and jumps from timer
//! to timer inside. No message takes less than a step, so what a machine does in a step cannot touch another before
//! the next one, and the order among them does not matter to them. A crash drops the runtime with all its tasks; a
//! frozen machine is not run, and finds out afterwards how late it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::random::Random;

/// How far time goes at once, and the shortest time a message takes, in nanoseconds.
pub const STEP: u64 = 10_000_000;

/// A machine by its number.
pub type Id = usize;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static RUNNING: Cell<Option<(u64, Instant)>> = const { Cell::new(None) };
    static NAME: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Nanoseconds since the run began, as exact as whoever asks can know.
pub fn now() -> u64 {
    match RUNNING.get() {
        Some((base, instant)) => base + Instant::now().duration_since(instant).as_nanos() as u64,
        None => NOW.get(),
    }
}

/// The instant of a time, on the clock of the machine that runs now.
pub fn instant_of(time: u64) -> Instant {
    let (base, instant) = RUNNING.get().unwrap_or_else(|| (NOW.get(), Instant::now()));
    instant + Duration::from_nanos(time.saturating_sub(base))
}

/// The machine that runs now; empty between them.
pub fn current_name() -> String {
    NAME.with_borrow(Clone::clone)
}

struct Machine {
    name: String,
    running: Option<(Runtime, u64, Instant)>,
    frozen_until: u64,
}

/// All machines of a run.
pub struct Machines {
    random: Random,
    all: BTreeMap<Id, Machine>,
}

impl Machines {
    /// No machine yet, at time 0.
    pub fn new(seed: u64) -> Machines {
        NOW.set(0);
        RUNNING.set(None);
        Machines { random: Random::new(seed, "machines"), all: BTreeMap::new() }
    }

    /// Starts a process on a machine; what ran there before must have ended.
    pub fn start(&mut self, id: Id, name: &str, process: impl Future<Output = ()> + Send + 'static) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O needs nothing that could be missing");
        let base = runtime.block_on(async { Instant::now() });
        let machine = self.all.entry(id).or_insert_with(|| Machine {
            name: name.to_owned(),
            running: None,
            frozen_until: 0,
        });
        assert!(machine.running.is_none(), "{name} runs already");
        machine.frozen_until = 0;
        let begun = NOW.get();
        Self::inside(name, (begun, base), || runtime.spawn(process));
        machine.running = Some((runtime, begun, base));
    }

    /// Everything on a machine ends where it is.
    pub fn crash(&mut self, id: Id) {
        let Some(machine) = self.all.get_mut(&id) else { return };
        if let Some((runtime, ..)) = machine.running.take() {
            NAME.with_borrow_mut(|current| machine.name.clone_into(current));
            drop(runtime);
            NAME.with_borrow_mut(String::clear);
        }
    }

    /// Whether a process was started and not crashed.
    pub fn is_up(&self, id: Id) -> bool {
        self.all.get(&id).is_some_and(|machine| machine.running.is_some())
    }

    /// Nothing on a machine runs for a while.
    pub fn freeze(&mut self, id: Id, time: Duration) {
        if let Some(machine) = self.all.get_mut(&id) {
            machine.frozen_until = NOW.get() + time.as_nanos() as u64;
        }
    }

    /// Ends all freezing.
    pub fn thaw(&mut self) {
        self.all.values_mut().for_each(|machine| machine.frozen_until = 0);
    }

    /// Lets time go on by a step.
    pub fn step(&mut self) {
        let (from, until) = (NOW.get(), NOW.get() + STEP);
        let mut order: Vec<Id> = self.all.keys().copied().collect();
        self.random.shuffle(&mut order);
        for id in order {
            let Some(machine) = self.all.get_mut(&id) else { continue };
            let Some((runtime, begun, base)) = &machine.running else { continue };
            if machine.frozen_until > from {
                continue;
            }
            let (start, end) =
                (*base + Duration::from_nanos(from - begun), *base + Duration::from_nanos(until - begun));
            Self::inside(&machine.name, (*begun, *base), || {
                runtime.block_on(async move {
                    let behind = start.saturating_duration_since(Instant::now());
                    if !behind.is_zero() {
                        // It was frozen: all its timers are due at once.
                        tokio::time::advance(behind).await;
                    }
                    tokio::time::sleep_until(end).await;
                });
            });
        }
        NOW.set(until);
    }

    fn inside<T>(name: &str, base: (u64, Instant), work: impl FnOnce() -> T) -> T {
        NAME.with_borrow_mut(|current| name.clone_into(current));
        RUNNING.set(Some(base));
        let result = work();
        RUNNING.set(None);
        NAME.with_borrow_mut(String::clear);
        result
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        let all: Vec<Id> = self.all.keys().copied().collect();
        all.into_iter().for_each(|id| self.crash(id));
    }
}
