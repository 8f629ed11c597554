//! Throughput of one lane on loopback, TLS beside plain TCP, and the time of a handshake.
//!
//! `cargo run --release --example lane_throughput [-- MIB [PIECE_KIB]]`; prints one JSON object.

#[path = "../tests/support/mod.rs"]
mod support;

use novacron_transport::Link;
use novacron_transport::tls::{AcceptorOptions, SocketOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use support::{TIMEOUT, open, tls_pair};

struct Figures {
    gigabytes_per_second: f64,
    /// User and system time of sender and receiver together.
    cpu_seconds_per_gigabyte: f64,
}

/// CPU time of this process so far, s.
fn cpu_seconds() -> f64 {
    // SAFETY: rusage is plain numbers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Sends `total` bytes from one thread to another and looks at the clocks.
fn measure(
    total: usize,
    send: impl FnOnce() + Send + 'static,
    receive: impl FnOnce() -> usize,
) -> Figures {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let sender = thread::spawn(send);
    assert_eq!(receive(), total);
    sender.join().expect("the sender");
    let gigabytes = total as f64 / 1e9;
    Figures {
        gigabytes_per_second: gigabytes / start.elapsed().as_secs_f64(),
        cpu_seconds_per_gigabyte: (cpu_seconds() - cpu) / gigabytes,
    }
}

fn count_until_end(mut read: impl FnMut(&mut [u8]) -> usize, piece: usize) -> usize {
    let mut buffer = vec![0; piece];
    let mut total = 0;
    loop {
        match read(&mut buffer) {
            0 => return total,
            count => total += count,
        }
    }
}

fn tls(total: usize, piece: usize) -> Figures {
    let (link, listener) = tls_pair(AcceptorOptions::default(), SocketOptions::default());
    let (lane, incoming) = open(&link, &listener, b"");
    let (mut writer, mut reader) = (lane.writer, incoming.lane.reader);
    let _kept = (lane.reader, incoming.lane.writer);
    let send = move || {
        let bytes = vec![0x5a; piece];
        for _ in 0..total / piece {
            writer.write_all(&bytes).expect("written");
        }
        writer.finish().expect("finished");
    };
    measure(total, send, || count_until_end(|buffer| reader.read(buffer).expect("read"), piece))
}

fn plain(total: usize, piece: usize) -> Figures {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let mut near = TcpStream::connect(listener.local_addr().expect("an address")).expect("up");
    let (mut far, _) = listener.accept().expect("a connection");
    let send = move || {
        let bytes = vec![0x5a; piece];
        for _ in 0..total / piece {
            near.write_all(&bytes).expect("written");
        }
    };
    measure(total, send, || count_until_end(|buffer| far.read(buffer).expect("read"), piece))
}

/// Time from connect to a lane that is open, and CPU of both sides, medians of `count`.
fn handshakes(count: usize) -> (Duration, f64, String) {
    let (link, listener) = tls_pair(AcceptorOptions::default(), SocketOptions::default());
    let cpu = cpu_seconds();
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let (lane, incoming) = open(&link, &listener, b"hello");
        times.push(start.elapsed());
        drop((lane, incoming));
    }
    times.sort();
    let (_lane, key_agreement) = link.open_named(b"", TIMEOUT).expect("opened");
    drop(link.open(b"", TIMEOUT));
    (times[count / 2], (cpu_seconds() - cpu) / count as f64, key_agreement)
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("MiB"));
    let total = arguments.next().unwrap_or(2048) << 20;
    let piece = arguments.next().unwrap_or(256) << 10;
    let (median, cpu, key_agreement) = handshakes(50);
    println!(
        "{{\"handshakeMsMedian\":{:.3},\"handshakeCpuMs\":{:.3},\"keyAgreement\":\"{key_agreement}\"",
        median.as_secs_f64() * 1e3,
        cpu * 1e3,
    );
    for (name, figures) in [("plain", plain(total, piece)), ("tls", tls(total, piece))] {
        println!(
            ",\"{name}\":{{\"gigabytesPerSecond\":{:.2},\"cpuSecondsPerGigabyte\":{:.2}}}",
            figures.gigabytes_per_second, figures.cpu_seconds_per_gigabyte,
        );
    }
    println!("}}");
}
