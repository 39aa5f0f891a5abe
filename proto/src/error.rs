//! One numbering of everything that can be refused, on every wire and in every program.
//!
//! Codes below 1000 are Linux `errno` values with their usual meaning; codes from 1000 are the system's own.
//! Numbers are never used again. Each code says how its receiver goes on ([`ErrorCode::reaction`]) and what a
//! person can do ([`ErrorCode::remedy`]).

use std::fmt;

use crate::fs;

/// What the receiver of an error should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// The same request may succeed later, here.
    Retry,
    /// The same request may succeed at another node.
    Redirect,
    /// The request is wrong, or the answer is final.
    Fail,
    /// The receiver itself must stop: its state and the cluster's do not belong together.
    Stop,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $errno:ident, $reaction:ident, $text:literal, $remedy:literal;)*) => {
        /// A numbered refusal.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum ErrorCode { $($(#[doc = $doc])* #[doc = $text] $name = $code,)* }

        impl ErrorCode {
            /// Every code, in order of number.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code with this number, if there is one.
            pub fn from_number(number: u32) -> Option<ErrorCode> {
                match number { $($code => Some(ErrorCode::$name),)* _ => None }
            }
            /// What a system call reports for it.
            pub fn errno(self) -> i32 {
                match self { $(ErrorCode::$name => errno::$errno,)* }
            }
            /// How its receiver goes on.
            pub fn reaction(self) -> Reaction {
                match self { $(ErrorCode::$name => Reaction::$reaction,)* }
            }
            /// Whether the same request will not succeed later, here.
            pub fn is_final(self) -> bool {
                self.reaction() != Reaction::Retry
            }
            /// What happened, in a few words.
            pub fn text(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }
            /// What a person can do about it; empty where the text says it all.
            pub fn remedy(self) -> &'static str {
                match self { $(ErrorCode::$name => $remedy,)* }
            }
        }
    };
}

codes! {
    NotPermitted = 1, EPERM, Fail, "operation not permitted", "";
    NotFound = 2, ENOENT, Fail, "no such file or directory", "";
    Interrupted = 4, EINTR, Fail, "interrupted by a signal", "";
    Io = 5, EIO, Fail, "input/output error", "see the node's log for the cause";
    PermissionDenied = 13, EACCES, Fail, "permission denied", "";
    Busy = 16, EBUSY, Fail, "device or resource busy", "";
    Exists = 17, EEXIST, Fail, "file exists", "";
    NotDirectory = 20, ENOTDIR, Fail, "not a directory", "";
    IsDirectory = 21, EISDIR, Fail, "is a directory", "";
    Invalid = 22, EINVAL, Fail, "invalid argument", "";
    FileTooBig = 27, EFBIG, Fail, "file too large", "";
    NoSpace = 28, ENOSPC, Fail, "no space left on any datanode", "delete files, or add disks or datanodes";
    ReadOnly = 30, EROFS, Fail, "read-only file system", "";
    TooManyLinks = 31, EMLINK, Fail, "too many links", "";
    Deadlock = 35, EDEADLK, Fail, "waiting for this lock would never end", "";
    NameTooLong = 36, ENAMETOOLONG, Fail, "name too long", "a name has at most 255 bytes, a path 4095";
    TooManyLocks = 37, ENOLCK, Fail, "too many locks", "";
    NotEmpty = 39, ENOTEMPTY, Fail, "directory not empty", "";
    Loop = 40, ELOOP, Fail, "too many levels of symbolic links", "";
    NoAttribute = 61, ENODATA, Fail, "no such attribute", "";
    NotSupported = 95, EOPNOTSUPP, Fail, "operation not supported", "";
    Stale = 116, ESTALE, Fail, "stale inode: the file was deleted", "";
    QuotaExceeded = 122, EDQUOT, Fail, "quota exceeded", "delete something there, or have root raise it with `cairn quota set`";

    NotLeader = 1001, EAGAIN, Redirect, "this namenode does not lead", "the client follows the leader by itself";
    NoLeader = 1002, EAGAIN, Retry, "the namenodes have no leader at the moment", "wait; if it lasts, start more namenodes: a majority must run";
    SessionExpired = 1003, EIO, Fail, "the session has expired", "open the file again; what was not synced may be lost";
    Duplicate = 1004, EIO, Fail, "a request came again after its answer was acknowledged", "";
    Unavailable = 1005, EIO, Retry, "the service cannot answer now", "wait and try again";
    Timeout = 1006, ETIMEDOUT, Retry, "no answer in time", "see `cairn status` for nodes that are down";
    Malformed = 1007, EPROTO, Fail, "malformed message", "client and server may be of different versions";
    TooLarge = 1008, EMSGSIZE, Fail, "message too large", "";
    WrongCluster = 1009, EIO, Stop, "the other side belongs to another cluster", "check the addresses, or start this node with an empty directory";
    Version = 1010, EPROTO, Stop, "unknown protocol or format version", "upgrade the older side";
    NoDatanodes = 1011, EAGAIN, Retry, "not enough live datanodes for the wanted replicas", "start datanodes, or lower the replication";
    Delegated = 1012, EAGAIN, Retry, "another client has this directory to itself", "wait: it is asked to hand it back, and loses it with its session if it does not answer";

    ChunkUnknown = 1020, EIO, Redirect, "no such chunk here", "";
    ChunkSealed = 1021, EIO, Fail, "the chunk is sealed", "";
    ChunkNotOwned = 1022, EIO, Fail, "the chunk belongs to another session", "";
    OffsetMismatch = 1023, EIO, Fail, "the append does not start at the replica's end", "";
    PastEnd = 1024, EIO, Redirect, "the range lies past the end of the replica", "";
    Corrupt = 1025, EIO, Redirect, "the data does not match its checksum", "the replica is replaced from a good one";
    Unchecked = 1026, EIO, Redirect, "the replica is not checked yet since an unclean stop", "";
    DiskFull = 1027, ENOSPC, Redirect, "the datanode's disks are full", "delete files or add disks";
    DiskFailed = 1028, EIO, Redirect, "the datanode's disk failed", "replace the disk; its chunks are repaired from other replicas";
    ChainBroken = 1029, EIO, Redirect, "a datanode further down the chain failed", "";
    ChunkBusy = 1030, EIO, Redirect, "the chunk already has a writer", "";
    NoCapability = 1031, EACCES, Redirect, "no right to this chunk", "the client asks for one by itself; if that does not help, compare the machines' clocks";
}

