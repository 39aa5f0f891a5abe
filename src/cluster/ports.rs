//! Ports for a local cluster.

use std::net::TcpListener;

use anyhow::{Result, bail};

/// Below the range from which the kernel picks ports for outgoing connections: one of those could take a port
/// between its choice here and its use.
const RANGE: std::ops::Range<u16> = 10_000..30_000;
const ATTEMPTS: usize = 10_000;

/// `count` addresses on the loopback interface: free ones, or the ones from `base` on.
pub fn choose(count: usize, base: u16) -> Result<Vec<String>> {
    if base != 0 {
        let last = usize::from(base) + count;
        if last > usize::from(u16::MAX) {
            bail!("{count} ports from {base} on do not fit");
        }
        return Ok((0..count).map(|index| address(base + index as u16)).collect());
    }
    let mut held = Vec::new();
    for _ in 0..ATTEMPTS {
        if held.len() == count {
            break;
        }
        // Held until all are chosen, so that none is chosen twice.
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", random_port())) {
            held.push(listener);
        }
    }
    if held.len() < count {
        bail!("no {count} free ports between {} and {}", RANGE.start, RANGE.end);
    }
    let mut ports = Vec::new();
    for listener in &held {
        ports.push(listener.local_addr()?.port());
    }
    Ok(ports.into_iter().map(address).collect())
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
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        // Nobody keeps them, so somebody else on this machine may take one at any time.
        let is_free = |address: &String| TcpListener::bind(address.as_str()).is_ok();
        let mut tries = (0..5).map(|_| choose(8, 0).unwrap());
        let mut addresses = tries.find(|addresses| addresses.iter().all(is_free)).expect("free ports");
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 8);
    }

    #[test]
    fn ports_from_a_base_are_in_order() {
        assert_eq!(choose(2, 7000).unwrap(), ["127.0.0.1:7000", "127.0.0.1:7001"]);
        assert!(choose(3, 65534).is_err());
    }
}
