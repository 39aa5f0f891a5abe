//! The kernel's requests, each handed to the operation that carries it out.
//!
//! Permissions and `poll` are left to the kernel: where an operation is answered with
//! "not implemented", it does what is asked by itself and does not ask again.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cairn_host::request;
use cairn_proto::fs::{LockKind, LockMode, LockRange};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle as HandleNo, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, Interrupted, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, RequestId, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use crate::attr::file_type;
use crate::dispatch::serve;
use crate::errno::errno;
use crate::interrupts::{Heard, Signal};
use crate::locks::Who;
use crate::operations::attributes::Change;
use crate::operations::entries::NewMode;
use crate::operations::files::Writing;
use crate::operations::locks::Wanted;
use crate::operations::space::{Space, UNIT};
use crate::view::{Caller, View};

/// Inode numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// Most bytes of one write request: larger ones gain nothing and hold more memory.
const MAX_WRITE: u32 = 1 << 20;
/// Most requests that the kernel sends without somebody waiting for each, such as read-ahead.
const MAX_BACKGROUND: u16 = 64;

/// One mount, as the FUSE binding calls it.
pub(crate) struct CairnFs {
    view: Arc<View>,
    runtime: Handle,
}

impl CairnFs {
    /// Serves `view`, waiting on `runtime` where it must.
    pub(crate) fn new(view: Arc<View>, runtime: Handle) -> CairnFs {
        CairnFs { view, runtime }
    }

    fn serve<F: Future<Output = ()> + Send + 'static>(
        &self,
        request: &Request,
        operation: impl FnOnce(Arc<View>) -> F,
    ) {
        let (unique, pid) = (request.unique().0, request.pid());
        let waits = || Some(self.view.interrupts.enter(unique, pid, None));
        serve(&self.runtime, request::RequestId::fresh().carry(operation(self.view.clone())), waits);
    }

    /// Answers the request with EINTR if `hopeless` comes to say so.
    fn give_up_if(&self, unique: u64, hopeless: impl Future<Output = bool> + Send + 'static) {
        let view = self.view.clone();
        self.runtime.spawn(async move {
            if hopeless.await
                && let Some(notifier) = view.notifier.get()
            {
                tracing::info!(unique, "a request was given up: its program was sent a signal");
                // It may have been answered in this moment.
                let _ = notifier.interrupted(RequestId(unique));
            }
        });
    }
}

/// Answers a request that has nothing to return but success.
fn finish(reply: ReplyEmpty, operation: &'static str, inode: u64, result: cairn_proto::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, inode, &error)),
    }
}

/// Answers a request that returns an inode under a name.
fn finish_entry(
    reply: ReplyEntry,
    view: &View,
    operation: &'static str,
    inode: u64,
    result: cairn_proto::Result<cairn_proto::fs::Attr>,
) {
    match result {
        Ok(attr) => reply.entry_with_ttls(
            &view.options.attr_ttl,
            &view.options.entry_ttl,
            &view.shown(&attr),
            GENERATION,
        ),
        Err(error) => reply.error(errno(operation, inode, &error)),
    }
}

/// Answers with a value or, if no room was offered, with its length.
fn finish_value(
    reply: ReplyXattr,
    operation: &'static str,
    inode: u64,
    room: u32,
    result: cairn_proto::Result<Bytes>,
) {
    match result {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(operation, inode, &error)),
    }
}

/// A lock as the kernel asks for it.
fn wanted_lock(
    (inode, handle, owner, flock): (u64, u64, u64, bool),
    start: u64,
    end: u64,
    kernel_type: i32,
    pid: u32,
) -> Option<Wanted> {
    let mode = match kernel_type {
        libc::F_RDLCK => LockMode::Shared,
        libc::F_WRLCK => LockMode::Exclusive,
        libc::F_UNLCK => LockMode::Unlocked,
        _ => return None,
    };
    let kind = if flock { LockKind::Flock } else { LockKind::Fcntl };
    let range = LockRange { start, end: end.min(cairn_proto::lock::LAST), mode: mode.into(), pid };
    Some(Wanted { who: Who { inode, kind, owner }, range, handle })
}

fn lock_type(mode: LockMode) -> i32 {
    match mode {
        LockMode::Shared => libc::F_RDLCK,
        LockMode::Exclusive => libc::F_WRLCK,
        LockMode::Unlocked => libc::F_UNLCK,
    }
}

