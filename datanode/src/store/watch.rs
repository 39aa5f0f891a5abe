//! Noticing that a disk does not answer. One that fails says so; one that hangs only keeps whoever asks it, and would keep
//! more and more of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use cairn_host::disk::{Access, Disk, DiskFile, DiskLock, Found, Handle, SharedDisk, Space};

use super::locked;

/// Looks in a row that find a disk busy with the same thing after which no answer is expected any more. Counted, not
/// measured: time in which this process was stopped is one look.
pub(super) const LOOKS: u32 = 30;

/// What is being asked of one disk, in the order in which it was asked.
#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Asked>);

#[derive(Debug, Default)]
struct Asked {
    next: u64,
    unanswered: BTreeMap<u64, &'static str>,
    /// The oldest question at the last look, and how many looks have found it.
    seen: (u64, u32),
}

/// One question; dropping it is the answer.
pub(super) struct Question<'a> {
    watch: &'a Watch,
    number: u64,
}

impl Watch {
    pub(super) fn ask(&self, what: &'static str) -> Question<'_> {
        let mut asked = locked(&self.0);
        let number = asked.next;
        asked.next += 1;
        asked.unanswered.insert(number, what);
        Question { watch: self, number }
    }

    /// One look, a second after the last one: what the disk has been asked for without an answer for [`LOOKS`] of them.
    pub(super) fn look(&self) -> Option<&'static str> {
        let mut asked = locked(&self.0);
        let (number, what) = asked.unanswered.first_key_value().map(|(number, what)| (*number, *what))?;
        let looks = if asked.seen.0 == number { asked.seen.1.saturating_add(1) } else { 1 };
        asked.seen = (number, looks);
        (looks > LOOKS).then_some(what)
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        locked(&self.watch.0).unanswered.remove(&self.number);
    }
}

/// A disk of which it is known what it is being asked.
#[derive(Debug)]
pub(super) struct WatchedDisk {
    disk: SharedDisk,
    watch: Arc<Watch>,
}

#[derive(Debug)]
struct WatchedFile {
    file: Handle,
    watch: Arc<Watch>,
}

impl WatchedDisk {
    pub(super) fn new(disk: SharedDisk, watch: Arc<Watch>) -> WatchedDisk {
        WatchedDisk { disk, watch }
    }
}

