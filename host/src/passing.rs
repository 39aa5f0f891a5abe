//! Sockets between processes of one host, over which open files are passed (unix(7), `SCM_RIGHTS`), and reading such
//! files without waiting for a disk.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Longest path of a socket that the kernel takes, in bytes (`sun_path` without its end).
const LONGEST: usize = 107;

/// A path as the kernel takes it for a socket, however long it is; the directory stays open for as long as it is used.
fn short(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= LONGEST {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((short, Some(dir)))
}

/// Listens at `path`, where an earlier process may have left its socket.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (short, _dir) = short(path)?;
    match std::fs::remove_file(&short) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(&short),
    }
}

/// Connects to the socket at `path`; `limit` is for this, and for every wait afterwards.
pub fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let (short, _dir) = short(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(short)?, limit)?;
    let stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Sends all of `bytes`, and `file` with the first of them.
pub fn send(stream: &UnixStream, bytes: &[u8], file: Option<&File>) -> io::Result<()> {
    let (mut file, mut at) = (file, 0);
    while at < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let passed = file.map(|file| [file.as_fd()]);
        if let Some(passed) = &passed {
            control.push(SendAncillaryMessage::ScmRights(passed));
        }
        let sent = sendmsg(stream, &[IoSlice::new(&bytes[at..])], &mut control, SendFlags::NOSIGNAL);
        match sent {
            Ok(sent) => at += sent,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        file = None;
    }
    Ok(())
}

/// Receives some bytes, 0 at the end, and the file that came with them.
pub fn receive(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Option<File>)> {
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(into)];
        match recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                let files = control.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(files) => Some(files),
                    _ => None,
                });
                return Ok((message.bytes, files.flatten().next().map(File::from)));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Fills all of `into`; returns the file that came with it. `UnexpectedEof` if the other side ends before.
pub fn receive_all(stream: &UnixStream, into: &mut [u8]) -> io::Result<Option<File>> {
    let (mut passed, mut at) = (None, 0);
    while at < into.len() {
        let (read, file) = receive(stream, &mut into[at..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        passed = passed.or(file);
        at += read;
    }
    Ok(passed)
}

/// Appends up to `length` bytes from `offset` of a file to `into`, as far as they are in memory; `WouldBlock` if none
/// is. Short at the end of the file, and where a part is not in memory. A file system that cannot tell reads at once.
pub fn read_ready(file: &File, into: &mut Vec<u8>, length: usize, offset: u64) -> io::Result<usize> {
    into.reserve(length);
    let part = libc::iovec { iov_base: into.spare_capacity_mut().as_mut_ptr().cast(), iov_len: length };
    // SAFETY: the descriptor is open for the length of the call, and the part is within memory that was just reserved.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, offset as i64, libc::RWF_NOWAIT) };
    let read = match usize::try_from(read) {
        Ok(read) => read,
        Err(_) => {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
                return Err(error);
            }
            // SAFETY: as above.
            let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, offset as i64, 0) };
            usize::try_from(read).map_err(|_| io::Error::last_os_error())?
        }
    };
    // SAFETY: the kernel has filled so many bytes of the spare capacity, of which there are at least `length`.
    unsafe { into.set_len(into.len() + read) };
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_are_passed_over_sockets_with_long_paths_too() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for path in [dir.path().join("door"), deep.join("door")] {
            drop(listen(&path).unwrap());
            let listener = listen(&path).unwrap();
            let near = connect(&path, Duration::from_secs(5)).unwrap();
            let (far, _) = listener.accept().unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"content").unwrap();
            send(&far, b"here", Some(&file)).unwrap();
            send(&far, b"none", None).unwrap();
            send(&far, b"all", Some(&file)).unwrap();
            let mut buffer = [0; 4];
            let (length, passed) = receive(&near, &mut buffer).unwrap();
            assert_eq!((&buffer[..length], passed.is_some()), (&b"here"[..], true));
            let mut content = Vec::new();
            assert_eq!(read_ready(&passed.unwrap(), &mut content, 100, 3).unwrap(), 4);
            assert_eq!(content, b"tent");
            let (length, passed) = receive(&near, &mut buffer).unwrap();
            assert_eq!((&buffer[..length], passed.is_none()), (&b"none"[..], true));
            assert!(receive_all(&near, &mut buffer[..3]).unwrap().is_some());
            drop(far);
            assert!(receive_all(&near, &mut buffer).is_err());
            assert_eq!(receive(&near, &mut buffer).unwrap().0, 0);
        }
    }
}
