//! Whether whoever was let in would be let in now.
//!
//! Certificates are taken back and end while connections are open. So a connection's certificate is verified again when
//! something is read from it, if the own certificates or the list of revoked ones were read again meanwhile, or if it was
//! last verified a while ago.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, UnixTime};

use super::Tls;
use super::files::Loaded;

/// How long a certificate is believed without another look.
const BELIEVED: Duration = Duration::from_secs(60);

/// Looks after one connection that was accepted.
#[derive(Debug)]
pub(super) struct Watch {
    tls: Tls,
    loaded: Arc<Loaded>,
    verified: Instant,
}

impl Watch {
    /// Over a connection whose certificate is being verified now.
    pub fn new(tls: &Tls) -> Watch {
        Watch { tls: tls.clone(), loaded: tls.current(), verified: Instant::now() }
    }

    /// Refuses a certificate that is good no more. Whoever was let in without one stays.
    pub fn check(&mut self, chain: Option<&[CertificateDer<'_>]>) -> io::Result<()> {
        let loaded = self.tls.current();
        if Arc::ptr_eq(&loaded, &self.loaded) && self.verified.elapsed() < BELIEVED {
            return Ok(());
        }
        (self.loaded, self.verified) = (loaded, Instant::now());
        let Some((certificate, intermediates)) = chain.and_then(<[_]>::split_first) else { return Ok(()) };
        match self.loaded.guests.verify_client_cert(certificate, intermediates, UnixTime::now()) {
            Ok(_) => Ok(()),
            // The verifier has logged why.
            Err(_) => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the certificate of the other side is good no more",
            )),
        }
    }
}
