//! No acknowledged write is lost, and no reader sees bytes that were not written where it reads.

use cairn_client::{Cluster, ErrorCode};

use super::answered;
use crate::client::{directory, observe};
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
    }
}
