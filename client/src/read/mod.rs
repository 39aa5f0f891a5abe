//! Reading: layouts say where bytes lie, and the nearest replica that has them gives them.

mod hedge;
mod layout;
mod local;
mod pool;
mod replicas;
mod stream;

pub(crate) use layout::{LayoutCache, WINDOW};
pub(crate) use local::Local;
pub(crate) use pool::Pool;
pub(crate) use replicas::{Reader, Span};
pub(crate) use stream::stream;
