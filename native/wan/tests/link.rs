//! The whole program between two namespaces of its own: round trips and throughput. Needs root.

use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const A: &str = "198.18.2.101";
const B: &str = "198.18.2.102";

struct Wan {
    namespaces: [String; 2],
    program: Child,
    output: BufReader<std::process::ChildStdout>,
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip");
    assert!(status.success(), "ip {arguments:?}");
}

/// None, with a word why, where namespaces can't be made.
fn start(name: &str, keys: &[&str]) -> Option<Wan> {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 || !std::path::Path::new("/dev/net/tun").exists() {
        println!("skipped: needs root and /dev/net/tun");
        return None;
    }
    let namespaces = ["a", "b"].map(|end| format!("nvwan-{name}-{end}-{}", std::process::id()));
    for namespace in &namespaces {
        ip(&["netns", "add", namespace]);
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_novacron-wan"))
        .args([format!("ns_a={}", namespaces[0]), format!("ns_b={}", namespaces[1])])
        .args([format!("ip_a={A}"), format!("ip_b={B}")])
        .args(keys)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the emulator");
    let mut output = BufReader::new(program.stdout.take().expect("its output"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert!(line.contains("ready"), "{line}");
    Some(Wan { namespaces, program, output })
}

impl Wan {
    /// Runs `work` in a thread inside one of the namespaces.
    fn inside<T: Send + 'static>(
        &self,
        end: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespaces[end])).expect("there");
        thread::spawn(move || {
            // SAFETY: an open namespace; only this thread moves.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0);
            work()
        })
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        let (told, tell) = std::sync::mpsc::channel();
        let listening = self.inside(1, move || {
            let listener = TcpListener::bind((B, 0)).expect("a listener");
            told.send(listener.local_addr().expect("an address").port()).expect("heard");
            listener.accept().expect("a connection").0
        });
        let port = tell.recv().expect("a port");
        let near = self.inside(0, move || TcpStream::connect((B, port)).expect("connected"));
        let (near, far) = (near.join().expect("near"), listening.join().expect("far"));
        near.set_nodelay(true).expect("set");
        far.set_nodelay(true).expect("set");
        (near, far)
    }

    /// Ends the emulator; its last line.
    fn finish(mut self) -> Value {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.program.id() as i32, libc::SIGTERM) };
        let mut line = String::new();
        self.output.read_to_string(&mut line).expect("the report");
        assert!(self.program.wait().expect("ended").success());
        serde_json::from_str(line.lines().last().expect("a line")).expect("JSON")
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

#[test]
fn round_trips_take_what_was_asked() {
    let Some(wan) = start("rtt", &["delay=25", "rt=10", "slack=100"]) else { return };
    let (mut near, mut far) = wan.pair();
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        near.write_all(&[1]).expect("sent");
        far.read_exact(&mut [0]).expect("received");
        far.write_all(&[1]).expect("sent back");
        near.read_exact(&mut [0]).expect("received back");
        times.push(began.elapsed());
    }
    times.sort();
    let median = times[10];
    println!("median round trip {median:?} where 50 ms are set");
    drop((near, far));
    let report = wan.finish();
    println!("{report}");
    // Within 5 %, unless the machine kept the emulator from being punctual, which it then says.
    let late = Duration::from_micros(report["ab"]["lateUsMax"].as_u64().expect("a count"));
    assert!(median >= Duration::from_micros(49_900), "{median:?}");
    assert!(median < Duration::from_micros(52_500) + late, "{median:?}, late {late:?}");
    assert_eq!(report["ab"]["malformed"], 0);
    assert_eq!(report["ab"]["writeErrors"], 0);
}

#[test]
fn throughput_is_what_was_asked() {
    let keys = ["delay=5", "rate=80", "queue=400000", "rt=10", "slack=250"];
    let Some(wan) = start("rate", &keys) else { return };
    let (mut near, mut far) = wan.pair();
    let sending = thread::spawn(move || {
        let piece = vec![0; 1 << 16];
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            near.write_all(&piece).expect("sent");
        }
    });
    let mut buffer = vec![0; 1 << 16];
    // One second to get going, then two that count.
    let (mut began, mut total) = (Instant::now() + Duration::from_secs(1), 0);
    while let Ok(count @ 1..) = far.read(&mut buffer) {
        if Instant::now() < began {
            continue;
        }
        if total == 0 {
            began = Instant::now();
        }
        total += count;
        if began.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    let megabits = total as f64 * 8e-6 / began.elapsed().as_secs_f64();
    while matches!(far.read(&mut buffer), Ok(1..)) {}
    sending.join().expect("the sender");
    let report = wan.finish();
    println!("{megabits:.1} Mbit/s of payload where 80 with headers are set: {report}");
    // 52 of 1500 bytes are headers: 77.2 Mbit/s of payload at best.
    assert!((73.0..78.5).contains(&megabits), "{megabits}");
    assert!(report["ab"]["queueBytesMax"].as_u64().expect("a count") <= 400_000);
}

#[test]
fn a_wrong_name_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_novacron-wan"))
        .args(["ns_a=no-such-namespace", "ns_b=neither"])
        .output()
        .expect("run");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-namespace"));
    let output =
        Command::new(env!("CARGO_BIN_EXE_novacron-wan")).arg("speed=9").output().expect("run");
    assert_eq!(output.status.code(), Some(2));
}
