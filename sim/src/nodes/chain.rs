//! One link of a write chain over simulated connections: as the shipped one verifies, forwards, writes, and
//! acknowledges what its own disk and all links below have reached.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_datanode::recognize;
use cairn_datanode::store::{Admission, Appender, Upstream};
use cairn_proto::data::{Ack, Append, ChainLink, ChainOpened, OpenChain, Request, Sync, request, response};
use cairn_proto::{Error, ErrorCode, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::datanode::Shared;
use super::frames::{self, Reader, Writer};

/// Without an acknowledgement while bytes are outstanding.
const STALL: Duration = Duration::from_millis(1200);
/// To connect to the next link and have it open.
const CONNECT: Duration = Duration::from_secs(1);
/// Frames between a connection and the link.
const AHEAD: usize = 16;

/// A connection of the simulation: nobody takes a chunk over while it is there.
#[derive(Debug)]
pub struct Line;

impl Upstream for Line {
    fn has_hung_up(&self) -> bool {
        false
    }

    fn cut(&self) {}
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    length: u64,
    synced: u64,
}

enum Heard {
    Above(Result<Option<(Request, Bytes)>>),
    Below(Result<(response::Kind, Bytes), (Error, u32)>),
}

struct Next {
    link: ChainLink,
    writer: Writer,
    reached: Mark,
    sent: Mark,
    since: Option<Instant>,
}

impl Next {
    fn is_owed(&self) -> bool {
        self.reached.length < self.sent.length || self.reached.synced < self.sent.synced
    }

    fn sending(&mut self, mark: Mark) {
        self.sent.length = self.sent.length.max(mark.length);
        self.sent.synced = self.sent.synced.max(mark.synced);
        if self.is_owed() {
            self.since.get_or_insert_with(Instant::now);
        }
    }
}

fn broken_link(link: &ChainLink, error: &Error) -> (Error, u32) {
    (ErrorCode::ChainBroken.because(format!("datanode {}: {error}", link.node)), link.node)
}

/// Serves a chain until the link above closes it or anything fails.
pub async fn serve(
    shared: &Arc<Shared>,
    mut reader: Reader,
    mut writer: Writer,
    open: OpenChain,
) -> Result<()> {
    let line = Arc::new(Line);
    let (appender, below) = match open_links(shared, &line, &open).await {
        Ok(opened) => opened,
        Err((error, node)) => {
            crate::event!("chain of chunk {} not opened: {error}", open.chunk);
            return writer.refuse(&error, node).await;
        }
    };
    writer.answer(response::Kind::Opened(ChainOpened {}), &[]).await?;
    let (heard, mut all) = mpsc::channel(AHEAD);
    let mut listening = JoinSet::new();
    let above = heard.clone();
    listening.spawn(async move {
        loop {
            let frame = reader.next::<Request>().await;
            let last = !matches!(frame, Ok(Some(_)));
            if above.send(Heard::Above(frame)).await.is_err() || last {
                return;
            }
        }
    });
    let start = Mark { length: appender.length(), synced: 0 };
    let next = below.map(|(link, mut reader, writer)| {
        listening.spawn(async move {
            loop {
                let frame = reader.reply().await;
                let last = frame.is_err();
                if heard.send(Heard::Below(frame)).await.is_err() || last {
                    return;
                }
            }
        });
        Next { link, writer, reached: start, sent: start, since: None }
    });
    let mut link = Link { shared, appender, local: start, acked: start, next, writer };
    let ended = link.run(&mut all).await;
    if let Err((error, node)) = &ended {
        crate::event!("chain of chunk {} ended: {error}", open.chunk);
        // Whoever is gone need not be told.
        let _ = link.writer.refuse(error, *node).await;
    }
    Ok(())
}

type Below = (ChainLink, Reader, Writer);

async fn open_links(
    shared: &Shared,
    line: &Arc<Line>,
    open: &OpenChain,
) -> Result<(Appender, Option<Below>), (Error, u32)> {
    recognize(shared.node(), open.node).map_err(|error| (error, 0))?;
    let mut below = None;
    if let Some((link, rest)) = open.links.split_first() {
        let cluster_id = shared.store.cluster_id().unwrap_or_default();
        let dialed = frames::dial(&*shared.network, &link.address, &cluster_id, link.node, CONNECT).await;
        let (reader, mut writer) = dialed.map_err(|error| broken_link(link, &error))?;
        let ask = OpenChain { node: link.node, links: rest.to_vec(), ..open.clone() };
        writer.ask(request::Kind::Open(ask), &[]).await.map_err(|error| broken_link(link, &error))?;
        below = Some((link.clone(), reader, writer));
    }
    let own = shared.store.open_appender(open.chunk, open.length, line);
    let appender = own.map_err(|error| (error, shared.node()))?;
    if let Some((link, reader, _)) = &mut below {
        match timeout(CONNECT * (open.links.len() as u32 + 1), reader.reply()).await {
            Ok(Ok((response::Kind::Opened(_), _))) => {}
            Ok(Err((error, node))) if node != 0 => return Err((error, node)),
            Ok(Err((error, _))) => return Err(broken_link(link, &error)),
            _ => return Err(broken_link(link, &ErrorCode::Timeout.because("it does not open"))),
        }
    }
    Ok((appender, below))
}

struct Link<'a> {
    shared: &'a Shared,
    appender: Appender,
    local: Mark,
    acked: Mark,
    next: Option<Next>,
    writer: Writer,
}

