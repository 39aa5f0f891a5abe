//! What clients do in the same places: a name that one of them wins, registers, a counter under a lock, a shared log.

use bytes::Bytes;
use cairn_client::{ErrorCode, Locked, fs};

use super::{Client, Done, RACE, at, root};
use crate::history::{Appended, Life};
use crate::machine::now;

impl Client {
    pub(super) async fn race(&mut self) {
        let race = format!("race-{}", now() / RACE);
        if race == self.race {
            return;
        }
        self.race.clone_from(&race);
        let ask = fs::CreateFile {
            at: Some(at(&format!("shared/{race}"))),
            mode: 0o644,
            uid: self.life.0 as u32 * 1000 + self.life.1 as u32,
            exclusive: true,
            ..Default::default()
        };
        let created = self.cluster.create(&root(), ask).await;
        match self.done(&race, created) {
            Done::Yes(_) => {
                let other = self.history.records().winners.insert(race.clone(), self.life);
                if let Some(other) = other {
                    self.violation(format!("{race} was won by {other:?} as well"));
                }
            }
            Done::No(error) if error.code == ErrorCode::Exists => {}
            Done::No(error) => self.violation(format!("{race}: {error}")),
            Done::Unknown => return,
        }
        let Ok(attr) = self.cluster.stat(&root(), at(&format!("shared/{race}")), false).await else { return };
        let before = self.history.records().owners.insert(race.clone(), attr.uid);
        if before.is_some_and(|before| before != attr.uid) {
            self.violation(format!("{race} belonged to {before:?} and now to {}", attr.uid));
        }
    }

    fn register_of(life: Life) -> String {
        format!("user.{}-{}", life.0, life.1)
    }

    pub(super) async fn write_register(&mut self) {
        self.register += 1;
        let value = self.register;
        self.history.records().registers.entry(self.life).or_default().begun = value;
        let ask = fs::SetXattr {
            at: Some(at("shared")),
            name: Self::register_of(self.life).into(),
            value: value.to_string().into(),
            ..Default::default()
        };
        let written = self.cluster.set_xattr(&root(), ask).await;
        match self.done(&format!("register {value}"), written) {
            Done::Yes(()) => self.history.records().registers.entry(self.life).or_default().acked = value,
            Done::No(error) => self.violation(format!("writing a register: {error}")),
            Done::Unknown => {}
        }
    }

    /// A read begun after a write was acknowledged sees it, or a later one, whoever leads.
    pub(super) async fn read_registers(&mut self) {
        let all: Vec<Life> = self.history.records().registers.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let life = *self.random.pick(&all);
        let least = self.history.records().registers.get(&life).copied().unwrap_or_default().acked;
        let read = self.cluster.get_xattr(&root(), at("shared"), Self::register_of(life).into()).await;
        let found = match self.done(&format!("register of {life:?}"), read) {
            Done::Yes(value) => String::from_utf8_lossy(&value).parse().unwrap_or(u64::MAX),
            Done::No(error) if error.code == ErrorCode::NoAttribute => 0,
            Done::No(error) => return self.violation(format!("reading a register: {error}")),
            Done::Unknown => return,
        };
        let most = self.history.records().registers.get(&life).copied().unwrap_or_default().begun;
        if found < least || found > most {
            self.violation(format!("a register of {life:?} was {found}, between {least} and {most} was due"));
        }
    }

    /// Adds one to a number that only the holder of a lock may change.
    pub(super) async fn count(&mut self) {
        let create = fs::CreateFile { at: Some(at("shared/counter")), mode: 0o644, ..Default::default() };
        let Ok(fs::Created { attr: Some(attr), .. }) = self.cluster.create(&root(), create).await else {
            return;
        };
        let range = |mode: fs::LockMode| {
            Some(fs::LockRange { start: 0, end: i64::MAX as u64, mode: mode as i32, pid: 1 })
        };
        let lock = |mode| fs::SetLock {
            inode: attr.inode,
            kind: fs::LockKind::Flock as i32,
            owner: 1,
            range: range(mode),
        };
        let taken = self.cluster.set_lock(lock(fs::LockMode::Exclusive), None).await;
        let session = match self.done("lock", taken) {
            Done::Yes(Locked::Done { session, .. }) => session,
            Done::Yes(Locked::Refused(_)) | Done::Unknown => return,
            Done::No(error) => return self.violation(format!("taking a lock: {error}")),
        };
        let name = Bytes::from_static(b"user.count");
        let read = self.cluster.get_xattr(&root(), at("shared/counter"), name.clone()).await;
        let found: Option<u64> = match self.done("count read", read) {
            Done::Yes(value) => String::from_utf8_lossy(&value).parse().ok(),
            Done::No(error) if error.code == ErrorCode::NoAttribute => Some(0),
            _ => None,
        };
        // Whoever lost its session lost the lock with it, and must not go on under another one.
        if let Some(found) = found
            && self.cluster.session_id() == Some(session)
        {
            let value = found + 1;
            let ask = fs::SetXattr {
                at: Some(at("shared/counter")),
                name,
                value: value.to_string().into(),
                ..Default::default()
            };
            let counted = self.cluster.set_xattr(&root(), ask).await;
            if let Done::Yes(()) = self.done(&format!("count {value}"), counted) {
                let other = self.history.records().counted.insert(value, self.life);
                if let Some(other) = other {
                    self.violation(format!("both it and {other:?} counted to {value} under the lock"));
                }
            }
        }
        let given = self.cluster.set_lock(lock(fs::LockMode::Unlocked), Some(session)).await;
        let _ = self.done("unlock", given);
    }

    pub(super) async fn append_shared(&mut self) {
        let create = fs::CreateFile { at: Some(at("shared/log")), mode: 0o644, ..Default::default() };
        let Ok(fs::Created { attr: Some(attr), .. }) = self.cluster.create(&root(), create).await else {
            return;
        };
        let file = self.cluster.open(&root(), attr);
        let mut record = [0; 16];
        let parts = [self.life.0 as u32, self.life.1 as u32, self.operation as u32, 0xC0DE];
        for (place, part) in record.chunks_mut(4).zip(parts) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        let volatile_since = self.volatile(false);
        self.history.records().appended.insert(record, Appended { at: None, volatile_since });
        let appended = file.append(Bytes::copy_from_slice(&record)).await;
        let at = match self.done("append", appended) {
            Done::Yes(at) => at,
            Done::No(error) => return self.violation(format!("appending: {error}")),
            Done::Unknown => return,
        };
        self.history.records().appended.insert(record, Appended { at: Some(at), volatile_since });
        let synced = file.sync().await;
        if let Done::Yes(_) = self.done("append sync", synced) {
            self.history.records().appended.insert(record, Appended { at: Some(at), volatile_since: None });
        }
    }
}
