//! The stream of deeds: in order, each once, many in one message.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cairn_proto::limits::MAX_DEEDS;
use cairn_proto::{Error, ErrorCode, Result, fs};
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{Delegations, State};
use crate::engine::Engine;
use crate::heard::Heard;
use crate::namespace::root;
use crate::session::Session;

/// How long a deed that nobody waits for waits for others.
const DELAY: Duration = Duration::from_millis(50);
/// Deeds that are sent without waiting for more.
const MANY: usize = 1024;
/// Encoded bytes of one message, at most, unless one deed alone is larger.
const BYTES: usize = 1 << 20;
/// Deeds that may wait; more have their makers wait.
const MOST: usize = 8192;
/// How long deeds may stay undone before their makers wait.
const STALLED: Duration = Duration::from_secs(2);
/// How often the stream looks whether its client is still there.
const LOOK: Duration = Duration::from_secs(1);

/// A deed that waits to be sent, or was and is not done.
pub(super) struct Queued {
    deed: fs::Deed,
    bytes: usize,
    reply: Option<oneshot::Sender<Result<fs::outcome::Result>>>,
}

impl State {
    /// Whether the leader does not take deeds in, so that more of them should not be promised.
    pub(super) fn is_stalled(&self) -> bool {
        self.counted - self.settled >= MOST as u64
            || self.oldest.is_some_and(|oldest| oldest.elapsed() > STALLED)
    }

    /// Whether deeds are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.counted > self.settled
    }

    /// Whether the session may be over without this client knowing.
    pub(super) fn is_fenced(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.fenced(Instant::now()))
    }

    /// Adds a deed; `inode`: what it makes.
    pub(super) fn push(&mut self, time_ns: i64, inode: u64, op: fs::mutation::Op) {
        self.queue_up(time_ns, inode, op, None);
    }

    fn queue_up(
        &mut self,
        time_ns: i64,
        inode: u64,
        op: fs::mutation::Op,
        reply: Option<oneshot::Sender<Result<fs::outcome::Result>>>,
    ) {
        // It may have ended since the caller looked. Nobody would ever send the deed, and everybody would wait for it;
        // whoever waits for the reply hears that there will be none.
        if self.session.is_none() {
            return;
        }
        let deed = fs::Deed { time_ns, inode, mutation: Some(fs::Mutation { op: Some(op) }) };
        let bytes = deed.encoded_len() + 8;
        if inode != 0 {
            self.unborn.insert(inode);
        }
        self.counted += 1;
        if reply.is_some() {
            self.urgent = self.counted;
        }
        self.oldest.get_or_insert_with(Instant::now);
        self.queue.push_back(Queued { deed, bytes, reply });
    }

    fn is_due(&self) -> Option<Duration> {
        if self.queue.is_empty() {
            return None;
        }
        let waited = self.oldest.map_or(DELAY, |oldest| oldest.elapsed());
        let due = self.urgent > self.settled || self.queue.len() >= MANY;
        Some(if due { Duration::ZERO } else { DELAY.saturating_sub(waited) })
    }

    pub(super) fn take(&mut self) -> Vec<Queued> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some(next) = self.queue.front() {
            bytes += next.bytes;
            if batch.len() >= MAX_DEEDS || (bytes > BYTES && !batch.is_empty()) {
                break;
            }
            batch.extend(self.queue.pop_front());
        }
        batch
    }

    /// What became of a batch. False: something that was promised was refused.
    fn settle(&mut self, batch: Vec<Queued>, outcomes: Vec<fs::Outcome>) -> bool {
        let mut all_done = true;
        for (queued, outcome) in batch.into_iter().zip(outcomes) {
            self.settled += 1;
            self.unborn.remove(&queued.deed.inode);
            let result = match outcome.result {
                Some(fs::outcome::Result::Error(error)) => Err(Error::from(error)),
                Some(result) => Ok(result),
                None => Err(ErrorCode::Malformed.because("a deed without an outcome")),
            };
            match (queued.reply, result) {
                // Whoever waited may have stopped.
                (Some(reply), result) => drop(reply.send(result)),
                (None, Ok(_)) => {}
                (None, Err(error)) => {
                    tracing::error!(%error, "a change that was acknowledged could not be made");
                    self.losses.add(error);
                    all_done = false;
                }
            }
        }
        self.oldest = self.is_busy().then(Instant::now);
        all_done
    }
}

