//! `cairn mv`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::{Error, ErrorCode, fs};
use clap::Args;

use super::Targets;
use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;

/// Arguments of `cairn mv`.
#[derive(Args)]
pub struct Mv {
    /// What to move, and where to
    #[arg(value_names = ["FROM", "TO"], num_args = 2.., required = true)]
    paths: Vec<ClusterPath>,
    /// Refuse to replace a file
    #[arg(short, long)]
    no_clobber: bool,
}

/// Renames.
pub async fn run(client: Arc<Client>, mut args: Mv) -> Result<()> {
    let Some(to) = args.paths.pop() else { return Ok(()) };
    let mode = if args.no_clobber { fs::RenameMode::NoReplace } else { fs::RenameMode::Replace };
    let mut targets = Targets::default();
    for (from, to) in super::destinations(&client, &args.paths, &to).await? {
        let moved = match client.stat(&from, false).await {
            Ok(attr) => attr,
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        if !targets.claim(&client.report, from.as_os_str(), to.as_os_str()) {
            continue;
        }
        if from.as_bytes() != to.as_bytes() && from.contains(&to) {
            client.report.failed(format!("{from}: cannot move a directory into itself, {to}"));
            continue;
        }
        let ask = fs::Rename { from: Some(from.node()), to: Some(to.node()), mode: mode as i32 };
        let done = match client.cluster.rename(&client.cred, ask).await {
            Ok(()) => leave_one_name(&client, &from, &to, &moved).await,
            Err(error) => Err(PathError::Remote(missing(&client, from, to, &error).await, error)),
        };
        if let Err(error) = done {
            client.report.failed(error);
        }
    }
    Ok(())
}

/// What an error of a rename is about: the source was there a moment ago, so it is the target's directory, as a rule, that
/// is not.
async fn missing(client: &Client, from: ClusterPath, to: ClusterPath, error: &Error) -> ClusterPath {
    let went = error.code == ErrorCode::NotFound && matches!(client.look(&from, false).await, Ok(None));
    if went { from } else { to }
}

/// Renaming a file to another of its names changes nothing, as POSIX has it: then the name that was to be moved is taken
/// away.
async fn leave_one_name(
    client: &Client,
    from: &ClusterPath,
    to: &ClusterPath,
    moved: &fs::Attr,
) -> Result<(), PathError> {
    if moved.nlink < 2 || moved.kind() == fs::FileKind::Directory {
        return Ok(());
    }
    let stayed = client.look(from, false).await?.is_some_and(|attr| attr.inode == moved.inode);
    if !stayed || is_one_name(client, from, to).await? {
        return Ok(());
    }
    client.cluster.unlink(&client.cred, from.node()).await.map_err(PathError::remote(from))
}

/// Whether two paths, which may lead through symbolic links, are the same name in the same directory.
async fn is_one_name(client: &Client, one: &ClusterPath, other: &ClusterPath) -> Result<bool, PathError> {
    if one.name() != other.name() {
        return Ok(false);
    }
    let parents = (client.stat(&one.parent(), true).await?, client.stat(&other.parent(), true).await?);
    Ok(parents.0.inode == parents.1.inode)
}
