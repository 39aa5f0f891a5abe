//! A client: the shipped library, doing random things and checking every answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::{Cluster, Config, Error, ErrorCode, File, Locked, Result, fs};
use cairn_host::Host;
use cairn_proto::ROOT_INODE;

use crate::event;
use crate::history::{Appended, History, Life};
use crate::machine::now;
use crate::model::{Content, Edit, State};
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
        if matches!(error.code, ErrorCode::Malformed | ErrorCode::Duplicate | ErrorCode::WrongCluster) {
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
        match self.random.below(100) {
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

    async fn put(&mut self) {
        let (name, content, sync) = (self.name(), self.bytes(SIZE), self.random.chance(70));
        let exclusive = self.random.chance(20);
        let mut after = self.now();
        let expected = (exclusive && after.names.contains_key(&name)).then_some(ErrorCode::Exists);
        let file = match after.names.get(&name) {
            Some(file) => *file,
            None => self.new_number(),
        };
        after.names.insert(name.clone(), file);
        // It is on all disks only once that was acknowledged: until then others may have seen it, and it may be lost.
        after.files.insert(file, Content::sure(content.clone(), self.volatile(false)));
        self.begin(after.clone());
        let ask = fs::CreateFile {
            at: Some(at(&self.path(&name))),
            mode: 0o644,
            truncate: !exclusive,
            exclusive,
            ..Default::default()
        };
        let length = content.len();
        let put = self.cluster.put_small(&root(), ask, content.into(), None, sync).await;
        if sync
            && put.is_ok()
            && let Some(content) = after.files.get_mut(&file)
        {
            content.volatile_since = None;
        }
        let what = format!(
            "put {name} of {length}{}{}",
            if sync { " sync" } else { "" },
            if exclusive { " excl" } else { "" }
        );
        self.conclude(&what, put, expected, after).await;
    }

    async fn open(&self, name: &str) -> Result<File> {
        let attr = self.cluster.stat(&root(), at(&self.path(name)), false).await?;
        Ok(self.cluster.open(&root(), attr))
    }

    async fn write(&mut self) {
        let state = self.now();
        let name = self.held(&state);
        let Some(content) = state.file(&name) else { return };
        let file = match self.open(&name).await {
            Ok(file) => file,
            Err(error) if is_definite(&error) => {
                return self.violation(format!("{name} is there but not found: {error}"));
            }
            Err(_) => return,
        };
        let mut edits = Vec::new();
        for _ in 0..self.random.between(1, 3) {
            let offset = self.random.below((content.base.len() as u64 + 500).min(SIZE)) as usize;
            edits.push(Edit::Write(offset, self.bytes(8_000)));
            self.operation += 1;
        }
        let sync = self.random.chance(60);
        let mut after = state.clone();
        if let Some(content) = after.file_mut(&name) {
            content.maybe.clone_from(&edits);
            content.volatile_since = content.volatile_since.or(self.volatile(false));
        }
        self.begin(after.clone());
        let written = async {
            for edit in &edits {
                if let Edit::Write(offset, bytes) = edit {
                    file.write_at(*offset as u64, Bytes::copy_from_slice(bytes)).await?;
                }
            }
            if sync { file.sync().await } else { file.flush().await }
        };
        let written = written.await;
        let what = format!("write {name}{}", if sync { " sync" } else { "" });
        match self.done(&what, written) {
            Done::Yes(_) => {
                if let Some(content) = after.file_mut(&name) {
                    *content =
                        Content::sure(content.whole(), if sync { None } else { content.volatile_since });
                }
                self.settle(after);
            }
            Done::No(error) => {
                self.violation(format!("{what}: {error}"));
                self.give_up(&file).await;
                self.find_out(&what, state, after).await;
            }
            Done::Unknown => {
                self.give_up(&file).await;
                self.find_out(&what, state, after).await;
            }
        }
    }

    /// Has the library forget what it could not commit, so that it does not try again by itself.
    async fn give_up(&mut self, file: &File) {
        while !self.history.stopping() {
            file.abandon(ErrorCode::Interrupted.because("given up"));
            let flushed = file.flush().await;
            if file.dirty_bytes() == 0 && flushed.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn truncate(&mut self) {
        let state = self.now();
        let name = self.held(&state);
        let Some(content) = state.file(&name) else { return };
        let Ok(file) = self.open(&name).await else { return };
        let size = self.random.below(content.base.len() as u64 + 300) as usize;
        let mut after = state.clone();
        if let Some(content) = after.file_mut(&name) {
            Edit::Size(size).apply(&mut content.base);
        }
        self.begin(after.clone());
        let cut = file.truncate(size as u64).await;
        self.conclude(&format!("truncate {name} to {size}"), cut, None, after).await;
    }

    async fn rename(&mut self) {
        let state = self.now();
        let (from, to) = (self.held(&state), self.name());
        let expected = (!state.names.contains_key(&from)).then_some(ErrorCode::NotFound);
        let mut after = state.clone();
        // Two names of one file: POSIX says that nothing happens.
        if state.names.get(&from) != state.names.get(&to)
            && let Some(file) = after.names.remove(&from)
        {
            after.names.insert(to.clone(), file);
        }
        self.begin(after.clone());
        let ask = fs::Rename { from: Some(at(&self.path(&from))), to: Some(at(&self.path(&to))), mode: 0 };
        let renamed = self.cluster.rename(&root(), ask).await;
        self.conclude(&format!("rename {from} to {to}"), renamed, expected, after).await;
    }

    async fn link(&mut self) {
        let state = self.now();
        let (from, to) = (self.held(&state), self.name());
        let expected = match (state.names.get(&from), state.names.contains_key(&to)) {
            (None, _) => Some(ErrorCode::NotFound),
            (_, true) => Some(ErrorCode::Exists),
            _ => None,
        };
        let mut after = state.clone();
        if let (None, Some(file)) = (expected, state.names.get(&from)) {
            after.names.insert(to.clone(), *file);
        }
        self.begin(after.clone());
        let ask = fs::Link { from: Some(at(&self.path(&from))), at: Some(at(&self.path(&to))) };
        let linked = self.cluster.link(&root(), ask).await;
        self.conclude(&format!("link {from} as {to}"), linked, expected, after).await;
    }

    async fn unlink(&mut self) {
        let state = self.now();
        let name = self.held(&state);
        let expected = (!state.names.contains_key(&name)).then_some(ErrorCode::NotFound);
        let mut after = state.clone();
        after.names.remove(&name);
        self.begin(after.clone());
        let unlinked = self.cluster.unlink(&root(), at(&self.path(&name))).await;
        self.conclude(&format!("unlink {name}"), unlinked, expected, after).await;
    }

    async fn clone_file(&mut self) {
        let state = self.now();
        let (from, to) = (self.held(&state), self.name());
        if state.names.get(&from) == state.names.get(&to) {
            return;
        }
        let Some(content) = state.file(&from).cloned() else { return };
        let Ok(source) = self.open(&from).await else { return };
        let mut after = state.clone();
        let file = match state.names.get(&to) {
            Some(file) => *file,
            None => self.new_number(),
        };
        after.names.insert(to.clone(), file);
        after.files.insert(file, content);
        self.begin(after.clone());
        let create = fs::CreateFile {
            at: Some(at(&self.path(&to))),
            mode: 0o644,
            truncate: true,
            ..Default::default()
        };
        let cloned = self.cluster.clone_file(&root(), source.inode(), create, None).await;
        self.conclude(&format!("clone {from} as {to}"), cloned, None, after).await;
    }

    /// Reads a file, or the whole directory.
    async fn look(&mut self) {
        let state = self.now();
        if self.random.chance(20) {
            match observe(&self.cluster, &self.directory, &[&state], &self.history).await {
                Ok(Some(_)) => event!("{} looked at everything", self.operation),
                Ok(None) => self.violation("its directory is not what it was told".into()),
                Err(error) => event!("{} cannot look: {:?}", self.operation, error.code),
            }
            return;
        }
        let name = self.held(&state);
        let Some(content) = state.file(&name) else { return };
        let read = async {
            let file = self.open(&name).await?;
            file.read_at(0, SIZE as usize * 4).await
        };
        let read = read.await;
        match self.done(&format!("read {name}"), read) {
            Done::Yes(found) if content.allows(&found) => {}
            Done::Yes(found) => self.violation(difference(&name, content, &found)),
            Done::No(error) => self.violation(format!("reading {name}: {error}")),
            Done::Unknown => {}
        }
    }

    async fn race(&mut self) {
        let race = format!("race-{}", now() / RACE);
        if race == self.race {
            return;
        }
        self.race.clone_from(&race);
        let ask = fs::CreateFile {
            at: Some(at(&format!("shared/{race}"))),
            mode: 0o644,
            uid: self.life.0 as u32 * 1000 + self.life.1 as u32,
            exclusive: true,
            ..Default::default()
        };
        let created = self.cluster.create(&root(), ask).await;
        match self.done(&race, created) {
            Done::Yes(_) => {
                let other = self.history.records().winners.insert(race.clone(), self.life);
                if let Some(other) = other {
                    self.violation(format!("{race} was won by {other:?} as well"));
                }
            }
            Done::No(error) if error.code == ErrorCode::Exists => {}
            Done::No(error) => self.violation(format!("{race}: {error}")),
            Done::Unknown => return,
        }
        let Ok(attr) = self.cluster.stat(&root(), at(&format!("shared/{race}")), false).await else { return };
        let before = self.history.records().owners.insert(race.clone(), attr.uid);
        if before.is_some_and(|before| before != attr.uid) {
            self.violation(format!("{race} belonged to {before:?} and now to {}", attr.uid));
        }
    }

    fn register_of(life: Life) -> String {
        format!("user.{}-{}", life.0, life.1)
    }

    async fn write_register(&mut self) {
        self.register += 1;
        let value = self.register;
        self.history.records().registers.entry(self.life).or_default().begun = value;
        let ask = fs::SetXattr {
            at: Some(at("shared")),
            name: Self::register_of(self.life).into(),
            value: value.to_string().into(),
            ..Default::default()
        };
        let written = self.cluster.set_xattr(&root(), ask).await;
        match self.done(&format!("register {value}"), written) {
            Done::Yes(()) => self.history.records().registers.entry(self.life).or_default().acked = value,
            Done::No(error) => self.violation(format!("writing a register: {error}")),
            Done::Unknown => {}
        }
    }

    /// A read begun after a write was acknowledged sees it, or a later one, whoever leads.
    async fn read_registers(&mut self) {
        let all: Vec<Life> = self.history.records().registers.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let life = *self.random.pick(&all);
        let least = self.history.records().registers.get(&life).copied().unwrap_or_default().acked;
        let read = self.cluster.get_xattr(&root(), at("shared"), Self::register_of(life).into()).await;
        let found = match self.done(&format!("register of {life:?}"), read) {
            Done::Yes(value) => String::from_utf8_lossy(&value).parse().unwrap_or(u64::MAX),
            Done::No(error) if error.code == ErrorCode::NoAttribute => 0,
            Done::No(error) => return self.violation(format!("reading a register: {error}")),
            Done::Unknown => return,
        };
        let most = self.history.records().registers.get(&life).copied().unwrap_or_default().begun;
        if found < least || found > most {
            self.violation(format!("a register of {life:?} was {found}, between {least} and {most} was due"));
        }
    }

    /// Adds one to a number that only the holder of a lock may change.
    async fn count(&mut self) {
        let create = fs::CreateFile { at: Some(at("shared/counter")), mode: 0o644, ..Default::default() };
        let Ok(fs::Created { attr: Some(attr), .. }) = self.cluster.create(&root(), create).await else {
            return;
        };
        let range = |mode: fs::LockMode| {
            Some(fs::LockRange { start: 0, end: i64::MAX as u64, mode: mode as i32, pid: 1 })
        };
        let lock = |mode| fs::SetLock {
            inode: attr.inode,
            kind: fs::LockKind::Flock as i32,
            owner: 1,
            range: range(mode),
        };
        let taken = self.cluster.set_lock(lock(fs::LockMode::Exclusive), None).await;
        let session = match self.done("lock", taken) {
            Done::Yes(Locked::Done { session, .. }) => session,
            Done::Yes(Locked::Refused(_)) | Done::Unknown => return,
            Done::No(error) => return self.violation(format!("taking a lock: {error}")),
        };
        let name = Bytes::from_static(b"user.count");
        let read = self.cluster.get_xattr(&root(), at("shared/counter"), name.clone()).await;
        let found: Option<u64> = match self.done("count read", read) {
            Done::Yes(value) => String::from_utf8_lossy(&value).parse().ok(),
            Done::No(error) if error.code == ErrorCode::NoAttribute => Some(0),
            _ => None,
        };
        // Whoever lost its session lost the lock with it, and must not go on under another one.
        if let Some(found) = found
            && self.cluster.session_id() == Some(session)
        {
            let value = found + 1;
            let ask = fs::SetXattr {
                at: Some(at("shared/counter")),
                name,
                value: value.to_string().into(),
                ..Default::default()
            };
            let counted = self.cluster.set_xattr(&root(), ask).await;
            if let Done::Yes(()) = self.done(&format!("count {value}"), counted) {
                let other = self.history.records().counted.insert(value, self.life);
                if let Some(other) = other {
                    self.violation(format!("both it and {other:?} counted to {value} under the lock"));
                }
            }
        }
        let given = self.cluster.set_lock(lock(fs::LockMode::Unlocked), Some(session)).await;
        let _ = self.done("unlock", given);
    }

    async fn append_shared(&mut self) {
        let create = fs::CreateFile { at: Some(at("shared/log")), mode: 0o644, ..Default::default() };
        let Ok(fs::Created { attr: Some(attr), .. }) = self.cluster.create(&root(), create).await else {
            return;
        };
        let file = self.cluster.open(&root(), attr);
        let mut record = [0; 16];
        let parts = [self.life.0 as u32, self.life.1 as u32, self.operation as u32, 0xC0DE];
        for (place, part) in record.chunks_mut(4).zip(parts) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        let volatile_since = self.volatile(false);
        self.history.records().appended.insert(record, Appended { at: None, volatile_since });
        let appended = file.append(Bytes::copy_from_slice(&record)).await;
        let at = match self.done("append", appended) {
            Done::Yes(at) => at,
            Done::No(error) => return self.violation(format!("appending: {error}")),
            Done::Unknown => return,
        };
        self.history.records().appended.insert(record, Appended { at: Some(at), volatile_since });
        let synced = file.sync().await;
        if let Done::Yes(_) = self.done("append sync", synced) {
            self.history.records().appended.insert(record, Appended { at: Some(at), volatile_since: None });
        }
    }
}

/// Says where content is not what it must be.
pub fn difference(name: &str, content: &Content, found: &[u8]) -> String {
    let whole = content.whole();
    let first = whole.iter().zip(found).position(|(one, other)| one != other);
    format!(
        "{name} is {} bytes, {} (with {} edits in doubt) were due; they differ at {first:?}",
        found.len(),
        content.base.len(),
        content.maybe.len()
    )
}

/// Looks which of the states a directory is in, and returns it with what was in doubt cleared up. Unreadable content
/// that may be lost counts as right.
pub async fn observe(
    cluster: &Cluster,
    directory: &str,
    states: &[&State],
    history: &History,
) -> Result<Option<State>> {
    let listing = cluster.list(&root(), at(directory), Bytes::new(), 1000).await?;
    let mut found = std::collections::BTreeMap::new();
    for entry in listing.entries {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let attr = cluster.stat(&root(), at(&format!("{directory}/{name}")), false).await?;
        let content = cluster.open(&root(), attr).read_at(0, SIZE as usize * 4).await;
        found.insert(name, (attr.inode, content));
    }
    let mut unreadable = None;
    'states: for state in states {
        if !state.names.keys().eq(found.keys()) {
            continue;
        }
        let mut known = (*state).clone();
        for (name, file) in &state.names {
            let Some(content) = known.files.get_mut(file) else { continue 'states };
            match &found[name].1 {
                Ok(bytes) if content.allows(bytes) => {
                    content.base = bytes.to_vec();
                    content.maybe.clear();
                }
                Ok(bytes) => {
                    event!("{}", difference(name, content, bytes));
                    continue 'states;
                }
                Err(_) if content.may_be_lost(history.losses()) => {}
                Err(error) => {
                    // Another state may allow it: what was written over bytes that were safe may be lost.
                    unreadable = Some(error.clone());
                    continue 'states;
                }
            }
        }
        for (one, file) in &state.names {
            for (other, another) in &state.names {
                if (file == another) != (found[one].0 == found[other].0) {
                    event!("{one} and {other} are not the same file, or should not be");
                    continue 'states;
                }
            }
        }
        return Ok(Some(known));
    }
    event!("found {:?}", found.keys());
    unreadable.map_or(Ok(None), Err)
}
