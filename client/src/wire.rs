//! A framed connection to a datanode, as the client speaks it.

use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cairn_host::net::{Network, Stream};
use cairn_host::request::RequestId;
use cairn_proto::data::{Hello, Request, Response, request, response};
use cairn_proto::{Error, ErrorCode, Result, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::time::timeout;

/// Version of the data plane this client speaks.
pub(crate) const VERSION: u32 = 1;
/// Buffered ahead of the reader: prefixes and headers; payloads bypass it.
const READ_BUFFER: usize = 16 << 10;
/// Most parts of one frame handed to the kernel at once.
const MAX_SLICES: usize = 64;

/// A connection after its greeting.
pub(crate) struct Connection {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
    /// The number of the datanode that answers; 0: it has none yet.
    pub(crate) node: u32,
    /// Where clients on its host borrow replicas' files; empty: nowhere.
    pub(crate) door: String,
}

/// The receiving half.
pub(crate) struct FrameReader {
    stream: BufReader<ReadHalf<Stream>>,
    header: BytesMut,
}

/// The sending half.
pub(crate) struct FrameWriter {
    stream: WriteHalf<Stream>,
}

/// Connects to the datanode at `address` and exchanges greetings, within `limit` altogether.
pub(crate) async fn dial(
    network: &dyn Network,
    address: &str,
    cluster_id: &str,
    limit: Duration,
) -> Result<Connection> {
    match timeout(limit, greet(network, address, cluster_id)).await {
        Ok(result) => result,
        Err(_) => Err(ErrorCode::Timeout.because(format!("datanode {address} did not answer the greeting"))),
    }
}

async fn greet(network: &dyn Network, address: &str, cluster_id: &str) -> Result<Connection> {
    let broken =
        |error: std::io::Error| ErrorCode::Unavailable.because(format!("datanode {address}: {error}"));
    let stream = network.connect(address).await.map_err(broken)?;
    let (read, write) = tokio::io::split(stream);
    let mut connection = Connection {
        reader: FrameReader {
            stream: BufReader::with_capacity(READ_BUFFER, read),
            header: BytesMut::with_capacity(1024),
        },
        writer: FrameWriter { stream: write },
        node: 0,
        door: String::new(),
    };
    let hello = Hello { version: VERSION, cluster_id: cluster_id.to_owned() };
    connection.writer.send(request::Kind::Hello(hello), &[]).await?;
    match connection.reader.next().await?.0 {
        response::Kind::Hello(reply) if reply.version == VERSION => {
            connection.node = reply.node;
            connection.door = reply.door;
            Ok(connection)
        }
        response::Kind::Hello(reply) => Err(ErrorCode::Version
            .because(format!("datanode {address} speaks version {} of the data plane", reply.version))),
        response::Kind::Failure(failure) => Err(failure_of(failure).0),
        _ => Err(ErrorCode::Malformed.because(format!("datanode {address}: no greeting"))),
    }
}

/// What a failure frame says, and which datanode it blames (0: not known).
pub(crate) fn failure_of(failure: cairn_proto::data::Failure) -> (Error, u32) {
    let error =
        failure.error.map_or_else(|| ErrorCode::Io.because("a failure without a reason"), Error::from);
    (error, failure.node)
}

impl FrameReader {
    /// The next frame. Not cancel safe: a reader dropped half way is of no more use.
    pub(crate) async fn next(&mut self) -> Result<(response::Kind, Bytes)> {
        let mut prefix = [0; frame::PREFIX];
        self.stream.read_exact(&mut prefix).await.map_err(lost)?;
        let lengths = frame::Lengths::parse(prefix)?;
        self.header.clear();
        fill(&mut self.stream, &mut self.header, lengths.header).await?;
        let header: Response = frame::decode_header(&self.header)?;
        let mut payload = BytesMut::with_capacity(lengths.payload);
        fill(&mut self.stream, &mut payload, lengths.payload).await?;
        let kind = header.kind.ok_or_else(|| ErrorCode::Malformed.because("a frame of unknown kind"))?;
        Ok((kind, payload.freeze()))
    }
}

async fn fill(stream: &mut BufReader<ReadHalf<Stream>>, into: &mut BytesMut, length: usize) -> Result<()> {
    into.reserve(length);
    while into.len() < length {
        let missing = length - into.len();
        if stream.read_buf(&mut (&mut *into).limit(missing)).await.map_err(lost)? == 0 {
            return Err(ErrorCode::Unavailable.because("the datanode closed the connection"));
        }
    }
    Ok(())
}

impl FrameWriter {
    /// Sends one frame; the payload's parts follow the header in one vectored write.
    pub(crate) async fn send(&mut self, kind: request::Kind, payload: &[Bytes]) -> Result<()> {
        self.send_for(RequestId::current(), kind, payload).await
    }

    /// As [`FrameWriter::send`], for the sake of a request that is not the current one.
    pub(crate) async fn send_for(
        &mut self,
        sake: RequestId,
        kind: request::Kind,
        payload: &[Bytes],
    ) -> Result<()> {
        let total = payload.iter().map(Bytes::len).sum();
        let mut parts = Vec::with_capacity(1 + payload.len());
        parts.push(frame::encode_head(&Request { kind: Some(kind), request: sake.0 }, total)?);
        parts.extend(payload.iter().filter(|part| !part.is_empty()).cloned());
        let mut first = 0;
        while first < parts.len() {
            let slices: Vec<IoSlice<'_>> =
                parts[first..].iter().take(MAX_SLICES).map(|part| IoSlice::new(part)).collect();
            let mut written = self.stream.write_vectored(&slices).await.map_err(lost)?;
            if written == 0 {
                return Err(ErrorCode::Unavailable.because("the datanode takes no more bytes"));
            }
            while first < parts.len() && written >= parts[first].len() {
                written -= parts[first].len();
                first += 1;
            }
            if written > 0 {
                parts[first].advance(written);
            }
        }
        Ok(())
    }
}

fn lost(error: std::io::Error) -> Error {
    ErrorCode::Unavailable.because(format!("connection to the datanode: {error}"))
}
