//! A disk that fails when a test says so: a pass-through file system over a directory, mounted with FUSE.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use crate::support::{Cluster, all_reachable, text};

/// In the place of an error: there is no answer as long as this stands.
pub const HANGS: i32 = -1;
/// Between two looks at whether a disk that hangs answers again.
const STEP: Duration = Duration::from_millis(20);

/// The error that each kind of request is answered with; 0: it is carried out; [`HANGS`].
#[derive(Debug, Default)]
pub struct Faults {
    pub read: AtomicI32,
    /// Everything that changes a file or a name.
    pub write: AtomicI32,
    pub sync: AtomicI32,
}

impl Faults {
    /// Nothing is wrong any more.
    pub fn clear(&self) {
        self.all(0);
    }

    /// Nobody is answered any more.
    pub fn hang(&self) {
        self.all(HANGS);
    }

    fn all(&self, fault: i32) {
        [&self.read, &self.write, &self.sync]
            .into_iter()
            .for_each(|kind| kind.store(fault, Ordering::SeqCst));
    }
}

/// The mounted disk; unmounted when it is dropped.
pub struct FaultyDisk {
    pub faults: Arc<Faults>,
    session: Option<BackgroundSession>,
}

impl FaultyDisk {
    /// Mounts what is kept in `backing` at `at`.
    pub fn mount(backing: &Path, at: &Path) -> FaultyDisk {
        fs::create_dir_all(backing).expect("a backing directory");
        fs::create_dir_all(at).expect("a mount point");
        let faults = Arc::new(Faults::default());
        let files = PassThrough {
            faults: faults.clone(),
            paths: Mutex::new(HashMap::from([(INodeNo::ROOT.0, backing.to_owned())])),
            open: Mutex::default(),
            next: AtomicU64::new(1),
        };
        let session = fuser::spawn_mount(files, at, &Config::default()).expect("a FUSE mount");
        FaultyDisk { faults, session: Some(session) }
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.faults.clear();
        drop(self.session.take());
    }
}

/// A node of a cluster whose directory is on such a disk.
pub struct Moved<'a> {
    cluster: &'a Cluster,
    pub name: String,
    disk: FaultyDisk,
}

impl Moved<'_> {
    /// Takes a node down, and starts it again with what it had.
    pub fn onto_bad_disk<'a>(cluster: &'a Cluster, name: &str) -> Moved<'a> {
        let (directory, backing) = (cluster.dir().join(name), cluster.scratch(&format!("{name}-backing")));
        cluster.kill(name);
        fs::rename(&directory, &backing).expect("a directory");
        let disk = FaultyDisk::mount(&backing, &directory);
        cluster.start(name);
        Moved { cluster, name: name.to_owned(), disk }
    }

    /// All three namenodes of a cluster, one after the other.
    pub fn namenodes(cluster: &Cluster) -> Vec<Moved<'_>> {
        let moved = ["nn1", "nn2", "nn3"].map(|name| {
            let moved = Moved::onto_bad_disk(cluster, name);
            cluster.wait_for("all namenodes", all_reachable);
            moved
        });
        moved.into()
    }

    /// What is wrong with its disk.
    pub fn faults(&self) -> &Faults {
        &self.disk.faults
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let path = self.cluster.dir().join(format!("logs/{}.log", self.name));
        fs::read_to_string(path).expect("a log")
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        self.disk.faults.clear();
        let dir = self.cluster.dir();
        self.cluster.run(&["cluster", "kill", &self.name, "--dir", text(&dir)]);
    }
}

/// Everything is looked up anew, so that no answer outlives a fault.
const TTL: Duration = Duration::ZERO;

