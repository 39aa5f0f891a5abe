//! Copies one file within the cluster: the copy shares the chunks of the original.

use cairn_client::{ErrorCode, File, fs};

use super::upload::{dress, in_place, under_temporary_name};
use super::{NewFile, Progress, Temporaries};
use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;

/// Makes `new` of the file at `path`, whose attributes are `attr`: whole or not at all.
pub async fn share(
    client: &Client,
    (path, attr): (&ClusterPath, &fs::Attr),
    new: &NewFile,
    temporaries: &Temporaries,
    progress: &Progress,
) -> Result<fs::Attr, PathError> {
    let made = match client.cluster.clone_file(&client.cred, attr.inode, in_place(new), new.mtime_ns).await {
        Ok(made) => {
            progress.moved(made.size);
            dress(client, new, made).await?
        }
        // Scattered over more extents than one step takes in.
        Err(error) if error.code == ErrorCode::TooLarge => {
            share_in_parts(client, (path, attr), new, temporaries, progress).await?
        }
        Err(error) => return Err(PathError::Remote(new.path.clone(), error)),
    };
    progress.file_done();
    Ok(made)
}

async fn share_in_parts(
    client: &Client,
    (path, attr): (&ClusterPath, &fs::Attr),
    new: &NewFile,
    temporaries: &Temporaries,
    progress: &Progress,
) -> Result<fs::Attr, PathError> {
    let source = client.cluster.open(&client.cred, *attr);
    let fill = |file: File| async move {
        let mut offset = 0;
        while offset < attr.size {
            let wanted = attr.size - offset;
            let length = source.clone_range(offset, &file, offset, wanted).await;
            match length.map_err(PathError::remote(path))? {
                // It was cut while it was being copied.
                0 => break,
                length => {
                    offset += length;
                    progress.moved(length);
                }
            }
        }
        Ok(())
    };
    under_temporary_name(client, new, temporaries, fill).await
}
