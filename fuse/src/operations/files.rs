//! Files that are open: their bytes, and when those become everybody's.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;
use cairn_proto::fs::{Attr, CreateFile, FileKind};
use cairn_proto::snapshot::is_inside;
use cairn_proto::{ErrorCode, Result};
use fuser::{AccessFlags, FopenFlags, WriteFlags};

use crate::doubts::{Before, Verdict};
use crate::handles::FileHandle;
use crate::inodes::OpenInode;
use crate::operations::entries::NewMode;
use crate::view::{Caller, ROOT, View, child, node};

/// How often a name is tried that is taken each time, and free when it is looked at.
const TRIES: usize = 8;

/// A file that has been opened.
pub(crate) struct Opened {
    /// Its handle.
    pub handle: u64,
    /// How the kernel is to treat it.
    pub flags: FopenFlags,
}

/// How bytes are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writing {
    /// The writer may not leave set-id bits behind, says the kernel.
    unprivileged: bool,
    /// The bytes come from a mapping, whose offsets are exact and whose handle is a guess.
    from_cache: bool,
    /// They go to the end, wherever that is.
    append: bool,
}

impl Writing {
    /// `flags`: those of the descriptor now, which may not be the ones it was opened with.
    pub(crate) fn new(write: WriteFlags, flags: i32) -> Writing {
        let from_cache = write.contains(WriteFlags::FUSE_WRITE_CACHE);
        Writing {
            unprivileged: write.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            from_cache,
            append: flags & libc::O_APPEND != 0 && !from_cache,
        }
    }
}

/// What the flags given to `open` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    writable: bool,
    append: bool,
    direct: bool,
    sync: bool,
    truncate: bool,
    exclusive: bool,
    /// `O_NOATIME`: reading leaves no trace.
    unseen: bool,
}

impl From<i32> for Wanted {
    fn from(flags: i32) -> Wanted {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        Wanted {
            writable,
            append: writable && flags & libc::O_APPEND != 0,
            direct: flags & libc::O_DIRECT != 0,
            // O_SYNC includes the bit of O_DSYNC.
            sync: writable && flags & libc::O_DSYNC != 0,
            // Even of what is opened for reading only, as local file systems do; the kernel counts on it.
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
            unseen: flags & libc::O_NOATIME != 0,
        }
    }
}

impl Wanted {
    /// Whether the kernel's page cache is left out.
    ///
    /// Appends go around it because the kernel would cache them at the offset it believes in.
    fn uncached(self) -> bool {
        self.direct || self.append
    }

    fn kernel_flags(self, pages_are_current: bool) -> FopenFlags {
        let mut flags = FopenFlags::empty();
        if self.uncached() {
            flags |= FopenFlags::FOPEN_DIRECT_IO;
            if !self.append {
                flags |= FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            }
        }
        if pages_are_current {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        // Never without a flush: any close by a process gives back its locks on the file.
        flags
    }
}

/// What the caller must be allowed for an open with these flags.
fn access_of(flags: i32) -> AccessFlags {
    /// The kernel's internal mark of an open for execution.
    const FOR_EXEC: i32 = 0x20;
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY if flags & FOR_EXEC != 0 => AccessFlags::X_OK,
        libc::O_RDONLY => AccessFlags::R_OK,
        libc::O_WRONLY => AccessFlags::W_OK,
        _ => AccessFlags::R_OK | AccessFlags::W_OK,
    };
    if flags & libc::O_TRUNC != 0 { access | AccessFlags::W_OK } else { access }
}

/// Makes what was not there a moment ago. *Stale* if it is there now; somebody who makes and removes it all the time would
/// have that said each time the kernel comes back, so it is looked at whether it is still there.
async fn make_or_find<T, M, L>(make: impl Fn() -> M, look: impl Fn() -> L) -> Result<T>
where
    M: Future<Output = Result<T>>,
    L: Future<Output = Result<Attr>>,
{
    for _ in 0..TRIES {
        match make().await {
            Err(error) if error.code == ErrorCode::Exists => {}
            made => return made,
        }
        match look().await {
            Err(error) if error.code == ErrorCode::NotFound => {}
            found => {
                found?;
                break;
            }
        }
    }
    Err(ErrorCode::Stale.because("the name was given to something meanwhile"))
}

