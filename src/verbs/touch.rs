//! `cairn touch`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::{ClusterPath, by_inode};

/// Arguments of `cairn touch`.
#[derive(Args)]
pub struct Touch {
    /// What to touch
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Make no files
    #[arg(short = 'c', long)]
    no_create: bool,
}

/// Makes empty files; files that exist get the current time.
pub async fn run(client: Arc<Client>, args: Touch) -> Result<()> {
    for path in &args.paths {
        if let Err(error) = touch(&client, path, args.no_create).await {
            client.report.failed(error);
        }
    }
    Ok(())
}

async fn touch(client: &Client, path: &ClusterPath, no_create: bool) -> Result<(), PathError> {
    let attr = client.look_for_file(path).await?;
    let ask = match (&attr, no_create) {
        (None, true) => return Ok(()),
        (None, false) => {
            let ask = fs::CreateFile {
                at: Some(path.node()),
                mode: 0o666,
                umask: client.umask,
                uid: client.cred.uid,
                gid: client.cred.gid,
                ..Default::default()
            };
            client.cluster.create(&client.cred, ask).await.map_err(PathError::remote(path))?;
            return Ok(());
        }
        (Some(attr), _) => fs::SetAttr {
            at: Some(by_inode(attr.inode)),
            atime_now: true,
            mtime_now: true,
            ..Default::default()
        },
    };
    client.cluster.set_attr(&client.cred, ask).await.map_err(PathError::remote(path))?;
    Ok(())
}
