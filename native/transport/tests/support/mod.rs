//! A small CA and the certificates that the tests of this crate need.

#![allow(dead_code, reason = "each test binary uses its own part")]

use novacron_transport::tls::{Acceptor, AcceptorOptions, Connector, Credentials, SocketOptions};
use novacron_transport::{Incoming, Lane, Link, Listener, PeerIdentity};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SerialNumber,
    SignatureAlgorithm,
};
use std::time::Duration;
use time::OffsetDateTime;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// A certificate authority of the tests.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a test wants to be wrong, or different, with a certificate.
pub(crate) struct Wanted {
    pub(crate) uris: Vec<String>,
    pub(crate) serial: u64,
    pub(crate) expired: bool,
    pub(crate) algorithm: &'static SignatureAlgorithm,
}

impl Wanted {
    pub(crate) fn host(name: &str) -> Self {
        Self {
            uris: vec![format!("novacron://host/{name}")],
            serial: 1,
            expired: false,
            algorithm: &PKCS_ED25519,
        }
    }

    pub(crate) fn p256(mut self) -> Self {
        self.algorithm = &PKCS_ECDSA_P256_SHA256;
        self
    }
}

/// PEM texts of one holder.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(&self, wanted: &Wanted) -> Issued {
        let key = KeyPair::generate_for(wanted.algorithm).expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.serial_number = Some(SerialNumber::from(wanted.serial));
        params.subject_alt_names = wanted
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII")))
            .collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(2);
        params.not_after = now + time::Duration::days(if wanted.expired { -1 } else { 1 });
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    pub(crate) fn credentials(&self, wanted: &Wanted) -> Credentials {
        let issued = self.issue(wanted);
        Credentials::from_pem(
            self.pem.as_bytes(),
            issued.certificate.as_bytes(),
            issued.key.as_bytes(),
        )
        .expect("credentials that fit together")
    }
}

/// A listener of host-b and a connector of host-a that expects it.
pub(crate) fn tls_pair(options: AcceptorOptions, socket: SocketOptions) -> (Connector, Acceptor) {
    let authority = Authority::new();
    let source = authority.credentials(&Wanted::host("host-a"));
    let target = authority.credentials(&Wanted::host("host-b").p256());
    let any_port = "127.0.0.1:0".parse().expect("an address");
    let acceptor = Acceptor::bind(any_port, &target, options).expect("a listener");
    let host_b = PeerIdentity::host("host-b").expect("a name");
    let connector =
        Connector::new(acceptor.address(), &source, &host_b, socket).expect("a connector");
    (connector, acceptor)
}

/// Both ends of a new lane, the dialling one first.
pub(crate) fn open(link: &dyn Link, listener: &dyn Listener, hello: &[u8]) -> (Lane, Incoming) {
    let lane = link.open(hello, TIMEOUT).expect("an open lane");
    (lane, listener.accept(TIMEOUT).expect("an accepted lane"))
}

/// Deterministic bytes (splitmix64), different for each seed.
pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// A seed for this run; printed by the tests that use it.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("NOVACRON_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| OffsetDateTime::now_utc().unix_timestamp_nanos() as u64)
}
