//! `cairn tail`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::cat;
use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::output;
use crate::paths::ClusterPath;

/// How much is read at once while looking for line ends backwards.
const STEP: u64 = 256 << 10;

/// Arguments of `cairn tail`.
#[derive(Args)]
pub struct Tail {
    /// What to print
    #[arg(value_name = "PATH")]
    path: ClusterPath,
    /// So many lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u64,
    /// So many bytes, not lines
    #[arg(short = 'c', long, value_name = "SIZE")]
    bytes: Option<String>,
    /// Go on printing what is appended
    #[arg(short, long)]
    follow: bool,
}

/// Prints the end of a file.
pub async fn run(client: Arc<Client>, args: Tail) -> Result<()> {
    let path = &args.path;
    let attr = client.readable(path).await?;
    let start = match &args.bytes {
        Some(text) => {
            attr.size.saturating_sub(output::parse_size(text).map_err(|error| Usage(error.to_string()))?)
        }
        None => start_of_lines(&client, path, &attr, args.lines).await?,
    };
    let mut out = tokio::io::stdout();
    cat::copy(&client, path, &attr, start, attr.size - start, &mut out).await?;
    out.flush().await?;
    if args.follow {
        follow(&client, path, attr, &mut out).await?;
    }
    Ok(())
}

/// Prints what is appended, until it is interrupted.
async fn follow(
    client: &Client,
    path: &ClusterPath,
    mut attr: fs::Attr,
    out: &mut tokio::io::Stdout,
) -> Result<()> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let fresh = client.stat(path, true).await?;
        let mut from = attr.size;
        if fresh.inode != attr.inode || fresh.size < attr.size {
            client.report.note(format!("{path}: file replaced or truncated"));
            from = 0;
        }
        if fresh.size > from {
            cat::copy(client, path, &fresh, from, fresh.size - from, out).await?;
            out.flush().await?;
        }
        attr = fresh;
    }
}

/// Where the last `lines` lines begin.
async fn start_of_lines(
    client: &Client,
    path: &ClusterPath,
    attr: &fs::Attr,
    lines: u64,
) -> Result<u64, PathError> {
    let mut wanted = lines;
    let mut end = attr.size;
    while end > 0 && wanted > 0 {
        let start = end.saturating_sub(STEP);
        let mut block = Vec::with_capacity((end - start) as usize);
        let mut pieces = std::pin::pin!(client.cluster.read_stream(attr, start, end - start));
        while let Some(piece) = pieces.next().await {
            block.extend_from_slice(&piece.map_err(PathError::remote(path))?);
        }
        match last_lines(&block, end == attr.size, wanted) {
            Ok(position) => return Ok(start + position as u64),
            Err(found) => wanted -= found,
        }
        end = start;
    }
    Ok(if lines == 0 { attr.size } else { 0 })
}

/// The position in `block` at which its last `wanted` lines begin, or how many line ends count in it.
fn last_lines(block: &[u8], at_end: bool, wanted: u64) -> Result<usize, u64> {
    let mut found = 0;
    for (position, _) in block.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'\n') {
        // The end of the last line begins no other.
        if at_end && position + 1 == block.len() {
            continue;
        }
        found += 1;
        if found == wanted {
            return Ok(position + 1);
        }
    }
    Err(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_the_end() {
        assert_eq!(last_lines(b"a\nb\nc\n", true, 1), Ok(4));
        assert_eq!(last_lines(b"a\nb\nc", true, 1), Ok(4));
        assert_eq!(last_lines(b"a\nb\nc\n", true, 3), Err(2));
        assert_eq!(last_lines(b"a\nb\n", false, 1), Ok(4));
        assert_eq!(last_lines(b"a\nb\n", false, 2), Ok(2));
    }
}
