//! A mount as a way into the cluster: plain system calls.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Fault, Moment, Place};

/// A lock that is not had by then is somebody else's for too long.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How long a mount that was killed is waited for, and how often it is looked for.
const REMOUNTED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

pub struct Mounted {
    name: String,
    root: PathBuf,
    /// Even while it is mounted.
    life: Arc<AtomicU64>,
}

impl Mounted {
    pub fn new(name: &str, root: PathBuf, life: Arc<AtomicU64>) -> Mounted {
        Mounted { name: name.into(), root, life }
    }

    /// Does something to the mount. When it was killed meanwhile, this may have met the bare directory instead.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        let give_up = Instant::now() + REMOUNTED;
        let life = loop {
            match self.life.load(Ordering::SeqCst) {
                life if life.is_multiple_of(2) => break life,
                _ if Instant::now() > give_up => return Err(Fault::Unknown("it is not mounted".into())),
                _ => thread::sleep(LOOK),
            }
        };
        let result = work();
        match self.life.load(Ordering::SeqCst) == life {
            true => result,
            false => Err(Fault::Unknown("the mount was killed".into())),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

fn flock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn counted(file: &File, moment: &mut dyn FnMut(Moment)) -> Result<(), Fault> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = flock(file) {
        // Not granted, so nothing was done under it.
        if Instant::now() > give_up || error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(Fault::Refused(error.to_string()));
        }
        thread::sleep(Duration::from_millis(15));
    }
    moment(Moment::Taken);
    let mut number = [0; 8];
    let read = match file.read_at(&mut number, 0) {
        Ok(0) => 0,
        Ok(_) => u64::from_le_bytes(number),
        Err(error) => return Err(Fault::Refused(format!("reading: {error}"))),
    };
    moment(Moment::Read(read));
    file.write_all_at(&(read + 1).to_le_bytes(), 0)
        .and_then(|()| file.sync_all())
        .map_err(|error| Fault::from(error).halfway())
}

impl Place for Mounted {
    fn name(&self) -> &str {
        &self.name
    }

    /// Gives the thread descriptors of its own. A program that is started gets copies of all descriptors and closes
    /// them, and a close on a mount waits for the cluster: then nobody could start a node while the cluster is down.
    fn settle(&self, keep: RawFd) -> io::Result<()> {
        let keep = keep as libc::c_uint;
        // SAFETY: this thread shares no descriptors any more, and closes only its own copies.
        let results = unsafe {
            [
                libc::close_range(3, keep - 1, libc::CLOSE_RANGE_UNSHARE as i32),
                libc::close_range(keep + 1, libc::c_uint::MAX, 0),
            ]
        };
        if results == [0, 0] { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn store(&self, path: &str, content: &[u8]) -> Result<(), Fault> {
        self.guarded(|| {
            let mut file = File::create(self.at(path))?;
            file.write_all(content)
                .and_then(|()| file.sync_all())
                .map_err(|error| Fault::from(error).halfway())
        })
    }

    fn overwrite(&self, path: &str, content: &[u8]) -> Result<(), Fault> {
        self.guarded(|| {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.at(path))?;
            file.write_all_at(content, 0)
                .and_then(|()| file.sync_all())
                .map_err(|error| Fault::from(error).halfway())
        })
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Fault> {
        self.guarded(|| {
            let mut content = Vec::new();
            match File::open(self.at(path)) {
                Ok(mut file) => file.read_to_end(&mut content)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            Ok(Some(content))
        })
    }

    fn append(&self, path: &str, record: &[u8]) -> Result<(), Fault> {
        self.guarded(|| {
            let mut file = OpenOptions::new().append(true).create(true).open(self.at(path))?;
            let written = file.write(record).map_err(|error| Fault::from(error).halfway())?;
            if written != record.len() {
                return Err(Fault::Unknown(format!("{written} of {} bytes written", record.len())));
            }
            file.sync_all().map_err(|error| Fault::from(error).halfway())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        self.guarded(|| {
            let to = self.at(to);
            fs::rename(self.at(from), &to)?;
            // In a directory of the mount's own, a name outlives the mount once it is synced, and not before.
            let directory = File::open(to.parent().expect("a directory"));
            directory.and_then(|dir| dir.sync_all()).map_err(|error| Fault::from(error).halfway())
        })
    }

    fn claim(&self, path: &str) -> Result<(), Fault> {
        self.guarded(|| {
            let claimed = File::create_new(self.at(path))?;
            claimed.sync_all().map_err(|error| Fault::from(error).halfway())
        })
    }

    fn names(&self, directory: &str) -> Result<Vec<String>, Fault> {
        self.guarded(|| {
            let entries = fs::read_dir(self.at(directory))?;
            let name =
                |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
            entries.map(name).collect()
        })
    }

    fn mkdir(&self, path: &str) -> Result<(), Fault> {
        self.guarded(|| Ok(fs::create_dir_all(self.at(path))?))
    }

    fn remove(&self, path: &str) -> Result<(), Fault> {
        self.guarded(|| Ok(fs::remove_file(self.at(path))?))
    }

    fn count(&self, path: &str, moment: &mut dyn FnMut(Moment)) -> Option<Result<(), Fault>> {
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.at(path));
        Some(self.guarded(|| match open() {
            Ok(file) => counted(&file, moment),
            Err(error) => Err(Fault::Refused(error.to_string())),
        }))
    }
}
