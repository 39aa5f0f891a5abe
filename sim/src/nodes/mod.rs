//! The processes of a cluster, as the simulation starts them.

pub mod chain;
pub mod copy;
pub mod datanode;
pub mod frames;
pub mod namenode;
