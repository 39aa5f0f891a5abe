//! Files that must not be lost, and of which some must not be seen.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Readable by all.
pub const PUBLIC: u32 = 0o644;
/// Readable by its owner.
pub const SECRET: u32 = 0o600;

/// Makes a directory for the owner alone, and those above it.
pub fn make_dir(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Refuses to go on where any of these files is, unless it may be replaced.
pub fn check_free(dir: &Path, names: &[&str], force: bool) -> Result<()> {
    match names.iter().find(|name| dir.join(name).symlink_metadata().is_ok()) {
        Some(name) if !force => {
            bail!("{} is there already; --force replaces it", dir.join(name).display())
        }
        _ => Ok(()),
    }
}

/// Writes a file: whole or not at all, and there after a power cut. One that is there is replaced.
pub fn write(path: &Path, mode: u32, content: &str) -> Result<()> {
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let written = write_new(&temporary, mode, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", path.display()))?;
    match path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) {
        Some(parent) => File::open(parent)
            .and_then(|dir| dir.sync_all())
            .with_context(|| format!("cannot sync {}", parent.display())),
        None => Ok(()),
    }
}

fn write_new(path: &Path, mode: u32, content: &str) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}
