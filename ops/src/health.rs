//! Judges a cluster by its status: healthy, degraded, or missing data, with the reasons.

use std::fmt;

use cairn_proto::fs::{self, Liveness};

use crate::code::Code;

/// How a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Everything that should be there is.
    Healthy,
    /// All data can be read, but something is down or has too few replicas.
    Degraded,
    /// Some data cannot be read.
    Missing,
}

impl Health {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::Missing => "data missing",
        }
    }

    /// What `cairn status` exits with.
    pub fn exit_code(self) -> u8 {
        match self {
            Health::Healthy => 0,
            Health::Degraded => 1,
            Health::Missing => 2,
        }
    }
}

/// Why a cluster is not healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Its name.
    pub code: Code,
    /// In words, with numbers.
    pub text: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A judgement with its reasons.
pub struct Verdict {
    /// How the cluster is.
    pub health: Health,
    /// Why it is not healthy.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// The reasons in words.
    pub fn texts(&self) -> Vec<&str> {
        self.reasons.iter().map(|reason| reason.text.as_str()).collect()
    }
}

/// Judges; the weightiest reason comes first.
pub fn judge(status: &fs::ClusterStatus) -> Verdict {
    let mut reasons = Vec::new();
    let mut add = |code, text: String| reasons.push(Reason { code, text });
    let repair = status.repair.unwrap_or_default();
    if repair.missing > 0 {
        add(Code::ChunksMissing, format!("{} without any live replica", counted(repair.missing, "chunk")));
    }
    if repair.under_replicated > 0 {
        let text = format!("{} under-replicated", counted(repair.under_replicated, "chunk"));
        add(Code::ChunksUnderReplicated, text);
    }
    if repair.counting {
        add(Code::ChunksCounting, "still counting what lacks replicas".into());
    }
    let silent = [(Liveness::Dead, "dead"), (Liveness::Suspect, "suspect")];
    for ((liveness, word), code) in silent.into_iter().zip([Code::DatanodesDead, Code::DatanodesSuspect]) {
        // What was taken out, or is away as was said, is as it should be.
        let gone = |node: &&fs::DatanodeInfo| match node.admin() {
            fs::AdminState::Normal => false,
            fs::AdminState::Decommissioning => is_drained(node, &repair),
            fs::AdminState::Maintenance => liveness == Liveness::Suspect,
        };
        let down =
            status.datanodes.iter().filter(|node| node.liveness() == liveness).filter(|node| !gone(node));
        let count = down.filter(|node| !replaced(status, node)).count() as u64;
        if count > 0 {
            add(code, format!("{} {word}", counted(count, "datanode")));
        }
    }
    let failed_dirs = failed_directories(status);
    if failed_dirs > 0 {
        let text = format!("{} failed", counted(failed_dirs, "data directory").replace("ys", "ies"));
        add(Code::DirectoriesFailed, text);
    }
    for node in status.datanodes.iter().filter(|node| !node.rival.is_empty()) {
        let text = format!("the identity of datanode {} is claimed from {} too", node.node, node.rival);
        add(Code::DatanodeIdentityTwice, text);
    }
    let down = status.namenodes.iter().filter(|node| !node.reachable && !node.leader).count() as u64;
    if down > 0 {
        add(Code::NamenodesUnreachable, format!("{} unreachable", counted(down, "namenode")));
    }
    let fs = status.fs.clone().unwrap_or_default();
    let stays = |node: &&fs::DatanodeInfo| {
        node.liveness() != Liveness::Dead && node.admin() != fs::AdminState::Decommissioning
    };
    let usable = status.datanodes.iter().filter(stays).count() as u64;
    if usable < u64::from(fs.default_replication) {
        let wanted = fs.default_replication;
        add(Code::DatanodesTooFew, format!("{} for {wanted} replicas", counted(usable, "datanode")));
    }
    if fs.capacity > 0 && fs.available < fs.capacity / 20 {
        add(Code::SpaceLow, "less than 5% of the space is left".into());
    }
    let health = match reasons.first() {
        None => Health::Healthy,
        Some(Reason { code: Code::ChunksMissing, .. }) => Health::Missing,
        Some(_) => Health::Degraded,
    };
    Verdict { health, reasons }
}

/// Whether nobody misses a datanode that is leaving.
pub fn is_drained(node: &fs::DatanodeInfo, repair: &fs::RepairInfo) -> bool {
    // A dead one cannot be told to delete anything; what it holds is made up for when nothing lacks replicas.
    let made_up_for = !repair.counting && repair.under_replicated == 0;
    node.vacant || node.liveness() == Liveness::Dead && made_up_for
}

