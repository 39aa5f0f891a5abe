//! `cairn mkdir`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;

use crate::client::Client;
use crate::exit::PathError;
use crate::mode::ModeChange;
use crate::paths::ClusterPath;

/// Arguments of `cairn mkdir`.
#[derive(Args)]
pub struct Mkdir {
    /// What to make
    #[arg(value_name = "DIR", required = true)]
    paths: Vec<ClusterPath>,
    /// Make missing parents, and accept directories that exist
    #[arg(short, long)]
    parents: bool,
    /// Permissions, as for chmod; missing parents get the usual ones
    #[arg(short, long, value_name = "MODE", value_parser = ModeChange::parse)]
    mode: Option<ModeChange>,
}

/// Makes directories.
pub async fn run(client: Arc<Client>, args: Mkdir) -> Result<()> {
    let usual = Mode { bits: 0o777, umask: client.umask };
    let mode = match &args.mode {
        Some(change) => Mode { bits: change.apply(0o777, true, client.umask), umask: 0 },
        None => usual,
    };
    for path in &args.paths {
        if let Err(error) = make_with_parents(&client, path, mode, usual, args.parents).await {
            client.report.failed(error);
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
struct Mode {
    bits: u32,
    umask: u32,
}

/// The mode that was asked for is not for the parents.
async fn make_with_parents(
    client: &Client,
    path: &ClusterPath,
    mode: Mode,
    usual: Mode,
    parents: bool,
) -> Result<(), PathError> {
    let parent = path.parent();
    if parents && mode != usual && !parent.is_root() {
        make(client, &parent, usual, true).await?;
    }
    make(client, path, mode, parents).await
}

async fn make(client: &Client, path: &ClusterPath, mode: Mode, parents: bool) -> Result<(), PathError> {
    let ask = fs::Mkdir {
        at: Some(path.node()),
        mode: mode.bits,
        uid: client.cred.uid,
        gid: client.cred.gid,
        parents,
        umask: mode.umask,
        ..fs::Mkdir::default()
    };
    client.cluster.mkdir(&client.cred, ask).await.map(drop).map_err(PathError::remote(path))
}
