//! Numbers for inodes that are made here.

use std::collections::VecDeque;
use std::sync::Arc;

use cairn_proto::fs::{answer, mutation, outcome, query};
use cairn_proto::{ErrorCode, Result, fs};

use super::Delegations;
use crate::engine::Engine;
use crate::namespace::root;
use crate::session::Session;

/// Numbers of inodes taken at once.
const RESERVE: u32 = 4096;
/// So few are left when more are taken.
const RESERVE_AT: u64 = 1024;

/// Numbers for inodes, in ascending order.
#[derive(Default)]
pub(super) struct Numbers {
    ranges: VecDeque<std::ops::Range<u64>>,
    asked: bool,
    /// How many replicas the cluster keeps of a file unless told otherwise.
    pub(super) replication: u32,
}

impl Numbers {
    fn left(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some(range) = self.ranges.front_mut() {
            if let Some(number) = range.next() {
                return Some(number);
            }
            self.ranges.pop_front();
        }
        None
    }
}

impl Engine {
    /// Takes numbers for more inodes.
    pub(super) async fn reserve(&self) -> Result<()> {
        let Some(session) = self.delegations.may_take_numbers() else {
            return self.delegations.until_numbered().await;
        };
        let asked = async {
            let stats = fs::StatFs::default();
            let answer::Result::Fs(stats) = self.channel.query(&root(), query::Op::StatFs(stats)).await?
            else {
                return Err(ErrorCode::Malformed.because("the namenode's answer to statfs"));
            };
            let op = mutation::Op::ReserveInodes(fs::ReserveInodes { count: RESERVE });
            match self.channel.mutate_in(&session, &root(), op).await? {
                outcome::Result::Reserved(range) => Ok((range, stats.default_replication)),
                _ => Err(ErrorCode::Malformed.because("the outcome of reserving inodes")),
            }
        };
        let asked = asked.await;
        self.delegations.give_numbers(&session, asked)
    }
}

impl Delegations {
    pub(super) fn wants_numbers(&self) -> bool {
        let state = self.lock();
        !state.numbers.asked && state.numbers.left() < RESERVE_AT
    }

    /// Waits while somebody else takes numbers.
    async fn until_numbered(&self) -> Result<()> {
        self.wait_while(&self.done, "numbers for new inodes", |state| {
            state.numbers.asked && state.numbers.left() == 0
        })
        .await
    }

    /// The session to take numbers for, unless somebody does or there are enough.
    fn may_take_numbers(&self) -> Option<Arc<Session>> {
        let mut state = self.lock();
        if state.numbers.asked || state.numbers.left() >= RESERVE_AT {
            return None;
        }
        let session = state.session.clone()?;
        state.numbers.asked = true;
        Some(session)
    }

    fn give_numbers(&self, session: &Arc<Session>, asked: Result<(fs::InodesReserved, u32)>) -> Result<()> {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|own| own.id() == session.id()) {
            state.numbers.asked = false;
            self.done.notify_waiters();
            let (range, replication) = asked?;
            state.numbers.ranges.push_back(range.first..range.first + u64::from(range.count));
            state.numbers.replication = replication;
        }
        Ok(())
    }
}
