//! `cairn admin`: the namenode group.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use cairn_client::{Error, control};
use clap::{Args, Subcommand};
use control::membership_request::Action;

use crate::args::On;
use crate::client::Client;

/// Commands of `cairn admin`.
#[derive(Subcommand)]
pub enum Admin {
    /// Take a namenode out of the group for good (a new one joins by starting with an empty directory)
    RemoveNamenode(On<Namenode>),
    /// Let another namenode lead
    TransferLeader(On<Namenode>),
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
