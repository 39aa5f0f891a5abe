//! A datanode: the shipped store, attendance and orders, behind a thin data plane of the simulation.
//!
//! What ships serves each connection with a blocking thread, which has no place here; the frames, the store and its
//! rules are the same.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use cairn_datanode::attend::Attendance;
use cairn_datanode::orders::Executor;
use cairn_datanode::store::{Phase, Scratch, Store, StoreConfig};
use cairn_datanode::{CHECK_AGAIN, recognize_cluster};
use cairn_host::disk::SharedDisk;
use cairn_host::net::{Network, Stream};
use cairn_proto::data::{Data, HelloReply, Read, ReplicaStat, Request, StatReplica, request, response};
use cairn_proto::{Error, ErrorCode, Result};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::chain;
use super::copy::SimulatedCopier;
use super::frames::{self, Writer};

/// Most bytes of one piece of a read: small, so that reads are interrupted.
const PIECE: u64 = 16 << 10;
/// From the accept to a whole greeting.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The data directories on a datanode's disk.
pub fn directories() -> Vec<PathBuf> {
    vec![PathBuf::from("/data/a"), PathBuf::from("/data/b")]
}

/// What a datanode's store is made of.
pub fn store_config(disk: SharedDisk) -> StoreConfig {
    StoreConfig { dirs: directories(), reserve_bytes: 0, capacity_limit: None, disk }
}

/// What a datanode is told.
pub struct Setup {
    /// Where it listens.
    pub address: String,
    /// The machine it is on.
    pub host: String,
    /// All namenodes.
    pub namenodes: Vec<String>,
    /// Its disk.
    pub disk: SharedDisk,
    /// Its network.
    pub network: Arc<dyn Network>,
    /// How long after its start what an unclean stop left is checked.
    pub check_after: Duration,
    /// Milliseconds each write to its disk takes now.
    pub slow_ms: Arc<AtomicU64>,
}

/// What all connections share.
pub struct Shared {
    /// The replicas.
    pub store: Arc<Store>,
    /// The way to others.
    pub network: Arc<dyn Network>,
    number: Arc<AtomicU32>,
    slow_ms: Arc<AtomicU64>,
}

impl Shared {
    /// The datanode's number; 0 until it is registered.
    pub fn node(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// As long as a slow disk takes.
    pub async fn wait_for_disk(&self) {
        let slow = self.slow_ms.load(Ordering::Relaxed);
        if slow > 0 {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
    }
}

/// Runs it until it is told to stop, or must.
pub async fn run(setup: Setup, mut stop: watch::Receiver<bool>) -> Result<()> {
    let store = Arc::new(Store::open(&store_config(setup.disk))?);
    let address = setup.address.parse().map_err(|_| ErrorCode::Invalid.because("address"))?;
    let listening = setup.network.bind(address).await;
    let mut listener = listening.map_err(|error| ErrorCode::Unavailable.because(error.to_string()))?;
    let number = Arc::<AtomicU32>::default();
    let shared = Arc::new(Shared {
        store: store.clone(),
        network: setup.network.clone(),
        number: number.clone(),
        slow_ms: setup.slow_ms,
    });
    let accepting = shared.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = std::future::poll_fn(|cx| listener.poll_accept(cx)).await {
            tokio::spawn(serve(accepting.clone(), stream));
        }
    });
    let (checked, mut stopped) = (store.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(setup.check_after) => {}
            _ = stopped.wait_for(|&stop| stop) => return,
        }
        let mut is_checked = checked.check_further(false, &|| false);
        while timeout(CHECK_AGAIN, stopped.wait_for(|&stop| stop)).await.is_err() {
            is_checked = checked.check_further(is_checked, &|| false);
        }
    });
    let attendance = Attendance {
        trust: Arc::default(),
        store: store.clone(),
        node: number,
        counters: Arc::default(),
        executor: Executor::new(store.clone(), Arc::new(SimulatedCopier(setup.network.clone())), 2),
        network: setup.network,
        namenodes: setup.namenodes,
        advertise: setup.address,
        rack: "rack".into(),
        host: setup.host,
        measuring: Arc::new(Semaphore::new(1)),
    };
    let ended = tokio::select! {
        ended = attendance.run(stop.clone()) => ended,
        _ = stop.wait_for(|&stop| stop) => Ok(()),
    };
    store.close();
    ended
}

