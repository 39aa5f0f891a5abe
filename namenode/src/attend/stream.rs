//! A datanode's stream: it registers, reports, and answers orders.

use std::sync::Arc;
use std::time::Duration;

use cairn_metadata::plan::Node;
use cairn_proto::control::{
    DatanodeMessage, HeartbeatAck, Inventory, NamenodeMessage, OrderDone, Register, Registered, ReplicaBad,
    datanode_message, namenode_message,
};
use cairn_proto::fs::{Liveness, RegisterDatanode, mutation, outcome};
use cairn_proto::limits::HEARTBEAT_MS;
use cairn_proto::store::Datanode;
use cairn_proto::{Error, ErrorCode};
use futures::{Stream, StreamExt};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::Status;

use super::leading::{Fault, Leading};
use super::roster::{self, Outgoing};
use super::round::read_roster;
use super::{Shared, answers, inventory};
use crate::propose::own;

/// How long a stranger may take to say who it is, and how long a farewell may take.
const GREETING: Duration = Duration::from_secs(10);

/// A registered datanode's place in the leader's memory.
struct Seat {
    node: u32,
    stream: u64,
    generation: u64,
    /// Resolves when the leader's memory lets go of the stream: another took its place, or the leadership ended.
    displaced: oneshot::Receiver<()>,
}

/// Serves a stream until it breaks, is replaced, falls silent, or this namenode stops leading.
pub(super) async fn serve<S>(shared: &Arc<Shared>, mut incoming: S, outgoing: Outgoing)
where
    S: Stream<Item = Result<DatanodeMessage, Status>> + Unpin,
{
    let mut seat = match greet(shared, &mut incoming, &outgoing).await {
        Ok(seat) => seat,
        Err(error) => return refuse(&outgoing, error).await,
    };
    let silence = shared.settings.dead_after.max(GREETING);
    let farewell = loop {
        tokio::select! {
            message = timeout(silence, incoming.next()) => {
                let Ok(Some(Ok(DatanodeMessage { kind: Some(kind) }))) = message else { break None };
                if let Err(error) = hear(shared, &seat, kind, &outgoing).await {
                    break Some(error);
                }
            }
            _ = &mut seat.displaced => {
                let is_leading = shared.with(Some(seat.generation), |_, _| ()).is_some();
                break (!is_leading).then(not_leading);
            }
        }
    };
    shared.with(Some(seat.generation), |leading, now_ms| {
        if is_seated(leading, &seat) {
            tracing::info!(node = seat.node, "datanode's stream ended");
            leading.disconnect(seat.node, now_ms);
        }
    });
    shared.wake.notify_one();
    if let Some(error) = farewell {
        refuse(&outgoing, error).await;
    }
}

pub(super) fn not_leading() -> Error {
    ErrorCode::NotLeader.because("datanodes attend the leader")
}

async fn refuse(outgoing: &Outgoing, error: Error) {
    tracing::debug!(%error, "datanode refused");
    let kind = Some(namenode_message::Kind::Refused(error.into()));
    let message = NamenodeMessage { kind, ..NamenodeMessage::default() };
    let _ = timeout(GREETING, outgoing.send(Ok(message))).await;
}

fn is_seated(leading: &Leading, seat: &Seat) -> bool {
    let attendee = leading.roster.attendees.get(&seat.node);
    attendee.and_then(|attendee| attendee.stream.as_ref()).is_some_and(|stream| stream.id == seat.stream)
}

async fn greet<S>(shared: &Arc<Shared>, incoming: &mut S, outgoing: &Outgoing) -> Result<Seat, Error>
where
    S: Stream<Item = Result<DatanodeMessage, Status>> + Unpin,
{
    let first = timeout(GREETING, incoming.next())
        .await
        .map_err(|_| ErrorCode::Timeout.because("a datanode did not say who it is"))?;
    let Some(Ok(DatanodeMessage { kind: Some(datanode_message::Kind::Register(ask)) })) = first else {
        return Err(ErrorCode::Malformed.because("the first message is not a registration"));
    };
    let generation = shared.with(None, |leading, _| leading.generation).ok_or_else(not_leading)?;
    let (node, record, cluster_id) = register(shared, generation, &ask).await?;
    let seat = shared
        .with(Some(generation), |leading, now_ms| sit(leading, node, record, &ask, outgoing, now_ms))
        .ok_or_else(not_leading)?;
    tracing::info!(node, address = ask.address, "datanode attends");
    let (heartbeat_ms, keys) = (HEARTBEAT_MS as u32, shared.capabilities.keys());
    let kind = Some(namenode_message::Kind::Registered(Registered { node, cluster_id, heartbeat_ms, keys }));
    let message = NamenodeMessage { kind, ..NamenodeMessage::default() };
    // A failure shows on the incoming side as well, where the seat is given up.
    let _ = timeout(GREETING, outgoing.send(Ok(message))).await;
    shared.wake.notify_one();
    Ok(seat)
}

