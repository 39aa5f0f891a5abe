//! The state a batch of commands works on: a transaction under an overlay that can be rolled back.
//!
//! A refused command must leave no trace although it shares its transaction with others, and the records that
//! every command of a batch touches (a directory, a chunk, the totals) should be written once. Both follow from
//! collecting changes in an ordered overlay with an undo journal, which is written to the transaction at the end.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use cairn_proto::ErrorCode;
use cairn_proto::store::{Chunk, Inode, Meta};
use prost::Message;

use crate::delegation::Decided;
use crate::fault::Fallible;
use crate::snapshot::cover::Covering;
use crate::snapshot::keep;
use crate::store::{StoreError, Table, Txn, View};
use crate::usage::Ledger;
use crate::{key, records, upgrade};

type Key = (Table, Vec<u8>);

/// What one batch of commands works on.
pub(crate) struct Core<'a> {
    base: &'a mut dyn Txn,
    overlay: BTreeMap<Key, Option<Vec<u8>>>,
    undo: Vec<(Key, Option<Option<Vec<u8>>>)>,
    /// What the running command puts into directories and takes out of them.
    pub ledger: Ledger,
    /// Totals and allocator marks.
    pub meta: Meta,
    /// The time of the commands, in nanoseconds since the epoch; it never runs backwards.
    pub now: i64,
    /// Whose command runs; `None`: the leader's own.
    pub asker: Option<u64>,
    /// What the client has decided already, while deeds run.
    pub decided: Option<Decided>,
    /// Which snapshots directories are in, as far as it was asked.
    pub covering: Covering,
    /// What changes now means the same to every snapshot, and is not kept for them.
    alike: bool,
    /// The store failed where nobody could be told.
    failure: Option<StoreError>,
}

/// A point to roll back to.
pub(crate) struct Savepoint {
    undo: usize,
    meta: Meta,
}

impl<'a> Core<'a> {
    pub fn new(base: &'a mut dyn Txn, time_ns: i64) -> Result<Core<'a>, StoreError> {
        upgrade(base)?;
        let mut meta = records::meta(base)?.unwrap_or_default();
        let now = time_ns.max(meta.time_ns);
        meta.time_ns = now;
        Ok(Core {
            base,
            overlay: BTreeMap::new(),
            undo: Vec::new(),
            ledger: Ledger::default(),
            meta,
            now,
            asker: None,
            decided: None,
            covering: Covering::default(),
            alike: false,
            failure: None,
        })
    }

    pub fn savepoint(&self) -> Savepoint {
        Savepoint { undo: self.undo.len(), meta: self.meta.clone() }
    }

    pub fn roll_back(&mut self, point: Savepoint) {
        while self.undo.len() > point.undo {
            let Some((key, old)) = self.undo.pop() else { break };
            match old {
                Some(value) => self.overlay.insert(key, value),
                None => self.overlay.remove(&key),
            };
        }
        self.meta = point.meta;
        // It is settled before a point is taken.
        self.ledger = Ledger::default();
        self.covering.forget();
    }

    /// What went wrong where nobody could be told. To be asked after every command.
    pub fn sound(&mut self) -> Result<(), StoreError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Changes that mean the same to whoever looks into a snapshot, and that nothing is kept for: which of its copies a
    /// byte is read from, and that it was read.
    pub fn alike<R>(&mut self, work: impl FnOnce(&mut Core<'a>) -> R) -> R {
        let before = std::mem::replace(&mut self.alike, true);
        let done = work(self);
        self.alike = before;
        done
    }

    /// Writes everything to the transaction below.
    pub fn finish(self) -> Result<(), StoreError> {
        for ((table, key), value) in self.overlay {
            match value {
                Some(value) => self.base.put(table, &key, &value)?,
                None => self.base.delete(table, &key)?,
            }
        }
        if !self.meta.cluster_id.is_empty() {
            self.base.put(Table::Meta, b"", &self.meta.encode_to_vec())?;
        }
        Ok(())
    }

    fn change(&mut self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        if self.meta.snapshots > 0
            && !self.alike
            && keep::is_kept(table)
            && let Err(error) = keep::before(self, table, key, value.as_deref())
        {
            self.failure.get_or_insert(error);
        }
        let key = (table, key.to_vec());
        let old = self.overlay.insert(key.clone(), value);
        self.undo.push((key, old));
    }

    pub fn set(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.change(table, key, Some(value));
    }

    pub fn remove(&mut self, table: Table, key: &[u8]) {
        self.change(table, key, None);
    }

    pub fn set_record(&mut self, table: Table, key: &[u8], record: &impl Message) {
        self.set(table, key, record.encode_to_vec());
    }

    pub fn set_inode(&mut self, id: u64, inode: &Inode) {
        self.set_record(Table::Inode, &key::one(id), inode);
    }

    pub fn set_chunk(&mut self, id: u64, chunk: &Chunk) {
        self.set_record(Table::Chunk, &key::one(id), chunk);
    }

    /// The inode, which a client may still know by number although it is gone.
    pub fn inode(&self, id: u64) -> Fallible<Inode> {
        Ok(records::inode(self, id)?.ok_or_else(|| ErrorCode::Stale.because(format!("inode {id}")))?)
    }

    pub fn chunk(&self, id: u64) -> Fallible<Chunk> {
        Ok(records::chunk(self, id)?.ok_or_else(|| ErrorCode::ChunkUnknown.because(format!("chunk {id}")))?)
    }

    /// The time that goes into inodes.
    pub fn stamp(&self) -> i64 {
        self.decided.as_ref().map_or(self.now, |decided| decided.time_ns)
    }

    /// Marks a change of an inode's content or attributes.
    pub fn touch(&self, inode: &mut Inode) {
        // A deed may be told of after later ones: its bytes had to be stored first.
        inode.ctime_ns = if self.decided.is_some() { self.stamp().max(inode.ctime_ns) } else { self.now };
        inode.version += 1;
    }

    /// The number of an inode to be made.
    pub fn new_inode(&mut self) -> Fallible<u64> {
        if let Some(decided) = &mut self.decided {
            return decided.number();
        }
        let id = self.meta.next_inode;
        self.meta.next_inode += 1;
        Ok(id)
    }
}

impl View for Core<'_> {
    fn asker(&self) -> Option<u64> {
        self.asker
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.overlay.get(&(table, key.to_vec())) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut over = self
            .overlay
            .range((Bound::Included((table, start.to_vec())), Bound::Unbounded))
            .take_while(|((at, key), _)| *at == table && (end.is_empty() || key.as_slice() < end))
            .peekable();
        let mut broken = false;
        self.base.scan(table, start, end, &mut |key, value| {
            while let Some(((_, own), changed)) = over.next_if(|((_, own), _)| own.as_slice() <= key) {
                if let Some(changed) = changed
                    && visit(own, changed).is_break()
                {
                    broken = true;
                    return ControlFlow::Break(());
                }
                if own.as_slice() == key {
                    return ControlFlow::Continue(());
                }
            }
            let flow = visit(key, value);
            broken = flow.is_break();
            flow
        })?;
        if broken {
            return Ok(());
        }
        for ((_, own), changed) in over {
            if let Some(changed) = changed
                && visit(own, changed).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}
