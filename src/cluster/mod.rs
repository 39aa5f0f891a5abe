//! `cairn cluster`: a whole cluster of real processes on this machine.

pub mod certificates;
mod layout;
pub mod local;
pub mod mounts;
pub mod ports;
pub mod process;
pub mod ready;
mod show;
mod up;
mod verbs;

pub use layout::{Role, Shape};
pub use local::LocalCluster;
pub use up::{hints, start_nodes};
pub use verbs::{Verb, run};
