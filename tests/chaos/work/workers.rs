//! The workers: each does one kind of thing again and again until it is told to stop, and records it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::{Fault, Moment, Place};
use crate::check::render_record;
use crate::history::{Operation, Outcome, Recorder};

/// What is shared is shared for so long; then it gets new names, so that histories stay short.
const GENERATION: Duration = Duration::from_secs(10);
const REGISTERS: u64 = 3;
/// Of the stored files the oldest is removed when there are more.
const KEPT: usize = 1000;
/// Where a file is moved to and fro.
const SLOTS: [&str; 4] = ["a", "b", "c", "d"];

/// Names in use: `r` registers that are replaced, `w` registers that are written over, and so on.
pub struct Name;

impl Name {
    pub const DIRECTORIES: [&str; 7] = ["r", "w", "log", "move", "claim", "lock", "keep"];
}

/// What a worker does again and again.
type Job = fn(&mut Worker);
/// One worker at a time, and whether there is still anything to do.
type Turn = Arc<Mutex<bool>>;

/// What all workers share.
struct Shared {
    recorder: Arc<Recorder>,
    stop: AtomicBool,
    began: Instant,
    next: AtomicU64,
    /// Directories in which a file is moved, for those who look.
    moving: Mutex<BTreeMap<String, String>>,
    /// Files that were stored, oldest first.
    kept: Mutex<VecDeque<String>>,
}

impl Shared {
    fn generation(&self) -> u64 {
        self.began.elapsed().as_secs() / GENERATION.as_secs()
    }

    /// A number that nobody else has.
    fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// All workers at all places.
pub struct Crew {
    shared: Arc<Shared>,
    threads: Vec<(String, JoinHandle<()>)>,
}

impl Crew {
    /// Starts them.
    pub fn start(places: &[Arc<dyn Place>], recorder: &Arc<Recorder>, seed: u64) -> Crew {
        let shared = Arc::new(Shared {
            recorder: Arc::clone(recorder),
            stop: AtomicBool::new(false),
            began: Instant::now(),
            next: AtomicU64::new(0),
            moving: Mutex::default(),
            kept: Mutex::default(),
        });
        let jobs: [(&str, Job); 7] = [
            ("registers", registers),
            ("registers'", registers),
            ("appends", appends),
            ("moves", moves),
            ("claims", claims),
            ("counts", counts),
            ("files", files),
        ];
        let mut threads = Vec::new();
        for place in places {
            // A register that is written over is used by one worker of a place at a time: others at the same
            // place would see what is written and not synced.
            let alone = Arc::new(Alone::default());
            for (job, work) in jobs {
                let name = format!("{}/{job}", place.name());
                let mut worker = Worker {
                    by: name.clone(),
                    place: Arc::clone(place),
                    shared: Arc::clone(&shared),
                    random: SmallRng::seed_from_u64(seed ^ (threads.len() as u64 + 1) << 32),
                    alone: Arc::clone(&alone),
                };
                let keep = recorder.descriptor();
                let run = move || {
                    worker.place.settle(keep).expect("descriptors of its own");
                    while !worker.shared.stop.load(Ordering::Relaxed) {
                        work(&mut worker);
                    }
                };
                threads.push((name, thread::spawn(run)));
            }
        }
        Crew { shared, threads }
    }

    /// Ends them; names those that hang or failed.
    pub fn stop(self, patience: Duration) -> Vec<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let give_up = Instant::now() + patience;
        let mut wrong = Vec::new();
        for (name, thread) in self.threads {
            while !thread.is_finished() && Instant::now() < give_up {
                thread::sleep(Duration::from_millis(10));
            }
            if !thread.is_finished() {
                wrong.push(format!("{name} hangs"));
            } else if thread.join().is_err() {
                wrong.push(format!("{name} failed"));
            }
        }
        wrong
    }
}

#[derive(Default)]
struct Alone {
    registers: Mutex<BTreeMap<(u64, String), Turn>>,
}

