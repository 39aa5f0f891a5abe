//! Capabilities: a namenode's word that the bearer may use one chunk, in one way, for a while.
//!
//! A namenode that has checked a user's permission signs chunk, rights, session and end with a key that datanodes have,
//! too (keyed BLAKE3). Keys are derived from a secret that only namenodes know, one for each hour, and datanodes hold those
//! around the present one: a key that gets out is of use for hours at most.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{ErrorCode, Result};

/// Bytes of a key, and of the secret.
pub const KEY: usize = 32;
/// For how long a capability is good, in seconds. Who needs it longer asks again.
pub const LIFETIME_S: u64 = 600;
/// How far the clocks of two leaders may be apart, in seconds.
const SLACK_S: u64 = 120;
/// A key is used for so long, in seconds.
const EPOCH_S: u64 = 3600;
const VERSION: u8 = 1;
/// Version, epoch, rights, session, end.
const HEAD: usize = 1 + 8 + 1 + 8 + 8;
const CONTEXT: &str = "CairnFS 2026-11 key of chunk capabilities";

/// Ways to use a chunk; a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// To read it.
    pub const READ: Rights = Rights(1);
    /// To open it for appending.
    pub const APPEND: Rights = Rights(2);
    /// To ask how long a replica is and whether it is sealed.
    pub const STAT: Rights = Rights(4);

    /// All of both.
    pub const fn and(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// Whether any of `wanted` is there.
    fn any_of(self, wanted: Rights) -> bool {
        self.0 & wanted.0 != 0
    }
}

/// What a capability allows.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    /// The chunk.
    pub chunk: u64,
    /// In which ways.
    pub rights: Rights,
    /// The session it was given to; 0: none.
    pub session: u64,
}

/// Keys by their hour, and the cluster they are good in.
#[derive(Clone, Default)]
pub struct Keyring {
    cluster_id: String,
    keys: BTreeMap<u64, [u8; KEY]>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Keyring").field("epochs", &self.keys.keys()).finish_non_exhaustive()
    }
}

impl Keyring {
    /// A namenode's, from the secret, around `now_s`: the hour before and the hour after are there, too.
    pub fn derived(cluster_id: &str, secret: &[u8], now_s: u64) -> Keyring {
        let epoch = now_s / EPOCH_S;
        let keys = (epoch.saturating_sub(1)..=epoch + 1).map(|epoch| (epoch, derive(secret, epoch)));
        Keyring { cluster_id: cluster_id.to_owned(), keys: keys.collect() }
    }

