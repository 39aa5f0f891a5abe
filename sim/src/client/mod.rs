//! A client: the shipped library, doing random things and checking every answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::{Cluster, Config, Error, ErrorCode, Result, fs};
use cairn_host::Host;
use cairn_proto::ROOT_INODE;

pub mod keep;
mod observe;
mod own;
mod shared;

pub use observe::{difference, observe};

use crate::event;
use crate::history::{History, Life};
use crate::machine::now;
use crate::model::State;
use crate::nodes::namenode::GRACE_MS;
use crate::random::Random;
use crate::workshop::{self, Workshop};

/// Names in a client's directory.
const NAMES: u64 = 6;
/// Most bytes of a file: a few chunks.
const SIZE: u64 = 40 << 10;
/// How long a race for a name is on, in nanoseconds.
const RACE: u64 = 1_000_000_000;

/// What a client is told.
pub struct Setup {
    /// Which one, and which of its lives.
    pub life: Life,
    /// The run's seed.
    pub seed: u64,
    /// All namenodes.
    pub namenodes: Vec<String>,
    /// Its network and clock.
    pub machine: Host,
    /// Where everything is noted.
    pub history: Arc<History>,
    /// Longest pause between two operations, in milliseconds.
    pub pause_ms: u64,
}

/// Options of a client of the simulation: impatient.
pub fn config(name: &str, namenodes: &[String], machine: Host) -> Config {
    Config {
        namenodes: namenodes.to_vec(),
        name: name.to_owned(),
        host: String::new(),
        short_circuit: false,
        operation_timeout: Duration::from_secs(6),
        lanes: 1,
        commit_after: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(1800),
        read_timeout: Duration::from_secs(1),
        probe_after: Duration::from_secs(1),
        lane_idle: Duration::from_secs(3),
        exclude_for: Duration::from_secs(2),
        window_bytes: 32 << 10,
        machine,
        ..Config::default()
    }
}

/// Root's credentials: permissions are not what is tried here.
pub fn root() -> fs::Cred {
    fs::Cred { uid: 0, gid: 0, groups: Vec::new() }
}

/// A path from the root.
pub fn at(path: &str) -> fs::NodeRef {
    fs::NodeRef { inode: ROOT_INODE, path: Bytes::copy_from_slice(path.as_bytes()) }
}

/// A client's own directory.
pub fn directory((number, life): Life) -> String {
    format!("c{number}-{life}")
}

/// Answers that say for sure that nothing was changed.
fn is_definite(error: &Error) -> bool {
    use ErrorCode::*;
    matches!(
        error.code,
        NotFound
            | Exists
            | NotEmpty
            | IsDirectory
            | NotDirectory
            | Invalid
            | NoAttribute
            | Stale
            | PermissionDenied
            | NotPermitted
            | TooManyLinks
            | Loop
            | NameTooLong
            | FileTooBig
    )
}

/// What became of an operation.
enum Done<T> {
    Yes(T),
    No(Error),
    Unknown,
}

/// A client at work.
struct Client {
    life: Life,
    cluster: Cluster,
    history: Arc<History>,
    random: Random,
    directory: String,
    operation: u64,
    /// When it began, on the run's clock.
    began: u64,
    race: String,
    register: u64,
    workshop: Option<Workshop>,
    namenodes: Vec<String>,
    machine: Host,
}

/// Works until told to stop.
pub async fn run(setup: Setup) {
    let Setup { life, seed, namenodes, machine, history, pause_ms } = setup;
    let directory = directory(life);
    let cluster = loop {
        if history.stopping() {
            return;
        }
        match Cluster::connect(config(&directory, &namenodes, machine.clone())).await {
            Ok(cluster) => break cluster,
            Err(error) => event!("no connection: {error}"),
        }
    };
    let random = Random::new(seed, &directory);
    let mut client = Client {
        life,
        cluster,
        history,
        random,
        directory,
        operation: 0,
        began: 0,
        race: String::new(),
        register: 0,
        workshop: None,
        namenodes,
        machine,
    };
    client.history.records().models.entry(life).or_default();
    if !client.move_in().await {
        return;
    }
    while !client.history.stopping() {
        client.operation += 1;
        client.began = now();
        client.history.begun.fetch_add(1, Ordering::Relaxed);
        client.act().await;
        let pause = client.random.millis(1, pause_ms);
        tokio::time::sleep(pause).await;
    }
    // A session that is not closed expires: both are tried.
    if client.random.chance(70) {
        if let Some(workshop) = client.workshop.take() {
            workshop.close(&client.history).await;
        }
        let closed = client.cluster.close().await;
        event!("closed: {}", told(&closed));
    }
}

fn told<T>(result: &Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => format!("{:?}", error.code),
    }
}

impl Client {
    fn violation(&self, what: String) {
        self.history.violation(format!("{}: {what}", self.directory));
    }

    fn done<T>(&self, what: &str, result: Result<T>) -> Done<T> {
        event!("{} {what}: {}", self.operation, told(&result));
        let error = match result {
            Ok(value) => {
                self.history.known.fetch_add(1, Ordering::Relaxed);
                return Done::Yes(value);
            }
            Err(error) => error,
        };
        // A chunk is kept for the grace: whoever is quicker can still commit what he wrote to it, or read by an old layout.
        let early = error.code == ErrorCode::ChunkUnknown && now() - self.began < GRACE_MS * 1_000_000;
        let never = [ErrorCode::Malformed, ErrorCode::Duplicate, ErrorCode::WrongCluster];
        if early || never.contains(&error.code) {
            self.violation(format!("{what} was answered with {error}"));
        }
        if is_definite(&error) {
            self.history.known.fetch_add(1, Ordering::Relaxed);
            return Done::No(error);
        }
        self.history.unknown.fetch_add(1, Ordering::Relaxed);
        Done::Unknown
    }

