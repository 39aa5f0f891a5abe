//! Which snapshot that was given up still keeps something.

use std::ops::ControlFlow;

use cairn_proto::store::Snapshot;

use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// The snapshot to let go of next: the newest, if there is any.
pub fn going(view: &dyn View) -> Result<Option<u64>, StoreError> {
    if records::meta(view)?.is_none_or(|meta| meta.snapshots_going == 0) {
        return Ok(None);
    }
    let mut found = Ok(None);
    view.scan(Table::Snapshot, &[], &[], &mut |at, value| {
        match records::decode::<Snapshot>(Table::Snapshot, value) {
            Ok(snapshot) if !snapshot.going => return ControlFlow::Continue(()),
            Ok(_) => found = Ok(key::number(at, 0).map(|number| !number)),
            Err(error) => found = Err(error),
        }
        ControlFlow::Break(())
    })?;
    found
}