    /// A datanode's, as it was told; what is no key is left out.
    pub fn told<'a>(cluster_id: &str, keys: impl IntoIterator<Item = (u64, &'a [u8])>) -> Keyring {
        let keys = keys.into_iter().filter_map(|(epoch, key)| Some((epoch, key.try_into().ok()?)));
        Keyring { cluster_id: cluster_id.to_owned(), keys: keys.collect() }
    }

    /// Every key with its hour.
    pub fn keys(&self) -> impl Iterator<Item = (u64, &[u8; KEY])> {
        self.keys.iter().map(|(epoch, key)| (*epoch, key))
    }

    /// Signs a capability; empty if the key of the hour is not there.
    pub fn mint(&self, grant: Grant, now_s: u64) -> Bytes {
        let epoch = now_s / EPOCH_S;
        let Some(key) = self.keys.get(&epoch) else { return Bytes::new() };
        let mut token = BytesMut::with_capacity(HEAD + blake3::OUT_LEN);
        token.put_u8(VERSION);
        token.put_u64_le(epoch);
        token.put_u8(grant.rights.0);
        token.put_u64_le(grant.session);
        token.put_u64_le(now_s.saturating_add(LIFETIME_S));
        let signature = self.sign(key, &token, grant.chunk);
        token.extend_from_slice(signature.as_bytes());
        token.freeze()
    }

    /// Refuses whoever may not use `chunk` in any of the ways `wanted`. The refusal says nothing of why, the second
    /// value, which is for the own log, does.
    pub fn check(
        &self,
        token: &[u8],
        chunk: u64,
        wanted: Rights,
        now_s: u64,
    ) -> Result<(), (crate::Error, &'static str)> {
        let refuse = |why| Err((ErrorCode::NoCapability.into(), why));
        let Some((head, signature)) = token.split_at_checked(HEAD) else {
            return refuse("none, or a torn one");
        };
        let (version, epoch, rights, end) = (head[0], number(&head[1..9]), head[9], number(&head[18..26]));
        let Ok(signature) = <[u8; blake3::OUT_LEN]>::try_from(signature) else { return refuse("a torn one") };
        if version != VERSION {
            return refuse("of an unknown version");
        }
        let Some(key) = self.keys.get(&epoch) else { return refuse("of an hour whose key is not here") };
        // Compared in constant time.
        if self.sign(key, head, chunk) != blake3::Hash::from_bytes(signature) {
            return refuse("not a namenode's, or for another chunk");
        }
        if now_s > end.saturating_add(SLACK_S) {
            return refuse("its time is over");
        }
        if !Rights(rights).any_of(wanted) {
            return refuse("for something else");
        }
        Ok(())
    }

    fn sign(&self, key: &[u8; KEY], head: &[u8], chunk: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(head);
        hasher.update(&chunk.to_le_bytes());
        hasher.update(self.cluster_id.as_bytes());
        hasher.finalize()
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn derive(secret: &[u8], epoch: u64) -> [u8; KEY] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(secret);
    hasher.update(&epoch.to_le_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const GRANT: Grant = Grant { chunk: 7, rights: Rights::READ.and(Rights::STAT), session: 3 };

    fn ring(secret: &[u8]) -> Keyring {
        Keyring::derived("c", secret, NOW)
    }

    fn code(ring: &Keyring, token: &[u8], chunk: u64, wanted: Rights, now: u64) -> Option<&'static str> {
        ring.check(token, chunk, wanted, now).err().map(|(error, why)| {
            assert_eq!(
                (error.code, error.detail.as_str()),
                (ErrorCode::NoCapability, ""),
                "it tells nothing"
            );
            why
        })
    }

    #[test]
    fn it_is_good_for_one_chunk_in_some_ways_for_a_while() {
        let namenode = ring(b"secret");
        let keys: Vec<_> = namenode.keys().map(|(epoch, key)| (epoch, key.to_vec())).collect();
        let datanode = Keyring::told("c", keys.iter().map(|(epoch, key)| (*epoch, key.as_slice())));
        let token = namenode.mint(GRANT, NOW);
        assert_eq!(code(&datanode, &token, 7, Rights::READ, NOW), None);
        assert_eq!(code(&datanode, &token, 7, Rights::STAT.and(Rights::APPEND), NOW + LIFETIME_S), None);
        assert!(code(&datanode, &token, 8, Rights::READ, NOW).is_some());
        assert!(code(&datanode, &token, 7, Rights::APPEND, NOW).is_some());
        assert!(code(&datanode, &token, 7, Rights::READ, NOW + LIFETIME_S + SLACK_S + 1).is_some());
        assert!(code(&ring(b"other"), &token, 7, Rights::READ, NOW).is_some());
        let elsewhere = Keyring { cluster_id: "d".into(), ..namenode.clone() };
        assert!(code(&elsewhere, &token, 7, Rights::READ, NOW).is_some());
        // The next hour's key takes over while this one's is still there.
        let later = Keyring::derived("c", b"secret", NOW + EPOCH_S);
        assert_eq!(code(&later, &token, 7, Rights::READ, NOW), None);
        let much_later = Keyring::derived("c", b"secret", NOW + 3 * EPOCH_S);
        assert!(code(&much_later, &token, 7, Rights::READ, NOW).is_some());
    }

    #[test]
    fn no_bit_can_be_changed_and_nothing_torn_is_taken() {
        let ring = ring(b"secret");
        let token = ring.mint(GRANT, NOW);
        for at in 0..token.len() * 8 {
            let mut changed = token.to_vec();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(code(&ring, &changed, 7, Rights::READ, NOW).is_some(), "bit {at}");
        }
        for length in 0..token.len() {
            assert!(code(&ring, &token[..length], 7, Rights::READ, NOW).is_some(), "{length} bytes");
        }
        assert!(code(&ring, &[token.to_vec(), vec![0]].concat(), 7, Rights::READ, NOW).is_some());
        assert!(Keyring::default().mint(GRANT, NOW).is_empty());
    }
}
