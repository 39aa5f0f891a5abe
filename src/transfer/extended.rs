//! Extended attributes, access control lists among them.

use std::collections::BTreeSet;

use bytes::Bytes;
use cairn_client::fs;

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::ClusterPath;

/// Gives `to`, which people know as `path`, the extended attributes of `from`, and takes others away.
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
        let value = cluster.get_xattr(cred, from.clone(), name.clone()).await.map_err(failed)?;
        let same = there.contains(name)
            && cluster.get_xattr(cred, to.clone(), name.clone()).await.map_err(failed)? == value;
        if !same {
            let ask = fs::SetXattr { at: Some(to.clone()), name: name.clone(), value, ..Default::default() };
            cluster.set_xattr(cred, ask).await.map_err(failed)?;
        }
    }
    for name in there.into_iter().filter(|name| !names.contains(name)) {
        let ask = fs::RemoveXattr { at: Some(to.clone()), name };
        cluster.remove_xattr(cred, ask).await.map_err(failed)?;
    }
    Ok(())
}
