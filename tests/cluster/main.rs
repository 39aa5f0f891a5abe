//! End to end: real `cairn` processes on loopback, real files, real kills, content checked by hash.

mod bad_input;
mod durability;
mod healing;
mod locking;
mod membership;
mod memory;
mod mounting;
mod ranges;
mod support;
mod verbs;
