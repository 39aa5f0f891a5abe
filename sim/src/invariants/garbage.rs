//! Nothing stays that nobody needs: chunks without live bytes are purged, and datanodes keep no replica that is not
//! counted on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cairn_client::{Cluster, ErrorCode};
use cairn_host::disk::simulated::SimulatedDisk;

/// The chunk whose data a file is.
fn chunk_of(path: &Path) -> Option<u64> {
    let inside = path.parent()?.parent()?.file_name()? == "chunks";
    let name = path.file_name()?.to_str()?.strip_suffix(".data")?;
    if inside { u64::from_str_radix(name, 16).ok() } else { None }
}

/// Compares what lies on the datanodes' disks with what the namenode counts on.
pub async fn look(cluster: &Cluster, datanodes: &[(String, SimulatedDisk)]) -> Vec<String> {
    let mut lying: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for (address, disk) in datanodes {
        for chunk in disk.files("/data").iter().filter_map(|path| chunk_of(path)) {
            lying.entry(chunk).or_default().insert(address);
        }
    }
    let mut wrong = Vec::new();
    for (chunk, addresses) in lying {
        match cluster.chunk(chunk).await {
            Err(error) if error.code == ErrorCode::ChunkUnknown => {
                wrong.push(format!("chunk {chunk} is gone and lies on {addresses:?}"));
            }
            Err(error) => wrong.push(format!("chunk {chunk}: {error}")),
            Ok(info) if info.live_bytes == 0 && info.kept_bytes == 0 => {
                wrong.push(format!("chunk {chunk} holds nothing that lives"))
            }
            Ok(info) => {
                for address in addresses {
                    if !info.replicas.iter().any(|replica| replica.address == address) {
                        wrong.push(format!("chunk {chunk} lies on {address} and is not counted there"));
                    }
                }
            }
        }
    }
    wrong
}
