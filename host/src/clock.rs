//! The time of day, as a process is told it.
