//! Waiting for a cluster to come to a state by itself.

use std::time::{Duration, Instant};

use serde_json::Value;

/// Looks until the cluster's state is as wanted and returns it; panics with its `logs` when that takes too long.
#[track_caller]
pub fn wait_for(
    what: &str,
    patience: Duration,
    look: impl Fn() -> Option<Value>,
    mut wanted: impl FnMut(&Value) -> bool,
    logs: impl Fn() -> String,
) -> Value {
    let give_up = Instant::now() + patience;
    loop {
        let status = look();
        match &status {
            Some(status) if wanted(status) => return status.clone(),
            _ if Instant::now() > give_up => {
                panic!("waited in vain for {what}; last seen: {status:#?}\n{}", logs())
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
