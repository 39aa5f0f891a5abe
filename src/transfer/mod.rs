//! Moves whole files and trees between this machine and the cluster, many at a time.

pub mod download;
pub mod extended;
pub mod local;
pub mod progress;
pub mod replacement;
pub mod share;
pub mod temporary;
pub mod upload;

pub use download::{Download, fetch};
pub use extended::copy_extended;
pub use progress::Progress;
pub use replacement::{Replacement, replaceable};
pub use share::share;
pub use temporary::Temporaries;
pub use upload::{NewFile, store};

/// Files up to this size are stored in one mutation, whole or not at all.
pub const SMALL: usize = 8 << 20;
/// Size of the pieces in which larger ones are moved.
pub const PIECE: usize = 1 << 20;
/// Files in flight unless told otherwise.
pub const JOBS: usize = 16;
