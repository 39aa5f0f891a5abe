//! Makes a backup of the metadata with many more files than it has, to see how namenodes carry them.
//!
//!     cairn snapshot-metadata BEFORE
//!     cargo run --release -p cairn-namenode --example populate -- BEFORE AFTER 10000000
//!     cairn restore-metadata AFTER --dir DIR --advertise ADDRESS
//!
//! The files are empty, a thousand to a directory below `/populated`, and were made by the state machine that ships.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cairn_host::disk;
use cairn_metadata::store::{Durability, Store};
use cairn_namenode::store::{RedbStore, stream};
use cairn_proto::ROOT_INODE;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    Command, CommandBatch, CreateFile, Cred, ExpireSession, Mkdir, Mutation, NodeRef, OpenSession, outcome,
};

const FILES_A_DIRECTORY: u64 = 1_000;
const BATCH: u64 = 250;
const CACHE: usize = 1 << 30;
/// Batches between two durable commits.
const DURABLE_EVERY: u64 = 1_000;

struct Maker {
    store: RedbStore,
    session: u64,
    seq: u64,
    batches: u64,
    time_ns: i64,
}

impl Maker {
    fn apply(&mut self, ops: Vec<Op>) -> Result<Vec<outcome::Result>> {
        let acked = self.seq;
        let command = |op| {
            let mut command = Command {
                cred: Some(Cred::default()),
                mutation: Some(Mutation { op: Some(op) }),
                ..Command::default()
            };
            if self.session != 0 {
                self.seq += 1;
                (command.session, command.seq, command.acked) = (self.session, self.seq, acked);
            }
            command
        };
        let commands = ops.into_iter().map(command).collect();
        self.time_ns += 1_000;
        self.batches += 1;
        let batch = CommandBatch { time_ns: self.time_ns, commands };
        let durability = match self.batches.is_multiple_of(DURABLE_EVERY) {
            true => Durability::Durable,
            false => Durability::Applied,
        };
        let mut outcomes = Vec::new();
        self.store.write(durability, &mut |txn| {
            outcomes = cairn_metadata::apply(txn, &batch)?;
            Ok(())
        })?;
        let accepted = |result| match result {
            Some(outcome::Result::Error(error)) => bail!("{}", cairn_proto::Error::from(error)),
            Some(result) => Ok(result),
            None => bail!("no outcome"),
        };
        outcomes.into_iter().map(|outcome| accepted(outcome.result)).collect()
    }

    fn directory(&mut self, parent: u64, name: &str) -> Result<u64> {
        let made =
            self.apply(vec![Op::Mkdir(Mkdir { at: at(parent, name), mode: 0o755, ..Mkdir::default() })])?;
        match made.into_iter().next() {
            Some(outcome::Result::Attr(attr)) => Ok(attr.inode),
            other => bail!("a directory came to {other:?}"),
        }
    }
}

fn at(inode: u64, name: &str) -> Option<NodeRef> {
    Some(NodeRef { inode, path: name.as_bytes().to_vec().into() })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [before, after, files] = arguments.as_slice() else { bail!("want BEFORE AFTER FILES") };
    let files: u64 = files.parse().context("FILES is a number")?;
    let dir = tempfile::tempdir_in(std::path::Path::new(after).parent().context("AFTER has no directory")?)?;
    let store = RedbStore::open(&dir.path().join("store.redb"), CACHE, disk::real())?;
    stream::load(&store, BufReader::new(File::open(before)?))?;
    let mut time_ns = 0;
    store.read(&mut |view| {
        time_ns = cairn_metadata::meta(view)?.map_or(0, |meta| meta.time_ns);
        Ok(())
    })?;
    let mut maker = Maker { store, session: 0, seq: 0, batches: 0, time_ns };
    let opened = maker.apply(vec![Op::OpenSession(OpenSession::default())])?;
    let Some(outcome::Result::Session(opened)) = opened.into_iter().next() else { bail!("no session") };
    maker.session = opened.session;
    let begun = Instant::now();
    let top = maker.directory(ROOT_INODE, "populated")?;
    for number in 0..files.div_ceil(FILES_A_DIRECTORY) {
        let directory = maker.directory(top, &format!("dir-{number:06}"))?;
        let wanted = FILES_A_DIRECTORY.min(files - number * FILES_A_DIRECTORY);
        for first in (0..wanted).step_by(BATCH as usize) {
            let create = |file| {
                let at = at(directory, &format!("file-{file:04}.dat"));
                Op::Create(CreateFile { at, mode: 0o644, exclusive: true, ..CreateFile::default() })
            };
            maker.apply((first..wanted.min(first + BATCH)).map(create).collect())?;
        }
    }
    let session = std::mem::take(&mut maker.session);
    maker.apply(vec![Op::ExpireSession(ExpireSession { session })])?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{files} files made in {seconds:.1} s, {:.0}/s", files as f64 / seconds);
    let mut out = BufWriter::new(File::create(after)?);
    maker.store.read(&mut |view| stream::write(view, &mut out))?;
    out.into_inner().context("writing the backup")?.sync_all()?;
    Ok(())
}