impl Filesystem for CairnFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // A read looks whether the file has changed elsewhere, at most every attr_ttl.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            // Without it, the kernel asks for security.capability before every write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // A directory's default access control list takes the umask's place, and only the namenode knows it.
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
        ];
        let lists = self.view.enforces_lists().then_some(InitFlags::FUSE_POSIX_ACL);
        for flag in wanted.into_iter().chain(lists) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel does not offer it");
            }
        }
        // Refused values are only ever replaced by the nearest that is possible.
        if let Err(most) = config.set_max_write(MAX_WRITE) {
            let _ = config.set_max_write(most);
        }
        let ahead = u32::try_from(self.view.options.read_ahead_kib.saturating_mul(1024)).unwrap_or(u32::MAX);
        if let Err(most) = config.set_max_readahead(ahead.max(UNIT)) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn destroy(&mut self) {
        // Also called when a mount was never completed, perhaps on a thread of the runtime, which must not block.
        if !self.view.is_idle() {
            self.runtime.block_on(self.view.settle());
        }
    }

    fn interrupt(&self, _request: &Request, unique: RequestId) -> Interrupted {
        let unique = unique.0;
        match self.view.interrupts.interrupt(unique) {
            Heard::Unknown => return Interrupted::Unknown,
            Heard::SeenTo => {}
            Heard::Watch => {
                let (interrupts, cluster) = (self.view.interrupts.clone(), self.view.cluster.clone());
                let hopeless = async move { interrupts.gives_up(unique, || cluster.silent_for()).await };
                self.give_up_if(unique, hopeless);
            }
        }
        Interrupted::Noted
    }

    // `forget` is ignored: an inode number is the cluster's own and stays good for as long as the inode exists, so
    // there is nothing to count lookups for.

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            let found = view.lookup(caller, parent.0, &name).await;
            finish_entry(reply, &view, "lookup", parent.0, found);
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<HandleNo>, reply: ReplyAttr) {
        self.serve(request, |view| async move {
            match view.getattr(ino.0).await {
                Ok((attr, ttl)) => reply.attr(&ttl, &view.shown(&attr)),
                Err(error) => reply.error(errno("getattr", ino.0, &error)),
            }
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<HandleNo>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = Caller::from(request);
        let handle = fh.and_then(|fh| self.view.files.get(fh.0));
        let by_handle = handle.as_ref().is_some_and(|handle| handle.writable);
        let change = Change { mode, uid, gid, size, atime, mtime, by_handle };
        self.serve(request, |view| async move {
            if let Some(handle) = handle
                && let Err(error) = view.may_use(&handle).await
            {
                return reply.error(errno("setattr", ino.0, &error));
            }
            match view.setattr(caller, ino.0, change).await {
                Ok(attr) => reply.attr(&view.options.attr_ttl, &view.shown(&attr)),
                Err(error) => reply.error(errno("setattr", ino.0, &error)),
            }
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(request, |view| async move {
            match view.readlink(ino.0).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno("readlink", ino.0, &error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            let made = view.mknod(caller, parent.0, &name, NewMode { bits: mode, umask }, rdev).await;
            finish_entry(reply, &view, "mknod", parent.0, made);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            let made = view.mkdir(caller, parent.0, &name, NewMode { bits: mode, umask }).await;
            finish_entry(reply, &view, "mkdir", parent.0, made);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            finish(reply, "unlink", parent.0, view.unlink(caller, parent.0, &name).await);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            finish(reply, "rmdir", parent.0, view.rmdir(caller, parent.0, &name).await);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, name, target) = (Caller::from(request), name.to_owned(), OsString::from(target));
        self.serve(request, |view| async move {
            let made = view.symlink(caller, parent.0, &name, &target).await;
            finish_entry(reply, &view, "symlink", parent.0, made);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (caller, name, newname) = (Caller::from(request), name.to_owned(), newname.to_owned());
        self.serve(request, |view| async move {
            let renamed = view.rename(caller, (parent.0, &name), (newparent.0, &newname), flags).await;
            finish(reply, "rename", parent.0, renamed);
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (caller, newname) = (Caller::from(request), newname.to_owned());
        self.serve(request, |view| async move {
            let linked = view.link(caller, ino.0, newparent.0, &newname).await;
            finish_entry(reply, &view, "link", ino.0, linked);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = Caller::from(request);
        let unique = request.unique().0;
        self.serve(request, |view| async move {
            match view.open(caller, ino.0, flags.0).await {
                // Nobody will ever close what nobody hears of.
                Ok(opened) if !view.interrupts.settle(unique) => {
                    view.release(opened.handle).await;
                    reply.error(Errno::EINTR);
                }
                Ok(opened) => reply.opened(HandleNo(opened.handle), opened.flags),
                Err(error) => reply.error(errno("open", ino.0, &error)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        let unique = request.unique().0;
        self.serve(request, |view| async move {
            match view.create(caller, parent.0, &name, NewMode { bits: mode, umask }, flags).await {
                Ok((_, opened)) if !view.interrupts.settle(unique) => {
                    view.release(opened.handle).await;
                    reply.error(Errno::EINTR);
                }
                Ok((attr, opened)) => {
                    let ttl = view.options.attr_ttl.min(view.options.entry_ttl);
                    let handle = HandleNo(opened.handle);
                    reply.created(&ttl, &view.shown(&attr), GENERATION, handle, opened.flags);
                }
                Err(error) => reply.error(errno("create", parent.0, &error)),
            }
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(handle) = self.view.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.serve(request, |view| async move {
            match view.read(&handle, offset, size as usize).await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno("read", ino.0, &error)),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(handle) = self.view.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let data = Bytes::copy_from_slice(data);
        let how = Writing::new(write_flags, flags.0);
        self.serve(request, |view| async move {
            match view.write(&handle, offset, data, how).await {
                Ok(length) => reply.written(length),
                Err(error) => reply.error(errno("write", ino.0, &error)),
            }
        });
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: HandleNo, owner: LockOwner, reply: ReplyEmpty) {
        let Some(handle) = self.view.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let (unique, pid) = (request.unique().0, request.pid());
        let operation = {
            let view = self.view.clone();
            async move {
                let flushed = view.flush(&handle).await;
                // Only now: whoever gets the lock next is to see what was written under it.
                view.unlock_process(ino.0, owner.0).await;
                finish(reply, "flush", ino.0, flushed);
            }
        };
        serve(&self.runtime, operation, || {
            let ticket = self.view.interrupts.enter(unique, pid, None);
            let (interrupts, cluster) = (self.view.interrupts.clone(), self.view.cluster.clone());
            let hopeless =
                async move { interrupts.outlives_its_waiter(unique, || cluster.silent_for()).await };
            self.give_up_if(unique, hopeless);
            Some(ticket)
        });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: HandleNo, _datasync: bool, reply: ReplyEmpty) {
        let Some(handle) = self.view.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.serve(request, |view| async move {
            finish(reply, "fsync", ino.0, view.sync(&handle).await);
        });
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: HandleNo,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(request, |view| async move {
            view.release(fh.0).await;
            reply.ok();
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let caller = Caller::from(request);
        let unique = request.unique().0;
        self.serve(request, |view| async move {
            match view.opendir(caller, ino.0).await {
                Ok(handle) if !view.interrupts.settle(unique) => {
                    view.releasedir(handle);
                    reply.error(Errno::EINTR);
                }
                Ok(handle) => reply.opened(HandleNo(handle), FopenFlags::empty()),
                Err(error) => reply.error(errno("opendir", ino.0, &error)),
            }
        });
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: HandleNo, offset: u64, mut reply: ReplyDirectory) {
        let Some(handle) = self.view.directories.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.serve(request, |view| async move {
            let read = view.readdir(ino.0, &handle.stream, offset, |line| {
                let name = OsStr::from_bytes(line.name);
                reply.add(INodeNo(line.attr.inode), line.next, file_type(line.attr.kind()), name)
            });
            match read.await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno("readdir", ino.0, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(handle) = self.view.directories.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.serve(request, |view| async move {
            let ttl: Duration = view.options.attr_ttl.min(view.options.entry_ttl);
            let read = view.readdir(ino.0, &handle.stream, offset, |line| {
                let name = OsStr::from_bytes(line.name);
                let number = INodeNo(line.attr.inode);
                let left = line.age.map_or(Duration::ZERO, |age| ttl.saturating_sub(age));
                let full = reply.add(number, line.next, name, &left, &view.shown(line.attr), GENERATION);
                if !full && !left.is_zero() {
                    view.versions.told(line.attr);
                }
                full
            });
            match read.await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno("readdir", ino.0, &error)),
            }
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: HandleNo,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.view.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, fh: HandleNo, _datasync: bool, reply: ReplyEmpty) {
        let Some(handle) = self.view.directories.get(fh.0) else { return reply.error(Errno::EBADF) };
        // Every other change of a name is in the log of a majority before it is acknowledged.
        self.serve(request, |_| async move {
            finish(reply, "fsyncdir", ino.0, handle.names.sync().await);
        });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(request, |view| async move {
            match view.statfs(ino.0).await {
                Ok(Space { total, free, inodes, free_inodes }) => {
                    let longest = cairn_proto::limits::MAX_NAME as u32;
                    reply.statfs(total, free, free, inodes, free_inodes, UNIT, longest, UNIT);
                }
                Err(error) => reply.error(errno("statfs", ino.0, &error)),
            }
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, name, value) = (Caller::from(request), name.to_owned(), Bytes::copy_from_slice(value));
        self.serve(request, |view| async move {
            finish(reply, "setxattr", ino.0, view.setxattr(caller, ino.0, &name, &value, flags).await);
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            finish_value(reply, "getxattr", ino.0, size, view.getxattr(caller, ino.0, &name).await);
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = Caller::from(request);
        self.serve(request, |view| async move {
            finish_value(reply, "listxattr", ino.0, size, view.listxattr(caller, ino.0).await);
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (Caller::from(request), name.to_owned());
        self.serve(request, |view| async move {
            finish(reply, "removexattr", ino.0, view.removexattr(caller, ino.0, &name).await);
        });
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let caller = Caller::from(request);
        self.serve(request, |view| async move {
            finish(reply, "access", ino.0, view.require(caller, ino.0, mask).await);
        });
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        flock: bool,
        reply: ReplyLock,
    ) {
        let asked = (ino.0, fh.0, lock_owner.0, flock);
        let Some(wanted) = wanted_lock(asked, start, end, typ, pid) else {
            return reply.error(Errno::EINVAL);
        };
        self.serve(request, |view| async move {
            match view.getlk(wanted).await {
                Ok(Some(held)) => reply.locked(held.start, held.end, lock_type(held.mode()), held.pid),
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Err(error) => reply.error(errno("getlk", ino.0, &error)),
            }
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        flock: bool,
        reply: ReplyEmpty,
    ) {
        let asked = (ino.0, fh.0, lock_owner.0, flock);
        let Some(wanted) = wanted_lock(asked, start, end, typ, pid) else {
            return reply.error(Errno::EINVAL);
        };
        let signal = Arc::new(Signal::default());
        let operation = {
            let (view, signal) = (self.view.clone(), signal.clone());
            async move {
                match view.setlk(wanted, sleep, &signal).await {
                    Ok(true) => reply.ok(),
                    Ok(false) => reply.error(Errno::EAGAIN),
                    Err(error) => reply.error(errno("setlk", ino.0, &error)),
                }
            }
        };
        let (unique, pid) = (request.unique().0, request.pid());
        serve(&self.runtime, operation, || Some(self.view.interrupts.enter(unique, pid, Some(signal))));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(handle) = self.view.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let caller = Caller::from(request);
        self.serve(request, |view| async move {
            finish(reply, "fallocate", ino.0, view.fallocate(caller, &handle, offset, length, mode).await);
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: HandleNo,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(handle) = self.view.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.serve(request, |view| async move {
            match view.lseek(&handle, offset, whence).await {
                Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(errno("lseek", ino.0, &error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: HandleNo,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: HandleNo,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let Some(from) = self.view.files.get(fh_in.0) else { return reply.error(Errno::EBADF) };
        let Some(to) = self.view.files.get(fh_out.0) else { return reply.error(Errno::EBADF) };
        let caller = Caller::from(request);
        self.serve(request, |view| async move {
            match view.copy_file_range(caller, (&from, offset_in), (&to, offset_out), len).await {
                Ok(length) => reply.written(length),
                Err(error) => reply.error(errno("copy_file_range", ino_out.0, &error)),
            }
        });
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: HandleNo,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: HandleNo,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
