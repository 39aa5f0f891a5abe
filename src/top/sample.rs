//! What is shown: a status of the cluster, and what changed since the one before.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_client::fs::{ClusterStatus, Traffic, WorkInfo};

/// How often something happened, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Times a second.
    pub per_second: f64,
    /// Milliseconds on average; nothing if it did not happen.
    pub ms: Option<f64>,
}

/// What the leader did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Questions answered.
    pub queries: Rate,
    /// Changes made.
    pub mutations: Rate,
    /// Entries that the log took.
    pub commits: Rate,
}

/// Bytes a second that a datanode carries.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flow {
    /// Sent to readers.
    pub read: f64,
    /// Taken from writers.
    pub written: f64,
}

/// A status with what can only be told from two.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// As the leader tells it.
    pub status: ClusterStatus,
    /// Nothing before the second status, and after a change of leader.
    pub work: Option<Work>,
    /// By the datanode's number; one that just started is not among them.
    pub flows: BTreeMap<u32, Flow>,
}

impl Sample {
    /// From a status, and the one that was so long before.
    pub fn of(status: ClusterStatus, before: Option<(&ClusterStatus, Duration)>) -> Sample {
        let Some((old, elapsed)) = before.filter(|(_, elapsed)| !elapsed.is_zero()) else {
            return Sample { status, ..Sample::default() };
        };
        let same_leader = leader(&status).is_some() && leader(&status) == leader(old);
        let work = match (status.work.as_deref(), old.work.as_deref()) {
            (Some(now), Some(then)) if same_leader => work(*now, *then, elapsed),
            _ => None,
        };
        let earlier: BTreeMap<u32, Traffic> =
            old.datanodes.iter().filter_map(|node| Some((node.node, node.traffic?))).collect();
        let flow = |now: Traffic, then: Traffic| {
            let grown = |now: u64, then: u64| Some(now.checked_sub(then)? as f64 / elapsed.as_secs_f64());
            Some(Flow {
                read: grown(now.bytes_read, then.bytes_read)?,
                written: grown(now.bytes_written, then.bytes_written)?,
            })
        };
        let flows = status
            .datanodes
            .iter()
            .filter_map(|node| Some((node.node, flow(node.traffic?, *earlier.get(&node.node)?)?)));
        let flows = flows.collect();
        Sample { status, work, flows }
    }

    /// Over all datanodes; nothing if none is known.
    pub fn flow(&self) -> Option<Flow> {
        let sum =
            |sum: Flow, one: &Flow| Flow { read: sum.read + one.read, written: sum.written + one.written };
        (!self.flows.is_empty()).then(|| self.flows.values().fold(Flow::default(), sum))
    }
}

fn leader(status: &ClusterStatus) -> Option<u64> {
    status.namenodes.iter().find(|node| node.leader).map(|node| node.id)
}

/// Nothing if a counter went back: the leader was started again.
fn work(now: WorkInfo, then: WorkInfo, elapsed: Duration) -> Option<Work> {
    let rate = |count: (u64, u64), ns: (u64, u64)| {
        let (count, ns) = (count.0.checked_sub(count.1)?, ns.0.checked_sub(ns.1)?);
        let ms = (count > 0).then(|| ns as f64 / count as f64 / 1e6);
        Some(Rate { per_second: count as f64 / elapsed.as_secs_f64(), ms })
    };
    Some(Work {
        queries: rate((now.queries, then.queries), (now.query_ns, then.query_ns))?,
        mutations: rate((now.mutations, then.mutations), (now.mutation_ns, then.mutation_ns))?,
        commits: rate((now.commits, then.commits), (now.commit_ns, then.commit_ns))?,
    })
}

#[cfg(test)]
mod tests {
    use cairn_client::fs::{DatanodeInfo, NamenodeInfo};

    use super::*;

    fn status(leader: u64, mutations: u64, read: u64) -> ClusterStatus {
        let traffic = Some(Traffic { bytes_read: read, bytes_written: 0 });
        ClusterStatus {
            namenodes: vec![NamenodeInfo { id: leader, leader: true, ..NamenodeInfo::default() }],
            datanodes: vec![DatanodeInfo { node: 7, traffic, ..DatanodeInfo::default() }],
            work: Some(Box::new(WorkInfo {
                mutations,
                mutation_ns: mutations * 3_000_000,
                ..WorkInfo::default()
            })),
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn rates_are_over_the_time_between() {
        let two = Duration::from_secs(2);
        let sample = Sample::of(status(1, 30, 4096), Some((&status(1, 10, 0), two)));
        let work = sample.work.unwrap();
        assert_eq!(work.mutations, Rate { per_second: 10.0, ms: Some(3.0) });
        assert_eq!(work.queries, Rate { per_second: 0.0, ms: None });
        assert_eq!(sample.flows[&7], Flow { read: 2048.0, written: 0.0 });
        assert_eq!(sample.flow(), Some(sample.flows[&7]));
    }

    #[test]
    fn counters_that_began_anew_give_no_rate() {
        let second = Duration::from_secs(1);
        assert!(Sample::of(status(2, 30, 0), Some((&status(1, 10, 0), second))).work.is_none());
        let restarted = Sample::of(status(1, 5, 0), Some((&status(1, 10, 99), second)));
        assert!(restarted.work.is_none() && restarted.flows.is_empty() && restarted.flow().is_none());
        assert!(Sample::of(status(1, 5, 0), None).work.is_none());
    }
}
