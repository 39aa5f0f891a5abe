//! Breaks things, in an order that follows from a seed, and mends them again: several at once, none for ever.
//!
//! What it breaks never loses data that the cluster promises to keep. A process that is killed keeps what it synced,
//! so any number may die. What destroys data (a wiped disk, damaged files) is done to one place at a time, and the next
//! only after the cluster has healed from the last.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::Value;

use crate::history::Recorder;
use crate::nodes::{Node, Nodes, Role, all_voters, replicated};

/// So many faults at once at most.
const AT_ONCE: usize = 3;
/// Between two losses of data: longer than a client keeps an unused chunk open.
const BETWEEN_LOSSES: Duration = Duration::from_secs(32);

/// The unit that has a checksum of its own.
const BLOCK: u64 = 64 << 10;

/// What is broken and will be mended.
enum Broken {
    Down(String),
    Paused(String),
    Parted(Vec<usize>),
    Slow(usize),
}

/// Damage that was done to a replica, to see whether it is still there.
struct Damage {
    path: PathBuf,
    at: u64,
    byte: u8,
}

impl Damage {
    fn is_there(&self) -> bool {
        let mut byte = [0];
        let read = std::fs::File::open(&self.path).and_then(|file| file.read_exact_at(&mut byte, self.at));
        read.is_ok() && byte[0] == self.byte
    }
}

pub struct Nemesis<'a> {
    nodes: &'a mut Nodes,
    recorder: &'a Recorder,
    random: SmallRng,
    broken: Vec<(Instant, Broken)>,
    /// Faults so far.
    pub faults: usize,
    /// When data was last destroyed.
    lost: Option<Instant>,
    damage: Vec<Damage>,
    /// Processes that ended by themselves.
    pub fallen: Vec<String>,
}