impl View {
    /// Opens a file that exists: sees whatever was closed or synced before, anywhere.
    pub(crate) async fn open(&self, caller: Caller, inode: u64, flags: i32) -> Result<Opened> {
        let before = self.doubts.settle(caller.pid);
        let wanted = Wanted::from(flags);
        if (wanted.writable || wanted.truncate) && is_inside(inode) {
            return Err(ErrorCode::ReadOnly.because("a snapshot"));
        }
        let epoch = self.epoch();
        let held = self.holds.hold(&self.cluster, inode).await.inspect_err(|error| {
            if error.code == ErrorCode::Stale {
                // The kernel asks for the name again; what that finds must be there when it comes back.
                self.doubts.remember(caller.pid, inode);
            }
        });
        let attr = match held? {
            Some(attr) => attr,
            None => match self.cluster.stat(&ROOT, node(inode), false).await {
                Ok(attr) => attr,
                Err(error) => {
                    self.holds.let_go(inode);
                    return Err(error);
                }
            },
        };
        let allowed = match self.may_be_found(caller, &attr, &before) {
            Ok(()) => self.require(caller, inode, access_of(flags)).await,
            refused => refused,
        };
        if let Err(error) = allowed {
            self.holds.let_go(inode);
            return Err(error);
        }
        let open = self.inodes.acquire(&self.cluster, &ROOT, &attr, epoch);
        if !self.versions.attributes_are(inode, attr.version) {
            // The kernel does not take attributes from an open, and would trust its old size for a while.
            self.forget_attributes(inode);
        }
        if wanted.truncate
            && let Err(error) = self.empty(caller, &open).await
        {
            self.inodes.release(inode);
            self.holds.let_go(inode);
            return Err(error);
        }
        // A read of the kernel's own pages would not be seen here, so one that counts must not find them.
        let current = self.versions.keep_pages(inode, attr.version) && !self.read_would_count(&attr);
        Ok(self.opened(open, wanted, current))
    }

    /// Refuses once to open a file that has no name: a name that was given to something else may have led there.
    fn may_be_found(&self, caller: Caller, attr: &Attr, before: &Before) -> Result<()> {
        // A process out of sight cannot be told from others.
        if caller.pid == 0 || attr.nlink > 0 || attr.kind() != FileKind::File {
            return self.current(attr);
        }
        match before.judge(attr.inode) {
            Verdict::Refuse => {
                self.doubts.remember(caller.pid, attr.inode);
                Err(ErrorCode::Stale.because(format!("inode {}", attr.inode)))
            }
            Verdict::ByDescriptor => self.current(attr),
            Verdict::ByFreshName => Ok(()),
        }
    }

