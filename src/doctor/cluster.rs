//! The way from this machine to the namenodes, and the cluster's own verdict.

use std::time::Duration;

use cairn_client::fs::ClusterStatus;
use cairn_client::{Error, Probe};
use cairn_ops::code::Code;
use cairn_ops::health::{Health, judge as judge_status};

use super::finding::{Findings, Level};
use crate::output;

/// From so much on, times of files mislead programs that compare them.
const APART: Duration = Duration::from_millis(500);
/// From so much on, something is broken.
const FAR_APART: Duration = Duration::from_secs(30);

/// A namenode's address with its answer.
pub type Asked = (String, Result<Probe, Error>);

/// Judges what each namenode answered; says whether one is worth asking more.
pub fn judge_namenodes(asked: &[Asked], found: &mut Findings) -> bool {
    let answered: Vec<(&String, &Probe)> =
        asked.iter().filter_map(|(address, answer)| Some((address, answer.as_ref().ok()?))).collect();
    for (address, answer) in asked {
        match answer {
            Ok(probe) => judge_namenode(address, probe, found),
            Err(error) => {
                let text = error.detail.strip_prefix("namenode ").unwrap_or(&error.detail);
                let text = text.split(" (os error").next().unwrap_or(text);
                found.warn("namenodes", Code::NamenodeSilent, text);
            }
        }
    }
    let mut ids: Vec<&str> = answered.iter().map(|(_, probe)| probe.reply.cluster_id.as_str()).collect();
    ids.retain(|id| !id.is_empty());
    ids.sort_unstable();
    ids.dedup();
    if ids.len() > 1 {
        found.fail("namenodes", Code::ClustersMixed, format!("they are of the clusters {}", ids.join(", ")));
        return false;
    }
    let led = answered.iter().any(|(_, probe)| !probe.reply.leader_address.is_empty());
    if !led {
        let why = if answered.is_empty() { "no namenode answers" } else { "no namenode leads" };
        found.fail("namenodes", Code::ClusterUnreachable, why);
    }
    led
}

fn judge_namenode(address: &str, probe: &Probe, found: &mut Findings) {
    let trip = probe.round_trip.as_secs_f64() * 1000.0;
    let role = match &probe.reply {
        reply if reply.id != 0 && reply.id == reply.leader_id => "leads",
        reply if reply.blank => "waits for its place",
        _ => "follows",
    };
    let Some(ahead_ns) = probe.ahead_ns else {
        return found.fine("namenodes", format!("{address}: {role}, answers within {trip:.1} ms"));
    };
    let apart = Duration::from_nanos(ahead_ns.unsigned_abs());
    // What the network may have added is not held against a clock.
    if apart > APART + probe.round_trip / 2 {
        let level = if apart >= FAR_APART { Level::Failure } else { Level::Warning };
        let way = if ahead_ns > 0 { "ahead of" } else { "behind" };
        let span = output::span(u64::try_from(apart.as_millis()).unwrap_or(u64::MAX));
        let text = format!("{address}: {role}; its clock is {span} {way} this machine's");
        return found.found(level, "namenodes", Code::ClocksApart, text);
    }
    let apart = apart.as_secs_f64() * 1000.0;
    found.fine(
        "namenodes",
        format!("{address}: {role}, answers within {trip:.1} ms, clocks {apart:.1} ms apart"),
    );
}

/// Takes over the cluster's verdict.
pub fn judge_cluster(status: &ClusterStatus, found: &mut Findings) {
    let verdict = judge_status(status);
    if verdict.health == Health::Healthy {
        let datanodes = cairn_ops::health::counted(status.datanodes.len() as u64, "datanode");
        let namenodes = cairn_ops::health::counted(status.namenodes.len() as u64, "namenode");
        found.fine("cluster", format!("healthy: {namenodes}, {datanodes}"));
    }
    for reason in verdict.reasons {
        let level = if reason.code == Code::ChunksMissing { Level::Failure } else { Level::Warning };
        found.found(level, "cluster", reason.code, reason.text);
    }
}

#[cfg(test)]
mod tests {
    use cairn_client::ErrorCode;
    use cairn_client::control::WhoLeadsReply;

    use super::*;

    fn probe(cluster: &str, ahead_ns: i64) -> Probe {
        let reply = WhoLeadsReply {
            cluster_id: cluster.into(),
            id: 1,
            leader_id: 1,
            leader_address: "a:1".into(),
            ..WhoLeadsReply::default()
        };
        Probe { reply, round_trip: Duration::from_millis(2), ahead_ns: Some(ahead_ns) }
    }

    fn codes(answers: Vec<Result<Probe, Error>>) -> (bool, Vec<(Level, Code)>) {
        let mut found = Findings::default();
        let asked: Vec<Asked> = answers.into_iter().map(|answer| ("a:1".into(), answer)).collect();
        (judge_namenodes(&asked, &mut found), found.codes())
    }

    #[test]
    fn clocks_are_compared_beyond_what_the_network_may_add() {
        assert_eq!(codes(vec![Ok(probe("c", 500_900_000))]), (true, vec![]));
        let warned = (true, vec![(Level::Warning, Code::ClocksApart)]);
        assert_eq!(codes(vec![Ok(probe("c", -600_000_000))]), warned);
        let failed = (true, vec![(Level::Failure, Code::ClocksApart)]);
        assert_eq!(codes(vec![Ok(probe("c", 31_000_000_000))]), failed);
    }

    #[test]
    fn one_that_is_silent_is_a_warning_and_all_are_a_failure() {
        let silent = || Err(ErrorCode::Timeout.because("namenode a:1 does not answer"));
        assert_eq!(
            codes(vec![Ok(probe("c", 0)), silent()]),
            (true, vec![(Level::Warning, Code::NamenodeSilent)])
        );
        let (led, all) = codes(vec![silent()]);
        assert!(!led && all.contains(&(Level::Failure, Code::ClusterUnreachable)));
        let (led, mixed) = codes(vec![Ok(probe("c", 0)), Ok(probe("d", 0))]);
        assert!(!led && mixed == [(Level::Failure, Code::ClustersMixed)]);
    }
}
