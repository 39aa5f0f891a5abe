//! The certificates of a local cluster: an authority of its own, one for each node, and one for its clients.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cairn_host::tls::files::CERTIFICATE;
use cairn_host::tls::peer::{Kind, Peer, Roles, User};

use crate::ca::{Authority, Order};
use crate::client::process_cred;

/// How long they are good: as long as anybody tries something out.
const DAYS: u32 = 3650;

/// Where they are, in the cluster's directory.
pub fn dir(cluster: &Path) -> PathBuf {
    cluster.join("ca")
}

/// Where a node's is.
pub fn of_node(cluster: &Path, name: &str) -> PathBuf {
    dir(cluster).join("nodes").join(name)
}

/// Where the clients' is.
pub fn of_client(cluster: &Path) -> PathBuf {
    dir(cluster).join("users/client")
}

/// Makes the authority and the clients' certificate.
pub fn make(cluster: &Path) -> Result<()> {
    let authority = Authority::create(&dir(cluster), "local cluster", DAYS, false)?;
    let cred = process_cred();
    // Whoever started it has the authority's key, and could be anybody anyway.
    let user = User { uid: cred.uid, gid: cred.gid, groups: Vec::new(), proxy: true };
    let peer = Peer { name: "client".into(), kind: Kind::User(user) };
    authority.issue(&Order { peer, addresses: &[], days: DAYS }, &of_client(cluster), false)
}

/// Makes a node's certificate, unless there is one.
pub fn make_for_node(cluster: &Path, name: &str) -> Result<()> {
    let place = of_node(cluster, name);
    if place.join(CERTIFICATE).exists() {
        return Ok(());
    }
    let roles = Roles { namenode: name.starts_with("nn"), datanode: name.starts_with("dn") };
    let peer = Peer { name: name.into(), kind: Kind::Node(roles) };
    let addresses = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    Authority::open(&dir(cluster))?.issue(&Order { peer, addresses: &addresses, days: DAYS }, &place, true)
}
