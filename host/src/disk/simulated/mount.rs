//! The disk as a machine uses it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::{Access, Disk, DiskFile, DiskLock, Found, Handle, Space};
use super::name::Name;
use super::{Change, Entry, File, Operation, SimulatedDisk, node};

/// The disk during one life of its machine: dead after the next crash.
#[derive(Debug, Clone)]
pub struct Mount {
    disk: SimulatedDisk,
    life: u64,
}

#[derive(Debug)]
struct OpenFile {
    mount: Mount,
    file: File,
    writable: bool,
}

#[derive(Debug)]
struct Lock {
    mount: Mount,
    name: Name,
}

impl DiskLock for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.mount.disk.lock();
        if state.life == self.mount.life {
            state.locks.remove(&self.name);
        }
    }
}

impl Mount {
    pub(super) fn new(disk: SimulatedDisk, life: u64) -> Mount {
        Mount { disk, life }
    }

    /// Whether its machine has crashed.
    pub fn is_dead(&self) -> bool {
        self.disk.lock().life != self.life
    }
}

impl Disk for Mount {
    fn blocks(&self) -> bool {
        false
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Handle> {
        let name = &Name::of(path);
        let mut state = self.disk.lock();
        let known = state.names.contains_key(name);
        let changes = access == Access::Create;
        let operation = if changes { Operation::Write } else { Operation::Read };
        state.check(self.life, name, operation)?;
        if changes && !known {
            let node = node::Node::new(name);
            state.make(name, Entry::File(Arc::new(Mutex::new(node))))?;
        }
        let file = state.file(name)?.clone();
        if changes && known {
            node::locked(&file).set_length(0);
        }
        Ok(Arc::new(OpenFile { mount: self.clone(), file, writable: access != Access::Read }))
    }

    fn look(&self, path: &Path) -> io::Result<Option<Found>> {
        let name = &Name::of(path);
        let mut state = self.disk.lock();
        state.check(self.life, name, Operation::Read)?;
        Ok(state.names.get(name).map(|entry| match entry {
            Entry::Directory => Found::Directory,
            Entry::File(file) => Found::File { length: node::locked(file).cache.len() as u64 },
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (&Name::of(from), &Name::of(to));
        let mut state = self.disk.lock();
        state.check(self.life, to, Operation::Write)?;
        let file = state.file(from)?.clone();
        state.require_parent(to)?;
        if matches!(state.names.get(to), Some(Entry::Directory)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.names.remove(from);
        node::locked(&file).name = to.clone();
        let entry = Entry::File(file);
        state.names.insert(to.clone(), entry.clone());
        state.changes.push(Change::Rename { from: from.clone(), to: to.clone(), entry });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let name = &Name::of(path);
        let mut state = self.disk.lock();
        state.check(self.life, name, Operation::Write)?;
        let entry = Entry::File(state.file(name)?.clone());
        state.names.remove(name);
        state.changes.push(Change::Remove { name: name.clone(), entry });
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let name = &Name::of(path);
        let mut state = self.disk.lock();
        match state.names.get(name) {
            Some(Entry::Directory) => return state.check(self.life, name, Operation::Read),
            Some(Entry::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        state.check(self.life, name, Operation::Write)?;
        state.make(name, Entry::Directory)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let name = &Name::of(path);
        let mut state = self.disk.lock();
        state.check(self.life, name, Operation::Write)?;
        state.entry(name)?;
        let below: Vec<Name> = state.below(name).map(|(name, _)| name.clone()).collect();
        for name in below.into_iter().rev() {
            if let Some(entry) = state.names.remove(&name) {
                state.changes.push(Change::Remove { name, entry });
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let dir = &Name::of(dir);
        let mut state = self.disk.lock();
        state.check(self.life, dir, Operation::Read)?;
        if let Entry::File(_) = state.entry(dir)? {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let inside = state.below(dir).map(|(name, _)| name).filter(|name| name.is_in(dir));
        Ok(inside.map(|name| name.last().to_owned()).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = &Name::of(dir);
        let mut state = self.disk.lock();
        let failed = state.check(self.life, dir, Operation::Sync);
        if state.life != self.life {
            return failed;
        }
        state.entry(dir)?;
        match failed {
            Ok(()) => state.settle_names(dir, |_| true),
            // A file system does not forget changes of names: it tries again, or does nothing any more.
            Err(_) => state.settle_names(dir, |random| random.flip()),
        }
        failed
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        if self.look(path)?.is_none() {
            self.open(path, Access::Create)?;
        }
        let name = Name::of(path);
        let mut state = self.disk.lock();
        state.check(self.life, &name, Operation::Write)?;
        if !state.locks.insert(name.clone()) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses this directory"));
        }
        Ok(Box::new(Lock { mount: self.clone(), name }))
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let name = &Name::of(path);
        let mut state = self.disk.lock();
        state.check(self.life, name, Operation::Read)?;
        let (device, total) = state.volume(name);
        Ok(Space { total, available: state.room(name), device })
    }
}

impl OpenFile {
    /// Does `work` on the file, unless its machine is dead or a fault comes first.
    fn with<T>(&self, operation: Operation, work: impl FnOnce(&mut node::Node) -> T) -> io::Result<T> {
        let mut state = self.mount.disk.lock();
        let name = node::locked(&self.file).name.clone();
        state.check(self.mount.life, &name, operation)?;
        if operation == Operation::Write && !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut node = node::locked(&self.file);
        Ok(work(&mut node))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.mount.disk.lock();
        let name = node::locked(&self.file).name.clone();
        let failed = state.check(self.mount.life, &name, Operation::Sync);
        if state.life != self.mount.life {
            return failed;
        }
        let mut node = node::locked(&self.file);
        match failed {
            Ok(()) => node.sync(),
            Err(_) => node.fail_sync(&mut state.random),
        }
        failed
    }

    /// How many of the bytes up to `end` there is room for.
    fn room_up_to(&self, end: u64) -> (u64, bool) {
        let state = self.mount.disk.lock();
        let (name, length) = {
            let node = node::locked(&self.file);
            (node.name.clone(), node.cache.len() as u64)
        };
        let wanted = end.saturating_sub(length);
        let granted = state.grant(&name, wanted);
        (end.min(length + granted), granted == wanted)
    }
}

impl DiskFile for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(Operation::Read, |node| {
            let held = node.cache.get(offset as usize..).unwrap_or_default();
            let read = held.len().min(buffer.len());
            buffer[..read].copy_from_slice(&held[..read]);
            read
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (end, all) = self.room_up_to(offset + bytes.len() as u64);
        let fits = end.saturating_sub(offset) as usize;
        self.with(Operation::Write, |node| {
            if fits > 0 {
                node.write(offset as usize, &bytes[..fits]);
            }
        })?;
        if all { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOSPC)) }
    }

    fn length(&self) -> io::Result<u64> {
        self.with(Operation::Read, |node| node.cache.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if !self.room_up_to(length).1 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.with(Operation::Write, |node| node.set_length(length as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn reread(&self) -> io::Result<()> {
        self.sync()?;
        self.with(Operation::Read, node::Node::forget_cache)
    }

    fn preallocate(&self, _offset: u64, _length: u64) {}

    fn as_file(&self) -> Option<&fs::File> {
        None
    }
}
