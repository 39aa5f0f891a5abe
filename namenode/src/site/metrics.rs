//! A namenode's metrics.
//!
//! Everybody tells of the namespace, of its own part of the group and of its own work; what only the leader knows,
//! only the leader tells.

use cairn_metadata::store::StoreError;
use cairn_ops::health::{failed_directories, judge, liveness_name};
use cairn_ops::http::Role;
use cairn_ops::metrics::{Labels, Page, Source};
use cairn_proto::fs::{self, Cred, Liveness, Query, answer, query};

use super::Site;
use crate::member::Member;

impl Source for Site {
    fn metrics(&self, page: &mut Page<'_>) {
        page.gauge(
            "cairn_namenode_ready",
            "Whether it is a member and knows a leader",
            flag(self.ready().is_ok()),
        );
        page.gauge("cairn_namenode_connections", "Open connections", self.census.open() as f64);
        let (store, log) = self.bytes_on_disk();
        page.gauge("cairn_namenode_store_bytes", "Size of the store's file", store as f64);
        page.gauge("cairn_namenode_log_bytes", "Size of the log's files", log as f64);
        let Some(member) = self.here.seat.member() else { return };
        work(&member, page);
        group(&member, page);
        let Some(status) = status(&member) else { return };
        namespace(&status, page);
        if member.refusal().is_none() {
            health(&status, page);
            datanodes(&status, page);
            repair(&status, page);
        }
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// The cluster's status as this namenode knows it; only the leader's has everything.
pub fn status(member: &Member) -> Option<fs::ClusterStatus> {
    let query = Query { op: Some(query::Op::Status(fs::GetStatus {})) };
    let answered = member.view(|view| {
        let answer = cairn_metadata::answer(view, &Cred::default(), &query)?;
        Ok::<_, StoreError>(Some(answer))
    });
    let mut answer = answered.ok().flatten()?;
    member.decorate(&mut answer);
    match answer.result {
        Some(answer::Result::Status(status)) => Some(status),
        _ => None,
    }
}

fn work(member: &Member, page: &mut Page<'_>) {
    let counters = &member.counters;
    counters.mutations.write(
        page,
        "cairn_namenode_mutation_duration_seconds",
        "From a change being asked for to its outcome, at the leader",
    );
    counters.queries.write(
        page,
        "cairn_namenode_query_duration_seconds",
        "To answer a question from the namespace, at the leader",
    );
    page.histogram(
        "cairn_raft_commit_duration_seconds",
        "From handing an entry to the log until it was applied, at the leader",
        &counters.commits,
    );
    page.counter("cairn_raft_commands", "Commands handed to the log in entries", counters.commands());
}

fn group(member: &Member, page: &mut Page<'_>) {
    let leadership = member.group.leadership();
    page.gauge("cairn_raft_term", "Term", leadership.term as f64);
    page.gauge("cairn_raft_leader", "Whether this namenode leads", flag(leadership.leads));
    page.gauge("cairn_raft_leader_known", "Whether it knows a leader", flag(leadership.leader.is_some()));
    let last = member.group.last_log();
    page.gauge("cairn_raft_last_log_index", "Last entry of its log", last as f64);
    page.gauge("cairn_raft_applied_index", "Last entry its store has", member.group.applied() as f64);
    if !leadership.leads {
        return;
    }
    let peers: Vec<fs::NamenodeInfo> =
        member.group.namenodes().into_iter().filter(|peer| peer.id != member.group.id()).collect();
    let labels =
        |peer: &fs::NamenodeInfo| vec![("peer", peer.id.to_string()), ("address", peer.address.clone())];
    page.gauges(
        "cairn_raft_peer_lag_entries",
        "Entries of the leader's log that the peer is not known to have",
        peers.iter().map(|peer| (labels(peer), last.saturating_sub(peer.matched) as f64)),
    );
    page.gauges(
        "cairn_raft_peer_reachable",
        "Whether the peer was heard within a second",
        peers.iter().map(|peer| (labels(peer), flag(peer.reachable))),
    );
}

fn namespace(status: &fs::ClusterStatus, page: &mut Page<'_>) {
    let fs = status.fs.clone().unwrap_or_default();
    page.gauge("cairn_files", "Files, and all else that is no directory", status.files as f64);
    page.gauge("cairn_directories", "Directories", status.directories as f64);
    page.gauge("cairn_sessions", "Sessions of clients", status.sessions as f64);
    page.gauges(
        "cairn_chunks",
        "Chunks by state",
        [labelled("state", "open", status.open_chunks), labelled("state", "sealed", status.sealed_chunks)],
    );
    page.gauge("cairn_live_bytes", "Bytes that files have, each counted once", fs.live_bytes as f64);
    page.gauge("cairn_snapshots", "Snapshots of directories", fs.snapshots as f64);
    page.gauge(
        "cairn_snapshot_bytes",
        "Bytes of earlier states that snapshots name, some of them several times",
        fs.kept_bytes as f64,
    );
}

fn labelled(name: &'static str, value: &str, number: u64) -> (Labels, f64) {
    (vec![(name, value.to_owned())], number as f64)
}

fn health(status: &fs::ClusterStatus, page: &mut Page<'_>) {
    let health = f64::from(judge(status).health.exit_code());
    page.gauge("cairn_health", "0 healthy, 1 degraded, 2 data missing; as `cairn status` judges", health);
}

fn datanodes(status: &fs::ClusterStatus, page: &mut Page<'_>) {
    let all = [Liveness::Live, Liveness::Suspect, Liveness::Dead, Liveness::Unknown];
    let count = |liveness| status.datanodes.iter().filter(|node| node.liveness() == liveness).count() as u64;
    page.gauges(
        "cairn_datanodes",
        "Datanodes by liveness",
        all.map(|liveness| labelled("liveness", liveness_name(liveness), count(liveness))),
    );
    let fs = status.fs.clone().unwrap_or_default();
    page.gauge("cairn_capacity_bytes", "Raw space of datanodes that are not dead", fs.capacity as f64);
    page.gauge("cairn_available_bytes", "Raw space left on them", fs.available as f64);
    page.gauge(
        "cairn_failed_directories",
        "Data directories given up, over all datanodes that were not replaced",
        failed_directories(status) as f64,
    );
}

fn repair(status: &fs::ClusterStatus, page: &mut Page<'_>) {
    let repair = status.repair.unwrap_or_default();
    let mut gauge = |name: &str, help: &str, value: u64| page.gauge(name, help, value as f64);
    gauge("cairn_chunks_under_replicated", "Chunks with too few good replicas", repair.under_replicated);
    gauge("cairn_chunks_missing", "Chunks without any good replica in reach", repair.missing);
    gauge("cairn_chunks_surplus", "Chunks with too many replicas", repair.surplus);
    gauge("cairn_repair_counting", "1 while the counts above may be too small", u64::from(repair.counting));
    gauge("cairn_repair_copies_in_flight", "Copies under way", repair.in_flight);
    gauge("cairn_repair_left_bytes", "Bytes still to copy", repair.bytes_left);
    page.counter("cairn_repair_copied_bytes", "Bytes copied by this leader's orders", repair.bytes_copied);
    page.counter("cairn_repair_chunks", "Replicas made by this leader's orders", repair.chunks_repaired);
    let compaction = status.compaction.clone().unwrap_or_default();
    page.gauge(
        "cairn_garbage_bytes",
        "Bytes of sealed chunks that no file has",
        compaction.garbage_bytes as f64,
    );
    page.counter("cairn_compaction_copied_bytes", "Bytes moved to new chunks", compaction.bytes_copied);
    page.counter(
        "cairn_compaction_emptied_chunks",
        "Chunks emptied by compaction",
        compaction.chunks_emptied,
    );
}
