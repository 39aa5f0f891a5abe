//! The directory that turns TLS on: the authority's certificate, one's own with its key, and what was revoked.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig, version};
use rustls_pki_types::pem::{self, PemObject};

use super::peer::Peer;
use super::verify::{ClientVerifier, ServerVerifier};

/// The authority's certificate.
pub const CA: &str = "ca.pem";
/// The own certificate.
pub const CERTIFICATE: &str = "cert.pem";
/// The own key.
pub const KEY: &str = "key.pem";
/// The authority's list of certificates that are good no more; need not be there.
pub const REVOKED: &str = "crl.pem";

/// What is wrong with a directory of certificates.
#[derive(Debug)]
pub enum TlsError {
    /// A file that cannot be read.
    Unreadable(PathBuf, io::Error),
    /// A file that is not what it should be.
    Malformed(PathBuf, String),
    /// Others than its owner can read a key.
    Exposed(PathBuf),
    /// The certificate's time is over, or has not come.
    OutOfDate(PathBuf, String),
    /// The certificate is not of the authority beside it, or was revoked.
    NotTrusted(PathBuf, String),
    /// The certificate does not say who its holder is.
    Nameless(PathBuf),
}

impl fmt::Display for TlsError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Unreadable(path, error) => write!(
                out,
                "cannot read {}: {error}; `cairn ca node` and `cairn ca user` make a directory with {CA}, \
                 {CERTIFICATE} and {KEY}",
                path.display()
            ),
            TlsError::Malformed(path, why) => write!(out, "{}: {why}", path.display()),
            TlsError::Exposed(path) => {
                let path = path.display();
                write!(out, "others can read the key {path}; chmod 600 {path}")
            }
            TlsError::OutOfDate(path, why) => {
                write!(
                    out,
                    "{}: {why}; ask for a new one (`cairn ca node` or `cairn ca user`)",
                    path.display()
                )
            }
            TlsError::NotTrusted(path, why) => write!(out, "{}: {why}, by {CA} beside it", path.display()),
            TlsError::Nameless(path) => {
                write!(out, "{} names neither a node nor a user of a cluster", path.display())
            }
        }
    }
}

impl std::error::Error for TlsError {}

/// Everything a directory says, checked.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) peer: Peer,
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    /// For HTTP, where not everybody has a certificate.
    pub(super) http: Arc<ServerConfig>,
    /// Judges those who come.
    pub(super) guests: Arc<dyn ClientCertVerifier>,
}

/// When each file was changed last, as far as that can be told.
pub(super) type Stamp = [Option<(SystemTime, u64, u64)>; 4];

/// The state of the files in `dir`.
pub(super) fn stamp(dir: &Path) -> Stamp {
    [CA, CERTIFICATE, KEY, REVOKED].map(|name| {
        let found = fs::metadata(dir.join(name)).ok()?;
        Some((found.modified().ok()?, found.len(), found.ino()))
    })
}

/// Reads and checks the files in `dir`.
pub(super) fn load(dir: &Path) -> Result<Loaded, TlsError> {
    let (ca_path, certificate_path, key_path) = (dir.join(CA), dir.join(CERTIFICATE), dir.join(KEY));
    let provider = Arc::new(provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&ca_path)? {
        let refused = |error: rustls::Error| TlsError::Malformed(ca_path.clone(), error.to_string());
        roots.add(certificate).map_err(refused)?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&certificate_path)?;
    let key = key(&key_path)?;
    let revoked = revoked(&dir.join(REVOKED))?;

    let bad_list = |error: &dyn fmt::Display| TlsError::Malformed(dir.join(REVOKED), error.to_string());
    let clients = || WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let strict = clients().with_crls(revoked.clone()).allow_unknown_revocation_status().build();
    let strict = strict.map_err(|error| bad_list(&error))?;
    let lenient = clients().with_crls(revoked.clone()).allow_unknown_revocation_status();
    let lenient = lenient.allow_unauthenticated().build().map_err(|error| bad_list(&error))?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let servers = servers.with_crls(revoked).allow_unknown_revocation_status().build();
    let servers = servers.map_err(|error| bad_list(&error))?;

    let peer = check_own(&certificate_path, &chain, &*strict)?;
    let unfit = |error: rustls::Error| TlsError::Malformed(key_path.clone(), error.to_string());
    let guests: Arc<dyn ClientCertVerifier> = Arc::new(ClientVerifier(strict));
    let serve = |verifier: Arc<dyn ClientCertVerifier>| -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unfit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unfit)?;
        // Who resumes is not verified again: a certificate that was revoked would go on being good.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    };
    let mut http = serve(Arc::new(ClientVerifier(lenient)))?;
    http.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server = serve(guests.clone())?;
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unfit)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier(servers)))
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .map_err(unfit)?;
    client.resumption = Resumption::disabled();
    let (client, server, http) = (Arc::new(client), Arc::new(server), Arc::new(http));
    Ok(Loaded { peer, client, server, http, guests })
}

/// AES with 128 bits first: as good as out of reach, and a fifth faster than with 256.
fn provider() -> CryptoProvider {
    let suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    CryptoProvider { cipher_suites: suites, ..ring::default_provider() }
}

/// Whether others will accept the own certificate: better said at the start than found out by being refused.
fn check_own(
    path: &Path,
    chain: &[CertificateDer<'static>],
    verifier: &dyn ClientCertVerifier,
) -> Result<Peer, TlsError> {
    let (own, intermediates) =
        chain.split_first().ok_or_else(|| TlsError::Malformed(path.to_owned(), "no certificate".into()))?;
    let peer = Peer::of(own).ok_or_else(|| TlsError::Nameless(path.to_owned()))?;
    match verifier.verify_client_cert(own, intermediates, UnixTime::now()) {
        Ok(_) => Ok(peer),
        Err(rustls::Error::InvalidCertificate(why)) => Err(match &why {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                TlsError::OutOfDate(path.to_owned(), why.to_string())
            }
            _ => TlsError::NotTrusted(path.to_owned(), format!("the certificate is not good: {why}")),
        }),
        Err(error) => Err(TlsError::Malformed(path.to_owned(), error.to_string())),
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> TlsError + '_ {
    |error| TlsError::Unreadable(path.to_owned(), error)
}

fn malformed(path: &Path) -> impl Fn(pem::Error) -> TlsError + '_ {
    |error| TlsError::Malformed(path.to_owned(), format!("not in PEM format: {error}"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(unreadable(path))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(malformed(path))?;
    if found.is_empty() {
        return Err(TlsError::Malformed(path.to_owned(), "there is no certificate in it".into()));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let mode = fs::metadata(path).map_err(unreadable(path))?.mode();
    // A group may read it: how a daemon gets a key that root owns.
    if mode & 0o007 != 0 {
        return Err(TlsError::Exposed(path.to_owned()));
    }
    let text = fs::read(path).map_err(unreadable(path))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(malformed(path))
}

fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    match fs::read(path) {
        Ok(text) => CertificateRevocationListDer::pem_slice_iter(&text)
            .collect::<Result<Vec<_>, _>>()
            .map_err(malformed(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(TlsError::Unreadable(path.to_owned(), error)),
    }
}
