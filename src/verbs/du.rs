//! `cairn du`.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::output;
use crate::paths::ClusterPath;
use crate::tree::Walk;

/// Arguments of `cairn du`.
#[derive(Args)]
pub struct Du {
    /// What to measure
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<ClusterPath>,
    /// One line for each PATH, not for each entry in it
    #[arg(short, long)]
    summarize: bool,
    /// Sizes as 1.5G
    #[arg(short = 'h', long)]
    human_readable: bool,
    /// As a JSON array
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// What a tree amounts to.
#[derive(Default, Clone, Copy)]
struct Sum {
    files: u64,
    directories: u64,
    /// Sizes of the files.
    size: u64,
    /// What their bytes take on disks, all replicas together.
    disk: u64,
}

impl Sum {
    fn add(&mut self, attr: &fs::Attr) {
        if attr.kind() == fs::FileKind::Directory {
            self.directories += 1;
            return;
        }
        self.files += 1;
        self.size = self.size.saturating_add(attr.size);
        let disk = attr.allocated.saturating_mul(u64::from(attr.replication.max(1)));
        self.disk = self.disk.saturating_add(disk);
    }
}

/// Prints for each path, as `hdfs dfs -du`: bytes, bytes on disks with all replicas, path.
pub async fn run(client: Arc<Client>, args: Du) -> Result<()> {
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
        let mut rows = measure(&client, path, attr, args.summarize).await;
        if rows.is_empty() {
            rows.push((path.clone(), Sum::default()));
        }
        for (path, sum) in rows {
            if args.json {
                objects.push(json!({
                    "path": path.to_string(), "size": sum.size, "disk": sum.disk,
                    "files": sum.files, "directories": sum.directories,
                }));
            } else {
                let shown = |count| output::bytes(count, args.human_readable);
                writeln!(out, "{:<14} {:<14} {path}", shown(sum.size), shown(sum.disk))?;
            }
        }
    }
    out.flush()?;
    if args.json {
        output::print_json(&Value::Array(objects))?;
    }
    Ok(())
}

/// One sum for the whole tree, or one for each entry of the directory.
async fn measure(
    client: &Arc<Client>,
    path: &ClusterPath,
    attr: fs::Attr,
    whole: bool,
) -> Vec<(ClusterPath, Sum)> {
    let whole = whole || attr.kind() != fs::FileKind::Directory;
    let mut rows: Vec<(ClusterPath, Sum)> = Vec::new();
    let mut seen = HashSet::new();
    let mut walk = Walk::new(client.clone(), path.clone(), attr);
    while let Some(entry) = walk.next_listed().await {
        let heads = if whole { entry.depth == 0 } else { entry.depth == 1 };
        if heads {
            rows.push((entry.path.clone(), Sum::default()));
        }
        // A file with several names takes its space once.
        let again = entry.attr.nlink > 1 && !entry.is_directory() && !seen.insert(entry.attr.inode);
        if let Some((_, sum)) = rows.last_mut()
            && !again
        {
            sum.add(&entry.attr);
        }
    }
    rows
}
