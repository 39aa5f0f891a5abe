//! Paths of the cluster as the command line takes them.
//!
//! They are always absolute: one without a leading slash is taken from the root. There is no current directory to
//! climb out of, so `..` is left for the namenode to refuse.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use cairn_client::fs;
use cairn_proto::ROOT_INODE;
use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};

use crate::exit::Usage;

/// A normalised absolute path: `/`, or `/a/b` without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterPath {
    bytes: Vec<u8>,
    directory_meant: bool,
}

impl ClusterPath {
    /// Normalises what a person wrote.
    pub fn new(text: &[u8]) -> ClusterPath {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in text.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                part => parts.push(part),
            }
        }
        let mut bytes = Vec::with_capacity(text.len() + 1);
        for part in &parts {
            bytes.push(b'/');
            bytes.extend_from_slice(part);
        }
        if bytes.is_empty() {
            bytes.push(b'/');
        }
        ClusterPath { bytes, directory_meant: text.ends_with(b"/") }
    }

    /// The path that a person wrote as an argument. An empty one is what an unset variable leaves, and would mean the
    /// root.
    pub fn named(text: &OsStr) -> Result<ClusterPath, Usage> {
        if text.is_empty() {
            return Err(Usage("a path is empty (the root is /)".into()));
        }
        Ok(ClusterPath::new(text.as_bytes()))
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &[u8]) -> ClusterPath {
        let mut bytes = self.bytes.clone();
        if !self.is_root() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        ClusterPath { bytes, directory_meant: false }
    }

    /// The path of what lies at `rest` in this directory; the directory itself if that is empty.
    pub fn below(&self, rest: &[u8]) -> ClusterPath {
        let path = ClusterPath::new(&[&self.bytes, &b"/"[..], rest].concat());
        ClusterPath { directory_meant: rest.is_empty() && self.directory_meant, ..path }
    }

    /// Its last component; the root has none.
    pub fn name(&self) -> Option<&[u8]> {
        if self.is_root() { None } else { self.bytes.rsplit(|&b| b == b'/').next() }
    }

    /// The directory that holds it; the root is its own.
    pub fn parent(&self) -> ClusterPath {
        let end = self.bytes.iter().rposition(|&b| b == b'/').unwrap_or(0).max(1);
        ClusterPath { bytes: self.bytes[..end].to_vec(), directory_meant: false }
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        self.bytes == b"/"
    }

    /// Whether it was written with a trailing slash, so that only a directory will do.
    pub fn directory_meant(&self) -> bool {
        self.directory_meant
    }

    /// The bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same as this machine's paths are.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.bytes)
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &ClusterPath) -> bool {
        self.is_root()
            || self.bytes == other.bytes
            || (other.bytes.starts_with(&self.bytes) && other.bytes.get(self.bytes.len()) == Some(&b'/'))
    }

    /// The path as the namenode takes it.
    pub fn node(&self) -> fs::NodeRef {
        fs::NodeRef { inode: ROOT_INODE, path: self.bytes[1..].to_vec().into() }
    }
}

/// The inode itself, wherever its names are.
pub fn by_inode(inode: u64) -> fs::NodeRef {
    fs::NodeRef { inode, path: Default::default() }
}

impl fmt::Display for ClusterPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes))
    }
}

impl ValueParserFactory for ClusterPath {
    type Parser = clap::builder::ValueParser;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().try_map(|text| ClusterPath::named(&text)).into()
    }
}

/// A name for a file that is being written next to `name`, hidden and unlike anybody else's.
pub fn temporary_name(name: &[u8], verb: &str) -> Vec<u8> {
    let token = uuid::Uuid::new_v4().simple().to_string();
    let tail = format!(".cairn-{verb}-{}", &token[..12]);
    let room = cairn_proto::limits::MAX_NAME - 1 - tail.len();
    let mut temporary = vec![b'.'];
    temporary.extend_from_slice(&name[..name.len().min(room)]);
    temporary.extend_from_slice(tail.as_bytes());
    temporary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_argument_is_not_the_root() {
        assert!(ClusterPath::named(OsStr::new("")).is_err());
        assert!(ClusterPath::named(OsStr::new("/")).unwrap().is_root());
    }

    fn normal(text: &str) -> String {
        ClusterPath::new(text.as_bytes()).to_string()
    }

    #[test]
    fn paths_are_absolute_and_normal() {
        assert_eq!(normal("/a//b/./c/"), "/a/b/c");
        assert_eq!(normal("a/b"), "/a/b");
        assert_eq!(normal(""), "/");
        assert_eq!(normal("/a/../b"), "/a/../b");
    }

    #[test]
    fn a_trailing_slash_is_remembered() {
        assert!(ClusterPath::new(b"/a/").directory_meant());
        assert!(!ClusterPath::new(b"/a").directory_meant());
    }

    #[test]
    fn parents_names_and_children_agree() {
        let path = ClusterPath::new(b"/a/b");
        assert_eq!(path.name(), Some(&b"b"[..]));
        assert_eq!(path.parent().to_string(), "/a");
        assert_eq!(path.parent().parent().to_string(), "/");
        assert_eq!(path.parent().parent().join(b"a").join(b"b"), path);
        assert_eq!(ClusterPath::new(b"/").name(), None);
        assert_eq!(path.node().path.as_ref(), b"a/b");
        assert_eq!(path.parent().below(b"/b"), path);
        assert_eq!(path.below(b""), path);
    }

    #[test]
    fn below_means_whole_components() {
        let a = ClusterPath::new(b"/a");
        assert!(a.contains(&ClusterPath::new(b"/a/b")));
        assert!(a.contains(&a));
        assert!(!a.contains(&ClusterPath::new(b"/ab")));
    }

    #[test]
    fn temporary_names_fit_and_differ() {
        let long = vec![b'n'; 255];
        let name = temporary_name(&long, "put");
        assert!(cairn_proto::path::check_name(&name).is_ok());
        assert_ne!(name, temporary_name(&long, "put"));
    }
}
