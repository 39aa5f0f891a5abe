//! What every role shows of itself: whether it is well, its metrics, and the HTTP server they are read from.
//!
//! [`http`] is a server that answers GET and nothing else, within fixed bounds. [`metrics`] has what is counted on hot
//! paths, without locks, and how it is written down for Prometheus; [`trace`] sends what is done of requests to whoever collects
//! traces. [`health`] judges a cluster by its status, for
//! `cairn status` and for the dashboard alike, with a [`code`] for each reason; [`status`] is the status as JSON.

pub mod code;
pub mod health;
pub mod http;
pub mod metrics;
pub mod settings;
pub mod status;
pub mod trace;
