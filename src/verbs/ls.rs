//! `cairn ls`.

use std::io::{BufWriter, Stdout, Write};
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use serde_json::json;

use crate::client::Client;
use crate::mode;
use crate::output::{self, Names};
use crate::paths::ClusterPath;
use crate::tree::{Entry, Pages};

/// Arguments of `cairn ls`.
#[derive(Args)]
pub struct Ls {
    /// What to list
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<ClusterPath>,
    /// Mode, replicas, owner, group, size and time
    #[arg(short, long)]
    long: bool,
    /// Also what lies below directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Sizes as 1.5G
    #[arg(short = 'h', long)]
    human_readable: bool,
    /// Directories themselves, not what they hold
    #[arg(short, long)]
    directory: bool,
    /// Also names that begin with a dot
    #[arg(short, long)]
    all: bool,
    /// As a JSON array
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Lists.
pub async fn run(client: Arc<Client>, args: Ls) -> Result<()> {
    let mut listing =
        Listing { client: &client, args: &args, out: output::stdout(), names: Names::default(), rows: 0 };
    if args.json {
        write!(listing.out, "[")?;
    }
    let mut directories = Vec::new();
    for path in &args.paths {
        match client.stat(path, !args.long || path.directory_meant()).await {
            Ok(attr) => {
                let entry = Entry { path: path.clone(), at: path.node(), attr, depth: 0 };
                if entry.is_directory() && !args.directory {
                    directories.push(entry);
                } else {
                    listing.row(&entry, &path.to_string()).await?;
                }
            }
            Err(error) => client.report.failed(error),
        }
    }
    let titled = args.paths.len() > 1 || args.recursive;
    for (number, directory) in directories.iter().enumerate() {
        if !args.json && titled && (number > 0 || listing.rows > 0) {
            writeln!(listing.out)?;
        }
        listing.directory(directory, titled).await?;
    }
    if args.json {
        writeln!(listing.out, "\n]")?;
    }
    listing.out.flush()?;
    Ok(())
}

struct Listing<'a> {
    client: &'a Client,
    args: &'a Ls,
    out: BufWriter<Stdout>,
    names: Names,
    rows: u64,
}

impl Listing<'_> {
    /// Lists a directory, then those below it in order; only the path down to the current one is in memory.
    async fn directory(&mut self, top: &Entry, titled: bool) -> Result<()> {
        let mut waiting = vec![(top.path.clone(), top.attr.inode)];
        let mut first = true;
        while let Some((path, inode)) = waiting.pop() {
            if !self.args.json && titled {
                if !first {
                    writeln!(self.out)?;
                }
                writeln!(self.out, "{path}:")?;
            }
            first = false;
            let mut pages = Pages::new(path, inode, 1);
            let mut below = Vec::new();
            while let Some(found) = pages.next(self.client).await {
                let entry = match found {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.client.report.failed(error);
                        break;
                    }
                };
                let name = entry.path.name().unwrap_or(b"/");
                if name.starts_with(b".") && !self.args.all {
                    continue;
                }
                let name = String::from_utf8_lossy(name).into_owned();
                self.row(&entry, &name).await?;
                if self.args.recursive && entry.is_directory() {
                    below.push((entry.path, entry.attr.inode));
                }
            }
            waiting.extend(below.into_iter().rev());
        }
        Ok(())
    }

    async fn row(&mut self, entry: &Entry, name: &str) -> Result<()> {
        let first = self.rows == 0;
        self.rows += 1;
        let mut target = None;
        if entry.attr.kind() == fs::FileKind::Symlink && (self.args.long || self.args.json) {
            target = self.client.cluster.read_link(&self.client.cred, entry.at.clone()).await.ok();
        }
        let target = target.map(|target| String::from_utf8_lossy(&target).into_owned());
        if self.args.json {
            let mut object = super::stat::as_json(&entry.path, &entry.attr);
            if let Some(target) = target {
                object["target"] = json!(target);
            }
            write!(self.out, "{}\n  {object}", if first { "" } else { "," })?;
            return Ok(());
        }
        if !self.args.long {
            writeln!(self.out, "{name}")?;
            return Ok(());
        }
        let attr = &entry.attr;
        let replicas = match attr.kind() {
            fs::FileKind::File => attr.replication.to_string(),
            _ => "-".into(),
        };
        let size = output::bytes(attr.size, self.args.human_readable);
        let arrow = target.map(|target| format!(" -> {target}")).unwrap_or_default();
        let acl = if attr.acl { '+' } else { ' ' };
        write!(self.out, "{}{acl} {replicas:>2} ", mode::shown(attr.kind(), attr.mode))?;
        write!(self.out, "{:<8} ", self.names.user(attr.uid))?;
        write!(self.out, "{:<8} ", self.names.group(attr.gid))?;
        writeln!(self.out, "{size:>12} {} {name}{arrow}", output::local_time(attr.mtime_ns, false))?;
        Ok(())
    }
}
