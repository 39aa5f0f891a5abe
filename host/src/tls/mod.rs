//! Mutual TLS: both ends of every connection prove who they are by a certificate of the cluster's own authority.
//!
//! One directory turns it on ([`files`]). It is looked at again while the process runs, so that a certificate is renewed,
//! or another one revoked, without a restart; whoever holds a connection whose certificate is good no more loses it.

pub mod files;
mod network;
pub mod peer;
mod session;
mod verify;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ServerConfig};

pub use files::TlsError;
use files::{Loaded, Stamp};
pub use network::{TlsNetwork, accept_http};
use peer::Peer;
pub use session::Session;

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The certificate of this process, and what it thinks of others'. Clones share it.
#[derive(Debug, Clone)]
pub struct Tls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    stamp: Stamp,
    looked: Instant,
}

impl Tls {
    /// Reads the directory, and checks that others will accept what is in it.
    pub fn load(dir: &Path) -> Result<Tls, TlsError> {
        let stamp = files::stamp(dir);
        let loaded = Arc::new(files::load(dir)?);
        let state = Mutex::new(State { loaded, stamp, looked: Instant::now() });
        Ok(Tls(Arc::new(Shared { dir: dir.to_owned(), state })))
    }

    /// Who this process is.
    pub fn own(&self) -> Peer {
        self.current().peer.clone()
    }

    /// For connections that this process makes.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.current().client.clone()
    }

    /// For connections that this process accepts.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// For HTTP: whoever has no certificate is let in as nobody.
    pub fn http(&self) -> Arc<ServerConfig> {
        self.current().http.clone()
    }

    fn current(&self) -> Arc<Loaded> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let stamp = files::stamp(&self.0.dir);
            if stamp != state.stamp {
                self.renew(&mut state, stamp);
            }
        }
        state.loaded.clone()
    }

    fn renew(&self, state: &mut State, stamp: Stamp) {
        // Looked at again only when it changes again, so that a mistake is told once.
        state.stamp = stamp;
        match files::load(&self.0.dir) {
            Ok(loaded) => {
                tracing::info!(dir = %self.0.dir.display(), "certificates read again");
                state.loaded = Arc::new(loaded);
            }
            Err(error) => tracing::error!(%error, "new certificates are not used"),
        }
    }
}

/// Refuses to listen where strangers come by without asking them who they are, unless that is wanted. Each address has
/// the name of its setting.
pub fn check_exposure(
    tls: Option<&Path>,
    insecure: bool,
    listening: &[(&str, Option<SocketAddr>)],
) -> Result<(), String> {
    if tls.is_some() || insecure {
        return Ok(());
    }
    let exposed = listening.iter().filter_map(|(name, address)| Some((name, (*address)?)));
    match exposed.into_iter().find(|(_, address)| !address.ip().to_canonical().is_loopback()) {
        None => Ok(()),
        Some((name, address)) => Err(format!(
            "{name}: without TLS, whoever reaches {address} can read and change everything; give the directory of a \
             certificate (tls, see `cairn ca`), or say `insecure = true` (--insecure) if nobody else can reach it"
        )),
    }
}

/// Says aloud that nobody is asked who they are.
pub fn warn_insecure() {
    tracing::warn!(
        "INSECURE: TLS is off, so whoever reaches this process is believed to be who they say; see `cairn ca` and the \
         setting tls"
    );
}
