//! Under which names a server may be asked.
//!
//! A page from elsewhere can have its own name point to this machine, and its scripts then read what the machine
//! answers ("DNS rebinding"). The browser says under which name it asks, so only known names are answered. An address
//! is always right: nobody can make one point elsewhere.

use std::net::IpAddr;

/// The names of this server.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// These names, each with or without a port, besides every address and `localhost`.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Names {
        Names(names.into_iter().map(|name| host_of(name).to_ascii_lowercase()).collect())
    }

    /// Whether a `Host` is one of them.
    pub fn are(&self, host: &str) -> bool {
        let host = host_of(host).to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse::<IpAddr>().is_ok() || self.0.contains(&host)
    }
}

/// Without the port.
fn host_of(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_known_names_are_answered() {
        let names = Names::new(["nn1.example:7400", "Proxy"]);
        for host in ["127.0.0.1:80", "[::1]:80", "[::1]", "localhost:1", "NN1.example", "proxy:1", "10.0.0.1"]
        {
            assert!(names.are(host), "{host}");
        }
        for host in ["evil.example", "nn1.example.evil:80", "", "127.0.0.1.evil", "localhost.evil"] {
            assert!(!names.are(host), "{host}");
        }
    }
}
