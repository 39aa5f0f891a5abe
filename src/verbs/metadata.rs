//! `cairn snapshot-metadata` and `cairn restore-metadata`: the namespace kept elsewhere, and a group of namenodes that
//! begins anew from what was kept.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use cairn_namenode::restore::{restore, verify};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;
use crate::config::check_address;
use crate::exit::{self, PathError};
use crate::output;
use crate::transfer::{Replacement, replaceable};

/// Bytes of a backup that are written before they are synced.
const PORTION: usize = 8 << 20;

/// Arguments of `cairn snapshot-metadata`.
#[derive(Args)]
pub struct SnapshotMetadata {
    /// The file to write; what it held is replaced when the snapshot is whole
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Arguments of `cairn restore-metadata`.
#[derive(Args)]
pub struct RestoreMetadata {
    /// What `cairn snapshot-metadata` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The namenode's directory to make; it must be empty or not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The namenode's address for others, as `cairn namenode --advertise` will say it
    #[arg(long, value_name = "HOST:PORT")]
    advertise: String,
}

/// Writes all metadata into a file. Who can read it can read the names of everything, and the keys of the cluster.
pub async fn snapshot(client: Arc<Client>, args: SnapshotMetadata) -> Result<()> {
    let failed = |error| PathError::local(&args.file)(error);
    let (target, _) = replaceable(&args.file).map_err(failed)?;
    // Listened to before there is something to be left behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (replacement, file) = Replacement::begin(&target, "snapshot").map_err(failed)?;
    let bytes = tokio::select! {
        written = write(&client, file, replacement.path()) => written?,
        _ = interrupt.recv() => {
            drop(replacement);
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
    };
    replacement.publish(&target, true).map_err(failed)?;
    sync_directory(&target)?;
    let mut out = output::stdout();
    writeln!(out, "{} of metadata in {}, verified", output::size(bytes), args.file.display())?;
    out.flush()?;
    Ok(())
}

async fn write(client: &Client, file: File, path: &Path) -> Result<u64> {
    let local = |error| PathError::local(path)(error);
    let mut out = BufWriter::with_capacity(1 << 20, Gently { file, unsynced: 0 });
    let written = client.cluster.snapshot_metadata(&mut out).await;
    let bytes = written.map_err(|error| anyhow!("{error}"))?;
    out.flush().map_err(local)?;
    out.get_ref().file.sync_all().map_err(local)?;
    // Read back: a backup that nobody can read is worse than none.
    verify(File::open(path).map_err(local)?).map_err(|error| anyhow!("{error}"))?;
    Ok(bytes)
}

/// A file on a disk that may be a namenode's, too: a disk that has a gigabyte to write at once lets whoever syncs a line of
/// a log wait for it.
struct Gently {
    file: File,
    unsynced: usize,
}

impl Write for Gently {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= PORTION {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn sync_directory(file: &Path) -> Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.with_context(|| parent.display().to_string())
}

/// Makes a namenode's directory from such a file.
pub fn run_restore(args: &RestoreMetadata) -> Result<u8> {
    check_address(&args.advertise)?;
    let backup = File::open(&args.file).map_err(PathError::local(&args.file))?;
    let restored = restore(&args.dir, &args.advertise, backup).map_err(|error| anyhow!("{error}"))?;
    let mut out = output::stdout();
    writeln!(
        out,
        "cluster {}: {} files and {} directories as of {}",
        restored.cluster_id,
        restored.files,
        restored.directories,
        output::local_time(restored.time_ns, false)
    )?;
    writeln!(out, "{} is namenode {} of a new group, so far its only one", args.dir.display(), restored.id)?;
    writeln!(
        out,
        "next: give it to the user that runs namenodes (chown -R), unless you are that user, and start it; then the other \
         namenodes with empty directories; then `cairn fsck /`"
    )?;
    writeln!(out, "no namenode of the old group may run any more")?;
    out.flush()?;
    Ok(0)
}
