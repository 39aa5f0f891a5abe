//! `cairn snapshot restore`: puts things back as they were.
//!
//! Files share the chunks of what the snapshot has: no byte is moved. What is as it was is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use cairn_client::{ErrorCode, fs};
use clap::Args;

use super::{own_number, top};
use crate::client::Client;
use crate::exit::PathError;
use crate::mode;
use crate::paths::{ClusterPath, by_inode};
use crate::transfer::{self, NewFile, Progress, Temporaries};
use crate::tree::{Entry, Pages, Walk};
use crate::verbs::rm::{self, Rm};

/// Arguments of `cairn snapshot restore`.
#[derive(Args)]
pub struct Restore {
    /// The directory
    #[arg(value_name = "DIR")]
    directory: ClusterPath,
    /// The snapshot
    #[arg(value_name = "NAME")]
    name: String,
    /// What to put back, from the directory on (else all of it)
    #[arg(value_name = "PATH")]
    paths: Vec<ClusterPath>,
    /// Also remove what was not there
    #[arg(long)]
    delete: bool,
    /// Draw no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Puts things back.
pub async fn restore(client: Arc<Client>, args: Restore) -> Result<()> {
    let (from, _) = top(&client, &args.directory, &args.name).await?;
    let progress = Progress::start("snapshot restore", args.quiet);
    let mut run = Run {
        client: client.clone(),
        temporaries: Temporaries::default(),
        progress,
        delete: args.delete,
        links: BTreeMap::new(),
    };
    client.report.attach(run.progress.bar());
    let whole = [ClusterPath::new(b"/")];
    let paths = if args.paths.is_empty() { &whole[..] } else { args.paths.as_slice() };
    let mut interrupted = false;
    tokio::select! {
        () = run.all(&from, &args.directory, paths) => {}
        _ = tokio::signal::ctrl_c() => interrupted = true,
    }
    run.progress.finish();
    client.report.attach(None);
    if interrupted {
        run.temporaries.interrupted(&client).await;
    }
    Ok(())
}

struct Run {
    client: Arc<Client>,
    temporaries: Temporaries,
    progress: Progress,
    delete: bool,
    /// Files that may have several names: the inode in the snapshot, and the one that is it now, with a name.
    links: BTreeMap<u64, (u64, ClusterPath)>,
}

/// `path`, which lies below `from`, as it is below `to`.
fn moved(path: &ClusterPath, from: &ClusterPath, to: &ClusterPath) -> ClusterPath {
    let below = path.as_bytes().get(from.as_bytes().len()..).unwrap_or_default();
    to.below(below)
}

impl Run {
    async fn all(&mut self, from: &ClusterPath, to: &ClusterPath, paths: &[ClusterPath]) {
        for path in paths {
            let then = moved(path, &ClusterPath::new(b"/"), from);
            let now = moved(path, &ClusterPath::new(b"/"), to);
            match self.client.stat(&then, false).await {
                Ok(attr) => self.tree(&then, attr, &now).await,
                Err(error) => self.client.report.failed(error),
            }
        }
    }

    /// Puts back what lies at `then` and below it.
    async fn tree(&mut self, then: &ClusterPath, attr: fs::Attr, now: &ClusterPath) {
        let mut directories = Vec::new();
        let mut walk = Walk::new(self.client.clone(), then.clone(), attr);
        while let Some(entry) = walk.next_listed().await {
            let target = moved(&entry.path, then, now);
            let is_directory = entry.is_directory();
            match self.one(&entry, &target).await {
                Ok(()) if is_directory => directories.push((entry, target)),
                Ok(()) => {}
                Err(error) => {
                    self.client.report.failed(error);
                    if is_directory {
                        walk.skip();
                    }
                }
            }
        }
        // From the bottom up: what is put into a directory, or taken out of it, changes its times.
        for (entry, target) in directories.into_iter().rev() {
            let done = match self.delete {
                true => self.delete_others(&entry, &target).await,
                false => Ok(()),
            };
            if let Err(error) = done.and(self.dress(&entry, &target).await) {
                self.client.report.failed(error);
            }
        }
    }

