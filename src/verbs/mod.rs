//! The commands on files and on the cluster, one file each.

pub mod admin;
pub mod append;
pub mod balance;
pub mod cat;
pub mod checksum;
pub mod chmod;
pub mod chown;
pub mod chunks;
pub mod cp;
pub mod df;
pub mod du;
pub mod fsck;
pub mod get;
pub mod health;
pub mod ln;
pub mod ls;
pub mod metadata;
pub mod mkdir;
pub mod mv;
pub mod node;
pub mod put;
pub mod quota;
pub mod report;
pub mod rm;
pub mod setrep;
pub mod snapshot;
pub mod stat;
pub mod status;
pub mod tail;
pub mod touch;
pub mod trash;
pub mod truncate;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::sync::Arc;

use cairn_client::fs;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::exit::{PathError, Report};
use crate::paths::{ClusterPath, by_inode};
use crate::tree::{Entry, Walk};

/// Operations on single files that are in flight at once.
const IN_FLIGHT: usize = 64;

/// A bounded set of running operations whose failures are reported as they come.
pub struct Flight {
    client: Arc<Client>,
    limit: usize,
    running: JoinSet<Result<(), PathError>>,
}

impl Flight {
    /// At most `limit` operations at once.
    pub fn new(client: &Arc<Client>, limit: usize) -> Flight {
        Flight { client: client.clone(), limit: limit.max(1), running: JoinSet::new() }
    }

    /// Starts an operation, waiting while too many run.
    pub async fn start(&mut self, operation: impl Future<Output = Result<(), PathError>> + Send + 'static) {
        while self.running.len() >= self.limit {
            self.one().await;
        }
        self.running.spawn(operation);
    }

    /// Waits for all.
    pub async fn land(&mut self) {
        while !self.running.is_empty() {
            self.one().await;
        }
    }

    async fn one(&mut self) {
        match self.running.join_next().await {
            Some(Ok(Err(error))) => self.client.report.failed(error),
            Some(Err(error)) if error.is_panic() => {
                self.client.report.failed(format!("internal error: {error}"))
            }
            _ => {}
        }
    }
}

/// Applies `operation` to each path, and to all that lies below it if `recursive`.
async fn for_each<F, R>(client: &Arc<Client>, paths: &[ClusterPath], recursive: bool, operation: F)
where
    F: Fn(Arc<Client>, Entry) -> R,
    R: Future<Output = Result<(), PathError>> + Send + 'static,
{
    let mut flight = Flight::new(client, IN_FLIGHT);
    for path in paths {
        // Below a path symbolic links are left alone; the path itself may be one.
        let attr = match client.stat(path, true).await {
            Ok(attr) => attr,
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        if !recursive {
            let entry = Entry { at: by_inode(attr.inode), path: path.clone(), attr, depth: 0 };
            flight.start(operation(client.clone(), entry)).await;
            continue;
        }
        let mut walk = Walk::new(client.clone(), path.clone(), attr);
        while let Some(found) = walk.next().await {
            match found {
                Ok(entry) if entry.attr.kind() == fs::FileKind::Symlink => {}
                Ok(entry) => flight.start(operation(client.clone(), entry)).await,
                Err(error) => client.report.failed(error),
            }
        }
    }
    flight.land().await;
}

/// Each source of `mv` or `cp` with where it goes: into `to` if it is a directory, else to `to` itself.
pub async fn destinations(
    client: &Client,
    sources: &[ClusterPath],
    to: &ClusterPath,
) -> anyhow::Result<Vec<(ClusterPath, ClusterPath)>> {
    if client.is_directory(to).await? {
        let into = |source: &ClusterPath| (source.clone(), to.join(source.name().unwrap_or(b"")));
        return Ok(sources.iter().map(into).collect());
    }
    match sources {
        [source] if !to.directory_meant() => Ok(vec![(source.clone(), to.clone())]),
        _ => anyhow::bail!("{to}: not a directory"),
    }
}

/// What one command makes: of two sources with the same name the second would destroy the first.
#[derive(Default)]
struct Targets(HashSet<OsString>);

impl Targets {
    /// Whether `to` is free for `from`, which is there. If another source of this command went there, that is a failure.
    fn claim(&mut self, report: &Report, from: &OsStr, to: &OsStr) -> bool {
        let free = self.0.insert(to.to_os_string());
        if !free {
            report.failed(format!(
                "will not overwrite just-created '{}' with '{}'",
                to.display(),
                from.display()
            ));
        }
        free
    }
}
