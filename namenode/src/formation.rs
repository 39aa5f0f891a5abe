//! How a namenode with an empty directory comes to belong to a group.
//!
//! Forming a new one: only when every listed peer answers and all are blank. The first of the sorted addresses
//! makes up the cluster's id and offers place `n` to the `n`th address. The others ask it for their place and write
//! it down. When all say that they have it, the first one starts the group; nobody votes before. So until then any
//! of them may crash, or lose its disk, and the whole thing begins again without harm; and afterwards no place is
//! ever given away a second time: whoever lost its disk then joins under a new id.
//!
//! Joining: as soon as any peer belongs to a cluster, its leader is asked for a place under a new id.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_proto::control::membership_request::Action;
use cairn_proto::control::{MembershipReply, MembershipRequest, WhoLeadsReply, WhoLeadsRequest};
use cairn_proto::{Error, ErrorCode};
use futures::future::join_all;

use crate::channel;
use crate::config::Config;
use crate::identity::{Identity, Phase};
use crate::seat::Seat;

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the leader may take to let a namenode in.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
/// Between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(150);
/// Rounds between two reports that this namenode still waits.
const REPORT_EVERY: u32 = 40;

/// What to do after a round of asking.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Wait for the others.
    Wait,
    /// Ask this namenode for a place in its cluster.
    Join { through: String },
    /// Ask the first one for the place it offers.
    AskForPlace,
    /// Every other namenode has its place: begin.
    Begin,
}