struct PassThrough {
    faults: Arc<Faults>,
    paths: Mutex<HashMap<u64, PathBuf>>,
    open: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

fn check(fault: &AtomicI32) -> Result<(), Errno> {
    loop {
        match fault.load(Ordering::SeqCst) {
            0 => return Ok(()),
            HANGS => thread::sleep(STEP),
            errno => return Err(Errno::from_i32(errno)),
        }
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under this lock")
}

fn attributes(number: u64, meta: &fs::Metadata) -> FileAttr {
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64);
    FileAttr {
        ino: INodeNo(number),
        size: meta.len(),
        blocks: meta.blocks(),
        atime: time(meta.atime()),
        mtime: time(meta.mtime()),
        ctime: time(meta.ctime()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(meta.file_type()).unwrap_or(FileType::RegularFile),
        perm: (meta.permissions().mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl PassThrough {
    fn path(&self, number: INodeNo) -> Result<PathBuf, Errno> {
        locked(&self.paths).get(&number.0).cloned().ok_or(Errno::ENOENT)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf, Errno> {
        Ok(self.path(parent)?.join(name))
    }

    fn known(&self, path: PathBuf) -> Result<FileAttr, Errno> {
        let meta = fs::symlink_metadata(&path).map_err(errno)?;
        locked(&self.paths).insert(meta.ino(), path);
        Ok(attributes(meta.ino(), &meta))
    }

    fn keep(&self, file: File) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        locked(&self.open).insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        locked(&self.open).get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn change<T>(&self, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        check(&self.faults.write)?;
        work()
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entered(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for PassThrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entered(self.child(parent, name).and_then(|path| self.known(path)), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let meta = match handle {
            Some(handle) => self.file(handle).and_then(|file| file.metadata().map_err(errno)),
            None => self.path(number).and_then(|path| fs::symlink_metadata(path).map_err(errno)),
        };
        match meta {
            Ok(meta) => reply.attr(&TTL, &attributes(number.0, &meta)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(|| {
            let path = self.path(number)?;
            if let Some(size) = size {
                let file = OpenOptions::new().write(true).open(&path).map_err(errno)?;
                file.set_len(size).map_err(errno)?;
            }
            fs::symlink_metadata(path).map_err(errno)
        });
        match changed {
            Ok(meta) => reply.attr(&TTL, &attributes(number.0, &meta)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.change(|| {
            let path = self.child(parent, name)?;
            fs::create_dir(&path).map_err(errno)?;
            self.known(path)
        });
        entered(made, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.change(|| fs::remove_file(self.child(parent, name)?).map_err(errno)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.change(|| fs::remove_dir(self.child(parent, name)?).map_err(errno)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.change(|| {
            let (from, to) = (self.child(parent, name)?, self.child(new_parent, new_name)?);
            fs::rename(&from, &to).map_err(errno)?;
            self.known(to).map(drop)
        });
        done(renamed, reply);
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let opened = self.path(number).and_then(|path| {
            if writes {
                check(&self.faults.write)?;
            }
            OpenOptions::new().read(true).write(writes).open(path).map_err(errno)
        });
        match opened {
            // No page cache in between: what is read is asked of the disk.
            Ok(file) => reply.opened(self.keep(file), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.change(|| {
            let path = self.child(parent, name)?;
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(errno)?;
            Ok((file, self.known(path)?))
        });
        match made {
            Ok((file, attr)) => {
                reply.created(&TTL, &attr, Generation(0), self.keep(file), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = check(&self.faults.read).and_then(|()| {
            let file = self.file(handle)?;
            let (mut buffer, mut filled) = (vec![0; size as usize], 0);
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], offset + filled as u64).map_err(errno)? {
                    0 => break,
                    more => filled += more,
                }
            }
            buffer.truncate(filled);
            Ok(buffer)
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.change(|| self.file(handle)?.write_all_at(data, offset).map_err(errno)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        locked(&self.open).remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = check(&self.faults.sync).and_then(|()| self.file(handle)?.sync_data().map_err(errno));
        done(synced, reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = check(&self.faults.sync).and_then(|()| {
            let directory = File::open(self.path(number)?).map_err(errno)?;
            directory.sync_all().map_err(errno)
        });
        done(synced, reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = check(&self.faults.read).and_then(|()| {
            let entries = fs::read_dir(self.path(number)?).map_err(errno)?;
            let named = |entry: fs::DirEntry| {
                let kind = entry.file_type().ok().and_then(FileType::from_std);
                (entry.file_name(), kind.unwrap_or(FileType::RegularFile))
            };
            let mut names: Vec<_> = entries.flatten().map(named).collect();
            names.sort_by(|one, other| one.0.cmp(&other.0));
            Ok(names)
        });
        match names {
            Ok(names) => {
                for (at, (name, kind)) in names.iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(u64::MAX - 1), at as u64 + 1, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        let full = self.faults.write.load(Ordering::SeqCst) == libc::ENOSPC;
        // Larger than any disk beside it, so that a datanode prefers it.
        let free = if full { 0 } else { 1 << 32 };
        match self.path(number) {
            Ok(_) => reply.statfs(1 << 32, free, free, 1 << 20, free, 4096, 255, 4096),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let allocated = self.change(|| {
            let file = self.file(handle)?;
            // SAFETY: the descriptor is open for the length of the call; no memory is passed.
            match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) } {
                0 => Ok(()),
                _ => Err(errno(io::Error::last_os_error())),
            }
        });
        done(allocated, reply);
    }
}