impl Alone {
    /// The turn at a register of this generation, with whether it is still to be used here.
    fn at(&self, generation: u64, register: &str) -> Turn {
        let mut registers = lock(&self.registers);
        registers.retain(|(of, _), _| *of == generation);
        let turn = registers.entry((generation, register.into()));
        Arc::clone(turn.or_insert_with(|| Arc::new(Mutex::new(true))))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Worker {
    by: String,
    place: Arc<dyn Place>,
    shared: Arc<Shared>,
    random: SmallRng,
    alone: Arc<Alone>,
}

impl Worker {
    fn rest(&mut self, most_ms: u64) {
        thread::sleep(Duration::from_millis(self.random.random_range(most_ms / 4..=most_ms)));
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Does and records something whose result is no part of the record.
    fn act(&self, operation: Operation, action: impl FnOnce(&dyn Place) -> Result<(), Fault>) -> Outcome {
        let start = self.shared.recorder.now();
        let outcome = match action(&*self.place) {
            Ok(()) => Outcome::Done,
            Err(Fault::Refused(why)) => Outcome::Refused(why),
            Err(Fault::Unknown(why)) => Outcome::Unknown(why),
        };
        self.shared.recorder.record(&self.by, start, operation, outcome.clone());
        outcome
    }

    /// Looks and records what it saw, if it saw anything.
    fn look<T>(
        &self,
        look: impl FnOnce(&dyn Place) -> Result<T, Fault>,
        record: impl FnOnce(T) -> Operation,
    ) -> bool {
        let start = self.shared.recorder.now();
        match look(&*self.place) {
            Ok(seen) => {
                self.shared.recorder.record(&self.by, start, record(seen), Outcome::Done);
                true
            }
            Err(_) => false,
        }
    }
}

/// The content of a register: its value, and bytes that follow from it. All of one length.
fn content(value: u64) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(value);
    let mut bytes = vec![0; 700];
    random.fill_bytes(&mut bytes);
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// The value of a content; `u64::MAX`, which nobody writes, for what is none.
fn value(found: Option<Vec<u8>>) -> Option<u64> {
    let found = found?;
    // Made, and not written yet.
    if found.is_empty() {
        return None;
    }
    let head: Option<[u8; 8]> = found.get(..8).and_then(|head| head.try_into().ok());
    Some(head.map(u64::from_le_bytes).filter(|&value| content(value) == found).unwrap_or(u64::MAX))
}

fn registers(worker: &mut Worker) {
    worker.rest(60);
    let (generation, number) = (worker.shared.generation(), worker.random.random_range(0..REGISTERS));
    let writes = worker.random.random_bool(0.4);
    if worker.random.random_bool(0.6) {
        let register = format!("r/{generation}-{number}");
        if writes {
            replace(worker, register);
        } else {
            read(worker, register);
        }
        return;
    }
    let register = format!("w/{generation}-{number}");
    let turn = worker.alone.at(generation, &register);
    let mut usable = lock(&turn);
    if !*usable {
        return;
    }
    if writes {
        let value = worker.shared.fresh();
        let operation = Operation::Write { register: register.clone(), value };
        let outcome = worker.act(operation, |place| place.overwrite(&register, &content(value)));
        // What was not synced may be seen here and nowhere else.
        *usable = !matches!(outcome, Outcome::Unknown(_));
    } else {
        read(worker, register);
    }
}

fn replace(worker: &mut Worker, register: String) {
    let value = worker.shared.fresh();
    let draft = format!("r/draft-{value}");
    if worker.place.store(&draft, &content(value)).is_err() {
        return;
    }
    let operation = Operation::Write { register: register.clone(), value };
    worker.act(operation, |place| place.rename(&draft, &register));
}

fn read(worker: &mut Worker, register: String) {
    worker.look(
        |place| place.read(&register),
        |found| Operation::Read { register: register.clone(), value: value(found) },
    );
}

fn appends(worker: &mut Worker) {
    worker.rest(60);
    let log = format!("log/{}-{}", worker.shared.generation(), worker.random.random_range(0..2));
    let record = worker.shared.fresh();
    let operation = Operation::Append { log: log.clone(), record };
    worker.act(operation, |place| place.append(&log, &render_record(record)));
}

fn moves(worker: &mut Worker) {
    let directory = format!("move/{}", worker.shared.fresh());
    let mut at = 0;
    let made = worker.place.mkdir(&directory);
    if made.is_err() || worker.place.store(&format!("{directory}/{}", SLOTS[at]), b"the one").is_err() {
        return worker.rest(300);
    }
    let by = worker.by.clone();
    lock(&worker.shared.moving).insert(by.clone(), directory.clone());
    for _ in 0..40 {
        worker.rest(60);
        let to = (at + worker.random.random_range(1..SLOTS.len())) % SLOTS.len();
        let operation =
            Operation::Move { directory: directory.clone(), from: SLOTS[at].into(), to: SLOTS[to].into() };
        let path = |slot: usize| format!("{directory}/{}", SLOTS[slot]);
        let outcome = worker.act(operation, |place| place.rename(&path(at), &path(to)));
        if outcome != Outcome::Done || worker.stopped() {
            break;
        }
        at = to;
        let others: Vec<String> = lock(&worker.shared.moving).values().cloned().collect();
        let other = others[worker.random.random_range(0..others.len())].clone();
        worker.look(|place| place.names(&other), |names| Operation::Look { directory: other.clone(), names });
    }
    lock(&worker.shared.moving).remove(&by);
}

fn claims(worker: &mut Worker) {
    // Everybody tries the same names at about the same time, each name for a quarter of a second.
    let name = format!("claim/{}", worker.shared.began.elapsed().as_millis() / 250);
    let operation = Operation::Claim { name: name.clone() };
    worker.act(operation, |place| place.claim(&name));
    let next = 250 - worker.shared.began.elapsed().as_millis() as u64 % 250;
    thread::sleep(Duration::from_millis(next));
}

fn counts(worker: &mut Worker) {
    worker.rest(80);
    let lock = format!("lock/{}", worker.shared.generation());
    let recorder = Arc::clone(&worker.shared.recorder);
    let (mut taken, mut found) = (0, None);
    let mut moment = |moment| match moment {
        Moment::Taken => taken = recorder.now(),
        Moment::Read(number) => found = Some((number, recorder.now())),
    };
    let Some(result) = worker.place.count(&lock, &mut moment) else {
        return worker.rest(2000);
    };
    if let Some((read, start)) = found {
        let outcome = match result {
            Ok(()) => Outcome::Done,
            Err(Fault::Refused(why) | Fault::Unknown(why)) => Outcome::Unknown(why),
        };
        recorder.record(&worker.by, start, Operation::Count { lock, taken, read }, outcome);
    }
}

/// Stores files, single ones and small trees, and looks at what anybody has stored.
fn files(worker: &mut Worker) {
    worker.rest(120);
    match worker.random.random_range(0..10) {
        0 => tree(worker),
        1..=5 => _ = keep(worker, format!("keep/{}", worker.shared.fresh())),
        _ => {
            let kept = lock(&worker.shared.kept);
            if !kept.is_empty() {
                let path = kept[worker.random.random_range(0..kept.len())].clone();
                drop(kept);
                check(worker, path);
            }
        }
    }
    let mut kept = lock(&worker.shared.kept);
    let oldest = if kept.len() > KEPT { kept.pop_front() } else { None };
    drop(kept);
    if let Some(path) = oldest {
        worker.act(Operation::Remove { path: path.clone() }, |place| place.remove(&path));
    }
}

/// The hash of what was stored, if it was.
fn keep(worker: &mut Worker, path: String) -> Option<String> {
    let largest = [400, 400, 8_000, 8_000, 8_000, 8_000, 60_000, 60_000, 60_000, 1_500_000];
    let largest = largest[worker.random.random_range(0..largest.len())];
    let mut bytes = vec![0; worker.random.random_range(1..=largest)];
    worker.random.fill_bytes(&mut bytes);
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let operation = Operation::Keep { path: path.clone(), hash: hash.clone() };
    let done = worker.act(operation, |place| place.store(&path, &bytes)) == Outcome::Done;
    done.then(|| {
        lock(&worker.shared.kept).push_back(path);
        hash
    })
}

fn check(worker: &mut Worker, path: String) {
    worker.look(
        |place| place.read(&path),
        |found| Operation::Check {
            path: path.clone(),
            hash: found.map(|bytes| blake3::hash(&bytes).to_hex().to_string()),
        },
    );
}

/// A directory of small files: all of them are listed once they are there.
fn tree(worker: &mut Worker) {
    let directory = format!("keep/tree{}", worker.shared.fresh());
    if worker.place.mkdir(&directory).is_err() {
        return;
    }
    let mut stored = Vec::new();
    for number in 0..12 {
        if worker.stopped() {
            return;
        }
        let path = format!("{directory}/{number}");
        stored.extend(keep(worker, path.clone()).map(|hash| (path, hash)));
    }
    let start = worker.shared.recorder.now();
    let Ok(names) = worker.place.names(&directory) else { return };
    let names: BTreeSet<String> = names.into_iter().map(|name| format!("{directory}/{name}")).collect();
    for (path, hash) in stored {
        // What is not listed was seen to be absent.
        let hash = names.contains(&path).then_some(hash);
        worker.shared.recorder.record(&worker.by, start, Operation::Check { path, hash }, Outcome::Done);
    }
}
