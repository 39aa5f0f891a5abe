//! Datanodes as the namespace knows them: a number for life, an address, a rack.

use std::ops::ControlFlow;

use cairn_proto::fs::{AdminState, DatanodeRegistered, RegisterDatanode, SetDatanodeState, outcome};
use cairn_proto::store::Datanode;
use cairn_proto::{ErrorCode, fs};

use crate::core::Core;
use crate::fault::Fallible;
use crate::records;
use crate::store::{StoreError, Table, View};
use crate::{apply, key};

/// Longest uuid, address, host or rack, in bytes.
const MAX_LABEL: usize = 255;

pub(crate) fn register(core: &mut Core, ask: &RegisterDatanode) -> Fallible<outcome::Result> {
    let labels = [&ask.uuid, &ask.address, &ask.host, &ask.rack];
    if ask.uuid.is_empty() || ask.address.is_empty() || labels.iter().any(|label| label.len() > MAX_LABEL) {
        return Err(ErrorCode::Invalid.because("a datanode needs a uuid and an address").into());
    }
    let node = match core.get(Table::DatanodeUuid, ask.uuid.as_bytes())? {
        Some(bytes) => key::number(&bytes, 0)
            .ok_or_else(|| StoreError::Damaged(format!("number of datanode {}", ask.uuid)))?
            as u32,
        None => {
            let node = core.meta.next_node;
            core.meta.next_node += 1;
            core.set(Table::DatanodeUuid, ask.uuid.as_bytes(), key::node(node).to_vec());
            node
        }
    };
    let known = records::datanode(core, node)?.unwrap_or_default();
    let record = Datanode {
        uuid: ask.uuid.clone(),
        address: ask.address.clone(),
        host: ask.host.clone(),
        rack: ask.rack.clone(),
        capacity: ask.capacity,
        admin: known.admin,
        until_ns: known.until_ns,
    };
    core.set_record(Table::Datanode, &key::node(node), &record);
    Ok(outcome::Result::Datanode(DatanodeRegistered { node }))
}

pub(crate) fn set_state(core: &mut Core, ask: &SetDatanodeState) -> Fallible<outcome::Result> {
    let Some(mut record) = records::datanode(core, ask.node)? else {
        return Err(ErrorCode::NotFound.because(format!("node {}", ask.node)).into());
    };
    if AdminState::try_from(ask.state).is_err() {
        return Err(ErrorCode::Invalid.because(format!("a datanode's state of {}", ask.state)).into());
    }
    record.admin = ask.state;
    record.until_ns = if ask.state() == AdminState::Maintenance { ask.until_ns } else { 0 };
    core.set_record(Table::Datanode, &key::node(ask.node), &record);
    Ok(apply::NOTHING)
}

/// What the records say of every datanode; the leader adds what it hears from them.
pub(crate) fn list(view: &dyn View) -> Result<Vec<fs::DatanodeInfo>, StoreError> {
    let describe = |(node, record): (u32, Datanode)| {
        Ok(fs::DatanodeInfo {
            vacant: record.admin() == AdminState::Decommissioning && is_vacant(view, node)?,
            node,
            uuid: record.uuid,
            address: record.address,
            host: record.host,
            rack: record.rack,
            admin: record.admin,
            until_ns: record.until_ns,
            capacity: record.capacity,
            ..fs::DatanodeInfo::default()
        })
    };
    records::datanodes(view)?.into_iter().map(describe).collect()
}

/// Whether no chunk, open or sealed, is or was to be on a datanode.
fn is_vacant(view: &dyn View, node: u32) -> Result<bool, StoreError> {
    let mut vacant = true;
    view.scan(Table::NodeChunk, &key::node_chunk(node, 0), &key::after(u64::from(node)), &mut |_, _| {
        vacant = false;
        ControlFlow::Break(())
    })?;
    Ok(vacant)
}
