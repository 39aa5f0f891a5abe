//! How locks combine: the namenode's records and a mount's idea of what it holds must never differ.
//!
//! The ranges of one owner on one file are in order of offset, none overlap, and neighbours of one mode are joined.

use crate::fs::{LockMode, LockRange};
use crate::limits::MAX_FILE_SIZE;
use crate::{ErrorCode, Result};

/// The last byte a lock can name: it stands for the end of the file, however long it gets.
pub const LAST: u64 = MAX_FILE_SIZE;

/// Refuses what is no range, or of no mode.
pub fn validate(range: &LockRange) -> Result<()> {
    if range.start > range.end || range.end > LAST || LockMode::try_from(range.mode).is_err() {
        return Err(ErrorCode::Invalid.because(format!("a lock from {} to {}", range.start, range.end)));
    }
    Ok(())
}

fn overlap(a: &LockRange, b: &LockRange) -> bool {
    a.start <= b.end && b.start <= a.end
}

/// Whether two owners cannot have both.
pub fn conflict(a: &LockRange, b: &LockRange) -> bool {
    let shared = a.mode() == LockMode::Shared && b.mode() == LockMode::Shared;
    let unlocked = a.mode() == LockMode::Unlocked || b.mode() == LockMode::Unlocked;
    overlap(a, b) && !shared && !unlocked
}

/// What is left of `ranges` once `new` is laid over them: it replaces whatever it covers.
pub fn lay_over(ranges: &[LockRange], new: &LockRange) -> Vec<LockRange> {
    let mut pieces = Vec::with_capacity(ranges.len() + 2);
    for old in ranges {
        if !overlap(old, new) {
            pieces.push(*old);
            continue;
        }
        if old.start < new.start {
            pieces.push(LockRange { end: new.start - 1, ..*old });
        }
        if old.end > new.end {
            pieces.push(LockRange { start: new.end + 1, ..*old });
        }
    }
    if new.mode() != LockMode::Unlocked {
        pieces.push(*new);
    }
    pieces.sort_unstable_by_key(|piece| piece.start);
    joined(pieces, new)
}

/// Joins neighbours of one mode. What `new` became part of is shown as taken by whoever took `new`.
fn joined(pieces: Vec<LockRange>, new: &LockRange) -> Vec<LockRange> {
    let mut ranges: Vec<LockRange> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match ranges.last_mut() {
            Some(last) if last.mode == piece.mode && last.end.checked_add(1) == Some(piece.start) => {
                last.end = piece.end;
                last.pid = new.pid;
            }
            _ => ranges.push(piece),
        }
    }
    ranges
}

/// Whether ranges are as this module leaves them.
pub fn are_sound(ranges: &[LockRange]) -> bool {
    let each = ranges.iter().all(|range| validate(range).is_ok() && range.mode() != LockMode::Unlocked);
    each && ranges.windows(2).all(|pair| {
        let (left, right) = (&pair[0], &pair[1]);
        left.end < right.start && (left.end + 1 < right.start || left.mode != right.mode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64, mode: LockMode) -> LockRange {
        LockRange { start, end, mode: mode.into(), pid: 1 }
    }

    fn shown(ranges: &[LockRange]) -> Vec<(u64, u64, LockMode)> {
        ranges.iter().map(|range| (range.start, range.end, range.mode())).collect()
    }

    #[test]
    fn unlocking_in_the_middle_leaves_two_ends() {
        let held = [range(0, LAST, LockMode::Exclusive)];
        let left = lay_over(&held, &range(10, 19, LockMode::Unlocked));
        assert_eq!(shown(&left), [(0, 9, LockMode::Exclusive), (20, LAST, LockMode::Exclusive)]);
        assert_eq!(lay_over(&left, &range(0, LAST, LockMode::Unlocked)), []);
    }

    #[test]
    fn a_change_of_mode_splits_and_changing_back_joins() {
        let held = [range(0, 99, LockMode::Exclusive)];
        let split = lay_over(&held, &range(10, 19, LockMode::Shared));
        assert_eq!(
            shown(&split),
            [(0, 9, LockMode::Exclusive), (10, 19, LockMode::Shared), (20, 99, LockMode::Exclusive)]
        );
        let back = lay_over(&split, &range(10, 19, LockMode::Exclusive));
        assert_eq!(shown(&back), [(0, 99, LockMode::Exclusive)]);
        let over = lay_over(&split, &range(5, 200, LockMode::Shared));
        assert_eq!(shown(&over), [(0, 4, LockMode::Exclusive), (5, 200, LockMode::Shared)]);
    }

    #[test]
    fn neighbours_join_and_others_do_not() {
        let held = [range(0, 9, LockMode::Shared), range(20, 29, LockMode::Shared)];
        assert_eq!(shown(&lay_over(&held, &range(10, 19, LockMode::Shared))), [(0, 29, LockMode::Shared)]);
        assert_eq!(lay_over(&held, &range(11, 18, LockMode::Shared)).len(), 3);
        assert_eq!(lay_over(&held, &range(10, 19, LockMode::Exclusive)).len(), 3);
    }

    #[test]
    fn only_overlapping_ranges_conflict_and_only_if_one_is_exclusive() {
        let exclusive = range(10, 19, LockMode::Exclusive);
        assert!(conflict(&exclusive, &range(19, 19, LockMode::Shared)));
        assert!(!conflict(&exclusive, &range(20, 29, LockMode::Exclusive)));
        assert!(!conflict(&exclusive, &range(0, LAST, LockMode::Unlocked)));
        assert!(!conflict(&range(0, 9, LockMode::Shared), &range(0, 9, LockMode::Shared)));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        assert!(validate(&range(5, 4, LockMode::Shared)).is_err());
        assert!(validate(&range(0, LAST + 1, LockMode::Shared)).is_err());
        assert!(validate(&LockRange { mode: 9, ..range(0, 1, LockMode::Shared) }).is_err());
        assert!(validate(&range(LAST, LAST, LockMode::Shared)).is_ok());
    }
}
