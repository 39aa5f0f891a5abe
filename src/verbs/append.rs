//! `cairn append`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use cairn_client::{ErrorCode, fs};
use clap::Args;
use futures::{Stream, StreamExt};
use nix::unistd::{AccessFlags, access};

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;
use crate::transfer::{PIECE, local};

/// Arguments of `cairn append`.
#[derive(Args)]
pub struct Append {
    /// Local files (- is stdin), then the file of the cluster they are appended to; it is made if there is none
    #[arg(value_names = ["LOCAL", "PATH"], num_args = 2.., required = true)]
    paths: Vec<std::ffi::OsString>,
    /// Return only when it is on the disks
    #[arg(long)]
    sync: bool,
}

/// Appends. Each piece of up to 1 MiB goes to the end as it is then, so that several commands may append to one file:
/// their pieces do not overwrite each other.
pub async fn run(client: Arc<Client>, mut args: Append) -> Result<()> {
    let path = ClusterPath::named(&args.paths.pop().unwrap_or_default())?;
    let mut sources = args.paths;
    sources.retain(|source| is_readable(&client, source));
    if sources.is_empty() {
        return Ok(());
    }
    client.look_for_file(&path).await?;
    let ask = fs::CreateFile {
        at: Some(path.node()),
        mode: 0o666,
        umask: client.umask,
        uid: client.cred.uid,
        gid: client.cred.gid,
        ..Default::default()
    };
    let created = client.cluster.create(&client.cred, ask).await.map_err(PathError::remote(&path))?;
    let attr = created.attr.unwrap_or_default();
    if attr.kind() != fs::FileKind::File {
        return Err(PathError::Remote(path, ErrorCode::Invalid.because("not a regular file")).into());
    }
    let file = client.cluster.open(&client.cred, attr);
    for source in &sources {
        let result = match source.as_os_str() {
            name if name == "-" => append(&file, local::stdin(), &path).await,
            name => append(&file, local::pieces(PathBuf::from(name)), &path).await,
        };
        if let Err(error) = result {
            client.report.failed(error);
        }
    }
    if args.sync {
        file.sync().await.map_err(PathError::remote(&path))?;
    }
    Ok(())
}

/// Whether a source can be read, so that no file is made for nothing. It is not opened: a pipe can be only once.
fn is_readable(client: &Client, source: &OsStr) -> bool {
    let checked = match source {
        name if name == "-" => Ok(()),
        name => access(name, AccessFlags::R_OK).map_err(std::io::Error::from),
    };
    match checked {
        Ok(()) => true,
        Err(error) => {
            client.report.failed(PathError::Local(PathBuf::from(source), error));
            false
        }
    }
}

async fn append(
    file: &cairn_client::File,
    pieces: impl Stream<Item = Result<Bytes, PathError>>,
    path: &ClusterPath,
) -> Result<(), PathError> {
    let mut pieces = pin!(pieces);
    while let Some(piece) = pieces.next().await {
        let mut piece = piece?;
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(PIECE));
            file.append(part).await.map_err(PathError::remote(path))?;
        }
    }
    Ok(())
}
