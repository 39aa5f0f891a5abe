//! Opening one link of a chain: the own replica, and the connection to the next link.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::capability::Rights;
use cairn_proto::data::{ChainLink, OpenChain, request, response};
use cairn_proto::limits::MAX_REPLICATION;
use cairn_proto::{Error, ErrorCode, Result};

use crate::peer::{Peer, Refusal};
use crate::server::Shared;
use crate::settings::Settings;
use crate::socket::{Patience, Socket};
use crate::store::Appender;

/// Opens the next link and the own replica, and waits until all links below are ready.
pub fn open_links(
    upstream: &Arc<Socket>,
    shared: &Shared,
    open: &OpenChain,
) -> Result<(Appender, Option<Peer>), Refusal> {
    if open.links.len() >= MAX_REPLICATION as usize {
        let error = ErrorCode::TooLarge.because(format!("a chain of {} links", open.links.len() + 1));
        return Err(Refusal { error, node: shared.node(), sent: false });
    }
    if let Err(error) = shared.settings.trust.demand(&open.capability, open.chunk, Rights::APPEND) {
        return Err(Refusal { error, node: shared.node(), sent: false });
    }
    // The link above blames the one it meant.
    recognize(shared.node(), open.node).map_err(|error| Refusal { error, node: 0, sent: false })?;
    let mut peer = None;
    if let Some((next, rest)) = open.links.split_first() {
        let below = OpenChain { node: next.node, links: rest.to_vec(), ..open.clone() };
        let connected =
            Peer::connect(&next.address, &shared.store.cluster_id().unwrap_or_default(), &shared.settings)
                .map(|peer| peer.expecting(next.node))
                .and_then(|peer| peer.send(request::Kind::Open(below)).map(|()| peer));
        peer = Some((connected.map_err(|error| broken_link(next, &error))?, next, rest.len()));
    }
    // Meanwhile the links below open theirs.
    let own = shared.store.open_appender(open.chunk, open.length, upstream);
    let appender = own.map_err(|error| Refusal { error, node: shared.node(), sent: false })?;
    let Some((mut peer, next, after)) = peer else { return Ok((appender, None)) };
    let patience = opening_patience(&shared.settings, after);
    match peer.receive(&mut Vec::new(), &mut |waiting| patience.check(waiting)) {
        Ok(Some((response::Kind::Opened(_), 0))) => Ok((appender, Some(peer))),
        Ok(_) => Err(broken_link(next, &ErrorCode::Malformed.because("no answer to OpenChain"))),
        Err(refusal) if refusal.node != 0 => Err(refusal),
        Err(refusal) if is_connection(&refusal.error) => Err(broken_link(next, &refusal.error)),
        Err(refusal) => Err(Refusal { node: next.node, ..refusal }),
    }
}

/// Refuses who means another cluster than `own`, which a datanode with empty disks does not have yet.
pub fn recognize_cluster(own: Option<&str>, meant: &str) -> Result<()> {
    match own {
        Some(own) if own == meant => Ok(()),
        Some(own) => {
            let detail = format!("this datanode is of cluster {own}, not {meant:?}");
            Err(ErrorCode::WrongCluster.because(detail))
        }
        None => Err(ErrorCode::Unavailable.because("this datanode has not joined a cluster yet")),
    }
}

/// Refuses a chain that is meant for another datanode than `own`: an empty disk may have been put in the place of another
/// datanode's, whose number the writer has in mind. `meant` is 0 where nobody said.
pub fn recognize(own: u32, meant: u32) -> Result<()> {
    match own {
        0 => Err(ErrorCode::Unavailable.because("this datanode is not registered yet")),
        _ if meant != 0 && meant != own => {
            Err(ErrorCode::Unavailable.because(format!("this is datanode {own}, not {meant}")))
        }
        _ => Ok(()),
    }
}

fn is_connection(error: &Error) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout)
}

/// A refusal that blames the next link.
pub fn broken_link(link: &ChainLink, error: &Error) -> Refusal {
    let error =
        ErrorCode::ChainBroken.because(format!("datanode {} at {}: {error}", link.node, link.address));
    Refusal { error, node: link.node, sent: false }
}

/// The longest any reply of `links` more datanodes may take while a chain is being opened.
fn opening_patience(settings: &Settings, links: usize) -> Patience {
    let limit = settings.connect * (links as u32 + 1) + Duration::from_millis(500);
    Patience { idle: limit, frame: limit }
}
