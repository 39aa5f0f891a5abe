//! Where a mount in the background logs: a file, else the system's log.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The system's log.
const SOCKET: &str = "/dev/log";
/// Facility "daemon" of the system's log, as part of a priority.
const FACILITY: u8 = 3 << 3;

/// Logs what `filter`, else `RUST_LOG`, says, else the usual, to `file` or to the system's log.
pub fn start(filter: Option<&str>, file: Option<&Path>) {
    let filter = filter
        .and_then(|text| EnvFilter::try_new(text).ok())
        .or_else(|| EnvFilter::try_from_default_env().ok())
        .unwrap_or_else(|| EnvFilter::new(crate::SERVING));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match file.map(|path| File::options().create(true).append(true).open(path)) {
        Some(Ok(file)) => builder.with_writer(Arc::new(file)).init(),
        _ => builder.with_writer(SystemLog::at(SOCKET)).without_time().with_level(false).init(),
    }
}

/// The system's log, which is looked for anew with each entry: it may be restarted.
struct SystemLog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl SystemLog {
    fn at(path: impl Into<PathBuf>) -> SystemLog {
        // Sending must not wait: what reads the log may hang, or wait for this mount itself.
        let socket = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        SystemLog { path: path.into(), socket: socket.ok() }
    }
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry { log: self, severity: 6 }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Entry<'a> {
        Entry { severity: severity(*event.level()), ..self.make_writer() }
    }
}

/// The system log's name for how bad something is.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// One entry: an event is written at once.
struct Entry<'a> {
    log: &'a SystemLog,
    severity: u8,
}

impl Entry<'_> {
    fn message(&self, text: &[u8]) -> Vec<u8> {
        let mut message =
            format!("<{}>cairn-mount[{}]: ", FACILITY | self.severity, std::process::id()).into_bytes();
        message.extend_from_slice(text.trim_ascii_end());
        message
    }
}

impl io::Write for Entry<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if let Some(socket) = &self.log.socket {
            // A log that is full or away must not trouble the mount.
            let _ = socket.send_to(&self.message(text), &self.log.path);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn expected(text: &str) -> String {
        format!("<28>cairn-mount[{}]: {text}", std::process::id())
    }

    fn entry(log: &SystemLog) -> Entry<'_> {
        Entry { log, severity: severity(Level::WARN) }
    }

    #[test]
    fn an_entry_carries_its_priority_and_process() {
        let log = SystemLog::at(SOCKET);
        assert_eq!(entry(&log).message(b"lost\n"), expected("lost").as_bytes());
    }

    #[test]
    fn a_log_that_nobody_reads_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let _hangs = UnixDatagram::bind(&path).unwrap();
        let filled = thread::spawn(move || {
            let log = SystemLog::at(path);
            (0..10_000).for_each(|_| entry(&log).write_all(&[b'x'; 1000]).unwrap());
        });
        let since = std::time::Instant::now();
        while !filled.is_finished() {
            assert!(since.elapsed() < Duration::from_secs(30), "it waits");
            thread::sleep(Duration::from_millis(10));
        }
        filled.join().unwrap();
    }

    #[test]
    fn a_log_that_was_restarted_gets_what_comes_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = SystemLog::at(&path);
        entry(&log).write_all(b"nobody is there").unwrap();
        for text in ["one", "two"] {
            let reader = UnixDatagram::bind(&path).unwrap();
            entry(&log).write_all(text.as_bytes()).unwrap();
            let mut message = [0; 100];
            let length = reader.recv(&mut message).unwrap();
            assert_eq!(message[..length], *expected(text).as_bytes());
            std::fs::remove_file(&path).unwrap();
        }
    }
}
