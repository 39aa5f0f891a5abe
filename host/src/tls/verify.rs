//! What both sides demand of the other's certificate, beyond what the library checks: that it is of the right kind.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::peer::{Kind, Peer};
use crate::seldom::Seldom;

/// Verifies who connects to us. Whoever is refused is told that, and not why; our log says why.
#[derive(Debug)]
pub(super) struct ClientVerifier(pub(super) Arc<dyn ClientCertVerifier>);

/// Verifies whom we connect to: a node of our authority at the address that was asked for.
#[derive(Debug)]
pub(super) struct ServerVerifier(pub(super) Arc<dyn ServerCertVerifier>);

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A stranger need not know whose certificate would be good.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refuse = |why: &dyn std::fmt::Display| {
            static LINES: Seldom = Seldom::new();
            if let Some(left_out) = LINES.admit() {
                let says = Peer::of(certificate).map(|peer| format!(" that says {peer}")).unwrap_or_default();
                tracing::warn!(left_out, "refused a certificate{says}: {why}");
            }
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        };
        let verified = self.0.verify_client_cert(certificate, intermediates, now);
        let verified = verified.map_err(|error| refuse(&error))?;
        match Peer::of(certificate) {
            Some(_) => Ok(verified),
            None => Err(refuse(&"it names neither a node nor a user")),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(certificate, intermediates, name, stapled, now)?;
        match Peer::of(certificate) {
            Some(Peer { kind: Kind::Node(_), .. }) => Ok(verified),
            _ => Err(CertificateError::Other(OtherError(Arc::new(NotANode))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The certificate is of our authority, but not a node's.
#[derive(Debug)]
struct NotANode;

impl std::fmt::Display for NotANode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the certificate is not a node's")
    }
}

impl std::error::Error for NotANode {}
