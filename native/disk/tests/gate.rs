//! The gate between real QEMU programs: qemu-io and qemu-img as clients, qemu-nbd as the server.

use novacron_disk::{
    GateCounts, GateError, GateOptions, HeldBlocks, NbdGate, Stream, read_blocks,
};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().expect(program)
}

fn run_well(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text} {errors}");
    text
}

fn has_qemu() -> bool {
    let has = ["qemu-nbd", "qemu-io", "qemu-img"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok());
    if !has {
        println!("skipped: qemu-nbd, qemu-io or qemu-img is missing");
    }
    has
}

/// A target image behind qemu-nbd, and a gate in front of it that listens on a socket.
struct Bench {
    directory: PathBuf,
    server: Child,
    gate: NbdGate,
    epoch: Arc<AtomicU64>,
    ends: Arc<Mutex<Vec<Result<(), GateError>>>>,
}

impl Bench {
    fn new(format: &str, size: &str, options: GateOptions) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("novacron-disk-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let image = directory.join("target.img").display().to_string();
        run_well("qemu-img", &["create", "-q", "-f", format, &image, size]);
        let socket = directory.join("server.sock");
        let server = Command::new("qemu-nbd")
            .args(["-t", "-e", "8", "-f", format, "--discard=unmap", "-k"])
            .arg(&socket)
            .arg(&image)
            .spawn()
            .expect("qemu-nbd");
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < until, "qemu-nbd does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        let bench = Self {
            directory,
            server,
            gate: NbdGate::new(1, options),
            epoch: Arc::new(AtomicU64::new(1)),
            ends: Arc::default(),
        };
        bench.listen();
        bench
    }

    fn listen(&self) {
        let listener = UnixListener::bind(self.directory.join("gate.sock")).expect("a socket");
        let (gate, epoch, ends) = (self.gate.clone(), self.epoch.clone(), self.ends.clone());
        let server = self.directory.join("server.sock");
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (gate, epoch, ends) = (gate.clone(), epoch.clone(), ends.clone());
                let Ok(server) = UnixStream::connect(&server) else { return };
                thread::spawn(move || {
                    let client = Stream::from_unix(client).expect("a client");
                    let server = Stream::from_unix(server).expect("a server");
                    let ended = gate.serve(epoch.load(Ordering::SeqCst), client, server);
                    ends.lock().expect("ends").push(ended);
                });
            }
        });
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.directory.join("gate.sock").display())
    }

    fn image(&self) -> String {
        self.directory.join("target.img").display().to_string()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.join("gate.sock")).expect("the gate");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
    }

    fn qemu_io(&self, commands: &[&str]) -> Output {
        let uri = self.uri();
        let mut arguments = vec!["-f", "raw"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        run("qemu-io", &arguments)
    }

    /// Waits for as many connections to have ended.
    fn await_ends(&self, count: usize) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ends = self.ends.lock().expect("ends");
            if ends.len() >= count {
                return ends.iter().map(|end| format!("{end:?}")).collect();
            }
            drop(ends);
            assert!(Instant::now() < until, "connections do not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.gate.close();
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn source_image(path: &Path, megabytes: usize, seed: u64) {
    let mut state = seed;
    let mut bytes = vec![0_u8; megabytes << 20];
    for (number, block) in bytes.chunks_mut(65_536).enumerate() {
        if number % 3 == 0 {
            continue;
        }
        for chunk in block.chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
    }
    fs::write(path, bytes).expect("a source image");
}

#[test]
fn converted_images_are_equal_counted_and_flushed() {
    if !has_qemu() {
        return;
    }
    for format in ["raw", "qcow2"] {
        let options = GateOptions { flush_every_bytes: Some(4 << 20), ..GateOptions::TARGET };
        let bench = Bench::new(format, "64M", options);
        let source = bench.directory.join("source.img");
        source_image(&source, 64, 7);
        let source = source.display().to_string();
        let uri = bench.uri();
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri];
        let began = Instant::now();
        run_well("qemu-img", &convert);
        println!("{format}: 64 MiB in {} ms", began.elapsed().as_millis());
        bench.await_ends(1);
        let counts = bench.gate.counts();
        println!("{format}: {counts:?}");
        assert!(counts.writes_sent > 10 && counts.writes_completed == counts.writes_sent);
        assert_eq!((counts.writes_failed, counts.writes_in_flight, counts.writes_lost), (0, 0, 0));
        assert!(counts.write_bytes > 40 << 20, "two thirds of it are data");
        // Every 4 MiB, but never two at once: a busy disk merges them.
        assert!(counts.flushes >= 1, "{counts:?}");
        // The client has left; the gate still flushes.
        let flushed = bench.gate.flush(PATIENCE).expect("flushed");
        assert_eq!((flushed.io_sequence, flushed.complete), (counts.writes_completed, true));
        let image = bench.image();
        let compare = ["compare", "-U", "-f", "raw", "-F", format, &source, &image];
        assert!(run_well("qemu-img", &compare).contains("identical"));
    }
}

#[test]
fn a_copy_that_begins_anew_sends_only_what_the_image_does_not_hold() {
    if !has_qemu() {
        return;
    }
    for format in ["raw", "qcow2"] {
        let bench = Bench::new(format, "64M", GateOptions::TARGET);
        let path = bench.directory.join("source.img");
        source_image(&path, 64, 7);
        let source = path.display().to_string();
        let uri = bench.uri();
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri];
        run_well("qemu-img", &convert);
        let first = bench.gate.counts();
        // What a guest writes while nobody copies: data, and a hole that was data.
        let mut bytes = fs::read(&path).expect("the source");
        for block in [1, 200, 700] {
            bytes[block * 65_536..][..65_536].fill(0xA7);
        }
        bytes[400 * 65_536..401 * 65_536].fill(0);
        fs::write(&path, bytes).expect("the source");

        assert!(bench.gate.restart(PATIENCE).expect("nothing is in flight"), "it has written");
        let counts = bench.gate.counts();
        assert_eq!((counts.writes_completed, counts.writes_digest), (0, 0));
        let mut held = HeldBlocks::default();
        let server = UnixStream::connect(bench.directory.join("server.sock")).expect("a server");
        let listed = read_blocks(server, "", |block, digest| {
            held.put(block, digest);
            Ok(())
        });
        listed.expect("the image is read");
        bench.gate.pass_only_news(held);
        run_well("qemu-img", &convert);
        let again = bench.gate.counts().write_bytes - first.write_bytes;
        println!("{format}: {} bytes, then {again}", first.write_bytes);
        assert!((3 * 65_536..20 * 65_536).contains(&again), "{again} bytes came again");
        bench.await_ends(2);
        bench.gate.flush(PATIENCE).expect("flushed");
        let image = bench.image();
        let compare = ["compare", "-U", "-f", "raw", "-F", format, &source, &image];
        assert!(run_well("qemu-img", &compare).contains("identical"));
    }
}

