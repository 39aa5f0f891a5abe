//! `cairn admin`: the namenode group, and verifying data.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use cairn_client::{Error, control};
use clap::{Args, Subcommand};
use control::membership_request::Action;

use crate::args::On;
use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;

/// Commands of `cairn admin`.
#[derive(Subcommand)]
pub enum Admin {
    /// Take a namenode out of the group for good (a new one joins by starting with an empty directory)
    RemoveNamenode(On<Namenode>),
    /// Let another namenode lead
    TransferLeader(On<Namenode>),
    /// Have datanodes read and verify what they hold, now (`cairn status` shows how far they are)
    Scrub(On<Scrub>),
}

/// What to verify; everything if nothing is named.
#[derive(Args)]
pub struct Scrub {
    /// Files whose chunks are verified, on every datanode that has them
    #[arg(value_name = "PATH", conflicts_with = "datanode")]
    paths: Vec<ClusterPath>,
    /// Everything on one datanode, by its number in `cairn status`
    #[arg(long, value_name = "NODE")]
    datanode: Option<u32>,
}

/// Has datanodes verify what they hold.
pub async fn scrub(client: Arc<Client>, args: Scrub) -> Result<()> {
    let mut chunks = BTreeSet::new();
    for path in &args.paths {
        let layout = client.cluster.layout(&client.cred, path.node(), true, 0, u64::MAX).await;
        let layout = layout.map_err(PathError::remote(path))?;
        chunks.extend(layout.chunks.iter().map(|chunk| chunk.chunk));
    }
    if !args.paths.is_empty() && chunks.is_empty() {
        // No chunk named would mean all of them.
        return Ok(());
    }
    let chunks = chunks.into_iter().collect();
    let ask = control::ScrubRequest { node: args.datanode.unwrap_or(0), chunks };
    client.cluster.scrub(ask).await.map_err(|error| anyhow!("{error}"))?;
    Ok(())
}

/// A namenode by its number.
#[derive(Args)]
pub struct Namenode {
    /// Its id, as `cairn status` shows it
    id: u64,
}

/// Takes a namenode out.
pub async fn remove_namenode(client: Arc<Client>, args: Namenode) -> Result<()> {
    change(&client, Action::Remove, args.id).await
}

/// Hands leadership over.
pub async fn transfer_leader(client: Arc<Client>, args: Namenode) -> Result<()> {
    change(&client, Action::TransferLeader, args.id).await
}

async fn change(client: &Client, action: Action, id: u64) -> Result<()> {
    let ask = control::MembershipRequest { action: action as i32, id, address: String::new() };
    let reply = client.cluster.change_membership(ask).await.map_err(|error| anyhow!("{error}"))?;
    match reply.error {
        Some(error) => Err(anyhow!("{}", Error::from(error))),
        None => Ok(()),
    }
}
