//! One link of a write chain.
//!
//! The connection's thread reads an append, verifies it, forwards it, and then writes it to disk while the
//! links below do the same. A second thread, there only if there is a next link, reads the acknowledgements
//! from below. Whichever of the two finds that both its own disk and the rest of the chain have got further
//! tells the link above.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

use cairn_host::request::{self as requests, RequestId};
use cairn_proto::data::{
    Ack, Append, ChainLink, ChainOpened, OpenChain, Request, Response, Sync, request, response,
};
use cairn_proto::{Error, ErrorCode, Result};

use crate::link::{broken_link, open_links};
use crate::peer::{Peer, Refusal, request_head};
use crate::server::Shared;
use crate::settings::Settings;
use crate::socket::{self, FrameReader, Patience, Socket, Waiting};
use crate::store::{Admission, Appender, locked};

/// Frames up to this size are gathered and forwarded together while more of them wait to be read.
const GATHERED_FRAME: usize = 16 << 10;
/// How many bytes are gathered at most.
const GATHERED: usize = 256 << 10;
/// Bytes after which an acknowledgement is due even when more appends wait.
const ACK_EVERY: u64 = 256 << 10;
/// How long a broken link below is given to say what broke it.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// How long the end of a chain may take to be read by the link above.
const FAREWELL: Duration = Duration::from_secs(1);

/// How far something has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    length: u64,
    synced: u64,
}

impl Mark {
    fn min(self, other: Mark) -> Mark {
        Mark { length: self.length.min(other.length), synced: self.synced.min(other.synced) }
    }
}

/// What the two threads of a link share.
#[derive(Debug)]
struct Progress {
    /// On this datanode.
    local: Mark,
    /// On all links below; nothing holds the last link back.
    below: Option<Mark>,
    /// Told to the link above.
    acked: Mark,
    /// Sent to the link below: bytes, and bytes that a sync was asked for.
    forwarded: Mark,
    /// Since when something sent below is unanswered.
    waiting_since: Option<Instant>,
    /// Nothing more is said to the link above.
    over: bool,
    /// Since when the link below is expected to end.
    closing: Option<Instant>,
    /// Forwarding failed: the link below is at fault, and may yet say why.
    broken: bool,
}

impl Progress {
    /// Whether the link below has not acknowledged all that it was sent.
    fn is_owed(&self) -> bool {
        self.below.is_some_and(|below| below.min(self.forwarded) != self.forwarded)
    }
}

/// The link below.
struct Next {
    link: ChainLink,
    /// Links behind it.
    after: usize,
    stream: Arc<Socket>,
    gathered: Vec<u8>,
}

struct Chain<'a> {
    shared: &'a Shared,
    upstream: Arc<Socket>,
    progress: Mutex<Progress>,
}

/// Serves a chain on a connection until the link above closes it or anything fails. What fails has been
/// told to the link above when this returns.
pub fn serve(reader: &mut FrameReader, shared: &Arc<Shared>, open: OpenChain) -> Result<()> {
    let upstream = reader.stream().clone();
    let (appender, peer) = match open_links(&upstream, shared, &open) {
        Ok(opened) => opened,
        Err(refusal) => {
            let _ = socket::write_message(
                &upstream,
                &shared.failure(refusal.error.clone(), refusal.node),
                FAREWELL,
            );
            socket::close_gently(&upstream, FAREWELL);
            tracing::info!(chunk = open.chunk, error = %refusal.error, node = refusal.node, "chain not opened");
            return Ok(());
        }
    };
    let opened = Response { kind: Some(response::Kind::Opened(ChainOpened {})) };
    socket::write_message(&upstream, &opened, shared.settings.frame)?;
    let start = Mark { length: appender.length(), synced: 0 };
    let progress = Progress {
        local: start,
        below: peer.as_ref().map(|_| start),
        acked: start,
        forwarded: start,
        waiting_since: None,
        over: false,
        closing: None,
        broken: false,
    };
    let chain = Chain { shared, upstream, progress: Mutex::new(progress) };
    let ended = std::thread::scope(|scope| chain.run(scope, reader, appender, peer, &open));
    if let Err(error) = ended {
        tracing::info!(chunk = open.chunk, %error, "chain ended");
        socket::close_gently(&chain.upstream, FAREWELL);
    }
    Ok(())
}

