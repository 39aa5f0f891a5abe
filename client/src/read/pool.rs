//! Idle connections to datanodes, and reads over them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_host::net::Network;
use cairn_proto::checksum::piece_crcs;
use cairn_proto::data::{ListReplicas, Read, ReplicaList, ReplicaStat, StatReplica, request, response};
use cairn_proto::{ErrorCode, Result, fs};
use tokio::time::{Instant, timeout};

use super::replicas::Span;
use crate::metrics::Counters;
use crate::wire::{self, Connection};

/// Idle connections kept for each datanode.
const MAX_IDLE: usize = 8;
/// Datanodes with idle connections; beyond that all are let go.
const MAX_NODES: usize = 256;
/// An idle connection older than this is not used again: the datanode may be about to close it.
const MAX_IDLE_AGE: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Pool {
    cluster_id: String,
    network: Arc<dyn Network>,
    /// How long a greeting, and each frame, may take.
    patience: Duration,
    counters: Arc<Counters>,
    idle: Mutex<BTreeMap<String, Vec<(Connection, Instant)>>>,
}

/// What an exchange brings.
enum Answer {
    Bytes(Bytes),
    Stat(ReplicaStat),
    List(ReplicaList),
}

impl Pool {
    pub(crate) fn new(
        cluster_id: String,
        network: Arc<dyn Network>,
        patience: Duration,
        counters: Arc<Counters>,
    ) -> Pool {
        Pool { cluster_id, network, patience, counters, idle: Mutex::default() }
    }

    /// Reads a part of a chunk from the datanode that has this replica, checksums verified.
    pub(crate) async fn read(&self, replica: &fs::ReplicaInfo, span: Span) -> Result<Bytes> {
        let Span { chunk, offset, length } = span;
        let capability = replica.capability.clone();
        let read = Read { chunk, offset, length, capability };
        match self.ask(&replica.address, &request::Kind::Read(read)).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => Err(ErrorCode::Malformed.because("a read was answered with something else")),
        }
    }

    /// Asks the datanode that has this replica about it.
    pub(crate) async fn stat(&self, replica: &fs::ReplicaInfo, chunk: u64) -> Result<ReplicaStat> {
        let ask = StatReplica { chunk, capability: replica.capability.clone() };
        match self.ask(&replica.address, &request::Kind::Stat(ask)).await? {
            Answer::Stat(stat) => Ok(stat),
            _ => Err(ErrorCode::Malformed.because("a stat was answered with something else")),
        }
    }

    /// Asks the datanode at `address` what it has, from chunk `first` on.
    pub(crate) async fn list(&self, address: &str, first: u64, limit: u32) -> Result<ReplicaList> {
        match self.ask(address, &request::Kind::List(ListReplicas { first, limit })).await? {
            Answer::List(list) => Ok(list),
            _ => Err(ErrorCode::Malformed.because("a list was answered with something else")),
        }
    }

    /// Where the datanode at `address` lends the files of its replicas; empty: nowhere.
    pub(crate) async fn door(&self, address: &str) -> Result<String> {
        // Each greeting says so.
        let connection = match self.take(address) {
            Some(connection) => connection,
            None => wire::dial(&*self.network, address, &self.cluster_id, self.patience).await?,
        };
        let door = connection.door.clone();
        self.keep(address, connection);
        Ok(door)
    }

    /// One exchange. A connection that waited in the pool may have died there: then a new one is tried.
    async fn ask(&self, address: &str, ask: &request::Kind) -> Result<Answer> {
        if let Some(mut connection) = self.take(address) {
            match self.exchange(&mut connection, ask).await {
                Err(error) if error.code == ErrorCode::Unavailable => {}
                result => {
                    self.give_back(address, connection, &result);
                    return result;
                }
            }
        }
        let mut connection = wire::dial(&*self.network, address, &self.cluster_id, self.patience).await?;
        let result = self.exchange(&mut connection, ask).await;
        self.give_back(address, connection, &result);
        result
    }

    async fn exchange(&self, connection: &mut Connection, ask: &request::Kind) -> Result<Answer> {
        connection.writer.send(ask.clone(), &[]).await?;
        if let request::Kind::Read(Read { chunk, offset, length, .. }) = *ask {
            return self.receive(connection, chunk, offset, length).await.map(Answer::Bytes);
        }
        match self.next(connection).await?.0 {
            response::Kind::Stat(stat) => Ok(Answer::Stat(stat)),
            response::Kind::List(list) => Ok(Answer::List(list)),
            response::Kind::Failure(failure) => Err(wire::failure_of(failure).0),
            _ => Err(ErrorCode::Malformed.because("an odd answer to stat")),
        }
    }

    async fn receive(
        &self,
        connection: &mut Connection,
        chunk: u64,
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        let odd = |what: &str| Err(ErrorCode::Malformed.because(format!("reading chunk {chunk}: {what}")));
        let mut whole: Option<BytesMut> = None;
        let mut received = 0;
        loop {
            let (data, payload) = match self.next(connection).await? {
                (response::Kind::Data(data), payload) => (data, payload),
                (response::Kind::Failure(failure), _) => return Err(wire::failure_of(failure).0),
                _ => return odd("an odd frame"),
            };
            if data.offset != offset + received || received + payload.len() as u64 > length {
                return odd("bytes that were not asked for");
            }
            if piece_crcs(data.offset, &payload) != data.crcs {
                return Err(
                    ErrorCode::Corrupt.because(format!("chunk {chunk} at {}, on the wire", data.offset))
                );
            }
            received += payload.len() as u64;
            Counters::add(&self.counters.bytes_read, payload.len() as u64);
            if received == length && whole.is_none() && data.last {
                return Ok(payload);
            }
            let whole = whole.get_or_insert_with(|| BytesMut::with_capacity(length as usize));
            whole.extend_from_slice(&payload);
            if data.last {
                if received < length {
                    return Err(
                        ErrorCode::PastEnd.because(format!("chunk {chunk}: {received} of {length} bytes"))
                    );
                }
                return Ok(std::mem::take(whole).freeze());
            }
            if payload.is_empty() {
                return odd("an empty frame");
            }
        }
    }

    async fn next(&self, connection: &mut Connection) -> Result<(response::Kind, Bytes)> {
        match timeout(self.patience, connection.reader.next()).await {
            Ok(frame) => frame,
            Err(_) => Err(ErrorCode::Timeout.because("a datanode does not answer a read")),
        }
    }

    fn take(&self, address: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(address)?;
        while let Some((connection, since)) = connections.pop() {
            if since.elapsed() < MAX_IDLE_AGE {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps the connection if it stands at the start of a frame: after success, or after a refusal that came
    /// as a frame.
    fn give_back(&self, address: &str, connection: Connection, result: &Result<Answer>) {
        let in_step = match result {
            Ok(_) => true,
            Err(error) => {
                matches!(
                    error.code,
                    ErrorCode::ChunkUnknown
                        | ErrorCode::NoCapability
                        | ErrorCode::Unchecked
                        | ErrorCode::DiskFailed
                )
            }
        };
        if in_step {
            self.keep(address, connection);
        }
    }

    fn keep(&self, address: &str, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_NODES && !idle.contains_key(address) {
            idle.clear();
        }
        let connections = idle.entry(address.to_owned()).or_default();
        if connections.len() < MAX_IDLE {
            connections.push((connection, Instant::now()));
        }
    }
}
