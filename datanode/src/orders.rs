//! Carrying out what the leader orders.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cairn_host::work::blocking;
use cairn_proto::control::{CopyReplica, GatherReplica, Order, OrderDone, order};
use cairn_proto::fs::ScrubInfo;
use cairn_proto::{ErrorCode, Result};
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use crate::copy;
use crate::gather;
use crate::scrub::Scrubber;
use crate::settings::Settings;
use crate::store::{Seal, Store};

/// Orders that may wait; more are refused, and the leader plans them again.
const WAITING: usize = 4096;
/// Copies that may wait for disks that hang, besides those that have places: each keeps a thread.
const STUCK: usize = 32;
/// Seals and deletions that run at once: a seal reads the whole chunk.
const QUICK: usize = 2;
/// How long one of those keeps others waiting. What takes longer has a disk that hangs, or nearly so.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gets sealed replicas from other datanodes.
pub trait Copier: Send + Sync + 'static {
    /// Makes `store` hold what the order asks for, unless `stop` is set meanwhile.
    fn copy(
        &self,
        store: Arc<Store>,
        order: CopyReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>>;

    /// Makes `store` hold a chunk made of pieces of others, unless `stop` is set meanwhile.
    fn gather(
        &self,
        store: Arc<Store>,
        order: GatherReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>>;
}

/// Fetches over the data plane.
#[derive(Debug, Clone)]
pub struct Fetch(pub Arc<Settings>);

impl Copier for Fetch {
    fn copy(
        &self,
        store: Arc<Store>,
        order: CopyReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        let (settings, disk) = (self.0.clone(), store.disk().clone());
        let work = move || copy::copy(&store, &order, &settings, &|| stop.load(Ordering::Acquire));
        Box::pin(async move { blocking(&disk, work).await.map_err(panicked)? })
    }

    fn gather(
        &self,
        store: Arc<Store>,
        order: GatherReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        let (settings, disk) = (self.0.clone(), store.disk().clone());
        let work = move || gather::gather(&store, &order, &settings, &|| stop.load(Ordering::Acquire));
        Box::pin(async move { blocking(&disk, work).await.map_err(panicked)? })
    }
}

fn panicked(error: tokio::task::JoinError) -> cairn_proto::Error {
    ErrorCode::Io.because(format!("order: {error}"))
}

fn stops<E>(_: E) -> cairn_proto::Error {
    ErrorCode::Unavailable.because("the datanode stops")
}

/// Executes orders, a few at a time.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    copier: Arc<dyn Copier>,
    copies: Arc<Semaphore>,
    stuck: Arc<Semaphore>,
    quick: Semaphore,
    waiting: Semaphore,
    stopping: Arc<AtomicBool>,
    scrubber: OnceLock<Arc<Scrubber>>,
}

impl Executor {
    /// An executor that runs up to `copies` copies at once.
    pub fn new(store: Arc<Store>, copier: Arc<dyn Copier>, copies: usize) -> Executor {
        let inner = Inner {
            store,
            copier,
            copies: Arc::new(Semaphore::new(copies)),
            stuck: Arc::new(Semaphore::new(STUCK)),
            quick: Semaphore::new(QUICK),
            waiting: Semaphore::new(WAITING),
            stopping: Arc::default(),
            scrubber: OnceLock::new(),
        };
        Executor { inner: Arc::new(inner) }
    }

    /// Has orders to scrub carried out by `scrubber`.
    pub fn with_scrubber(self, scrubber: &Arc<Scrubber>) -> Executor {
        // Whoever came first stays: there is one for a datanode.
        let _ = self.inner.scrubber.set(scrubber.clone());
        self
    }

    /// How far scrubbing is; nothing where nobody scrubs.
    pub fn scrub_info(&self) -> Option<ScrubInfo> {
        self.inner.scrubber.get().map(|scrubber| scrubber.info())
    }

    /// Ends copies that are under way.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
    }

    /// Carries out one order and says how it went.
    pub async fn execute(&self, order: Order) -> OrderDone {
        let id = order.id;
        // Held to the end, also when a broken stream drops this future half way.
        let result = match self.inner.waiting.try_acquire() {
            Ok(_place) => self.inner.clone().run(order).await,
            Err(_) => Err(ErrorCode::Unavailable.because("too many orders wait")),
        };
        match result {
            Ok(None) => OrderDone { order: id, ..OrderDone::default() },
            Ok(Some(seal)) => OrderDone {
                order: id,
                error: None,
                length: seal.length,
                blake3: Bytes::copy_from_slice(&seal.blake3),
            },
            Err(error) => {
                tracing::warn!(order = id, %error, "order failed");
                OrderDone { order: id, error: Some(error.into()), ..OrderDone::default() }
            }
        }
    }
}

