//! The real files that the demo copies, with the digests by which it will know them again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

/// A file to be copied.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it is, below the source.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// What they hash to.
    pub digest: blake3::Hash,
}

/// The files, and the directories they need.
#[derive(Debug, Default)]
pub struct Source {
    /// Where they are taken from.
    pub root: PathBuf,
    /// The files.
    pub files: Vec<Sample>,
    /// Parents before children.
    pub directories: BTreeSet<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Up to here a file is a small one.
const SMALL: u64 = 1 << 20;
/// Files that are looked at, however large the tree is.
const SEEN: usize = 200_000;

/// How much is taken at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Files.
    pub files: usize,
    /// Bytes.
    pub bytes: u64,
}

/// A tree that is there on every machine that built this program: the Rust toolchain, else downloaded crates.
pub fn default_root() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    if let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).output()
        && output.status.success()
    {
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if path.is_dir() {
            return Ok(path);
        }
    }
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    if let Some(registry) = cargo.map(|cargo| cargo.join("registry"))
        && registry.is_dir()
    {
        return Ok(registry);
    }
    bail!("found no tree to copy (no rustc, no ~/.cargo/registry); give one with --source DIR")
}

/// Chooses files below `root` within `bounds` and hashes them.
pub fn survey(root: &Path, bounds: Bounds) -> Result<Source> {
    let root = root.canonicalize().with_context(|| format!("cannot read {}", root.display()))?;
    let chosen = if root.is_file() {
        vec![root.file_name().map(PathBuf::from).unwrap_or_default()]
    } else {
        choose(&root, bounds)?
    };
    let base = if root.is_file() { root.parent().unwrap_or(&root).to_path_buf() } else { root };
    let mut files = hash_all(&base, &chosen)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut directories = BTreeSet::new();
    for file in &files {
        let above = file.path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        directories.extend(above.map(Path::to_path_buf));
    }
    let bytes = files.iter().map(|file| file.size).sum();
    Ok(Source { root: base, files, directories, bytes })
}

/// Many small files and the largest that fit: small ones take at most half of the bytes and nine tenths of the files
/// before the large ones have had their turn.
fn choose(root: &Path, bounds: Bounds) -> Result<Vec<PathBuf>> {
    let (small, mut large): (Vec<_>, Vec<_>) = list(root).into_iter().partition(|&(_, size)| size <= SMALL);
    large.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut chosen = Vec::new();
    let mut left = bounds;
    let first = Bounds { files: bounds.files - bounds.files / 10, bytes: bounds.bytes / 2 };
    let small = take(small, first, &mut left, &mut chosen);
    let now = left;
    take(large, now, &mut left, &mut chosen);
    let now = left;
    take(small, now, &mut left, &mut chosen);
    if chosen.is_empty() {
        bail!("there are no files below {}", root.display());
    }
    Ok(chosen)
}

/// Moves files to `chosen` as long as they fit `within`, and subtracts them from `left`. Returns those that did not fit.
fn take(
    files: Vec<(PathBuf, u64)>,
    mut within: Bounds,
    left: &mut Bounds,
    chosen: &mut Vec<PathBuf>,
) -> Vec<(PathBuf, u64)> {
    let mut others = Vec::new();
    for (path, size) in files {
        if size > within.bytes || within.files == 0 {
            others.push((path, size));
            continue;
        }
        for bounds in [&mut within, &mut *left] {
            bounds.bytes = bounds.bytes.saturating_sub(size);
            bounds.files = bounds.files.saturating_sub(1);
        }
        chosen.push(path);
    }
    others
}

/// The files below `root` with their sizes, in the order of their names.
fn list(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while files.len() < SEEN
        && let Some(directory) = waiting.pop()
    {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let mut entries: Vec<fs::DirEntry> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut below = Vec::new();
        for entry in entries {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                below.push(entry.path());
            } else if metadata.is_file()
                && files.len() < SEEN
                && let Ok(path) = entry.path().strip_prefix(root)
            {
                files.push((path.to_path_buf(), metadata.len()));
            }
        }
        waiting.extend(below.into_iter().rev());
    }
    files
}

fn hash_all(root: &Path, paths: &[PathBuf]) -> Result<Vec<Sample>> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let hash_some = || {
        let mut samples = Vec::new();
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            let full = root.join(path);
            // What cannot be read is not part of the demo.
            let mut hasher = blake3::Hasher::new();
            if fs::File::open(&full).and_then(|file| hasher.update_reader(file).map(drop)).is_ok() {
                samples.push(Sample { path: path.clone(), size: hasher.count(), digest: hasher.finalize() });
            }
        }
        samples
    };
    let samples: Vec<Sample> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(hash_some)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    if samples.is_empty() {
        bail!("no file below {} can be read", root.display());
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survey_stays_within_its_bounds() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for (name, size) in [("1", 10), ("a/2", 3 << 20), ("a/b/3", 20), ("a/b/4", 30)] {
            fs::write(dir.path().join(name), vec![7; size]).unwrap();
        }
        let chosen = |files, bytes| {
            let source = survey(dir.path(), Bounds { files, bytes }).unwrap();
            let names: Vec<String> =
                source.files.iter().map(|file| file.path.display().to_string()).collect();
            (names.join(" "), source.bytes)
        };
        assert_eq!(chosen(10, 4 << 20), ("1 a/2 a/b/3 a/b/4".into(), (3 << 20) + 60));
        assert_eq!(chosen(10, 100), ("1 a/b/3 a/b/4".into(), 60));
        assert_eq!(chosen(1, 100), ("1".into(), 10));
        let source = survey(dir.path(), Bounds { files: 10, bytes: 100 }).unwrap();
        assert_eq!(source.files[0].digest, blake3::hash(&[7; 10]));
        let directories: Vec<&str> = source.directories.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(directories, ["a", "a/b"]);
        assert!(survey(&dir.path().join("none"), Bounds { files: 1, bytes: 1 }).is_err());
    }
}
