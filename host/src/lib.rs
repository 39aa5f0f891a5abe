//! What a process gets from the machine it runs on: its disk, its network, its clock.
//!
//! Shells take these as arguments instead of asking the operating system, so that a simulation can put its own in
//! their place and drive the code that ships.

pub mod clock;
pub mod disk;
pub mod net;
