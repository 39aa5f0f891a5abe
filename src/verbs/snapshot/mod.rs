//! `cairn snapshot`: directories as they were.

mod diff;
mod restore;

pub use diff::{Diff, diff};
pub use restore::{Restore, restore};

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use cairn_client::{ErrorCode, fs};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::args::On;
use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::output::{self, Table};
use crate::paths::ClusterPath;

/// Commands of `cairn snapshot`.
#[derive(Subcommand)]
pub enum Snapshot {
    /// Keep a directory as it is now, with all below it (its owner and root only)
    Create(On<Create>),
    /// List snapshots, oldest first
    Ls(On<List>),
    /// Give up a snapshot (the directory's owner and root only)
    Rm(On<Remove>),
    /// Show what has changed since a snapshot, or between two
    Diff(On<Diff>),
    /// Put things back as they were in a snapshot
    Restore(On<Restore>),
}

/// Arguments of `cairn snapshot create`.
#[derive(Args)]
pub struct Create {
    /// The directory
    #[arg(value_name = "DIR")]
    directory: ClusterPath,
    /// What to call it (else `s` and the time in UTC)
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `cairn snapshot ls`.
#[derive(Args)]
pub struct List {
    /// Of this directory only (else of all that one owns; for root, all)
    #[arg(value_name = "DIR")]
    directory: Option<ClusterPath>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `cairn snapshot rm`.
#[derive(Args)]
pub struct Remove {
    /// The directory
    #[arg(value_name = "DIR")]
    directory: ClusterPath,
    /// The snapshots
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Makes a snapshot and says where it is.
pub async fn create(client: Arc<Client>, args: Create) -> Result<()> {
    let name = args.name.unwrap_or_default().into_bytes().into();
    let made = client.cluster.create_snapshot(&client.cred, args.directory.node(), name).await;
    let made = made.map_err(PathError::remote(&args.directory))?;
    if args.json {
        return output::print_json(&value(&made));
    }
    let mut out = output::stdout();
    writeln!(out, "{}", place(&made))?;
    out.flush()?;
    Ok(())
}

/// Lists snapshots.
pub async fn list(client: Arc<Client>, args: List) -> Result<()> {
    let at = args.directory.as_ref().map(ClusterPath::node);
    let found = client.cluster.snapshots(&client.cred, at).await.map_err(|error| match &args.directory {
        Some(directory) => anyhow!(PathError::Remote(directory.clone(), error)),
        None => anyhow!("{error}"),
    })?;
    if args.json {
        return output::print_json(&found.iter().map(value).collect());
    }
    if found.is_empty() {
        client.report.note("there are no snapshots (make one with `cairn snapshot create DIR`)");
        return Ok(());
    }
    let mut table = Table::new(&["Name", "Made", ">Holds", "Directory"]);
    for snapshot in &found {
        table.row(vec![
            String::from_utf8_lossy(&snapshot.name).into_owned(),
            output::local_time(snapshot.time_ns, false),
            output::size(snapshot.bytes),
            ClusterPath::new(&snapshot.path).to_string(),
        ]);
    }
    let mut out = output::stdout();
    write!(out, "{}", table.render(0))?;
    out.flush()?;
    Ok(())
}

/// Gives up snapshots.
pub async fn remove(client: Arc<Client>, args: Remove) -> Result<()> {
    for name in args.names {
        let at = args.directory.node();
        let removed = client.cluster.remove_snapshot(&client.cred, at, name.into_bytes().into()).await;
        if let Err(error) = removed {
            client.report.failed(PathError::Remote(args.directory.clone(), error));
        }
    }
    Ok(())
}

/// Where a snapshot is looked into.
fn place(snapshot: &fs::SnapshotInfo) -> ClusterPath {
    ClusterPath::new(&snapshot.path).join(cairn_proto::snapshot::DIRECTORY).join(&snapshot.name)
}

/// The top of a snapshot of a directory: its path and its attributes.
async fn top(client: &Client, directory: &ClusterPath, name: &str) -> Result<(ClusterPath, fs::Attr)> {
    check_name(name)?;
    let path = directory.join(cairn_proto::snapshot::DIRECTORY).join(name.as_bytes());
    match client.look(&path, false).await? {
        Some(attr) => Ok((path, attr)),
        None => {
            let error =
                ErrorCode::NotFound.because(format!("snapshot {name}; `cairn snapshot ls {directory}`"));
            Err(PathError::Remote(path, error).into())
        }
    }
}

/// An empty name, which is what an unset variable leaves, would mean the list of all snapshots, and one with a slash
/// something within one: neither is the directory as it was.
fn check_name(name: &str) -> Result<(), Usage> {
    cairn_proto::path::check_name(name.as_bytes())
        .map_err(|error| Usage(format!("{name:?} cannot be a snapshot: {}", error.detail)))
}

/// The inode's own number, wherever it was found.
fn own_number(attr: &fs::Attr) -> u64 {
    cairn_proto::snapshot::parts(attr.inode).map_or(attr.inode, |(_, inode)| inode)
}

fn value(snapshot: &fs::SnapshotInfo) -> Value {
    json!({
        "name": String::from_utf8_lossy(&snapshot.name),
        "directory": ClusterPath::new(&snapshot.path).to_string(),
        "path": place(snapshot).to_string(),
        "made_ns": snapshot.time_ns,
        "number": snapshot.seq,
        "records": snapshot.records,
        "bytes": snapshot.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_no_snapshot() {
        assert!(check_name("s1").is_ok());
        for name in ["", "s1/sub", "/s1", ".", ".."] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