impl<'a> Nemesis<'a> {
    pub fn new(nodes: &'a mut Nodes, recorder: &'a Recorder, random: SmallRng) -> Nemesis<'a> {
        Nemesis {
            nodes,
            recorder,
            random,
            broken: Vec::new(),
            faults: 0,
            lost: None,
            damage: Vec::new(),
            fallen: Vec::new(),
        }
    }

    /// Breaks and mends for so long, and mends everything in the end.
    pub fn rage(&mut self, time: Duration) {
        let over = Instant::now() + time;
        while Instant::now() < over {
            let pause = Duration::from_millis(self.random.random_range(200..1500));
            let next = Instant::now() + pause;
            self.mend(|due| due <= next);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            self.watch();
            if self.broken.len() < AT_ONCE {
                self.strike();
            }
        }
        self.mend(|_| true);
        self.nodes.network.heal().expect("links can be mended");
        self.nodes.wait_all_mounted();
        self.recorder.note("all mended");
        self.watch();
    }

    fn watch(&mut self) {
        for fallen in self.nodes.ended_by_themselves() {
            self.recorder.note(&fallen);
            self.fallen.push(fallen);
        }
        for name in self.nodes.names(Role::Mount) {
            self.nodes.came_up(&name);
        }
    }

    fn mend(&mut self, due: impl Fn(Instant) -> bool) {
        let (over, kept) = std::mem::take(&mut self.broken).into_iter().partition(|(until, _)| due(*until));
        self.broken = kept;
        let over: Vec<(Instant, Broken)> = over;
        for (_, broken) in over {
            match broken {
                Broken::Down(name) if !self.nodes.node(&name).running() => {
                    self.recorder.note(&format!("start {name}"));
                    self.nodes.begin(&name);
                }
                Broken::Paused(name) if self.nodes.node(&name).paused => {
                    self.recorder.note(&format!("resume {name}"));
                    self.nodes.resume(&name);
                }
                Broken::Parted(set) => {
                    self.recorder.note(&format!("join {set:?}"));
                    self.nodes.network.join(&set).expect("links can be mended");
                }
                Broken::Slow(host) => {
                    self.recorder.note(&format!("quicken {host}"));
                    self.nodes.network.quicken(host).expect("a link can be quickened");
                }
                Broken::Down(_) | Broken::Paused(_) => {}
            }
        }
    }

    fn seconds(&mut self, least: f64, most: f64) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.random.random_range(least..most))
    }

    /// The name of a process that works and fits.
    fn victim(&mut self, fits: impl Fn(&Node) -> bool) -> Option<String> {
        let working = self.nodes.nodes.iter().filter(|node| node.running() && !node.paused && fits(node));
        let names: Vec<&str> = working.map(|node| node.name.as_str()).collect();
        names.choose(&mut self.random).map(|name| name.to_string())
    }

    fn strike(&mut self) {
        match self.random.random_range(0..100) {
            0..24 => self.kill(),
            24..32 => self.kill_leader(),
            32..50 => self.pause(),
            50..68 => self.part(),
            68..76 => self.slow(),
            76..80 => self.power_cut(),
            _ => self.destroy(),
        }
    }

    fn struck(&mut self, what: &str) {
        self.recorder.note(what);
        self.faults += 1;
    }

    fn kill(&mut self) {
        let Some(name) = self.victim(|_| true) else { return };
        self.struck(&format!("kill {name}"));
        self.nodes.kill(&name);
        let until = self.seconds(0.1, 6.0);
        self.broken.push((until, Broken::Down(name)));
    }

    fn kill_leader(&mut self) {
        let Some(name) = self.nodes.leader_now() else { return };
        if self.nodes.node(&name).running() {
            self.struck(&format!("kill the leader, {name}"));
            self.nodes.kill(&name);
            let until = self.seconds(0.1, 4.0);
            self.broken.push((until, Broken::Down(name)));
        }
    }

    fn pause(&mut self) {
        let Some(name) = self.victim(|_| true) else { return };
        self.struck(&format!("pause {name}"));
        self.nodes.pause(&name);
        let until = self.seconds(0.3, 8.0);
        self.broken.push((until, Broken::Paused(name)));
    }

    fn part(&mut self) {
        let hosts = self.nodes.nodes.len() + self.nodes.shape.clients;
        let leader = if self.random.random_bool(0.35) { self.nodes.leader_now() } else { None };
        let set: Vec<usize> = match leader {
            Some(name) => vec![self.nodes.node(&name).host],
            None => {
                let size = *[1, 1, 1, 2, 2, 3, 4].choose(&mut self.random).expect("sizes");
                let mut all: Vec<usize> = (0..hosts).collect();
                all.shuffle(&mut self.random);
                all[..size].to_vec()
            }
        };
        let (sends, hears) = *[(true, true), (true, true), (true, false), (false, true)]
            .choose(&mut self.random)
            .expect("kinds");
        self.struck(&format!("part {set:?} from all others, sends cut: {sends}, hears cut: {hears}"));
        self.nodes.network.part(&set, sends, hears).expect("links can be cut");
        let until = self.seconds(0.5, 8.0);
        self.broken.push((until, Broken::Parted(set)));
    }

    fn slow(&mut self) {
        let host = self.random.random_range(0..self.nodes.nodes.len());
        let kilobits = self.random.random_range(500..8000);
        self.struck(&format!("slow {host} down to {kilobits} kbit/s"));
        self.nodes.network.slow(host, kilobits).expect("a link can be slowed");
        let until = self.seconds(1.0, 6.0);
        self.broken.push((until, Broken::Slow(host)));
    }

    /// Everything ends at once and is started again in any order.
    fn power_cut(&mut self) {
        self.struck("power cut");
        let mut names: Vec<String> = self.nodes.names(Role::Namenode);
        names.extend(self.nodes.names(Role::Datanode));
        for name in &names {
            if self.nodes.node(name).running() {
                self.nodes.kill(name);
            }
        }
        names.shuffle(&mut self.random);
        let mut at = self.seconds(0.1, 1.0);
        for name in names {
            at += Duration::from_millis(self.random.random_range(0..400));
            self.broken.push((at, Broken::Down(name)));
        }
    }

    /// Takes data away, if the last loss has healed.
    fn destroy(&mut self) {
        if self.lost.is_some_and(|lost| lost.elapsed() < BETWEEN_LOSSES) {
            return;
        }
        let Some(status) = self.nodes.status() else { return };
        let (datanodes, namenodes) = (self.nodes.shape.datanodes, self.nodes.shape.namenodes);
        let live = |node: &&Value| node["liveness"] == "live";
        let live = status["datanodes"].as_array().map_or(0, |nodes| nodes.iter().filter(live).count());
        let whole = replicated(&status) && live == datanodes && all_voters(&status, namenodes);
        let healed = whole && !self.damage.iter().any(Damage::is_there);
        if !healed {
            return;
        }
        self.damage.clear();
        match self.random.random_range(0..10) {
            0..4 => self.wipe(Role::Datanode),
            4..7 => self.wipe(Role::Namenode),
            _ => self.damage(),
        }
    }

    fn wipe(&mut self, role: Role) {
        let Some(name) = self.victim(|node| node.role == role) else { return };
        self.struck(&format!("wipe {name}"));
        self.nodes.kill(&name);
        self.nodes.wipe(&name);
        self.lost = Some(Instant::now());
        let until = self.seconds(0.1, 3.0);
        self.broken.push((until, Broken::Down(name)));
    }

    /// Flips a bit in some replicas of a chunk, or in all of them, each time in another block: every block has good
    /// copies left.
    fn damage(&mut self) {
        let all = self.nodes.replicas(true);
        let Some((chunk, ..)) = all.choose(&mut self.random) else { return };
        let mut replicas: Vec<_> = all.iter().filter(|(of, ..)| of == chunk).collect();
        // Without the others this one would be all there is.
        if replicas.len() < 3 {
            return;
        }
        replicas.shuffle(&mut self.random);
        let length = std::fs::metadata(&replicas[0].2).map_or(0, |found| found.len());
        let mut blocks: Vec<u64> = (0..length.div_ceil(BLOCK)).collect();
        blocks.shuffle(&mut self.random);
        let many = self.random.random_range(1..=replicas.len());
        for ((_, node, path), block) in replicas.into_iter().zip(blocks).take(many) {
            let at = block * BLOCK + self.random.random_range(0..BLOCK.min(length - block * BLOCK));
            if let Some(damage) = flip(path, at) {
                self.damage.push(damage);
                self.struck(&format!("damage byte {at} of chunk {chunk} on {node}"));
                self.lost = Some(Instant::now());
            }
        }
    }
}

fn flip(path: &Path, at: u64) -> Option<Damage> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).ok()?;
    byte[0] ^= 0x20;
    file.write_all_at(&byte, at).ok()?;
    Some(Damage { path: path.to_owned(), at, byte: byte[0] })
}
