//! `cairn tail`.

use std::num::ParseIntError;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::cat;
use crate::client::Client;
use crate::exit::PathError;
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
    /// The last N lines; +N: from line N on
    #[arg(short = 'n', long, value_name = "N", default_value = "10", value_parser = lines)]
    lines: Reach,
    /// The last SIZE bytes, not lines; +SIZE: from that byte on, the first being 1
    #[arg(short = 'c', long, value_name = "SIZE", value_parser = bytes)]
    bytes: Option<Reach>,
    /// Go on printing what is appended
    #[arg(short, long)]
    follow: bool,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// So many before the end.
    Last(u64),
    /// At this one, counted from one.
    From(u64),
}

fn lines(text: &str) -> Result<Reach, ParseIntError> {
    match text.strip_prefix('+') {
        Some(number) => number.parse().map(Reach::From),
        None => text.parse().map(Reach::Last),
    }
}

fn bytes(text: &str) -> Result<Reach> {
    match text.strip_prefix('+') {
        Some(number) => output::parse_size(number).map(Reach::From),
        None => output::parse_size(text).map(Reach::Last),
    }
}

/// Prints the end of a file.
pub async fn run(client: Arc<Client>, args: Tail) -> Result<()> {
    let path = &args.path;
    let attr = client.readable(path).await?;
    let start = match (args.bytes, args.lines) {
        (Some(Reach::Last(bytes)), _) => attr.size.saturating_sub(bytes),
        (Some(Reach::From(byte)), _) => byte.saturating_sub(1).min(attr.size),
        (None, Reach::Last(lines)) => start_of_lines(&client, path, &attr, lines).await?,
        (None, Reach::From(line)) => start_of_line(&client, path, &attr, line).await?,
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

/// Where line `line` begins, the first being 1; the end if there are fewer.
async fn start_of_line(
    client: &Client,
    path: &ClusterPath,
    attr: &fs::Attr,
    line: u64,
) -> Result<u64, PathError> {
    let (mut left, mut position) = (line.saturating_sub(1), 0);
    let mut pieces = std::pin::pin!(client.cluster.read_stream(attr, 0, attr.size));
    while left > 0 {
        let Some(piece) = pieces.next().await else { break };
        let piece = piece.map_err(PathError::remote(path))?;
        match after_lines(&piece, left) {
            Ok(start) => return Ok(position + start as u64),
            Err(found) => left -= found,
        }
        position += piece.len() as u64;
    }
    Ok(position)
}

/// The position in `block` after `wanted` line ends, or how many there are.
fn after_lines(block: &[u8], wanted: u64) -> Result<usize, u64> {
    let mut found = 0;
    for (position, _) in block.iter().enumerate().filter(|&(_, &byte)| byte == b'\n') {
        found += 1;
        if found == wanted {
            return Ok(position + 1);
        }
    }
    Err(found)
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
    fn a_plus_counts_from_the_beginning() {
        assert_eq!(lines("+2"), Ok(Reach::From(2)));
        assert_eq!(lines("2"), Ok(Reach::Last(2)));
        assert!(lines("+").is_err());
        assert_eq!(bytes("+1K").unwrap(), Reach::From(1024));
        assert_eq!(after_lines(b"a\nb\nc", 1), Ok(2));
        assert_eq!(after_lines(b"a\nb\nc", 3), Err(2));
    }

    #[test]
    fn lines_are_counted_from_the_end() {
        assert_eq!(last_lines(b"a\nb\nc\n", true, 1), Ok(4));
        assert_eq!(last_lines(b"a\nb\nc", true, 1), Ok(4));
        assert_eq!(last_lines(b"a\nb\nc\n", true, 3), Err(2));
        assert_eq!(last_lines(b"a\nb\n", false, 1), Ok(4));
        assert_eq!(last_lines(b"a\nb\n", false, 2), Ok(2));
    }
}
