//! One large file, written and read in sequence.

use std::pin::pin;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Args;
use futures::StreamExt;

use super::figures::{Line, Times};
use super::{Place, new_file, noise};
use crate::client::Client;
use crate::output;
use crate::paths::ClusterPath;

/// Bytes of one write.
const PIECE: usize = 1 << 20;

/// Arguments of `cairn bench data`.
#[derive(Args)]
pub struct Data {
    /// Bytes to write and read
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse)]
    size: u64,
    #[command(flatten)]
    pub place: Place,
}

fn parse(text: &str) -> Result<u64, String> {
    output::parse_size(text).map_err(|error| error.to_string())
}

/// Writes, syncs and reads back; what is read is compared with what was written.
pub async fn run(client: &Client, dir: &ClusterPath, args: &Data) -> Result<Vec<Line>> {
    let path = dir.join(b"file");
    let failed = |error: cairn_client::Error| anyhow!("{path}: {error}");
    let cred = &client.cred;
    let ask = new_file(client, path.node());
    let created = client.cluster.create(cred, ask).await.map_err(failed)?;
    let file = client.cluster.open(cred, created.attr.unwrap_or_default());
    let content = noise(PIECE);
    let line = |what, began: Instant, times, bytes| Line {
        what,
        clients: 1,
        elapsed: began.elapsed(),
        times: Times::joined([times]),
        each: 1.0,
        bytes: Some(bytes),
    };
    let (began, mut times, mut at) = (Instant::now(), Times::default(), 0);
    while at < args.size {
        let piece = content.slice(..PIECE.min((args.size - at) as usize));
        let length = piece.len() as u64;
        times.take(file.write_at(at, piece)).await.map_err(failed)?;
        at += length;
    }
    file.flush().await.map_err(failed)?;
    let written = line("write", began, times, args.size);
    let mut sync = Times::default();
    sync.take(file.sync()).await.map_err(failed)?;
    let synced = line("write and sync", began, sync, args.size);
    let (began, mut times, mut at) = (Instant::now(), Times::default(), 0);
    let mut pieces = pin!(client.cluster.read_stream(&file.attr(), 0, args.size));
    while let Some(piece) = times.take(pieces.next()).await {
        let piece = piece.map_err(failed)?;
        same(&piece, &content, at)
            .then_some(())
            .ok_or_else(|| anyhow!("{path}: read other bytes than were written"))?;
        at += piece.len() as u64;
    }
    if at != args.size {
        return Err(anyhow!("{path}: {at} of {} bytes came back", args.size));
    }
    Ok(vec![written, synced, line("read", began, times, args.size)])
}

/// Whether `piece`, read at `at`, is what repeats every [`PIECE`] bytes.
fn same(piece: &[u8], content: &[u8], at: u64) -> bool {
    let start = (at % PIECE as u64) as usize;
    let first = piece.len().min(PIECE - start);
    piece[..first] == content[start..start + first]
        && piece[first..].chunks(PIECE).all(|part| part == &content[..part.len()])
}
