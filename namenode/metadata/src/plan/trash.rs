//! Which item of the trash has been there long enough.

use std::ops::ControlFlow;

use cairn_proto::store::{Meta, Trash};

use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// Whether the time of something that was discarded at `time_ns` is over.
pub(crate) fn is_over(meta: &Meta, time_ns: i64, now_ns: i64) -> bool {
    meta.trash_keep_ns > 0 && now_ns.saturating_sub(time_ns) >= meta.trash_keep_ns
}

/// The item that is to go next, of those with a number above `after`, if the time of any is over. Numbers only grow and
/// time never runs backwards in the log, so the first item is the oldest.
pub fn due(view: &dyn View, now_ns: i64, after: u64) -> Result<Option<u64>, StoreError> {
    let Some(meta) = records::meta(view)?.filter(|meta| meta.trash_keep_ns > 0) else { return Ok(None) };
    let mut first = None;
    view.scan(Table::Trash, &key::one(after.saturating_add(1)), &[], &mut |at, value| {
        first = Some((key::number(at, 0).unwrap_or(0), value.to_vec()));
        ControlFlow::Break(())
    })?;
    let Some((item, value)) = first else { return Ok(None) };
    let record: Trash = records::decode(Table::Trash, &value)?;
    Ok(is_over(&meta, record.time_ns, now_ns).then_some(item))
}
