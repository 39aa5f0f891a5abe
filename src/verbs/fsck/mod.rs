//! `cairn fsck`: walks names, extents, chunks and replicas, and says what is wrong and whom it hurts. Changes nothing.

mod judge;
mod leaks;
mod show;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;

use self::judge::{Hurt, Hurts, Seen, State, Tally, Verdict};
use self::leaks::Garbage;
use crate::args::Connection;
use crate::client::{self, Client};
use crate::exit;
use crate::output;
use crate::paths::{ClusterPath, by_inode};
use crate::tree::{Entry, Walk};

/// What it exits with when nobody answers.
const UNREACHABLE: u8 = 2;
/// Files looked at at once.
const AT_ONCE: usize = 64;
/// Things found that are kept for the report; all are counted.
const KEPT: usize = 10_000;
/// Entries and chunks between two dots.
const DOT: u64 = 1000;

/// Arguments of `cairn fsck`.
#[derive(Args)]
pub struct Fsck {
    /// Where to begin
    #[arg(value_name = "PATH", default_value = "/")]
    path: ClusterPath,
    /// List every file
    #[arg(long)]
    files: bool,
    /// List the extents of every file with their chunks
    #[arg(long)]
    blocks: bool,
    /// With the datanodes of every chunk
    #[arg(long)]
    locations: bool,
    /// With the racks of these datanodes
    #[arg(long)]
    racks: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Fsck {
    fn lists_blocks(&self) -> bool {
        self.blocks || self.locations || self.racks
    }
}

/// Kinds of things that are wrong beside lost chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Find {
    /// Records contradict each other.
    Record,
    /// A replica that no record knows.
    StrayReplica,
    /// A record whose replica is not there, or not whole.
    AbsentReplica,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Found {
    find: Find,
    /// 0: it is about a file.
    chunk: u64,
    /// 0: it is about no datanode.
    node: u32,
    what: String,
}

/// Everything that was learned.
#[derive(Default)]
struct Findings {
    tally: Tally,
    seen: Seen,
    /// Files with lost chunks.
    hurts: Vec<(String, Hurt)>,
    found: Vec<Found>,
    counts: BTreeMap<Find, u64>,
    /// Only when the whole cluster was looked at.
    garbage: Option<Garbage>,
    dots: u64,
}

impl Findings {
    fn add(&mut self, found: impl IntoIterator<Item = Found>) {
        for one in found {
            *self.counts.entry(one.find).or_default() += 1;
            if self.found.len() < KEPT {
                self.found.push(one);
            }
        }
    }

    fn verdict(&self) -> Verdict {
        let tally = &self.tally;
        if tally.damaged_files > 0 || tally.missing > 0 || tally.corrupt > 0 {
            return Verdict::Corrupt;
        }
        let is_odd =
            tally.under > 0 || tally.bad_replicas > 0 || tally.unreadable > 0 || !self.counts.is_empty();
        if is_odd { Verdict::Degraded } else { Verdict::Healthy }
    }
}

struct Check {
    client: Arc<Client>,
    args: Fsck,
    findings: Mutex<Findings>,
    shows_dots: bool,
}

/// Checks; returns the exit code that tells the verdict too.
pub async fn run(connection: &Connection, args: Fsck) -> u8 {
    let checked = async {
        let cluster = client::connect("fsck", connection, None).await?;
        let client = Arc::new(Client::over(cluster, "fsck"));
        let shows_dots = !args.json && io::stderr().is_terminal();
        let check = Arc::new(Check { client, args, findings: Mutex::default(), shows_dots });
        check.clone().all().await
    };
    match checked.await {
        Ok(code) => code,
        Err(error) => match exit::code_of("fsck", &error) {
            exit::PIPE_CLOSED => exit::PIPE_CLOSED,
            _ => UNREACHABLE,
        },
    }
}

impl Check {
    async fn all(self: Arc<Check>) -> Result<u8> {
        let root = self.client.stat(&self.args.path, true).await?;
        let status = self.client.cluster.status().await.map_err(|error| anyhow!("{error}"))?;
        self.clone().walk(root).await?;
        if self.args.path.is_root() && self.client.cred.uid == 0 {
            let (garbage, found) = leaks::records(&self.client, || self.tick()).await?;
            self.change(|findings| {
                findings.garbage = Some(garbage);
                findings.add(found);
            });
            let (found, silent) = leaks::replicas(&self.client, &status.datanodes).await;
            self.change(|findings| {
                findings.add(found);
                findings.tally.unreadable += silent;
            });
        } else if self.args.path.is_root() {
            self.client.report.note("only root may compare chunks and datanodes with their records");
        }
        if self.shows_dots {
            exit::say("");
        }
        self.change(|findings| {
            if self.args.json {
                output::print_json(&show::as_json(&self.args.path, findings, &status))?;
            } else {
                let mut out = output::stdout();
                out.write_all(show::render(&self.args.path, findings, &status).as_bytes())?;
                out.flush()?;
            }
            Ok(findings.verdict().exit_code())
        })
    }

