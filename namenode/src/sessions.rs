//! Clients' leases: the leader's memory of when each session was heard last.
//!
//! Renewals are not logged. A new leader knows none, so it gives every session a full lease from its own start;
//! nobody is expired before a leader itself has not heard of them for a whole lease. The same holds for a leader that
//! could not answer for a while: whoever talked to it then was not heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_metadata::records;
use cairn_metadata::store::{Store, View};
use cairn_proto::ErrorCode;
use cairn_proto::fs::{ExpireSession, mutation};
use tokio::time::Instant;

use crate::fatal::Alarm;
use crate::propose::{Proposer, own};
use crate::raft::Group;

/// A leader that has not looked at the leases for so many times as long as it should may not have heard anybody either.
const LATE: u32 = 5;

/// The leases of a leader; nothing while this namenode follows. Clones share them.
#[derive(Debug, Clone)]
pub struct Sessions {
    leases: Arc<Mutex<Option<Leases>>>,
    length: Duration,
}

#[derive(Debug, Default)]
struct Leases {
    heard: BTreeMap<u64, Instant>,
    /// Found to be over; a renewal comes too late. True: their end may be in the log already.
    expiring: BTreeMap<u64, bool>,
}

impl Sessions {
    /// Leases of `length`.
    pub fn new(length: Duration) -> Sessions {
        Sessions { leases: Arc::default(), length }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Leases>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a renewal is worth, in milliseconds.
    pub fn length_ms(&self) -> u32 {
        u32::try_from(self.length.as_millis()).unwrap_or(u32::MAX)
    }

    /// This namenode leads: every session begins a full lease.
    pub fn lead(&self) {
        *self.lock() = Some(Leases::default());
    }

    /// This namenode leads no more.
    pub fn follow(&self) {
        *self.lock() = None;
    }

    /// Whether this namenode leads.
    pub fn leads(&self) -> bool {
        self.lock().is_some()
    }

    /// A sign of life of a session that exists. False when it is already being expired.
    ///
    /// A leader that is so new that it keeps no leases yet gives everybody a whole one when it does.
    pub fn renew(&self, session: u64, now: Instant) -> bool {
        let mut guard = self.lock();
        let Some(leases) = guard.as_mut() else { return true };
        if leases.expiring.contains_key(&session) {
            return false;
        }
        leases.heard.insert(session, now);
        true
    }

    /// Compares the leases with the sessions there are, and returns those whose lease is over.
    fn overdue(&self, existing: &[u64], now: Instant) -> Vec<u64> {
        let length = self.length;
        let mut guard = self.lock();
        let Some(leases) = guard.as_mut() else { return Vec::new() };
        leases.heard.retain(|session, _| existing.binary_search(session).is_ok());
        leases.expiring.retain(|session, _| existing.binary_search(session).is_ok());
        for &session in existing {
            leases.heard.entry(session).or_insert(now);
        }
        let over = |heard: &Instant| now.saturating_duration_since(*heard) >= length;
        let due: Vec<u64> =
            leases.heard.iter().filter(|(_, heard)| over(heard)).map(|(&session, _)| session).collect();
        for &session in &due {
            // Asked for again only after a while, should the proposal get lost.
            leases.heard.insert(session, now);
            leases.expiring.entry(session).or_default();
        }
        due
    }

    /// Gives everybody a full lease. Those whose end may be in the log stay refused.
    fn begin_anew(&self, now: Instant) {
        if let Some(leases) = self.lock().as_mut() {
            leases.heard.values_mut().for_each(|heard| *heard = now);
        }
    }

    /// The end of these sessions was not asked for after all.
    fn spare(&self, sessions: &[u64]) {
        if let Some(leases) = self.lock().as_mut() {
            leases.expiring.retain(|session, may_come| *may_come || !sessions.contains(session));
        }
    }

    /// Nobody knows whether the end of this session is in the log.
    fn doubt(&self, session: u64) {
        if let Some(may_come) = self.lock().as_mut().and_then(|leases| leases.expiring.get_mut(&session)) {
            *may_come = true;
        }
    }

    /// Expires sessions while this namenode leads; runs until it is dropped.
    pub async fn watch(self, group: Group, store: Arc<dyn Store>, proposer: Proposer, alarm: Alarm) {
        let every = (self.length / 10).clamp(Duration::from_millis(100), Duration::from_secs(1));
        let mut looked = Instant::now();
        loop {
            tokio::time::sleep(every).await;
            if !self.leads() {
                continue;
            }
            let answers = group.refusal().is_none() && group.ensure_readable().await.is_ok();
            let now = Instant::now();
            let since = now.saturating_duration_since(std::mem::replace(&mut looked, now));
            if !could_hear(answers, since, every) {
                self.begin_anew(now);
                continue;
            }
            let mut existing = Vec::new();
            let mut body = |view: &dyn View| {
                existing = records::sessions(view)?;
                Ok(())
            };
            if let Err(error) = store.read(&mut body) {
                return alarm.raise(error.to_string());
            }
            existing.sort_unstable();
            let mut due = self.overdue(&existing, now).into_iter();
            for session in due.by_ref() {
                tracing::info!(session, "a session's lease is over");
                let command = own(mutation::Op::ExpireSession(ExpireSession { session }));
                if let Err(error) = proposer.propose(command).await {
                    tracing::debug!(session, %error, "the session was not expired");
                    match error.code {
                        ErrorCode::Unavailable => self.doubt(session),
                        _ => self.spare(&[session]),
                    }
                    break;
                }
            }
            self.spare(due.as_slice());
        }
    }
}

/// Whether a leader has heard everybody who talked to it since it looked at the leases last, `since` ago, as it does
/// `every` so often: neither was it refusing, nor was its process stopped.
fn could_hear(answers: bool, since: Duration, every: Duration) -> bool {
    answers && since < every * LATE
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    #[test]
    fn a_session_expires_one_lease_after_it_was_heard_last() {
        let sessions = Sessions::new(LEASE);
        let start = Instant::now();
        assert!(sessions.renew(1, start), "nobody leads yet, so nobody's lease is over");
        sessions.lead();
        assert!(sessions.overdue(&[1, 2], start).is_empty());
        assert!(sessions.renew(1, start + LEASE / 2));
        assert_eq!(sessions.overdue(&[1, 2], start + LEASE), [2]);
        assert!(!sessions.renew(2, start + LEASE), "too late");
        assert!(sessions.renew(1, start + LEASE));
        assert!(sessions.overdue(&[1], start + LEASE).is_empty());
    }

    #[test]
    fn a_new_leader_gives_everybody_a_full_lease() {
        let sessions = Sessions::new(LEASE);
        let start = Instant::now();
        sessions.lead();
        sessions.overdue(&[1], start);
        sessions.follow();
        sessions.lead();
        assert!(sessions.overdue(&[1], start + LEASE * 2).is_empty());
        assert_eq!(sessions.overdue(&[1], start + LEASE * 3), [1]);
    }

    #[test]
    fn who_could_not_be_heard_is_given_a_full_lease() {
        let every = Duration::from_secs(1);
        assert!(could_hear(true, every * 2, every), "a busy machine");
        assert!(!could_hear(false, every, every), "no majority, or nothing is applied");
        assert!(!could_hear(true, LEASE, every), "the process was stopped");

        let sessions = Sessions::new(LEASE);
        let start = Instant::now();
        sessions.lead();
        sessions.overdue(&[1, 2, 3], start);
        assert!(sessions.renew(3, start + LEASE / 2));
        assert_eq!(sessions.overdue(&[1, 2, 3], start + LEASE), [1, 2]);
        sessions.doubt(1);
        sessions.spare(&[1, 2]);
        let back = start + LEASE * 3;
        sessions.begin_anew(back);
        assert!(sessions.overdue(&[1, 2, 3], back).is_empty());
        assert!(!sessions.renew(1, back), "its end may be in the log");
        assert!(sessions.renew(2, back), "nobody has asked for its end");
        assert_eq!(sessions.overdue(&[1, 2, 3], back + LEASE), [1, 2, 3]);
    }
}
