//! Replicas of a sealed chunk agree byte for byte, and every live chunk has one.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_datanode::store::{Scratch, Store};
use cairn_host::disk::simulated::SimulatedDisk;
use cairn_proto::fs::ChunkState;
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::store::Chunk;

use crate::history::History;
use crate::nodes::datanode;

/// Reads all replicas of all sealed chunks and compares them.
pub fn look(history: &History, chunks: &BTreeMap<u64, Chunk>, disks: &[(String, SimulatedDisk)]) {
    let mut found: BTreeMap<u64, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for (name, disk) in disks {
        let store = match Store::open(&datanode::store_config(Arc::new(disk.mount()))) {
            Ok(store) => store,
            Err(error) => {
                history.violation(format!("the store of {name} cannot be opened: {error}"));
                continue;
            }
        };
        store.check_all(|| false);
        for report in store.inventory_page(0, usize::MAX).replicas.iter().filter(|report| report.sealed) {
            match content(&store, report.chunk, report.length) {
                Ok(bytes) => found.entry(report.chunk).or_default().push((name.clone(), bytes)),
                // One that rots at rest is found when it is read; the others must agree all the same.
                Err(error) => crate::event!("{name}: chunk {} cannot be read: {error}", report.chunk),
            }
        }
    }
    for (id, chunk) in chunks.iter().filter(|(_, chunk)| chunk.state() == ChunkState::Sealed) {
        let replicas = found.get(id).map(Vec::as_slice).unwrap_or_default();
        for (name, bytes) in replicas {
            if bytes.len() as u64 != chunk.length {
                history.violation(format!(
                    "chunk {id} has {} bytes on {name}, not {}",
                    bytes.len(),
                    chunk.length
                ));
            }
            if replicas.first().is_some_and(|(_, first)| first != bytes) {
                history.violation(format!("chunk {id} on {name} is not what it is on {}", replicas[0].0));
            }
        }
        if replicas.is_empty() && (chunk.live_bytes > 0 || chunk.kept_bytes > 0) && history.losses() == 0 {
            history.violation(format!("chunk {id} has no sealed replica"));
        }
    }
}

fn content(store: &Store, chunk: u64, length: u64) -> cairn_proto::Result<Vec<u8>> {
    let replica = store.get(chunk)?;
    let mut scratch = Scratch::default();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let part = (length - bytes.len() as u64).min(BLOCK_SIZE as u64) as usize;
        let range = replica.read(bytes.len() as u64, part, &mut scratch)?;
        bytes.extend_from_slice(scratch.bytes(range));
    }
    Ok(bytes)
}
