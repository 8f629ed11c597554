//! Which certificates are accepted: chain, dates, revocation, and the one identity inside.
//!
//! Names of hosts in DNS mean nothing here; the identity in the certificate is what counts, so the
//! usual check of the server's name is replaced by one of its SAN URI.

use super::credentials::RevokedSerials;
use crate::PeerIdentity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Whom this side is willing to talk to.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// The dialling side knows whom it called.
    Exactly(PeerIdentity),
    /// The listening side takes any holder of one of these roles.
    Roles(Vec<String>),
}

/// A refusal with a text that says which identity was the trouble.
#[derive(Debug)]
struct IdentityRefused(String);

impl std::fmt::Display for IdentityRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IdentityRefused {}

fn refused(why: String) -> Error {
    CertificateError::Other(OtherError(Arc::new(IdentityRefused(why)))).into()
}

/// The one identity that a certificate carries; none, or more than one, is an error in words.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| format!("the certificate can't be parsed: {e}"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| format!("the certificate's alternative names can't be parsed: {e}"))?;
    let mut identities = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.parse::<PeerIdentity>().ok(),
            _ => None,
        });
    let Some(identity) = identities.next() else {
        return Err("the certificate carries no identity novacron://<role>/<name>".to_owned());
    };
    match identities.next() {
        None => Ok(identity),
        Some(other) => {
            Err(format!("the certificate carries two identities, {identity} and {other}"))
        }
    }
}

/// Serial number of a certificate, as in the revocation list.
fn serial_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::from(CertificateError::BadEncoding))?;
    Ok(parsed.raw_serial().to_vec())
}

/// Checks the peer's certificate, on either side.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) expected: Expected,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revoked: RevokedSerials,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// Chain and purpose of client certificates, as rustls checks them.
    pub(super) client_chain: Arc<dyn ClientCertVerifier>,
}

impl PeerVerifier {
    fn check_holder(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        for certificate in std::iter::once(end_entity).chain(intermediates) {
            if self.revoked.contains(&serial_of(certificate)?) {
                return Err(CertificateError::Revoked.into());
            }
        }
        let found = identity_of(end_entity).map_err(refused)?;
        match &self.expected {
            Expected::Exactly(identity) if *identity == found => Ok(()),
            Expected::Roles(roles) if roles.iter().any(|role| role == found.role()) => Ok(()),
            Expected::Exactly(identity) => {
                Err(refused(format!("the peer is {found}, not {identity}")))
            }
            Expected::Roles(roles) => {
                Err(refused(format!("the peer is {found}; its role is none of {roles:?}")))
            }
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// TLS 1.2 is not even compiled in; a call would be a mistake of ours.
fn no_older_version() -> Error {
    PeerMisbehaved::SelectedUnofferedCipherSuite.into()
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.check_holder(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_older_version())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Which CAs we trust is nobody's business before authentication.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.client_chain.verify_client_cert(end_entity, intermediates, now)?;
        self.check_holder(end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_older_version())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
