//! One namenode asked by itself, whoever leads: whether it answers, whose it is, and what its clock says.

use std::time::Duration;

use cairn_host::Host;
use cairn_proto::control::{WhoLeadsReply, WhoLeadsRequest};
use cairn_proto::{ErrorCode, Result};
use tokio::time::{Instant, timeout};

use crate::channel::{Namenodes, status_text};

/// Questions of one probe; the quickest answer tells most about the clock.
const QUESTIONS: usize = 3;

/// What a namenode answered.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Who leads, in its opinion, and what cluster it is of.
    pub reply: WhoLeadsReply,
    /// From the question to the answer.
    pub round_trip: Duration,
    /// By how many nanoseconds its clock is ahead of this machine's; nothing if it does not tell the time.
    pub ahead_ns: Option<i64>,
}

impl Probe {
    /// Asks the namenode at `address` from this machine, for so long at most.
    pub async fn of(address: &str, machine: &Host, patience: Duration) -> Result<Probe> {
        let late = |_| ErrorCode::Timeout.because(format!("namenode {address} does not answer"));
        timeout(patience, ask(address, machine)).await.map_err(late)?
    }
}

async fn ask(address: &str, machine: &Host) -> Result<Probe> {
    let Host { network, clock, .. } = machine.clone();
    let mut stub = Namenodes::new(vec![address.to_owned()], network)?.dial(address).await?;
    let mut best: Option<Probe> = None;
    for _ in 0..QUESTIONS {
        let (asked, asked_ns) = (Instant::now(), clock.now_ns());
        let answered = stub.who_leads(WhoLeadsRequest {}).await.map_err(|status| {
            ErrorCode::Unavailable.because(format!("namenode {address}: {}", status_text(&status)))
        })?;
        let (reply, round_trip) = (answered.into_inner(), asked.elapsed());
        let ahead_ns = ahead(reply.now_ns, asked_ns, round_trip);
        if best.as_ref().is_none_or(|best| round_trip < best.round_trip) {
            best = Some(Probe { reply, round_trip, ahead_ns });
        }
    }
    best.ok_or_else(|| ErrorCode::Timeout.because(format!("namenode {address}")))
}

/// The answer was written half way through the round trip, as far as anybody can tell.
fn ahead(told_ns: i64, asked_ns: i64, round_trip: Duration) -> Option<i64> {
    let half = i64::try_from(round_trip.as_nanos() / 2).unwrap_or(0);
    (told_ns != 0).then(|| told_ns.saturating_sub(asked_ns.saturating_add(half)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_with_the_middle_of_the_round_trip() {
        let trip = Duration::from_nanos(100);
        assert_eq!(ahead(1_050, 1_000, trip), Some(0));
        assert_eq!(ahead(950, 1_000, trip), Some(-100));
        assert_eq!(ahead(0, 1_000, trip), None);
    }
}