impl Delegations {
    /// Adds a deed at once and waits for its outcome.
    pub(crate) async fn perform(&self, time_ns: i64, op: fs::mutation::Op) -> Result<fs::outcome::Result> {
        let (reply, outcome) = oneshot::channel();
        self.lock().queue_up(time_ns, 0, op, Some(reply));
        self.work.notify_one();
        match timeout(self.patience, outcome).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ErrorCode::SessionExpired.because("with what was delegated to it")),
            Err(_) => Err(ErrorCode::Timeout.because("changes in this client's own directories")),
        }
    }

    /// Waits until all that was done here is done for good. If something could not be, since `heard` was told the last time,
    /// it hears that.
    pub(crate) async fn flush(&self, heard: &Heard) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        self.until_told().await?;
        heard.hear(&mut self.lock().losses).map_or(Ok(()), Err)
    }

    /// As [`Delegations::flush`], for the client as a whole.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.flush(&self.heard).await
    }

    /// As [`Delegations::flush`], for somebody who must come after it all and does not ask whether it could be done.
    pub(super) async fn until_told(&self) -> Result<()> {
        let until = self.hurry();
        self.until_settled(until).await
    }

    async fn until_settled(&self, until: u64) -> Result<()> {
        let unsettled = |state: &State| state.settled < until;
        self.wait_while(&self.done, "changes in this client's own directories", unsettled).await
    }

    /// Waits until the inode is known to the namenode, if it will be.
    pub(crate) async fn until_born(&self, inode: u64) -> Result<()> {
        if !self.enabled || !self.lock().unborn.contains(&inode) {
            return Ok(());
        }
        self.hurry();
        self.wait_while(&self.done, "a new file", |state| state.unborn.contains(&inode)).await
    }

    /// Has everything there is sent at once; up to which deed that is.
    fn hurry(&self) -> u64 {
        let mut state = self.lock();
        state.urgent = state.counted;
        self.work.notify_one();
        state.counted
    }

    /// Waits until one more deed may be promised.
    pub(super) async fn admit(&self) -> Result<()> {
        let wait = |state: &State| state.is_stalled() || state.is_fenced();
        self.wait_while(&self.done, "the namenodes to take in earlier changes", wait).await
    }

    /// Whether deeds are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    /// Takes in what became of a batch. True: everything is to be handed back.
    pub(super) fn conclude(
        &self,
        session: &Session,
        batch: Vec<Queued>,
        outcome: Result<fs::outcome::Result>,
    ) -> bool {
        let mut state = self.lock();
        if state.session.as_ref().is_none_or(|own| own.id() != session.id()) {
            // Also if it was done: the batch was counted as lost with its session.
            return false;
        }
        let done = match outcome {
            Ok(fs::outcome::Result::Series(done)) if done.outcomes.len() == batch.len() => done,
            Err(error) if session.expired() => {
                tracing::debug!(%error, "the session ended before its deeds were done");
                return false;
            }
            refused => {
                // Refused as a whole, so nothing of it was done; or answered by a newer or broken namenode.
                let odd = || ErrorCode::Malformed.because("the outcome of a series");
                let error = refused.err().unwrap_or_else(odd);
                let refused = fs::Outcome { result: Some(fs::outcome::Result::Error(error.into())) };
                fs::SeriesOutcome { outcomes: vec![refused; batch.len()], hand_back: true }
            }
        };
        let all_done = state.settle(batch, done.outcomes);
        drop(state);
        self.done.notify_waiters();
        done.hand_back || !all_done
    }

    async fn batch(&self) -> Option<(Arc<Session>, Vec<Queued>)> {
        let due = {
            let state = self.lock();
            state.is_due()
        };
        match due {
            Some(Duration::ZERO) => {}
            wait => {
                // Told of something new, or it is time.
                let _ = timeout(wait.unwrap_or(LOOK), self.work.notified()).await;
                if self.lock().is_due() != Some(Duration::ZERO) {
                    return None;
                }
            }
        }
        let mut state = self.lock();
        let session = state.session.clone()?;
        Some((session, state.take()))
    }
}

/// Sends what is queued for as long as the client is there.
pub(crate) async fn run(engine: Weak<Engine>) {
    loop {
        let Some(delegations) = engine.upgrade().map(|engine| Arc::clone(&engine.delegations)) else {
            return;
        };
        let batch = delegations.batch().await;
        let Some(engine) = engine.upgrade() else { return };
        engine.comfort();
        let Some((session, batch)) = batch else { continue };
        if batch.is_empty() {
            continue;
        }
        let deeds = batch.iter().map(|queued| queued.deed.clone()).collect();
        let op = fs::mutation::Op::Series(fs::Series { deeds });
        // For as long as the session lives: it is done once, and in its place, or never.
        let outcome = engine.channel.mutate_lasting(&session, &root(), op).await;
        if delegations.conclude(&session, batch, outcome) {
            engine.hand_back_all();
        }
    }
}
