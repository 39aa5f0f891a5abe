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
    /// Permissions, as for chmod
    #[arg(short, long, value_name = "MODE")]
    mode: Option<String>,
}

/// Makes directories.
pub async fn run(client: Arc<Client>, args: Mkdir) -> Result<()> {
    let (mode, umask) = match &args.mode {
        Some(text) => (ModeChange::parse(text)?.apply(0o777, true, client.umask), 0),
        None => (0o777, client.umask),
    };
    for path in &args.paths {
        let ask = fs::Mkdir {
            at: Some(path.node()),
            mode,
            uid: client.cred.uid,
            gid: client.cred.gid,
            parents: args.parents,
            umask,
            ..fs::Mkdir::default()
        };
        if let Err(error) = client.cluster.mkdir(&client.cred, ask).await {
            client.report.failed(PathError::Remote(path.clone(), error));
        }
    }
    Ok(())
}
