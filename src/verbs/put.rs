//! `cairn put`: local files and trees into the cluster, many files at a time.

use std::fs::{Metadata, ReadDir};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use cairn_client::{ErrorCode, fs};
use clap::Args;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Targets;
use crate::client::Client;
use crate::exit::{PathError, Usage};
use crate::mode;
use crate::paths::ClusterPath;
use crate::transfer::{self, NewFile, Progress, Temporaries, local};

/// Arguments of `cairn put`.
#[derive(Args)]
pub struct Put {
    /// Local files and directories (- is stdin), then where they go in the cluster
    #[arg(value_names = ["LOCAL", "PATH"], num_args = 2.., required = true)]
    paths: Vec<std::ffi::OsString>,
    /// Keep modes, modification times and, for root, owners
    #[arg(short, long)]
    preserve: bool,
    /// Replace files that exist
    #[arg(short, long)]
    force: bool,
    /// Return only when everything is on the disks
    #[arg(long)]
    sync: bool,
    /// Files in flight, of large ones at most 16
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Directories are copied whole anyway
    #[arg(short, short_alias = 'R', long, hide = true)]
    recursive: bool,
    /// Draw no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Copies into the cluster.
pub async fn run(client: Arc<Client>, mut args: Put) -> Result<()> {
    let to = ClusterPath::named(&args.paths.pop().unwrap_or_default())?;
    let sources = args.paths.iter().map(|path| local::named(path)).collect::<Result<Vec<_>, _>>()?;
    let upload = Arc::new(Upload {
        client: client.clone(),
        temporaries: Temporaries::default(),
        progress: Progress::start("put", args.quiet),
        preserve: args.preserve,
        force: args.force,
        sync: args.sync,
        room: Semaphore::new(transfer::JOBS * LARGE as usize),
    });
    client.report.attach(upload.progress.bar());
    let result = tokio::select! {
        result = upload.all(&sources, &to, usize::from(args.jobs)) => result,
        _ = tokio::signal::ctrl_c() => {
            upload.progress.finish();
            upload.temporaries.interrupted(&client).await
        }
    };
    client.report.attach(None);
    upload.progress.finish();
    result
}

/// MiB that a file in flight counts for, at most.
const LARGE: u64 = 8;

struct Upload {
    /// A permit for each MiB of the files in flight: small ones share rounds, large ones the memory.
    room: Semaphore,
    client: Arc<Client>,
    temporaries: Temporaries,
    progress: Progress,
    preserve: bool,
    force: bool,
    sync: bool,
}

/// Something to be copied.
struct Job {
    from: PathBuf,
    to: ClusterPath,
    /// Named by the person: a symbolic link stands for what it points to.
    named: bool,
}

/// A directory that was made and is being read.
struct Opened {
    entries: ReadDir,
    from: PathBuf,
    to: ClusterPath,
}

/// What a job leaves to be done.
enum Next {
    Nothing,
    Descend(Opened, Box<Metadata>),
}

impl Upload {
    async fn all(self: &Arc<Self>, sources: &[PathBuf], to: &ClusterPath, jobs: usize) -> Result<()> {
        let into = self.client.is_directory(to).await?;
        if !into && (sources.len() > 1 || to.directory_meant()) {
            bail!("{to}: not a directory");
        }
        if sources.iter().any(|source| source.as_os_str() == "-") {
            if sources.len() > 1 || into {
                bail!(Usage("stdin (-) goes alone, and to the name of a file".into()));
            }
            return Ok(self.stdin(to).await?);
        }
        let mut named = Vec::new();
        let mut targets = Targets::default();
        for from in sources {
            let to = match into {
                true => match local::base_name(from) {
                    Ok(name) => to.join(&name),
                    Err(error) => {
                        self.client.report.failed(PathError::Local(from.clone(), error));
                        continue;
                    }
                },
                false => to.clone(),
            };
            // One that is not there takes no name; it fails when its turn comes.
            if from.symlink_metadata().is_err()
                || targets.claim(&self.client.report, from.as_os_str(), to.as_os_str())
            {
                named.push(Job { from: from.clone(), to, named: true });
            }
        }
        named.reverse();
        self.drain(named, jobs).await;
        Ok(())
    }

    async fn stdin(&self, to: &ClusterPath) -> Result<(), PathError> {
        let new = self.new_file(to, 0o666, None);
        transfer::store(&self.client, &new, local::stdin(), &self.temporaries, &self.progress).await?;
        Ok(())
    }

    /// Runs jobs until there are none. Directories are read an entry at a time, so that what is waiting is bounded
    /// by the depth of the tree and the number of jobs.
    async fn drain(self: &Arc<Self>, mut named: Vec<Job>, jobs: usize) {
        let mut open: Vec<Opened> = Vec::new();
        let mut finished: Vec<(ClusterPath, Box<Metadata>)> = Vec::new();
        let mut running = JoinSet::new();
        loop {
            while running.len() < jobs {
                let Some(job) = self.next_entry(&mut open).or_else(|| named.pop()) else { break };
                let upload = self.clone();
                running.spawn(async move { upload.one(job).await });
            }
            match running.join_next().await {
                None => break,
                Some(Ok(Ok(Next::Nothing))) => {}
                Some(Ok(Ok(Next::Descend(opened, metadata)))) => {
                    if self.preserve {
                        finished.push((opened.to.clone(), metadata));
                    }
                    open.push(opened);
                }
                Some(Ok(Err(error))) => self.client.report.failed(error),
                Some(Err(error)) => self.client.report.failed(format!("internal error: {error}")),
            }
        }
        // Making entries changed the times of their directories; children are later in the list than parents.
        for (path, metadata) in finished.into_iter().rev() {
            if let Err(error) = self.dress_directory(&path, &metadata).await {
                self.client.report.failed(error);
            }
        }
    }

