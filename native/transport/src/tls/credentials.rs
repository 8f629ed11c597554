//! What a process brings to a handshake: its CA, certificate, key, and the list of revoked serials.

use super::LANE_PROTOCOL;
use super::verify::{Expected, PeerVerifier, identity_of};
use crate::{LinkError, PeerIdentity};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Where the credentials of a process lie.
#[derive(Clone, Debug)]
pub struct CredentialFiles {
    /// PEM certificates of the CA, the only roots that are trusted.
    pub ca: PathBuf,
    /// PEM chain of our own certificate.
    pub certificate: PathBuf,
    /// PEM private key (PKCS #8; Ed25519 or ECDSA P-256), readable by its owner only.
    pub key: PathBuf,
    /// One hexadecimal serial number a line, '#' starts a comment; `None` when nothing is revoked.
    pub revoked: Option<PathBuf>,
}

/// Serial numbers of certificates that are refused although they are signed and in date.
///
/// Shared by everything that was made from the same credentials; a change counts for handshakes
/// from then on. Lanes that are open stay: end them with their control.
#[derive(Clone, Debug, Default)]
pub struct RevokedSerials(Arc<RwLock<HashSet<Vec<u8>>>>);

impl RevokedSerials {
    /// Takes the place of the present list. Fails, and changes nothing, on a line that is neither
    /// a hexadecimal number nor a comment.
    pub fn replace(&self, text: &str) -> Result<(), LinkError> {
        let mut serials = HashSet::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let serial = serial_from_hex(line).ok_or_else(|| {
                LinkError::Credentials(format!("{line:?} in the revocation list is no serial"))
            })?;
            serials.insert(serial);
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = serials;
        Ok(())
    }

    pub(super) fn contains(&self, serial: &[u8]) -> bool {
        let serials = self.0.read().unwrap_or_else(PoisonError::into_inner);
        serials.contains(significant(serial))
    }
}

/// Without leading zeros, which encoders add or not.
fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|&&byte| byte == 0).count();
    &serial[zeros..]
}

fn serial_from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|&c| c != ':').collect();
    let padded = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
    let bytes = padded
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    Some(significant(&bytes).to_vec())
}

/// Credentials of this process, checked and ready for handshakes in both roles.
#[derive(Clone, Debug)]
pub struct Credentials {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    revoked: RevokedSerials,
    identity: PeerIdentity,
}

impl Credentials {
    /// Reads the files. Fails with `Credentials` when one is missing, malformed, does not fit the
    /// others, or when the key can be read by group or others.
    pub fn load(files: &CredentialFiles) -> Result<Self, LinkError> {
        let mode = fs::metadata(&files.key).map_err(unreadable(&files.key))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(LinkError::Credentials(format!(
                "{} may be read by others (mode {:o}); it must be 0600",
                files.key.display(),
                mode & 0o777,
            )));
        }
        let credentials = Self::from_pem(
            &fs::read(&files.ca).map_err(unreadable(&files.ca))?,
            &fs::read(&files.certificate).map_err(unreadable(&files.certificate))?,
            &fs::read(&files.key).map_err(unreadable(&files.key))?,
        )?;
        if let Some(path) = &files.revoked {
            let list = fs::read_to_string(path).map_err(unreadable(path))?;
            credentials.revoked.replace(&list)?;
        }
        Ok(credentials)
    }

    /// The same from PEM texts; nothing is revoked.
    pub fn from_pem(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, LinkError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca, "the CA")? {
            roots.add(root).map_err(|e| LinkError::Credentials(format!("the CA: {e}")))?;
        }
        let chain = certificates(certificate, "the certificate")?;
        let identity = identity_of(&chain[0])
            .map_err(|why| LinkError::Credentials(format!("our own certificate: {why}")))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| LinkError::Credentials(format!("the key: {e}")))?;
        let credentials = Self {
            provider: Arc::new(provider()),
            roots: Arc::new(roots),
            chain,
            key: Arc::new(key),
            revoked: RevokedSerials::default(),
            identity,
        };
        // Certificate and key that do not belong together are found now, not at the first peer.
        credentials.server_config(Vec::new())?;
        Ok(credentials)
    }

    /// Whom our own certificate names.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// The list of revoked serials that handshakes with these credentials obey.
    pub fn revoked(&self) -> &RevokedSerials {
        &self.revoked
    }

    fn verifier(&self, expected: Expected) -> Result<Arc<PeerVerifier>, LinkError> {
        let client_chain = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|e| LinkError::Credentials(format!("the CA: {e}")))?;
        Ok(Arc::new(PeerVerifier {
            expected,
            roots: Arc::clone(&self.roots),
            revoked: self.revoked.clone(),
            algorithms: self.provider.signature_verification_algorithms,
            client_chain,
        }))
    }

    pub(super) fn client_config(
        &self,
        expected: PeerIdentity,
    ) -> Result<Arc<ClientConfig>, LinkError> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| unusable(&e))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(Expected::Exactly(expected))?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| unusable(&e))?;
        config.alpn_protocols = vec![LANE_PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }

    pub(super) fn server_config(&self, roles: Vec<String>) -> Result<Arc<ServerConfig>, LinkError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| unusable(&e))?
            .with_client_cert_verifier(self.verifier(Expected::Roles(roles))?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|e| unusable(&e))?;
        config.alpn_protocols = vec![LANE_PROTOCOL.to_vec()];
        // A resumed session would skip the look at dates and revocation.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }
}

/// aws-lc-rs with the hybrid key agreement first.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn unusable(cause: &rustls::Error) -> LinkError {
    LinkError::Credentials(cause.to_string())
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> LinkError {
    move |cause| LinkError::Credentials(format!("{}: {cause}", path.display()))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| LinkError::Credentials(format!("{what}: {e}")))?;
    if found.is_empty() {
        return Err(LinkError::Credentials(format!("{what}: no certificate in the file")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_compared_as_numbers() {
        let revoked = RevokedSerials::default();
        revoked.replace("# lost laptop\n0A:ff \n\n7\n").expect("a valid list");
        assert!(revoked.contains(&[0x0a, 0xff]));
        assert!(revoked.contains(&[0, 0x0a, 0xff]));
        assert!(revoked.contains(&[7]));
        assert!(!revoked.contains(&[0xff]));
    }

    #[test]
    fn a_broken_list_changes_nothing() {
        let revoked = RevokedSerials::default();
        revoked.replace("07").expect("a valid list");
        for text in ["zz", "0x07", "-1", "é"] {
            assert!(revoked.replace(text).is_err(), "{text}");
        }
        assert!(revoked.contains(&[7]));
    }
}
