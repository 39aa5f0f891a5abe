//! What the leader does of its own accord, in steps: emptying the trash of what is old, and letting go of what snapshots
//! kept that were given up.
//!
//! What is to be done is decided by a plan of the core's, and decided again where it is applied, so that two leaders with
//! different clocks, or one that asks twice, do no harm; and where one leader ends, the next goes on.

use std::sync::Arc;
use std::time::Duration;

use cairn_host::clock::Clock;
use cairn_metadata::plan::{snapshot, trash};
use cairn_metadata::store::{Store, StoreError, View};
use cairn_proto::fs::{PurgeSnapshot, PurgeTrash, mutation, outcome};

use crate::fatal::Alarm;
use crate::propose::{Proposer, own};
use crate::sessions::Sessions;

/// How often the leader looks.
const EVERY: Duration = Duration::from_secs(2);
/// What clients have the log for between two steps.
const PAUSE: Duration = Duration::from_millis(20);

/// Something that is done step by step.
pub trait Chore: Send + Sync + 'static {
    /// The next step, if there is something to do, and the number of what it is done to. That is above `after`, if there
    /// is an order to it in which one can be passed over.
    fn step(&self, view: &dyn View, after: u64) -> Result<Option<(u64, mutation::Op)>, StoreError>;

    /// Whether the step that ended so was one, so that the next one may follow; nothing if its outcome is none of a step.
    fn was_done(&self, outcome: &outcome::Result) -> Option<bool>;
}

/// Does a chore while this namenode leads, until it is dropped.
pub async fn attend_to(
    chore: impl Chore,
    sessions: Sessions,
    store: Arc<dyn Store>,
    proposer: Proposer,
    alarm: Alarm,
) {
    let mut pause = EVERY;
    // What was refused last. It is passed over until all after it had their turn, so that it holds up none of them.
    let mut refused = 0;
    loop {
        tokio::time::sleep(pause).await;
        pause = EVERY;
        if !sessions.leads() {
            continue;
        }
        let mut step = None;
        let read = store.read(&mut |view| {
            step = chore.step(view, refused)?;
            Ok(())
        });
        if let Err(error) = read {
            return alarm.raise(error.to_string());
        }
        let Some((number, op)) = step else {
            refused = 0;
            continue;
        };
        match proposer.propose(own(op)).await.map(|outcome| outcome.result) {
            Ok(Some(result)) => match chore.was_done(&result) {
                Some(true) => pause = PAUSE,
                Some(false) => {}
                None => {
                    tracing::warn!(?result, number, "a chore of the leader's is not done");
                    refused = number;
                }
            },
            Ok(None) => tracing::warn!("a chore of the leader's has no outcome"),
            Err(error) => tracing::debug!(%error, "a chore of the leader's waits"),
        }
    }
}

/// Removes what was in the trash for long enough.
pub struct EmptyTrash(pub Arc<dyn Clock>);

impl Chore for EmptyTrash {
    fn step(&self, view: &dyn View, after: u64) -> Result<Option<(u64, mutation::Op)>, StoreError> {
        let due = trash::due(view, self.0.now_ns(), after)?;
        Ok(due.map(|item| (item, mutation::Op::PurgeTrash(PurgeTrash { item }))))
    }

    fn was_done(&self, outcome: &outcome::Result) -> Option<bool> {
        match outcome {
            // Of an item that is not due by the log's time there is nothing to do yet.
            outcome::Result::TrashPurged(done) => Some(done.names > 0 || !done.end),
            _ => None,
        }
    }
}

/// Gives back what was kept for snapshots that nobody has any more.
pub struct ReleaseSnapshots;

impl Chore for ReleaseSnapshots {
    fn step(&self, view: &dyn View, _: u64) -> Result<Option<(u64, mutation::Op)>, StoreError> {
        let going = snapshot::going(view)?;
        Ok(going.map(|seq| (seq, mutation::Op::PurgeSnapshot(PurgeSnapshot { seq }))))
    }

    fn was_done(&self, outcome: &outcome::Result) -> Option<bool> {
        matches!(outcome, outcome::Result::SnapshotPurged(_)).then_some(true)
    }
}
