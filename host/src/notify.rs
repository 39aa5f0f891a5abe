//! Telling whoever supervises this process how it is: the protocol of systemd's `Type=notify`.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where the supervisor listens, if there is one that wants to know.
const SOCKET: &str = "NOTIFY_SOCKET";

/// It can do its work now.
pub fn ready() {
    tell("READY=1");
}

/// It was told to stop, and does.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(socket) = env::var_os(SOCKET) else { return };
    // That nobody hears it is no reason not to work.
    let _ = send(&socket, state);
}

/// A name that begins with `@` is one without a file.
fn send(socket: &OsStr, state: &str) -> std::io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_is_told_by_path_and_by_name() {
        let dir = env::temp_dir().join(format!("cairn-notify-{}", std::process::id()));
        let name = format!("cairn-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&dir).unwrap();
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        for (listening, socket) in
            [(by_path, dir.clone().into_os_string()), (by_name, format!("@{name}").into())]
        {
            send(&socket, "READY=1").unwrap();
            let mut heard = [0; 16];
            let length = listening.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
        std::fs::remove_file(&dir).unwrap();
        assert!(send(dir.as_os_str(), "READY=1").is_err());
    }
}
