//! Ports for a local cluster.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use socket2::{Domain, Socket, Type};

use crate::exit::Usage;

/// Below the range from which the kernel picks ports for outgoing connections: one of those could take a port
/// between its choice here and its use.
const RANGE: std::ops::Range<u16> = 10_000..30_000;
const ATTEMPTS: usize = 10_000;

/// Addresses on the loopback interface that were chosen. Until this is dropped nobody else chooses them.
pub struct Chosen {
    /// As many as were asked for.
    pub addresses: Vec<String>,
    _held: Vec<Socket>,
}

/// `count` addresses on the loopback interface: free ones, or the ones from `base` on.
pub fn choose(count: usize, base: u16) -> Result<Chosen> {
    if base != 0 {
        let end = usize::from(base) + count;
        if end > usize::from(u16::MAX) + 1 {
            bail!(Usage(format!("{count} ports from {base} on do not fit")));
        }
        let addresses = (0..count).map(|index| address(base + index as u16)).collect();
        return Ok(Chosen { addresses, _held: Vec::new() });
    }
    let mut held = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..ATTEMPTS {
        if held.len() == count {
            return Ok(Chosen { addresses, _held: held });
        }
        let port = random_port();
        if let Ok(socket) = hold(port) {
            held.push(socket);
            addresses.push(address(port));
        }
    }
    bail!("no {count} free ports between {} and {}", RANGE.start, RANGE.end);
}

/// Takes a port that nobody has, so that nobody else can who does the same, while a node can listen there: a
/// listener, as the standard library and tokio make it, sets SO_REUSEADDR, and Linux lets it share the port
/// with sockets that do so too and do not listen.
fn hold(port: u16) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Clusters that start at the same time must not try the same ports in the same order.
fn random_port() -> u16 {
    let random = u128::from_le_bytes(*uuid::Uuid::new_v4().as_bytes());
    RANGE.start + (random % (RANGE.end - RANGE.start) as u128) as u16
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_is_chosen_is_free_for_its_nodes_and_nobody_else() {
        let chosen = choose(8, 0).unwrap();
        let port = |address: &String| address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
        for address in &chosen.addresses {
            assert!(hold(port(address)).is_err(), "{address} is chosen twice");
            let listener = TcpListener::bind(address.as_str()).expect("a node can listen");
            drop(TcpStream::connect(address.as_str()).expect("a node is reached"));
            drop(listener.accept().unwrap());
        }
    }

    #[test]
    fn ports_from_a_base_are_in_order() {
        assert_eq!(choose(2, 7000).unwrap().addresses, ["127.0.0.1:7000", "127.0.0.1:7001"]);
        assert_eq!(choose(2, 65534).unwrap().addresses, ["127.0.0.1:65534", "127.0.0.1:65535"]);
        assert!(choose(3, 65534).is_err());
    }
}
