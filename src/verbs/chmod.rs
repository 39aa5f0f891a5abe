//! `cairn chmod`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;

use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::mode::ModeChange;
use crate::paths::{ClusterPath, by_inode};

/// Arguments of `cairn chmod`.
#[derive(Args)]
pub struct Chmod {
    /// 644, or u+x,go-w
    #[arg(value_name = "MODE", allow_hyphen_values = true)]
    mode: String,
    /// What to change
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Also what lies below directories
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// Changes permissions.
pub async fn run(client: Arc<Client>, args: Chmod) -> Result<()> {
    let change = Arc::new(ModeChange::parse(&args.mode).map_err(|error| Usage(error.to_string()))?);
    super::for_each(&client, &args.paths, args.recursive, |client, entry| {
        let change = change.clone();
        async move {
            let mode = change.apply(entry.attr.mode, entry.is_directory(), client.umask);
            let ask =
                fs::SetAttr { at: Some(by_inode(entry.attr.inode)), mode: Some(mode), ..Default::default() };
            client.cluster.set_attr(&client.cred, ask).await.map_err(PathError::remote(&entry.path))?;
            Ok(())
        }
    })
    .await;
    Ok(())
}
