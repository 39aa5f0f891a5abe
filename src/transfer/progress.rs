//! How far a transfer is: counted always, drawn only on a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Counters and, on a terminal, a line on stderr that shows them.
pub struct Progress {
    verb: &'static str,
    files: AtomicU64,
    bytes: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts counting; nothing is drawn when stderr is not a terminal or `quiet`.
    pub fn start(verb: &'static str, quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            let template = "{spinner} {msg}  {bytes}  {bytes_per_sec}  {elapsed}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.set_message(format!("{verb}: 0 files"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Progress { verb, files: AtomicU64::new(0), bytes: AtomicU64::new(0), bar }
    }

    /// Some bytes have been moved.
    pub fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// A file is complete.
    pub fn file_done(&self) {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {files} files", self.verb));
        }
    }

    /// Bytes moved so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Files completed so far.
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// The line on the terminal, for messages that must not tear it.
    pub fn bar(&self) -> Option<ProgressBar> {
        self.bar.clone()
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
