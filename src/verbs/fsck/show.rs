//! What `cairn fsck` prints.

use std::collections::BTreeSet;

use cairn_client::fs::{Attr, ChunkInfo, ClusterStatus, Extent, Liveness};
use serde_json::{Value, json};

use super::judge::{Hurt, State, bad, good};
use super::{Find, Findings, Found, Fsck};
use crate::paths::ClusterPath;
use crate::verbs::health::{counted, liveness_name};

/// A file by its name and size; `is_fine` when it is known already.
pub fn file_line(path: &ClusterPath, attr: &Attr, is_fine: Option<bool>) -> String {
    let (size, wanted) = (attr.size, attr.replication);
    let state = match is_fine {
        Some(true) => ": OK",
        Some(false) => ": DAMAGED",
        None => "",
    };
    format!("{path} {size} bytes, replicated: replication={wanted}{state}\n")
}

/// Where a lost chunk hurts a file.
pub fn hurt_line(path: &str, hurt: &Hurt) -> String {
    let ranges: Vec<String> = hurt.ranges.iter().map(|(from, to)| format!("{from}..{to}")).collect();
    let listed: u64 = hurt.ranges.iter().map(|(from, to)| to - from).sum();
    let more =
        if listed < hurt.bytes { format!(" and more, {} bytes in all", hurt.bytes) } else { String::new() };
    format!("{path}: {} chunk {}: bytes {}{more}\n", hurt.state.word(), hurt.chunk, ranges.join(", "))
}

/// An extent of a file, with as much of its chunk as was asked for.
pub fn extent_line(extent: &Extent, chunk: Option<&ChunkInfo>, state: State, args: &Fsck) -> String {
    let end = extent.file_offset + extent.length;
    let mut line = format!(
        "  {}..{end} chunk {} at {} {}",
        extent.file_offset,
        extent.chunk,
        extent.chunk_offset,
        state.word()
    );
    let Some(chunk) = chunk else { return line + "\n" };
    line += &format!(" len={} repl={}/{}", chunk.length, good(chunk), chunk.replication);
    if bad(chunk) > 0 {
        line += &format!(" bad={}", bad(chunk));
    }
    if args.locations || args.racks {
        let place = |replica: &cairn_client::fs::ReplicaInfo| {
            let mut place = if args.racks { format!("/{}/", replica.rack) } else { String::new() };
            place += &format!("{}({})", replica.address, replica.node);
            if replica.bad {
                place += " bad";
            } else if replica.liveness() != Liveness::Live {
                place += &format!(" {}", liveness_name(replica.liveness()));
            }
            place
        };
        let places: Vec<String> = chunk.replicas.iter().map(place).collect();
        line += &format!(" [{}]", places.join(", "));
    }
    line + "\n"
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { String::new() } else { format!(" ({:.2} %)", part as f64 * 100.0 / whole as f64) }
}

fn count(findings: &Findings, find: Find) -> u64 {
    findings.counts.get(&find).copied().unwrap_or(0)
}

fn average(findings: &Findings) -> f64 {
    let tally = &findings.tally;
    if tally.chunks == 0 { 0.0 } else { tally.replicas as f64 / tally.chunks as f64 }
}

fn racks(status: &ClusterStatus) -> usize {
    let live = status.datanodes.iter().filter(|node| node.liveness() != Liveness::Dead);
    live.map(|node| node.rack.as_str()).collect::<BTreeSet<_>>().len()
}

fn live(status: &ClusterStatus) -> usize {
    status.datanodes.iter().filter(|node| node.liveness() != Liveness::Dead).count()
}

/// The summary, for people.
pub(super) fn render(path: &ClusterPath, findings: &Findings, status: &ClusterStatus) -> String {
    let tally = &findings.tally;
    let mut text = String::new();
    for found in &findings.found {
        text += &found_line(found);
    }
    let mut line = |name: &str, value: String| text += &format!("{:<32}{value}\n", format!(" {name}:"));
    let chunks = tally.chunks;
    let mean = tally.chunk_bytes.checked_div(chunks).unwrap_or(0);
    line("Total size", format!("{} B", tally.size));
    line("Total dirs", tally.directories.to_string());
    line("Total files", tally.files.to_string());
    line("Total symlinks", tally.symlinks.to_string());
    if tally.others > 0 {
        line("Total devices and pipes", tally.others.to_string());
    }
    line("Total chunks", format!("{chunks} (avg. size {mean} B, {} open)", tally.open_chunks));
    line("Minimally replicated chunks", format!("{}{}", tally.minimally, share(tally.minimally, chunks)));
    line("Over-replicated chunks", format!("{}{}", tally.over, share(tally.over, chunks)));
    line("Under-replicated chunks", format!("{}{}", tally.under, share(tally.under, chunks)));
    line("Missing chunks", tally.missing.to_string());
    line("Corrupt chunks", tally.corrupt.to_string());
    line("Corrupt replicas", tally.bad_replicas.to_string());
    line("Damaged files", tally.damaged_files.to_string());
    let default = status.fs.as_ref().map_or(0, |fs| fs.default_replication);
    line("Default replication factor", default.to_string());
    line("Average chunk replication", format!("{:.2}", average(findings)));
    if let Some(garbage) = findings.garbage {
        let dead = counted(garbage.dead_chunks, "dead chunk");
        line("Garbage in chunks", format!("{} B, {dead}", garbage.bytes));
        line("Replicas without a record", count(findings, Find::StrayReplica).to_string());
        line("Records without a replica", count(findings, Find::AbsentReplica).to_string());
        line("Wrong records", count(findings, Find::Record).to_string());
    }
    if tally.unreadable > 0 {
        line("Could not be looked at", tally.unreadable.to_string());
    }
    let dead = status.datanodes.len() - live(status);
    line("Number of datanodes", format!("{} ({dead} dead)", live(status)));
    line("Number of racks", racks(status).to_string());
    text += &format!("\nThe filesystem under path '{path}' is {}\n", findings.verdict().name());
    for hint in hints(findings) {
        text += &format!("  {hint}\n");
    }
    text
}

