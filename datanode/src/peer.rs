//! A connection to another datanode: the next link of a chain, or the source of a copy.

use std::sync::Arc;

use cairn_host::request::RequestId;
use cairn_proto::data::{Hello, Read, Request, Response, request, response};
use cairn_proto::frame;
use cairn_proto::limits::MAX_PAYLOAD;
use cairn_proto::{Error, ErrorCode, Result};

use crate::settings::{PROTOCOL_VERSION, Settings};
use crate::socket::{self, FrameReader, Patience, Socket, Waiting};

/// A connection on which `Hello` was sent.
pub struct Peer {
    stream: Arc<Socket>,
    reader: FrameReader,
    settings: Arc<Settings>,
    greeted: bool,
    in_step: bool,
    /// The number it must have; 0: any.
    expected: u32,
}

/// A refusal by the other side, with the link it names.
#[derive(Debug)]
pub struct Refusal {
    /// What was refused.
    pub error: Error,
    /// The node that refused; 0 if not said.
    pub node: u32,
    /// It came as a frame: the connection stands at the start of the next one.
    pub sent: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { error, node: 0, sent: false }
    }
}

impl Peer {
    /// Connects and says hello. The answer is read with the first reply, which saves a round trip.
    pub fn connect(address: &str, cluster_id: &str, settings: &Arc<Settings>) -> Result<Peer> {
        let (tls, tick) = (settings.trust.tls(), settings.tick());
        let stream = Arc::new(socket::connect(address, settings.connect, tls, tick, settings.stall)?);
        let hello = Hello { version: PROTOCOL_VERSION, cluster_id: cluster_id.to_owned() };
        let peer = Peer {
            reader: FrameReader::new(stream.clone()),
            stream,
            settings: settings.clone(),
            greeted: false,
            in_step: true,
            expected: 0,
        };
        peer.send(request::Kind::Hello(hello))?;
        Ok(peer)
    }

    /// From now on only the datanode of this number will do: its address may have become another's.
    pub fn expecting(self, node: u32) -> Peer {
        Peer { expected: node, ..self }
    }

    /// The socket.
    pub fn stream(&self) -> &Arc<Socket> {
        &self.stream
    }

    /// Sends a request without payload.
    pub fn send(&self, kind: request::Kind) -> Result<()> {
        socket::write_message(&self.stream, &Request { kind: Some(kind), request: 0 }, self.settings.frame)
    }

    /// The next reply, its payload in `into`. `None` when the other side closed.
    /// A reply that is a `Failure` is the error.
    pub fn receive(
        &mut self,
        into: &mut Vec<u8>,
        wait: &mut dyn FnMut(Waiting) -> Result<()>,
    ) -> Result<Option<(response::Kind, usize)>, Refusal> {
        loop {
            let Some((response, length)) = self.reader.head::<Response>(wait)? else { return Ok(None) };
            self.reader.payload(length, into, wait)?;
            match response.kind {
                Some(response::Kind::Hello(reply)) if !self.greeted => {
                    if reply.version != PROTOCOL_VERSION {
                        let detail = format!("the peer speaks version {}", reply.version);
                        return Err(ErrorCode::Version.because(detail).into());
                    }
                    if self.expected != 0 && reply.node != 0 && reply.node != self.expected {
                        let detail = format!("datanode {} answers at this address", reply.node);
                        return Err(ErrorCode::Unavailable.because(detail).into());
                    }
                    self.greeted = true;
                }
                Some(response::Kind::Failure(failure)) => {
                    let error = failure.error.map_or_else(|| ErrorCode::Malformed.into(), Error::from);
                    return Err(Refusal { error, node: failure.node, sent: self.greeted });
                }
                Some(kind) if self.greeted => return Ok(Some((kind, length))),
                _ => return Err(ErrorCode::Malformed.because("unexpected reply").into()),
            }
        }
    }

    /// Whether another range can be asked for on this connection.
    pub fn in_step(&self) -> bool {
        self.in_step
    }

    /// Whether the next reply can be read without waiting.
    pub fn has_reply(&self) -> bool {
        self.reader.has_frame()
    }

    /// Reads a range of a chunk, in order, and hands each verified piece to `take`. After a refusal that the peer sent
    /// as a frame it can be asked for the next range; after any other error it cannot ([`Peer::in_step`]).
    pub fn read(
        &mut self,
        chunk: u64,
        offset: u64,
        length: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.in_step = false;
        let capability = self.settings.trust.own(chunk);
        self.send(request::Kind::Read(Read { chunk, offset, length, capability }))?;
        let patience = Patience { idle: self.settings.read_stall, frame: self.settings.read_stall };
        let mut payload = Vec::with_capacity(MAX_PAYLOAD);
        let (mut at, end) = (offset, offset + length);
        loop {
            let reply = self.receive(&mut payload, &mut |waiting| patience.check(waiting));
            let Some((kind, size)) = reply.map_err(|refusal| {
                self.in_step = refusal.sent;
                refusal.error
            })?
            else {
                return Err(ErrorCode::Unavailable.because("connection: closed within a read"));
            };
            let response::Kind::Data(data) = kind else {
                return Err(ErrorCode::Malformed.because("a read was answered with something else"));
            };
            let bytes = &payload[..size];
            if data.offset != at || at + size as u64 > end {
                return Err(ErrorCode::Malformed.because("a read was answered with another range"));
            }
            if cairn_proto::checksum::piece_crcs(at, bytes) != data.crcs {
                return Err(ErrorCode::Corrupt.because(format!("chunk {chunk}: at {at}, as received")));
            }
            take(bytes)?;
            at += size as u64;
            match (data.last, at == end) {
                (true, true) => {
                    self.in_step = true;
                    return Ok(());
                }
                (false, false) if size > 0 => {}
                _ => return Err(ErrorCode::Malformed.because("a read was answered with another length")),
            }
        }
    }
}

/// Encodes a request's head for a payload of `length` bytes.
pub fn request_head(kind: request::Kind, sake: RequestId, length: usize) -> Result<bytes::Bytes> {
    frame::encode_head(&Request { kind: Some(kind), request: sake.0 }, length)
}