async fn serve(shared: Arc<Shared>, stream: Stream) {
    if let Err(error) = converse(&shared, stream).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn converse(shared: &Arc<Shared>, stream: Stream) -> Result<()> {
    let (mut reader, mut writer) = frames::split(stream);
    let late = |_| ErrorCode::Timeout.because("no greeting");
    let Some((first, _)) = timeout(HANDSHAKE, reader.next::<Request>()).await.map_err(late)?? else {
        return Ok(());
    };
    let Some(request::Kind::Hello(hello)) = first.kind else {
        return Err(ErrorCode::Malformed.because("a connection starts with Hello"));
    };
    if let Err(error) = recognize_cluster(shared.store.cluster_id().as_deref(), &hello.cluster_id) {
        return writer.refuse(&error, shared.node()).await;
    }
    writer
        .answer(
            response::Kind::Hello(HelloReply { version: 1, node: shared.node(), ..Default::default() }),
            &[],
        )
        .await?;
    loop {
        let Some((request, _)) = reader.next::<Request>().await? else { return Ok(()) };
        match request.kind {
            Some(request::Kind::Read(read)) => serve_read(shared, &mut writer, &read).await?,
            Some(request::Kind::Stat(ask)) => match stat(shared, &ask) {
                Ok(stat) => writer.answer(response::Kind::Stat(stat), &[]).await?,
                Err(error) => writer.refuse(&error, shared.node()).await?,
            },
            Some(request::Kind::Open(open)) => return chain::serve(shared, reader, writer, open).await,
            _ => return Err(ErrorCode::Malformed.because("an odd request")),
        }
    }
}

async fn serve_read(shared: &Shared, writer: &mut Writer, read: &Read) -> Result<()> {
    let found = shared.store.get(read.chunk).and_then(|replica| {
        replica.check_range(read.offset, read.length)?;
        Ok(replica)
    });
    let replica = match found {
        Ok(replica) => replica,
        Err(error) => return writer.refuse(&error, shared.node()).await,
    };
    let end = read.offset + read.length;
    let mut at = read.offset;
    let mut scratch = Scratch::default();
    loop {
        shared.wait_for_disk().await;
        let length = (end - at).min(PIECE);
        let piece = match replica.read(at, length as usize, &mut scratch) {
            Ok(piece) => piece,
            Err(error) => {
                if matches!(error.code, ErrorCode::Corrupt | ErrorCode::DiskFailed) {
                    shared.store.accuse(&replica, &error.to_string());
                }
                return writer.refuse(&error, shared.node()).await;
            }
        };
        let data = Data { offset: at, crcs: scratch.crcs.clone(), last: at + length == end };
        writer.answer(response::Kind::Data(data), scratch.bytes(piece)).await?;
        at += length;
        if at == end {
            return Ok(());
        }
    }
}

fn stat(shared: &Shared, ask: &StatReplica) -> Result<ReplicaStat, Error> {
    let replica = shared.store.get(ask.chunk)?;
    if !matches!(replica.phase(), Phase::Open | Phase::Sealed) {
        return Err(replica.check_range(0, 0).err().unwrap_or_else(|| ErrorCode::Unchecked.into()));
    }
    let seal = replica.seal_record();
    Ok(ReplicaStat {
        chunk: ask.chunk,
        length: replica.length(),
        sealed: seal.is_some(),
        blake3: seal.map(|seal| bytes::Bytes::copy_from_slice(&seal.blake3)).unwrap_or_default(),
        path: String::new(),
        synced: replica.synced(),
    })
}
