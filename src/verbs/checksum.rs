//! `cairn checksum`.

use std::io::Write;
use std::pin::pin;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::PathError;
use crate::output;
use crate::paths::ClusterPath;
use crate::tree::Walk;

/// Arguments of `cairn checksum`.
#[derive(Args)]
pub struct Checksum {
    /// What to digest
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Also the files below directories
    #[arg(short, short_alias = 'R', long)]
    recursive: bool,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Prints the BLAKE3 digest of each file's bytes, as `b3sum` does for local files: it depends on nothing but the
/// content, so equal digests mean equal files, here or anywhere.
pub async fn run(client: Arc<Client>, args: Checksum) -> Result<()> {
    let mut out = output::stdout();
    let mut objects = Vec::new();
    for path in &args.paths {
        let attr = match client.stat(path, true).await {
            Ok(attr) => attr,
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        if attr.kind() == fs::FileKind::Directory && !args.recursive {
            let error = cairn_client::ErrorCode::IsDirectory.because("use -r");
            client.report.failed(PathError::Remote(path.clone(), error));
            continue;
        }
        let mut walk = Walk::new(client.clone(), path.clone(), attr);
        while let Some(found) = walk.next().await {
            let entry = match found {
                Ok(entry) if entry.attr.kind() == fs::FileKind::File => entry,
                Ok(_) => continue,
                Err(error) => {
                    client.report.failed(error);
                    continue;
                }
            };
            match digest(&client, &entry.path, &entry.attr).await {
                Ok(hash) if args.json => objects.push(json!({
                    "path": entry.path.to_string(), "size": entry.attr.size, "blake3": hash.to_hex().as_str(),
                })),
                Ok(hash) => writeln!(out, "{}  {}", hash.to_hex(), entry.path)?,
                Err(error) => client.report.failed(error),
            }
        }
    }
    out.flush()?;
    if args.json {
        output::print_json(&Value::Array(objects))?;
    }
    Ok(())
}

/// The BLAKE3 of a file's bytes.
pub async fn digest(client: &Client, path: &ClusterPath, attr: &fs::Attr) -> Result<blake3::Hash, PathError> {
    client.require_read(path, attr).await?;
    let mut hasher = blake3::Hasher::new();
    let mut pieces = pin!(client.cluster.read_stream(attr, 0, attr.size));
    while let Some(piece) = pieces.next().await {
        hasher.update(&piece.map_err(PathError::remote(path))?);
    }
    Ok(hasher.finalize())
}