    async fn one(&mut self, entry: &Entry, target: &ClusterPath) -> Result<(), PathError> {
        let was = &entry.attr;
        let mut is = self.client.look(target, false).await?;
        let is_it = is.as_ref().is_some_and(|attr| attr.inode == own_number(was));
        if let Some(attr) = is.as_ref().filter(|attr| is_it && attr.version == was.version) {
            if was.nlink > 1 && !entry.is_directory() {
                self.links.insert(was.inode, (attr.inode, target.clone()));
            }
            return Ok(());
        }
        // Before anything is taken away for it.
        if was.kind() == fs::FileKind::File {
            self.client.require_read(&entry.path, was).await?;
        }
        let same_kind = |attr: &fs::Attr| attr.kind == was.kind;
        if let Some(attr) = is.as_ref().filter(|attr| !same_kind(attr)) {
            self.clear(target, attr).await?;
            is = None;
        }
        if was.kind() == fs::FileKind::Directory {
            return if is.is_some() { Ok(()) } else { self.directory(was, target).await };
        }
        if was.nlink > 1
            && let Some((inode, path)) = self.links.get(&was.inode).cloned()
        {
            if is.as_ref().is_some_and(|attr| attr.inode == inode) {
                return Ok(());
            }
            self.unlink(target, is.is_some()).await?;
            return self.link(&path, target).await;
        }
        // What has the name now may have other names, under which it is to stay what it is.
        if !is_it {
            self.unlink(target, is.is_some()).await?;
        }
        match was.kind() {
            fs::FileKind::File => self.file(entry, target).await?,
            _ if is_it => {}
            fs::FileKind::Symlink => self.symlink(entry, target).await?,
            _ => self.special(was, target).await?,
        }
        self.dress(entry, target).await?;
        if was.nlink > 1 {
            let made = self.client.stat(target, false).await?;
            self.links.insert(was.inode, (made.inode, target.clone()));
        }
        Ok(())
    }

    /// Takes away what is of another kind.
    async fn clear(&self, target: &ClusterPath, attr: &fs::Attr) -> Result<(), PathError> {
        if attr.kind() != fs::FileKind::Directory {
            return self.unlink(target, true).await;
        }
        if !self.delete {
            let error = ErrorCode::IsDirectory.because("it was none (--delete removes it)");
            return Err(PathError::Remote(target.clone(), error));
        }
        self.remove(target).await
    }

    async fn remove(&self, target: &ClusterPath) -> Result<(), PathError> {
        // Failures are reported one by one.
        let _ = rm::run(self.client.clone(), Rm::tree(target.clone())).await;
        Ok(())
    }

    async fn unlink(&self, target: &ClusterPath, is_there: bool) -> Result<(), PathError> {
        if !is_there {
            return Ok(());
        }
        let gone = self.client.cluster.unlink(&self.client.cred, target.node()).await;
        gone.map_err(PathError::remote(target))
    }

    async fn directory(&self, was: &fs::Attr, target: &ClusterPath) -> Result<(), PathError> {
        let cred = &self.client.cred;
        let ask = fs::Mkdir {
            at: Some(target.node()),
            mode: was.mode | 0o700,
            uid: cred.uid,
            gid: cred.gid,
            ..Default::default()
        };
        self.client.cluster.mkdir(cred, ask).await.map_err(PathError::remote(target))?;
        Ok(())
    }

    async fn file(&self, entry: &Entry, target: &ClusterPath) -> Result<(), PathError> {
        let (client, was) = (&self.client, &entry.attr);
        let owner = (was.uid, was.gid);
        let (uid, gid) = client.owner_of_copy(owner);
        let new = NewFile {
            path: target.clone(),
            mode: mode::kept(was.mode, owner, (uid, gid)),
            uid,
            gid,
            mtime_ns: Some(was.mtime_ns),
            overwrite: true,
            sync: false,
        };
        transfer::share(client, (&entry.path, was), &new, &self.temporaries, &self.progress).await?;
        Ok(())
    }

