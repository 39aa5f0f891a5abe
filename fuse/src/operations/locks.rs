//! Locks: taken from the cluster, waited for here, given back when their files are closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_client::Locked;
use cairn_proto::error::Reaction;
use cairn_proto::fs::{LockConflict, LockKind, LockMode, LockRange, SetLock};
use cairn_proto::snapshot::is_inside;
use cairn_proto::{Error, ErrorCode, Result, lock};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::handles::FileHandle;
use crate::interrupts::{GRACE, Signal};
use crate::locks::{Waiter, Who};
use crate::view::View;

/// Between two looks at a lock that somebody else has: it grows from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(200);
/// How long somebody who comes later lets those go first who wait already.
const COURTESY: Duration = Duration::from_millis(300);
/// Between two tries to give back what a closed file had locked.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);

/// One request for a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub who: Who,
    pub range: LockRange,
    /// The handle it comes through.
    pub handle: u64,
}

impl Wanted {
    fn ask(&self) -> SetLock {
        let Who { inode, kind, owner } = self.who;
        SetLock { inode, kind: kind.into(), owner, range: Some(self.range) }
    }
}

fn everything(mode: LockMode) -> LockRange {
    LockRange { start: 0, end: lock::LAST, mode: mode.into(), pid: 0 }
}

/// Whether a request may have been carried out although it failed.
fn is_in_doubt(error: &Error) -> bool {
    error.code.reaction() == Reaction::Retry
}

impl View {
    /// Who is in the way of a lock. The process is named only if it is one of this mount: others mean nothing here.
    pub(crate) async fn getlk(&self, wanted: Wanted) -> Result<Option<LockRange>> {
        if is_inside(wanted.who.inode) {
            return Ok(None);
        }
        let Some(conflict) = self.cluster.lock_conflict(wanted.ask()).await? else { return Ok(None) };
        let ours = Some(conflict.session) == self.cluster.session_id();
        Ok(conflict.range.map(|range| if ours { range } else { LockRange { pid: 0, ..range } }))
    }

    /// Takes, changes or gives back a lock. False: somebody is in the way, and the caller does not want to `wait`.
    pub(crate) async fn setlk(self: &Arc<View>, wanted: Wanted, wait: bool, signal: &Signal) -> Result<bool> {
        let handle =
            self.files.get(wanted.handle).ok_or_else(|| ErrorCode::Invalid.because("a closed handle"))?;
        if handle.lost.load(Ordering::Acquire) {
            return Err(lost());
        }
        if is_inside(wanted.who.inode) {
            // What never changes needs no protection, and whoever asks for it is not to be kept from reading.
            return Ok(true);
        }
        if wanted.range.mode() == LockMode::Unlocked && self.locks.session_of(wanted.who).is_none() {
            return Ok(true);
        }
        // Whoever gets the lock next is to see what was written under it.
        let flushed = match wanted.range.mode() {
            LockMode::Exclusive => Ok(()),
            LockMode::Shared => Ok(self.flush(&handle).await?),
            // It goes all the same.
            LockMode::Unlocked => self.flush(&handle).await,
        };
        let had_some = self.locks.touches(wanted.who, &wanted.range);
        let mut in_doubt = false;
        let done = match wait {
            true => self.wait_for(wanted, signal, &mut in_doubt).await,
            false => self.try_for(wanted, signal, &mut in_doubt).await,
        };
        if done.is_err() && in_doubt {
            self.undo(wanted, had_some);
        }
        flushed?;
        done
    }

    async fn try_for(self: &Arc<View>, wanted: Wanted, signal: &Signal, in_doubt: &mut bool) -> Result<bool> {
        match self.attempt(wanted, signal, in_doubt).await {
            // Whatever this owner had in that session is lost and known to be; a new lock can be had.
            Err(error) if error.code == ErrorCode::SessionExpired => {
                self.attempt(wanted, signal, in_doubt).await.map(|refused| refused.is_none())
            }
            tried => tried.map(|refused| refused.is_none()),
        }
    }

