//! Making a sealed replica out of pieces of others: compaction's share of a datanode's work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_proto::control::{GatherPiece, GatherReplica, GatherSource};
use cairn_proto::limits::{MAX_CHUNK_SIZE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result};

use crate::pace::Pace;
use crate::peer::Peer;
use crate::settings::Settings;
use crate::store::{Incoming, Scratch, Seal, Store, speaks_against};

/// Bytes asked of a peer at a time.
const REQUEST: u64 = 8 * MAX_PAYLOAD as u64;

/// Makes this datanode hold the chunk the order describes. Blocks; `stop` is asked between pieces.
///
/// Each piece comes from the own replica if that is good, or else from the first peer that gives it; one that fails is
/// not asked again. Every byte is verified against its block's checksum where it is read, as for any reader.
pub fn gather(
    store: &Store,
    order: &GatherReplica,
    settings: &Arc<Settings>,
    stop: &dyn Fn() -> bool,
) -> Result<Seal> {
    check(order)?;
    let incoming = match store.incoming(order.chunk, order.length, &[], false)? {
        Ok(incoming) => incoming,
        Err(seal) => return Ok(seal),
    };
    let mut gathering = Gathering {
        store,
        settings,
        stop,
        incoming,
        pace: Pace::new(order.bytes_per_second),
        scratch: Scratch::default(),
        peers: BTreeMap::new(),
        given_up: BTreeSet::new(),
    };
    for piece in &order.pieces {
        let source = &order.sources[piece.source as usize];
        gathering.take(source, piece)?;
    }
    gathering.incoming.finish(store, &[])
}

fn check(order: &GatherReplica) -> Result<()> {
    let mut length = 0u64;
    for piece in &order.pieces {
        length = length.saturating_add(piece.length);
        if piece.source as usize >= order.sources.len() || piece.offset.checked_add(piece.length).is_none() {
            length = u64::MAX;
        }
    }
    let is_own = order.sources.iter().any(|source| source.chunk == order.chunk);
    if length != order.length || length > MAX_CHUNK_SIZE || is_own {
        return Err(ErrorCode::Malformed.because(format!("gathering of chunk {}", order.chunk)));
    }
    Ok(())
}

struct Gathering<'a> {
    store: &'a Store,
    settings: &'a Arc<Settings>,
    stop: &'a dyn Fn() -> bool,
    incoming: Incoming,
    pace: Pace,
    scratch: Scratch,
    peers: BTreeMap<&'a str, Peer>,
    /// Replicas that failed: own ones under an empty address.
    given_up: BTreeSet<(u64, &'a str)>,
}

/// Whose fault it is that a piece did not come.
enum Trouble {
    Own(Error),
    Source(Error),
}

impl<'a> Gathering<'a> {
    fn take(&mut self, source: &'a GatherSource, piece: &GatherPiece) -> Result<()> {
        let first = self.incoming.held();
        let mut failed = None;
        let addresses = source.addresses.iter().map(String::as_str);
        for address in std::iter::once("").chain(addresses) {
            if self.given_up.contains(&(source.chunk, address)) {
                continue;
            }
            // Whoever is next goes on where the last one stopped.
            let held = self.incoming.held() - first;
            let (offset, length) = (piece.offset + held, piece.length - held);
            let taken = match address {
                "" => self.read_own(source.chunk, offset, length),
                address => self.read_peer(address, source.chunk, offset, length),
            };
            match taken {
                Ok(()) => return Ok(()),
                Err(Trouble::Own(error)) => return Err(error),
                Err(Trouble::Source(error)) => {
                    tracing::debug!(chunk = source.chunk, address, %error, "gathering from this replica failed");
                    self.given_up.insert((source.chunk, address));
                    if failed.is_none() || error.code != ErrorCode::ChunkUnknown {
                        failed = Some(error);
                    }
                }
            }
        }
        let nobody = || ErrorCode::Unavailable.because(format!("no replica of chunk {}", source.chunk));
        Err(failed.unwrap_or_else(nobody))
    }

    fn read_own(&mut self, chunk: u64, mut offset: u64, mut length: u64) -> Result<(), Trouble> {
        let replica = self.store.get(chunk).map_err(Trouble::Source)?;
        replica.check_range(offset, length).map_err(Trouble::Source)?;
        while length > 0 {
            self.go_on().map_err(Trouble::Own)?;
            let size = length.min(MAX_PAYLOAD as u64);
            let range = replica.read(offset, size as usize, &mut self.scratch).map_err(|error| {
                if speaks_against(error.code) {
                    self.store.accuse(&replica, &error.to_string());
                }
                Trouble::Source(error)
            })?;
            self.pace.wait(size as usize);
            self.incoming.write(self.scratch.bytes(range)).map_err(Trouble::Own)?;
            offset += size;
            length -= size;
        }
        Ok(())
    }

    fn read_peer(
        &mut self,
        address: &'a str,
        chunk: u64,
        mut offset: u64,
        mut length: u64,
    ) -> Result<(), Trouble> {
        // A connection that waited may have been cut to make room for others: that says nothing of the source.
        let kept = self.peers.remove(address).filter(|peer| peer.in_step() && !peer.stream().has_hung_up());
        let mut peer = match kept {
            Some(peer) => peer,
            None => {
                let cluster_id = self.store.cluster_id().unwrap_or_default();
                Peer::connect(address, &cluster_id, self.settings).map_err(Trouble::Source)?
            }
        };
        while length > 0 {
            self.go_on().map_err(Trouble::Own)?;
            let size = length.min(REQUEST);
            let (incoming, pace) = (&mut self.incoming, &mut self.pace);
            let mut own = None;
            let read = peer.read(chunk, offset, size, &mut |bytes| {
                pace.wait(bytes.len());
                incoming.write(bytes).inspect_err(|error| own = Some(error.clone()))
            });
            match (read, own) {
                (Ok(()), _) => {}
                (Err(_), Some(own)) => return Err(Trouble::Own(own)),
                (Err(error), None) => return Err(Trouble::Source(error)),
            }
            offset += size;
            length -= size;
        }
        self.peers.insert(address, peer);
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        if (self.stop)() {
            return Err(ErrorCode::Unavailable.because("the datanode stops"));
        }
        Ok(())
    }
}
