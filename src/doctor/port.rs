//! Ports and addresses of a role: whether it can listen there, who does already, and whether others find it.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use cairn_ops::code::Code;

use super::finding::Findings;
use crate::exit::io_text;

/// The state `LISTEN` in the kernel's tables of sockets.
const LISTENING: &str = "0A";

/// Whether a role can listen at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Nobody is there.
    Free,
    /// Somebody is; who, if that may be seen.
    Taken(Option<Owner>),
    /// It cannot be listened at.
    Unusable(String),
}

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Its program and arguments.
    arguments: Vec<String>,
}

impl Owner {
    /// Whether it is `cairn ROLE`.
    fn is(&self, role: &str) -> bool {
        let program = self.arguments.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path));
        program == "cairn" && self.arguments.iter().skip(1).any(|argument| argument == role)
    }

    fn name(&self) -> String {
        // What it is told may be long; its program and the first word say enough.
        let words: Vec<&str> = self.arguments.iter().take(2).map(String::as_str).collect();
        format!("`{}` (process {})", words.join(" "), self.pid)
    }
}

/// Looks who listens at an address, by trying to.
pub fn look(address: SocketAddr) -> Port {
    match TcpListener::bind(address) {
        Ok(_) => Port::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Port::Taken(owner(address.port())),
        Err(error) => Port::Unusable(io_text(&error)),
    }
}

/// The process that listens at a port, if this user may see it.
fn owner(port: u16) -> Option<Owner> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| listeners(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
    };
    let pid = numbers.into_iter().find(holds)?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = line.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    Some(Owner { pid, arguments: arguments.filter(|part| !part.is_empty()).collect() })
}

/// Inodes of the sockets that listen at a port, from a table as the kernel writes it: number, local address and port
/// in hexadecimal, remote ones, state, and the inode in the tenth column.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, at) = fields.get(1)?.rsplit_once(':')?;
        let ours = u16::from_str_radix(at, 16).ok() == Some(port) && *fields.get(3)? == LISTENING;
        ours.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// Judges; says which process of ours has the port, if one has.
pub fn judge(
    role: &'static str,
    key: &str,
    address: SocketAddr,
    port: &Port,
    found: &mut Findings,
) -> Option<u32> {
    if address.port() == 0 {
        found.fine(role, format!("{key} {address}: any free port"));
        return None;
    }
    match port {
        Port::Free => found.fine(role, format!("{key} {address}: free")),
        Port::Taken(Some(owner)) if owner.is(role) => {
            found.fine(role, format!("{key} {address}: in use by our own process {}", owner.pid));
            return Some(owner.pid);
        }
        Port::Taken(Some(owner)) => {
            found.fail(role, Code::PortTaken, format!("{key} {address}: taken by {}", owner.name()));
        }
        Port::Taken(None) => found.warn(
            role,
            Code::PortTaken,
            format!("{key} {address}: taken by a process that this user may not see; ask again as root"),
        ),
        Port::Unusable(why) => {
            found.fail(role, Code::AddressUnusable, format!("{key} {address}: {why}"));
        }
    }
    None
}

/// What a name means to this machine's resolver.
pub fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    match address.to_socket_addrs() {
        Ok(found) => Ok(found.collect()),
        Err(error) => {
            let text = io_text(&error);
            Err(text.rsplit(": ").next().unwrap_or(&text).to_owned())
        }
    }
}

/// Judges an advertised address by what it and the namenodes' addresses mean.
pub fn judge_advertised(
    role: &'static str,
    advertise: &str,
    meant: &Result<Vec<SocketAddr>, String>,
    namenodes: &[SocketAddr],
    found: &mut Findings,
) {
    let loopback = |all: &[SocketAddr]| all.iter().all(|one| one.ip().is_loopback());
    match meant {
        Err(why) => {
            found.fail(role, Code::AdvertiseUnusable, format!("advertise {advertise}: {why}"));
        }
        Ok(meant) if loopback(meant) && !loopback(namenodes) => {
            let text = format!("advertise {advertise}: means loopback here, and the namenodes are elsewhere");
            found.warn(role, Code::AdvertiseUnusable, text);
        }
        Ok(meant) => {
            let ips: Vec<String> = meant.iter().map(|one| one.ip().to_string()).collect();
            found.fine(role, format!("advertise {advertise}: {}", ips.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn who_listens_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let Port::Taken(Some(owner)) = look(address) else { panic!("{:?}", look(address)) };
        assert_eq!(owner.pid, std::process::id());
        drop(listener);
        assert_eq!(look(address), Port::Free);
        assert!(matches!(look("192.0.2.1:7400".parse().unwrap()), Port::Unusable(_)));
    }

    #[test]
    fn tables_of_sockets_are_read() {
        let table = "  sl  local_address rem_address   st ...\n   \
            0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1\n   \
            1: 0100007F:1CE8 0100007F:1CE9 01 00000000:00000000 00:00000000 00000000     0        0 12346 1\n";
        assert_eq!(listeners(table, 7400), ["12345"]);
        assert!(listeners(table, 7401).is_empty() && listeners("", 1).is_empty());
    }

    #[test]
    fn our_own_role_may_have_the_port_and_nobody_else() {
        let owner = |arguments: &[&str]| Owner {
            pid: 7,
            arguments: arguments.iter().map(|one| (*one).into()).collect(),
        };
        let address: SocketAddr = "127.0.0.1:7500".parse().unwrap();
        let of = |port: Port| {
            let mut found = Findings::default();
            let pid = judge("datanode", "listen", address, &port, &mut found);
            (pid, found.codes())
        };
        let own = owner(&["/usr/bin/cairn", "--config", "/x", "datanode"]);
        assert_eq!(of(Port::Taken(Some(own))), (Some(7), vec![]));
        let taken = (None, vec![(Level::Failure, Code::PortTaken)]);
        assert_eq!(of(Port::Taken(Some(owner(&["/usr/bin/cairn", "namenode"])))), taken);
        assert_eq!(of(Port::Taken(Some(owner(&["nginx", "datanode"])))), taken);
        assert_eq!(of(Port::Taken(None)), (None, vec![(Level::Warning, Code::PortTaken)]));
        assert_eq!(of(Port::Free), (None, vec![]));
    }

    #[test]
    fn a_name_that_means_loopback_is_no_good_to_others() {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let of = |meant: Result<Vec<SocketAddr>, String>, namenode: &str| {
            let mut found = Findings::default();
            judge_advertised("datanode", "dn1:7500", &meant, &[at(namenode)], &mut found);
            found.codes()
        };
        assert!(of(Ok(vec![at("10.0.0.4:7500")]), "10.0.0.1:7400").is_empty());
        assert!(of(Ok(vec![at("127.0.0.1:7500")]), "127.0.0.1:7400").is_empty());
        let trap = of(Ok(vec![at("127.0.1.1:7500")]), "10.0.0.1:7400");
        assert_eq!(trap, [(Level::Warning, Code::AdvertiseUnusable)]);
        let unknown = of(Err("name or service not known".into()), "10.0.0.1:7400");
        assert_eq!(unknown, [(Level::Failure, Code::AdvertiseUnusable)]);
    }
}
