//! Who a namenode is: its id in the group and its cluster, in a small file of its own.
//!
//! The order of writing is what keeps a namenode from ever voting twice: the identity is on disk before Raft runs
//! under it, and `active` only when there is a log, so that a lost log is never mistaken for a new one.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use cairn_host::disk::{self, Disk};
use cairn_proto::{Error, ErrorCode, checked_json};
use serde::{Deserialize, Serialize};

use crate::fatal::REMEDY;

const NAME: &str = "identity.json";
/// Of everything in the directory; `docs/formats/store.md` says what each version added.
const VERSION: u32 = 5;

/// How far a namenode has come in belonging to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It was promised a place in a group that is being formed; Raft never ran under this id.
    Awaiting,
    /// It belongs to the group; its log is being made.
    Entering,
    /// Its log holds what it promised to the group.
    Active,
}

/// A namenode's place in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    version: u32,
    /// Its id, never used by another.
    pub id: u64,
    /// The cluster.
    pub cluster_id: String,
    /// How far it has come.
    pub phase: Phase,
    /// The first members, for the one that forms the group; empty for the others.
    pub first_members: BTreeMap<u64, String>,
}

impl Identity {
    /// A place as it is first written down.
    pub fn new(id: u64, cluster_id: impl Into<String>, phase: Phase) -> Identity {
        Identity {
            version: VERSION,
            id,
            cluster_id: cluster_id.into(),
            phase,
            first_members: BTreeMap::new(),
        }
    }

    /// Reads the identity in `dir`; nothing if there never was one.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, Error> {
        let path = dir.join(NAME);
        let bytes = match disk::read(disk, &path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ErrorCode::Io.because(format!("{}: {error}", path.display()))),
        };
        let damaged = |why: &str| {
            let what = format!("{} is damaged: {why}; {REMEDY}", path.display());
            ErrorCode::Corrupt.because(what)
        };
        if checked_json::is_intact(&bytes) == Some(false) {
            return Err(damaged("its checksum does not match"));
        }
        let mut identity: Identity =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&error.to_string()))?;
        if identity.version == 0 || identity.version > VERSION {
            return Err(ErrorCode::Version.because(format!(
                "{}: version {}",
                path.display(),
                identity.version
            )));
        }
        // Before anything of the new version is written, so that an older program refuses it. And also when nothing
        // changes: an earlier process may have ended before what was read here was on the disk.
        identity.version = VERSION;
        identity.save(disk, dir)?;
        Ok(Some(identity))
    }

    /// Writes it to `dir`; it is on disk when this returns.
    pub fn save(&self, disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
        let failed =
            |error: io::Error| ErrorCode::Io.because(format!("{}: {error}", dir.join(NAME).display()));
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        let sealed = checked_json::seal(&text).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        disk::replace(disk, &dir.join(NAME), sealed.as_bytes()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_host::disk::RealDisk;
    use std::fs;

    #[test]
    fn an_identity_is_read_back_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(&RealDisk, dir.path()).unwrap(), None);
        let mut identity = Identity::new(3, "c", Phase::Awaiting);
        identity.first_members.insert(3, "a:1".into());
        identity.save(&RealDisk, dir.path()).unwrap();
        assert_eq!(Identity::load(&RealDisk, dir.path()).unwrap(), Some(identity));
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        for damage in [text.replace("\"id\": 3", "\"id\": 2"), "{".into()] {
            assert_ne!(damage, text);
            fs::write(dir.path().join(NAME), damage).unwrap();
            let refused = Identity::load(&RealDisk, dir.path()).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Corrupt, "{refused}");
        }
    }

    #[test]
    fn an_older_directory_is_taken_over_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let older = Identity { version: 1, ..Identity::new(3, "c", Phase::Active) };
        older.save(&RealDisk, dir.path()).unwrap();
        assert_eq!(
            Identity::load(&RealDisk, dir.path()).unwrap(),
            Some(Identity::new(3, "c", Phase::Active))
        );
        let written = fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert!(
            written.contains(&format!("\"version\": {VERSION}")),
            "an older program must notice: {written}"
        );
        let newer = Identity { version: VERSION + 1, ..older };
        newer.save(&RealDisk, dir.path()).unwrap();
        assert_eq!(Identity::load(&RealDisk, dir.path()).unwrap_err().code, ErrorCode::Version);
    }
}
