//! What the leader signs for clients, and tells datanodes so that they can check it.
//!
//! The secret is in the log, so every leader signs with the same keys: a change of leader takes no capability back, and a
//! datanode need not hear of it first. Where TLS is off nothing is signed or checked: whoever may pose as a datanode is
//! told the keys.

use std::sync::{Arc, Mutex, PoisonError};

use cairn_host::clock::Clock;
use cairn_metadata::records;
use cairn_metadata::store::Store;
use cairn_proto::capability::{Grant, Keyring, Rights};
use cairn_proto::control::{CapabilityKey, Keys};
use cairn_proto::fs::{Answer, ChunkInfo, Outcome, answer, outcome};

/// For how long keys that were derived are used again, in seconds; the present one is good for longer.
const KEPT_S: u64 = 60;

/// Signs capabilities.
pub struct Capabilities {
    on: bool,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    ring: Mutex<Option<(u64, Arc<Keyring>)>>,
}

impl Capabilities {
    /// Signs nothing unless it is `on`.
    pub fn new(on: bool, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Capabilities {
        Capabilities { on, store, clock, ring: Mutex::default() }
    }

    fn now_s(&self) -> u64 {
        u64::try_from(self.clock.now_ns() / 1_000_000_000).unwrap_or(0)
    }

    /// The keys around `now_s`, as soon as the log has a secret.
    fn ring(&self, now_s: u64) -> Option<Arc<Keyring>> {
        if !self.on {
            return None;
        }
        let mut held = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, ring)) = &*held
            && now_s.abs_diff(*since) < KEPT_S
        {
            return Some(ring.clone());
        }
        let mut meta = None;
        let read = self.store.read(&mut |view| {
            meta = records::meta(view)?;
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(%error, "no capabilities");
            return None;
        }
        let meta = meta.filter(|meta| !meta.secret.is_empty())?;
        let ring = Arc::new(Keyring::derived(&meta.cluster_id, &meta.secret, now_s));
        *held = Some((now_s, ring.clone()));
        Some(ring)
    }

    /// What datanodes are told.
    pub fn keys(&self) -> Option<Keys> {
        let now_ns = self.clock.now_ns();
        let ring = self.ring(self.now_s())?;
        let keys = ring.keys().map(|(epoch, key)| CapabilityKey { epoch, key: key.to_vec().into() });
        Some(Keys { keys: keys.collect(), now_ns })
    }

    /// Adds to an answer the right to use the chunks it names: whoever got a layout may read them. What is asked about a
    /// chunk by its number is not, unless it is the asker's own open one, or the asker is root.
    pub fn sign_answer(&self, answer: &mut Answer, session: u64, uid: u32) {
        match &mut answer.result {
            Some(answer::Result::Layout(layout)) => {
                self.sign(&mut layout.chunks, Rights::READ.and(Rights::STAT), session);
            }
            Some(answer::Result::Chunk(chunk)) => {
                let is_own = uid == 0 || session != 0 && chunk.session == session;
                let rights = if is_own { Rights::READ.and(Rights::STAT) } else { Rights::STAT };
                self.sign(std::slice::from_mut(chunk), rights, session);
            }
            _ => {}
        }
    }

    /// Adds to the outcome of an allocation the right to write to the chunk, and to read what was written.
    pub fn sign_outcome(&self, outcome: &mut Outcome, session: u64) {
        if let Some(outcome::Result::Allocated(allocated)) = &mut outcome.result
            && let Some(chunk) = &mut allocated.chunk
        {
            let rights = Rights::READ.and(Rights::APPEND).and(Rights::STAT);
            self.sign(std::slice::from_mut(chunk), rights, session);
        }
    }

    fn sign(&self, chunks: &mut [ChunkInfo], rights: Rights, session: u64) {
        if !self.on || chunks.is_empty() {
            return;
        }
        let now_s = self.now_s();
        let Some(ring) = self.ring(now_s) else { return };
        for chunk in chunks {
            let token = ring.mint(Grant { chunk: chunk.chunk, rights, session }, now_s);
            chunk.replicas.iter_mut().for_each(|replica| replica.capability = token.clone());
        }
    }
}
