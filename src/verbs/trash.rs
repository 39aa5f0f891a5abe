//! `cairn trash`: what `cairn rm` removed, until it goes for good.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use cairn_client::fs::{FileKind, Restore as Ask, TrashItem};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::args::On;
use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::output::{self, Names, Table};
use crate::paths::ClusterPath;

/// Nanoseconds of a millisecond.
const MS: i64 = 1_000_000;

/// Commands of `cairn trash`.
#[derive(Subcommand)]
pub enum Trash {
    /// List what is in the trash, oldest first
    Ls(On<List>),
    /// Put things back
    Restore(On<Restore>),
    /// Remove things for good
    Empty(On<Empty>),
    /// Show how long the trash keeps things, or set it (root only)
    Keep(On<Keep>),
}

/// Arguments of `cairn trash ls`.
#[derive(Args)]
pub struct List {
    /// Everybody's, not only one's own (root only)
    #[arg(short, long)]
    all: bool,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `cairn trash restore`.
#[derive(Args)]
pub struct Restore {
    /// Numbers of `cairn trash ls`, or paths as they were: of several things from one path, what was removed last
    #[arg(value_name = "ITEM", required = true)]
    items: Vec<String>,
    /// Where to, if not where it was; a directory takes it in under its name
    #[arg(long, value_name = "PATH")]
    to: Option<ClusterPath>,
    /// Make the directories that are gone
    #[arg(short, long)]
    parents: bool,
}

/// Arguments of `cairn trash empty`.
#[derive(Args)]
pub struct Empty {
    /// Numbers of `cairn trash ls`, or paths as they were (else all of one's own)
    #[arg(value_name = "ITEM")]
    items: Vec<String>,
    /// Everybody's (root only)
    #[arg(short, long, conflicts_with = "items")]
    all: bool,
}

/// Arguments of `cairn trash keep`.
#[derive(Args)]
pub struct Keep {
    /// As 12h or 7d; `off`: `rm` removes for good, and nothing in the trash goes away by itself
    #[arg(value_name = "TIME", value_parser = parse_keep)]
    time: Option<i64>,
}

fn parse_keep(text: &str) -> Result<i64, String> {
    if text == "off" {
        return Ok(0);
    }
    let nanos = output::parse_span(text)?.as_nanos();
    i64::try_from(nanos).map_err(|_| format!("{text}: too long"))
}

/// Lists the trash.
pub async fn list(client: Arc<Client>, args: List) -> Result<()> {
    let list = client.cluster.trash(&client.cred, args.all).await.map_err(|error| anyhow!("{error}"))?;
    let goes = |item: &TrashItem| (list.keep_ns > 0).then(|| item.time_ns.saturating_add(list.keep_ns));
    if args.json {
        let value = |item: &TrashItem| {
            json!({
                "item": item.item, "path": ClusterPath::new(&item.path).to_string(), "uid": item.uid,
                "removed_ns": item.time_ns, "goes_ns": goes(item), "names": item.names, "bytes": item.bytes,
                "directory": item.kind() == FileKind::Directory,
            })
        };
        let items: Vec<_> = list.items.iter().map(value).collect();
        return output::print_json(&json!({ "keep_seconds": list.keep_ns / (1000 * MS), "items": items }));
    }
    if list.items.is_empty() {
        let state = if list.keep_ns == 0 { "off, and empty" } else { "empty" };
        client.report.note(format!("the trash is {state}"));
        return Ok(());
    }
    let mut names = Names::default();
    let mut table = Table::new(&[">Item", "Removed", "Goes", "User", ">Names", ">Bytes", "Path"]);
    for item in &list.items {
        let slash = if item.kind() == FileKind::Directory { "/" } else { "" };
        table.row(vec![
            item.item.to_string(),
            output::local_time(item.time_ns, false),
            goes(item).map_or("-".into(), |time| output::local_time(time, false)),
            names.user(item.uid).to_string(),
            item.names.to_string(),
            output::size(item.bytes),
            format!("{}{slash}", ClusterPath::new(&item.path)),
        ]);
    }
    let mut out = output::stdout();
    write!(out, "{}", table.render(0))?;
    out.flush()?;
    Ok(())
}

/// Puts things back.
pub async fn restore(client: Arc<Client>, args: Restore) -> Result<()> {
    let found = find(&client, &args.items).await?;
    let into = match &args.to {
        Some(to) => client.is_directory(to).await?,
        None => false,
    };
    if args.to.is_some() && !into && found.len() > 1 {
        return Err(Usage("several things only go into a directory".into()).into());
    }
    for item in found {
        let was = ClusterPath::new(&item.path);
        let to = match &args.to {
            Some(to) if into => Some(to.join(was.name().unwrap_or(b""))),
            to => to.clone(),
        };
        let aim = to.clone().unwrap_or_else(|| was.clone());
        let ask = Ask { item: item.item, to: to.map(|to| to.node()), parents: args.parents };
        match client.cluster.restore(&client.cred, ask).await {
            Ok(restored) => client.report.note(format!("{} is back", ClusterPath::new(&restored.path))),
            Err(error) => {
                let way_out = match error.code {
                    cairn_client::ErrorCode::Exists => " (name another place with --to)",
                    cairn_client::ErrorCode::NotFound if !args.parents => {
                        " (its directory is gone: make it anew with -p, or name another place with --to)"
                    }
                    _ => "",
                };
                client.report.failed(format!("{}{way_out}", PathError::Remote(aim, error)));
            }
        }
    }
    Ok(())
}

/// Removes things for good.
pub async fn empty(client: Arc<Client>, args: Empty) -> Result<()> {
    let items = if args.items.is_empty() {
        client.cluster.trash(&client.cred, args.all).await.map_err(|error| anyhow!("{error}"))?.items
    } else {
        find(&client, &args.items).await?
    };
    for item in items {
        match client.cluster.purge_trash(&client.cred, item.item).await {
            // It went by itself meanwhile.
            Err(error) if error.code == cairn_client::ErrorCode::NotFound => {}
            Err(error) => client.report.failed(PathError::Remote(ClusterPath::new(&item.path), error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Shows or sets how long the trash keeps things.
pub async fn keep(client: Arc<Client>, args: Keep) -> Result<()> {
    if let Some(keep_ns) = args.time {
        client.cluster.set_trash(&client.cred, keep_ns).await.map_err(|error| anyhow!("{error}"))?;
    }
    let list = client.cluster.trash(&client.cred, false).await.map_err(|error| anyhow!("{error}"))?;
    let mut out = output::stdout();
    match list.keep_ns {
        0 => writeln!(out, "off")?,
        keep_ns => writeln!(out, "{}", kept(keep_ns / MS))?,
    }
    out.flush()?;
    Ok(())
}

fn kept(ms: i64) -> String {
    match ms {
        86_400_000.. if ms % 3_600_000 == 0 => match (ms / 86_400_000, ms % 86_400_000 / 3_600_000) {
            (days, 0) => format!("{days} d"),
            (days, hours) => format!("{days} d {hours} h"),
        },
        _ => output::span(ms.unsigned_abs()),
    }
}

/// The items that are meant: by number, or the newest from a path.
async fn find(client: &Client, wanted: &[String]) -> Result<Vec<TrashItem>> {
    // Root may name anybody's.
    let all = client.cred.uid == 0;
    let items = client.cluster.trash(&client.cred, all).await.map_err(|error| anyhow!("{error}"))?.items;
    let mut found = Vec::with_capacity(wanted.len());
    for name in wanted {
        let path = ClusterPath::new(name.as_bytes());
        let is_meant = |item: &&TrashItem| match name.parse::<u64>() {
            Ok(number) => item.item == number,
            Err(_) => ClusterPath::new(&item.path).to_string() == path.to_string(),
        };
        match items.iter().rev().find(is_meant) {
            Some(item) => found.push(item.clone()),
            None => client.report.failed(format!("{name}: not in the trash; `cairn trash ls` lists what is")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_to_keep_things_for_are_read_and_shown() {
        assert_eq!(parse_keep("off"), Ok(0));
        assert_eq!(parse_keep("7d").map(|ns| kept(ns / MS)), Ok("7 d".into()));
        assert_eq!(parse_keep("36h").map(|ns| kept(ns / MS)), Ok("1 d 12 h".into()));
        assert_eq!(parse_keep("90s").map(|ns| kept(ns / MS)), Ok("1 min 30 s".into()));
        assert!(parse_keep("soon").is_err() && parse_keep("999999999999d").is_err());
    }
}
