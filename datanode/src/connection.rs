//! One connection: hello, then reads, or one chain.

use std::sync::Arc;
use std::time::Instant;

use cairn_host::request::{self as requests, RequestId};
use cairn_host::seldom::Seldom;
use cairn_host::tls::peer::Caller;
use cairn_proto::capability::Rights;
use cairn_proto::data::{
    Data, Hello, HelloReply, ListReplicas, ListedReplica, Read, ReplicaList, ReplicaStat, Request, Response,
    StatReplica, request, response,
};
use cairn_proto::frame;
use cairn_proto::limits::MAX_PAYLOAD;
use cairn_proto::{Error, ErrorCode, Result};

use crate::chain;
use crate::link::recognize_cluster;
use crate::server::{Guest, Shared};
use crate::settings::PROTOCOL_VERSION;
use crate::socket::{self, FrameReader, Patience, Socket};
use crate::store::{Phase, Scratch, speaks_against};

/// Replicas of one page: it is a frame's head, of 64 KiB at most.
const LISTED: usize = 1024;

/// Serves a connection until it ends. Its error says why, when that is worth a line in the log.
pub fn serve(guest: &Guest, shared: &Arc<Shared>) -> Result<()> {
    let stream = guest.stream();
    let refused = |error: std::io::Error| ErrorCode::Unavailable.because(format!("refused: {error}"));
    let caller = stream.handshake(shared.settings.handshake).map_err(refused)?;
    let mut reader = FrameReader::new(stream.clone());
    match converse(&mut reader, guest, &caller, shared) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Whoever can still read it learns why; garbage gets an answer, too.
            let failure = shared.failure(error.clone(), shared.node());
            if error.code != ErrorCode::Unavailable {
                let _ = socket::write_message(stream, &failure, shared.settings.connect);
                socket::close_gently(stream, shared.settings.connect);
            }
            Err(error)
        }
    }
}

fn converse(reader: &mut FrameReader, guest: &Guest, caller: &Caller, shared: &Arc<Shared>) -> Result<()> {
    let settings = shared.settings.clone();
    let handshake = Patience { idle: settings.handshake, frame: settings.handshake };
    match next(reader, handshake)? {
        None => return Ok(()),
        Some((request::Kind::Hello(hello), _)) => greet(reader.stream(), shared, hello)?,
        Some(_) => return Err(ErrorCode::Malformed.because("a connection starts with Hello")),
    }
    let patience = Patience { idle: settings.idle, frame: settings.frame };
    let mut scratch = Scratch::default();
    loop {
        guest.is_idle();
        let request = next(reader, patience)?;
        guest.is_busy();
        let Some((kind, request)) = request else { return Ok(()) };
        match kind {
            request::Kind::Read(read) => {
                let since = Instant::now();
                let refused = serve_read(reader.stream(), shared, &read, &mut scratch)?;
                requests::done(request, "read", since.elapsed(), refused.is_some());
                match refused {
                    None => shared.counters.reads.observe(since.elapsed()),
                    Some(error) => {
                        shared.counters.read_refused();
                        refuse(reader.stream(), shared, error)?;
                    }
                }
            }
            request::Kind::Stat(ask) => serve_stat(reader.stream(), shared, &ask)?,
            request::Kind::List(_) if !caller.may_administer() => {
                static LINES: Seldom = Seldom::new();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(%caller, left_out, "refused: its certificate does not allow it to list replicas");
                }
                refuse(reader.stream(), shared, ErrorCode::PermissionDenied.into())?;
            }
            request::Kind::List(ask) => serve_list(reader.stream(), shared, &ask)?,
            request::Kind::Open(open) => return chain::serve(reader, shared, open),
            request::Kind::Lend(_) => {
                return Err(ErrorCode::Malformed.because("replicas are lent at this host's own socket only"));
            }
            request::Kind::Hello(_) => return Err(ErrorCode::Malformed.because("a second Hello")),
            request::Kind::Append(_) | request::Kind::Sync(_) => {
                return Err(ErrorCode::Malformed.because("there is no open chain on this connection"));
            }
        }
    }
}

/// The next request that is not part of a chain, and for whose sake it is made; these have no payload.
fn next(reader: &mut FrameReader, patience: Patience) -> Result<Option<(request::Kind, RequestId)>> {
    let head = reader.head::<Request>(&mut |waiting| patience.check(waiting))?;
    match head {
        None => Ok(None),
        Some((Request { kind: Some(kind), request }, 0)) => Ok(Some((kind, RequestId(request)))),
        Some((Request { kind: None, .. }, _)) => Err(ErrorCode::Malformed.because("unknown request")),
        Some((_, length)) => {
            Err(ErrorCode::Malformed.because(format!("a payload of {length} bytes where none belongs")))
        }
    }
}

