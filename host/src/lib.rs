//! What a process gets from the machine it runs on: its disk, its network, its clock; and the numbers by which requests are
//! followed from one process to the next ([`request`]).
//!
//! Shells take these as arguments instead of asking the operating system, so that a simulation can put its own in
//! their place and drive the code that ships.

use std::sync::Arc;

pub mod clock;
pub mod descriptors;
pub mod disk;
pub mod net;
pub mod notify;
pub mod passing;
pub mod request;
pub mod seldom;
pub mod tls;
pub mod work;

/// The network and the clock of a process.
#[derive(Debug, Clone)]
pub struct Host {
    /// Connections to others.
    pub network: Arc<dyn net::Network>,
    /// The time of day.
    pub clock: Arc<dyn clock::Clock>,
    /// The certificate that `network` shows, if it is under TLS.
    pub tls: Option<tls::Tls>,
}

impl Default for Host {
    /// The machine itself.
    fn default() -> Host {
        Host { network: Arc::new(net::RealNetwork), clock: Arc::new(clock::RealClock), tls: None }
    }
}

impl Host {
    /// The machine itself; with certificates, all its connections are under TLS.
    pub fn secured(tls: Option<tls::Tls>) -> Host {
        let host = Host::default();
        match tls {
            Some(tls) => host.under(tls),
            None => host,
        }
    }

    /// The same, with TLS on all connections.
    pub fn under(self, tls: tls::Tls) -> Host {
        let network = tls::TlsNetwork::new(self.network, tls.clone());
        Host { network: Arc::new(network), tls: Some(tls), ..self }
    }
}