    /// Makes the directories; false when it is time to stop.
    async fn move_in(&mut self) -> bool {
        let own = self.directory.clone();
        for path in ["shared".to_owned(), own] {
            loop {
                if self.history.stopping() {
                    return false;
                }
                let ask = fs::Mkdir { at: Some(at(&path)), mode: 0o755, parents: true, ..Default::default() };
                let made = self.cluster.mkdir(&root(), ask).await;
                if let Done::Yes(_) = self.done("mkdir", made) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if let Some(model) = self.history.records().models.get_mut(&self.life) {
            model.made = true;
        }
        true
    }

    async fn act(&mut self) {
        match self.random.below(106) {
            0..16 => self.put().await,
            16..34 => self.write().await,
            34..40 => self.truncate().await,
            40..49 => self.rename().await,
            49..54 => self.link().await,
            54..60 => self.unlink().await,
            60..65 => self.clone_file().await,
            65..74 => self.look().await,
            74..78 => self.race().await,
            78..82 => self.write_register().await,
            82..85 => self.read_registers().await,
            85..88 => self.count().await,
            88..91 => self.append_shared().await,
            91..97 => self.craft().await,
            97..103 => self.keep().await,
            _ => workshop::visit(&self.cluster, &self.history, &mut self.random).await,
        }
    }

    /// Works in a directory of its own, through a connection that has directories delegated.
    async fn craft(&mut self) {
        if self.workshop.is_none() {
            let opened = Workshop::open(self.life, &self.namenodes, self.machine.clone()).await;
            event!("{} workshop: {}", self.operation, told(&opened));
            self.workshop = opened.ok();
        }
        if let Some(workshop) = &mut self.workshop {
            workshop.work(&self.history, &mut self.random).await;
        }
    }

    fn now(&self) -> State {
        self.history.records().models.get(&self.life).map(|model| model.now()).unwrap_or_default()
    }

    fn begin(&self, after: State) {
        if let Some(model) = self.history.records().models.get_mut(&self.life) {
            model.begin(after);
        }
    }

    fn settle(&self, state: State) {
        if let Some(model) = self.history.records().models.get_mut(&self.life) {
            model.settle(state);
        }
    }

    fn new_number(&self) -> u64 {
        self.history.records().models.get_mut(&self.life).map_or(0, |model| model.number())
    }

    fn name(&mut self) -> String {
        format!("f{}", self.random.below(NAMES))
    }

    /// A name that is there, or any.
    fn held(&mut self, state: &State) -> String {
        let names: Vec<&String> = state.names.keys().collect();
        if names.is_empty() || self.random.chance(5) {
            self.name()
        } else {
            (*self.random.pick(&names)).clone()
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// Bytes that nobody else writes, and that are different each time.
    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = match self.random.below(4) {
            0 => self.random.between(1, 200),
            1 | 2 => self.random.between(1, most.min(6_000)),
            _ => self.random.between(1, most),
        };
        let mut own = Random::new(self.operation, &self.directory);
        let words = (length as usize).div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| own.any().to_le_bytes()).collect();
        bytes.truncate(length as usize);
        bytes
    }

    /// After an operation on names: takes the answer, or finds out.
    async fn conclude<T>(
        &mut self,
        what: &str,
        result: Result<T>,
        expected: Option<ErrorCode>,
        after: State,
    ) {
        let before = self.now();
        match (self.done(what, result), expected) {
            (Done::Yes(_), None) => self.settle(after),
            (Done::Yes(_), Some(code)) => {
                self.violation(format!("{what} succeeded, {code:?} was due"));
                self.settle(after);
            }
            (Done::No(error), Some(code)) if error.code == code => self.settle(before),
            (Done::No(error), expected) => {
                self.violation(format!("{what} was refused with {error}, expected {expected:?}"));
                self.settle(before);
            }
            (Done::Unknown, _) => self.find_out(what, before, after).await,
        }
    }

    /// What this client asked for and gave up can happen no more once a later mutation of its was acknowledged.
    async fn bar_the_past(&mut self) -> bool {
        // The library lets go of what it gave up at its next look, and says so with the mutation after that.
        tokio::time::sleep(Duration::from_millis(300)).await;
        while !self.history.stopping() {
            let nothing = self.cluster.close_inodes(Vec::new()).await;
            if let Done::Yes(()) = self.done("barrier", nothing) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }

    async fn find_out(&mut self, what: &str, before: State, after: State) {
        if !self.bar_the_past().await {
            return;
        }
        while !self.history.stopping() {
            match observe(&self.cluster, &self.directory, &[&before, &after], &self.history).await {
                Ok(Some(state)) => return self.settle(state),
                Ok(None) => {
                    self.violation(format!("after {what}: neither the state before nor the one after"));
                    return self.settle(before);
                }
                Err(error) => event!("cannot look yet: {:?}", error.code),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn volatile(&self, synced: bool) -> Option<u64> {
        (!synced).then(|| self.history.losses())
    }
}
