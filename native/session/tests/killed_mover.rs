//! The target's mover as a process of its own that dies by `kill -9`, again and again.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use novacron_guest_process::GuestProcess;
use novacron_session::{Exactness, PlantedFaults, 
    FinishMode, LaneListener, SourceSession, TargetOptions, TargetSession, journal_path,
};
use novacron_transport::tls::{Acceptor, AcceptorOptions};
use support::{Lab, Wanted, assert_equal, credentials_of, host, until};

const BYTES: u64 = 64 << 20;
const PAGES: u64 = 9000;
const MIGRATION: &str = "migrate/test/9000";

/// What the process is told, by its environment.
struct Place {
    memory: PathBuf,
    /// The process keeps its state and its missing pages here.
    told: PathBuf,
    vmm: i32,
    address: SocketAddr,
}

fn mover(lab: &Lab, place: &Place, mode: &str) -> Child {
    drop(std::fs::remove_file(&place.told));
    let [ca, certificate, key] = &lab.pems[1];
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "the_mover_itself"])
        .envs([("MOVER_CA", ca), ("MOVER_CERT", certificate), ("MOVER_KEY", key)])
        .env("MOVER_MODE", mode)
        .env("MOVER_MEMORY", &place.memory)
        .env("MOVER_TOLD", &place.told)
        .env("MOVER_VMM", place.vmm.to_string())
        .env("MOVER_ADDRESS", place.address.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("a process");
    until("the mover listens", || told(&place.told).is_some());
    child
}

/// (state, missing pages) as the mover has told them last.
fn told(path: &Path) -> Option<(String, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let (state, missing) = text.trim().split_once(' ')?;
    Some((state.to_owned(), missing.parse().ok()?))
}

#[test]
#[ignore = "not a test: a process of the next one"]
fn the_mover_itself() {
    let said = |name: &str| std::env::var(name).expect("started by the test of kill -9");
    let pems = ["MOVER_CA", "MOVER_CERT", "MOVER_KEY"].map(said);
    let address = said("MOVER_ADDRESS").parse().expect("an address");
    let acceptor = Acceptor::bind(address, &credentials_of(&pems), AcceptorOptions::default());
    let listener = LaneListener::open(Arc::new(acceptor.expect("the port is free"))).expect("open");
    let options = TargetOptions {
        migration: MIGRATION.into(),
        epoch: 1,
        source: host("source"),
        memory_path: said("MOVER_MEMORY").into(),
        memory_bytes: BYTES,
        vmm_pid: said("MOVER_VMM").parse().expect("a process id"),
        device_state_socket: "/nowhere".into(),
        disks: Vec::new(),
        post_copy_allowed: true,
        balloon: false,
        adopted: false,
        exactness: Exactness::Off,
        planted: PlantedFaults::default(),
    };
    let session: TargetSession = match said("MOVER_MODE").as_str() {
        "expect" => listener.expect(options),
        _ => listener.resume(options),
    }
    .expect("a session");
    let path = PathBuf::from(said("MOVER_TOLD"));
    let fresh = path.with_extension("new");
    loop {
        let look = session.snapshot();
        let text = format!("{} {}\n", look.state, look.missing_pages);
        std::fs::write(&fresh, text).expect("told");
        std::fs::rename(&fresh, &path).expect("told");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn kill_9_of_the_targets_mover_costs_no_page() {
    let lab = Lab::new(BYTES);
    let name = format!("/dev/shm/novacron-test-{}-killed", std::process::id());
    let (memory, told_path) = (PathBuf::from(&name), PathBuf::from(format!("{name}-told")));
    let incoming = GuestProcess::start(&memory, BYTES);
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let place = Place { memory, told: told_path, vmm: incoming.pid(), address };
    let mut process = mover(&lab, &place, "expect");
    let wanted = Wanted {
        post_copy: true, bandwidth: 12_000_000, way: Some(address), ..Wanted::default()
    };
    let source = SourceSession::open(lab.source_options(&wanted, 9000)).expect("a source");
    source.connect().wait().expect("connected");
    source.post_copy_now().expect("consent");
    source.start_pre_copy().expect("started");
    source.converged().wait().expect("an empty guest converges");
    lab.guest.write_pages(0, PAGES, 7);
    let asked = source.finish_memory(FinishMode::PostCopy).expect("asked");
    let mut missing = asked.wait().expect("the list").missing_pages;
    until("post-copy", || told(&place.told).is_some_and(|(state, _)| state == "post-copy"));
    let whole = source.serve_post_copy();
    for death in 1..=4 {
        until("some pages", || told(&place.told).is_some_and(|(_, left)| left + 700 < missing));
        // What the guest writes into a page that has arrived is not to come back as it was.
        let own = death * 10;
        assert_eq!(incoming.read_page(own), lab.guest.read_page(own));
        incoming.write_pages(own, 1, 999);
        lab.guest.write_pages(own, 1, 999);
        process.kill().expect("kill -9");
        process.wait().expect("reaped");
        process = mover(&lab, &place, "resume");
        until("it goes on", || told(&place.told).is_some_and(|(state, _)| state == "post-copy"));
        missing = told(&place.told).expect("told").1;
        let far = PAGES - 50 * death;
        assert_eq!(incoming.read_page(far), lab.guest.read_page(far), "page {far}");
    }
    // Both digests are compared at the source; the frozen image has the guest's later writes only
    // in pages that had gone before.
    whole.wait().expect("both sides agree");
    assert_equal(&lab.guest, &incoming);
    process.kill().expect("the last one goes");
    process.wait().expect("reaped");
    let fresh = place.told.with_extension("new");
    for path in [place.told.clone(), fresh, journal_path(&place.memory)] {
        drop(std::fs::remove_file(path));
    }
}
