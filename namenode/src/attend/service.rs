//! Taking datanodes out of service and back in, as an operator asks.

use cairn_proto::control::SetDatanodeRequest;
use cairn_proto::fs::{AdminState, Liveness, SetDatanodeState, mutation, outcome};
use cairn_proto::{Error, ErrorCode};

use super::leading::Leading;
use super::{Datanodes, stream};
use crate::propose::own;

/// Longest maintenance, in milliseconds: 30 days. What is away longer should be made up for.
const MAX_MAINTENANCE_MS: u64 = 30 * 24 * 3_600_000;

impl Datanodes {
    /// Sets what is wanted of a datanode. Refused when the others could not hold what it would leave behind, unless
    /// `force` is set.
    pub async fn set_state(&self, ask: &SetDatanodeRequest) -> Result<(), Error> {
        let state = AdminState::try_from(ask.state)
            .map_err(|_| ErrorCode::Invalid.because(format!("a datanode's state of {}", ask.state)))?;
        if state == AdminState::Maintenance && !(1..=MAX_MAINTENANCE_MS).contains(&ask.maintenance_ms) {
            return Err(ErrorCode::Invalid.because("maintenance takes more than nothing and at most 30 days"));
        }
        let allowed = self.0.with(None, |leading, _| check(leading, ask.node, state, ask.force));
        allowed.ok_or_else(stream::not_leading)??;
        let until_ns = self
            .0
            .clock
            .now_ns()
            .saturating_add(i64::try_from(ask.maintenance_ms).unwrap_or(0).saturating_mul(1_000_000));
        let op =
            mutation::Op::SetDatanodeState(SetDatanodeState { node: ask.node, state: ask.state, until_ns });
        let answer = (self.0.propose)(own(op)).await?;
        match answer.result {
            Some(outcome::Result::Error(error)) => Err(error.into()),
            _ => {
                tracing::info!(node = ask.node, ?state, "datanode's state was set");
                // At once: whoever asks for datanodes next must not be sent to one that leaves.
                self.0.with(None, |leading, _| {
                    if let Some(node) = leading.roster.nodes.get_mut(&ask.node) {
                        node.admin = state;
                    }
                    leading.scan.want_node(ask.node);
                });
                self.0.wake.notify_one();
                Ok(())
            }
        }
    }
}

fn check(leading: &Leading, node: u32, state: AdminState, force: bool) -> Result<(), Error> {
    if !leading.roster.nodes.contains_key(&node) {
        let detail = format!("datanode {node}; `cairn status` lists them");
        return Err(ErrorCode::NotFound.because(detail));
    }
    if force || state == AdminState::Normal {
        return Ok(());
    }
    let others = leading
        .roster
        .nodes
        .iter()
        .filter(|(id, other)| **id != node && other.liveness == Liveness::Live && other.takes_replicas());
    let (count, room) = others
        .fold((0, 0_u64), |(count, room), (_, other)| (count + 1, room.saturating_add(other.available)));
    let wanted = leading.meta.default_replication.max(1);
    if state == AdminState::Decommissioning && count < wanted {
        let detail = format!(
            "{count} datanodes would be left for {wanted} replicas; add datanodes or lower the replication first, or \
             use --force"
        );
        return Err(ErrorCode::NotPermitted.because(detail));
    }
    let attendee = leading.roster.attendees.get(&node);
    let used = attendee.and_then(|attendee| attendee.space).map_or(0, |space| space.used);
    if state == AdminState::Decommissioning && room < used {
        let detail =
            format!("the others have room for {room} of its {used} bytes; add space first, or use --force");
        return Err(ErrorCode::NoSpace.because(detail));
    }
    Ok(())
}
