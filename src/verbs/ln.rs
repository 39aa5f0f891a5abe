//! `cairn ln`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;

/// Arguments of `cairn ln`.
#[derive(Args)]
pub struct Ln {
    /// What the link points to
    target: OsString,
    /// The link, or the directory it goes into
    link: ClusterPath,
    /// Make a symbolic link; TARGET is kept as it is written
    #[arg(short, long)]
    symbolic: bool,
    /// Remove a file that has the name
    #[arg(short, long)]
    force: bool,
}

/// Makes a link.
pub async fn run(client: Arc<Client>, args: Ln) -> Result<()> {
    let source = ClusterPath::from(args.target.as_os_str());
    let mut link = args.link;
    if client.is_directory(&link).await? {
        link = link.join(source.name().unwrap_or(args.target.as_bytes()));
    }
    if args.force && client.look(&link, false).await?.is_some() {
        client.cluster.unlink(&client.cred, link.node()).await.map_err(PathError::remote(&link))?;
    }
    let made = if args.symbolic {
        let ask = fs::Symlink {
            at: Some(link.node()),
            target: args.target.into_vec().into(),
            uid: client.cred.uid,
            gid: client.cred.gid,
        };
        client.cluster.symlink(&client.cred, ask).await
    } else {
        let ask = fs::Link { from: Some(source.node()), at: Some(link.node()) };
        client.cluster.link(&client.cred, ask).await
    };
    made.map_err(PathError::remote(&link))?;
    Ok(())
}
