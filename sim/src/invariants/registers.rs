//! A value that was acknowledged is there; a number guarded by a lock counts each step once.

use cairn_client::{Cluster, ErrorCode, Result};

use super::answered;
use crate::client::{at, root};
use crate::history::{History, Life, Register};

/// Compares all registers and the counter with what their writers were told.
pub async fn look(cluster: &Cluster, history: &History) {
    let registers: Vec<(Life, Register)> =
        history.records().registers.iter().map(|(life, register)| (*life, *register)).collect();
    for (life, register) in registers {
        let name = format!("user.{}-{}", life.0, life.1);
        match number(cluster, "shared", &name).await {
            Ok(found) if found >= register.acked && found <= register.begun => {}
            Ok(found) => {
                history.violation(format!("the register of {life:?} is {found}, told was {register:?}"))
            }
            Err(error) => history.violation(format!("a register cannot be read: {error}")),
        }
    }
    let highest = history.records().counted.last_key_value().map(|(value, _)| *value);
    let Some(highest) = highest else { return };
    match number(cluster, "shared/counter", "user.count").await {
        Ok(found) if found >= highest => {}
        Ok(found) => history.violation(format!("the counter is {found}, {highest} was acknowledged")),
        Err(error) => history.violation(format!("the counter cannot be read: {error}")),
    }
}

async fn number(cluster: &Cluster, path: &str, name: &str) -> Result<u64> {
    let read = answered!(cluster.get_xattr(&root(), at(path), name.to_owned().into()));
    match read {
        Ok(value) => Ok(String::from_utf8_lossy(&value).parse().unwrap_or(u64::MAX)),
        Err(error) if error.code == ErrorCode::NoAttribute => Ok(0),
        Err(error) => Err(error),
    }
}
