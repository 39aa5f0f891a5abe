//! The log as the Raft library asks for it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::oneshot;

use super::types::{Entry, LogId, Types, Vote, log_id, position, to_entry, to_record};
use crate::log::{Flushed, Log};

/// Bytes of one message that carries entries, but at least one entry.
const MESSAGE_BYTES: usize = 2 << 20;

/// The log of this group.
#[derive(Debug, Clone)]
pub struct LogStorage(pub Log);

/// Asks the log for something and waits until it is on disk.
async fn flushed(ask: impl FnOnce(Flushed) -> io::Result<()>) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    ask(Box::new(move |result| {
        // The asker may have been dropped at shutdown.
        let _ = sender.send(result);
    }))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer ended")))
}

fn indexes(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl LogStorage {
    fn entries(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        self.0.read(start..end, max_bytes)?.iter().map(to_entry).collect()
    }
}

impl RaftLogReader<Types> for LogStorage {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = indexes(&range);
        let log = self.clone();
        // In slices: what a namenode has to apply at once may be more than fits its memory.
        let slices = futures::stream::unfold(
            (log, start, Vec::new().into_iter()),
            move |(log, next, mut slice)| async move {
                let mut entry = slice.next();
                if entry.is_none() && next < end {
                    match log.entries(next, end, MESSAGE_BYTES) {
                        Ok(entries) => slice = entries.into_iter(),
                        Err(error) => return Some((Err(error), (log, end, Vec::new().into_iter()))),
                    }
                    entry = slice.next();
                }
                let entry: Entry = entry?;
                let next = entry.log_id.index() + 1;
                Some((Ok(entry), (log, next, slice)))
            },
        );
        slices.fuse()
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = indexes(&range);
        self.entries(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start, end, MESSAGE_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.0.vote().map(|bytes| postcard::from_bytes(&bytes).map_err(io::Error::other)).transpose()
    }
}

impl RaftLogStorage<Types> for LogStorage {
    type LogReader = LogStorage;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let last_purged_log_id = self.0.purged().map(log_id);
        Ok(LogState { last_purged_log_id, last_log_id: self.0.last().map(log_id) })
    }

    async fn get_log_reader(&mut self) -> LogStorage {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = Bytes::from(postcard::to_allocvec(vote).map_err(io::Error::other)?);
        flushed(|done| self.0.save_vote(bytes, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.0.note_committed(committed.as_ref().map(position));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries.into_iter().map(|entry| to_record(&entry)).collect::<io::Result<Vec<_>>>()?;
        self.0.append(records, Box::new(move |result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        flushed(|done| self.0.truncate(last_log_id.as_ref().map(position), done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        flushed(|done| self.0.purge(position(&log_id), done)).await
    }
}

const _: () = {
    const fn shared<T: OptionalSend + OptionalSync>() {}
    shared::<LogStorage>();
};