impl Link<'_> {
    async fn run(&mut self, all: &mut mpsc::Receiver<Heard>) -> Result<(), (Error, u32)> {
        let own = self.shared.node();
        loop {
            let stalled = self.next.as_ref().and_then(|next| next.since).map(|since| since + STALL);
            let heard = match stalled {
                Some(at) => tokio::time::timeout_at(at, all.recv()).await.ok(),
                None => Some(all.recv().await),
            };
            match heard {
                None => {
                    let silent = ErrorCode::Timeout.because("no acknowledgement");
                    let link = self.next.as_ref().map(|next| next.link.clone()).unwrap_or_default();
                    return Err(broken_link(&link, &silent));
                }
                Some(None | Some(Heard::Above(Ok(None) | Err(_)))) => {
                    if let Some(next) = &mut self.next {
                        next.writer.close().await;
                    }
                    return Ok(());
                }
                Some(Some(Heard::Above(Ok(Some((request, payload)))))) => {
                    self.take(request, &payload).await.map_err(|error| (error, own))?;
                }
                Some(Some(Heard::Below(reply))) => self.hear(reply)?,
            }
            self.acknowledge().await.map_err(|error| (error, own))?;
        }
    }

    async fn take(&mut self, request: Request, payload: &[u8]) -> Result<()> {
        self.shared.wait_for_disk().await;
        match request.kind {
            Some(request::Kind::Append(append)) => self.append(append, payload).await,
            Some(request::Kind::Sync(_)) => {
                let length = self.appender.length();
                if let Some(next) = &mut self.next {
                    next.sending(Mark { length, synced: length });
                    // A link that is gone says so itself, or is silent.
                    let _ = next.writer.ask(request::Kind::Sync(Sync {}), &[]).await;
                }
                let synced = self.appender.sync()?;
                self.local = Mark { length: self.appender.length(), synced };
                Ok(())
            }
            _ => Err(ErrorCode::Malformed.because("a chain carries Append and Sync only")),
        }
    }

    async fn append(&mut self, append: Append, data: &[u8]) -> Result<()> {
        let admission = self.appender.admit(append.offset, &append.crcs, data)?;
        let crcs = append.crcs.clone();
        if let Some(next) = &mut self.next {
            next.sending(Mark { length: append.offset + data.len() as u64, synced: 0 });
            let _ = next.writer.ask(request::Kind::Append(append), data).await;
        }
        if let Admission::New { tail } = admission {
            self.appender.write(tail, &crcs, data)?;
        }
        self.local.length = self.appender.length();
        Ok(())
    }

    fn hear(&mut self, reply: Result<(response::Kind, Bytes), (Error, u32)>) -> Result<(), (Error, u32)> {
        let Some(next) = &mut self.next else { return Ok(()) };
        match reply {
            Ok((response::Kind::Ack(ack), _))
                if ack.length <= next.sent.length && ack.synced <= ack.length =>
            {
                let before = next.reached;
                next.reached.length = before.length.max(ack.length);
                next.reached.synced = before.synced.max(ack.synced);
                if !next.is_owed() {
                    next.since = None;
                } else if next.reached != before {
                    next.since = Some(Instant::now());
                }
                Ok(())
            }
            Ok(_) => Err(broken_link(&next.link, &ErrorCode::Malformed.because("not an acknowledgement"))),
            Err((error, 0)) => Err(broken_link(&next.link, &error)),
            Err(named) => Err(named),
        }
    }

    async fn acknowledge(&mut self) -> Result<()> {
        let mut reached = self.local;
        if let Some(next) = &self.next {
            reached.length = reached.length.min(next.reached.length);
            reached.synced = reached.synced.min(next.reached.synced);
        }
        if reached == self.acked {
            return Ok(());
        }
        self.acked = reached;
        let ack = Ack { length: reached.length, synced: reached.synced };
        self.writer.answer(response::Kind::Ack(ack), &[]).await
    }
}