/// Asks the peers until there is a place for this namenode, and writes it down.
pub async fn find_place(config: &Config, seat: &Seat) -> Result<Identity, Error> {
    let cluster_id = uuid::Uuid::new_v4().to_string();
    for round in 0.. {
        let held = seat.identity();
        let replies = ask_all(config).await;
        let step = decide(config, held.as_ref(), &cluster_id, &replies);
        if is_first(config) && replies.values().all(|reply| reply.as_ref().is_some_and(|reply| reply.blank)) {
            seat.offer(cluster_id.clone(), config.peers.clone());
        } else {
            seat.withdraw_offer();
        }
        match step {
            Step::Begin => {
                seat.withdraw_offer();
                return begin(config, seat, cluster_id);
            }
            Step::Join { through } => {
                if let Some(identity) = join(config, seat, &through).await? {
                    return Ok(identity);
                }
            }
            Step::AskForPlace => ask_for_place(config, seat, held).await?,
            Step::Wait => {}
        }
        if round % REPORT_EVERY == REPORT_EVERY - 1 {
            let silent: Vec<&str> = replies
                .iter()
                .filter(|(_, reply)| reply.is_none())
                .map(|(address, _)| address.as_str())
                .collect();
            tracing::warn!(?silent, "not part of a group yet; a new one is formed when all peers answer");
        }
        tokio::select! {
            () = seat.called.notified() => {
                if let Some(identity) = seat.identity() {
                    return enter(config, seat, identity);
                }
            }
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    Err(ErrorCode::NoLeader.into())
}

fn is_first(config: &Config) -> bool {
    config.peers.first() == Some(&config.advertise)
}

type Replies = BTreeMap<String, Option<WhoLeadsReply>>;

/// `WhoLeads` of every other peer.
async fn ask_all(config: &Config) -> Replies {
    let others = config.peers.iter().filter(|peer| **peer != config.advertise);
    let asking = others.map(|peer| async move {
        let asked = async {
            channel::namenode(&config.host.network, peer).ok()?.who_leads(WhoLeadsRequest {}).await.ok()
        };
        let reply = tokio::time::timeout(PATIENCE, asked).await.ok().flatten();
        (peer.clone(), reply.map(|reply| reply.into_inner()))
    });
    join_all(asking).await.into_iter().collect()
}

/// `cluster_id` is the one this namenode would form.
fn decide(config: &Config, held: Option<&Identity>, cluster_id: &str, replies: &Replies) -> Step {
    let mut members = replies.iter().filter_map(|(address, reply)| {
        reply.as_ref().filter(|reply| !reply.blank).map(|reply| (address, reply))
    });
    if let Some((address, member)) = members.next() {
        let leader =
            std::iter::once((address, member)).chain(members).find(|(_, reply)| reply.leader_id != 0);
        let promised = held.is_some_and(|held| held.cluster_id == member.cluster_id);
        return match leader {
            // The place is kept: the group calls when it begins.
            _ if promised => Step::Wait,
            Some((_, reply)) if !reply.leader_address.is_empty() => {
                Step::Join { through: reply.leader_address.clone() }
            }
            _ => Step::Wait,
        };
    }
    if replies.values().any(Option::is_none) {
        return Step::Wait;
    }
    if !is_first(config) {
        return Step::AskForPlace;
    }
    let has_place = |address: &String, reply: &WhoLeadsReply| {
        let position = config.peers.iter().position(|peer| peer == address);
        reply.cluster_id == cluster_id && position.is_some_and(|position| reply.id == position as u64 + 1)
    };
    match replies.iter().all(|(address, reply)| reply.as_ref().is_some_and(|reply| has_place(address, reply)))
    {
        true => Step::Begin,
        false => Step::Wait,
    }
}

fn note(config: &Config, seat: &Seat, identity: Identity) -> Result<Identity, Error> {
    identity.save(&*config.disk, &config.dir)?;
    seat.identify(identity.clone());
    Ok(identity)
}

/// The first namenode starts the group it has prepared.
fn begin(config: &Config, seat: &Seat, cluster_id: String) -> Result<Identity, Error> {
    let mut identity = Identity::new(1, cluster_id, Phase::Entering);
    identity.first_members =
        config.peers.iter().enumerate().map(|(at, address)| (at as u64 + 1, address.clone())).collect();
    tracing::info!(cluster = %identity.cluster_id, members = ?config.peers, "forming a cluster");
    note(config, seat, identity)
}

/// The group calls this namenode to the place it was promised.
fn enter(config: &Config, seat: &Seat, mut identity: Identity) -> Result<Identity, Error> {
    identity.phase = Phase::Entering;
    note(config, seat, identity)
}

async fn change(config: &Config, address: &str) -> Option<MembershipReply> {
    let ask = MembershipRequest { action: Action::Join as i32, address: config.advertise.clone(), id: 0 };
    let asked =
        async { channel::namenode(&config.host.network, address).ok()?.change_membership(ask).await.ok() };
    Some(tokio::time::timeout(JOIN_PATIENCE, asked).await.ok()??.into_inner())
}

/// Asks the first namenode for the place it offers; the answer is written down before anybody hears of it.
async fn ask_for_place(config: &Config, seat: &Seat, held: Option<Identity>) -> Result<(), Error> {
    let Some(first) = config.peers.first() else { return Ok(()) };
    let Some(reply) = change(config, first).await else { return Ok(()) };
    if reply.error.is_some() || reply.id == 0 || reply.cluster_id.is_empty() {
        return Ok(());
    }
    let offered = Identity::new(reply.id, reply.cluster_id, Phase::Awaiting);
    if held.as_ref() != Some(&offered) {
        note(config, seat, offered)?;
    }
    Ok(())
}

/// Asks a leader for a place; nothing if it has to be asked again.
async fn join(config: &Config, seat: &Seat, leader: &str) -> Result<Option<Identity>, Error> {
    let Some(reply) = change(config, leader).await else { return Ok(None) };
    if let Some(error) = reply.error {
        let error = Error::from(error);
        return match error.code {
            ErrorCode::Exists | ErrorCode::WrongCluster => Err(error),
            _ => {
                tracing::info!(leader, %error, "not let in yet");
                Ok(None)
            }
        };
    }
    if reply.id == 0 || reply.cluster_id.is_empty() {
        return Ok(None);
    }
    tracing::info!(id = reply.id, cluster = %reply.cluster_id, "joining a cluster");
    note(config, seat, Identity::new(reply.id, reply.cluster_id, Phase::Entering)).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(own: &str) -> Config {
        let peers = ["a:1", "b:1", "c:1"].map(String::from).to_vec();
        Config { dir: "/nowhere".into(), advertise: own.into(), peers, ..Config::default() }
    }

    fn blank() -> Option<WhoLeadsReply> {
        Some(WhoLeadsReply { blank: true, ..WhoLeadsReply::default() })
    }

    fn awaiting(id: u64, cluster: &str) -> Option<WhoLeadsReply> {
        Some(WhoLeadsReply { blank: true, id, cluster_id: cluster.into(), ..WhoLeadsReply::default() })
    }

    fn member(cluster: &str, leader: &str) -> Option<WhoLeadsReply> {
        Some(WhoLeadsReply {
            id: 1,
            cluster_id: cluster.into(),
            leader_id: u64::from(!leader.is_empty()),
            leader_address: leader.into(),
            ..WhoLeadsReply::default()
        })
    }

    fn replies<const N: usize>(pairs: [(&str, Option<WhoLeadsReply>); N]) -> Replies {
        pairs.into_iter().map(|(address, reply)| (address.to_owned(), reply)).collect()
    }

    #[test]
    fn nothing_is_formed_while_a_peer_is_silent() {
        let silent = replies([("b:1", blank()), ("c:1", None)]);
        assert_eq!(decide(&config("a:1"), None, "x", &silent), Step::Wait);
        assert_eq!(
            decide(&config("b:1"), None, "x", &replies([("a:1", blank()), ("c:1", None)])),
            Step::Wait
        );
    }

    #[test]
    fn the_first_begins_only_when_everybody_has_the_right_place_in_the_right_cluster() {
        let first = config("a:1");
        let step = |b, c| decide(&first, None, "x", &replies([("b:1", b), ("c:1", c)]));
        assert_eq!(step(blank(), blank()), Step::Wait);
        assert_eq!(step(awaiting(2, "x"), blank()), Step::Wait);
        assert_eq!(step(awaiting(2, "old"), awaiting(3, "x")), Step::Wait);
        assert_eq!(step(awaiting(3, "x"), awaiting(2, "x")), Step::Wait);
        assert_eq!(step(awaiting(2, "x"), awaiting(3, "x")), Step::Begin);
    }

    #[test]
    fn the_others_ask_the_first() {
        let all_blank = replies([("a:1", blank()), ("c:1", awaiting(3, "x"))]);
        assert_eq!(decide(&config("b:1"), None, "y", &all_blank), Step::AskForPlace);
    }

    #[test]
    fn a_formed_cluster_is_joined_through_its_leader_even_if_others_are_silent() {
        let some = replies([("a:1", member("x", "c:1")), ("b:1", None)]);
        assert_eq!(decide(&config("c:1"), None, "y", &some), Step::Join { through: "c:1".into() });
        let leaderless = replies([("a:1", member("x", "")), ("b:1", blank())]);
        assert_eq!(decide(&config("c:1"), None, "y", &leaderless), Step::Wait);
    }

    #[test]
    fn a_promised_place_is_kept_when_the_group_has_begun() {
        let begun = replies([("a:1", member("x", "a:1")), ("c:1", blank())]);
        let held = Identity::new(2, "x", Phase::Awaiting);
        assert_eq!(decide(&config("b:1"), Some(&held), "y", &begun), Step::Wait);
        let other = Identity::new(2, "old", Phase::Awaiting);
        assert_eq!(decide(&config("b:1"), Some(&other), "y", &begun), Step::Join { through: "a:1".into() });
    }
}
