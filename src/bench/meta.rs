//! Operations on names: nothing but the namenodes.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow};
use cairn_client::fs;
use clap::Args;

use super::figures::{Line, Times};
use super::{Place, all, connect, make_directory, new_file};
use crate::args::Connection;
use crate::client::Client;
use crate::paths::ClusterPath;

/// Entries of one page of a listing.
const PAGE: u32 = 1024;

/// Arguments of `cairn bench meta`.
#[derive(Args)]
pub struct Meta {
    /// Numbers of clients, one after the other; each client has a session of its own
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,8,64,256",
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: Vec<u16>,
    /// Files of each round, over all clients (and at least ten for each)
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    files: u32,
    /// Files in each directory
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    width: u32,
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

const STEPS: [(Step, &str); 5] = [
    (Step::Create, "create"),
    (Step::Stat, "stat"),
    (Step::List, "list entries"),
    (Step::Rename, "rename"),
    (Step::Delete, "delete"),
];

/// One client's files.
#[derive(Clone)]
struct Worker {
    client: Arc<Client>,
    directories: Vec<ClusterPath>,
    files: u32,
    width: u32,
}

/// Measures all numbers of clients.
pub async fn run(connection: &Connection, dir: &ClusterPath, args: &Meta) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for &count in &args.clients {
        let clients = connect(connection, usize::from(count)).await?;
        // One client alone would take minutes for what many do in a second.
        let most = if count == 1 { args.files.min(4000) } else { args.files };
        let files = (most / u32::from(count)).max(10);
        let mut workers = Vec::new();
        for (number, client) in clients.iter().enumerate() {
            let mut directories = Vec::new();
            for part in 0..files.div_ceil(args.width) {
                let path = dir.join(format!("{count}-{number}-{part}").as_bytes());
                make_directory(client, &path).await?;
                directories.push(path);
            }
            workers.push(Worker { client: client.clone(), directories, files, width: args.width });
        }
        for (step, what) in STEPS {
            let began = Instant::now();
            let tasks = workers.iter().cloned().map(|worker| tokio::spawn(worker.work(step))).collect();
            let times = Times::joined(all(tasks).await?);
            let elapsed = began.elapsed();
            let each = if step == Step::List { u64::from(files.min(args.width).min(PAGE)) } else { 1 };
            lines.push(Line { what, clients: clients.len(), elapsed, times, each, bytes: None });
        }
        for client in clients {
            // What is left of the session ends with its lease.
            let _ = client.cluster.close().await;
        }
    }
    Ok(lines)
}

impl Worker {
    async fn work(self, step: Step) -> Result<Times> {
        let mut times = Times::default();
        if step == Step::List {
            for directory in &self.directories {
                let ask =
                    self.client.cluster.list(&self.client.cred, directory.node(), Default::default(), PAGE);
                times.take(ask).await.map_err(|error| anyhow!("{directory}: {error}"))?;
            }
            return Ok(times);
        }
        for number in 0..self.files {
            let directory = &self.directories[(number / self.width) as usize];
            let (old, new) = (
                directory.join(format!("f{number}").as_bytes()),
                directory.join(format!("g{number}").as_bytes()),
            );
            let (cluster, cred) = (&self.client.cluster, &self.client.cred);
            let done = match step {
                Step::Create => {
                    let ask = new_file(&self.client, &old);
                    times.take(cluster.create(cred, ask)).await.map(drop)
                }
                Step::Stat => times.take(cluster.stat(cred, old.node(), false)).await.map(drop),
                Step::Rename => {
                    let ask =
                        fs::Rename { from: Some(old.node()), to: Some(new.node()), ..fs::Rename::default() };
                    times.take(cluster.rename(cred, ask)).await
                }
                Step::Delete => times.take(cluster.unlink(cred, new.node())).await,
                Step::List => Ok(()),
            };
            done.map_err(|error| anyhow!("{old}: {error}"))?;
        }
        Ok(times)
    }
}
