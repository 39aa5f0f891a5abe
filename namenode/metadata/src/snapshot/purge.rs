//! Letting go of what a snapshot kept that was given up, some at a time.
//!
//! What was kept for it also serves those before it that have nothing of their own for the same key. So each kept value
//! goes to the newest of these that really has what it belongs to, and if there is none, it goes for good.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cairn_proto::ROOT_INODE;
use cairn_proto::fs::{FileKind, SnapshotPurged, outcome};
use cairn_proto::store::Snapshot;
use prost::Message;

use crate::core::Core;
use crate::fault::Fallible;
use crate::snapshot::view::SnapshotView;
use crate::snapshot::{cover, keep};
use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// Kept values that one command looks at, and that it moves or lets go of: the log waits for it.
const MAX_SEEN: usize = 8192;
const MAX_DONE: usize = 1024;
/// Older snapshots that are asked whether they have something, before one is taken to.
const MAX_ASKED: usize = 16;
/// Directories that are looked at on the way up.
pub(crate) const MAX_DEPTH: usize = if cfg!(test) { 32 } else { 4096 };

/// A value that was kept for the snapshot.
struct Kept {
    table: Table,
    key: Vec<u8>,
    value: Vec<u8>,
    /// The snapshot before it that has a value of its own for the key; 0: none.
    before: u64,
}

/// Takes a step. A snapshot that is gone already, or was not given up, is left alone: an earlier leader may have asked.
pub(crate) fn purge(core: &mut Core, seq: u64) -> Fallible<outcome::Result> {
    let record = records::snapshot(core, seq)?.filter(|snapshot| snapshot.going);
    let Some(record) = record else {
        return Ok(outcome::Result::SnapshotPurged(SnapshotPurged { records: 0, end: true }));
    };
    let (found, reached) = look(core, seq, &record.reached)?;
    let done = found.len() as u64;
    let mut heirs = Heirs::default();
    for kept in found {
        let heir = heirs.of(core, seq, &kept)?;
        keep::release(core, kept.table, &kept.key, seq, &kept.value)?;
        if heir != 0 {
            keep::put(core, kept.table, &kept.key, heir, kept.value)?;
        }
    }
    let end = reached.is_none();
    match reached {
        Some(reached) => {
            let rest = records::snapshot(core, seq)?.unwrap_or_default();
            let rest = Snapshot { reached: reached.into(), ..rest };
            core.set(Table::Snapshot, &key::descending(seq), rest.encode_to_vec());
        }
        None => {
            core.remove(Table::Snapshot, &key::descending(seq));
            core.meta.snapshots_going = core.meta.snapshots_going.saturating_sub(1);
        }
    }
    core.covering.forget();
    Ok(outcome::Result::SnapshotPurged(SnapshotPurged { records: done, end }))
}

/// Values kept for a snapshot from a key of table `old` on, and the key up to which there are no others; none: to the end.
fn look(view: &dyn View, seq: u64, from: &[u8]) -> Result<(Vec<Kept>, Option<Vec<u8>>), StoreError> {
    let mut found: Vec<Kept> = Vec::new();
    let mut reached: Option<Vec<u8>> = None;
    let mut seen = 0;
    let mut last = Vec::new();
    let mut damaged = None;
    view.scan(Table::Old, from, &[], &mut |at, value| {
        if seen >= MAX_SEEN || found.len() >= MAX_DONE {
            // From the last one on again: it tells what the next one follows on.
            reached = Some(std::mem::take(&mut last));
            return ControlFlow::Break(());
        }
        seen += 1;
        let parts = key::parts_of_old(at);
        let parts = parts.and_then(|(table, key, of)| Some((Table::from_number(table)?, key, of)));
        let Some((table, key, of)) = parts else {
            damaged = Some(StoreError::Damaged(format!("table old: key {at:?}")));
            return ControlFlow::Break(());
        };
        if of == seq {
            let before = key::parts_of_old(&last)
                .filter(|(other, own, _)| *other == table as u8 && *own == key)
                .map_or(0, |(_, _, before)| before);
            found.push(Kept { table, key: key.to_vec(), value: value.to_vec(), before });
        }
        last = at.to_vec();
        ControlFlow::Continue(())
    })?;
    damaged.map_or(Ok((found, reached)), Err)
}

/// Who gets what was kept, as far as it was found out.
#[derive(Default)]
struct Heirs {
    /// Snapshot to the newest that is there and no newer.
    living: BTreeMap<u64, Option<(u64, Snapshot)>>,
    /// Snapshot and directory to whether that snapshot has it.
    asked: BTreeMap<(u64, u64), bool>,
}

impl Heirs {
    /// The snapshot that a value of snapshot `seq` is for when that one is gone; 0: none.
    fn of(&mut self, core: &Core, seq: u64, kept: &Kept) -> Result<u64, StoreError> {
        let mut most = seq.saturating_sub(1);
        for asked in 0..=MAX_ASKED {
            let Some((at, snapshot)) = self.living(core, most)?.filter(|(at, _)| *at > kept.before) else {
                return Ok(0);
            };
            if asked == MAX_ASKED || has(core, &mut self.asked, (at, &snapshot), kept)? {
                return Ok(at);
            }
            most = at - 1;
        }
        Ok(0)
    }

    fn living(&mut self, core: &Core, most: u64) -> Result<Option<(u64, Snapshot)>, StoreError> {
        if let Some(known) = self.living.get(&most) {
            return Ok(known.clone());
        }
        let found = cover::living(core, most)?;
        self.living.insert(most, found.clone());
        Ok(found)
    }
}

/// Whether a snapshot really has what a record belongs to: it is found on the way up, as the snapshot has that.
fn has(
    core: &Core,
    asked: &mut BTreeMap<(u64, u64), bool>,
    (seq, snapshot): (u64, &Snapshot),
    kept: &Kept,
) -> Result<bool, StoreError> {
    let owner = key::number(&kept.key, 0).unwrap_or(0);
    if owner >= snapshot.next_inode {
        return Ok(false);
    }
    let view = SnapshotView::new(core, seq);
    let Some(inode) = records::inode(&view, owner)? else { return Ok(false) };
    let is_directory = inode.kind() == FileKind::Directory;
    if !is_directory && inode.nlink > 1 {
        // It is not known where all of its names were.
        return Ok(true);
    }
    let mut at = if is_directory { owner } else { inode.parent };
    let mut way = Vec::new();
    let answer = loop {
        if let Some(known) = asked.get(&(seq, at)) {
            break *known;
        }
        // It is not known what is further up than that. What is kept for a snapshot that does not have it does no harm.
        if at == snapshot.directory || way.len() >= MAX_DEPTH {
            break true;
        }
        way.push(at);
        if at == ROOT_INODE || at == 0 {
            break false;
        }
        let Some(inode) = records::inode(&view, at)? else { break false };
        at = inode.parent;
    };
    way.into_iter().for_each(|at| _ = asked.insert((seq, at), answer));
    Ok(answer)
}
