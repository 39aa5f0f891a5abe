//! Where a mount in the background logs: a file, else the system's log.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
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
        _ => builder.with_writer(SystemLog::connect()).without_time().with_level(false).init(),
    }
}

/// The system's log; nothing where there is none.
struct SystemLog {
    socket: Option<UnixDatagram>,
}

impl SystemLog {
    fn connect() -> SystemLog {
        let socket = UnixDatagram::unbound().and_then(|socket| socket.connect(SOCKET).map(|()| socket));
        SystemLog { socket: socket.ok() }
    }
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry { socket: self.socket.as_ref(), severity: 6 }
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
    socket: Option<&'a UnixDatagram>,
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
        if let Some(socket) = self.socket {
            // A log that is full or away must not trouble the mount.
            let _ = socket.send(&self.message(text));
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_carries_its_priority_and_process() {
        let entry = Entry { socket: None, severity: severity(Level::WARN) };
        let expected = format!("<28>cairn-mount[{}]: lost", std::process::id());
        assert_eq!(entry.message(b"lost\n"), expected.as_bytes());
    }
}
