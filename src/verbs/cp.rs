//! `cairn cp`: copies within the cluster. The copies share the chunks of the originals: no byte is moved.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::{ErrorCode, fs};
use clap::Args;

use super::{Flight, Targets};
use crate::client::Client;
use crate::exit::PathError;
use crate::mode;
use crate::paths::ClusterPath;
use crate::transfer::{self, NewFile, Progress, Temporaries};
use crate::tree::{Entry, Walk};

/// Arguments of `cairn cp`.
#[derive(Args)]
pub struct Cp {
    /// What to copy, and where to
    #[arg(value_names = ["FROM", "TO"], num_args = 2.., required = true)]
    paths: Vec<ClusterPath>,
    /// Also directories and all they hold
    #[arg(short, short_alias = 'R', long)]
    recursive: bool,
    /// Keep modes, modification times and, for root, owners
    #[arg(short, long)]
    preserve: bool,
    /// Refuse to replace files
    #[arg(short, long)]
    no_clobber: bool,
    /// Draw no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Copies.
pub async fn run(client: Arc<Client>, mut args: Cp) -> Result<()> {
    let Some(to) = args.paths.pop() else { return Ok(()) };
    let pairs = super::destinations(&client, &args.paths, &to).await?;
    let copy = Arc::new(Copy {
        client: client.clone(),
        temporaries: Temporaries::default(),
        progress: Progress::start("cp", args.quiet),
        preserve: args.preserve,
        overwrite: !args.no_clobber,
    });
    client.report.attach(copy.progress.bar());
    tokio::select! {
        () = copy.all(&pairs, args.recursive) => {}
        _ = tokio::signal::ctrl_c() => {
            copy.progress.finish();
            copy.temporaries.interrupted(&client).await
        }
    }
    client.report.attach(None);
    copy.progress.finish();
    Ok(())
}

struct Copy {
    client: Arc<Client>,
    temporaries: Temporaries,
    progress: Progress,
    preserve: bool,
    overwrite: bool,
}

impl Copy {
    async fn all(self: &Arc<Self>, pairs: &[(ClusterPath, ClusterPath)], recursive: bool) {
        let mut targets = Targets::default();
        for (from, to) in pairs {
            let attr = match self.client.stat(from, true).await {
                Ok(attr) => attr,
                Err(error) => {
                    self.client.report.failed(error);
                    continue;
                }
            };
            if !targets.claim(&self.client.report, from.as_os_str(), to.as_os_str()) {
                continue;
            }
            if attr.kind() == fs::FileKind::Directory && !recursive {
                let error = ErrorCode::IsDirectory.because("use -r");
                self.client.report.failed(PathError::Remote(from.clone(), error));
            } else if from.contains(to) {
                self.client.report.failed(format!("{from}: cannot copy into itself, {to}"));
            } else {
                self.tree(from, attr, to).await;
            }
        }
    }

    async fn tree(self: &Arc<Self>, from: &ClusterPath, attr: fs::Attr, to: &ClusterPath) {
        let mut flight = Flight::new(&self.client, transfer::JOBS);
        let mut directories = Vec::new();
        let mut walk = Walk::new(self.client.clone(), from.clone(), attr);
        // Targets may lie in the source by way of symbolic links: what they get must not be copied again.
        let mut targets = HashSet::new();
        while let Some(entry) = walk.next_listed().await {
            let target = to.below(below(from, &entry.path));
            if targets.contains(&entry.attr.inode) {
                self.client.report.failed(format!("cannot copy a directory, {from}, into itself, {to}"));
                walk.skip();
                continue;
            }
            let copy = self.clone();
            match entry.attr.kind() {
                fs::FileKind::Directory => match self.directory(&entry, &target).await {
                    Ok(made) if made == entry.attr.inode => {
                        self.client.report.failed(format!("{} and {target} are the same", entry.path));
                        walk.skip();
                    }
                    Ok(made) => {
                        targets.insert(made);
                        directories.push((target, entry.attr));
                    }
                    Err(error) => {
                        self.client.report.failed(error);
                        walk.skip();
                    }
                },
                fs::FileKind::File => flight.start(async move { copy.file(entry, target).await }).await,
                fs::FileKind::Symlink => flight.start(async move { copy.symlink(entry, target).await }).await,
                _ => self.client.report.failed(format!("{}: not a regular file; left out", entry.path)),
            }
        }
        flight.land().await;
        for (path, attr) in directories.into_iter().rev().filter(|_| self.preserve) {
            if let Err(error) = self.dress(&path, &attr).await {
                self.client.report.failed(error);
            }
        }
    }