impl Inner {
    async fn run(self: Arc<Self>, order: Order) -> Result<Option<Seal>> {
        let kind = order.kind.ok_or_else(|| ErrorCode::NotSupported.because("unknown order"))?;
        let store = self.store.clone();
        match kind {
            order::Kind::Seal(seal) => {
                self.quickly(seal.chunk, move || store.seal(seal.chunk, seal.length).map(Some)).await
            }
            order::Kind::Delete(delete) => {
                self.quickly(delete.chunk, move || store.delete(delete.chunk).map(|()| None)).await
            }
            order::Kind::Copy(order) => {
                let chunk = order.chunk;
                self.slowly(chunk, || self.copier.copy(store, order, self.stopping.clone())).await
            }
            order::Kind::Gather(order) => {
                let chunk = order.chunk;
                self.slowly(chunk, || self.copier.gather(store, order, self.stopping.clone())).await
            }
            // The attendance sends the pages itself: they must keep their place in the stream.
            order::Kind::Inventory(_) => Ok(None),
            order::Kind::Scrub(scrub) => match self.scrubber.get() {
                Some(scrubber) => {
                    scrubber.ask_for(&scrub.chunks);
                    Ok(None)
                }
                None => Err(ErrorCode::NotSupported.because("this datanode does not scrub")),
            },
        }
    }

    /// Has a place until it is done, also when the stream that ordered it breaks: the next one's orders wait for places,
    /// too.
    async fn slowly(
        &self,
        chunk: u64,
        work: impl FnOnce() -> BoxFuture<'static, Result<Seal>>,
    ) -> Result<Option<Seal>> {
        let place = self.copies.clone().acquire_owned().await.map_err(stops)?;
        let (hangs, stuck) = (self.store.hangs(), self.stuck.clone());
        let work = work();
        self.to_the_end(chunk, async move { in_place(work, place, hangs, stuck).await.map(Some) }).await
    }

    /// What is not done in time, or when a disk begins to hang, goes on by itself, and is told as news when it is done. What
    /// waits behind it is about replicas on that disk, as likely as not, and can be answered at once from then on.
    async fn quickly(
        &self,
        chunk: u64,
        work: impl FnOnce() -> Result<Option<Seal>> + Send + 'static,
    ) -> Result<Option<Seal>> {
        let _place = self.quick.acquire().await.map_err(stops)?;
        let mut hangs = self.store.hangs();
        let disk = self.store.disk().clone();
        let doing = self.to_the_end(chunk, async move { blocking(&disk, work).await.map_err(panicked)? });
        let late = || ErrorCode::Timeout.because(format!("chunk {chunk}: the disk has not answered yet"));
        tokio::select! {
            biased;
            done = timeout(PATIENCE, doing) => done.unwrap_or_else(|_| Err(late())),
            Ok(()) = hangs.changed() => Err(late()),
        }
    }

    /// Goes on although the stream that ordered it breaks. The next stream's inventory may then have been sent before the
    /// replica was there, and nobody waits for the answer: it is told as news.
    async fn to_the_end(
        &self,
        chunk: u64,
        work: impl Future<Output = Result<Option<Seal>>> + Send + 'static,
    ) -> Result<Option<Seal>> {
        let (answer, answered) = oneshot::channel();
        let store = self.store.clone();
        tokio::spawn(async move {
            if answer.send(work.await).is_err() {
                store.notices().changed(chunk);
            }
        });
        answered.await.map_err(stops)?
    }
}

/// Does `work`, which has a place until a disk begins to hang: it may be that disk that it waits for. Copies to come go to
/// other disks, and must not wait for this one.
async fn in_place(
    mut work: BoxFuture<'static, Result<Seal>>,
    place: OwnedSemaphorePermit,
    mut hangs: watch::Receiver<u64>,
    stuck: Arc<Semaphore>,
) -> Result<Seal> {
    tokio::select! {
        biased;
        done = &mut work => return done,
        Ok(()) = hangs.changed() => {}
    }
    // When too many are stuck, it keeps the place that it has.
    let _place = stuck.try_acquire_owned().unwrap_or(place);
    work.await
}
