//! Telling a file of a later version from a damaged one: the digits at the end of its first eight bytes.

use std::io;
use std::path::Path;

/// The version that `bytes` say they are of, when they start as `magic` does but for its digits from `digits` on.
pub fn later_version(bytes: &[u8], magic: &[u8; 8], digits: usize) -> Option<u32> {
    let found = bytes.get(..magic.len()).filter(|found| *found != magic)?;
    if found[..digits] != magic[..digits] {
        return None;
    }
    std::str::from_utf8(&found[digits..]).ok()?.parse().ok()
}

/// The refusal of a file of such a version.
pub fn unknown_version(path: &Path, version: u32) -> io::Error {
    let path = path.display();
    let what = format!("{path} is of format version {version}, this program knows version 1; upgrade it");
    io::Error::new(io::ErrorKind::Unsupported, what)
}
