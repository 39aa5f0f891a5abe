//! How long a disk may leave a namenode without an answer. One that hangs without an error is as bad as one that fails: a
//! leader that waits for it goes on leading, and the cluster stands still.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// Between two looks at whether the disk has answered.
pub const STEP: Duration = Duration::from_secs(1);
/// Looks without an answer after which none is expected any more: in seconds, longer than a slow disk takes.
pub const STEPS: u32 = 30;

/// Waits for `work` for so many steps, [`STEPS`] of a `step`. Time in which this process was stopped counts as one.
pub async fn within<T>(work: impl Future<Output = T>, step: Duration) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..STEPS {
        if let Ok(done) = tokio::time::timeout(step, &mut work).await {
            return Some(done);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_ends_is_waited_for_so_long_and_no_longer() {
        let step = Duration::from_millis(2);
        assert_eq!(within(async { 1 }, step).await, Some(1));
        assert_eq!(within(tokio::time::sleep(step * 5), step).await, Some(()));
        assert_eq!(within(std::future::pending::<()>(), step).await, None);
    }
}
