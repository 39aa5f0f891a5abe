//! The data plane's frames over a simulated connection.

use std::time::Duration;

use bytes::Bytes;
use cairn_host::net::{Network, Stream};
use cairn_proto::data::{Failure, Hello, Request, Response, request, response};
use cairn_proto::{Error, ErrorCode, Result, frame};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

/// The receiving half.
pub struct Reader(ReadHalf<Stream>);

/// The sending half.
pub struct Writer(WriteHalf<Stream>);

fn broken(error: std::io::Error) -> Error {
    ErrorCode::Unavailable.because(format!("connection: {error}"))
}

/// The two halves of a connection.
pub fn split(stream: Stream) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(stream);
    (Reader(read), Writer(write))
}

impl Reader {
    /// The next frame; nothing when the other side closed between frames.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<(M, Bytes)>> {
        let mut prefix = [0; frame::PREFIX];
        if let Err(error) = self.0.read_exact(&mut prefix).await {
            return match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Ok(None),
                _ => Err(broken(error)),
            };
        }
        let lengths = frame::Lengths::parse(prefix)?;
        let mut bytes = vec![0; lengths.header + lengths.payload];
        self.0.read_exact(&mut bytes).await.map_err(broken)?;
        let payload = Bytes::from(bytes.split_off(lengths.header));
        Ok(Some((frame::decode_header(&bytes)?, payload)))
    }

    /// The next reply of a datanode; a failure is the error, with the node it names.
    pub async fn reply(&mut self) -> Result<(response::Kind, Bytes), (Error, u32)> {
        let closed = || (ErrorCode::Unavailable.because("closed its connection"), 0);
        let (reply, payload) =
            self.next::<Response>().await.map_err(|error| (error, 0))?.ok_or_else(closed)?;
        match reply.kind {
            Some(response::Kind::Failure(failure)) => {
                let error = failure.error.map_or_else(|| ErrorCode::Malformed.into(), Error::from);
                Err((error, failure.node))
            }
            Some(kind) => Ok((kind, payload)),
            None => Err((ErrorCode::Malformed.because("an unknown reply"), 0)),
        }
    }
}

impl Writer {
    /// Sends a frame.
    pub async fn send(&mut self, header: &impl Message, payload: &[u8]) -> Result<()> {
        let mut bytes = frame::encode_head(header, payload.len())?.to_vec();
        bytes.extend_from_slice(payload);
        self.0.write_all(&bytes).await.map_err(broken)
    }

    /// Asks for something.
    pub async fn ask(&mut self, kind: request::Kind, payload: &[u8]) -> Result<()> {
        self.send(&Request { kind: Some(kind), request: 0 }, payload).await
    }

    /// Answers.
    pub async fn answer(&mut self, kind: response::Kind, payload: &[u8]) -> Result<()> {
        self.send(&Response { kind: Some(kind) }, payload).await
    }

    /// Refuses, naming the node at fault.
    pub async fn refuse(&mut self, error: &Error, node: u32) -> Result<()> {
        let failure = Failure { error: Some(error.clone().into()), node };
        self.answer(response::Kind::Failure(failure), &[]).await
    }

    /// Says that nothing more comes.
    pub async fn close(&mut self) {
        // Whoever is gone need not be told.
        let _ = self.0.shutdown().await;
    }
}

/// Connects to a datanode and exchanges greetings. `node`: the number it must have; 0: any.
pub async fn dial(
    network: &dyn Network,
    address: &str,
    cluster_id: &str,
    node: u32,
    limit: Duration,
) -> Result<(Reader, Writer)> {
    let greet = async {
        let (mut reader, mut writer) = split(network.connect(address).await.map_err(broken)?);
        let hello = Hello { version: 1, cluster_id: cluster_id.to_owned() };
        writer.ask(request::Kind::Hello(hello), &[]).await?;
        match reader.reply().await.map_err(|(error, _)| error)? {
            (response::Kind::Hello(reply), _) if node != 0 && reply.node != 0 && reply.node != node => {
                Err(ErrorCode::Unavailable.because(format!("datanode {} answers", reply.node)))
            }
            (response::Kind::Hello(_), _) => Ok((reader, writer)),
            _ => Err(ErrorCode::Malformed.because("no greeting")),
        }
    };
    let late = |_| ErrorCode::Timeout.because(format!("datanode {address} does not greet"));
    timeout(limit, greet).await.map_err(late)?
}
