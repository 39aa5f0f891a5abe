//! A client's session as the state machine sees it: batches of commands, each applied in one transaction.

use std::time::{Duration, Instant};

use cairn_metadata::store::{Durability, Store, StoreError};
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    Command, CommandBatch, CreateFile, Cred, FormCluster, Mkdir, Mutation, NodeRef, OpenSession, Outcome,
    RegisterDatanode, outcome,
};
use cairn_proto::{ErrorCode, ROOT_INODE};

use crate::Failure;
use crate::measure::Times;
use crate::population::Population;

/// How often a durable commit follows, as the namenode's checkpoint does.
const DURABLE_EVERY: Duration = Duration::from_secs(2);

/// One session that changes the namespace.
pub struct Writer<'a> {
    store: &'a dyn Store,
    /// The session's number.
    pub session: u64,
    /// The time of the last batch: it only grows, so the store's own says how far it is.
    pub time_ns: i64,
    seq: u64,
    durable_at: Instant,
    /// How long batches took to apply, checkpoints apart.
    pub applied: Times,
    /// How long the durable ones took.
    pub durable: Times,
}

/// What a batch came to.
pub struct Done {
    /// One a command.
    pub outcomes: Vec<Outcome>,
    /// How far it has gone.
    pub durability: Durability,
}

impl<'a> Writer<'a> {
    /// Forms the cluster if there is none yet, and opens a session.
    pub fn begin(store: &'a dyn Store) -> Result<Writer<'a>, Failure> {
        let mut time_ns = 0;
        store.read(&mut |view| {
            time_ns = cairn_metadata::meta(view)?.map_or(0, |meta| meta.time_ns);
            Ok(())
        })?;
        let mut writer = Writer {
            store,
            session: 0,
            time_ns,
            seq: 0,
            durable_at: Instant::now(),
            applied: Times::default(),
            durable: Times::default(),
        };
        if time_ns == 0 {
            let form = FormCluster { cluster_id: "comparison".into(), ..FormCluster::default() };
            writer.lead(Op::FormCluster(form))?;
            for node in 1..=3 {
                let (uuid, address) = (format!("node-{node}"), format!("127.0.0.1:{node}"));
                writer.lead(Op::RegisterDatanode(RegisterDatanode {
                    uuid,
                    address,
                    ..Default::default()
                }))?;
            }
        }
        match writer.lead(Op::OpenSession(OpenSession::default()))? {
            outcome::Result::Session(opened) => writer.session = opened.session,
            other => return Err(Failure::Wrong(format!("opening a session came to {other:?}"))),
        }
        writer.applied = Times::default();
        Ok(writer)
    }

    /// One of the leader's own mutations.
    pub fn lead(&mut self, op: Op) -> Result<outcome::Result, Failure> {
        let session = std::mem::replace(&mut self.session, 0);
        let done = self.apply(vec![op], Durability::Applied);
        self.session = session;
        accepted(done?.pop())
    }

    /// Applies a batch, durably when a checkpoint is due.
    pub fn run(&mut self, ops: Vec<Op>) -> Result<Done, Failure> {
        let due = self.durable_at.elapsed() >= DURABLE_EVERY;
        let durability = if due { Durability::Durable } else { Durability::Applied };
        let outcomes = self.apply(ops, durability)?;
        if due {
            self.durable_at = Instant::now();
        }
        Ok(Done { outcomes, durability })
    }

    /// Ends with a durable commit, as a graceful stop does.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.apply(Vec::new(), Durability::Durable)?;
        Ok(())
    }

    fn apply(&mut self, ops: Vec<Op>, durability: Durability) -> Result<Vec<Outcome>, Failure> {
        // Everything before this batch has been answered by now.
        let acked = self.seq;
        self.time_ns += 1_000;
        let commands = ops.into_iter().map(|op| self.command(op, acked)).collect();
        let batch = CommandBatch { time_ns: self.time_ns, commands };
        let mut outcomes = Vec::new();
        let start = Instant::now();
        self.store.write(durability, &mut |txn| {
            outcomes = cairn_metadata::apply(txn, &batch)?;
            Ok(())
        })?;
        match durability {
            Durability::Applied => self.applied.add(start.elapsed()),
            Durability::Durable => self.durable.add(start.elapsed()),
        }
        Ok(outcomes)
    }

    fn command(&mut self, op: Op, acked: u64) -> Command {
        let mutation = Some(Mutation { op: Some(op) });
        let cred = Some(Cred::default());
        if self.session == 0 {
            return Command { cred, mutation, ..Command::default() };
        }
        self.seq += 1;
        Command { session: self.session, seq: self.seq, acked, cred, mutation }
    }

    /// Makes the population's directories.
    pub fn make_directories(&mut self, population: Population) -> Result<(), Failure> {
        let numbers: Vec<u64> = (0..population.directories()).collect();
        for batch in numbers.chunks(64) {
            let make = |&number: &u64| {
                let path = population.directory_name(number).into_bytes().into();
                let at = Some(NodeRef { inode: ROOT_INODE, path });
                Op::Mkdir(Mkdir { at, mode: 0o755, ..Mkdir::default() })
            };
            let done = self.run(batch.iter().map(make).collect())?;
            for (&number, outcome) in batch.iter().zip(done.outcomes) {
                let expected = population.directory_inode(number);
                match accepted(Some(outcome))? {
                    outcome::Result::Attr(attr) if attr.inode == expected => {}
                    other => return Err(Failure::Wrong(format!("directory {number} came to {other:?}"))),
                }
            }
        }
        Ok(())
    }

    /// Creates the files of these numbers in one batch.
    pub fn create(&mut self, population: Population, files: std::ops::Range<u64>) -> Result<(), Failure> {
        let make = |file| {
            let at = population.by_parent(file);
            Op::Create(CreateFile { at, mode: 0o644, exclusive: true, ..CreateFile::default() })
        };
        for outcome in self.run(files.map(make).collect())?.outcomes {
            accepted(Some(outcome))?;
        }
        Ok(())
    }
}

/// The number of files there are: the number of the next file to create.
pub fn files(store: &dyn Store) -> Result<u64, StoreError> {
    let mut files = 0;
    store.read(&mut |view| {
        files = cairn_metadata::meta(view)?.map_or(0, |meta| meta.files);
        Ok(())
    })?;
    Ok(files)
}

/// The result of a command that must not be refused.
pub fn accepted(outcome: Option<Outcome>) -> Result<outcome::Result, Failure> {
    match outcome.and_then(|outcome| outcome.result) {
        Some(outcome::Result::Error(error)) => Err(Failure::Refused(error.into())),
        Some(result) => Ok(result),
        None => Err(Failure::Refused(ErrorCode::Malformed.because("no outcome"))),
    }
}
