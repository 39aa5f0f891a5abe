//! Whom this datanode believes: who has a certificate, and a capability for the chunk.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use cairn_host::tls::Tls;
use cairn_proto::capability::{Grant, Keyring, Rights};
use cairn_proto::{ErrorCode, Result, control};

/// The certificate, and the keys that the leader told. Without a certificate everybody is believed.
#[derive(Debug, Default)]
pub struct Trust {
    tls: Option<Tls>,
    told: Mutex<Option<Told>>,
}

#[derive(Debug)]
struct Told {
    ring: Keyring,
    /// The leader's time, in seconds since 1970, and when it was told: this machine's clock may be wrong.
    leader_s: u64,
    at: Instant,
}

impl Told {
    fn now_s(&self) -> u64 {
        self.leader_s.saturating_add(self.at.elapsed().as_secs())
    }
}

impl Trust {
    /// With this certificate, if there is one.
    pub fn new(tls: Option<Tls>) -> Trust {
        Trust { tls, told: Mutex::default() }
    }

    /// The certificate, if connections are under TLS.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Takes in what the leader told.
    pub fn learn(&self, cluster_id: &str, keys: &control::Keys) {
        let ring = Keyring::told(cluster_id, keys.keys.iter().map(|key| (key.epoch, &*key.key)));
        let leader_s = u64::try_from(keys.now_ns / 1_000_000_000).unwrap_or(0);
        let told = Told { ring, leader_s, at: Instant::now() };
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    /// Refuses whoever has no right to use the chunk in any of these ways, before anything is said of it.
    pub fn demand(&self, token: &[u8], chunk: u64, wanted: Rights) -> Result<()> {
        if self.tls.is_none() {
            return Ok(());
        }
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = &*told else {
            return Err(ErrorCode::Unavailable.because("this datanode has not joined a cluster yet"));
        };
        told.ring.check(token, chunk, wanted, told.now_s()).map_err(|(error, why)| {
            tracing::warn!(chunk, why, "refused a capability");
            error
        })
    }

    /// What another datanode is shown for a copy: whoever checks capabilities can sign them, too.
    pub fn own(&self, chunk: u64) -> Bytes {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = Grant { chunk, rights: Rights::READ, session: 0 };
        told.as_ref().map(|told| told.ring.mint(grant, told.now_s())).unwrap_or_default()
    }
}
