//! A file as an ordered stream, read ahead in parallel.

use bytes::Bytes;
use cairn_host::request::RequestId;
use cairn_proto::{ErrorCode, Result};
use futures::{Stream, StreamExt};
use tokio::task::JoinHandle;

use crate::file::File;

/// Bytes of one read: a frame's payload, so that they need not be copied together.
const PIECE: u64 = 1 << 20;

/// A read in a task of its own, so that it goes on while the consumer is busy; gone with the stream.
struct Ahead(JoinHandle<Result<Bytes>>);

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `[offset, offset + length)` of `file`, at most `ahead` bytes of it in flight.
pub(crate) fn stream(
    file: File,
    offset: u64,
    length: u64,
    ahead: usize,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    let end = offset.saturating_add(length);
    let pieces = std::iter::successors(Some(offset), |at| Some((at / PIECE + 1) * PIECE))
        .take_while(move |&at| at < end)
        .map(move |at| (at, ((at / PIECE + 1) * PIECE).min(end) - at));
    let in_flight = (ahead / PIECE as usize).max(1);
    futures::stream::iter(pieces)
        .map(move |(at, length)| {
            let file = file.clone();
            let read = async move { file.read_at(at, length as usize).await };
            let mut ahead = Ahead(tokio::spawn(RequestId::current().carry(read)));
            async move {
                let read = (&mut ahead.0).await;
                read.unwrap_or_else(|error| Err(ErrorCode::Io.because(format!("reading ahead: {error}"))))
            }
        })
        .buffered(in_flight)
        .take_while(|read| std::future::ready(!matches!(read, Ok(bytes) if bytes.is_empty())))
}
