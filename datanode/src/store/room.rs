//! Which data directory takes the next replica.

/// What a difference in room is of no account below, as a share of the most: directories of one file system are
/// measured one after another while others write to it.
const SLACK: u64 = 64;

/// Of directories and the bytes available to them, the one with the most; of those that have about as much and room for
/// `bytes`, the one that holds the least.
pub(super) fn most_room<T: Copy>(
    measured: &[(u64, T)],
    bytes: u64,
    used: impl Fn(T) -> u64,
) -> Option<(u64, T)> {
    let most = measured.iter().map(|(room, _)| *room).max()?;
    let about = measured.iter().filter(|(room, _)| most - room <= most / SLACK && *room >= bytes.min(most));
    about.copied().min_by_key(|(room, dir)| (used(*dir), std::cmp::Reverse(*room)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_more_room_takes_the_chunk() {
        assert_eq!(most_room(&[(10, 'a'), (1_000, 'b')], 1, |_| 5), Some((1_000, 'b')));
        assert_eq!(most_room::<char>(&[], 1, |_| 0), None);
        assert_eq!(most_room(&[(0, 'a')], 1, |_| 0), Some((0, 'a')));
    }

    #[test]
    fn directories_that_have_about_the_same_fill_evenly() {
        // The same file system, which lost a few blocks between the two measurements.
        let used = |dir| if dir == 'a' { 70 } else { 50 };
        assert_eq!(
            most_room(&[(1 << 30, 'a'), ((1 << 30) - 4096, 'b')], 1, used),
            Some(((1 << 30) - 4096, 'b'))
        );
        assert_eq!(
            most_room(&[((1 << 30) - 4096, 'b'), (1 << 30, 'a')], 1, used),
            Some(((1 << 30) - 4096, 'b'))
        );
        // What fits into one of them only goes there.
        assert_eq!(most_room(&[(1_000, 'a'), (999, 'b')], 1_000, used), Some((1_000, 'a')));
    }
}
