//! Buffering writes and sending them into chunks.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::limits::{MAX_FILE_SIZE, MAX_PAYLOAD};
use cairn_proto::{ErrorCode, Result, fs};
use tokio::time::{Instant, timeout_at};

use super::Inode;
use super::descriptor::Descriptor;
use super::inode::State;
use super::overlay::Job;
use crate::channel::FOR_EVER;
use crate::write::{Append, Lane, Place};

/// Buffered bytes of one file that make it worth sending them.
const ENOUGH: u64 = MAX_PAYLOAD as u64;
/// Sequential bytes that earn a file a lane of its own.
const STREAK: u64 = 4 << 20;
/// How often whoever waits for appends looks whether there is room for them at all.
const LOOK: Duration = Duration::from_millis(200);
/// Uncommitted spans of one file that ask for a commit ...
const MANY_SPANS: usize = 8 << 10;
/// ... and that make its writers wait for one.
const TOO_MANY_SPANS: usize = 64 << 10;

impl Inode {
    pub(crate) async fn write_at(
        self: &Arc<Inode>,
        cred: &fs::Cred,
        told: &Descriptor,
        offset: u64,
        mut data: Bytes,
    ) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= MAX_FILE_SIZE);
        if end.is_none() {
            return Err(ErrorCode::FileTooBig.because(format!("inode {} at {offset}", self.number())));
        }
        self.refuse_over_quota(told)?;
        let mut at = offset;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_PAYLOAD));
            let length = piece.len() as u64;
            self.engine.admit(length).await?;
            if self.take_in(cred, at, piece) {
                self.commit_soon();
                self.wait_for_room().await?;
            }
            at += length;
        }
        Ok(())
    }

    /// Once a commit was refused for a quota, writers hear it before they have written everything for nothing. Each once: the
    /// next commit says whether there is still no room.
    fn refuse_over_quota(&self, told: &Descriptor) -> Result<()> {
        told.refusal(&mut self.state()).map_or(Ok(()), Err)
    }

    /// Buffers a piece and sends what is worth sending; true: a commit is due.
    fn take_in(self: &Arc<Inode>, cred: &fs::Cred, at: u64, piece: Bytes) -> bool {
        self.take_in_locked(self.state(), cred, at, piece)
    }

    /// As [`Inode::take_in`], where the file ends; says where that was.
    pub(super) fn take_in_at_end(self: &Arc<Inode>, cred: &fs::Cred, piece: &Bytes) -> (u64, bool) {
        let state = self.state();
        let at = state.size();
        (at, self.take_in_locked(state, cred, at, piece.clone()))
    }

    fn take_in_locked(
        self: &Arc<Inode>,
        mut state: MutexGuard<'_, State>,
        cred: &fs::Cred,
        at: u64,
        piece: Bytes,
    ) -> bool {
        let length = piece.len() as u64;
        state.streak = if at == state.streak_end { state.streak + length } else { 0 };
        state.streak_end = at + length;
        if state.streak == 0 {
            state.own_lane = None;
        }
        let replaced = state.overlay.write(at, piece);
        let now = self.engine.now_ns();
        state.mtime_ns = Some(now);
        state.written_ns = now;
        if state.own {
            state.attr.mtime_ns = now;
            state.attr.ctime_ns = state.attr.ctime_ns.max(now);
        }
        if state.cred != *cred {
            state.cred = cred.clone();
        }
        let fresh = state.dirty_since.is_none();
        state.dirty_since.get_or_insert_with(Instant::now);
        let enough = state.overlay.buffered() >= ENOUGH;
        let jobs = if enough { self.depart(&mut state) } else { Vec::new() };
        self.recount(&mut state);
        let due = state.overlay.bytes() >= self.engine.config.uncommitted_bytes
            || state.overlay.len() >= MANY_SPANS
            || self.engine.spans() >= self.engine.config.uncommitted_pieces;
        drop(state);
        self.engine.release(replaced);
        self.engine.count_change();
        if fresh {
            self.engine.note_dirty(self);
        }
        self.send(jobs, false);
        due
    }

    /// Sends everything buffered.
    pub(crate) fn push(self: &Arc<Inode>) {
        self.push_out(false);
    }

    fn push_out(self: &Arc<Inode>, to_disk: bool) {
        let jobs = self.depart(&mut self.state());
        self.send(jobs, to_disk);
    }

    fn depart(&self, state: &mut State) -> Vec<(Job, Arc<Lane>)> {
        let jobs = state.overlay.take_off(MAX_PAYLOAD);
        if jobs.is_empty() {
            return Vec::new();
        }
        let replication = state.attr.replication;
        if state.streak >= STREAK && state.own_lane.is_none() {
            state.own_lane = self.engine.lanes.own(replication);
        }
        let lane = match &state.own_lane {
            Some(own) => Arc::clone(own.lane()),
            None => self.engine.lanes.shared(replication),
        };
        state.flying.extend(jobs.iter().map(|job| (job.id, Arc::clone(&lane))));
        jobs.into_iter().map(|job| (job, Arc::clone(&lane))).collect()
    }

    fn send(self: &Arc<Inode>, jobs: Vec<(Job, Arc<Lane>)>, to_disk: bool) {
        // Its writer may have been told that all is well: then it is tried until it is.
        let lasting = self.state().own;
        let limit = if lasting { FOR_EVER } else { self.engine.config.operation_timeout };
        let deadline = Instant::now() + limit;
        for (job, lane) in jobs {
            let inode = Arc::clone(self);
            let Job { id, data, ranges } = job;
            let length = data.len() as u64;
            let landed = move |places: Result<Vec<Place>>| {
                inode.land(id, &ranges, places);
                inode.engine.release(length);
                inode.landed.notify_waiters();
            };
            lane.append(Append::new(data, deadline, landed).synced(to_disk).lasting(lasting));
        }
    }

    fn land(&self, job: u64, ranges: &[(u64, u64)], places: Result<Vec<Place>>) {
        let mut state = self.state();
        state.flying.remove(&job);
        match places {
            Ok(places) => {
                state.note_unsynced(&places);
                state.overlay.placed(job, ranges, &places);
            }
            Err(error) => {
                state.overlay.lost(job, ranges);
                state.settled();
                state.fail(error);
            }
        }
        self.recount(&mut state);
    }

    /// Waits until every append that is under way now has landed.
    pub(super) async fn settle(self: &Arc<Inode>) -> Result<()> {
        self.settle_for(false).await
    }

    /// As [`Inode::settle`]; `to_disk`: it will be waited for, too.
    pub(super) async fn settle_for(self: &Arc<Inode>, to_disk: bool) -> Result<()> {
        self.push_out(to_disk);
        let until = self.state().overlay.next_job();
        let began = Instant::now();
        // An append fails by itself after the operation's time; the wait need only outlast that.
        let deadline = began + self.engine.config.operation_timeout * 2;
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if self.state().flying.range(..until).next().is_none() {
                return Ok(());
            }
            let _ = timeout_at(deadline.min(Instant::now() + LOOK), landed).await;
            // What is lasting waits for room; whoever waits for it hears that there is none. Others' may lack it while what
            // is waited for here is on its way into a chunk.
            if let Some(full) = self.engine.lanes.full_since(began)
                && self.lacks_room(until)
            {
                return Err(full);
            }
            if Instant::now() >= deadline {
                return Err(ErrorCode::Timeout.because(format!("writing inode {}", self.number())));
            }
        }
    }

    /// Whether an append before `until` went to a lane that has no chunk for what it was given last.
    fn lacks_room(&self, until: u64) -> bool {
        let lanes: Vec<Arc<Lane>> =
            self.state().flying.range(..until).map(|(_, lane)| Arc::clone(lane)).collect();
        lanes.iter().any(|lane| lane.lacks_room())
    }

    /// Starts a commit in the background, unless one is under way.
    pub(crate) fn commit_soon(self: &Arc<Inode>) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let inode = Arc::clone(self);
        tokio::spawn(async move {
            match inode.commit_all().await {
                // The next flush says so.
                Err(error) if error.code.is_final() => {}
                Err(error) => tracing::warn!(inode = inode.number(), %error, "commit put off"),
                Ok(()) => {}
            }
            inode.busy.store(false, Ordering::Release);
            inode.landed.notify_waiters();
        });
    }

    async fn wait_for_room(self: &Arc<Inode>) -> Result<()> {
        if self.engine.spans() / 2 >= self.engine.config.uncommitted_pieces {
            // Those of files that nobody writes to any more would otherwise stay until they are old.
            self.engine.commit_everything_soon();
            self.commit_all_owned().await?;
        }
        while self.state().overlay.len() >= TOO_MANY_SPANS {
            self.commit_all_owned().await?;
        }
        Ok(())
    }
}

impl State {
    pub(super) fn note_unsynced(&mut self, places: &[Place]) {
        for place in places {
            let end = place.offset + place.length;
            let known = self.unsynced.entry(place.chunk).or_default();
            *known = end.max(*known);
        }
    }
}
