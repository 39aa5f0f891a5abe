//! Many small files, each written whole and read whole.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use clap::Args;

use super::figures::{Line, Times};
use super::{Place, all, make_directory, new_file, noise};
use crate::client::Client;
use crate::output;
use crate::paths::ClusterPath;

/// Files in one directory.
const WIDTH: u32 = 1000;

/// Arguments of `cairn bench small`.
#[derive(Args)]
pub struct Small {
    /// How many files
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    files: u32,
    /// Bytes of each
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = parse)]
    size: usize,
    /// How many at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    at_once: u32,
    #[command(flatten)]
    pub place: Place,
}

fn parse(text: &str) -> Result<usize, String> {
    let size = output::parse_size(text).map_err(|error| error.to_string())?;
    match size {
        0..=8_388_608 => Ok(size as usize),
        _ => Err("a small file has at most 8 MiB".into()),
    }
}

/// Writes all, then reads all.
pub async fn run(client: &Arc<Client>, dir: &ClusterPath, args: &Small) -> Result<Vec<Line>> {
    for part in 0..args.files.div_ceil(WIDTH) {
        make_directory(client, &dir.join(part.to_string().as_bytes())).await?;
    }
    let content = noise(args.size);
    let mut lines = Vec::new();
    for (what, writes) in [("write files", true), ("read files", false)] {
        let began = Instant::now();
        let share = |worker: u32| {
            let (client, dir, content) = (client.clone(), dir.clone(), content.clone());
            let numbers = (worker..args.files).step_by(args.at_once as usize);
            tokio::spawn(async move {
                let mut times = Times::default();
                for number in numbers {
                    let path =
                        dir.join((number / WIDTH).to_string().as_bytes()).join(number.to_string().as_bytes());
                    let done = match writes {
                        true => times.take(write(&client, &path, content.clone())).await,
                        false => times.take(read(&client, &path, &content)).await,
                    };
                    done.map_err(|error| anyhow!("{path}: {error}"))?;
                }
                Ok(times)
            })
        };
        let times = Times::joined(all((0..args.at_once).map(share).collect()).await?);
        let (clients, elapsed) = (args.at_once as usize, began.elapsed());
        lines.push(Line { what, clients, elapsed, times, each: 1.0, bytes: None });
    }
    Ok(lines)
}

async fn write(client: &Client, path: &ClusterPath, content: Bytes) -> Result<()> {
    let ask = new_file(client, path.node());
    client.cluster.put_small(&client.cred, ask, content, None, false).await?;
    Ok(())
}

async fn read(client: &Client, path: &ClusterPath, content: &Bytes) -> Result<()> {
    let attr = client.cluster.stat(&client.cred, path.node(), false).await?;
    let file = client.cluster.open(&client.cred, attr);
    let found = file.read_at(0, content.len()).await?;
    if found != *content {
        return Err(anyhow!("read other bytes than were written"));
    }
    Ok(())
}
