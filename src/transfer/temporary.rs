//! Files under construction: whatever happens to the command, they are removed.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use cairn_client::{Cluster, fs};

use crate::client::Client;
use crate::exit;
use crate::paths::ClusterPath;

/// How long whoever pressed Ctrl-C waits, however many temporary files there are and whether the cluster answers or not.
const PATIENCE: Duration = Duration::from_secs(3);

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

    /// Ends the command after Ctrl-C: removes all that is left, unless that takes long or Ctrl-C comes again.
    pub async fn interrupted(&self, client: &Client) -> ! {
        let names: Vec<ClusterPath> = self.names().iter().cloned().collect();
        let removed = names.iter().map(|name| self.discard(&client.cluster, &client.cred, name));
        tokio::select! {
            _ = futures::future::join_all(removed) => {}
            () = tokio::time::sleep(PATIENCE) => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        std::process::exit(i32::from(exit::INTERRUPTED));
    }

    fn names(&self) -> MutexGuard<'_, BTreeSet<ClusterPath>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