#[test]
fn every_kind_of_request_passes() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("qcow2", "32M", GateOptions::TARGET);
    let output = bench.qemu_io(&[
        "write -P 0x5a 0 1M",
        "write -z 1M 64k",
        "discard 2M 64k",
        "flush",
        "aio_write -P 0x11 4M 8M",
        "aio_write -P 0x22 16M 8M",
        "aio_flush",
        "read -P 0x5a 0 1M",
        "read -P 0 1M 64k",
        "read -P 0x11 4M 8M",
        "read -P 0x22 16M 8M",
        "map",
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains("fail"), "{text}");
    bench.await_ends(1);
    let counts = bench.gate.counts();
    assert!(counts.writes_completed >= 5, "{counts:?}");
    assert_eq!(counts.writes_sent, counts.writes_completed);
    assert_eq!(counts.write_bytes, 17 << 20);
}

#[test]
fn tap_and_gate_count_the_same() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("raw", "32M", GateOptions::TARGET);
    let tap = NbdGate::new(1, GateOptions::TAP);
    let listener = UnixListener::bind(bench.directory.join("tap.sock")).expect("a socket");
    let (tapped, lane) = (tap.clone(), bench.connect());
    lane.set_read_timeout(None).expect("no time-out");
    let serving = thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        let client = Stream::from_unix(client).expect("a client");
        tapped.serve(1, client, Stream::from_unix(lane).expect("a lane"))
    });
    let uri = format!("nbd+unix:///?socket={}", bench.directory.join("tap.sock").display());
    run_well("qemu-io", &["-f", "raw", "-c", "write 0 4M", "-c", "write -z 8M 1M", &uri]);
    serving.join().expect("the tap").expect("a clean end");
    assert_eq!(bench.await_ends(1), ["Ok(())"]);
    let (ours, theirs) = (tap.counts(), bench.gate.counts());
    assert!(ours.writes_completed >= 2);
    assert_eq!(ours.writes_completed, theirs.writes_completed);
    assert!(bench.gate.flush(PATIENCE).expect("flushed").complete);
    assert!(matches!(tap.flush(PATIENCE), Err(GateError::NotConnected)));
}

