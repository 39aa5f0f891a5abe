//! What a name and a path may be.

use crate::limits::{MAX_NAME, MAX_PATH};
use crate::{ErrorCode, Result};

/// Checks one component: not empty, at most 255 bytes, without `/` and NUL, and neither `.` nor `..`.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(ErrorCode::NameTooLong.because(shown(name)));
    }
    if name.is_empty() {
        return Err(ErrorCode::Invalid.because("empty name"));
    }
    if name == b"." || name == b".." {
        return Err(
            ErrorCode::Invalid.because(format!("{}: relative components are not resolved here", shown(name)))
        );
    }
    if name.iter().any(|&b| b == 0 || b == b'/') {
        return Err(ErrorCode::Invalid.because(format!("{}: a name has no NUL and no slash", shown(name))));
    }
    Ok(())
}

/// The components of a path, checked. Repeated, leading and trailing slashes mean nothing.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > MAX_PATH {
        return Err(ErrorCode::NameTooLong.because(format!("a path of {} bytes", path.len())));
    }
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|part| !part.is_empty()).collect();
    for part in &parts {
        check_name(part)?;
    }
    Ok(parts)
}

/// A name for people, shortened: bytes that are not UTF-8 are replaced.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.chars().count() <= 80 {
        return text.into_owned();
    }
    let head: String = text.chars().take(77).collect();
    format!("{head}...")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_collapse() {
        assert_eq!(components(b"//a///b/").unwrap(), vec![&b"a"[..], b"b"]);
        assert!(components(b"/").unwrap().is_empty());
    }

    #[test]
    fn bad_names_are_refused() {
        for path in [&b"a/../b"[..], b".", b"a\0b"] {
            assert_eq!(components(path).unwrap_err().code, ErrorCode::Invalid);
        }
        let long = vec![b'x'; 256];
        assert_eq!(components(&long).unwrap_err().code, ErrorCode::NameTooLong);
        assert!(components(&long[..255]).is_ok());
        let deep = b"d/".repeat(2048);
        assert_eq!(components(&deep).unwrap_err().code, ErrorCode::NameTooLong);
    }
}
