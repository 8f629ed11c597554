//! Seeded nonsense in both directions: the gate ends the connection, never panics, never waits on.

use novacron_disk::{GateOptions, NbdGate, Stream};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Bytes that begin as the protocol does and lose their way somewhere.
fn derail(random: &mut Random, start: &[u8], pieces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = start.to_vec();
    for _ in 0..random.below(12) {
        match random.below(4) {
            0 => bytes.extend((0..random.below(80)).map(|_| random.next() as u8)),
            _ => bytes.extend_from_slice(pieces[random.below(pieces.len() as u64) as usize]),
        }
    }
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    bytes
}

fn be(parts: &[(u64, usize)]) -> Vec<u8> {
    parts.iter().flat_map(|&(value, width)| value.to_be_bytes()[8 - width..].to_vec()).collect()
}

#[test]
fn nonsense_from_both_sides_ends_the_connection() {
    let start = std::time::UNIX_EPOCH.elapsed().map_or(1, |passed| passed.as_nanos() as u64);
    println!("seeds from {start}");
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat();
    let option = |number, length| be(&[(0x4948_4156_454f_5054, 8), (number, 4), (length, 4)]);
    let answer = |number, kind, length| {
        be(&[(0x0003_e889_0455_65a9, 8), (number, 4), (kind, 4), (length, 4)])
    };
    let request = |command, cookie, length| {
        be(&[(0x2560_9513, 4), (command, 8 - 4), (cookie, 8), (0, 8), (length, 4)])
    };
    let (go, structured) = (option(7, 0), option(8, 0));
    let (went, agreed) = (answer(7, 1, 0), answer(8, 1, 0));
    let (write, read, flush) = (request(1, 1, 8), request(0, 2, 16), request(3, 3, 0));
    let simple = be(&[(0x6744_6698, 4), (0, 4), (1, 8)]);
    let failed = be(&[(0x6744_6698, 4), (5, 4), (2, 8)]);
    let chunk = be(&[(0x668e_33ef, 4), (1, 2), (0, 2), (3, 8), (0, 4)]);
    let own = be(&[(0x6744_6698, 4), (0, 4), (0x6e6f_7661_0000_0001, 8)]);
    for seed in start..start + 1500 {
        let mut random = Random(seed);
        let client_bytes =
            derail(&mut random, &[0, 0, 0, 3], &[&go, &structured, &write, &read, &flush]);
        let server_bytes =
            derail(&mut random, &greeting, &[&went, &agreed, &simple, &failed, &chunk, &own]);
        let gate =
            NbdGate::new(0, GateOptions { flush_every_bytes: Some(1), ..GateOptions::TARGET });
        let (client, client_end) = UnixStream::pair().expect("a pair");
        let (server, server_end) = UnixStream::pair().expect("a pair");
        let serving = thread::spawn({
            let gate = gate.clone();
            let client = Stream::from_unix(client_end).expect("a client");
            let server = Stream::from_unix(server_end).expect("a server");
            move || drop(gate.serve(0, client, server))
        });
        for (mut stream, bytes) in [(server, server_bytes), (client, client_bytes)] {
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
            let mut waste = [0; 4096];
            while matches!(stream.read(&mut waste), Ok(1..)) {}
        }
        let _ = gate.flush(Duration::from_millis(1));
        gate.close();
        serving.join().unwrap_or_else(|_| panic!("it panicked, seed {seed}"));
        let _ = gate.counts();
    }
}
