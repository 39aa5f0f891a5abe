//! `cairn cat` and `cairn head`.

use std::pin::pin;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::output;
use crate::paths::ClusterPath;

/// Arguments of `cairn cat`.
#[derive(Args)]
pub struct Cat {
    /// What to print
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
}

/// Arguments of `cairn head`.
#[derive(Args)]
pub struct Head {
    /// What to print
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// So many lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u64,
    /// So many bytes, not lines
    #[arg(short = 'c', long, value_name = "SIZE")]
    bytes: Option<String>,
}

/// Prints files.
pub async fn run(client: Arc<Client>, args: Cat) -> Result<()> {
    print(&client, &args.paths).await
}

/// Prints files to stdout, one after the other.
pub async fn print(client: &Client, paths: &[ClusterPath]) -> Result<()> {
    let mut out = tokio::io::stdout();
    for path in paths {
        match client.readable(path).await {
            Ok(attr) => copy(client, path, &attr, 0, attr.size, &mut out).await?,
            Err(error) => client.report.failed(error),
        }
    }
    out.flush().await?;
    Ok(())
}

/// Copies a range to `out`. A failure of the cluster is reported; a failure of `out` ends the command.
pub async fn copy(
    client: &Client,
    path: &ClusterPath,
    attr: &fs::Attr,
    offset: u64,
    length: u64,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<()> {
    let mut pieces = pin!(client.cluster.read_stream(attr, offset, length));
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => out.write_all(&piece).await?,
            Err(error) => {
                client.report.failed(PathError::Remote(path.clone(), error));
                break;
            }
        }
    }
    Ok(())
}

/// Prints the beginnings of files.
pub async fn run_head(client: Arc<Client>, args: Head) -> Result<()> {
    let bytes = match &args.bytes {
        Some(text) => Some(output::parse_size(text).map_err(|error| Usage(error.to_string()))?),
        None => None,
    };
    let mut out = tokio::io::stdout();
    for (number, path) in args.paths.iter().enumerate() {
        let attr = match client.readable(path).await {
            Ok(attr) => attr,
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        if args.paths.len() > 1 {
            let gap = if number > 0 { "\n" } else { "" };
            out.write_all(format!("{gap}==> {path} <==\n").as_bytes()).await?;
        }
        match bytes {
            Some(bytes) => copy(&client, path, &attr, 0, attr.size.min(bytes), &mut out).await?,
            None => first_lines(&client, path, &attr, args.lines, &mut out).await?,
        }
    }
    out.flush().await?;
    Ok(())
}

async fn first_lines(
    client: &Client,
    path: &ClusterPath,
    attr: &fs::Attr,
    lines: u64,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<()> {
    let mut left = lines;
    let mut pieces = pin!(client.cluster.read_stream(attr, 0, attr.size));
    while left > 0 {
        let piece = match pieces.next().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                client.report.failed(PathError::Remote(path.clone(), error));
                return Ok(());
            }
            None => return Ok(()),
        };
        let mut end = piece.len();
        for (position, _) in piece.iter().enumerate().filter(|&(_, &byte)| byte == b'\n') {
            left -= 1;
            if left == 0 {
                end = position + 1;
                break;
            }
        }
        out.write_all(&piece[..end]).await?;
    }
    Ok(())
}