    fn next_entry(&self, open: &mut Vec<Opened>) -> Option<Job> {
        while let Some(directory) = open.last_mut() {
            match directory.entries.next() {
                Some(Ok(entry)) => {
                    let to = directory.to.join(entry.file_name().as_bytes());
                    return Some(Job { from: entry.path(), to, named: false });
                }
                Some(Err(error)) => {
                    self.client.report.failed(PathError::Local(directory.from.clone(), error));
                }
                None => {
                    open.pop();
                }
            }
        }
        None
    }

    async fn one(&self, job: Job) -> Result<Next, PathError> {
        let metadata = if job.named { job.from.metadata() } else { job.from.symlink_metadata() };
        let metadata = metadata.map_err(PathError::local(&job.from))?;
        if metadata.is_dir() {
            self.directory(job, metadata).await
        } else if metadata.is_symlink() {
            self.symlink(&job).await.map(|()| Next::Nothing)
        } else if metadata.is_file() {
            self.file(job, &metadata).await.map(|()| Next::Nothing)
        } else {
            let error = io::Error::new(
                io::ErrorKind::Unsupported,
                "neither a file, a directory nor a link; left out",
            );
            Err(PathError::Local(job.from, error))
        }
    }

    async fn file(&self, job: Job, metadata: &Metadata) -> Result<(), PathError> {
        let weight = (metadata.len() >> 20).clamp(1, LARGE);
        // It is never closed.
        let _room = self.room.acquire_many(weight as u32).await;
        let new = self.new_file(&job.to, metadata.mode(), Some(metadata));
        let pieces = local::pieces(job.from);
        transfer::store(&self.client, &new, pieces, &self.temporaries, &self.progress).await?;
        Ok(())
    }

    fn new_file(&self, path: &ClusterPath, mode: u32, source: Option<&Metadata>) -> NewFile {
        let cred = &self.client.cred;
        let kept = source.filter(|_| self.preserve);
        let was = kept.map(|source| (source.uid(), source.gid()));
        let (uid, gid) = was.map_or((cred.uid, cred.gid), |was| self.client.owner_of_copy(was));
        NewFile {
            path: path.clone(),
            mode: match was {
                Some(was) => mode::kept(mode, was, (uid, gid)),
                None => mode & 0o777 & !self.client.umask,
            },
            uid,
            gid,
            mtime_ns: kept.map(mtime_ns),
            overwrite: self.force,
            sync: self.sync,
        }
    }

    async fn symlink(&self, job: &Job) -> Result<(), PathError> {
        let target = std::fs::read_link(&job.from).map_err(PathError::local(&job.from))?;
        let cred = &self.client.cred;
        let ask = fs::Symlink {
            at: Some(job.to.node()),
            target: target.into_os_string().into_vec().into(),
            uid: cred.uid,
            gid: cred.gid,
        };
        let mut made = self.client.cluster.symlink(cred, ask.clone()).await;
        if self.force && matches!(&made, Err(error) if error.code == ErrorCode::Exists) {
            self.client.cluster.unlink(cred, job.to.node()).await.map_err(PathError::remote(&job.to))?;
            made = self.client.cluster.symlink(cred, ask).await;
        }
        made.map_err(PathError::remote(&job.to))?;
        self.progress.file_done();
        Ok(())
    }

    async fn directory(&self, job: Job, metadata: Metadata) -> Result<Next, PathError> {
        let entries = std::fs::read_dir(&job.from).map_err(PathError::local(&job.from))?;
        let ask = fs::Mkdir {
            at: Some(job.to.node()),
            // Its entries must be made before it may become read-only.
            mode: (metadata.mode() & 0o777 & !self.client.umask) | 0o700,
            uid: self.client.cred.uid,
            gid: self.client.cred.gid,
            ..Default::default()
        };
        if let Err(error) = self.client.cluster.mkdir(&self.client.cred, ask).await {
            let merge = error.code == ErrorCode::Exists && self.client.is_directory(&job.to).await?;
            if !merge {
                return Err(PathError::Remote(job.to, error));
            }
        }
        Ok(Next::Descend(Opened { entries, from: job.from, to: job.to }, Box::new(metadata)))
    }

    async fn dress_directory(&self, path: &ClusterPath, metadata: &Metadata) -> Result<(), PathError> {
        let root = self.client.cred.uid == 0;
        let ask = fs::SetAttr {
            at: Some(path.node()),
            mode: Some(metadata.mode() & 0o7777),
            uid: root.then(|| metadata.uid()),
            gid: root.then(|| metadata.gid()),
            mtime_ns: Some(mtime_ns(metadata)),
            ..Default::default()
        };
        self.client.cluster.set_attr(&self.client.cred, ask).await.map_err(PathError::remote(path))?;
        Ok(())
    }
}

/// Modification time in nanoseconds.
fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// Copies one local file into the cluster under the name `to`, which must be free.
pub async fn put_file(
    client: &Client,
    from: &Path,
    to: &ClusterPath,
    progress: &Progress,
) -> Result<(), PathError> {
    let new = NewFile {
        path: to.clone(),
        mode: 0o644,
        uid: client.cred.uid,
        gid: client.cred.gid,
        mtime_ns: None,
        overwrite: false,
        sync: false,
    };
    let pieces = local::pieces(from.to_path_buf());
    transfer::store(client, &new, pieces, &Temporaries::default(), progress).await?;
    Ok(())
}
