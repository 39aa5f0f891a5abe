//! `cairn quota`: limits on what may lie below a directory.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use cairn_client::fs::{SetQuota, TreeUsage};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::args::On;
use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::output::{self, Table};
use crate::paths::ClusterPath;

/// Commands of `cairn quota`.
#[derive(Subcommand)]
pub enum Quota {
    /// Limit how much may lie below directories (root only)
    Set(On<Set>),
    /// Take limits away (root only)
    Clear(On<Clear>),
    /// Show what lies below directories, and the limits that hold there
    Get(On<Get>),
    /// List all directories that have limits (root only)
    Ls(On<List>),
}

/// Arguments of `cairn quota set`.
#[derive(Args)]
pub struct Set {
    /// Directories
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// How many files and directories may lie below each, at any depth
    #[arg(short, long, value_name = "N")]
    names: Option<u64>,
    /// How many bytes their files may hold, as 500M or 2T; replicas do not count
    #[arg(short, long, value_name = "SIZE", value_parser = output::parse_size)]
    bytes: Option<u64>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `cairn quota clear`.
#[derive(Args)]
pub struct Clear {
    /// Directories
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Only the limit on names
    #[arg(short, long)]
    names: bool,
    /// Only the limit on bytes
    #[arg(short, long)]
    bytes: bool,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `cairn quota get`.
#[derive(Args)]
pub struct Get {
    /// Directories
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<ClusterPath>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `cairn quota ls`.
#[derive(Args)]
pub struct List {
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Limits directories.
pub async fn set(client: Arc<Client>, args: Set) -> Result<()> {
    if args.names.is_none() && args.bytes.is_none() {
        return Err(Usage("a limit is missing: --names N, --bytes SIZE, or both".into()).into());
    }
    let ask = SetQuota { max_names: args.names, max_bytes: args.bytes, ..SetQuota::default() };
    change(client, args.paths, ask, args.json).await
}

/// Takes limits away.
pub async fn clear(client: Arc<Client>, args: Clear) -> Result<()> {
    let both = args.names == args.bytes;
    let ask =
        SetQuota { clear_names: args.names || both, clear_bytes: args.bytes || both, ..SetQuota::default() };
    change(client, args.paths, ask, args.json).await
}

async fn change(client: Arc<Client>, paths: Vec<ClusterPath>, ask: SetQuota, json: bool) -> Result<()> {
    let mut changed = Vec::new();
    for path in &paths {
        let ask = SetQuota { at: Some(path.node()), ..ask.clone() };
        match client.cluster.set_quota(&client.cred, ask).await {
            Ok(tree) => changed.push(tree),
            Err(error) => client.report.failed(PathError::Remote(path.clone(), error)),
        }
    }
    for tree in &changed {
        let shown = ClusterPath::new(&tree.path);
        over(tree).into_iter().for_each(|what| client.report.note(format!("{shown}: {what}")));
    }
    show(&changed, json)
}

/// Shows directories, each with the limits above it.
pub async fn get(client: Arc<Client>, args: Get) -> Result<()> {
    let mut rows: Vec<TreeUsage> = Vec::new();
    let mut objects = Vec::new();
    for path in &args.paths {
        let usage = match client.cluster.usage(&client.cred, path.node()).await {
            Ok(usage) => usage,
            Err(error) => {
                client.report.failed(PathError::Remote(path.clone(), error));
                continue;
            }
        };
        let own = usage.tree.unwrap_or_default();
        let above: Vec<TreeUsage> =
            usage.limits.into_iter().filter(|limit| limit.inode != own.inode).collect();
        let mut object = value(&own);
        object["above"] = above.iter().map(value).collect();
        objects.push(object);
        for row in [own].into_iter().chain(above) {
            if !rows.iter().any(|shown| shown.inode == row.inode) {
                rows.push(row);
            }
        }
    }
    if args.json {
        return output::print_json(&Value::Array(objects));
    }
    show(&rows, false)
}

/// Lists the directories with limits, by their paths.
pub async fn list(client: Arc<Client>, args: List) -> Result<()> {
    let mut trees = client.cluster.quotas(&client.cred).await.map_err(|error| anyhow!("{error}"))?;
    trees.sort_by(|a, b| a.path.cmp(&b.path));
    if trees.is_empty() && !args.json {
        client.report.note("no directory has a quota (set one with `cairn quota set PATH`)");
        return Ok(());
    }
    show(&trees, args.json)
}

fn show(trees: &[TreeUsage], json: bool) -> Result<()> {
    if json {
        return output::print_json(&trees.iter().map(value).collect());
    }
    if trees.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[">Names", ">Limit", ">Used%", ">Bytes", ">Limit", ">Used%", "Directory"]);
    for tree in trees {
        let limit = |most: Option<u64>, shown: fn(u64) -> String| most.map_or("-".into(), shown);
        table.row(vec![
            tree.names.to_string(),
            limit(tree.max_names, |most| most.to_string()),
            percent(tree.names, tree.max_names),
            output::size(tree.bytes),
            limit(tree.max_bytes, output::size),
            percent(tree.bytes, tree.max_bytes),
            ClusterPath::new(&tree.path).to_string(),
        ]);
    }
    let mut out = output::stdout();
    write!(out, "{}", table.render(0))?;
    out.flush()?;
    Ok(())
}

/// Rounded down, so that only what is full is shown as full.
fn percent(used: u64, most: Option<u64>) -> String {
    match most {
        None => "-".into(),
        Some(0) if used == 0 => "100%".into(),
        Some(most) => format!("{}%", u128::from(used) * 100 / u128::from(most.max(1))),
    }
}

/// What is above its limit already, in words.
fn over(tree: &TreeUsage) -> Vec<String> {
    let mut said = Vec::new();
    if let Some(most) = tree.max_names.filter(|most| tree.names > *most) {
        said.push(format!(
            "{} names are there already, {} over the limit: none can be added until so many are gone",
            tree.names,
            tree.names - most
        ));
    }
    if let Some(most) = tree.max_bytes.filter(|most| tree.bytes > *most) {
        said.push(format!(
            "{} are there already, {} over the limit: nothing can be added until so much is gone",
            output::size(tree.bytes),
            output::size(tree.bytes - most)
        ));
    }
    said
}

fn value(tree: &TreeUsage) -> Value {
    json!({
        "path": ClusterPath::new(&tree.path).to_string(),
        "names": tree.names,
        "max_names": tree.max_names,
        "bytes": tree.bytes,
        "max_bytes": tree.max_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_full_is_shown_as_full() {
        assert_eq!(percent(999, Some(1000)), "99%");
        assert_eq!(percent(1000, Some(1000)), "100%");
        assert_eq!(percent(0, Some(0)), "100%");
        assert_eq!(percent(3, Some(2)), "150%");
        assert_eq!(percent(3, None), "-");
    }

    #[test]
    fn what_is_over_its_limit_is_said() {
        let tree = TreeUsage { names: 5, max_names: Some(3), bytes: 10, ..TreeUsage::default() };
        assert_eq!(over(&tree).len(), 1);
        assert!(over(&tree)[0].contains("2 over"), "{:?}", over(&tree));
    }
}
