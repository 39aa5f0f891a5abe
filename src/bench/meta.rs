//! Operations on names: nothing but the namenodes.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow};
use cairn_client::fs;
use clap::Args;

use super::figures::{Line, Times};
use super::{Place, all, connect, make_directory, make_directory_at, new_file};
use crate::args::Connection;
use crate::client::Client;
use crate::paths::{ClusterPath, by_inode};

/// Entries of one page of a listing.
const PAGE: u32 = 1024;

/// Arguments of `cairn bench meta`.
#[derive(Args)]
pub struct Meta {
    /// Numbers of clients, one after the other: each waits for one answer before it asks for the next thing
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,64,256",
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: Vec<u16>,
    /// Sessions that the clients share, as threads of so many programs do; without it, each has one of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    sessions: Option<u16>,
    /// Files of each round, over all clients (and at least ten for each)
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    files: u32,
    /// Files in each directory
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    width: u32,
    /// Let each client have its directories to itself, as a mount has those that it makes; what it did is on the namenodes'
    /// disks when a step is over
    #[arg(long)]
    delegate: bool,
    #[command(flatten)]
    pub place: Place,
}

/// The steps of a round; what one makes the next one works on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Create,
    Stat,
    List,
    Rename,
    Delete,
}

const STEPS: [Step; 5] = [Step::Create, Step::Stat, Step::List, Step::Rename, Step::Delete];

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Create => "create",
            Step::Stat => "stat",
            Step::List => "list entries",
            Step::Rename => "rename",
            Step::Delete => "delete",
        }
    }
}

/// One client's files.
#[derive(Clone)]
struct Worker {
    client: Arc<Client>,
    /// By their inodes, as a program that has them open.
    directories: Vec<u64>,
    files: u32,
    width: u32,
    delegate: bool,
}

/// Measures all numbers of clients.
pub async fn run(connection: &Connection, dir: &ClusterPath, args: &Meta) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut top = None;
    for (round, &count) in args.clients.iter().enumerate() {
        let sessions = args.sessions.map_or(count, |most| most.min(count));
        let sessions = connect(connection, usize::from(sessions), args.delegate).await?;
        // One client alone would take minutes for what many do in a second.
        let most = if count == 1 { args.files.min(4000) } else { args.files };
        let files = (most / u32::from(count)).max(10);
        // As a mount does: a directory is delegated when it is made by its name in one that is known by its inode.
        let top = match top {
            Some(top) => top,
            None => *top.insert(make_directory(&sessions[0], &dir.join(b"meta")).await?),
        };
        let mut workers = Vec::new();
        for (number, client) in sessions.iter().cycle().take(usize::from(count)).enumerate() {
            let mut directories = Vec::new();
            for part in 0..files.div_ceil(args.width) {
                // The same number of clients may be asked for again.
                let name = format!("{round}-{number}-{part}").into_bytes().into();
                let at = fs::NodeRef { inode: top, path: name };
                directories.push(make_directory_at(client, at).await?);
            }
            let (client, width, delegate) = (client.clone(), args.width, args.delegate);
            workers.push(Worker { client, directories, files, width, delegate });
        }
        for step in STEPS {
            let began = Instant::now();
            let tasks = workers.iter().cloned().map(|worker| tokio::spawn(worker.work(step))).collect();
            let times = Times::joined(all(tasks).await?);
            let elapsed = began.elapsed();
            let each = if step == Step::List { listed(files, args.width) } else { 1.0 };
            lines.push(Line { what: step.name(), clients: count.into(), elapsed, times, each, bytes: None });
        }
        for client in sessions {
            // What is left of the session ends with its lease.
            let _ = client.cluster.close().await;
        }
    }
    Ok(lines)
}

/// Entries of a client's listings on average: its last directory may have fewer than the others.
fn listed(files: u32, width: u32) -> f64 {
    let directories = files.div_ceil(width);
    let all: u64 = (0..directories).map(|part| u64::from((files - part * width).min(width).min(PAGE))).sum();
    all as f64 / f64::from(directories.max(1))
}

impl Worker {
    async fn work(self, step: Step) -> Result<Times> {
        let mut times = Times::default();
        if step == Step::List {
            for &inode in &self.directories {
                let at = by_inode(inode);
                let ask = self.client.cluster.list(&self.client.cred, at, Default::default(), PAGE);
                times.take(ask).await.map_err(|error| anyhow!("inode {inode}: {error}"))?;
            }
            return Ok(times);
        }
        for number in 0..self.files {
            let inode = self.directories[(number / self.width) as usize];
            let at = |name: String| fs::NodeRef { inode, path: name.into_bytes().into() };
            let (old, new) = (at(format!("f{number}")), at(format!("g{number}")));
            let (cluster, cred) = (&self.client.cluster, &self.client.cred);
            let done = match step {
                Step::Create => {
                    let ask = new_file(&self.client, old);
                    times.take(cluster.create(cred, ask)).await.map(drop)
                }
                Step::Stat => times.take(cluster.stat(cred, old, false)).await.map(drop),
                Step::Rename => {
                    let ask = fs::Rename { from: Some(old), to: Some(new), ..fs::Rename::default() };
                    times.take(cluster.rename(cred, ask)).await
                }
                Step::Delete => times.take(cluster.unlink(cred, new)).await,
                Step::List => Ok(()),
            };
            done.map_err(|error| anyhow!("{what}, file {number}: {error}", what = step.name()))?;
        }
        if self.delegate {
            self.client.cluster.sync_names().await.map_err(|error| anyhow!("{}: {error}", step.name()))?;
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_full_counts_for_what_it_has() {
        assert_eq!(listed(4000, 1000), 1000.0);
        assert_eq!(listed(2500, 1000), 2500.0 / 3.0);
        assert_eq!(listed(10, 1000), 10.0);
        assert_eq!(listed(5000, 5000), 1024.0);
    }
}
