//! Where a file has data and where it has holes.

use cairn_proto::fs::Extent;

fn end(extent: &Extent) -> u64 {
    extent.file_offset.saturating_add(extent.length)
}

/// The first byte at or after `offset` that lies in one of `extents`, which are in file order.
pub(crate) fn data_from(extents: &[Extent], offset: u64) -> Option<u64> {
    extents.iter().find(|extent| end(extent) > offset).map(|extent| extent.file_offset.max(offset))
}

/// Where the unbroken data that starts at `offset` ends; `offset` itself if it lies in a hole.
pub(crate) fn data_until(extents: &[Extent], offset: u64) -> u64 {
    let mut reached = offset;
    for extent in extents.iter().filter(|extent| end(extent) > offset) {
        if extent.file_offset > reached {
            break;
        }
        reached = reached.max(end(extent));
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(ranges: &[(u64, u64)]) -> Vec<Extent> {
        ranges
            .iter()
            .map(|&(file_offset, length)| Extent { file_offset, length, ..Extent::default() })
            .collect()
    }

    #[test]
    fn data_is_where_extents_are() {
        let extents = extents(&[(10, 5), (15, 5), (40, 1)]);
        assert_eq!(data_from(&extents, 0), Some(10));
        assert_eq!(data_from(&extents, 12), Some(12));
        assert_eq!(data_from(&extents, 20), Some(40));
        assert_eq!(data_from(&extents, 41), None);
    }

    #[test]
    fn a_hole_is_where_none_is() {
        let extents = extents(&[(10, 5), (15, 5), (40, 1)]);
        assert_eq!(data_until(&extents, 0), 0);
        assert_eq!(data_until(&extents, 10), 20);
        assert_eq!(data_until(&extents, 17), 20);
        assert_eq!(data_until(&extents, 20), 20);
        assert_eq!(data_until(&extents, 40), 41);
        assert_eq!(data_until(&[], 3), 3);
    }
}