fn found_line(found: &Found) -> String {
    match (found.chunk, found.node) {
        (0, _) => format!("{}\n", found.what),
        (chunk, 0) => format!("chunk {chunk}: {}\n", found.what),
        (chunk, node) => format!("chunk {chunk} on node {node}: {}\n", found.what),
    }
}

/// What a person can do.
fn hints(findings: &Findings) -> Vec<&'static str> {
    let tally = &findings.tally;
    let mut hints = Vec::new();
    if tally.missing > 0 || findings.hurts.iter().any(|(_, hurt)| hurt.state == State::Missing) {
        hints.push(
            "missing chunks come back with a datanode that holds them: start the dead ones (`cairn status`)",
        );
    }
    if tally.corrupt > 0 {
        hints.push("every replica of a corrupt chunk is damaged: restore the damaged files from a copy");
    }
    if findings.hurts.iter().any(|(_, hurt)| hurt.state == State::Unknown) {
        hints.push("extents name chunks that do not exist: restore those files, and report it as an error of the namenode");
    }
    if tally.under > 0 || tally.bad_replicas > 0 {
        hints.push(
            "repair makes up for lost and damaged replicas by itself; see `cairn status` for its progress",
        );
    }
    if count(findings, Find::StrayReplica) > 0 {
        hints.push("replicas without a record are deleted by themselves within ten minutes");
    }
    if count(findings, Find::AbsentReplica) > 0 {
        hints.push("replicas that are gone are noticed with the datanode's next inventory, within ten minutes, and made up for");
    }
    if count(findings, Find::Record) > 0 {
        hints.push(
            "records that contradict each other are an error of the namenode: keep its log and report it",
        );
    }
    hints
}

/// The whole result, for programs.
pub(super) fn as_json(path: &ClusterPath, findings: &Findings, status: &ClusterStatus) -> Value {
    let tally = &findings.tally;
    let damaged: Vec<Value> = findings
        .hurts
        .iter()
        .map(|(path, hurt)| {
            json!({
                "path": path, "chunk": hurt.chunk, "state": hurt.state.word().to_lowercase(),
                "bytes": hurt.bytes, "ranges": hurt.ranges,
            })
        })
        .collect();
    let found = |find: Find| -> Vec<Value> {
        let of = findings.found.iter().filter(|found| found.find == find);
        of.map(|found| json!({ "chunk": found.chunk, "node": found.node, "what": found.what })).collect()
    };
    json!({
        "path": path.to_string(), "verdict": findings.verdict().name().to_lowercase(),
        "hints": hints(findings), "size": tally.size, "directories": tally.directories, "files": tally.files,
        "symlinks": tally.symlinks, "others": tally.others, "chunks": tally.chunks,
        "chunk_bytes": tally.chunk_bytes, "open_chunks": tally.open_chunks,
        "minimally_replicated": tally.minimally, "over_replicated": tally.over,
        "under_replicated": tally.under, "missing": tally.missing, "corrupt": tally.corrupt,
        "corrupt_replicas": tally.bad_replicas, "damaged_files": tally.damaged_files,
        "unreadable": tally.unreadable, "average_replication": average(findings),
        "datanodes": live(status), "dead_datanodes": status.datanodes.len() - live(status),
        "racks": racks(status), "damaged": damaged,
        "stray_replicas": count(findings, Find::StrayReplica),
        "absent_replicas": count(findings, Find::AbsentReplica),
        "wrong_records": count(findings, Find::Record),
        "strays": found(Find::StrayReplica), "absent": found(Find::AbsentReplica),
        "records": found(Find::Record),
        "garbage_bytes": findings.garbage.map(|garbage| garbage.bytes),
        "dead_chunks": findings.garbage.map(|garbage| garbage.dead_chunks),
    })
}
