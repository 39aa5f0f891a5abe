//! `cairn df`.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::json;

use crate::client::Client;
use crate::output::{self, Table};

/// Arguments of `cairn df`.
#[derive(Args)]
pub struct Df {
    /// Sizes as 1.5G
    #[arg(short = 'h', long)]
    human_readable: bool,
    /// As a JSON object
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Shows the cluster's space: raw, and as files that are replicated by default can use it.
pub async fn run(client: Arc<Client>, args: Df) -> Result<()> {
    let stats = client.cluster.fs_stats().await.map_err(|error| anyhow!("{error}"))?;
    let used = stats.capacity.saturating_sub(stats.available);
    let replicas = u64::from(stats.default_replication.max(1));
    if args.json {
        return output::print_json(&json!({
            "cluster_id": stats.cluster_id,
            "capacity": stats.capacity,
            "used": used,
            "available": stats.available,
            "available_to_files": stats.available / replicas,
            "live_bytes": stats.live_bytes,
            "snapshots": stats.snapshots,
            "kept_bytes": stats.kept_bytes,
            "inodes": stats.inodes,
            "chunks": stats.chunks,
            "default_replication": stats.default_replication,
            "chunk_size": stats.chunk_size,
        }));
    }
    let percent =
        if stats.capacity == 0 { 0 } else { (used as u128 * 100).div_ceil(u128::from(stats.capacity)) };
    let shown = |count| output::bytes(count, args.human_readable);
    let mut table = Table::new(&["Space", ">Size", ">Used", ">Available", ">Use%"]);
    table.row(vec![
        "raw".into(),
        shown(stats.capacity),
        shown(used),
        shown(stats.available),
        format!("{percent}%"),
    ]);
    table.row(vec![
        format!("{replicas} replicas"),
        shown(stats.capacity / replicas),
        shown(stats.live_bytes),
        shown(stats.available / replicas),
        String::new(),
    ]);
    let mut out = output::stdout();
    write!(out, "{}", table.render(0))?;
    out.flush()?;
    Ok(())
}
