//! `cairn truncate`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::{ErrorCode, fs};
use clap::Args;

use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::output;
use crate::paths::{ClusterPath, by_inode};

/// Arguments of `cairn truncate`.
#[derive(Args)]
pub struct Truncate {
    /// The new size, as 4096 or 64M; +SIZE grows, -SIZE shrinks
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    size: String,
    /// What to change; files that do not exist are made
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Make no files
    #[arg(short = 'c', long)]
    no_create: bool,
}

/// Sets sizes.
pub async fn run(client: Arc<Client>, args: Truncate) -> Result<()> {
    let (sign, digits) = match args.size.as_bytes().first() {
        Some(b'+') => (1, &args.size[1..]),
        Some(b'-') => (-1, &args.size[1..]),
        _ => (0, args.size.as_str()),
    };
    let amount = output::parse_size(digits).map_err(|error| Usage(error.to_string()))?;
    let new_size = move |old: u64| match sign {
        1 => old.saturating_add(amount),
        -1 => old.saturating_sub(amount),
        _ => amount,
    };
    for path in &args.paths {
        if let Err(error) = truncate(&client, path, args.no_create, new_size).await {
            client.report.failed(error);
        }
    }
    Ok(())
}

async fn truncate(
    client: &Client,
    path: &ClusterPath,
    no_create: bool,
    new_size: impl Fn(u64) -> u64,
) -> Result<(), PathError> {
    let attr = match client.look_for_file(path).await? {
        Some(attr) => attr,
        None if no_create => return Ok(()),
        None => {
            let ask = fs::CreateFile {
                at: Some(path.node()),
                mode: 0o666,
                umask: client.umask,
                uid: client.cred.uid,
                gid: client.cred.gid,
                ..Default::default()
            };
            let created = client.cluster.create(&client.cred, ask).await.map_err(PathError::remote(path))?;
            created.attr.unwrap_or_default()
        }
    };
    if attr.kind() == fs::FileKind::Directory {
        return Err(PathError::Remote(path.clone(), ErrorCode::IsDirectory.into()));
    }
    let ask =
        fs::SetAttr { at: Some(by_inode(attr.inode)), size: Some(new_size(attr.size)), ..Default::default() };
    client.cluster.set_attr(&client.cred, ask).await.map_err(PathError::remote(path))?;
    Ok(())
}