/// A lane as one end of a gate's connection.
fn stream_of(lane: novacron_transport::Lane) -> Stream {
    let novacron_transport::Lane { reader, writer, control } = lane;
    Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        cut: Box::new(move || control.shutdown()),
    }
}

#[test]
fn a_lane_carries_it_from_tap_to_gate() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("raw", "64M", GateOptions::TARGET);
    let (near, far) = novacron_transport::memory::lane_pair();
    let tap = NbdGate::new(1, GateOptions::TAP);
    let listener = UnixListener::bind(bench.directory.join("tap.sock")).expect("a socket");
    let tapping = thread::spawn({
        let tap = tap.clone();
        move || {
            let (client, _) = listener.accept().expect("a client");
            tap.serve(1, Stream::from_unix(client).expect("a client"), stream_of(near))
        }
    });
    let gating = thread::spawn({
        let gate = bench.gate.clone();
        let server = UnixStream::connect(bench.directory.join("server.sock")).expect("a server");
        move || gate.serve(1, stream_of(far), Stream::from_unix(server).expect("a server"))
    });
    let source = bench.directory.join("source.img");
    source_image(&source, 64, 11);
    let (source, image) = (source.display().to_string(), bench.image());
    let uri = format!("nbd+unix:///?socket={}", bench.directory.join("tap.sock").display());
    run_well("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]);
    tapping.join().expect("the tap").expect("a clean end");
    gating.join().expect("the gate").expect("a clean end");
    assert_eq!(tap.counts().writes_completed, bench.gate.counts().writes_completed);
    assert!(bench.gate.flush(PATIENCE).expect("flushed").complete);
    let compare = ["compare", "-U", "-f", "raw", "-F", "raw", &source, &image];
    assert!(run_well("qemu-img", &compare).contains("identical"));
}

/// Hands each piece on and returns only when the other side has long acted on it.
struct Lingering(Box<dyn Write + Send>);

impl Write for Lingering {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()?;
        thread::sleep(Duration::from_millis(100));
        Ok(())
    }
}

/// Once failed in one run of many: the far side acts on a disconnect by cutting the lane, which the
/// tap's reply thread may see before its request thread is back from sending.
#[test]
fn a_lane_that_is_cut_upon_the_disconnect_is_a_clean_end() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("raw", "8M", GateOptions::TARGET);
    let (near, far) = novacron_transport::memory::lane_pair();
    let mut near = stream_of(near);
    near.writer = Box::new(Lingering(near.writer));
    let (mut client, kept) = UnixStream::pair().expect("a pair");
    let tapping = thread::spawn(move || {
        let tap = NbdGate::new(1, GateOptions::TAP);
        tap.serve(1, Stream::from_unix(kept).expect("a client"), near)
    });
    let gating = thread::spawn({
        let gate = bench.gate.clone();
        let server = UnixStream::connect(bench.directory.join("server.sock")).expect("a server");
        move || gate.serve(1, stream_of(far), Stream::from_unix(server).expect("a server"))
    });
    negotiate(&mut client);
    client.write_all(&request(2, 1, 0, 0)).expect("a disconnect");
    gating.join().expect("the gate").expect("a clean end");
    tapping.join().expect("the tap").expect("a clean end");
}