    async fn wait_for(
        self: &Arc<View>,
        wanted: Wanted,
        signal: &Signal,
        in_doubt: &mut bool,
    ) -> Result<bool> {
        let waiter = self.locks.line_up(wanted.who, wanted.range);
        self.let_others_go_first(&waiter, signal).await?;
        loop {
            waiter.looks();
            match self.attempt(wanted, signal, in_doubt).await {
                Ok(None) => return Ok(true),
                Ok(Some(conflict)) => self.wait_behind(&waiter, wanted, conflict, signal).await?,
                Err(error) if error.code == ErrorCode::Interrupted => return Err(error),
                Err(error) if is_in_doubt(&error) || error.code == ErrorCode::SessionExpired => {
                    if self.files.get(wanted.handle).is_none_or(|handle| handle.lost.load(Ordering::Acquire))
                    {
                        return Err(lost());
                    }
                    pause(LAST_PAUSE, signal).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A program that gives a lock back and takes it again at once would otherwise always be faster than one that waits.
    /// Not for long: who goes first may be waiting for something that this one holds elsewhere.
    async fn let_others_go_first(&self, waiter: &Waiter<'_>, signal: &Signal) -> Result<()> {
        if self.locks.session_of(waiter.who()).is_some() {
            // They may well wait for what this one has.
            return Ok(());
        }
        let until = Instant::now() + COURTESY;
        while !waiter.is_first() && Instant::now() < until {
            tokio::select! {
                biased;
                () = signal.raised() => return Err(ErrorCode::Interrupted.into()),
                () = waiter.woken() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        Ok(())
    }

    /// Waits until nobody seems to be in the way, as the cluster tells.
    async fn wait_behind(
        &self,
        waiter: &Waiter<'_>,
        wanted: Wanted,
        conflict: LockConflict,
        signal: &Signal,
    ) -> Result<()> {
        let look = || self.cluster.lock_conflict(wanted.ask());
        until_free(waiter, conflict, || self.cluster.session_id(), look, signal).await
    }

    /// Asks once. Returns who is in the way. A signal ends it after a grace; then it goes on by itself.
    async fn attempt(
        self: &Arc<View>,
        wanted: Wanted,
        signal: &Signal,
        in_doubt: &mut bool,
    ) -> Result<Option<LockConflict>> {
        let mut asked = self.ask_for(wanted);
        let too_long = async {
            signal.raised().await;
            sleep(GRACE).await;
        };
        let answer = tokio::select! {
            answer = &mut asked => answer,
            () = too_long => {
                *in_doubt = true;
                return Err(ErrorCode::Interrupted.into());
            }
        };
        match answer {
            Ok(Ok(Locked::Done { .. })) => Ok(None),
            Ok(Ok(Locked::Refused(conflict))) => Ok(Some(conflict)),
            Ok(Err(error)) => {
                *in_doubt |= is_in_doubt(&error);
                Err(error)
            }
            Err(error) => {
                *in_doubt = true;
                Err(ErrorCode::Io.because(format!("a lock: {error}")))
            }
        }
    }

    /// Asks in a task of its own, so that what came of it is known whatever becomes of who asked.
    fn ask_for(self: &Arc<View>, wanted: Wanted) -> JoinHandle<Result<Locked>> {
        let view = self.clone();
        tokio::spawn(async move {
            let _in_turn = view.locks.turn(wanted.who).lock().await;
            if view.locks.is_leaving(wanted.who) {
                // Left by somebody of the same number, who is gone.
                view.give_all_back(wanted.who).await?;
            }
            let epoch = view.epoch();
            let only_in = match wanted.range.mode() {
                LockMode::Unlocked => view.locks.session_of(wanted.who),
                _ => None,
            };
            let answer = view.cluster.set_lock(wanted.ask(), only_in).await;
            match &answer {
                Ok(Locked::Done { session, attr }) => {
                    view.locks.done(wanted.who, wanted.handle, *session, wanted.range);
                    if wanted.range.mode() != LockMode::Unlocked {
                        if let Some(handle) = view.files.get(wanted.handle) {
                            handle.locked_in.store(*session, Ordering::Release);
                            handle.open.learn(attr, epoch);
                        }
                        view.see_what_others_wrote(wanted.who.inode, attr.version).await;
                    }
                    if view.cluster.session_id() != Some(*session) {
                        // Lost between the answer and now, when it was not known to be held.
                        for inode in view.session_lost(*session) {
                            view.forget_pages(inode).await;
                        }
                        return Err(lost());
                    }
                }
                Ok(Locked::Refused(_)) => view.locks.refused(wanted.who, &wanted.range),
                // With the session the lock went, which is what was asked for.
                Err(error) if error.code == ErrorCode::SessionExpired && only_in.is_some() => {}
                Err(_) => {}
            }
            answer
        })
    }

    /// What the kernel has of a file that was just locked may be older than the lock.
    async fn see_what_others_wrote(&self, inode: u64, version: u64) {
        let attributes = self.versions.attributes_are(inode, version);
        let pages = self.versions.keep_pages(inode, version);
        if !attributes || !pages {
            self.forget_pages(inode).await;
        }
    }

    /// Whoever asked does not know what came of it, and believes to have what there was before.
    fn undo(self: &Arc<View>, wanted: Wanted, had_some: bool) {
        let view = self.clone();
        tokio::spawn(async move {
            if wanted.range.mode() == LockMode::Unlocked {
                return;
            }
            if had_some {
                // It may have been exclusive and be shared now: what it protected cannot be relied on.
                view.lose_handles(wanted.who, "a lock was changed and the cluster did not say how");
                return;
            }
            let back =
                Wanted { range: LockRange { mode: LockMode::Unlocked.into(), ..wanted.range }, ..wanted };
            // Behind the request itself, if that is still under way; and until it is certain.
            while let Ok(Err(error)) = view.ask_for(back).await {
                if !is_in_doubt(&error) {
                    return;
                }
                sleep(GIVE_BACK_PAUSE).await;
            }
        });
    }

    /// A process has closed a descriptor of the file: all its `fcntl` locks on it go.
    pub(crate) async fn unlock_process(self: &Arc<View>, inode: u64, owner: u64) {
        self.unlock_all(Who { inode, kind: LockKind::Fcntl, owner }).await;
    }

    /// The last descriptor of an open is closed: the locks that belong to it go.
    pub(crate) async fn unlock_closed(self: &Arc<View>, handle: &FileHandle, number: u64) {
        if handle.locked_in.load(Ordering::Acquire) == 0 {
            return;
        }
        for who in self.locks.closed(handle.open.file.inode(), number) {
            self.unlock_all(who).await;
        }
    }

    async fn unlock_all(self: &Arc<View>, who: Who) {
        if !self.locks.leave(who) {
            return;
        }
        let view = self.clone();
        let giving = tokio::spawn(async move {
            loop {
                {
                    let _in_turn = view.locks.turn(who).lock().await;
                    if !view.locks.is_leaving(who) || view.give_all_back(who).await.is_ok() {
                        return;
                    }
                }
                sleep(GIVE_BACK_PAUSE).await;
            }
        });
        // A close should not wait for a cluster that is away.
        let _ = timeout(GRACE, giving).await;
    }

    async fn give_all_back(&self, who: Who) -> Result<()> {
        let Some(session) = self.locks.session_of(who) else { return Ok(()) };
        let range = everything(LockMode::Unlocked);
        let ask = SetLock { inode: who.inode, kind: who.kind.into(), owner: who.owner, range: Some(range) };
        match self.cluster.set_lock(ask, Some(session)).await {
            Err(error) if is_in_doubt(&error) => return Err(error),
            Err(error) => tracing::debug!(inode = who.inode, %error, "a lock went by itself"),
            Ok(_) => {}
        }
        self.locks.done(who, 0, session, range);
        Ok(())
    }

    /// Refuses to use a handle whose locks are lost; waits while it is not known whether they are.
    pub(crate) async fn may_use(&self, handle: &FileHandle) -> Result<()> {
        let session = handle.locked_in.load(Ordering::Acquire);
        if session != 0 && !handle.lost.load(Ordering::Acquire) {
            match self.cluster.confirm_session(session).await {
                Err(error) if error.code != ErrorCode::SessionExpired => return Err(error),
                // What is lost is marked by now.
                _ => {}
            }
        }
        if handle.lost.load(Ordering::Acquire) { Err(lost()) } else { Ok(()) }
    }

    /// Asked after a write: takes it back if the locks were lost meanwhile.
    pub(crate) fn may_have_written(&self, handle: &FileHandle) -> Result<()> {
        if !handle.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        handle.open.file.abandon(lost());
        Err(lost())
    }

    /// A session has expired, and others may hold its locks by now. What was written under them and is not committed
    /// must never be, and their holders must hear of it. Does not wait.
    /// Returns the files of which the kernel may have pages that are not so.
    pub(crate) fn session_lost(&self, session: u64) -> Vec<u64> {
        let mut files = 0;
        let gone = self.locks.lost(session);
        for (_, handles) in &gone {
            files += self.mark_lost(handles);
        }
        if !gone.is_empty() {
            tracing::error!(
                session,
                locks = gone.len(),
                files,
                "this mount was not heard for longer than its lease, and others may hold its locks: the open files \
                 that held them fail until they are closed"
            );
        }
        gone.into_iter().map(|(who, _)| who.inode).collect()
    }

    fn lose_handles(&self, who: Who, why: &str) {
        let files = self.mark_lost(&self.locks.handles_of(who));
        tracing::error!(
            inode = who.inode,
            files,
            "{why}: the open files that held it fail until they are closed"
        );
    }

    fn mark_lost(&self, handles: &[u64]) -> usize {
        let open: Vec<_> = handles.iter().filter_map(|&number| self.files.get(number)).collect();
        for handle in &open {
            // In this order: a write that comes in between takes itself back.
            handle.lost.store(true, Ordering::Release);
            handle.open.file.abandon(lost());
            self.versions.doubt_pages(handle.open.file.inode());
        }
        open.len()
    }
}

fn lost() -> Error {
    ErrorCode::Io.because("its locks are lost; close the file and begin again")
}

/// Waits until nobody seems to be in the way. It only looks: waiting writes nothing to the log.
async fn until_free<F: Future<Output = Result<Option<LockConflict>>>>(
    waiter: &Waiter<'_>,
    conflict: LockConflict,
    session: impl Fn() -> Option<u64>,
    look: impl Fn() -> F,
    signal: &Signal,
) -> Result<()> {
    let mut in_the_way = Some(conflict);
    let mut wait = FIRST_PAUSE;
    loop {
        if let Some(conflict) = &in_the_way
            && waiter.is_deadlocked(conflict, session())
        {
            return Err(ErrorCode::Deadlock.because(format!("inode {}", waiter.who().inode)));
        }
        tokio::select! {
            biased;
            () = signal.raised() => return Err(ErrorCode::Interrupted.into()),
            () = waiter.woken() => wait = FIRST_PAUSE,
            // Not all at the same time, so that each has its chance.
            () = sleep(wait.mul_f64(0.5 + 0.5 * jitter())) => wait = (wait * 2).min(LAST_PAUSE),
        }
        waiter.looks();
        let looked = tokio::select! {
            biased;
            () = signal.raised() => return Err(ErrorCode::Interrupted.into()),
            looked = look() => looked,
        };
        in_the_way = match looked {
            Ok(None) => return Ok(()),
            Ok(conflict) => conflict,
            // What was seen before may be over: the waiter remembers only what was given back since it began to look.
            Err(error) if is_in_doubt(&error) => None,
            Err(error) => return Err(error),
        };
    }
}

async fn pause(length: Duration, signal: &Signal) -> Result<()> {
    tokio::select! {
        biased;
        () = signal.raised() => Err(ErrorCode::Interrupted.into()),
        () = sleep(length) => Ok(()),
    }
}

/// Something between 0 and 1, different every time.
fn jitter() -> f64 {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    f64::from(nanos % 1_000) / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::locks::Locks;

    fn who(owner: u64) -> Who {
        Who { inode: 5, kind: LockKind::Fcntl, owner }
    }

    fn byte(at: u64, mode: LockMode) -> LockRange {
        LockRange { start: at, end: at, mode: mode.into(), pid: 1 }
    }

    #[tokio::test]
    async fn a_look_without_an_answer_makes_no_deadlock_of_what_was_seen_before() {
        let locks = Locks::default();
        let held_by = |owner| LockConflict { range: None, session: 9, owner, attr: None };
        locks.done(who(1), 7, 9, byte(0, LockMode::Exclusive));
        let two = locks.line_up(who(2), byte(0, LockMode::Exclusive));
        let one = locks.line_up(who(1), byte(1, LockMode::Exclusive));
        let looks = Cell::new(0);
        let look = || async {
            looks.set(looks.get() + 1);
            if looks.get() == 1 { Err(ErrorCode::Unavailable.into()) } else { Ok(None) }
        };
        let signal = Signal::default();
        let waits = until_free(&two, held_by(1), || Some(9), look, &signal);
        // Meanwhile the first gives back what the second waits for, and waits for something that the second has.
        let turns = async {
            locks.done(who(1), 7, 9, byte(0, LockMode::Unlocked));
            assert!(!one.is_deadlocked(&held_by(2), Some(9)));
        };
        let (waited, ()) = tokio::join!(biased; waits, turns);
        waited.unwrap();
        assert_eq!(looks.get(), 2);
    }
}
