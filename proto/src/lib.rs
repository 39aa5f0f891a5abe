//! What CairnFS processes say to each other: messages, error codes, checksums and the data-plane frame.
//!
//! Everything here is pure: no socket, file, clock or randomness.

pub mod capability;
pub mod checked_json;
pub mod checksum;
mod delegated;
pub mod error;
pub mod frame;
pub mod limits;
pub mod lock;
pub mod path;
pub mod snapshot;

pub use delegated::Delegated;
pub use error::{Error, ErrorCode, Result};

// The nesting mirrors the packages: generated code refers to its neighbours by it.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod cairn {
    pub mod fs {
        pub mod v1 {
            tonic::include_proto!("cairn.fs.v1");
        }
    }
    pub mod control {
        pub mod v1 {
            tonic::include_proto!("cairn.control.v1");
        }
    }
    pub mod data {
        pub mod v1 {
            tonic::include_proto!("cairn.data.v1");
        }
    }
    pub mod store {
        pub mod v1 {
            tonic::include_proto!("cairn.store.v1");
        }
    }
}

/// The control plane between processes (`proto/control.proto`).
pub use cairn::control::v1 as control;
/// Headers of the data plane (`proto/data.proto`).
pub use cairn::data::v1 as data;
/// The namespace: mutations, queries and their answers (`proto/fs.proto`).
pub use cairn::fs::v1 as fs;

/// Records of a namenode's store (`proto/store.proto`).
pub use cairn::store::v1 as store;

/// The inode of `/`.
pub const ROOT_INODE: u64 = 1;
