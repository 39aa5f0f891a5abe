//! Renders the status of a cluster.

use cairn_client::fs::{self, Liveness};
pub use cairn_ops::health::{counted, judge, liveness_name};
use cairn_ops::health::{is_drained, replaced};
pub use cairn_ops::status::as_json;

use crate::output::{self, Table};

/// The whole status as text for people.
pub fn render(status: &fs::ClusterStatus) -> String {
    let verdict = judge(status);
    let fs = status.fs.clone().unwrap_or_default();
    let mut text = format!("cluster {}: {}", fs.cluster_id, verdict.health.name());
    if !verdict.reasons.is_empty() {
        text.push_str(&format!(" ({})", verdict.texts().join(", ")));
    }
    text.push_str("\n\nnamenodes\n");
    text.push_str(&namenodes(status));
    text.push_str("\ndatanodes\n");
    text.push_str(&datanodes(status));
    text.push_str(&failed_directories(status));
    text.push_str(&draining_directories(status));
    text.push_str(&format!(
        "\nfiles {}   directories {}   data {}   sessions {}\n",
        status.files,
        status.directories,
        output::size(fs.live_bytes),
        status.sessions
    ));
    if fs.snapshots > 0 {
        text.push_str(&format!(
            "snapshots {}   kept for them alone {} at most\n",
            fs.snapshots,
            output::size(fs.kept_bytes)
        ));
    }
    let repair = status.repair.unwrap_or_default();
    text.push_str(&format!(
        "chunks {} open, {} sealed   under-replicated {}   missing {}   surplus {}\n",
        status.open_chunks, status.sealed_chunks, repair.under_replicated, repair.missing, repair.surplus
    ));
    text.push_str(&format!("repair {}\n", repair_line(&repair)));
    text.push_str(&format!("garbage {}\n", compaction_line(&status.compaction.clone().unwrap_or_default())));
    text.push_str(&format!("scrub {}\n", scrub_line(status)));
    text
}

/// Garbage in one line: how much there is, and what compaction has done about it.
fn compaction_line(compaction: &fs::CompactionInfo) -> String {
    let mut line = format!(
        "{} in chunks ({} dead)   compaction ",
        output::size(compaction.garbage_bytes),
        compaction.dead_chunks
    );
    line += match (compaction.enabled, compaction.in_flight) {
        (false, _) => "off",
        (true, 0) => "idle",
        (true, _) => "running",
    };
    if compaction.candidates > 0 {
        line += &format!(", {} in view", counted(compaction.candidates, "chunk"));
    }
    if compaction.chunks_emptied > 0 {
        let (emptied, copied) = (compaction.chunks_emptied, output::size(compaction.bytes_copied));
        line += &format!("; {} emptied, {copied} copied", counted(emptied, "chunk"));
    }
    line
}

/// Repair in one line: what is left, how fast it goes, how long it will take.
pub fn repair_line(repair: &fs::RepairInfo) -> String {
    if repair.counting {
        return format!(
            "counting; {} known to lack replicas so far",
            counted(repair.under_replicated, "chunk")
        );
    }
    if repair.under_replicated == 0 && repair.in_flight == 0 {
        return match repair.chunks_repaired {
            0 => "idle".into(),
            count => {
                format!("idle; {} repaired, {}", counted(count, "chunk"), output::size(repair.bytes_copied))
            }
        };
    }
    let mut line = format!(
        "{} left ({}), {} in flight, {}/s",
        counted(repair.under_replicated, "chunk"),
        output::size(repair.bytes_left),
        repair.in_flight,
        output::size(repair.bytes_per_second)
    );
    if let Some(seconds) = repair.seconds_left {
        line.push_str(&format!(", about {} to go", output::span(seconds.saturating_mul(1000))));
    }
    line
}

/// Scrubbing over all datanodes in one line: how far it is, since when everything is known to be good, what it found.
fn scrub_line(status: &fs::ClusterStatus) -> String {
    let all = || status.datanodes.iter().filter(|node| node.liveness() != Liveness::Dead);
    let told: Vec<fs::ScrubInfo> = all().filter_map(|node| node.scrub).collect();
    if told.is_empty() {
        return "not known yet".into();
    }
    let sum = |count: fn(&fs::ScrubInfo) -> u64| told.iter().map(count).sum::<u64>();
    let (left, verified) =
        (sum(|scrub| scrub.left), sum(|scrub| if scrub.left > 0 { scrub.verified } else { 0 }));
    let mut line = if left > 0 {
        format!("{verified} of {} verified", counted(left + verified, "replica"))
    } else if told.iter().all(|scrub| !scrub.enabled) {
        "only when ordered".into()
    } else {
        "idle".to_string()
    };
    let oldest = told.iter().map(|scrub| scrub.full_pass_ns).min().unwrap_or(0);
    if oldest == 0 || told.len() < all().count() {
        line.push_str("; not every datanode has done a full pass");
    } else {
        line.push_str(&format!("; last full pass {}", output::local_time(oldest, false)));
    }
    let found = sum(|scrub| scrub.found);
    if found > 0 {
        line.push_str(&format!(
            "; {} found, {} mended",
            counted(found, "bad replica"),
            sum(|scrub| scrub.mended)
        ));
    }
    line
}