#[test]
fn a_raised_gate_refuses_writers_of_before() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("raw", "512M", GateOptions::TARGET);
    let (uri, stop) = (bench.uri(), Arc::new(AtomicU64::new(0)));
    let writer = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            // Ends when it is cut off; 512 MiB would take it far longer.
            let output = run(
                "qemu-img",
                &[
                    "bench", "-w", "-t", "none", "-f", "raw", "-c", "200000", "-d", "16", "-s",
                    "65536", &uri,
                ],
            );
            stop.store(1, Ordering::SeqCst);
            output.status.success()
        }
    });
    let until = Instant::now() + PATIENCE;
    while bench.gate.counts().writes_completed < 200 {
        assert!(Instant::now() < until, "nothing is written: {:?}", bench.gate.counts());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(stop.load(Ordering::SeqCst), 0);
    let began = Instant::now();
    bench.gate.raise(2, PATIENCE).expect("raised");
    println!("raised in {} us", began.elapsed().as_micros());
    let settled = bench.gate.counts();
    assert_eq!((settled.writes_in_flight, settled.writes_lost, settled.epoch), (0, 0, 2));
    thread::sleep(Duration::from_millis(300));
    let later = bench.gate.counts();
    assert_eq!(GateCounts { flushes: settled.flushes, ..later }, settled, "it wrote on");
    assert!(!writer.join().expect("the writer"), "it did not notice");
    // A connection of the old epoch gets no further, one of the new does.
    let refused = bench.qemu_io(&["write 0 4k"]);
    assert!(!refused.status.success());
    assert!(bench.await_ends(2)[1].contains("Fenced { writer: 1, gate: 2 }"));
    bench.epoch.store(2, Ordering::SeqCst);
    assert!(bench.qemu_io(&["write 0 4k"]).status.success());
    assert!(matches!(bench.gate.raise(1, PATIENCE), Err(GateError::Fenced { .. })));
    bench.gate.raise(2, PATIENCE).expect("a repeat");
}

#[test]
fn flushes_work_beside_a_writer() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new(
        "raw",
        "64M",
        GateOptions { flush_every_bytes: Some(1 << 20), ..GateOptions::TARGET },
    );
    let uri = bench.uri();
    let writer = thread::spawn(move || {
        run_well(
            "qemu-img",
            &["bench", "-w", "-f", "raw", "-c", "3000", "-d", "16", "-s", "16384", &uri],
        )
    });
    let mut last = 0;
    let mut flushed = 0;
    while !writer.is_finished() {
        match bench.gate.flush(PATIENCE) {
            Ok(done) => {
                assert!(done.io_sequence >= last);
                last = done.io_sequence;
                flushed += 1;
            }
            Err(GateError::NotConnected) => thread::sleep(Duration::from_millis(1)),
            Err(other) => panic!("{other}"),
        }
    }
    writer.join().expect("the writer");
    assert!(flushed > 5, "{flushed}");
    bench.await_ends(1);
    let done = bench.gate.flush(PATIENCE).expect("flushed");
    assert_eq!((done.io_sequence, done.complete), (3000, true));
}

#[test]
fn a_client_that_is_cut_in_the_middle_of_a_write_leaves_nothing_in_flight() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("raw", "32M", GateOptions::TARGET);
    let mut client = bench.connect();
    negotiate(&mut client);
    client.write_all(&request(1, 7, 0, 1 << 20)).expect("a header");
    client.write_all(&vec![1; 300_000]).expect("part of the data");
    // As soon as the gate has begun with it, a flush has to wait for its end.
    let until = Instant::now() + PATIENCE;
    while !matches!(bench.gate.flush(Duration::from_millis(100)), Err(GateError::Deadline)) {
        assert!(Instant::now() < until, "the request is never begun");
    }
    drop(client);
    assert!(bench.await_ends(1)[0].starts_with("Err(Io"), "{:?}", bench.await_ends(1));
    let counts = bench.gate.counts();
    assert_eq!((counts.writes_sent, counts.writes_in_flight, counts.writes_lost), (0, 0, 0));
    assert!(bench.qemu_io(&["read -P 0 0 1M"]).status.success(), "half a write was applied");
}

#[test]
fn a_server_that_dies_with_writes_is_not_proof() {
    if !has_qemu() {
        return;
    }
    let mut bench = Bench::new("raw", "32M", GateOptions::TARGET);
    let mut client = bench.connect();
    negotiate(&mut client);
    // SAFETY: the server of this test, which has not been reaped.
    unsafe { kill(bench.server.id() as i32, SIGSTOP) };
    let mut write = request(1, 7, 0, 4096).to_vec();
    write.extend_from_slice(&[1; 4096]);
    client.write_all(&write).expect("a write");
    let until = Instant::now() + PATIENCE;
    while bench.gate.counts().writes_in_flight == 0 {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(1));
    }
    let raised = bench.gate.raise(2, Duration::from_millis(100));
    assert!(matches!(raised, Err(GateError::Deadline)), "{raised:?}");
    bench.server.kill().expect("killed");
    bench.server.wait().expect("reaped");
    let raised = bench.gate.raise(2, PATIENCE);
    assert!(matches!(raised, Err(GateError::NotConnected)), "{raised:?}");
    assert_eq!(bench.gate.counts().writes_lost, 1);
    bench.gate.settle_lost();
    bench.gate.raise(2, PATIENCE).expect("raised");
}

