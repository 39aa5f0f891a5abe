//! `cairn chown`.

use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use nix::unistd::{Group, User};

use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::paths::{ClusterPath, by_inode};

/// Arguments of `cairn chown`.
#[derive(Args)]
pub struct Chown {
    /// USER, USER:GROUP or :GROUP, by name or number
    #[arg(value_name = "OWNER")]
    owner: String,
    /// What to change
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Also what lies below directories
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// Changes owner and group.
pub async fn run(client: Arc<Client>, args: Chown) -> Result<()> {
    let (uid, gid) = parse(&args.owner)?;
    super::for_each(&client, &args.paths, args.recursive, |client, entry| async move {
        let ask = fs::SetAttr { at: Some(by_inode(entry.attr.inode)), uid, gid, ..Default::default() };
        client.cluster.set_attr(&client.cred, ask).await.map_err(PathError::remote(&entry.path))?;
        Ok(())
    })
    .await;
    Ok(())
}

fn parse(owner: &str) -> Result<(Option<u32>, Option<u32>), Usage> {
    let (user, group) = owner.split_once(':').map_or((owner, ""), |(user, group)| (user, group));
    if user.is_empty() && group.is_empty() {
        return Err(Usage(format!("{owner:?}: neither a user nor a group")));
    }
    let uid = match user {
        "" => None,
        name => Some(user_id(name).ok_or_else(|| Usage(format!("{name}: no such user on this machine")))?),
    };
    let gid = match group {
        "" => None,
        name => Some(group_id(name).ok_or_else(|| Usage(format!("{name}: no such group on this machine")))?),
    };
    Ok((uid, gid))
}

fn user_id(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()))
}

fn group_id(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(parse("7:8").unwrap(), (Some(7), Some(8)));
        assert_eq!(parse("root").unwrap(), (Some(0), None));
        assert_eq!(parse(":0").unwrap(), (None, Some(0)));
        assert!(parse(":").is_err());
        assert!(parse("no-such-user-here").is_err());
    }
}
