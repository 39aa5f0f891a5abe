//! No acknowledged write is lost, no reader sees bytes that were not written where it reads, and snapshots stay as they
//! were.

use cairn_client::{Cluster, ErrorCode};

use super::answered;
use crate::client::{at, directory, keep, observe, root};
use crate::event;
use crate::history::{History, Life};
use crate::model::{Model, State};

/// Compares all clients' directories with what they were told.
pub async fn look(cluster: &Cluster, history: &History) {
    let models: Vec<(Life, Model)> =
        history.records().models.iter().map(|(life, model)| (*life, model.clone())).collect();
    for (life, model) in models {
        let directory = directory(life);
        let states: Vec<&State> = model.states.iter().collect();
        let observed = answered!(observe(cluster, &directory, &states, history));
        match observed {
            Ok(Some(_)) => event!("{directory} is as it was told"),
            Ok(None) => history
                .violation(format!("{directory} is in none of the {} states it may be in", states.len())),
            Err(error) if error.code == ErrorCode::NotFound && !model.made => {}
            Err(error) => history.violation(format!("{directory} cannot be read: {error}")),
        }
        if model.made {
            snapshots(cluster, history, &directory, &model).await;
        }
    }
}

async fn snapshots(cluster: &Cluster, history: &History, directory: &str, model: &Model) {
    let list = match answered!(cluster.snapshots(&root(), Some(at(directory)))) {
        Ok(list) => list,
        Err(error) => {
            return history.violation(format!("snapshots of {directory} cannot be listed: {error}"));
        }
    };
    let there: Vec<String> =
        list.iter().map(|snapshot| String::from_utf8_lossy(&snapshot.name).into_owned()).collect();
    for name in there.iter().filter(|name| !model.kept.contains_key(*name)) {
        history.violation(format!("snapshot {name} of {directory} was given up and is there"));
    }
    for (name, kept) in &model.kept {
        if !there.contains(name) {
            if kept.is_sure {
                history.violation(format!("snapshot {name} of {directory} is gone"));
            }
            continue;
        }
        match answered!(observe(cluster, &keep::path(directory, name), &[&kept.state], history)) {
            Ok(Some(_)) => event!("snapshot {name} of {directory} is as it was"),
            Ok(None) => {
                history.violation(format!("snapshot {name} of {directory} is not what it was made of"))
            }
            Err(error) => {
                history.violation(format!("snapshot {name} of {directory} cannot be read: {error}"));
            }
        }
    }
}