    /// Makes a file and opens it, in one step.
    ///
    /// The kernel asks when it has just found the name absent, and checks nothing afterwards. So where it checks
    /// permissions, what somebody else has given the name to meanwhile is not opened here: *stale* has the kernel look the
    /// name up again and open what it finds as if it had been there, following links with the caller's own rights. It
    /// does so once, so a name that is free again is tried again here. Otherwise it is opened, if it may be.
    pub(crate) async fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
        flags: i32,
    ) -> Result<(Attr, Opened)> {
        self.doubts.settle(caller.pid);
        let wanted = Wanted::from(flags);
        let epoch = self.epoch();
        let at = child(parent, name)?;
        let ask = CreateFile {
            at: Some(at.clone()),
            mode: mode.bits & 0o7777,
            uid: caller.uid,
            gid: caller.gid,
            exclusive: wanted.exclusive || self.options.default_permissions,
            truncate: wanted.truncate && !self.options.default_permissions,
            open: true,
            replication: 0,
            umask: mode.umask,
        };
        let era = self.cluster.sessions_lost();
        let cred = self.cred(caller);
        let make = || self.cluster.create(&cred, ask.clone());
        let created = match wanted.exclusive {
            true => make().await?,
            false => make_or_find(make, || self.cluster.stat(&cred, at.clone(), false)).await?,
        };
        let attr =
            created.attr.ok_or_else(|| ErrorCode::Malformed.because("a created file without attributes"))?;
        let inode = attr.inode;
        self.holds.adopt(inode, era).await;
        if created.existed
            && let Err(error) = self.require(caller, inode, access_of(flags)).await
        {
            self.holds.let_go(inode);
            return Err(error);
        }
        let open = self.inodes.acquire(&self.cluster, &ROOT, &attr, epoch);
        if created.existed
            && wanted.truncate
            && let Err(error) = self.empty(caller, &open).await
        {
            self.inodes.release(inode);
            self.holds.let_go(inode);
            return Err(error);
        }
        let attr = open.file.attr();
        self.versions.told(&attr);
        let current = self.versions.keep_pages(inode, attr.version);
        Ok((attr, self.opened(open, wanted, current)))
    }

    fn opened(&self, open: Arc<OpenInode>, wanted: Wanted, pages_are_current: bool) -> Opened {
        let handle = FileHandle {
            file: open.file.reopened(),
            open,
            writable: wanted.writable,
            // For cached files the kernel asks for a sync after each write itself.
            locked_in: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            sync: (wanted.sync || self.options.sync) && wanted.writable && wanted.uncached(),
            unseen: wanted.unseen,
            uncached: wanted.uncached(),
        };
        Opened { handle: self.files.insert(handle), flags: wanted.kernel_flags(pages_are_current) }
    }

    /// Truncates to nothing, after what was written here before.
    async fn empty(&self, caller: Caller, open: &OpenInode) -> Result<()> {
        open.file.truncate(0).await?;
        if caller.uid != 0 {
            self.strip_privileges(open).await?;
        }
        Ok(())
    }

    /// Writes.
    pub(crate) async fn write(
        self: &Arc<View>,
        handle: &FileHandle,
        offset: u64,
        data: Bytes,
        how: Writing,
    ) -> Result<u32> {
        let length = u32::try_from(data.len()).map_err(|_| ErrorCode::TooLarge.because("a write"))?;
        self.may_use(handle).await?;
        if how.unprivileged {
            self.strip_privileges(&handle.open).await?;
        }
        if how.append {
            let landed = handle.file.append(data).await?;
            if landed != offset && !handle.uncached {
                self.forget_misplaced(handle.file.inode());
            }
        } else {
            handle.file.write_at(offset, data).await?;
        }
        self.may_have_written(handle)?;
        if handle.sync && !how.from_cache {
            self.sync(handle).await?;
        }
        Ok(length)
    }

    /// Bytes were appended through a handle whose pages the kernel keeps, and not where the kernel has put them.
    fn forget_misplaced(self: &Arc<View>, inode: u64) {
        let view = Arc::clone(self);
        // Not here: the kernel may have pages locked until the write is answered.
        tokio::spawn(async move { view.forget_pages(inode).await });
    }

    /// Reads; short only at the end of the file.
    pub(crate) async fn read(&self, handle: &FileHandle, offset: u64, length: usize) -> Result<Bytes> {
        self.may_use(handle).await?;
        if handle.uncached && handle.open.fresh_for(self.options.attr_ttl, self.epoch()).is_none() {
            // The kernel asks for the size only before it reads its own pages.
            self.refresh(&handle.open).await?;
        }
        let data = handle.file.read_at(offset, length).await?;
        if !handle.unseen {
            self.note_access(&handle.file.attr());
        }
        Ok(data)
    }

    /// A descriptor is being closed: what was written becomes everybody's, and `close` hears if it could not.
    pub(crate) async fn flush(&self, handle: &FileHandle) -> Result<()> {
        let file = &handle.file;
        let flushed = if handle.writable {
            file.close().await
        } else if file.dirty_bytes() > 0 {
            file.leave().await
        } else {
            return Ok(());
        };
        flushed.map(drop).inspect_err(|_| self.versions.doubt_pages(file.inode()))
    }

    /// `fsync`.
    pub(crate) async fn sync(&self, handle: &FileHandle) -> Result<()> {
        let synced = handle.file.sync().await;
        synced.map(drop).inspect_err(|_| self.versions.doubt_pages(handle.file.inode()))
    }

    /// The last descriptor of an open is closed and its mappings are gone.
    pub(crate) async fn release(self: &Arc<View>, number: u64) {
        let Some(handle) = self.files.remove(number) else { return };
        let inode = handle.file.inode();
        // Mappings may have written after the last close.
        if handle.file.dirty_bytes() > 0
            && let Err(error) = handle.file.leave().await
        {
            self.versions.doubt_pages(inode);
            tracing::error!(inode, %error, "bytes written through a mapping could not be committed");
        }
        self.unlock_closed(&handle, number).await;
        self.inodes.release(inode);
        self.holds.let_go(inode);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;

    #[test]
    fn reading_keeps_current_pages() {
        let wanted = Wanted::from(libc::O_RDONLY | libc::O_APPEND);
        assert!(!wanted.writable && !wanted.append && !wanted.truncate);
        assert_eq!(wanted.kernel_flags(true), FopenFlags::FOPEN_KEEP_CACHE);
        assert_eq!(Wanted::from(libc::O_RDWR).kernel_flags(false), FopenFlags::empty());
    }

    #[test]
    fn appends_go_around_the_page_cache_one_at_a_time() {
        let flags = Wanted::from(libc::O_WRONLY | libc::O_APPEND).kernel_flags(false);
        assert_eq!(flags, FopenFlags::FOPEN_DIRECT_IO);
        let flags = Wanted::from(libc::O_RDWR | libc::O_DIRECT).kernel_flags(false);
        assert_eq!(flags, FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    #[test]
    fn a_write_goes_where_the_flags_of_now_say() {
        let append = |write, flags| Writing::new(write, flags).append;
        assert!(append(WriteFlags::empty(), libc::O_WRONLY | libc::O_APPEND));
        assert!(!append(WriteFlags::empty(), libc::O_WRONLY));
        assert!(
            !append(WriteFlags::FUSE_WRITE_CACHE, libc::O_APPEND),
            "a mapping knows where its bytes belong"
        );
    }

    #[test]
    fn an_open_needs_the_rights_it_gives() {
        assert_eq!(access_of(libc::O_RDONLY), AccessFlags::R_OK);
        assert_eq!(access_of(libc::O_WRONLY | libc::O_TRUNC), AccessFlags::W_OK);
        assert_eq!(access_of(libc::O_RDONLY | libc::O_TRUNC), AccessFlags::R_OK | AccessFlags::W_OK);
        assert_eq!(access_of(libc::O_RDWR), AccessFlags::R_OK | AccessFlags::W_OK);
        assert_eq!(access_of(libc::O_RDONLY | 0x20), AccessFlags::X_OK);
    }

    #[test]
    fn what_is_opened_for_reading_can_be_emptied() {
        let wanted = Wanted::from(libc::O_RDONLY | libc::O_TRUNC);
        assert!(wanted.truncate && !wanted.writable);
    }

    #[test]
    fn both_kinds_of_synchronous_opens_count() {
        for flags in [libc::O_SYNC, libc::O_DSYNC] {
            assert!(Wanted::from(flags | libc::O_WRONLY).sync);
        }
        assert!(!Wanted::from(libc::O_SYNC).sync);
    }

    /// What comes of it if the name is taken and free as the answers say, in turn.
    async fn tried(taken: &[bool], there: &[bool]) -> (Result<()>, usize) {
        let (makes, looks) = (Cell::new(0), Cell::new(0));
        let next = |count: &Cell<usize>| count.replace(count.get() + 1);
        let make = || {
            let exists = taken[next(&makes) % taken.len()];
            ready(if exists { Err(ErrorCode::Exists.into()) } else { Ok(()) })
        };
        let look = || {
            let found = there[next(&looks) % there.len()];
            ready(if found { Ok(Attr::default()) } else { Err(ErrorCode::NotFound.into()) })
        };
        let made = make_or_find(make, look).await;
        (made, makes.get())
    }

    #[tokio::test]
    async fn a_name_that_is_free_again_is_tried_again() {
        assert_eq!(tried(&[false], &[true]).await, (Ok(()), 1));
        assert_eq!(tried(&[true, true, false], &[false]).await, (Ok(()), 3));
        let (found, makes) = tried(&[true], &[false, true]).await;
        assert_eq!((found.unwrap_err().code, makes), (ErrorCode::Stale, 2), "the kernel opens what is there");
        let (never, makes) = tried(&[true], &[false]).await;
        assert_eq!((never.unwrap_err().code, makes), (ErrorCode::Stale, TRIES), "not for ever");
    }
}
