//! Extended attributes, access control lists among them.

use std::collections::BTreeSet;

use bytes::Bytes;
use cairn_client::{Error, ErrorCode, fs};

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;

/// Gives `to`, which people know as `path`, the extended attributes of `from`, and takes others away. Those that this user
/// may not read or set are passed over.
pub async fn copy_extended(
    client: &Client,
    from: fs::NodeRef,
    to: fs::NodeRef,
    path: &ClusterPath,
) -> Result<(), PathError> {
    let (cred, cluster) = (&client.cred, &client.cluster);
    let failed = |error| PathError::Remote(path.clone(), error);
    let names = cluster.list_xattr(cred, from.clone()).await.map_err(failed)?;
    let there: BTreeSet<Bytes> =
        cluster.list_xattr(cred, to.clone()).await.map_err(failed)?.into_iter().collect();
    for name in &names {
        let read = cluster.get_xattr(cred, from.clone(), name.clone()).await;
        let Some(value) = if_permitted(read).map_err(failed)? else { continue };
        let same = there.contains(name)
            && cluster.get_xattr(cred, to.clone(), name.clone()).await.map_err(failed)? == value;
        if !same {
            let ask = fs::SetXattr { at: Some(to.clone()), name: name.clone(), value, ..Default::default() };
            if_permitted(cluster.set_xattr(cred, ask).await).map_err(failed)?;
        }
    }
    for name in there.into_iter().filter(|name| !names.contains(name)) {
        let ask = fs::RemoveXattr { at: Some(to.clone()), name };
        if_permitted(cluster.remove_xattr(cred, ask).await).map_err(failed)?;
    }
    Ok(())
}

/// Nothing where this user has no right to it, or where it went meanwhile.
fn if_permitted<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(error)
            if matches!(
                error.code,
                ErrorCode::NotPermitted | ErrorCode::PermissionDenied | ErrorCode::NoAttribute
            ) =>
        {
            Ok(None)
        }
        result => result.map(Some),
    }
}
