//! The pure core of a namenode: the namespace and its chunks as a deterministic state machine.
//!
//! [`apply`] takes commands and a store and returns outcomes; [`answer`] takes a view and returns answers; planners
//! take views and return what should be done. Nothing here knows a clock, a socket, a file or a random number that
//! was not handed in, and nothing iterates over an unordered map.

mod acl;
mod apply;
pub mod check;
mod chunk;
mod commit;
mod compact;
mod core;
mod datanode;
mod delegation;
mod extents;
mod fault;
mod fsck;
mod home;
pub mod key;
mod lock;
pub mod memory;
mod namespace;
mod permission;
pub mod plan;
mod query;
mod quota;
mod ranges;
pub mod records;
mod resolve;
mod session;
mod snapshot;
pub mod store;
#[cfg(test)]
mod tests;
mod trash;
mod upgrade;
mod usage;

pub use apply::apply;
pub use query::{answer, answer_to};
pub use records::meta;
pub use upgrade::upgrade;
