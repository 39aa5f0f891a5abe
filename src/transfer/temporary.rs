//! Files under construction: whatever happens to the command, they are removed.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use cairn_client::{Cluster, fs};

use crate::paths::ClusterPath;

/// The temporary names this command has in the cluster.
#[derive(Default)]
pub struct Temporaries(Mutex<BTreeSet<ClusterPath>>);

impl Temporaries {
    /// `path` is about to be made.
    pub fn begin(&self, path: &ClusterPath) {
        self.names().insert(path.clone());
    }

    /// `path` has got its final name.
    pub fn done(&self, path: &ClusterPath) {
        self.names().remove(path);
    }

    /// Removes `path`, which will not be completed.
    pub async fn discard(&self, cluster: &Cluster, cred: &fs::Cred, path: &ClusterPath) {
        // It may never have been made; what cannot be removed now is left, under its telling name.
        let _ = cluster.unlink(cred, path.node()).await;
        self.done(path);
    }

    /// Removes all that is left after an interruption.
    pub async fn discard_all(&self, cluster: &Cluster, cred: &fs::Cred) {
        let names: Vec<ClusterPath> = self.names().iter().cloned().collect();
        for name in names {
            self.discard(cluster, cred, &name).await;
        }
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<ClusterPath>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
