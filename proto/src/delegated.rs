//! What an error [`ErrorCode::Delegated`] is about.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorCode};

/// A directory that a session has to itself. As text it is the detail of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delegated {
    /// The directory's inode.
    pub directory: u64,
    /// Whose it is.
    pub session: u64,
}

impl Delegated {
    /// The refusal of somebody else.
    pub fn error(self) -> Error {
        ErrorCode::Delegated.because(self.to_string())
    }

    /// What a refusal is about, if it is one of these.
    pub fn of(code: u32, detail: &str) -> Option<Delegated> {
        (code == ErrorCode::Delegated as u32).then(|| detail.parse().ok()).flatten()
    }
}

impl fmt::Display for Delegated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} of session {}", self.directory, self.session)
    }
}

impl FromStr for Delegated {
    type Err = ();

    fn from_str(text: &str) -> Result<Delegated, ()> {
        let (directory, session) =
            text.strip_prefix("inode ").and_then(|rest| rest.split_once(" of session ")).ok_or(())?;
        Ok(Delegated { directory: directory.parse().map_err(drop)?, session: session.parse().map_err(drop)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_says_what_it_is_about() {
        let held = Delegated { directory: 77, session: 5 };
        let error = held.error();
        assert_eq!(Delegated::of(error.code as u32, &error.detail), Some(held));
        assert_eq!(Delegated::of(ErrorCode::NotFound as u32, &error.detail), None);
        assert_eq!(Delegated::of(ErrorCode::Delegated as u32, "inode x of session 5"), None);
    }
}
