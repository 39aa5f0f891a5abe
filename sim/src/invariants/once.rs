//! What was asked for once happens once: no record of the shared log is there twice, none that was acknowledged is
//! missing or elsewhere, and there is none that nobody wrote.

use std::collections::BTreeMap;

use cairn_client::{Cluster, ErrorCode};

use super::answered;
use crate::client::{at, root};
use crate::history::{Appended, History};

const RECORD: u64 = 16;

/// Reads the shared log record by record.
pub async fn look(cluster: &Cluster, history: &History) {
    let appended: BTreeMap<[u8; 16], Appended> = history.records().appended.clone();
    if appended.is_empty() {
        return;
    }
    let attr = match answered!(cluster.stat(&root(), at("shared/log"), false)) {
        Ok(attr) => attr,
        Err(error) if error.code == ErrorCode::NotFound && appended.values().all(|one| one.at.is_none()) => {
            return;
        }
        Err(error) => return history.violation(format!("the shared log is not there: {error}")),
    };
    if attr.size % RECORD != 0 {
        return history.violation(format!("the shared log has {} bytes", attr.size));
    }
    let file = cluster.open(&root(), attr);
    let mut found: BTreeMap<[u8; 16], u64> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for offset in (0..attr.size).step_by(RECORD as usize) {
        match file.read_at(offset, RECORD as usize).await {
            Ok(bytes) => {
                let record: [u8; 16] = bytes.as_ref().try_into().unwrap_or_default();
                if !appended.contains_key(&record) {
                    history.violation(format!(
                        "the shared log holds {record:?} at {offset}, which nobody wrote"
                    ));
                }
                if let Some(before) = found.insert(record, offset) {
                    history.violation(format!("the shared log holds {record:?} at {before} and at {offset}"));
                }
            }
            Err(error) => unreadable.push((offset, error)),
        }
    }
    let losses = history.losses();
    for (record, told) in &appended {
        let Some(at) = told.at else { continue };
        let may_be_lost = told.volatile_since.is_some_and(|since| losses > since);
        match found.get(record) {
            Some(found) if *found == at => {}
            None if may_be_lost && unreadable.iter().any(|(offset, _)| *offset == at) => {}
            found => history.violation(format!("{record:?} was appended at {at} and is at {found:?}")),
        }
    }
    let acknowledged = |offset: &u64| appended.values().any(|told| told.at == Some(*offset));
    for (offset, error) in &unreadable {
        // One that was never acknowledged was never synced.
        if !acknowledged(offset) && losses == 0 {
            history.violation(format!("the shared log cannot be read at {offset}: {error}"));
        }
    }
}
