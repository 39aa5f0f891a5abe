//! Locks on files, and what becomes of them when the session ends.

use cairn_proto::{ErrorCode, Result, fs};

use crate::Cluster;
use crate::namespace::root;

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Locked {
    /// It was done, and goes when this session ends.
    Done {
        /// The session the lock belongs to.
        session: u64,
        /// The file as it was then.
        attr: fs::Attr,
    },
    /// Somebody is in the way.
    Refused(fs::LockConflict),
}

impl Cluster {
    /// Takes, changes or gives back a lock, without waiting for its holder.
    ///
    /// With `only_in`, under that session: what another one never held need not be given back. After an error it may
    /// have been done all the same; asking for the same again is harmless.
    pub async fn set_lock(&self, ask: fs::SetLock, only_in: Option<u64>) -> Result<Locked> {
        let channel = &self.engine().channel;
        let session = match only_in {
            None => channel.session().await?,
            Some(id) => channel
                .live_session()
                .filter(|session| session.id() == id)
                .ok_or_else(|| ErrorCode::SessionExpired.because(format!("session {id}")))?,
        };
        self.engine().delegations.until_born(ask.inode).await?;
        match channel.mutate_in(&session, &root(), fs::mutation::Op::SetLock(ask)).await? {
            fs::outcome::Result::Lock(fs::LockConflict { range: None, attr: Some(attr), .. }) => {
                Ok(Locked::Done { session: session.id(), attr })
            }
            fs::outcome::Result::Lock(conflict) if conflict.range.is_some() => Ok(Locked::Refused(conflict)),
            _ => Err(ErrorCode::Malformed.because("the outcome of a lock")),
        }
    }

    /// Who stands in the way of such a lock of this client's, if anybody does.
    pub async fn lock_conflict(&self, ask: fs::SetLock) -> Result<Option<fs::LockConflict>> {
        let fs::SetLock { inode, kind, owner, range } = ask;
        let ask = fs::GetLock { inode, kind, session: self.session_id().unwrap_or(0), owner, range };
        match self.query(&root(), fs::query::Op::GetLock(ask)).await? {
            fs::answer::Result::Lock(conflict) => {
                Ok(Some(conflict).filter(|conflict| conflict.range.is_some()))
            }
            _ => Err(ErrorCode::Malformed.because("the namenode's answer about a lock")),
        }
    }

    /// The session, while there is one.
    pub fn session_id(&self) -> Option<u64> {
        self.engine().channel.live_session().map(|session| session.id())
    }

    /// How many sessions of this client have expired.
    pub fn sessions_lost(&self) -> u64 {
        self.engine().channel.sessions_lost()
    }

    /// Has `told` called with the number of each session that expires, before another is opened. It must not wait.
    /// Only the first call of this function counts.
    pub fn on_session_lost(&self, told: impl Fn(u64) + Send + Sync + 'static) {
        self.engine().channel.on_session_lost(Box::new(told));
    }

    /// Whether `session` still lives, as sure as it can be: asks the leader if the lease may be over.
    pub async fn confirm_session(&self, session: u64) -> Result<()> {
        let channel = &self.engine().channel;
        let gone = || ErrorCode::SessionExpired.because(format!("session {session}"));
        let live = channel.live_session().filter(|live| live.id() == session).ok_or_else(gone)?;
        if !channel.fenced() {
            return Ok(());
        }
        // It changes nothing, but is refused if the session is gone.
        let nothing = fs::mutation::Op::Close(fs::CloseInodes { inodes: Vec::new() });
        channel.mutate_in(&live, &root(), nothing).await.map(drop)
    }

    /// For how long calls to the leader have gone without any answer; zero while none is waited for.
    pub fn silent_for(&self) -> std::time::Duration {
        self.engine().channel.silent_for()
    }
}
