//! Two guests, TLS between them, and a session on each side.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod thin_link;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use novacron_guest_process::GuestProcess;
use novacron_session::{
    Exactness, LaneListener, PlantedFaults, SourceOptions, SourceSession, TargetOptions, TargetSession, journal_path,
};
use novacron_transport::PeerIdentity;
use novacron_transport::tls::{Acceptor, AcceptorOptions, Connector, Credentials, SocketOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

pub const PAGE: u64 = 4096;
static NEXT: AtomicU64 = AtomicU64::new(0);

/// CA, certificate and key, PEM.
pub type Pems = [String; 3];

/// Credentials of two hosts of one CA.
pub fn pems() -> [Pems; 2] {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = params.self_signed(&ca_key).expect("a CA").pem();
    let issuer = Issuer::new(params, ca_key);
    ["source", "target"].map(|name| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        let uri = format!("novacron://host/{name}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().expect("ASCII"))];
        let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
        [ca.clone(), certificate, key.serialize_pem()]
    })
}

/// The same, read.
pub fn credentials() -> [Credentials; 2] {
    pems().each_ref().map(credentials_of)
}

pub fn credentials_of([ca, certificate, key]: &Pems) -> Credentials {
    Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).expect("fits")
}

pub fn host(name: &str) -> PeerIdentity {
    PeerIdentity::host(name).expect("a valid name")
}

pub struct Wanted {
    pub bytes: u64,
    pub lanes: u16,
    pub post_copy: bool,
    pub bandwidth: u64,
    pub budget_ms: f64,
    pub deadline_ms: f64,
    /// Another way to the target than the straight one.
    pub way: Option<std::net::SocketAddr>,
    pub exactness: Exactness,
    pub planted: PlantedFaults,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            lanes: 2,
            post_copy: false,
            bandwidth: 0,
            budget_ms: 100.0,
            deadline_ms: 60_000.0,
            way: None,
            exactness: Exactness::default(),
            planted: PlantedFaults::default(),
        }
    }
}

/// A source guest and what is needed to move it more than once.
pub struct Lab {
    pub guest: GuestProcess,
    pub listener: LaneListener,
    pub pems: [Pems; 2],
    credentials: [Credentials; 2],
    port: std::net::SocketAddr,
    name: String,
}

/// One try.
pub struct Try {
    pub source: SourceSession,
    pub target: TargetSession,
    pub incoming: GuestProcess,
    pub device_source: PathBuf,
    pub device_target: UnixListener,
    pub source_options: SourceOptions,
    pub target_options: TargetOptions,
    paths: Vec<PathBuf>,
}

impl Lab {
    pub fn new(bytes: u64) -> Self {
        Self::with_disk(bytes, None)
    }

    /// A guest that can read a disk.
    pub fn with_disk(bytes: u64, disk: Option<&std::fs::File>) -> Self {
        let name = format!(
            "/dev/shm/novacron-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let guest = GuestProcess::start_with_disk(
            &PathBuf::from(format!("{name}-source")), bytes, disk,
        );
        let pems = pems();
        let credentials = pems.each_ref().map(credentials_of);
        let address = "127.0.0.1:0".parse().expect("an address");
        let acceptor = Acceptor::bind(address, &credentials[1], AcceptorOptions::default());
        let acceptor = acceptor.expect("a listener");
        let port = acceptor.address();
        let listener = LaneListener::open(Arc::new(acceptor)).expect("it accepts");
        Self { guest, listener, pems, credentials, port, name }
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.port
    }

    pub fn connector(&self) -> Connector {
        self.connector_to(self.port)
    }

    /// The target behind an address that leads to it.
    pub fn connector_to(&self, address: std::net::SocketAddr) -> Connector {
        let target = host("target");
        Connector::new(address, &self.credentials[0], &target, SocketOptions::default())
            .expect("a connector")
    }

    pub fn source_options(&self, wanted: &Wanted, number: u64) -> SourceOptions {
        SourceOptions {
            migration: format!("migrate/test/{number}"),
            epoch: 1,
            link: Arc::new(self.connector_to(wanted.way.unwrap_or(self.port))),
            lane_count: wanted.lanes,
            memory_path: self.guest.path().to_owned(),
            memory_bytes: wanted.bytes,
            vmm_pid: self.guest.pid(),
            device_state_socket: PathBuf::from(format!("{}-{number}-ds", self.name)),
            disk_sockets: Vec::new(),
            socket_uid: None,
            bandwidth_bytes_per_second: wanted.bandwidth,
            downtime_budget_ms: wanted.budget_ms,
            post_copy: wanted.post_copy,
            balloon: true,
            deadline_ms: wanted.deadline_ms,
            exactness: wanted.exactness,
            planted: wanted.planted,
        }
    }

    pub fn start(&self, wanted: &Wanted) -> Try {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let incoming_path = PathBuf::from(format!("{}-{number}-target", self.name));
        let incoming = GuestProcess::start(&incoming_path, wanted.bytes);
        let device_path = PathBuf::from(format!("{}-{number}-dt", self.name));
        let device_target = UnixListener::bind(&device_path).expect("a socket");
        let target_options = TargetOptions {
            migration: format!("migrate/test/{number}"),
            epoch: 1,
            source: host("source"),
            memory_path: incoming_path.clone(),
            memory_bytes: wanted.bytes,
            vmm_pid: incoming.pid(),
            device_state_socket: device_path.clone(),
            disks: Vec::new(),
            post_copy_allowed: wanted.post_copy,
            balloon: true,
            adopted: false,
            exactness: wanted.exactness,
            planted: wanted.planted,
        };
        let target = self.listener.expect(target_options.clone()).expect("a target");
        let source_options = self.source_options(wanted, number);
        let device_source = source_options.device_state_socket.clone();
        let source = SourceSession::open(source_options.clone()).expect("a source");
        let paths = vec![device_path, journal_path(&incoming_path)];
        Try {
            source, target, incoming, device_source, device_target, source_options, target_options,
            paths,
        }
    }
}

impl Try {
    pub fn device_client(&self) -> UnixStream {
        UnixStream::connect(&self.device_source).expect("the device socket")
    }

    pub fn end_source(&self) -> Duration {
        let began = Instant::now();
        let (sender, receiver) = std::sync::mpsc::channel();
        self.source.end(move || sender.send(()).expect("the test waits"));
        receiver.recv_timeout(Duration::from_secs(5)).expect("the session ends");
        began.elapsed()
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        self.paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// Names the first page that differs.
pub fn assert_equal(source: &GuestProcess, target: &GuestProcess) {
    let (a, b) = (source.contents(), target.contents());
    let differing: Vec<usize> = a
        .chunks(PAGE as usize)
        .zip(b.chunks(PAGE as usize))
        .enumerate()
        .filter(|(_, (one, other))| one != other)
        .map(|(page, _)| page)
        .collect();
    let first = &differing[..differing.len().min(8)];
    assert!(differing.is_empty(), "{} pages differ, first {first:?}", differing.len());
}

pub fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
