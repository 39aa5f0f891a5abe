//! `cairn mv`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
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
        if let Err(error) = client.stat(&from, false).await {
            client.report.failed(error);
            continue;
        }
        if !targets.claim(&client.report, from.as_os_str(), to.as_os_str()) {
            continue;
        }
        if from.as_bytes() != to.as_bytes() && from.contains(&to) {
            client.report.failed(format!("{from}: cannot move a directory into itself, {to}"));
            continue;
        }
        let ask = fs::Rename { from: Some(from.node()), to: Some(to.node()), mode: mode as i32 };
        if let Err(error) = client.cluster.rename(&client.cred, ask).await {
            let about = if error.code == cairn_client::ErrorCode::NotFound { &from } else { &to };
            client.report.failed(PathError::Remote(about.clone(), error));
        }
    }
    Ok(())
}
