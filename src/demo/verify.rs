//! Reads every file back and compares digests.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::source::{Sample, Source};
use super::stage::{Narrator, target};
use crate::client::Client;
use crate::output;
use crate::verbs::checksum::digest;

/// Files read at once.
const IN_FLIGHT: usize = 8;

/// What a verification found.
#[derive(Debug, Default, Clone)]
pub struct Verified {
    /// Files that are what they were.
    pub good: u64,
    /// Files that are not, and why.
    pub bad: Vec<String>,
    /// Bytes read.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Verifies through the mount if there is one, else through the client.
pub async fn verify(
    client: &Arc<Client>,
    source: &Arc<Source>,
    mount: Option<&Path>,
    narrator: &mut Narrator,
) -> Result<Verified> {
    let began = Instant::now();
    let read = Arc::new(AtomicU64::new(0));
    let mut verified = Verified::default();
    let mut running: JoinSet<Result<u64, String>> = JoinSet::new();
    let mut files = source.files.iter();
    loop {
        while running.len() < IN_FLIGHT
            && let Some(sample) = files.next()
        {
            let (client, sample, read) = (client.clone(), sample.clone(), read.clone());
            match mount.map(|mount| mount.join("tree").join(&sample.path)) {
                Some(path) => running.spawn_blocking(move || through_mount(path, &sample, &read)),
                None => running.spawn(async move { through_client(&client, &sample, &read).await }),
            };
        }
        match running.join_next().await {
            Some(Ok(Ok(bytes))) => {
                verified.good += 1;
                verified.bytes += bytes;
            }
            Some(Ok(Err(why))) => verified.bad.push(why),
            Some(Err(error)) => verified.bad.push(format!("internal error: {error}")),
            None => break,
        }
        let done = verified.good + verified.bad.len() as u64;
        narrator.progress(&format!(
            "verifying: {done} of {} files, {}",
            source.files.len(),
            output::size(read.load(Ordering::Relaxed))
        ));
    }
    verified.took = began.elapsed();
    Ok(verified)
}

fn through_mount(path: PathBuf, sample: &Sample, read: &AtomicU64) -> Result<u64, String> {
    match hash_uncached(&path) {
        Ok((size, digest)) => {
            read.fetch_add(size, Ordering::Relaxed);
            judged(sample, size, digest)
        }
        Err(error) => Err(format!("{}: {}", path.display(), crate::exit::io_text(&error))),
    }
}

/// The page cache may remember the file; what the cluster says now is wanted.
fn hash_uncached(path: &Path) -> io::Result<(u64, blake3::Hash)> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open; the call only advises the kernel.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let mut hasher = blake3::Hasher::new();
    let mut reader = io::BufReader::with_capacity(1 << 20, file);
    loop {
        let block = io::BufRead::fill_buf(&mut reader)?;
        if block.is_empty() {
            return Ok((hasher.count(), hasher.finalize()));
        }
        hasher.update(block);
        let length = block.len();
        io::BufRead::consume(&mut reader, length);
    }
}

async fn through_client(client: &Client, sample: &Sample, read: &AtomicU64) -> Result<u64, String> {
    let path = target(&sample.path);
    let attr = client.stat(&path, false).await.map_err(|error| error.to_string())?;
    let hash = digest(client, &path, &attr).await.map_err(|error| error.to_string())?;
    read.fetch_add(attr.size, Ordering::Relaxed);
    judged(sample, attr.size, hash)
}

fn judged(sample: &Sample, size: u64, digest: blake3::Hash) -> Result<u64, String> {
    if digest == sample.digest {
        Ok(size)
    } else {
        let path = sample.path.display();
        Err(format!("{path}: {size} bytes with another digest; {} bytes were stored", sample.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"stone").unwrap();
        let sample = Sample { path: "f".into(), size: 5, digest: blake3::hash(b"stone") };
        let read = AtomicU64::new(0);
        assert_eq!(through_mount(path.clone(), &sample, &read), Ok(5));
        std::fs::write(&path, b"store").unwrap();
        assert!(through_mount(path.clone(), &sample, &read).unwrap_err().contains("another digest"));
        std::fs::remove_file(&path).unwrap();
        assert!(through_mount(path, &sample, &read).unwrap_err().contains("no such file"));
    }
}
