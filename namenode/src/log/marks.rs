//! The few values beside the records: the vote, what is purged, what is known to be committed.
//!
//! One small file, replaced atomically: `"CRNMARK1" | u32 CRC-32C of the rest | postcard`.

use std::io;
use std::path::Path;

use bytes::Bytes;
use cairn_host::disk::{self, Disk};
use cairn_proto::checksum::crc32c;
use serde::{Deserialize, Serialize};

use super::record::Position;
use super::version::{later_version, unknown_version};
use crate::fatal::REMEDY;

const MAGIC: &[u8; 8] = b"CRNMARK1";
const NAME: &str = "marks";
const HEAD: usize = 12;

/// What the log remembers beside its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// The vote, as the Raft library encodes it.
    pub vote: Option<Bytes>,
    /// Records up to here are gone.
    pub purged: Option<Position>,
    /// Known to be committed when this was written.
    pub committed: Option<Position>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    vote: Option<Vec<u8>>,
    purged: Option<Position>,
    committed: Option<Position>,
}

/// Whether a log in `dir` ever wrote its marks.
pub fn exist(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    Ok(disk.look(&dir.join(NAME))?.is_some())
}

/// Reads the marks of a log; none were ever written in a new directory.
pub fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Marks> {
    let bytes = match disk::read(disk, &dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Marks::default()),
        Err(error) => return Err(error),
    };
    if let Some(version) = later_version(&bytes, MAGIC, 7) {
        return Err(unknown_version(&dir.join(NAME), version));
    }
    let damaged = || {
        let what = format!("{} is damaged; {REMEDY}", dir.join(NAME).display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    let (head, body) = bytes.split_at_checked(HEAD).ok_or_else(damaged)?;
    if &head[..8] != MAGIC || head[8..] != crc32c(body).to_le_bytes() {
        return Err(damaged());
    }
    let stored: Stored = postcard::from_bytes(body).map_err(|_| damaged())?;
    Ok(Marks { vote: stored.vote.map(Bytes::from), purged: stored.purged, committed: stored.committed })
}

/// Replaces the marks; they are on disk when this returns.
pub fn save(disk: &dyn Disk, dir: &Path, marks: &Marks) -> io::Result<()> {
    let vote = marks.vote.as_ref().map(|vote| vote.to_vec());
    let stored = Stored { vote, purged: marks.purged, committed: marks.committed };
    let body = postcard::to_allocvec(&stored).map_err(io::Error::other)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    disk::replace(disk, &dir.join(NAME), &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_and_damage_is_noticed() {
        let (dir, disk) = (tempfile::tempdir().unwrap(), disk::RealDisk);
        assert_eq!(load(&disk, dir.path()).unwrap(), Marks::default());
        let marks = Marks {
            vote: Some(Bytes::from_static(b"vote")),
            purged: Some(Position { index: 7, term: 1 }),
            committed: None,
        };
        save(&disk, dir.path(), &marks).unwrap();
        assert_eq!(load(&disk, dir.path()).unwrap(), marks);
        let mut bytes = std::fs::read(dir.path().join(NAME)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(dir.path().join(NAME), &bytes).unwrap();
        assert_eq!(load(&disk, dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