impl Disk for WatchedDisk {
    fn blocks(&self) -> bool {
        self.disk.blocks()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Handle> {
        let _question = self.watch.ask("open");
        let file = self.disk.open(path, access)?;
        Ok(Arc::new(WatchedFile { file, watch: self.watch.clone() }))
    }

    fn look(&self, path: &Path) -> io::Result<Option<Found>> {
        let _question = self.watch.ask("stat");
        self.disk.look(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _question = self.watch.ask("rename");
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let _question = self.watch.ask("unlink");
        self.disk.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let _question = self.watch.ask("mkdir");
        self.disk.create_dir(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let _question = self.watch.ask("rmdir");
        self.disk.remove_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let _question = self.watch.ask("readdir");
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let _question = self.watch.ask("fsync of a directory");
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let _question = self.watch.ask("lock");
        self.disk.lock(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let _question = self.watch.ask("statfs");
        self.disk.space(path)
    }
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let _question = self.watch.ask("read");
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _question = self.watch.ask("write");
        self.file.write_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        let _question = self.watch.ask("stat");
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let _question = self.watch.ask("truncate");
        self.file.set_length(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        let _question = self.watch.ask("fdatasync");
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        let _question = self.watch.ask("fsync");
        self.file.sync_all()
    }

    fn reread(&self) -> io::Result<()> {
        let _question = self.watch.ask("fsync");
        self.file.reread()
    }

    fn preallocate(&self, offset: u64, length: u64) {
        let _question = self.watch.ask("fallocate");
        self.file.preallocate(offset, length);
    }

    fn as_file(&self) -> Option<&File> {
        self.file.as_file()
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::ErrorCode;

    use super::super::tests::{append, bytes, open, read, stream};
    use super::*;

    #[test]
    fn only_what_is_not_answered_look_after_look_is_told() {
        let watch = Watch::default();
        for _ in 0..3 * LOOKS {
            assert_eq!(watch.look(), None);
            // A disk that is slow answers something in between.
            let _question = watch.ask("read");
            assert_eq!(watch.look(), None);
        }
        let write = watch.ask("write");
        let _sync = watch.ask("fdatasync");
        assert!((0..LOOKS).all(|_| watch.look().is_none()));
        assert_eq!(watch.look(), Some("write"));
        assert_eq!(watch.look(), Some("write"));
        drop(write);
        // The one after it has waited as long, but may be answered now, too.
        assert!((0..LOOKS).all(|_| watch.look().is_none()));
        assert_eq!(watch.look(), Some("fdatasync"));
    }

    #[test]
    fn a_directory_whose_disk_hangs_is_left_alone_until_it_answers() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open(&[one.path(), other.path()], None).unwrap();
        let (upstream, _other_end) = stream();
        let write = |chunk: u64| {
            let mut appender = store.open_appender(chunk, 0, &upstream)?;
            append(&mut appender, &bytes(chunk, 3000))
        };
        (1..=8).for_each(|chunk| write(chunk).unwrap());
        let hung = store.dirs()[0].clone();
        let held: Vec<u64> =
            (1..=8).filter(|&chunk| Arc::ptr_eq(store.get(chunk).unwrap().dir(), &hung)).collect();
        assert!(!held.is_empty() && held.len() < 8, "{held:?}");
        let question = hung.watch.ask("write");
        (0..=LOOKS).for_each(|_| store.look_at_disks());
        assert_eq!(store.failed_directories()[0].cause, "the disk does not answer: write");
        assert_eq!(store.space().failed_dirs, 1);
        assert_eq!(store.inventory_page(0, 100).replicas.len(), 8 - held.len());
        for &chunk in &held {
            // Whoever asks goes elsewhere, and nothing is said against what it holds.
            assert_eq!(store.get(chunk).unwrap_err().code, ErrorCode::Unavailable);
            // The namenode counts on it no more, and has it copied.
            assert_eq!(store.seal(chunk, 3000).unwrap_err().code, ErrorCode::DiskFailed);
            assert_eq!(store.delete(chunk).unwrap_err().code, ErrorCode::Unavailable);
            assert!(!store.notices().is_bad(chunk));
        }
        for chunk in 11..=14 {
            write(chunk).unwrap();
            assert!(!Arc::ptr_eq(store.get(chunk).unwrap().dir(), &hung));
        }
        drop(question);
        store.look_at_disks();
        assert!(store.failed_directories().is_empty());
        assert_eq!(store.inventory_page(0, 100).replicas.len(), 12);
        for &chunk in &held {
            assert_eq!(read(&store.get(chunk).unwrap(), 0, 3000).unwrap(), bytes(chunk, 3000));
            store.seal(chunk, 3000).unwrap();
        }
    }

    #[test]
    fn a_copy_takes_the_place_of_a_replica_on_a_disk_that_hangs() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = open(&[one.path(), other.path()], None).unwrap();
        let (upstream, _other_end) = stream();
        let data = bytes(1, 3000);
        let mut appender = store.open_appender(1, 0, &upstream).unwrap();
        append(&mut appender, &data).unwrap();
        drop(appender);
        let seal = store.seal(1, 3000).unwrap();
        let old = store.get(1).unwrap();
        let question = old.dir().watch.ask("read");
        (0..=LOOKS).for_each(|_| store.look_at_disks());
        // Whoever asked the disk may hold it.
        let held = old.lock();
        let mut incoming = store.incoming(1, 3000, &seal.blake3, true).unwrap().unwrap();
        incoming.write(&data).unwrap();
        assert_eq!(incoming.finish(&store, &seal.blake3).unwrap(), seal);
        drop(held);
        assert!(!Arc::ptr_eq(store.get(1).unwrap().dir(), old.dir()));
        assert_eq!(read(&store.get(1).unwrap(), 0, 3000).unwrap(), data);
        assert_eq!(store.delete(1).unwrap_err().code, ErrorCode::Unavailable, "all of it, or later");
        store.close();
        let marks = [one.path(), other.path()].map(|dir| dir.join("CLEAN").exists());
        assert_eq!(marks.iter().filter(|mark| **mark).count(), 1);
        assert!(!old.dir().path().join("CLEAN").exists());
        drop(question);
        store.look_at_disks();
        store.delete(1).unwrap();
        for dir in [one.path(), other.path()] {
            assert_eq!(std::fs::read_dir(dir.join("chunks/01")).unwrap().count(), 0);
        }
        assert_eq!(store.space().used, 0);
    }
}
