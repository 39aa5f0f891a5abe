//! The lanes of a client, shared among its files.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cairn_host::net::Network;
use cairn_proto::{Error, fs};
use tokio::time::Instant;

use super::lane::{Lane, Yard};
use super::{Control, Pace};
use crate::metrics::Counters;

/// For how long nobody believes that there is room, unless a chunk was had since.
const LATELY: Duration = Duration::from_secs(5);
/// Lanes that single files may have to themselves, at once, for each replication.
const MAX_OWN: usize = 8;

/// All lanes, by replication.
pub(crate) struct Lanes {
    yard: Arc<Yard>,
    berths: Mutex<BTreeMap<u32, Berth>>,
    turn: AtomicUsize,
}

#[derive(Default)]
struct Berth {
    shared: Vec<Arc<Lane>>,
    free: Vec<Arc<Lane>>,
    own: usize,
}

/// A lane that one file has to itself while it streams, so that its bytes lie together.
/// Dropping it gives the lane back.
pub(crate) struct OwnLane {
    lane: Arc<Lane>,
    replication: u32,
    lanes: Weak<Lanes>,
}

impl Lanes {
    pub(crate) fn new(
        control: Arc<dyn Control>,
        network: Arc<dyn Network>,
        pace: Pace,
        counters: Arc<Counters>,
    ) -> Arc<Lanes> {
        Arc::new(Lanes {
            yard: Arc::new(Yard::new(control, network, pace, counters)),
            berths: Mutex::default(),
            turn: AtomicUsize::new(0),
        })
    }

    /// A lane for a small append: they take turns.
    pub(crate) fn shared(&self, replication: u32) -> Arc<Lane> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut berths = self.berths();
        let lanes = &mut berths.entry(replication).or_default().shared;
        let wanted = self.yard.pace.lanes.max(1);
        if lanes.len() < wanted {
            let lane = Lane::start(replication, Arc::clone(&self.yard));
            lanes.push(Arc::clone(&lane));
            return lane;
        }
        Arc::clone(&lanes[turn % lanes.len()])
    }

    /// A lane for one file alone, unless too many are taken.
    pub(crate) fn own(self: &Arc<Lanes>, replication: u32) -> Option<OwnLane> {
        let mut berths = self.berths();
        let berth = berths.entry(replication).or_default();
        let lane = match berth.free.pop() {
            Some(lane) => lane,
            None if berth.own < MAX_OWN => {
                berth.own += 1;
                Lane::start(replication, Arc::clone(&self.yard))
            }
            None => return None,
        };
        Some(OwnLane { lane, replication, lanes: Arc::downgrade(self) })
    }

    /// Waits until `length` bytes of a chunk written here are on all its disks. False: its chain is gone, so
    /// that this cannot be had through it.
    pub(crate) async fn sync(&self, chunk: u64, length: u64) -> bool {
        match self.yard.chains.get(chunk) {
            Some(chain) => chain.sync(length).await,
            None => false,
        }
    }

    /// Why there was no room for another chunk, if that was after `since` and there was none later.
    pub(crate) fn full_since(&self, since: Instant) -> Option<Error> {
        self.yard.full_since(since)
    }

    /// Why there is no room for another chunk, as far as was seen lately.
    pub(crate) fn full(&self) -> Option<Error> {
        self.full_since(Instant::now().checked_sub(LATELY)?)
    }

    /// The replicas of a chunk written here.
    pub(crate) fn replicas(&self, chunk: u64) -> Option<Vec<fs::ReplicaInfo>> {
        self.yard.chains.get(chunk).map(|chain| chain.replicas.clone())
    }

    /// Ends all lanes; what is not placed fails.
    pub(crate) fn close(&self) {
        self.yard.closed.store(true, Ordering::Relaxed);
        for berth in std::mem::take(&mut *self.berths()).into_values() {
            berth.shared.iter().chain(&berth.free).for_each(|lane| lane.close());
        }
    }

    fn berths(&self) -> MutexGuard<'_, BTreeMap<u32, Berth>> {
        self.berths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwnLane {
    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }
}

impl Drop for OwnLane {
    fn drop(&mut self) {
        match self.lanes.upgrade() {
            Some(lanes) => match lanes.berths().get_mut(&self.replication) {
                Some(berth) => berth.free.push(Arc::clone(&self.lane)),
                None => self.lane.close(),
            },
            None => self.lane.close(),
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.close();
    }
}
