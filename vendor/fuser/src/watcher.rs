//! Who is told of every answer.

use std::fmt::Debug;
use std::time::Duration;

/// Is told when a request is answered, by whichever thread answers it.
pub trait Watcher: Debug + Send + Sync {
    /// The request with this `FUSE_...` number was answered with `errno`, or with success if that is 0.
    fn answered(&self, operation: u32, errno: i32, took: Duration);
}
