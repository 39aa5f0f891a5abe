//! Reading directories.

use std::time::{Duration, Instant};

use cairn_proto::Result;
use cairn_proto::fs::{Attr, DirectoryEntry};
use fuser::AccessFlags;
use tokio::sync::Mutex;

use crate::directory::{Asked, DOTS, DirectoryStream};
use crate::handles::DirectoryHandle;
use crate::view::{Caller, ROOT, View, node};

/// Entries asked for at a time: more than one reply holds, and still small in memory for a thousand open directories.
const PAGE: u32 = 512;

/// One line of a directory's answer to the kernel.
pub(crate) struct Line<'a> {
    /// What comes after it.
    pub next: u64,
    pub name: &'a [u8],
    pub attr: &'a Attr,
    /// How old that is; nothing: it may not be so any more, since something was changed here meanwhile.
    pub age: Option<Duration>,
}

impl View {
    /// Opens a directory.
    pub(crate) async fn opendir(&self, caller: Caller, inode: u64) -> Result<u64> {
        self.require(caller, inode, AccessFlags::R_OK).await?;
        let handle = DirectoryHandle { stream: Mutex::default(), names: self.cluster.names() };
        Ok(self.directories.insert(handle))
    }

    /// Puts what follows `offset` into `full`, line by line, until that says it has no more room.
    ///
    /// An answer ends with a page, so that the kernel, going back within it, finds it still here.
    pub(crate) async fn readdir(
        &self,
        inode: u64,
        stream: &Mutex<DirectoryStream>,
        offset: u64,
        mut full: impl FnMut(Line<'_>) -> bool,
    ) -> Result<()> {
        let mut stream = stream.lock().await;
        if offset == 0 {
            stream.rewind();
        }
        // A page serves several answers; only to the first is it news.
        let mut news = None;
        while let Some(fetch) = stream.missing(offset) {
            news = Some(self.epoch());
            stream.asked = Some(Asked { at: Instant::now(), changes: self.cluster.changes() });
            let listing = self.cluster.list(&ROOT, node(inode), fetch.after.clone(), PAGE).await?;
            stream.supply(&fetch, listing);
        }
        let own = stream.attr().cloned().unwrap_or(Attr { inode, ..Attr::default() });
        if offset == 0 && stream.attr().is_some() {
            self.note_access(&own);
        }
        let asked = stream.asked.filter(|asked| asked.changes == self.cluster.changes());
        let age = asked.map(|asked| asked.at.elapsed());
        // Nobody reads the inode of `..` from here: the kernel knows the parent itself.
        for (at, name) in [b".".as_slice(), b".."].into_iter().enumerate() {
            if offset <= at as u64 && full(Line { next: at as u64 + 1, name, attr: &own, age }) {
                return Ok(());
            }
        }
        for (next, DirectoryEntry { name, attr }) in stream.entries(offset.max(DOTS)) {
            let Some(attr) = attr else { continue };
            let open = self.inodes.get(attr.inode);
            let mut shown = open.map_or(*attr, |open| {
                if let Some(epoch) = news {
                    open.learn(attr, epoch);
                }
                open.file.attr()
            });
            self.accesses.show(&mut shown);
            if full(Line { next, name, attr: &shown, age }) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Closes a directory.
    pub(crate) fn releasedir(&self, handle: u64) {
        self.directories.remove(handle);
    }
}