/// Finds or makes the datanode's record.
async fn register(
    shared: &Arc<Shared>,
    generation: u64,
    ask: &Register,
) -> Result<(u32, Datanode, String), Error> {
    let (meta, records) =
        read_roster(shared.store.as_ref()).map_err(|error| ErrorCode::Io.because(error.to_string()))?;
    if meta.cluster_id.is_empty() {
        return Err(ErrorCode::Unavailable.because("the cluster is not formed yet"));
    }
    if !ask.cluster_id.is_empty() && ask.cluster_id != meta.cluster_id {
        let detail = format!("the datanode is of cluster {}, this is {}", ask.cluster_id, meta.cluster_id);
        return Err(ErrorCode::WrongCluster.because(detail));
    }
    let known = records.into_iter().find(|(_, record)| record.uuid == ask.uuid);
    if let Some((node, record)) = &known {
        refuse_twin(shared, generation, *node, record, ask)?;
    }
    let space = ask.space.unwrap_or_default();
    let wanted = Datanode {
        uuid: ask.uuid.clone(),
        address: ask.address.clone(),
        host: ask.host.clone(),
        rack: ask.rack.clone(),
        capacity: space.capacity,
        admin: known.as_ref().map(|(_, record)| record.admin).unwrap_or_default(),
        until_ns: known.as_ref().map(|(_, record)| record.until_ns).unwrap_or_default(),
    };
    if let Some((node, record)) = known
        && record == wanted
    {
        return Ok((node, record, meta.cluster_id));
    }
    let op = mutation::Op::RegisterDatanode(RegisterDatanode {
        uuid: ask.uuid.clone(),
        address: ask.address.clone(),
        rack: ask.rack.clone(),
        capacity: space.capacity,
        host: ask.host.clone(),
    });
    match (shared.propose)(own(op)).await?.result {
        Some(outcome::Result::Datanode(registered)) => Ok((registered.node, wanted, meta.cluster_id)),
        Some(outcome::Result::Error(error)) => Err(error.into()),
        _ => Err(ErrorCode::Io.because("unexpected outcome of a registration")),
    }
}

/// Two datanodes with one uuid (a copied disk) would take each other's place for ever: the first stays.
fn refuse_twin(
    shared: &Arc<Shared>,
    generation: u64,
    node: u32,
    record: &Datanode,
    ask: &Register,
) -> Result<(), Error> {
    if record.address == ask.address {
        return Ok(());
    }
    let is_present = shared
        .with(Some(generation), |leading, now_ms| {
            let is_live = leading.roster.liveness(node) == Liveness::Live;
            let attendee = leading.roster.attendees.get_mut(&node);
            let Some(attendee) = attendee.filter(|attendee| attendee.stream.is_some() && is_live) else {
                return false;
            };
            if attendee.rival.as_ref().is_none_or(|(address, _)| *address != ask.address) {
                tracing::error!(
                    node,
                    address = ask.address,
                    "another datanode claims an identity that is live"
                );
            }
            attendee.rival = Some((ask.address.clone(), now_ms));
            true
        })
        .ok_or_else(not_leading)?;
    if is_present {
        let detail = format!(
            "datanode {} is live at {}; if this is a copy of its disk, start with an empty directory",
            ask.uuid, record.address
        );
        return Err(ErrorCode::Exists.because(detail));
    }
    Ok(())
}

fn sit(
    leading: &mut Leading,
    node: u32,
    record: Datanode,
    ask: &Register,
    outgoing: &Outgoing,
    now_ms: u64,
) -> Seat {
    let had_copies = leading.flights.any_to(node);
    leading.disconnect(node, now_ms);
    leading.failures.clear_node(node);
    leading.copy_failures.clear_node(node);
    let (alive, displaced) = oneshot::channel();
    let stream = leading.next_stream;
    leading.next_stream += 1;
    if had_copies {
        leading.ask_again(node, now_ms);
    }
    let attendee = leading.roster.attendees.entry(node).or_default();
    attendee.record = record;
    attendee.heard_ms = Some(now_ms);
    attendee.space = ask.space;
    attendee.stream = Some(roster::Stream { id: stream, outgoing: outgoing.clone(), _alive: alive });
    attendee.lost_ms = None;
    Seat { node, stream, generation: leading.generation, displaced }
}