fn namenodes(status: &fs::ClusterStatus) -> String {
    let mut table = Table::new(&[">id", "address", "role", ">log", "state"]);
    for node in &status.namenodes {
        let role = match (node.leader, node.voter) {
            (true, _) => "leader",
            (false, true) => "follower",
            (false, false) => "learner",
        };
        let state = if node.reachable || node.leader { "up" } else { "unreachable" };
        table.row(vec![
            node.id.to_string(),
            node.address.clone(),
            role.into(),
            node.matched.to_string(),
            state.into(),
        ]);
    }
    table.render(2)
}

/// Which directories failed, why, and what to do.
fn failed_directories(status: &fs::ClusterStatus) -> String {
    let mut text = String::new();
    for node in status.datanodes.iter().filter(|node| !replaced(status, node)) {
        for failed in &node.failed {
            text.push_str(&format!("  datanode {}: {} failed: {}\n", node.node, failed.path, failed.cause));
        }
    }
    if text.is_empty() {
        return text;
    }
    let remedy = "  What they held is copied from other datanodes. Mend or replace the disk, or take the directory out \
                  of the\n  datanode's configuration, and start the datanode again.\n";
    format!("\nfailed data directories\n{text}{remedy}")
}

/// Which directories are emptied into others of their datanodes, and how far that is.
fn draining_directories(status: &fs::ClusterStatus) -> String {
    let mut text = String::new();
    for node in &status.datanodes {
        for one in &node.draining {
            let left = match one.replicas {
                0 => {
                    "empty; take it out of the datanode's `dirs` and `drain`, and start it again".to_string()
                }
                replicas => format!("{replicas} replicas with {} are left", output::size(one.bytes)),
            };
            text.push_str(&format!("  datanode {}: {}: {left}\n", node.node, one.path));
        }
    }
    if text.is_empty() { text } else { format!("\ndirectories being drained\n{text}") }
}

fn datanodes(status: &fs::ClusterStatus) -> String {
    let headers = [">node", "address", "host", "rack", "state", ">used", ">capacity", ">replicas", ">heard"];
    let mut table = Table::new(&headers);
    for node in &status.datanodes {
        let mut state = liveness_name(node.liveness()).to_string();
        if replaced(status, node) {
            state.push_str(", replaced");
        }
        match node.admin() {
            fs::AdminState::Normal => {}
            fs::AdminState::Decommissioning if is_drained(node, &status.repair.unwrap_or_default()) => {
                state.push_str(", drained");
            }
            fs::AdminState::Decommissioning => state.push_str(", leaving"),
            fs::AdminState::Maintenance => {
                state.push_str(&format!(", maintenance until {}", output::local_time(node.until_ns, false)));
            }
        }
        if node.failed_dirs > 0 {
            state.push_str(&format!(", {} dirs failed", node.failed_dirs));
        }
        let heard = match node.liveness() {
            Liveness::Unknown => "-".into(),
            _ => format!("{} ago", output::span(node.last_heard_ms)),
        };
        table.row(vec![
            node.node.to_string(),
            node.address.clone(),
            node.host.clone(),
            node.rack.clone(),
            state,
            output::size(node.used),
            output::size(node.capacity),
            node.replicas.to_string(),
            heard,
        ]);
    }
    table.render(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> fs::ClusterStatus {
        let node = |number: u32| fs::DatanodeInfo {
            node: number,
            address: format!("dn{number}:1"),
            liveness: Liveness::Live as i32,
            ..Default::default()
        };
        fs::ClusterStatus {
            fs: Some(fs::FsStats {
                capacity: 100,
                available: 50,
                default_replication: 3,
                ..Default::default()
            }),
            datanodes: vec![node(1), node(2), node(3)],
            namenodes: vec![fs::NamenodeInfo { leader: true, reachable: true, ..Default::default() }],
            repair: Some(fs::RepairInfo::default()),
            ..Default::default()
        }
    }

    #[test]
    fn a_healthy_cluster_is_called_so() {
        assert!(render(&cluster()).contains("healthy"));
    }

    #[test]
    fn scrubbing_is_summed_over_the_datanodes() {
        let mut status = cluster();
        assert!(render(&status).contains("scrub not known yet"));
        let done = fs::ScrubInfo { enabled: true, full_pass_ns: 1, verified: 9, ..Default::default() };
        status.datanodes.iter_mut().for_each(|node| node.scrub = Some(done));
        assert!(render(&status).contains("scrub idle; last full pass"));
        let scrub = status.datanodes[0].scrub.as_mut().unwrap();
        (scrub.verified, scrub.left, scrub.found, scrub.full_pass_ns) = (3, 4, 1, 0);
        let text = render(&status);
        assert!(text.contains("3 of 7 replicas verified"), "{text}");
        assert!(
            text.contains("not every datanode") && text.contains("1 bad replica found, 0 mended"),
            "{text}"
        );
    }

    #[test]
    fn a_dead_datanode_whose_address_is_served_again_is_history() {
        let mut status = cluster();
        let mut old = status.datanodes[0].clone();
        (old.node, old.liveness) = (9, Liveness::Dead as i32);
        status.datanodes.push(old);
        assert!(render(&status).contains("dead, replaced"));
    }
}
