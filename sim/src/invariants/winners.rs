//! At most one of those who make a name exclusively wins, and the name is the winner's.

use cairn_client::{Cluster, ErrorCode};

use super::answered;
use crate::client::{at, root};
use crate::history::{History, Life};

/// Compares all races with what the winners were told. That there is no second winner was checked at once.
pub async fn look(cluster: &Cluster, history: &History) {
    let winners: Vec<(String, Life)> =
        history.records().winners.iter().map(|(race, life)| (race.clone(), *life)).collect();
    for (race, (number, life)) in winners {
        let found = answered!(cluster.stat(&root(), at(&format!("shared/{race}")), false));
        match found {
            Ok(attr) if u64::from(attr.uid) == number * 1000 + life => {}
            Ok(attr) => {
                history.violation(format!("{race} was won by client {number} and belongs to {}", attr.uid))
            }
            Err(error) if error.code == ErrorCode::NotFound => {
                history.violation(format!("{race} was won by client {number} and is gone"));
            }
            Err(error) => history.violation(format!("{race} cannot be looked at: {error}")),
        }
    }
}
