//! Opening a store: whose the directories are, and what lies in them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, RwLock};

use cairn_host::disk::{Disk, DiskLock};
use cairn_proto::fs::FailedDirectory;
use cairn_proto::{Error, ErrorCode, Result};
use tokio::sync::watch;
use uuid::Uuid;

use super::directory::{Directory, Ledger};
use super::doubles::Doubles;
use super::identity::{self, Identity};
use super::notices::Notices;
use super::replica::{Phase, Replica};
use super::{Store, StoreConfig, recover};

/// A directory that is locked, with what its `VERSION` says.
struct Found<'a> {
    path: &'a Path,
    lock: Box<dyn DiskLock>,
    identity: Option<Identity>,
}

impl Store {
    /// Opens the directories, makes fresh ones, and finds the replicas. A disk that is gone is left out as
    /// long as another one works; a wrong setting is an error.
    pub fn open(config: &StoreConfig) -> Result<Store> {
        if config.dirs.is_empty() {
            return Err(ErrorCode::Invalid.because("no data directory is configured; name at least one"));
        }
        let mut found = Vec::new();
        let mut lost: Vec<Error> = Vec::new();
        let mut lost_paths = Vec::new();
        let disk = &config.disk;
        for path in &config.dirs {
            let opened = identity::lock(&**disk, path).and_then(|lock| {
                let identity = identity::load(&**disk, path)?;
                Ok(Found { path, lock, identity })
            });
            match opened {
                Ok(one) => found.push(one),
                Err(error) if is_disk_failure(&error) => {
                    lost.push(error);
                    lost_paths.push(path.as_path());
                }
                Err(error) => return Err(error),
            }
        }
        let (cluster_id, datanode) = agreed(&found)?;
        let ledger = Arc::new(Ledger::new(config.capacity_limit));
        let notices = Arc::new(Notices::default());
        let (mut dirs, mut identities, mut replicas) = (Vec::new(), Vec::new(), BTreeMap::new());
        let doubles = Doubles::default();
        for Found { path, lock, identity } in found {
            let prepared = prepare(&**disk, path, identity, &cluster_id, &datanode);
            let (identity, clean) = match prepared {
                Ok(prepared) => prepared,
                Err(error) if is_disk_failure(&error) => {
                    lost.push(error);
                    lost_paths.push(path);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let dir = Directory::new(
                disk.clone(),
                path.to_owned(),
                lock,
                config.reserve_bytes,
                ledger.clone(),
                notices.clone(),
            );
            let dir = Arc::new(dir);
            match recover::load(&dir, clean) {
                Ok(loaded) => {
                    loaded.into_iter().for_each(|replica| keep_better(&mut replicas, &doubles, replica))
                }
                Err(error) if dir.is_fenced() => lost_at_load(&dir, &error),
                Err(error) => return Err(error),
            }
            dirs.push(dir);
            identities.push(identity);
        }
        for replica in replicas.values() {
            if let Some(flaw) = replica.flaw() {
                notices.bad(replica.chunk(), &flaw);
            }
        }
        let failed = lost_paths.iter().zip(&lost).map(|(path, error)| {
            tracing::error!(%error, "a data directory is left out");
            FailedDirectory { path: path.display().to_string(), cause: error.to_string() }
        });
        let failed = failed.collect();
        if dirs.is_empty()
            && let Some(error) = lost.pop()
        {
            return Err(error);
        }
        note_siblings(&mut identities, &dirs, &lost_paths);
        Ok(Store {
            disk: disk.clone(),
            dirs,
            lost: failed,
            ledger,
            notices,
            identity: Mutex::new(identities),
            replicas: RwLock::new(replicas),
            doubles,
            hangs: watch::Sender::new(0),
            claims: Mutex::new(HashSet::new()),
            released: Condvar::new(),
            leaving: AtomicBool::new(false),
        })
    }
}

/// Names the directories that were this datanode's at its last start and are not now, and notes those that are.
fn note_siblings(identities: &mut [Identity], dirs: &[Arc<Directory>], lost: &[&Path]) {
    let known: BTreeMap<_, _> = identities.iter().flat_map(|identity| identity.siblings.clone()).collect();
    let pairs = identities.iter().zip(dirs);
    let mut now: BTreeMap<_, _> =
        pairs.map(|(identity, dir)| (identity.directory.clone(), dir.path().to_owned())).collect();
    for (id, path) in known {
        if now.contains_key(&id) {
            continue;
        }
        if lost.contains(&path.as_path()) {
            now.insert(id, path);
        } else if now.values().any(|other| *other == path) {
            tracing::error!(
                directory = %path.display(), lost = id,
                "this data directory held another directory of this datanode before: a disk was replaced, or is not \
                 mounted; what it held is copied from other datanodes"
            );
        } else {
            tracing::error!(
                directory = %path.display(), lost = id,
                "this data directory is not named any more; what it held is copied from other datanodes"
            );
        }
    }
    for (identity, dir) in identities.iter_mut().zip(dirs) {
        if identity.siblings == now || dir.is_fenced() {
            continue;
        }
        identity.siblings = now.clone();
        if let Err(error) = identity::save(dir.disk(), dir.path(), identity) {
            tracing::warn!(%error, "the directories of this datanode cannot be noted");
        }
    }
}

/// Whether one directory is at fault, and not the datanode's settings.
fn is_disk_failure(error: &Error) -> bool {
    matches!(error.code, ErrorCode::DiskFailed | ErrorCode::ReadOnly | ErrorCode::Corrupt)
}

fn lost_at_load(dir: &Directory, error: &Error) {
    tracing::error!(directory = %dir.path().display(), %error, "its replicas cannot be listed");
}

/// The cluster and datanode that the directories agree on.
fn agreed(found: &[Found]) -> Result<(String, String)> {
    let (mut cluster_id, mut datanode) = (String::new(), String::new());
    for Found { path, identity, .. } in found {
        let Some(identity) = identity else { continue };
        if datanode.is_empty() {
            datanode = identity.datanode.clone();
        } else if datanode != identity.datanode {
            return Err(ErrorCode::Invalid.because(format!(
                "data directory {} is of another datanode ({}) than the ones before it ({datanode})",
                path.display(),
                identity.datanode
            )));
        }
        if cluster_id.is_empty() {
            cluster_id = identity.cluster_id.clone();
        } else if !identity.cluster_id.is_empty() && cluster_id != identity.cluster_id {
            return Err(ErrorCode::WrongCluster.because(format!(
                "data directory {} is of cluster {}, the ones before it of {cluster_id}",
                path.display(),
                identity.cluster_id
            )));
        }
    }
    if datanode.is_empty() {
        datanode = Uuid::new_v4().to_string();
    }
    Ok((cluster_id, datanode))
}

/// Makes a directory ready: its `VERSION`, its subdirectories, its mark of a clean stop taken away.
fn prepare(
    disk: &dyn Disk,
    path: &Path,
    identity: Option<Identity>,
    cluster_id: &str,
    datanode: &str,
) -> Result<(Identity, bool)> {
    let identity = match identity {
        Some(identity) if identity.cluster_id == cluster_id => identity,
        other => {
            let directory = other.map_or_else(|| Uuid::new_v4().to_string(), |had| had.directory);
            let identity = Identity {
                format: identity::FORMAT,
                cluster_id: cluster_id.to_owned(),
                datanode: datanode.to_owned(),
                directory,
                siblings: BTreeMap::new(),
            };
            // Before the subdirectories: chunks without a VERSION beside them would be refused.
            identity::save(disk, path, &identity)?;
            identity
        }
    };
    identity::lay_out(disk, path)?;
    let clean = identity::take_clean_mark(disk, path)?;
    Ok((identity, clean))
}

/// Two directories may hold a chunk after a disk came back: the sealed or longer replica counts.
fn keep_better(replicas: &mut BTreeMap<u64, Arc<Replica>>, doubles: &Doubles, replica: Arc<Replica>) {
    let rank = |replica: &Replica| {
        let phase = match replica.phase() {
            Phase::Sealed if replica.flaw().is_none() => 4,
            Phase::Sealed => 3,
            Phase::Open => 2,
            Phase::Unchecked => 1,
            Phase::Damaged | Phase::Gone => 0,
        };
        (phase, replica.length())
    };
    let worse = match replicas.get(&replica.chunk()) {
        Some(other) if rank(other) >= rank(&replica) => Some(replica),
        _ => replicas.insert(replica.chunk(), replica),
    };
    worse.into_iter().for_each(|worse| doubles.add(worse));
}
