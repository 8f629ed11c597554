//! The engine itself: rounds and last pass of a session, over one kind of link.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use novacron_guest_process::GuestProcess;
use novacron_session::{Exactness, PlantedFaults, 
    FinishMode, LaneListener, SourceOptions, SourceSession, TargetOptions, TargetSession,
};
use novacron_transport::Link;

use crate::road::Kind;
use crate::support::{PAGE, host};
use crate::{Figure, Settings};

/// Pages that the guest writes before the last pass, and where: what a blackout finds.
const LAST_PAGES: u64 = 500;

/// A guest with data, and the way to its target.
pub(crate) struct Rounds {
    guest: GuestProcess,
    link: Arc<dyn Link>,
    listener: LaneListener,
    kind: Kind,
    data_bytes: u64,
    directory: PathBuf,
    tries: AtomicU64,
}

impl Rounds {
    pub(crate) fn new(settings: &Settings, kind: Kind) -> Self {
        let path = settings.directory.join(format!("source-{}", kind.name()));
        let guest = GuestProcess::start(&path, settings.memory_bytes);
        guest.write_pages(0, settings.data_bytes / PAGE, 4);
        let (link, listener) = kind.open();
        let listener = LaneListener::open(listener).expect("it accepts");
        Self {
            guest,
            link,
            listener,
            kind,
            data_bytes: settings.data_bytes,
            directory: settings.directory.clone(),
            tries: AtomicU64::new(0),
        }
    }

    /// Round 0 with the rounds after it until the engine says that it is done, then a last pass.
    pub(crate) fn measure(&self, lanes: u16, mut tell: impl FnMut(&str, Figure)) {
        let (source, target, _kept) = self.start(lanes);
        source.connect().wait().expect("connected");
        let began = Instant::now();
        source.start_pre_copy().expect("started");
        source.converged().wait().expect("converged");
        let name = format!("{}-{lanes}", self.kind.name());
        tell(&format!("rounds-{name}"), Figure::since(began, self.data_bytes));
        let pages = LAST_PAGES.min(self.data_bytes / PAGE);
        self.guest.write_pages(0, pages, self.tries.load(Ordering::Relaxed));
        let began = Instant::now();
        let finished = source.finish_memory(FinishMode::PreCopy).expect("asked").wait();
        let finished = finished.expect("the last pass");
        let record = target.memory_in().wait().expect("memory is in");
        let took = began.elapsed();
        assert_eq!(record.digest, finished.digest, "both sides hold the same memory");
        tell(&format!("last-pass-{name}"), Figure { took, bytes: None });
        let scan = Duration::from_secs_f64(finished.scan_ms / 1e3);
        tell(&format!("last-scan-{name}"), Figure { took: scan, bytes: None });
        let (ended, wait) = std::sync::mpsc::channel();
        source.end(move || ended.send(()).expect("somebody waits"));
        wait.recv().expect("the session ends");
        target.end();
    }

    fn start(&self, lanes: u16) -> (SourceSession, TargetSession, (GuestProcess, UnixListener)) {
        let number = self.tries.fetch_add(1, Ordering::Relaxed);
        let at = |what: &str| self.directory.join(format!("{}-{number}-{what}", self.kind.name()));
        let (migration, memory_bytes) = (format!("migrate/figures/{number}"), self.guest.bytes());
        let incoming = GuestProcess::start(&at("target"), memory_bytes);
        let device = UnixListener::bind(at("dt")).expect("a socket");
        let target = self.listener.expect(TargetOptions {
            migration: migration.clone(),
            epoch: 1,
            source: host("source"),
            memory_path: incoming.path().to_owned(),
            memory_bytes,
            vmm_pid: incoming.pid(),
            device_state_socket: at("dt"),
            disks: Vec::new(),
            post_copy_allowed: false,
            balloon: false,
            adopted: false,
            exactness: Exactness::Off,
            planted: PlantedFaults::default(),
        });
        let source = SourceSession::open(SourceOptions {
            migration,
            epoch: 1,
            link: self.link.clone(),
            lane_count: lanes,
            memory_path: self.guest.path().to_owned(),
            memory_bytes,
            vmm_pid: self.guest.pid(),
            device_state_socket: at("ds"),
            disk_sockets: Vec::new(),
            socket_uid: None,
            bandwidth_bytes_per_second: 0,
            downtime_budget_ms: 100.0,
            post_copy: false,
            balloon: true,
            deadline_ms: 60_000.0,
            exactness: Exactness::Off,
            planted: PlantedFaults::default(),
        });
        (source.expect("a source"), target.expect("a target"), (incoming, device))
    }
}
