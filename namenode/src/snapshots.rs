//! Lets go of what snapshots kept that were given up, while this namenode leads.
//!
//! How far that is, the log knows; so another leader goes on where this one ends.

use std::sync::Arc;
use std::time::Duration;

use cairn_metadata::plan::snapshot;
use cairn_metadata::store::Store;
use cairn_proto::fs::{PurgeSnapshot, mutation, outcome};

use crate::fatal::Alarm;
use crate::propose::{Proposer, own};
use crate::sessions::Sessions;

/// How often the leader looks.
const EVERY: Duration = Duration::from_secs(2);
/// What clients have the log for between two steps.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until it is dropped.
pub async fn watch(sessions: Sessions, store: Arc<dyn Store>, proposer: Proposer, alarm: Alarm) {
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        pause = EVERY;
        if !sessions.leads() {
            continue;
        }
        let mut going = None;
        let read = store.read(&mut |view| {
            going = snapshot::going(view)?;
            Ok(())
        });
        if let Err(error) = read {
            return alarm.raise(error.to_string());
        }
        let Some(seq) = going else { continue };
        let command = own(mutation::Op::PurgeSnapshot(PurgeSnapshot { seq }));
        match proposer.propose(command).await.map(|outcome| outcome.result) {
            Ok(Some(outcome::Result::SnapshotPurged(done))) => {
                pause = PAUSE;
                if done.end {
                    tracing::debug!(seq, "nothing is left of a snapshot that was given up");
                }
            }
            Ok(other) => tracing::warn!(seq, ?other, "a snapshot that was given up keeps its space"),
            Err(error) => tracing::debug!(seq, %error, "a snapshot that was given up keeps its space"),
        }
    }
}
