//! Carrying out what the leader orders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cairn_proto::control::{Order, OrderDone, order};
use cairn_proto::{ErrorCode, Result};
use tokio::sync::Semaphore;

use crate::copy;
use crate::settings::Settings;
use crate::store::{Seal, Store};

/// Orders that may wait; more are refused, and the leader plans them again.
const WAITING: usize = 4096;
/// Seals and deletions that run at once: a seal reads the whole chunk.
const QUICK: usize = 2;

/// Executes orders, a few at a time.
#[derive(Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    settings: Arc<Settings>,
    copies: Semaphore,
    quick: Semaphore,
    waiting: Semaphore,
    stopping: AtomicBool,
}

impl Executor {
    /// An executor that runs up to `copies` copies at once.
    pub fn new(store: Arc<Store>, settings: Arc<Settings>, copies: usize) -> Executor {
        let inner = Inner {
            store,
            settings,
            copies: Semaphore::new(copies),
            quick: Semaphore::new(QUICK),
            waiting: Semaphore::new(WAITING),
            stopping: AtomicBool::new(false),
        };
        Executor { inner: Arc::new(inner) }
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
        let slots = if matches!(kind, order::Kind::Copy(_)) { &self.copies } else { &self.quick };
        let Ok(_slot) = slots.acquire().await else {
            return Err(ErrorCode::Unavailable.because("the datanode stops"));
        };
        let this = self.clone();
        let work = tokio::task::spawn_blocking(move || match kind {
            order::Kind::Seal(seal) => this.store.seal(seal.chunk, seal.length).map(Some),
            order::Kind::Delete(delete) => this.store.delete(delete.chunk).map(|()| None),
            order::Kind::Copy(order) => {
                let stop = || this.stopping.load(Ordering::Acquire);
                copy::copy(&this.store, &order, &this.settings, &stop).map(Some)
            }
            // The attendance sends the pages itself: they must keep their place in the stream.
            order::Kind::Inventory(_) => Ok(None),
        });
        work.await.map_err(|error| ErrorCode::Io.because(format!("order: {error}")))?
    }
}
