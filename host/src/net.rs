//! Connections between processes.
