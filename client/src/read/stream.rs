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
    let pieces = futures::stream::iter(pieces)
        .map(move |(at, length)| {
            let file = file.clone();
            let read = async move { file.read_at(at, length as usize).await };
            let mut ahead = Ahead(tokio::spawn(RequestId::current().carry(read)));
            async move {
                let read = (&mut ahead.0).await;
                let read = read
                    .unwrap_or_else(|error| Err(ErrorCode::Io.because(format!("reading ahead: {error}"))));
                (length, read)
            }
        })
        .buffered(in_flight);
    until_short(pieces)
}

/// Pieces, each with how long it was to be, up to the end of the file: the first that is short. The file may have grown by
/// the time the next one was read, and that does not follow on the short one.
fn until_short(pieces: impl Stream<Item = (u64, Result<Bytes>)>) -> impl Stream<Item = Result<Bytes>> {
    pieces.scan(false, |ended, (wanted, read)| {
        let goes_on = !*ended && !matches!(&read, Ok(bytes) if bytes.is_empty());
        *ended = !matches!(&read, Ok(bytes) if bytes.len() as u64 == wanted);
        std::future::ready(goes_on.then_some(read))
    })
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn what_came_after_a_short_piece_does_not_follow_on_it() {
        let read = |pieces: Vec<(u64, Result<Bytes>)>| -> Vec<Result<Bytes>> {
            block_on(until_short(futures::stream::iter(pieces)).collect())
        };
        let piece = |text: &'static [u8]| (4, Ok(Bytes::from_static(text)));
        let whole = |text: &'static [u8]| Ok(Bytes::from_static(text));
        assert_eq!(read(vec![piece(b"abcd"), piece(b"ef"), piece(b"ijkl")]), [whole(b"abcd"), whole(b"ef")]);
        assert_eq!(read(vec![piece(b"abcd"), piece(b""), piece(b"ijkl")]), [whole(b"abcd")]);
        let failed = || ErrorCode::Io.because("test");
        assert_eq!(read(vec![(4, Err(failed())), piece(b"efgh")]), [Err(failed())]);
    }
}