const SIGSTOP: i32 = 19;
unsafe extern "C" {
    fn kill(pid: i32, signal: i32) -> i32;
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut request = [0; 28];
    request[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    request[6..8].copy_from_slice(&command.to_be_bytes());
    request[8..16].copy_from_slice(&cookie.to_be_bytes());
    request[16..24].copy_from_slice(&offset.to_be_bytes());
    request[24..].copy_from_slice(&length.to_be_bytes());
    request
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut option = b"IHAVEOPT".to_vec();
    option.extend_from_slice(&number.to_be_bytes());
    option.extend_from_slice(&(data.len() as u32).to_be_bytes());
    option.extend_from_slice(data);
    option
}

/// Greeting, flags, GO for the default export; answers are read until the ACK.
fn negotiate(client: &mut UnixStream) {
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).expect("a greeting");
    client.write_all(&[0, 0, 0, 3]).expect("flags");
    // Extended headers: the server must refuse what the gate hides from it.
    client.write_all(&option(11, &[])).expect("an option");
    let mut reply = [0; 20];
    client.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply[8..16], [0, 0, 0, 11, 0x80, 0, 0, 1], "its own number, unsupported");
    let text = u32::from_be_bytes(reply[16..20].try_into().expect("four"));
    client.read_exact(&mut vec![0; text as usize]).expect("its text");
    client.write_all(&option(7, &[0, 0, 0, 0, 0, 0])).expect("go");
    loop {
        client.read_exact(&mut reply).expect("an answer");
        let bytes = u32::from_be_bytes(reply[16..20].try_into().expect("four"));
        client.read_exact(&mut vec![0; bytes as usize]).expect("its data");
        if reply[12..16] == [0, 0, 0, 1] {
            return;
        }
    }
}

#[test]
fn broken_clients_are_cut_and_harm_nobody() {
    if !has_qemu() {
        return;
    }
    let bench = Bench::new("raw", "32M", GateOptions::TARGET);
    let cases: [(&str, Vec<u8>); 8] = [
        ("no request", b"GET / HTTP/1.1\r\nHost: nobody.here\r\n\r\n".to_vec()),
        ("an option after the start", option(3, &[])),
        ("an unknown command", request(99, 1, 0, 0).to_vec()),
        ("too many bytes", request(1, 1, 0, u32::MAX).to_vec()),
        ("a huge read", request(0, 1, 0, 1 << 30).to_vec()),
        ("a reserved cookie", request(3, 0x6e6f_7661_0000_0001, 0, 0).to_vec()),
        ("resize", request(8, 1, 0, 0).to_vec()),
        ("extended header", 0x21e4_1c71_u32.to_be_bytes().repeat(8)),
    ];
    for (number, (name, bytes)) in cases.iter().enumerate() {
        let mut client = bench.connect();
        negotiate(&mut client);
        client.write_all(bytes).expect("sent");
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{name}");
        let end = &bench.await_ends(number + 1)[number];
        assert!(end.contains("Protocol"), "{name}: {end}");
    }
    assert!(bench.qemu_io(&["write 0 4k"]).status.success());
    assert_eq!(bench.gate.counts().writes_completed, 1);
}

#[test]
fn sums_of_writes_are_equal_in_any_order_and_tell_every_difference() {
    if !has_qemu() {
        return;
    }
    let sum_of = |commands: &[&str]| {
        let bench = Bench::new("raw", "8M", GateOptions::TARGET);
        let output = bench.qemu_io(commands);
        assert!(output.status.success(), "{output:?}");
        bench.gate.counts().writes_digest
    };
    let writes = ["write -P 7 0 64k", "write -P 9 1M 512k", "write -z 2M 64k", "discard 3M 64k"];
    let expected = sum_of(&writes);
    assert_ne!(expected, 0);
    let mut turned = writes;
    turned.reverse();
    assert_eq!(sum_of(&turned), expected);
    // Another byte, another place, another length, another command, one write less.
    for (index, other) in [
        (0, "write -P 6 0 64k"),
        (1, "write -P 9 1537k 512k"),
        (2, "write -z 2M 128k"),
        (2, "discard 2M 64k"),
        (3, "read 3M 64k"),
    ] {
        let mut changed = writes;
        changed[index] = other;
        assert_ne!(sum_of(&changed), expected, "{other}");
    }
}