/// Takes one message in. An error ends the stream.
async fn hear(
    shared: &Arc<Shared>,
    seat: &Seat,
    kind: datanode_message::Kind,
    outgoing: &Outgoing,
) -> Result<(), Error> {
    let leaving = shared
        .with(Some(seat.generation), |leading, now_ms| {
            if is_seated(leading, seat)
                && let Some(attendee) = leading.roster.attendees.get_mut(&seat.node)
            {
                attendee.heard_ms = Some(now_ms);
                if let datanode_message::Kind::Heartbeat(heartbeat) = &kind {
                    attendee.space = heartbeat.space.or(attendee.space);
                    attendee.scrub = heartbeat.scrub.or(attendee.scrub);
                    attendee.traffic = heartbeat.traffic;
                    attendee.failed = roster::bounded(heartbeat.failed.clone());
                    attendee.draining = roster::bounded_draining(heartbeat.draining.clone());
                }
            }
            leading.roster.nodes.get(&seat.node).is_some_and(Node::is_leaving)
        })
        .ok_or_else(not_leading)?;
    match kind {
        datanode_message::Kind::Heartbeat(_) => {
            let keys = shared.capabilities.keys();
            let kind = Some(namenode_message::Kind::Ack(HeartbeatAck { leaving, keys }));
            // A full stream says itself that somebody is there.
            let _ = outgoing.try_send(Ok(NamenodeMessage { kind, ..NamenodeMessage::default() }));
        }
        datanode_message::Kind::Inventory(page) => reconcile(shared, seat, page).await?,
        datanode_message::Kind::Done(done) => order_done(shared, seat, done)?,
        datanode_message::Kind::Bad(bad) => replica_bad(shared, seat, &bad),
        datanode_message::Kind::Register(_) => {
            return Err(ErrorCode::Malformed.because("a datanode registers once on a stream"));
        }
    }
    Ok(())
}

async fn reconcile(shared: &Arc<Shared>, seat: &Seat, mut page: Inventory) -> Result<(), Error> {
    if page.next != 0 && page.next <= page.first {
        return Err(ErrorCode::Malformed.because("an inventory page that speaks for nothing"));
    }
    page.replicas.sort_by_key(|report| report.chunk);
    let (mut from, mut is_remembered) = (page.first, true);
    loop {
        let part = inventory::read(shared.store.as_ref(), seat.node, &page, from)
            .map_err(|error| ErrorCode::Io.because(error.to_string()))?;
        is_remembered &= shared
            .with(Some(seat.generation), |leading, now_ms| {
                let findings = part.compare(leading, seat.node, now_ms);
                inventory::act(leading, seat.node, findings, now_ms)
            })
            .ok_or_else(not_leading)?;
        shared.wake.notify_one();
        if part.next == page.next || part.next == 0 {
            break;
        }
        from = part.next;
        tokio::task::yield_now().await;
    }
    shared.with(Some(seat.generation), |leading, _| {
        if is_seated(leading, seat)
            && let Some(attendee) = leading.roster.attendees.get_mut(&seat.node)
        {
            match is_remembered {
                true => attendee.account.extend(page.first, page.next),
                false => attendee.account = roster::Account::default(),
            }
        }
    });
    Ok(())
}

fn order_done(shared: &Arc<Shared>, seat: &Seat, done: OrderDone) -> Result<(), Error> {
    let chunk = shared
        .with(Some(seat.generation), |leading, now_ms| {
            let chunk = leading.orders.chunk_of(done.order, seat.node);
            if chunk.is_none() {
                // Given up meanwhile, but carried out: what it left behind is in the inventory.
                leading.ask_again(seat.node, now_ms);
            }
            chunk
        })
        .ok_or_else(not_leading)?;
    let Some(chunk) = chunk else { return Ok(()) };
    let record = shared.read_chunk(chunk)?;
    shared.with(Some(seat.generation), |leading, now_ms| {
        if let Some(sent) = leading.orders.take(done.order, seat.node) {
            answers::order_done(leading, sent, done, record.as_ref(), now_ms);
        }
    });
    shared.wake.notify_one();
    Ok(())
}

fn replica_bad(shared: &Arc<Shared>, seat: &Seat, bad: &ReplicaBad) {
    tracing::warn!(
        node = seat.node,
        chunk = bad.chunk,
        reason = bad.reason,
        "datanode reports a bad replica"
    );
    shared.with(Some(seat.generation), |leading, _| leading.mark(bad.chunk, seat.node, Fault::Corrupt));
    shared.wake.notify_one();
}
