//! `cairn bench`: how fast this cluster is for this client, in two numbers a line: throughput and latency.
//!
//! Everything happens in a directory of its own, which is removed at the end. The figures are those of the client
//! library; what a mount adds is measured through the mount.

mod data;
mod figures;
mod meta;
mod small;

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use cairn_client::fs;
use clap::{Args, Subcommand};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::args::Connection;
use crate::client::{self, Client};
use crate::output;
use crate::paths::{ClusterPath, temporary_name};
use crate::verbs::rm;

use figures::Line;

/// Arguments of `cairn bench`.
#[derive(Args)]
pub struct Bench {
    /// What to measure
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Create, stat, list, rename and delete empty files, by several numbers of clients
    Meta(meta::Meta),
    /// Write and read one large file
    Data(data::Data),
    /// Write and read many small files
    Small(small::Small),
}

/// Where a benchmark works, and how it shows what it saw.
#[derive(Args)]
struct Place {
    /// The directory in which it makes one of its own
    #[arg(long, value_name = "PATH", default_value = "/")]
    dir: ClusterPath,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Measures, prints, and removes what it made, also when it failed.
pub async fn run(client: Arc<Client>, connection: Connection, bench: Bench) -> Result<()> {
    let place = match &bench.what {
        What::Meta(meta) => &meta.place,
        What::Data(data) => &data.place,
        What::Small(small) => &small.place,
    };
    let json = place.json;
    let dir = place.dir.join(&temporary_name(b"", "bench"));
    make_directory(&client, &dir).await?;
    let measured = match bench.what {
        What::Meta(meta) => meta::run(&connection, &dir, &meta).await,
        What::Data(data) => data::run(&client, &dir, &data).await,
        What::Small(small) => small::run(&client, &dir, &small).await,
    };
    let removed = rm::run(client.clone(), rm::Rm::tree(dir)).await;
    show(&measured?, json)?;
    removed
}

fn show(lines: &[Line], json: bool) -> Result<()> {
    if json {
        let lines: Vec<_> = lines.iter().map(Line::json).collect();
        return output::print_json(&lines.into());
    }
    let mut out = output::stdout();
    out.write_all(figures::table(lines).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Clients with sessions of their own, as so many programs would have.
async fn connect(connection: &Connection, count: usize, delegate: bool) -> Result<Vec<Arc<Client>>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut config = client::settings("bench", connection, None)?;
        config.delegate = delegate;
        let cluster = client::reach(config).await?;
        clients.push(Arc::new(Client::over(cluster, "bench")));
    }
    Ok(clients)
}

/// Makes a directory, and says which inode it is.
async fn make_directory(client: &Client, path: &ClusterPath) -> Result<u64> {
    make_directory_at(client, path.node()).await.with_context(|| path.to_string())
}

async fn make_directory_at(client: &Client, at: fs::NodeRef) -> Result<u64> {
    let ask = fs::Mkdir {
        at: Some(at),
        mode: 0o755,
        uid: client.cred.uid,
        gid: client.cred.gid,
        ..fs::Mkdir::default()
    };
    let made = client.cluster.mkdir(&client.cred, ask).await.map_err(|error| anyhow!("{error}"))?;
    Ok(made.inode)
}

/// How to make an empty file that must not be there yet.
fn new_file(client: &Client, at: fs::NodeRef) -> fs::CreateFile {
    fs::CreateFile {
        at: Some(at),
        mode: 0o644,
        uid: client.cred.uid,
        gid: client.cred.gid,
        exclusive: true,
        ..fs::CreateFile::default()
    }
}

/// Bytes that do not compress, the same at every call.
fn noise(length: usize) -> Bytes {
    let mut content = vec![0; length];
    SmallRng::seed_from_u64(7).fill_bytes(&mut content);
    content.into()
}

/// Runs tasks to their end; the first error is everybody's.
async fn all<T: Send + 'static>(tasks: Vec<tokio::task::JoinHandle<Result<T>>>) -> Result<Vec<T>> {
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.context("a task of the benchmark ended").flatten());
    }
    // Only now: one that still works would make what is being removed.
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_failure_is_told_when_all_have_ended() {
        let ended = Arc::new(AtomicBool::new(false));
        let slow = ended.clone();
        let tasks: Vec<tokio::task::JoinHandle<Result<()>>> = vec![
            tokio::spawn(async { Err(anyhow!("no")) }),
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                slow.store(true, Ordering::Relaxed);
                Ok(())
            }),
        ];
        assert!(all(tasks).await.is_err() && ended.load(Ordering::Relaxed));
    }
}
