//! Directories for data: whether they can be used, and whether their disks do what they must.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_ops::code::Code;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::finding::Findings;
use crate::exit::io_text;
use crate::output;

/// Tries to make something durable; the quickest one counts.
const SYNCS: usize = 3;
/// What a namenode's log and store need at least.
const NAMENODE_ROOM: u64 = 1 << 30;

/// What a directory is for.
#[derive(Debug, Clone, Copy)]
pub struct Purpose {
    /// `namenode` or `datanode`.
    pub role: &'static str,
    /// Bytes that are left free on its disk.
    pub reserve: u64,
    /// What is slow for it.
    pub slow: Duration,
}

impl Purpose {
    /// A namenode's: every change waits for it.
    pub fn namenode() -> Purpose {
        Purpose { role: "namenode", reserve: NAMENODE_ROOM, slow: Duration::from_millis(50) }
    }

    /// A datanode's.
    pub fn datanode(reserve: u64) -> Purpose {
        Purpose { role: "datanode", reserve, slow: Duration::from_millis(500) }
    }
}

/// What is known about a directory.
#[derive(Debug, Clone)]
pub struct Seen {
    /// As the configuration names it.
    path: PathBuf,
    /// Without symbolic links; a directory that is to be created, as it is named.
    real: PathBuf,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Not there; whether it can be created.
    Absent(Result<(), String>),
    /// There, and cannot be used.
    Unusable(String),
    /// There.
    Usable(Disk),
}

#[derive(Debug, Clone)]
struct Disk {
    device: u64,
    total: u64,
    available: u64,
    in_memory: bool,
    /// How long it takes to make a small file durable.
    sync: Result<Duration, String>,
}

/// Looks at a directory; leaves it as it was.
pub fn look(path: &Path) -> Seen {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let state = match fs::metadata(path) {
        Ok(about) if !about.is_dir() => State::Unusable("not a directory".into()),
        Ok(about) => try_out(path, about.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => State::Absent(may_create(path)),
        Err(error) => State::Unusable(io_text(&error)),
    };
    Seen { path: path.to_owned(), real, state }
}

/// Whether the nearest directory above that exists lets this user create something in it.
fn may_create(path: &Path) -> Result<(), String> {
    let above =
        path.ancestors().skip(1).map(|above| if above == Path::new("") { Path::new(".") } else { above });
    let Some(above) = above.into_iter().find(|above| above.is_dir()) else {
        return Err("nothing above it exists".into());
    };
    let flags = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    nix::unistd::eaccess(above, flags)
        .map_err(|errno| format!("{}: {}", above.display(), io_text(&errno.into())))
}

fn try_out(path: &Path, device: u64) -> State {
    let probe = path.join(format!(".cairn-doctor-{}", std::process::id()));
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&probe) {
        Ok(file) => file,
        Err(error) => return State::Unusable(io_text(&error)),
    };
    let sync = time_sync(&mut file, path);
    // A file that cannot be deleted is as bad as one that cannot be created.
    if let Err(error) = fs::remove_file(&probe) {
        return State::Unusable(format!("{}: {}", probe.display(), io_text(&error)));
    }
    let (total, available) = match statvfs(path) {
        Ok(space) => {
            let bytes = |blocks: u64| blocks.saturating_mul(space.fragment_size());
            (bytes(space.blocks()), bytes(space.blocks_available()))
        }
        Err(errno) => return State::Unusable(io_text(&errno.into())),
    };
    // Of a file system in memory a datanode would say that all is durable.
    let kind: Option<FsType> = statfs(path).ok().map(|about| about.filesystem_type());
    State::Usable(Disk { device, total, available, in_memory: kind == Some(TMPFS_MAGIC), sync })
}

