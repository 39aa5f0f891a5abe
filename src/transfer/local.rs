//! Files of this machine as streams, read off the runtime's threads.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use tokio::sync::mpsc;

use super::{PIECE, SMALL};
use crate::exit::{PathError, Usage};

const PIECES_AHEAD: usize = 4;

/// The path that a person wrote as an argument; an empty one is what an unset variable leaves.
pub fn named(text: &OsStr) -> Result<PathBuf, Usage> {
    if text.is_empty() {
        return Err(Usage("a path is empty".into()));
    }
    Ok(PathBuf::from(text))
}

/// The content of a local file: a small one in one piece, a larger one in pieces of 1 MiB.
pub fn pieces(path: PathBuf) -> impl Stream<Item = Result<Bytes, PathError>> + Send + Unpin {
    spawn_reader(move |send| {
        let result = File::open(&path).and_then(|file| {
            let size = file.metadata()?.len();
            let first = if size <= SMALL as u64 { size as usize + 1 } else { PIECE };
            read_pieces(file, first, send)
        });
        result.map_err(PathError::local(path))
    })
}

/// Standard input in pieces.
pub fn stdin() -> impl Stream<Item = Result<Bytes, PathError>> + Send + Unpin {
    spawn_reader(|send| read_pieces(io::stdin().lock(), PIECE, send).map_err(PathError::local("-")))
}

fn spawn_reader<F>(read: F) -> impl Stream<Item = Result<Bytes, PathError>> + Send + Unpin
where
    F: FnOnce(&mpsc::Sender<Result<Bytes, PathError>>) -> Result<(), PathError> + Send + 'static,
{
    let (send, mut receive) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read(&send) {
            // The receiver has given up already if this fails.
            let _ = send.blocking_send(Err(error));
        }
    });
    futures::stream::poll_fn(move |context| receive.poll_recv(context))
}

/// Sends a first piece of up to `first` bytes, then pieces of 1 MiB, until the end or until nobody listens.
fn read_pieces(
    mut from: impl Read,
    first: usize,
    send: &mpsc::Sender<Result<Bytes, PathError>>,
) -> io::Result<()> {
    let mut want = first;
    loop {
        let mut piece = BytesMut::zeroed(want);
        let mut filled = 0;
        while filled < want {
            match from.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(filled);
        if filled > 0 && send.blocking_send(Ok(piece.freeze())).is_err() {
            return Ok(());
        }
        if filled < want {
            return Ok(());
        }
        want = PIECE;
    }
}

/// The last component of a local path, also of `.` and `dir/..`.
pub fn base_name(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    if let Some(name) = path.file_name() {
        return Ok(name.as_bytes().to_vec());
    }
    match path.canonicalize()?.file_name() {
        Some(name) => Ok(name.as_bytes().to_vec()),
        None => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name; name the destination in full"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    async fn collected(path: PathBuf) -> (usize, Vec<u8>) {
        let mut stream = pieces(path);
        let (mut count, mut all) = (0, Vec::new());
        while let Some(piece) = stream.next().await {
            count += 1;
            all.extend_from_slice(&piece.unwrap());
        }
        (count, all)
    }

    #[tokio::test]
    async fn small_files_come_in_one_piece_and_large_ones_whole() {
        let dir = tempfile::tempdir().unwrap();
        for (size, pieces) in [(0, 0), (1, 1), (3 << 20, 1), (SMALL, 1), (SMALL + 5, 9)] {
            let path = dir.path().join(size.to_string());
            let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &content).unwrap();
            let (count, all) = collected(path).await;
            assert_eq!(count, pieces, "{size}");
            assert!(all == content, "{size}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_an_error_with_its_name() {
        let error = pieces("/no/such".into()).next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "/no/such: no such file or directory");
    }

    #[test]
    fn dots_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let expected = dir.path().canonicalize().unwrap().file_name().unwrap().to_os_string();
        let name = base_name(&dir.path().join("x/..").parent().unwrap().join(".")).unwrap();
        assert!(!name.is_empty());
        assert_eq!(base_name(dir.path()).unwrap(), std::os::unix::ffi::OsStrExt::as_bytes(&*expected));
        assert!(base_name(Path::new("/")).is_err());
    }
}