/// Whether another datanode, which lost its disks or got new ones, has taken this one's address. That one may be away, too,
/// by now: they are numbered as they come.
pub fn replaced(status: &fs::ClusterStatus, node: &fs::DatanodeInfo) -> bool {
    let has_its_place = |other: &fs::DatanodeInfo| {
        other.address == node.address
            && other.node != node.node
            && (other.liveness() == Liveness::Live || other.node > node.node)
    };
    node.liveness() == Liveness::Dead && status.datanodes.iter().any(has_its_place)
}

/// Data directories that were given up, but for those of datanodes that were replaced with all they had.
pub fn failed_directories(status: &fs::ClusterStatus) -> u64 {
    let there = status.datanodes.iter().filter(|node| !replaced(status, node));
    there.map(|node| u64::from(node.failed_dirs)).sum()
}

/// `1 chunk`, `2 chunks`.
pub fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// One word for a liveness.
pub fn liveness_name(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Unknown => "unknown",
        Liveness::Live => "live",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
    }
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
    fn a_whole_cluster_is_healthy() {
        let verdict = judge(&cluster());
        assert_eq!(verdict.health, Health::Healthy);
        assert!(verdict.reasons.is_empty());
    }

    #[test]
    fn a_dead_datanode_degrades_and_a_lost_chunk_is_worse() {
        let mut status = cluster();
        status.datanodes[0].liveness = Liveness::Dead as i32;
        status.repair = Some(fs::RepairInfo { under_replicated: 2, ..Default::default() });
        let verdict = judge(&status);
        assert_eq!(verdict.health, Health::Degraded);
        assert_eq!(
            verdict.texts(),
            ["2 chunks under-replicated", "1 datanode dead", "2 datanodes for 3 replicas"]
        );
        status.repair = Some(fs::RepairInfo { counting: true, ..Default::default() });
        assert_eq!(judge(&status).reasons[0].text, "still counting what lacks replicas");
        status.repair = Some(fs::RepairInfo { missing: 1, ..Default::default() });
        assert_eq!(judge(&status).health, Health::Missing);
        assert_eq!(judge(&status).health.exit_code(), 2);
    }

    #[test]
    fn a_dead_datanode_whose_address_is_served_again_is_history() {
        let mut status = cluster();
        let mut old = status.datanodes[0].clone();
        (old.node, old.liveness) = (9, Liveness::Dead as i32);
        status.datanodes.push(old);
        assert_eq!(judge(&status).health, Health::Healthy);
    }

    #[test]
    fn a_datanode_is_drained_when_it_is_vacant_or_dead_and_nothing_lacks() {
        let node = |liveness: Liveness, vacant| fs::DatanodeInfo {
            liveness: liveness.into(),
            vacant,
            ..Default::default()
        };
        let well = fs::RepairInfo::default();
        assert!(is_drained(&node(Liveness::Live, true), &well));
        assert!(!is_drained(&node(Liveness::Live, false), &well));
        assert!(is_drained(&node(Liveness::Dead, false), &well));
        assert!(!is_drained(&node(Liveness::Dead, false), &fs::RepairInfo { under_replicated: 1, ..well }));
        assert!(!is_drained(&node(Liveness::Dead, false), &fs::RepairInfo { counting: true, ..well }));
    }

    #[test]
    fn what_was_replaced_counts_no_more_whatever_became_of_its_successor() {
        let mut status = cluster();
        let place = status.datanodes.len();
        let mut old = status.datanodes[0].clone();
        (old.liveness, old.failed_dirs) = (Liveness::Dead as i32, 1);
        let mut new = fs::DatanodeInfo { node: 99, ..status.datanodes[0].clone() };
        status.datanodes[0] = old.clone();
        status.datanodes.push(new.clone());
        assert_eq!((judge(&status).texts(), failed_directories(&status)), (vec![], 0));
        new.liveness = Liveness::Dead as i32;
        status.datanodes[place] = new.clone();
        assert_eq!(judge(&status).texts(), ["1 datanode dead", "2 datanodes for 3 replicas"]);
        // The old disks are back.
        old.liveness = Liveness::Live as i32;
        status.datanodes[0] = old;
        assert_eq!(judge(&status).texts(), ["1 data directory failed"]);
    }
}
