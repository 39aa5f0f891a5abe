//! The tables as a snapshot has them: what was kept of them, over what has not changed since.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use crate::key;
use crate::snapshot::keep;
use crate::store::{StoreError, Table, View, Visit};

/// Keys of which kept values are read at a time: a directory may have a million names.
const WINDOW: usize = 256;

/// The state of a snapshot. True of what lies below its directory, and of nothing else.
pub(crate) struct SnapshotView<'a> {
    base: &'a dyn View,
    seq: u64,
}

/// Keys with what they have in the snapshot, and the key from which on that is not known yet.
#[derive(Default)]
struct Window {
    kept: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    next: Option<Vec<u8>>,
}

impl SnapshotView<'_> {
    /// What `base` was when snapshot `seq` was made.
    pub fn new(base: &dyn View, seq: u64) -> SnapshotView<'_> {
        SnapshotView { base, seq }
    }

    /// What was kept in `[start, end)`, as far as a window reaches.
    fn window(&self, table: Table, start: &[u8], end: &[u8]) -> Result<Window, StoreError> {
        let from = [&[table as u8][..], start].concat();
        let to = if end.is_empty() { vec![table as u8 + 1] } else { [&[table as u8][..], end].concat() };
        let mut window = Window::default();
        self.base.scan(Table::Old, &from, &to, &mut |at, value| {
            let Some((_, key, seq)) = key::parts_of_old(at) else { return ControlFlow::Continue(()) };
            // A key that `start` goes on from is not in the range, although what is kept of it is.
            let is_inside = key >= start && (end.is_empty() || key < end);
            if seq < self.seq || !is_inside || window.kept.contains_key(key) {
                return ControlFlow::Continue(());
            }
            if window.kept.len() >= WINDOW {
                window.next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            window.kept.insert(key.to_vec(), keep::record(value).map(<[u8]>::to_vec));
            ControlFlow::Continue(())
        })?;
        Ok(window)
    }
}

impl View for SnapshotView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if keep::is_kept(table)
            && let Some(kept) = keep::first(self.base, table, key, self.seq)?
        {
            return Ok(keep::record(&kept).map(<[u8]>::to_vec));
        }
        self.base.get(table, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if !keep::is_kept(table) {
            return self.base.scan(table, start, end, visit);
        }
        let mut start = start.to_vec();
        loop {
            let window = self.window(table, &start, end)?;
            let until = window.next.as_deref().unwrap_or(end);
            if merge(self.base, &window.kept, (table, &start, until), &mut *visit)?.is_break() {
                return Ok(());
            }
            match window.next {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    fn snapshot(&self) -> Option<u64> {
        Some(self.seq)
    }
}

/// Visits a range of the base with what was kept in the place of what is there.
fn merge(
    base: &dyn View,
    kept: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    (table, start, end): (Table, &[u8], &[u8]),
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, StoreError> {
    let mut kept = kept.range::<[u8], _>((Bound::Included(start), Bound::Unbounded)).peekable();
    let mut flow = ControlFlow::Continue(());
    base.scan(table, start, end, &mut |key, value| {
        while let Some((own, record)) = kept.next_if(|(own, _)| own.as_slice() <= key) {
            if let Some(record) = record {
                flow = visit(own, record);
            }
            if flow.is_break() || own.as_slice() == key {
                return flow;
            }
        }
        flow = visit(key, value);
        flow
    })?;
    for (own, record) in kept {
        if flow.is_break() {
            break;
        }
        if let Some(record) = record {
            flow = visit(own, record);
        }
    }
    Ok(flow)
}
