//! Who a certificate says its holder is.
//!
//! A certificate names a node or a user in an alternative name that is a URI, where no other authority puts anything:
//! `cairn:node:dn1?roles=datanode` or `cairn:user:anna?uid=1000&gid=1000&groups=100,27`.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What every name that means anything here begins with.
const SCHEME: &str = "cairn:";
/// Longest name of a node or user.
const MAX_NAME: usize = 64;
/// Most groups of a user: a certificate is sent with every connection.
const MAX_GROUPS: usize = 256;

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What a certificate is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// It belongs to the cluster.
    Node(Roles),
    /// It uses the cluster.
    User(User),
}

/// What a node may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It may take part in the namenodes' group.
    pub namenode: bool,
    /// It may keep chunks.
    pub datanode: bool,
}

/// Whose rights a user's certificate gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// It may act for everybody, as a mount that many use must.
    pub proxy: bool,
}

/// Who is at the other end of a connection that was accepted.
#[derive(Debug, Clone, Default)]
pub enum Caller {
    /// Nobody asked: TLS is off, and whoever comes is believed.
    #[default]
    Unchecked,
    /// There once its certificate was verified, which is before its first byte is read.
    Checked(Arc<OnceLock<Peer>>),
}

impl Caller {
    /// Somebody who is not known yet.
    pub fn unknown() -> Caller {
        Caller::Checked(Arc::default())
    }

    /// Whether it may act as a namenode.
    pub fn may_be_namenode(&self) -> bool {
        self.allows(|peer| matches!(&peer.kind, Kind::Node(roles) if roles.namenode))
    }

    /// Whether it may act as a datanode.
    pub fn may_be_datanode(&self) -> bool {
        self.allows(|peer| matches!(&peer.kind, Kind::Node(roles) if roles.datanode))
    }

    /// Whether it may look after the cluster, and see all of it.
    pub fn may_administer(&self) -> bool {
        self.allows(|peer| match &peer.kind {
            Kind::Node(roles) => roles.namenode,
            Kind::User(user) => user.is_super(),
        })
    }

    /// Whether it has any certificate of the cluster.
    pub fn is_known(&self) -> bool {
        self.allows(|_| true)
    }

    /// Who it is, if that was asked and answered.
    pub fn peer(&self) -> Option<&Peer> {
        match self {
            Caller::Unchecked => None,
            Caller::Checked(peer) => peer.get(),
        }
    }

    fn allows(&self, rule: impl FnOnce(&Peer) -> bool) -> bool {
        match self {
            Caller::Unchecked => true,
            Caller::Checked(peer) => peer.get().is_some_and(rule),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer() {
            Some(peer) => peer.fmt(out),
            None => out.write_str("somebody"),
        }
    }
}

impl User {
    /// Whether it may do everything.
    pub fn is_super(&self) -> bool {
        self.uid == 0 || self.proxy
    }
}

impl Peer {
    /// Reads a verified certificate; nothing if it names neither a node nor a user, or more than one.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Peer> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut names = certificate.valid_uri_names().filter(|name| name.starts_with(SCHEME));
        let name = names.next()?;
        names.next().is_none().then(|| Peer::parse(name)).flatten()
    }

    /// As the certificate has it.
    pub fn uri(&self) -> String {
        match &self.kind {
            Kind::Node(roles) => {
                let named = [("namenode", roles.namenode), ("datanode", roles.datanode)];
                let roles: Vec<&str> = named.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
                format!("{SCHEME}node:{}?roles={}", self.name, roles.join(","))
            }
            Kind::User(user) => {
                let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
                let proxy = if user.proxy { "&proxy=1" } else { "" };
                let (uid, gid, groups) = (user.uid, user.gid, groups.join(","));
                format!("{SCHEME}user:{}?uid={uid}&gid={gid}&groups={groups}{proxy}", self.name)
            }
        }
    }

    /// Reads what [`Peer::uri`] wrote.
    pub fn parse(uri: &str) -> Option<Peer> {
        let (head, query) = uri.strip_prefix(SCHEME)?.split_once('?')?;
        let (kind, name) = head.split_once(':')?;
        if !is_name(name) {
            return None;
        }
        let kind = match kind {
            "node" => Kind::Node(Roles::parse(query)?),
            "user" => Kind::User(User::parse(query)?),
            _ => return None,
        };
        Some(Peer { name: name.to_owned(), kind })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.kind, Kind::Node(_)) { "node" } else { "user" };
        write!(out, "{kind} {}", self.name)
    }
}

/// Whether it may be the name of a node or user: also a file's name, and nothing to be quoted anywhere.
pub fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(good)
}

impl Roles {
    fn parse(query: &str) -> Option<Roles> {
        let mut roles = Roles { namenode: false, datanode: false };
        for role in query.strip_prefix("roles=")?.split(',') {
            match role {
                "namenode" => roles.namenode = true,
                "datanode" => roles.datanode = true,
                _ => return None,
            }
        }
        Some(roles)
    }
}

impl User {
    /// What is not known is refused: it may take rights away.
    fn parse(query: &str) -> Option<User> {
        let (mut uid, mut gid, mut groups, mut proxy) = (None, None, Vec::new(), false);
        for (key, value) in query.split('&').map(|pair| pair.split_once('=')).collect::<Option<Vec<_>>>()? {
            match key {
                "uid" => uid = Some(value.parse().ok()?),
                "gid" => gid = Some(value.parse().ok()?),
                "groups" if value.is_empty() => {}
                "groups" => {
                    groups = value.split(',').map(|group| group.parse().ok()).collect::<Option<_>>()?
                }
                "proxy" if value == "1" => proxy = true,
                _ => return None,
            }
        }
        (groups.len() <= MAX_GROUPS).then_some(User { uid: uid?, gid: gid?, groups, proxy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_certificate_says_is_read_back_and_nothing_else_is() {
        let user = User { uid: 1000, gid: 100, groups: vec![7, 8], proxy: true };
        let plain = User { groups: vec![], proxy: false, ..user.clone() };
        for kind in [
            Kind::Node(Roles { namenode: true, datanode: true }),
            Kind::Node(Roles { namenode: false, datanode: true }),
            Kind::User(user),
            Kind::User(plain),
        ] {
            let peer = Peer { name: "a-1.b".into(), kind };
            assert_eq!(Peer::parse(&peer.uri()), Some(peer));
        }
        for bad in [
            "",
            "cairn:node:x",
            "cairn:node:x?roles=",
            "cairn:node:x?roles=leader",
            "cairn:node:?roles=datanode",
            "cairn:user:x?uid=1",
            "cairn:user:x?uid=-1&gid=1",
            "cairn:user:x?uid=1&gid=1&super=1",
            "cairn:user:x?uid=4294967296&gid=1",
            "cairn:user:../x?uid=1&gid=1",
            "http:user:x?uid=1&gid=1",
            "cairn:root:x?uid=1&gid=1",
        ] {
            assert_eq!(Peer::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_is_not_known_may_nothing_and_who_was_not_asked_may_all() {
        let unknown = Caller::unknown();
        assert!(!unknown.is_known() && !unknown.may_be_namenode() && !unknown.may_administer());
        let open = Caller::Unchecked;
        assert!(open.is_known() && open.may_be_datanode() && open.may_administer());
    }
}
