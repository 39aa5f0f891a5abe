//! `cairn rm`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::{ErrorCode, fs};
use clap::Args;

use super::{Flight, IN_FLIGHT};
use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;
use crate::tree::Walk;

/// Arguments of `cairn rm`.
#[derive(Args)]
pub struct Rm {
    /// What to remove
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Also directories and all they hold
    #[arg(short, short_alias = 'R', long)]
    recursive: bool,
    /// Say nothing about paths that do not exist
    #[arg(short, long)]
    force: bool,
    /// Remove for good, also where there is a trash (`cairn trash`)
    #[arg(long)]
    skip_trash: bool,
}

impl Rm {
    /// A directory and all it holds, for good.
    pub fn tree(path: ClusterPath) -> Rm {
        Rm { paths: vec![path], recursive: true, force: true, skip_trash: true }
    }
}

/// Removes.
pub async fn run(client: Arc<Client>, args: Rm) -> Result<()> {
    for path in &args.paths {
        let attr = match client.look(path, false).await {
            Ok(Some(attr)) => attr,
            Ok(None) if args.force => continue,
            Ok(None) => {
                client.report.failed(PathError::Remote(path.clone(), ErrorCode::NotFound.into()));
                continue;
            }
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        let is_directory = attr.kind() == fs::FileKind::Directory;
        if !args.skip_trash && !path.is_root() && (args.recursive || !is_directory) {
            match discard(&client, path).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    client.report.failed(error);
                    continue;
                }
            }
        }
        if !is_directory {
            if let Err(error) = client.cluster.unlink(&client.cred, path.node()).await {
                client.report.failed(PathError::Remote(path.clone(), error));
            }
        } else if !args.recursive {
            client.report.failed(PathError::Remote(path.clone(), ErrorCode::IsDirectory.because("use -r")));
        } else if path.is_root() {
            client.report.failed("/: the root stays; name what is to go");
        } else {
            remove_tree(&client, path, attr).await;
        }
    }
    Ok(())
}

/// Moves a name into the trash. False: there is none, and it has to be removed.
async fn discard(client: &Client, path: &ClusterPath) -> Result<bool, PathError> {
    match client.cluster.discard(&client.cred, path.node()).await {
        Ok(_) => Ok(true),
        Err(error) if error.code == ErrorCode::NotSupported => Ok(false),
        Err(error) => Err(PathError::Remote(path.clone(), error)),
    }
}

/// Files first, many at a time, then the directories from the bottom up.
async fn remove_tree(client: &Arc<Client>, path: &ClusterPath, attr: fs::Attr) {
    let mut directories: BTreeMap<usize, Vec<(ClusterPath, fs::NodeRef)>> = BTreeMap::new();
    let mut flight = Flight::new(client, IN_FLIGHT);
    let mut walk = Walk::new(client.clone(), path.clone(), attr);
    while let Some(found) = walk.next().await {
        match found {
            Ok(entry) if entry.is_directory() => {
                directories.entry(entry.depth).or_default().push((entry.path, entry.at));
            }
            Ok(entry) => {
                let client = client.clone();
                flight
                    .start(
                        async move { gone(client.cluster.unlink(&client.cred, entry.at).await, entry.path) },
                    )
                    .await;
            }
            Err(error) => client.report.failed(error),
        }
    }
    flight.land().await;
    for (_, level) in directories.into_iter().rev() {
        for (path, at) in level {
            let client = client.clone();
            flight.start(async move { gone(client.cluster.rmdir(&client.cred, at).await, path) }).await;
        }
        flight.land().await;
    }
}

/// Somebody else's removal of the same tree is no failure of ours.
fn gone(result: cairn_client::Result<()>, path: ClusterPath) -> Result<(), PathError> {
    match result {
        Err(error) if !matches!(error.code, ErrorCode::NotFound | ErrorCode::Stale) => {
            Err(PathError::Remote(path, error))
        }
        _ => Ok(()),
    }
}