    fn change<R>(&self, work: impl FnOnce(&mut Findings) -> R) -> R {
        work(&mut self.findings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A dot now and then: somebody may be waiting.
    fn tick(&self) {
        let dots = self.change(|findings| {
            findings.dots += 1;
            findings.dots
        });
        if self.shows_dots && dots.is_multiple_of(DOT) {
            let _ = io::stderr().write_all(b".");
        }
    }

    async fn walk(self: Arc<Check>, root: fs::Attr) -> Result<()> {
        let walk = Walk::new(self.client.clone(), self.args.path.clone(), root);
        // Lists are printed page by page as they come, and so one file after the other.
        let at_once = if self.args.lists_blocks() { 1 } else { AT_ONCE };
        let entries =
            futures::stream::unfold(
                walk,
                |mut walk| async move { walk.next().await.map(|entry| (entry, walk)) },
            );
        let mut checked = Box::pin(
            entries
                .map(|entry| {
                    let check = self.clone();
                    async move { check.entry(entry.map_err(|error| error.to_string())).await }
                })
                .buffered(at_once),
        );
        while let Some(lines) = checked.next().await {
            print(&lines?)?;
        }
        Ok(())
    }

    /// Looks at one entry and returns what is to be printed of it.
    async fn entry(&self, entry: Result<Entry, String>) -> Result<String> {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                self.client.report.note(error);
                self.change(|findings| findings.tally.unreadable += 1);
                return Ok(String::new());
            }
        };
        self.tick();
        let attr = &entry.attr;
        let is_file = attr.kind() == fs::FileKind::File;
        self.change(|findings| match attr.kind() {
            fs::FileKind::File => {
                findings.tally.files += 1;
                findings.tally.size = findings.tally.size.saturating_add(attr.size);
            }
            fs::FileKind::Directory => findings.tally.directories += 1,
            fs::FileKind::Symlink => findings.tally.symlinks += 1,
            _ => findings.tally.others += 1,
        });
        if !is_file {
            let lists = self.args.files && !self.args.json && entry.is_directory();
            return Ok(if lists { format!("{} <dir>\n", entry.path) } else { String::new() });
        }
        let lists = self.args.lists_blocks() && !self.args.json;
        if lists {
            print(&show::file_line(&entry.path, attr, None))?;
        }
        let hurts = match self.file(&entry, lists).await {
            Ok(hurts) => hurts,
            // It went away meanwhile.
            Err(error) if error.code == cairn_client::ErrorCode::Stale => return Ok(String::new()),
            Err(error) => {
                self.client.report.note(exit::describe(&entry.path, &error));
                self.change(|findings| findings.tally.unreadable += 1);
                return Ok(String::new());
            }
        };
        let mut lines = String::new();
        if self.args.files && !lists && !self.args.json {
            lines.push_str(&show::file_line(&entry.path, attr, Some(hurts.is_empty())));
        }
        if !hurts.is_empty() {
            let path = entry.path.to_string();
            if !self.args.json {
                hurts.iter().for_each(|hurt| lines.push_str(&show::hurt_line(&path, hurt)));
            }
            self.change(|findings| {
                findings.tally.damaged_files += 1;
                let room = KEPT.saturating_sub(findings.hurts.len());
                findings.hurts.extend(hurts.into_iter().take(room).map(|hurt| (path.clone(), hurt)));
            });
        }
        Ok(lines)
    }

    /// Goes through the extents of a file, a page at a time. Returns where it is damaged.
    async fn file(&self, entry: &Entry, lists: bool) -> cairn_client::Result<Vec<Hurt>> {
        let at = by_inode(entry.attr.inode);
        let (mut hurts, mut offset) = (Hurts::default(), 0);
        loop {
            let page = self.client.cluster.check_file(&self.client.cred, at.clone(), offset).await?;
            let chunks: BTreeMap<u64, &fs::ChunkInfo> =
                page.chunks.iter().map(|chunk| (chunk.chunk, chunk)).collect();
            self.change(|findings| {
                for chunk in &page.chunks {
                    if findings.seen.insert(chunk.chunk) {
                        findings.tally.chunk(chunk);
                    }
                }
                let found = page.problems.iter().map(|what| Found {
                    find: Find::Record,
                    chunk: 0,
                    node: 0,
                    what: format!("{}: {what}", entry.path),
                });
                findings.add(found);
            });
            for extent in &page.extents {
                let chunk = chunks.get(&extent.chunk);
                let state = chunk.map_or(State::Unknown, |chunk| judge::judge(chunk));
                if state.is_lost() {
                    hurts.add(extent, state);
                }
                if lists {
                    let line = show::extent_line(extent, chunk.copied(), state, &self.args);
                    if let Err(error) = print(&line) {
                        return Err(cairn_client::ErrorCode::Io.because(error.to_string()));
                    }
                }
            }
            match page.extents.last() {
                Some(last) if !page.end => offset = last.file_offset.saturating_add(last.length),
                _ => return Ok(hurts.into_all().collect()),
            }
        }
    }
}

fn print(text: &str) -> std::io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    std::io::stdout().lock().write_all(text.as_bytes())
}
