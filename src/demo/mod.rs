//! `cairn demo`: a cluster that is started, filled, hurt and verified in front of you.

mod failover;
mod heal;
mod run;
mod source;
mod stage;
mod verify;

pub use run::{Demo, run};