    async fn symlink(&self, entry: &Entry, target: &ClusterPath) -> Result<(), PathError> {
        let (cred, cluster) = (&self.client.cred, &self.client.cluster);
        let text = cluster.read_link(cred, entry.at.clone()).await.map_err(PathError::remote(&entry.path))?;
        let ask = fs::Symlink { at: Some(target.node()), target: text, uid: cred.uid, gid: cred.gid };
        cluster.symlink(cred, ask).await.map_err(PathError::remote(target))?;
        Ok(())
    }

    async fn special(&self, was: &fs::Attr, target: &ClusterPath) -> Result<(), PathError> {
        let cred = &self.client.cred;
        let ask = fs::Mknod {
            at: Some(target.node()),
            kind: was.kind,
            mode: was.mode,
            uid: cred.uid,
            gid: cred.gid,
            rdev: was.rdev,
            umask: 0,
        };
        self.client.cluster.mknod(cred, ask).await.map_err(PathError::remote(target))?;
        Ok(())
    }

    async fn link(&self, from: &ClusterPath, target: &ClusterPath) -> Result<(), PathError> {
        let ask = fs::Link { from: Some(from.node()), at: Some(target.node()) };
        self.client.cluster.link(&self.client.cred, ask).await.map_err(PathError::remote(target))?;
        Ok(())
    }

    /// Gives what is there now the attributes of what was.
    async fn dress(&self, entry: &Entry, target: &ClusterPath) -> Result<(), PathError> {
        let (cred, cluster, was) = (&self.client.cred, &self.client.cluster, &entry.attr);
        let then = by_inode(entry.attr.inode);
        transfer::copy_extended(&self.client, then, target.node(), target).await?;
        let is = self.client.stat(target, false).await?;
        let root = cred.uid == 0;
        let shape = |attr: &fs::Attr| (attr.mode, attr.uid, attr.gid, attr.mtime_ns);
        if shape(&is) == shape(was) {
            return Ok(());
        }
        let owner = (was.uid, was.gid);
        let mode = match entry.is_directory() {
            true => was.mode,
            false => mode::kept(was.mode, owner, if root { owner } else { (is.uid, is.gid) }),
        };
        let ask = fs::SetAttr {
            at: Some(target.node()),
            mode: Some(mode),
            uid: root.then_some(was.uid),
            gid: root.then_some(was.gid),
            mtime_ns: Some(was.mtime_ns),
            ..Default::default()
        };
        cluster.set_attr(cred, ask).await.map_err(PathError::remote(target))?;
        Ok(())
    }

    /// Removes what was not in a directory.
    async fn delete_others(&self, entry: &Entry, target: &ClusterPath) -> Result<(), PathError> {
        let listed = |path: &ClusterPath, inode: u64| Pages::new(path.clone(), inode, 1);
        let mut then = listed(&entry.path, entry.attr.inode);
        let mut kept: BTreeSet<Vec<u8>> = BTreeSet::new();
        while let Some(found) = then.next(&self.client).await {
            kept.insert(found?.path.name().unwrap_or_default().to_vec());
        }
        let is = self.client.stat(target, false).await?;
        let mut now = listed(target, is.inode);
        let mut others = Vec::new();
        while let Some(found) = now.next(&self.client).await {
            let path = found?.path;
            if !kept.contains(path.name().unwrap_or_default()) {
                others.push(path);
            }
        }
        for path in others {
            self.remove(&path).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_the_directory_on() {
        let path = |text: &str| ClusterPath::new(text.as_bytes());
        let (top, root) = (path("/d/.snapshot/s"), path("/"));
        assert_eq!(moved(&path("/a/b"), &root, &top), path("/d/.snapshot/s/a/b"));
        assert_eq!(moved(&path("/d/.snapshot/s/a"), &top, &path("/d")), path("/d/a"));
        assert_eq!(moved(&top, &top, &root), root);
    }
}