fn greet(stream: &Socket, shared: &Shared, hello: Hello) -> Result<()> {
    let reply = welcome(shared, &hello)?;
    answer(stream, shared, response::Kind::Hello(reply))
}

/// The answer to a greeting, or why there is none.
pub fn welcome(shared: &Shared, hello: &Hello) -> Result<HelloReply> {
    if hello.version != PROTOCOL_VERSION {
        let detail = format!("data plane version {}, this datanode speaks {PROTOCOL_VERSION}", hello.version);
        return Err(ErrorCode::Version.because(detail));
    }
    recognize_cluster(shared.store.cluster_id().as_deref(), &hello.cluster_id)?;
    Ok(HelloReply { version: PROTOCOL_VERSION, node: shared.node(), door: shared.door() })
}

fn answer(stream: &Socket, shared: &Shared, kind: response::Kind) -> Result<()> {
    socket::write_message(stream, &Response { kind: Some(kind) }, shared.settings.frame)
}

/// Refuses one request; the connection goes on.
fn refuse(stream: &Socket, shared: &Shared, error: Error) -> Result<()> {
    socket::write_message(stream, &shared.failure(error, shared.node()), shared.settings.frame)
}

/// Sends what was asked for; returns why it cannot, if it cannot.
fn serve_read(stream: &Socket, shared: &Shared, read: &Read, scratch: &mut Scratch) -> Result<Option<Error>> {
    if let Err(error) = shared.settings.trust.demand(&read.capability, read.chunk, Rights::READ) {
        return Ok(Some(error));
    }
    let replica = match shared.store.get(read.chunk) {
        Ok(replica) => replica,
        Err(error) => return Ok(Some(error)),
    };
    if let Err(error) = replica.check_range(read.offset, read.length) {
        return Ok(Some(error));
    }
    let end = read.offset + read.length;
    let mut at = read.offset;
    loop {
        // Pieces end on multiples of the largest payload, so that all but the edges are whole blocks.
        let boundary = (at / MAX_PAYLOAD as u64 + 1) * MAX_PAYLOAD as u64;
        let length = (end.min(boundary) - at) as usize;
        let range = match replica.read(at, length, scratch) {
            Ok(range) => range,
            Err(error) => {
                if speaks_against(error.code) {
                    shared.store.accuse(&replica, &error.to_string());
                }
                return Ok(Some(error));
            }
        };
        let next = at + length as u64;
        let data = Data { offset: at, crcs: scratch.crcs.clone(), last: next == end };
        let head = frame::encode_head(&Response { kind: Some(response::Kind::Data(data)) }, length)?;
        socket::write_frame(stream, &head, scratch.bytes(range), shared.settings.frame)
            .map_err(|error| socket::broken(&error))?;
        shared.counters.sent(length);
        at = next;
        if at == end {
            return Ok(None);
        }
    }
}

/// A page of what this datanode has. A page fits a frame's head, whatever numbers are in it.
fn serve_list(stream: &Socket, shared: &Shared, ask: &ListReplicas) -> Result<()> {
    let limit = if ask.limit == 0 { LISTED } else { LISTED.min(ask.limit as usize) };
    let page = shared.store.inventory_page(ask.first, limit);
    let replicas = page.replicas.iter().map(|replica| ListedReplica {
        chunk: replica.chunk,
        length: replica.length,
        sealed: replica.sealed,
    });
    let list = ReplicaList { replicas: replicas.collect(), next: page.next };
    answer(stream, shared, response::Kind::List(list))
}

fn serve_stat(stream: &Socket, shared: &Shared, ask: &StatReplica) -> Result<()> {
    let wanted = Rights::READ.and(Rights::STAT);
    if let Err(error) = shared.settings.trust.demand(&ask.capability, ask.chunk, wanted) {
        return refuse(stream, shared, error);
    }
    let replica = match shared.store.get(ask.chunk) {
        Ok(replica) => replica,
        Err(error) => return refuse(stream, shared, error),
    };
    if !matches!(replica.phase(), Phase::Open | Phase::Sealed) {
        let error = replica.check_range(0, 0).err().unwrap_or_else(|| ErrorCode::Unchecked.into());
        return refuse(stream, shared, error);
    }
    let seal = replica.seal_record();
    let stat = ReplicaStat {
        chunk: ask.chunk,
        length: replica.length(),
        sealed: seal.is_some(),
        blake3: seal.map(|seal| bytes::Bytes::copy_from_slice(&seal.blake3)).unwrap_or_default(),
        path: replica.dir().data_path(ask.chunk).display().to_string(),
        synced: replica.synced(),
    };
    answer(stream, shared, response::Kind::Stat(stat))
}
