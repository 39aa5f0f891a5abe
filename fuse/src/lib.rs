//! The FUSE mount: a cluster as a directory of this host.
//!
//! [`mount`] serves the kernel's requests from a [`cairn_client::Cluster`]. Why it behaves as it does (who checks
//! permissions, what is cached for how long, what the FUSE binding cannot do) is in `docs/decisions/0005-mount.md`.
//!
//! A request comes in at `filesystem`, is carried out by one of `operations`, and is answered from whichever thread
//! finishes it (`dispatch`). Inode numbers are the cluster's own, so nothing is translated and nothing is forgotten.

mod accesses;
mod attr;
mod counted;
mod directory;
mod dispatch;
mod doubts;
mod errno;
mod filesystem;
mod groups;
mod handles;
mod holds;
mod inodes;
mod interrupts;
mod locks;
mod mount;
mod mount_point;
mod operations;
mod shown;
mod site;
mod sparse;
mod versions;
mod view;

pub use mount::{Atime, MountOptions, Mounted, mount};
pub use mount_point::unmount;
pub use shown::Shown;