    async fn file(&self, entry: Entry, target: ClusterPath) -> Result<(), PathError> {
        let Entry { path, attr, .. } = entry;
        self.client.require_read(&path, &attr).await?;
        let cred = &self.client.cred;
        let was = (attr.uid, attr.gid);
        let (uid, gid) = if self.preserve { self.client.owner_of_copy(was) } else { (cred.uid, cred.gid) };
        let new = NewFile {
            path: target,
            mode: match self.preserve {
                true => mode::kept(attr.mode, was, (uid, gid)),
                false => attr.mode & 0o777 & !self.client.umask,
            },
            uid,
            gid,
            mtime_ns: self.preserve.then_some(attr.mtime_ns),
            overwrite: self.overwrite,
            sync: false,
        };
        transfer::share(&self.client, (&path, &attr), &new, &self.temporaries, &self.progress).await?;
        Ok(())
    }

    async fn symlink(&self, entry: Entry, target: ClusterPath) -> Result<(), PathError> {
        let cred = &self.client.cred;
        let text =
            self.client.cluster.read_link(cred, entry.at).await.map_err(PathError::remote(&entry.path))?;
        let ask = fs::Symlink { at: Some(target.node()), target: text, uid: cred.uid, gid: cred.gid };
        let mut made = self.client.cluster.symlink(cred, ask.clone()).await;
        if self.overwrite && matches!(&made, Err(error) if error.code == ErrorCode::Exists) {
            self.client.cluster.unlink(cred, target.node()).await.map_err(PathError::remote(&target))?;
            made = self.client.cluster.symlink(cred, ask).await;
        }
        made.map_err(PathError::remote(&target))?;
        Ok(())
    }

    /// Makes a directory, or takes the one that is there, and says which inode it is.
    async fn directory(&self, entry: &Entry, target: &ClusterPath) -> Result<u64, PathError> {
        let cred = &self.client.cred;
        let mode = (entry.attr.mode & 0o777 & !self.client.umask) | 0o700;
        let ask =
            fs::Mkdir { at: Some(target.node()), mode, uid: cred.uid, gid: cred.gid, ..Default::default() };
        match self.client.cluster.mkdir(cred, ask).await {
            Err(error) if error.code == ErrorCode::Exists => match self.client.look(target, true).await? {
                Some(attr) if attr.kind() == fs::FileKind::Directory => Ok(attr.inode),
                _ => Err(PathError::Remote(target.clone(), error)),
            },
            Err(error) => Err(PathError::Remote(target.clone(), error)),
            Ok(made) => Ok(made.inode),
        }
    }

    async fn dress(&self, path: &ClusterPath, attr: &fs::Attr) -> Result<(), PathError> {
        let root = self.client.cred.uid == 0;
        let ask = fs::SetAttr {
            at: Some(path.node()),
            mode: Some(attr.mode),
            uid: root.then_some(attr.uid),
            gid: root.then_some(attr.gid),
            mtime_ns: Some(attr.mtime_ns),
            ..Default::default()
        };
        self.client.cluster.set_attr(&self.client.cred, ask).await.map_err(PathError::remote(path))?;
        Ok(())
    }
}

fn below<'a>(from: &ClusterPath, path: &'a ClusterPath) -> &'a [u8] {
    path.as_bytes().get(from.as_bytes().len()..).unwrap_or_default()
}
