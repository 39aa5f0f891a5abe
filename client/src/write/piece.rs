//! An append on its way: bytes, and who wants to know where they came to lie.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cairn_host::request::RequestId;
use cairn_proto::{Error, Result};
use tokio::time::Instant;

use super::Place;

/// Called once, with the places in order or with why there are none.
type Done = Box<dyn FnOnce(Result<Vec<Place>>) + Send>;

/// A run of at most a frame's payload that is to be appended somewhere.
pub(crate) struct Append {
    request: RequestId,
    data: Bytes,
    sync: bool,
    lasting: bool,
    deadline: Instant,
    done: Done,
}

/// A part of an append that lies in one chunk; most appends have one.
pub(super) struct Piece {
    pub(super) data: Bytes,
    /// Somebody will wait until it is on disk.
    pub(super) sync: bool,
    /// Where it lies in the chunk of the chain that holds it.
    pub(super) offset: u64,
    /// Where it lies in its append.
    at: usize,
    job: Arc<Job>,
}

struct Job {
    /// For whose sake.
    request: RequestId,
    deadline: Instant,
    lasting: bool,
    progress: Mutex<Progress>,
}

struct Progress {
    /// With where each begins in the append: chains finish in any order.
    places: Vec<(usize, Place)>,
    missing: usize,
    done: Option<Done>,
}

impl Append {
    /// An append for the sake of the current request, given up after `deadline`.
    pub(crate) fn new(
        data: Bytes,
        deadline: Instant,
        done: impl FnOnce(Result<Vec<Place>>) + Send + 'static,
    ) -> Append {
        Append {
            request: RequestId::current(),
            data,
            sync: false,
            lasting: false,
            deadline,
            done: Box::new(done),
        }
    }

    /// Somebody will wait until it is on disk, so it goes there at once.
    pub(crate) fn synced(self, sync: bool) -> Append {
        Append { sync, ..self }
    }

    /// Its writer was told that all is well: it waits until there is room for it.
    pub(crate) fn lasting(self, lasting: bool) -> Append {
        Append { lasting, ..self }
    }

    pub(super) fn into_piece(self) -> Piece {
        let progress =
            Progress { places: Vec::with_capacity(1), missing: self.data.len(), done: Some(self.done) };
        let job = Job {
            request: self.request,
            deadline: self.deadline,
            lasting: self.lasting,
            progress: Mutex::new(progress),
        };
        Piece { data: self.data, sync: self.sync, offset: 0, at: 0, job: Arc::new(job) }
    }
}

impl Piece {
    pub(super) fn length(&self) -> u64 {
        self.data.len() as u64
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.length()
    }

    pub(super) fn request(&self) -> RequestId {
        self.job.request
    }

    pub(super) fn deadline(&self) -> Instant {
        self.job.deadline
    }

    /// Whether it is to wait where there is no room.
    pub(super) fn is_lasting(&self) -> bool {
        self.job.lasting
    }

    /// Cuts the piece after `length` bytes; the rest goes elsewhere.
    pub(super) fn split(mut self, length: usize) -> (Piece, Piece) {
        let rest = Piece {
            data: self.data.split_off(length),
            sync: self.sync,
            offset: 0,
            at: self.at + length,
            job: Arc::clone(&self.job),
        };
        (self, rest)
    }

    /// Every replica of `chunk` holds the piece.
    pub(super) fn placed(self, chunk: u64) {
        let place = Place { chunk, offset: self.offset, length: self.length() };
        let mut progress = self.job.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.missing = progress.missing.saturating_sub(self.data.len());
        progress.places.push((self.at, place));
        if progress.missing > 0 {
            return;
        }
        let Some(done) = progress.done.take() else { return };
        let mut places = std::mem::take(&mut progress.places);
        drop(progress);
        places.sort_by_key(|&(at, _)| at);
        done(Ok(places.into_iter().map(|(_, place)| place).collect()));
    }

    /// The append is given up as a whole.
    pub(super) fn failed(self, error: Error) {
        let done = self.job.progress.lock().unwrap_or_else(PoisonError::into_inner).done.take();
        if let Some(done) = done {
            done(Err(error));
        }
    }
}

impl Drop for Job {
    /// Whoever waits hears about it also when a lane goes away with the append in its hands.
    fn drop(&mut self) {
        let progress = self.progress.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = progress.done.take() {
            done(Err(cairn_proto::ErrorCode::Unavailable.because("the client is being closed")));
        }
    }
}
