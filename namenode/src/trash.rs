//! Empties the trash of what is old, while this namenode leads.
//!
//! What is due is decided by [`cairn_metadata::plan::trash`] and decided again where it is applied, so that two leaders
//! with different clocks, or one that asks twice, do no harm.

use std::sync::Arc;
use std::time::Duration;

use cairn_host::clock::Clock;
use cairn_metadata::plan::trash;
use cairn_metadata::store::Store;
use cairn_proto::fs::{PurgeTrash, mutation, outcome};

use crate::fatal::Alarm;
use crate::propose::{Proposer, own};
use crate::sessions::Sessions;

/// How often the leader looks.
const EVERY: Duration = Duration::from_secs(2);
/// What clients have the log for between two steps.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until it is dropped.
pub async fn watch(
    sessions: Sessions,
    store: Arc<dyn Store>,
    proposer: Proposer,
    clock: Arc<dyn Clock>,
    alarm: Alarm,
) {
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        pause = EVERY;
        if !sessions.leads() {
            continue;
        }
        let mut due = None;
        let read = store.read(&mut |view| {
            due = trash::due(view, clock.now_ns())?;
            Ok(())
        });
        if let Err(error) = read {
            return alarm.raise(error.to_string());
        }
        let Some(item) = due else { continue };
        let command = own(mutation::Op::PurgeTrash(PurgeTrash { item }));
        match proposer.propose(command).await.map(|outcome| outcome.result) {
            // Of an item that is not due by the log's time there is nothing to do yet.
            Ok(Some(outcome::Result::TrashPurged(done))) if done.names > 0 => {
                pause = PAUSE;
                if done.end {
                    tracing::debug!(item, "its time in the trash is over");
                }
            }
            Ok(Some(outcome::Result::TrashPurged(_))) => {}
            Ok(other) => tracing::warn!(item, ?other, "an item stays in the trash"),
            Err(error) => tracing::debug!(item, %error, "an item stays in the trash"),
        }
    }
}
