//! The end of a run: wait until the cluster is well, look at everything as a client, then look at the disks.

use std::sync::Arc;
use std::time::Duration;

use cairn_client::Cluster;
use cairn_host::Host;
use cairn_host::disk::simulated::SimulatedDisk;

use crate::history::History;
use crate::machine::now;
use crate::{client, event, invariants};

/// How long a cluster may take to be well again once nothing goes wrong any more.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What the checker is told.
pub struct Setup {
    /// All namenodes.
    pub namenodes: Vec<String>,
    /// Its network and clock.
    pub machine: Host,
    /// What happened.
    pub history: Arc<History>,
    /// Addresses and disks of all datanodes.
    pub datanodes: Vec<(String, SimulatedDisk)>,
}

/// Checks everything a client can see, and reports what is wrong to the history.
pub async fn run(setup: Setup) {
    let Setup { namenodes, machine, history, datanodes } = setup;
    let deadline = now() + PATIENCE.as_nanos() as u64;
    let cluster = loop {
        match Cluster::connect(client::config("checker", &namenodes, machine.clone())).await {
            Ok(cluster) => break cluster,
            Err(error) if now() >= deadline => {
                return history.violation(format!("nobody can connect: {error}"));
            }
            Err(_) => {}
        }
    };
    loop {
        let mut wrong = invariants::healing::look(&cluster, &history).await;
        if wrong.is_empty() {
            wrong = invariants::garbage::look(&cluster, &datanodes).await;
        }
        if wrong.is_empty() {
            break;
        }
        event!("not well yet: {}", wrong.join("; "));
        if now() >= deadline {
            for what in wrong {
                history.violation(format!("did not heal: {what}"));
            }
            break;
        }
        tokio::time::sleep(Duration::from_millis(1_000)).await;
    }
    event!("healed");
    invariants::acknowledged::look(&cluster, &history).await;
    invariants::winners::look(&cluster, &history).await;
    invariants::registers::look(&cluster, &history).await;
    invariants::once::look(&cluster, &history).await;
    crate::workshop::look(&cluster, &history).await;
    if let Err(error) = cluster.close().await {
        history.violation(format!("a well cluster does not close a session: {error}"));
    }
}

/// Checks what lies on the disks, once nothing runs any more.
pub fn offline(
    history: &History,
    namenodes: Vec<(String, SimulatedDisk)>,
    datanodes: Vec<(String, SimulatedDisk)>,
) {
    if !history.records().violations.is_empty() {
        // What else is wrong then follows from it more often than not.
        return;
    }
    let views = invariants::namespace::look(history, &namenodes);
    if let Some(chunks) = views {
        invariants::replicas::look(history, &chunks, &datanodes);
    }
}
