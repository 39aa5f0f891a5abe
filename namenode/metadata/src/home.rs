//! Which directory counts the bytes of a file: the oldest of those that have a name of it, the one with the lowest number.
//!
//! It follows from the names alone and not from what happened to them, so that the state checker can say where each byte
//! belongs. A file with one name knows its directory by itself. [`Table::Link`] has the directories of a file with
//! several names, so that the next one is found when a name goes.

use std::ops::ControlFlow;

use crate::core::Core;
use crate::key;
use crate::resolve::Found;
use crate::store::{StoreError, Table, View};

/// The file gets a name in `directory`. The caller stores the file.
pub(crate) fn gain(core: &mut Core, directory: u64, file: &mut Found) -> Result<(), StoreError> {
    let home = file.inode.parent;
    if home == 0 {
        move_to(core, file, directory);
        return Ok(());
    }
    if directories(core, file.id)?.is_empty() {
        count(core, file.id, home, 1);
    }
    let there = names_in(core, file.id, directory)?;
    count(core, file.id, directory, there + 1);
    if directory < home {
        move_to(core, file, directory);
    }
    Ok(())
}

/// The file loses a name in `directory`. The caller stores the file.
pub(crate) fn lose(core: &mut Core, directory: u64, file: &mut Found) -> Result<(), StoreError> {
    if directories(core, file.id)?.is_empty() {
        move_to(core, file, 0);
        return Ok(());
    }
    let there = names_in(core, file.id, directory)?;
    count(core, file.id, directory, there.saturating_sub(1));
    let left = directories(core, file.id)?;
    if let [(last, 1)] = left[..] {
        count(core, file.id, last, 0);
    }
    let (before, heir) = (file.inode.parent, left.first().map_or(0, |(first, _)| *first));
    move_to(core, file, heir);
    if heir != before && heir != 0 {
        core.ledger.inherit(file.id, heir, file.inode.allocated as i64);
    }
    Ok(())
}

fn move_to(core: &mut Core, file: &mut Found, home: u64) {
    let before = file.inode.parent;
    if before == home {
        return;
    }
    core.ledger.disinherit(file.id);
    let bytes = file.inode.allocated as i64;
    if before != 0 {
        core.ledger.bytes(before, -bytes);
    }
    if home != 0 {
        core.ledger.bytes(home, bytes);
    }
    file.inode.parent = home;
}

/// The first two directories of a file with several names, with how many it has there; none for any other file.
fn directories(view: &dyn View, id: u64) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut found = Vec::new();
    view.scan(Table::Link, &key::one(id), &key::after(id), &mut |at, value| {
        found.push((key::number(at, 1).unwrap_or(0), key::number(value, 0).unwrap_or(0)));
        if found.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

fn names_in(view: &dyn View, id: u64, directory: u64) -> Result<u64, StoreError> {
    let value = view.get(Table::Link, &key::two(id, directory))?;
    Ok(value.and_then(|value| key::number(&value, 0)).unwrap_or(0))
}

fn count(core: &mut Core, id: u64, directory: u64, names: u64) {
    let at = key::two(id, directory);
    if names == 0 {
        core.remove(Table::Link, &at);
    } else {
        core.set(Table::Link, &at, names.to_be_bytes().to_vec());
    }
}
