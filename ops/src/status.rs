//! A cluster's status as JSON: what `cairn status --json` prints and the dashboard shows.

use cairn_proto::fs;
use serde_json::{Value, json};

use crate::health::{is_drained, judge, liveness_name};

/// The whole status for programs.
pub fn as_json(status: &fs::ClusterStatus) -> Value {
    let verdict = judge(status);
    let codes: Vec<&str> = verdict.reasons.iter().map(|reason| reason.code.name()).collect();
    let fs = status.fs.clone().unwrap_or_default();
    let repair = status.repair.unwrap_or_default();
    let compaction = status.compaction.clone().unwrap_or_default();
    let namenodes: Vec<Value> = status
        .namenodes
        .iter()
        .map(|node| {
            json!({
                "id": node.id, "address": node.address, "leader": node.leader, "voter": node.voter,
                "matched": node.matched, "reachable": node.reachable,
            })
        })
        .collect();
    let datanodes: Vec<Value> = status
        .datanodes
        .iter()
        .map(|node| {
            json!({
                "node": node.node, "uuid": node.uuid, "address": node.address, "host": node.host,
                "rack": node.rack, "liveness": liveness_name(node.liveness()),
                "decommissioning": node.admin() == fs::AdminState::Decommissioning,
                "drained": node.admin() == fs::AdminState::Decommissioning && is_drained(node, &repair),
                "maintenance_until_ns": Some(node.until_ns).filter(|until| *until != 0),
                "capacity": node.capacity, "available": node.available, "used": node.used,
                "replicas": node.replicas, "last_heard_ms": node.last_heard_ms, "failed_dirs": node.failed_dirs,
                "draining": node.draining.iter()
                    .map(|one| json!({"path": one.path, "replicas": one.replicas, "bytes": one.bytes}))
                    .collect::<Vec<_>>(),
                "failed": node.failed.iter().map(|one| json!({"path": one.path, "cause": one.cause})).collect::<Vec<_>>(),
                "traffic": node.traffic.map(|all| json!({"read": all.bytes_read, "written": all.bytes_written})),
                "scrub": node.scrub.as_ref().map(scrub_json),
                "rival": Some(&node.rival).filter(|rival| !rival.is_empty()),
            })
        })
        .collect();
    json!({
        "health": verdict.health.name(), "reasons": verdict.texts(), "codes": codes, "cluster_id": fs.cluster_id,
        "term": status.term, "applied": status.applied, "namenodes": namenodes, "datanodes": datanodes,
        "files": status.files, "directories": status.directories, "sessions": status.sessions,
        "capacity": fs.capacity, "available": fs.available, "live_bytes": fs.live_bytes,
        "snapshots": fs.snapshots, "kept_bytes": fs.kept_bytes,
        "default_replication": fs.default_replication, "chunk_size": fs.chunk_size,
        "open_chunks": status.open_chunks, "sealed_chunks": status.sealed_chunks,
        "repair": {
            "under_replicated": repair.under_replicated, "missing": repair.missing, "surplus": repair.surplus,
            "in_flight": repair.in_flight, "bytes_left": repair.bytes_left, "bytes_copied": repair.bytes_copied,
            "bytes_per_second": repair.bytes_per_second, "chunks_repaired": repair.chunks_repaired,
            "seconds_left": repair.seconds_left, "counting": repair.counting,
        },
        "compaction": {
            "enabled": compaction.enabled, "garbage_bytes": compaction.garbage_bytes,
            "dead_chunks": compaction.dead_chunks, "candidates": compaction.candidates,
            "in_flight": compaction.in_flight, "bytes_copied": compaction.bytes_copied,
            "chunks_emptied": compaction.chunks_emptied,
        },
    })
}

fn scrub_json(scrub: &fs::ScrubInfo) -> Value {
    json!({
        "enabled": scrub.enabled, "verified": scrub.verified, "left": scrub.left,
        "pass_began_ns": scrub.pass_began_ns, "full_pass_ns": scrub.full_pass_ns,
        "next_pass_ns": scrub.next_pass_ns, "found": scrub.found, "mended": scrub.mended,
    })
}
