//! `cairn setrep`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cairn_client::fs::{self, Liveness};
use cairn_proto::limits::MAX_REPLICATION;
use clap::Args;

use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::paths::{ClusterPath, by_inode};
use crate::tree::Walk;

/// Arguments of `cairn setrep`.
#[derive(Args)]
pub struct Setrep {
    /// How many replicas
    #[arg(value_name = "N")]
    replication: u32,
    /// Files, or with -R directories
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// All files that lie below directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Wait until all the replicas are there
    #[arg(short, long)]
    wait: bool,
}

/// Sets the wanted number of replicas.
pub async fn run(client: Arc<Client>, args: Setrep) -> Result<()> {
    let wanted = args.replication;
    if wanted == 0 || wanted > MAX_REPLICATION {
        return Err(
            Usage(format!("a replication of {wanted} is not possible, only 1 to {MAX_REPLICATION}")).into()
        );
    }
    let recursive = args.recursive;
    super::for_each(&client, &args.paths, recursive, move |client, entry| async move {
        // Only regular files have replicas; whoever names something else by itself is told.
        if recursive && entry.attr.kind() != fs::FileKind::File {
            return Ok(());
        }
        let at = by_inode(entry.attr.inode);
        client
            .cluster
            .set_replication(&client.cred, at, wanted)
            .await
            .map_err(PathError::remote(&entry.path))?;
        Ok(())
    })
    .await;
    if args.wait && client.report.failures() == 0 {
        for path in &args.paths {
            let attr = client.stat(path, true).await?;
            wait_below(&client, path, attr, wanted).await?;
        }
    }
    Ok(())
}

async fn wait_below(client: &Arc<Client>, path: &ClusterPath, attr: fs::Attr, wanted: u32) -> Result<()> {
    let mut walk = Walk::new(client.clone(), path.clone(), attr);
    while let Some(found) = walk.next().await {
        let entry = found?;
        if entry.attr.kind() != fs::FileKind::File {
            continue;
        }
        let mut said = false;
        loop {
            let at = by_inode(entry.attr.inode);
            let layout = client.cluster.layout(&client.cred, at, false, 0, entry.attr.size).await;
            let layout = layout.map_err(PathError::remote(&entry.path))?;
            let short = layout.chunks.iter().filter(|chunk| live_replicas(chunk) < wanted).count();
            if short == 0 {
                break;
            }
            if !said {
                client.report.note(format!("{}: waiting for replicas of {short} chunks", entry.path));
                said = true;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(())
}

/// Replicas on datanodes that are not known to be dead.
pub fn live_replicas(chunk: &fs::ChunkInfo) -> u32 {
    chunk.replicas.iter().filter(|replica| replica.liveness() != Liveness::Dead).count() as u32
}
