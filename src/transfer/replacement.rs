//! A file of this machine that takes the place of another only when it is whole.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::paths::temporary_name;

/// What may be replaced, and where it lies. A symbolic link stands for the file it leads to; anything else that is
/// no file (a device, say) is not to be lost under one.
pub fn replaceable(target: &Path) -> io::Result<(PathBuf, Option<Metadata>)> {
    match target.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((target.to_path_buf(), None)),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_file() => Ok((target.to_path_buf(), Some(metadata))),
        Ok(metadata) if metadata.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(metadata) if metadata.is_symlink() => {
            let file = target.canonicalize().map_err(|_| refused())?;
            let metadata = file.metadata()?;
            if metadata.is_file() { Ok((file, Some(metadata))) } else { Err(refused()) }
        }
        Ok(_) => Err(refused()),
    }
}

fn refused() -> io::Error {
    io::Error::other("it exists, and is neither a regular file nor a link to one")
}

/// The file under its temporary name, removed unless it gets its final one.
pub struct Replacement {
    path: PathBuf,
    kept: bool,
}

impl Replacement {
    /// Begins a file beside `target` that only its owner can read, whatever it will hold.
    pub fn begin(target: &Path, verb: &str) -> io::Result<(Replacement, File)> {
        let name = target.file_name().unwrap_or(OsStr::new("file"));
        let path = target.with_file_name(OsStr::from_bytes(&temporary_name(name.as_bytes(), verb)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((Replacement { path, kept: false }, file))
    }

    /// Its temporary name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its final name.
    pub fn publish(mut self, to: &Path, overwrite: bool) -> io::Result<()> {
        rename(&self.path, to, overwrite)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn rename(from: &Path, to: &Path, overwrite: bool) -> io::Result<()> {
    if overwrite {
        return std::fs::rename(from, to);
    }
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        // Not every file system knows the flag; the name was free a moment ago.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => std::fs::rename(from, to),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn files_and_links_to_files_may_be_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        std::fs::write(at("file"), "x").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("nosuch", at("dangling")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("fifo", at("to-fifo")).unwrap();
        assert!(replaceable(&at("new")).unwrap().1.is_none());
        assert!(replaceable(&at("file")).unwrap().1.is_some());
        assert_eq!(replaceable(&at("link")).unwrap().0, at("file"));
        for name in ["dangling", "fifo", "to-fifo"] {
            let error = replaceable(&at(name)).unwrap_err().to_string();
            assert!(error.contains("neither a regular file"), "{name}: {error}");
        }
        assert!(replaceable(dir.path()).is_err());
    }

    #[test]
    fn it_is_secret_and_disturbs_nothing_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        std::fs::write(&target, "old").unwrap();
        let (given_up, _) = Replacement::begin(&target, "get").unwrap();
        assert_eq!(given_up.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(given_up);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
        let (refused, _) = Replacement::begin(&target, "get").unwrap();
        assert!(refused.publish(&target, false).is_err());
        let (whole, _) = Replacement::begin(&target, "get").unwrap();
        whole.publish(&target, true).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }
}
