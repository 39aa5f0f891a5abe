//! `cairn chunks`.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

use super::health::{counted, liveness_name};
use crate::client::Client;
use crate::exit::PathError;
use crate::output;
use crate::paths::ClusterPath;

/// Arguments of `cairn chunks`.
#[derive(Args)]
pub struct Chunks {
    /// The file
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// A replica as the namenode counts it and as its datanode has it.
struct Found {
    info: fs::ReplicaInfo,
    stat: Result<cairn_proto::data::ReplicaStat, String>,
}

/// Shows the extents of files, their chunks, and the host files that hold them.
pub async fn run(client: Arc<Client>, args: Chunks) -> Result<()> {
    let mut out = output::stdout();
    let mut objects = Vec::new();
    for path in &args.paths {
        let layout = client.cluster.layout(&client.cred, path.node(), true, 0, u64::MAX).await;
        let layout = match layout.map_err(PathError::remote(path)) {
            Ok(layout) => layout,
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        let attr = layout.attr.unwrap_or_default();
        if args.json {
            let mut chunks = Vec::new();
            for chunk in &layout.chunks {
                chunks.push(chunk_json(chunk, &replicas(&client, chunk).await));
            }
            let extents: Vec<Value> = layout.extents.iter().map(extent_json).collect();
            objects.push(json!({
                "path": path.to_string(), "inode": attr.inode, "size": attr.size,
                "replication": attr.replication, "extents": extents, "chunks": chunks,
            }));
            continue;
        }
        let extents = counted(layout.extents.len() as u64, "extent");
        let chunks = counted(layout.chunks.len() as u64, "chunk");
        writeln!(out, "{path}: {} in {extents} of {chunks}", counted(attr.size, "byte"))?;
        for extent in &layout.extents {
            let end = extent.file_offset + extent.length;
            let (from, to) = (extent.chunk_offset, extent.chunk_offset + extent.length);
            writeln!(out, "  {}..{end} = chunk {} at {from}..{to}", extent.file_offset, extent.chunk)?;
        }
        for chunk in &layout.chunks {
            write_chunk(&mut out, chunk, &replicas(&client, chunk).await)?;
        }
    }
    out.flush()?;
    if args.json {
        output::print_json(&Value::Array(objects))?;
    }
    Ok(())
}

async fn replicas(client: &Client, chunk: &fs::ChunkInfo) -> Vec<Found> {
    let number = chunk.chunk;
    let asks = chunk.replicas.clone().into_iter().map(|info| async move {
        let stat = match info.liveness() {
            fs::Liveness::Dead => Err("the datanode is dead".to_string()),
            _ => client.cluster.replica_stat(&info, number).await.map_err(|error| error.to_string()),
        };
        Found { info, stat }
    });
    futures::stream::iter(asks).buffered(16).collect().await
}

fn state(chunk: &fs::ChunkInfo) -> &'static str {
    match chunk.state() {
        fs::ChunkState::Open => "open",
        fs::ChunkState::Sealed => "sealed",
        fs::ChunkState::Unspecified => "unknown",
    }
}

fn write_chunk(out: &mut impl Write, chunk: &fs::ChunkInfo, replicas: &[Found]) -> Result<()> {
    let (state, wanted) = (state(chunk), chunk.replication);
    write!(out, "  chunk {}: {state}, {} bytes, {} live", chunk.chunk, chunk.length, chunk.live_bytes)?;
    if chunk.kept_bytes > 0 {
        write!(out, ", {} kept for snapshots", chunk.kept_bytes)?;
    }
    writeln!(out, ", {} of {wanted} replicas", replicas.len())?;
    for found in replicas {
        let info = &found.info;
        write!(out, "    node {:<3} {:<21} {:<8}", info.node, info.address, liveness_name(info.liveness()))?;
        match &found.stat {
            Ok(stat) => writeln!(out, " {} bytes  {}", stat.length, stat.path)?,
            Err(error) => writeln!(out, " {error}")?,
        }
    }
    Ok(())
}

fn extent_json(extent: &fs::Extent) -> Value {
    json!({
        "file_offset": extent.file_offset, "length": extent.length,
        "chunk": extent.chunk, "chunk_offset": extent.chunk_offset,
    })
}

fn chunk_json(chunk: &fs::ChunkInfo, replicas: &[Found]) -> Value {
    let replicas: Vec<Value> = replicas
        .iter()
        .map(|found| {
            let mut object = json!({
                "node": found.info.node, "address": found.info.address, "host": found.info.host,
                "rack": found.info.rack, "liveness": liveness_name(found.info.liveness()),
            });
            match &found.stat {
                Ok(stat) => {
                    object["length"] = json!(stat.length);
                    object["sealed"] = json!(stat.sealed);
                    object["file"] = json!(stat.path);
                    object["blake3"] = json!(output::hex(&stat.blake3));
                }
                Err(error) => object["error"] = json!(error),
            }
            object
        })
        .collect();
    json!({
        "chunk": chunk.chunk, "state": state(chunk), "length": chunk.length, "live_bytes": chunk.live_bytes,
        "kept_bytes": chunk.kept_bytes,
        "replication": chunk.replication, "session": chunk.session, "blake3": output::hex(&chunk.blake3),
        "replicas": replicas,
    })
}
