//! The pure core of a namenode: the namespace and its chunks as a deterministic state machine.
//!
//! `apply` takes commands and a store and returns outcomes; planners take views and return what should be done.
//! Nothing here knows a clock, a socket, a file or a random number that was not handed in, and nothing iterates
//! over an unordered map.

pub mod key;
pub mod memory;
pub mod store;