/// The few `errno` values used here, so that this crate needs no system library.
mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EINTR: i32 = 4;
    pub const EIO: i32 = 5;
    pub const EAGAIN: i32 = 11;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const ENOTDIR: i32 = 20;
    pub const EISDIR: i32 = 21;
    pub const EINVAL: i32 = 22;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const EMLINK: i32 = 31;
    pub const EDEADLK: i32 = 35;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOLCK: i32 = 37;
    pub const ENOTEMPTY: i32 = 39;
    pub const ELOOP: i32 = 40;
    pub const ENODATA: i32 = 61;
    pub const EPROTO: i32 = 71;
    pub const EMSGSIZE: i32 = 90;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ETIMEDOUT: i32 = 110;
    pub const ESTALE: i32 = 116;
    pub const EDQUOT: i32 = 122;
}

/// A refusal with what exactly was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The kind of refusal.
    pub code: ErrorCode,
    /// The path, chunk, address or value it is about.
    pub detail: String,
}

/// The result of anything that can be refused.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A refusal of `code` about `detail`.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Error {
        Error { code, detail: detail.into() }
    }
}

impl ErrorCode {
    /// This code as an error about `detail`.
    pub fn because(self, detail: impl Into<String>) -> Error {
        Error::new(self, detail)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            f.write_str(self.code.text())?;
        } else {
            write!(f, "{}: {}", self.detail, self.code.text())?;
        }
        if !self.code.remedy().is_empty() {
            write!(f, " ({})", self.code.remedy())?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<ErrorCode> for Error {
    fn from(code: ErrorCode) -> Error {
        Error::new(code, "")
    }
}

impl From<Error> for fs::Error {
    fn from(error: Error) -> fs::Error {
        fs::Error { code: error.code as u32, detail: error.detail }
    }
}

impl From<fs::Error> for Error {
    /// A number this version does not know is an I/O error that names it.
    fn from(error: fs::Error) -> Error {
        match ErrorCode::from_number(error.code) {
            Some(code) => Error::new(code, error.detail),
            None => {
                Error::new(ErrorCode::Io, format!("{} (unknown error code {})", error.detail, error.code))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_used_once_and_found_again() {
        let mut last = 0;
        for &code in ErrorCode::ALL {
            let number = code as u32;
            assert!(number > last, "{code:?} is out of order or used twice");
            assert_eq!(ErrorCode::from_number(number), Some(code));
            last = number;
        }
    }

    #[test]
    fn an_unknown_number_from_a_newer_peer_is_an_io_error_that_names_it() {
        let error = Error::from(fs::Error { code: 4711, detail: "x".into() });
        assert_eq!(error.code, ErrorCode::Io);
        assert!(error.detail.contains("4711"));
    }
}