impl<'a> Chain<'a> {
    fn run<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        reader: &mut FrameReader,
        mut appender: Appender,
        peer: Option<Peer>,
        open: &'env OpenChain,
    ) -> Result<()>
    where
        'a: 'env,
    {
        let mut next = None;
        let mut listener = None;
        if let (Some(peer), Some((link, rest))) = (peer, open.links.split_first()) {
            let stream = peer.stream().clone();
            let (stream_below, after) = (stream.clone(), rest.len());
            next = Some(Next { link: link.clone(), after, stream, gathered: Vec::new() });
            let spawned = Builder::new()
                .name(format!("acks {}", open.chunk))
                .stack_size(256 << 10)
                .spawn_scoped(scope, move || self.listen(peer, link, after, &stream_below));
            match spawned {
                Ok(handle) => listener = Some(handle),
                Err(error) => {
                    return self.fail(ErrorCode::Unavailable.because(error.to_string()), self.shared.node());
                }
            }
        }
        let ended = self.appends(reader, &mut appender, next.as_mut());
        // The right to append goes before the goodbyes: whoever takes over need not wait for them.
        drop(appender);
        let failed = match ended {
            Ok(()) => Ok(()),
            Err(error) => self.fail(error, self.shared.node()),
        };
        if let Some(next) = &next {
            let how = if failed.is_ok() { Shutdown::Write } else { Shutdown::Both };
            self.progress().closing.get_or_insert_with(Instant::now);
            let _ = next.stream.shutdown(how);
        }
        match listener.map(|listener| listener.join()) {
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => Err(ErrorCode::Io.because("the thread of a chain panicked")),
            Some(Ok(Ok(()))) | None => failed,
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        locked(&self.progress)
    }

    /// Reads appends and syncs until the link above closes.
    fn appends(
        &self,
        reader: &mut FrameReader,
        appender: &mut Appender,
        mut next: Option<&mut Next>,
    ) -> Result<()> {
        let settings = &self.shared.settings;
        let patience = Patience { idle: settings.idle_chain, frame: settings.frame };
        let mut payload = Vec::new();
        let mut unacked = 0;
        loop {
            let more = reader.has_frame();
            if let Some(next) = next.as_deref_mut()
                && (!more || next.gathered.len() >= GATHERED)
                && !self.flush(next)
            {
                return Ok(());
            }
            if !more || unacked >= ACK_EVERY {
                unacked = 0;
                self.acknowledge(&mut self.progress())?;
            }
            let head = reader.head::<Request>(&mut |waiting| {
                if waiting.started || waiting.since.elapsed() < Duration::from_secs(10) {
                    return patience.check(waiting);
                }
                payload = Vec::new();
                patience.check(waiting)
            });
            let head = match head {
                Ok(head) => head,
                // The link above is gone without a goodbye, or this chain was cut from inside: either way
                // there is nobody left to tell.
                Err(error) if error.code == ErrorCode::Unavailable => return Ok(()),
                Err(error) => return Err(error),
            };
            match head {
                None => return Ok(()),
                Some((Request { kind: Some(request::Kind::Append(append)), request }, length)) => {
                    let request = RequestId(request);
                    reader.payload(length, &mut payload, &mut |waiting: Waiting| patience.check(waiting))?;
                    let below = next.as_deref_mut();
                    let counters = &self.shared.counters;
                    let since = Instant::now();
                    let appended = self.append(appender, below, (request, append), &payload[..length]);
                    requests::done(request, "append", since.elapsed(), appended.is_err());
                    if !appended.inspect_err(|_| counters.append_refused())? {
                        return Ok(());
                    }
                    counters.appended(length, since.elapsed());
                    unacked += length as u64;
                }
                Some((Request { kind: Some(request::Kind::Sync(_)), request }, 0)) => {
                    let (request, since) = (RequestId(request), Instant::now());
                    let synced = self.sync(appender, next.as_deref_mut(), request);
                    requests::done(request, "sync", since.elapsed(), synced.is_err());
                    if !synced? {
                        return Ok(());
                    }
                }
                Some(_) => return Err(ErrorCode::Malformed.because("a chain carries Append and Sync only")),
            }
        }
    }

    /// One append; `false` when the link below broke, which the other thread reports.
    fn append(
        &self,
        appender: &mut Appender,
        next: Option<&mut Next>,
        (request, append): (RequestId, Append),
        data: &[u8],
    ) -> Result<bool> {
        self.shared.store.takes_appends()?;
        let admission = appender.admit(append.offset, &append.crcs, data)?;
        let crcs = append.crcs.clone();
        if let Some(next) = next
            && !self.forward(next, (request, append), data)?
        {
            return Ok(false);
        }
        if let Admission::New { tail } = admission {
            appender.write(tail, &crcs, data)?;
        }
        self.progress().local.length = appender.length();
        Ok(true)
    }

    fn sync(&self, appender: &mut Appender, next: Option<&mut Next>, request: RequestId) -> Result<bool> {
        let length = appender.length();
        if let Some(next) = next {
            next.gathered.extend_from_slice(&request_head(request::Kind::Sync(Sync {}), request, 0)?);
            self.sending(Mark { length, synced: length });
            if !self.flush(next) {
                return Ok(false);
            }
        }
        let since = Instant::now();
        let synced = appender.sync()?;
        self.shared.counters.syncs.observe(since.elapsed());
        let mut progress = self.progress();
        progress.local = Mark { length: appender.length(), synced };
        self.acknowledge(&mut progress)?;
        Ok(true)
    }

    fn forward(&self, next: &mut Next, (request, append): (RequestId, Append), data: &[u8]) -> Result<bool> {
        let end = append.offset + data.len() as u64;
        let head = request_head(request::Kind::Append(append), request, data.len())?;
        self.sending(Mark { length: end, synced: 0 });
        if head.len() + data.len() <= GATHERED_FRAME {
            next.gathered.extend_from_slice(&head);
            next.gathered.extend_from_slice(data);
            return Ok(true);
        }
        if !self.flush(next) {
            return Ok(false);
        }
        Ok(self.written(next, &head, data))
    }

    /// Notes what the link below is about to owe.
    fn sending(&self, mark: Mark) {
        let mut progress = self.progress();
        progress.forwarded.length = progress.forwarded.length.max(mark.length);
        progress.forwarded.synced = progress.forwarded.synced.max(mark.synced);
        // What is acknowledged already (a sync of nothing new) is not acknowledged again.
        if progress.is_owed() {
            progress.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    fn flush(&self, next: &mut Next) -> bool {
        if next.gathered.is_empty() {
            return true;
        }
        let gathered = std::mem::take(&mut next.gathered);
        let written = self.written(next, &gathered, &[]);
        next.gathered = gathered;
        next.gathered.clear();
        written
    }

    /// Writes to the link below. When that fails, the thread that listens to it may still hear why.
    fn written(&self, next: &Next, head: &[u8], data: &[u8]) -> bool {
        let limit = self.shared.settings.stall_before(next.after, false);
        match socket::write_frame(&next.stream, head, data, limit) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(node = next.link.node, %error, "forwarding failed");
                let mut progress = self.progress();
                progress.broken = true;
                progress.closing.get_or_insert_with(Instant::now);
                false
            }
        }
    }

    /// Tells the link above how far the whole chain has got, if that is news.
    fn acknowledge(&self, progress: &mut Progress) -> Result<()> {
        let reached = progress.below.map_or(progress.local, |below| below.min(progress.local));
        if reached == progress.acked || progress.over {
            return Ok(());
        }
        let ack = Ack { length: reached.length, synced: reached.synced };
        let response = Response { kind: Some(response::Kind::Ack(ack)) };
        if let Err(error) = socket::write_message(&self.upstream, &response, self.shared.settings.stall) {
            progress.over = true;
            return Err(error);
        }
        progress.acked = reached;
        Ok(())
    }

    /// Ends the chain with a failure that names the link at fault.
    fn fail(&self, error: Error, node: u32) -> Result<()> {
        let mut progress = self.progress();
        if !std::mem::replace(&mut progress.over, true) {
            let failure = self.shared.failure(error.clone(), node);
            let _ = socket::write_message(&self.upstream, &failure, FAREWELL);
        }
        Err(error)
    }

    /// Reads acknowledgements from below until that link ends, and wakes the appending thread if it ends badly.
    fn listen(&self, mut peer: Peer, link: &ChainLink, after: usize, stream: &Socket) -> Result<()> {
        let heard = self.acks(&mut peer, after);
        let _ = stream.shutdown(Shutdown::Both);
        let Err(refusal) = heard else { return Ok(()) };
        let refusal = match refusal.node {
            0 => broken_link(link, &refusal.error),
            _ => refusal,
        };
        let told = self.fail(refusal.error, refusal.node);
        let _ = self.upstream.shutdown(Shutdown::Read);
        told
    }

    fn acks(&self, peer: &mut Peer, after: usize) -> Result<(), Refusal> {
        let settings = self.shared.settings.clone();
        let mut payload = Vec::new();
        loop {
            let reply = peer.receive(&mut payload, &mut |waiting| self.overdue(&settings, after, waiting));
            let (ack, length) = match reply {
                Ok(Some((response::Kind::Ack(ack), length))) => (ack, length),
                Ok(Some(_)) => return Err(ErrorCode::Malformed.because("not an acknowledgement").into()),
                // The link below closes because it was told to.
                Ok(None) if self.is_closing() => return Ok(()),
                Ok(None) => return Err(ErrorCode::Unavailable.because("closed its connection").into()),
                Err(refusal) => return Err(refusal),
            };
            if length > 0 || !self.hear(ack, peer.has_reply()) {
                return Err(ErrorCode::Malformed.because("acknowledged what was never sent").into());
            }
        }
    }

    fn is_closing(&self) -> bool {
        let progress = self.progress();
        progress.closing.is_some() && !progress.broken
    }

    /// Takes in how far the links below have got; `false` if they cannot have got that far.
    fn hear(&self, ack: Ack, more: bool) -> bool {
        let mut progress = self.progress();
        let before = progress.below.unwrap_or_default();
        if ack.length > progress.forwarded.length || ack.synced > ack.length {
            return false;
        }
        let below = Mark { length: before.length.max(ack.length), synced: before.synced.max(ack.synced) };
        progress.below = Some(below);
        if !progress.is_owed() {
            progress.waiting_since = None;
        } else if below != before {
            progress.waiting_since = Some(Instant::now());
        }
        if !more && self.acknowledge(&mut progress).is_err() {
            // Nobody above listens any more; the appending thread finds its connection closed.
            let _ = self.upstream.shutdown(Shutdown::Both);
        }
        true
    }

    /// Gives the link below up when it owes an acknowledgement, or its end, for too long.
    fn overdue(&self, settings: &Settings, after: usize, waiting: Waiting) -> Result<()> {
        let progress = self.progress();
        let syncing = progress.forwarded.synced > progress.below.unwrap_or_default().synced;
        let limit = settings.stall_before(after, syncing);
        let closing_limit = if progress.broken { LAST_WORDS } else { limit };
        let late = progress.waiting_since.is_some_and(|since| since.elapsed() > limit)
            || progress.closing.is_some_and(|since| since.elapsed() > closing_limit)
            || (waiting.started && waiting.since.elapsed() > settings.frame);
        if late {
            return Err(
                ErrorCode::Timeout.because(format!("no acknowledgement for {} ms", limit.as_millis()))
            );
        }
        Ok(())
    }
}