/// The quickest of a few tries.
fn time_sync(file: &mut File, path: &Path) -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..SYNCS {
        let began = Instant::now();
        let done = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
        done.and_then(|()| File::open(path)?.sync_all()).map_err(|error| io_text(&error))?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

/// Judges the directories of one role.
pub fn judge(seen: &[Seen], purpose: Purpose, found: &mut Findings) {
    let role = purpose.role;
    for (index, one) in seen.iter().enumerate() {
        let path = one.path.display();
        if seen[..index].iter().any(|other| other.real == one.real) {
            found.fail(role, Code::ConfigInvalid, format!("{path}: named twice"));
            continue;
        }
        match &one.state {
            State::Absent(Ok(())) => found.fine(role, format!("{path}: will be created")),
            State::Absent(Err(why)) => found.fail(
                role,
                Code::DirectoryUnusable,
                format!("{path}: does not exist, and this user cannot create it ({why})"),
            ),
            State::Unusable(why) => {
                found.fail(role, Code::DirectoryUnusable, format!("{path}: cannot be used: {why}"));
            }
            State::Usable(disk) => judge_disk(&one.path, disk, purpose, found),
        }
    }
    if role == "datanode" {
        judge_sharing(seen, found);
    }
}

fn judge_disk(path: &Path, disk: &Disk, purpose: Purpose, found: &mut Findings) {
    let (role, path) = (purpose.role, path.display());
    let free = output::size(disk.available);
    let total = output::size(disk.total);
    let took = match &disk.sync {
        Ok(took) => *took,
        Err(why) => return found.fail(role, Code::SyncFails, format!("{path}: fsync fails: {why}")),
    };
    let wrong = found.wrong();
    if disk.in_memory {
        found.warn(role, Code::DirectoryInMemory, format!("{path}: in memory, not on a disk"));
    }
    if disk.available <= purpose.reserve {
        let reserve = output::size(purpose.reserve);
        let text = format!("{path}: {free} of {total} free, and {reserve} are not to be used");
        found.fail(role, Code::DirectoryFull, text);
    } else if disk.available - purpose.reserve < disk.total / 20 {
        found.warn(role, Code::DirectoryFull, format!("{path}: {free} of {total} free"));
    }
    if took > purpose.slow {
        let text = format!("{path}: fsync takes {}", output::span(took.as_millis() as u64));
        found.warn(role, Code::SyncSlow, text);
    }
    if found.wrong() == wrong {
        let took = took.as_secs_f64() * 1000.0;
        found.fine(role, format!("{path}: writable, {free} of {total} free, fsync takes {took:.1} ms"));
    }
}

fn judge_sharing(seen: &[Seen], found: &mut Findings) {
    let mut first_on: Vec<(u64, &Seen)> = Vec::new();
    for one in seen {
        let State::Usable(Disk { device, .. }) = one.state else { continue };
        match first_on.iter().find(|(other, _)| *other == device) {
            None => first_on.push((device, one)),
            // The same directory twice is another mistake.
            Some((_, other)) if other.real == one.real => {}
            Some((_, other)) => {
                let (path, other) = (one.path.display(), other.path.display());
                let text = format!("{path}: on the same file system as {other}");
                found.warn("datanode", Code::DirectoriesShareDisk, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn disk() -> Disk {
        let sync = Ok(Duration::from_millis(2));
        Disk { device: 1, total: 100 << 30, available: 50 << 30, in_memory: false, sync }
    }

    fn seen(path: &str, state: State) -> Seen {
        Seen { path: path.into(), real: path.into(), state }
    }

    fn codes(seen: &[Seen]) -> Vec<(Level, Code)> {
        let mut found = Findings::default();
        judge(seen, Purpose::datanode(1 << 30), &mut found);
        found.codes()
    }

    #[test]
    fn a_good_disk_is_fine_and_each_flaw_has_its_code() {
        let of = |disk: Disk| codes(&[seen("/a", State::Usable(disk))]);
        assert!(of(disk()).is_empty());
        assert_eq!(of(Disk { in_memory: true, ..disk() }), [(Level::Warning, Code::DirectoryInMemory)]);
        assert_eq!(of(Disk { available: 1 << 30, ..disk() }), [(Level::Failure, Code::DirectoryFull)]);
        assert_eq!(of(Disk { available: 5 << 30, ..disk() }), [(Level::Warning, Code::DirectoryFull)]);
        let slow = Ok(Duration::from_secs(1));
        assert_eq!(of(Disk { sync: slow, ..disk() }), [(Level::Warning, Code::SyncSlow)]);
        let broken = Err("input/output error".into());
        assert_eq!(of(Disk { sync: broken, ..disk() }), [(Level::Failure, Code::SyncFails)]);
    }

    #[test]
    fn directories_on_one_disk_are_noticed() {
        let other = State::Usable(Disk { device: 2, ..disk() });
        let (a, b) = (seen("/a", State::Usable(disk())), seen("/b", State::Usable(disk())));
        assert!(codes(&[a.clone(), seen("/b", other)]).is_empty());
        assert_eq!(codes(&[a.clone(), b]), [(Level::Warning, Code::DirectoriesShareDisk)]);
        let twice = codes(&[a.clone(), a]);
        assert_eq!(twice, [(Level::Failure, Code::ConfigInvalid)]);
    }

    #[test]
    fn a_directory_that_is_looked_at_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(look(dir.path()).state, State::Usable(_)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let absent = dir.path().join("not/there");
        assert!(matches!(look(&absent).state, State::Absent(Ok(()))));
        assert!(!absent.exists());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(look(&file).state, State::Unusable(_)));
    }
}
