//! What every link promises, written once and run on each implementation.

mod support;

use novacron_transport::memory::link_pair;
use novacron_transport::tls::{AcceptorOptions, SocketOptions};
use novacron_transport::{HELLO_BYTES_MAX, LaneError, Link, LinkError, Listener, PeerIdentity};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use support::{Bytes, TIMEOUT, open, seed, tls_pair};

type Pair = (Arc<dyn Link>, Arc<dyn Listener>);
type Test = fn(&Pair);

/// The suite; `pair` makes a fresh link and its listener.
fn run_suite(pair: &dyn Fn() -> Pair) {
    let tests: [(&str, Test); 14] = [
        ("hello and identity arrive", hello_and_identity_arrive),
        ("bytes arrive in order", bytes_arrive_in_order),
        ("both directions at full load", both_directions_at_full_load),
        ("small writes wait for flush", small_writes_arrive_after_flush),
        ("one byte at a time", one_byte_at_a_time),
        ("finish is a clean end", finish_is_a_clean_end),
        ("other direction lives after finish", other_direction_lives_after_finish),
        ("dropped writer looks truncated", dropped_writer_looks_truncated),
        ("shutdown wakes a blocked reader", shutdown_wakes_a_blocked_reader),
        ("shutdown wakes a blocked writer", shutdown_wakes_a_blocked_writer),
        ("read deadline, and reading on", read_deadline_can_be_repeated),
        ("write deadline on a stalled lane", write_deadline_on_a_stalled_lane),
        ("bytes are counted", bytes_are_counted),
        ("accept waits, then closes", accept_waits_then_closes),
    ];
    for (name, test) in tests {
        let start = Instant::now();
        test(&pair());
        println!("{name}: {} ms", start.elapsed().as_millis());
    }
}

#[test]
fn tls_over_tcp_conforms() {
    run_suite(&|| {
        let (link, listener) = tls_pair(AcceptorOptions::default(), SocketOptions::default());
        (Arc::new(link), Arc::new(listener))
    });
}

#[test]
fn memory_conforms() {
    run_suite(&|| {
        let (link, listener) = link_pair(PeerIdentity::host("host-a").expect("a name"));
        (Arc::new(link), Arc::new(listener))
    });
}

fn hello_and_identity_arrive((link, listener): &Pair) {
    for hello in [&b""[..], b"migrate/web/1", &[7; HELLO_BYTES_MAX]] {
        let (_lane, incoming) = open(&**link, &**listener, hello);
        assert_eq!(incoming.hello, hello);
        assert_eq!(incoming.identity.to_string(), "novacron://host/host-a");
    }
    let refused = link.open(&[7; HELLO_BYTES_MAX + 1], TIMEOUT);
    assert!(matches!(refused, Err(LinkError::HelloTooLong(_))), "{refused:?}");
}

/// Writes seeded bytes in pieces of seeded sizes, reads them in others, compares.
fn bytes_arrive_in_order((link, listener): &Pair) {
    let seed = seed();
    println!("seed {seed}");
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    let total = 3_000_000;
    let mut sent = vec![0; total];
    Bytes(seed).fill(&mut sent);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        let mut sizes = Bytes(seed ^ 1);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let bound = if sizes.below(4) == 0 { 400_000 } else { 3_000 };
            let (piece, after) = rest.split_at(sizes.below(bound).min(rest.len()));
            lane.writer.write_all(piece).expect("written");
            if sizes.below(3) == 0 {
                lane.writer.flush().expect("flushed");
            }
            rest = after;
        }
        lane.writer.finish().expect("finished");
        lane
    });
    let mut sizes = Bytes(seed ^ 2);
    let mut received = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        let bound = if sizes.below(4) == 0 { buffer.len() } else { 500 };
        let size = 1 + sizes.below(bound);
        let count = incoming.lane.reader.read(&mut buffer[..size]).expect("read");
        if count == 0 {
            break;
        }
        received.extend_from_slice(&buffer[..count]);
    }
    assert!(received == expected, "bytes differ, seed {seed}");
    drop(writer.join().expect("the writer"));
}

fn both_directions_at_full_load((link, listener): &Pair) {
    const TOTAL: usize = 64 << 20;
    let (lane, incoming) = open(&**link, &**listener, b"");
    let mut threads = Vec::new();
    for (end, (own, peer)) in [(lane, (1, 2)), (incoming.lane, (2, 1))] {
        let (mut reader, mut writer) = (end.reader, end.writer);
        threads.push(thread::spawn(move || {
            let mut bytes = Bytes(own);
            let mut piece = vec![0; 1 << 20];
            for _ in 0..TOTAL / piece.len() {
                bytes.fill(&mut piece);
                writer.write_all(&piece).expect("written");
            }
            writer.finish().expect("finished");
        }));
        threads.push(thread::spawn(move || {
            let mut bytes = Bytes(peer);
            let (mut piece, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            for _ in 0..TOTAL / piece.len() {
                bytes.fill(&mut expected);
                reader.read_exact(&mut piece).expect("read");
                assert!(piece == expected, "bytes differ");
            }
            assert_eq!(reader.read(&mut piece).expect("the end"), 0);
        }));
    }
    for thread in threads {
        thread.join().expect("a thread of the load");
    }
}

fn small_writes_arrive_after_flush((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    for round in 0..100_u8 {
        lane.writer.write_all(&[round]).expect("written");
        lane.writer.write_all(&[round; 3]).expect("written");
        lane.writer.flush().expect("flushed");
        let mut buffer = [0; 4];
        incoming.lane.reader.read_exact(&mut buffer).expect("read");
        assert_eq!(buffer, [round; 4]);
        incoming.lane.writer.write_all(&buffer).expect("written");
        incoming.lane.writer.flush().expect("flushed");
        lane.reader.read_exact(&mut buffer).expect("read");
        assert_eq!(buffer, [round; 4]);
    }
}

fn one_byte_at_a_time((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    let mut sent = vec![0; 40_000];
    Bytes(5).fill(&mut sent);
    lane.writer.write_all(&sent).expect("written");
    lane.writer.finish().expect("finished");
    let mut received = Vec::new();
    let mut byte = [0];
    while incoming.lane.reader.read(&mut byte).expect("read") == 1 {
        received.push(byte[0]);
    }
    assert!(received == sent);
}

fn finish_is_a_clean_end((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    lane.writer.write_all(b"last").expect("written");
    lane.writer.finish().expect("finished");
    assert!(matches!(lane.writer.write_all(b"more"), Err(LaneError::Closed)));
    drop(lane);
    let mut buffer = [0; 64];
    incoming.lane.reader.read_exact(&mut buffer[..4]).expect("the bytes");
    assert_eq!(&buffer[..4], b"last");
    for _ in 0..3 {
        assert_eq!(incoming.lane.reader.read(&mut buffer).expect("the end"), 0);
    }
}

fn other_direction_lives_after_finish((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    lane.writer.finish().expect("finished");
    assert_eq!(incoming.lane.reader.read(&mut [0; 8]).expect("the end"), 0);
    incoming.lane.writer.write_all(b"answer").expect("written");
    incoming.lane.writer.finish().expect("finished");
    let mut buffer = [0; 6];
    lane.reader.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"answer");
}

fn dropped_writer_looks_truncated((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    lane.writer.write_all(b"half").expect("written");
    lane.writer.flush().expect("flushed");
    drop(lane.writer);
    let mut buffer = [0; 4];
    incoming.lane.reader.read_exact(&mut buffer).expect("what was flushed");
    let end = incoming.lane.reader.read(&mut buffer);
    assert!(matches!(end, Err(LaneError::Truncated)), "{end:?}");
    drop(lane.reader);
}

/// Ends within a second of the shutdown, which comes from a third thread.
fn assert_woken(control: &novacron_transport::LaneControl, blocked: thread::JoinHandle<LaneError>) {
    thread::sleep(Duration::from_millis(100));
    assert!(!blocked.is_finished(), "it does not block");
    let start = Instant::now();
    control.shutdown();
    let error = blocked.join().expect("the blocked thread");
    assert!(matches!(error, LaneError::Closed), "{error:?}");
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

fn shutdown_wakes_a_blocked_reader((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    let control = lane.control.clone();
    let blocked = thread::spawn(move || lane.reader.read(&mut [0; 8]).expect_err("shut down"));
    assert_woken(&control, blocked);
    control.shutdown();
    drop(lane.writer);
    assert!(incoming.lane.reader.read(&mut [0; 8]).is_err());
}

fn shutdown_wakes_a_blocked_writer((link, listener): &Pair) {
    let (mut lane, _incoming) = open(&**link, &**listener, b"");
    let control = lane.control.clone();
    let blocked = thread::spawn(move || {
        let piece = vec![0; 1 << 20];
        loop {
            if let Err(error) = lane.writer.write_all(&piece) {
                return error;
            }
        }
    });
    // Until buffers of both kernels are full.
    let mut before = u64::MAX;
    while control.wire_bytes_sent() != before {
        before = control.wire_bytes_sent();
        thread::sleep(Duration::from_millis(200));
    }
    assert_woken(&control, blocked);
}

fn read_deadline_can_be_repeated((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    let mut buffer = [0; 4];
    let start = Instant::now();
    incoming.lane.reader.set_deadline(Some(start + Duration::from_millis(80)));
    for _ in 0..2 {
        let read = incoming.lane.reader.read(&mut buffer);
        assert!(matches!(read, Err(LaneError::Deadline)), "{read:?}");
    }
    let waited = start.elapsed();
    assert!((80..600).contains(&(waited.as_millis() as u64)), "{waited:?}");
    incoming.lane.reader.set_deadline(None);
    lane.writer.write_all(b"late").expect("written");
    lane.writer.flush().expect("flushed");
    incoming.lane.reader.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"late");
}

fn write_deadline_on_a_stalled_lane((link, listener): &Pair) {
    let (mut lane, _incoming) = open(&**link, &**listener, b"");
    let start = Instant::now();
    lane.writer.set_deadline(Some(start + Duration::from_millis(500)));
    let piece = vec![0; 1 << 20];
    let error = loop {
        if let Err(error) = lane.writer.write_all(&piece) {
            break error;
        }
    };
    assert!(matches!(error, LaneError::Deadline), "{error:?}");
    let waited = start.elapsed();
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
    let after = lane.writer.write_all(b"more");
    assert!(matches!(after, Err(LaneError::Closed)), "{after:?}");
}

fn bytes_are_counted((link, listener): &Pair) {
    let (mut lane, mut incoming) = open(&**link, &**listener, b"");
    let (sent, received) =
        (lane.control.wire_bytes_sent(), incoming.lane.control.wire_bytes_received());
    let piece = vec![1; 1 << 20];
    lane.writer.write_all(&piece[..100_000]).expect("written");
    lane.writer.flush().expect("flushed");
    incoming.lane.reader.read_exact(&mut vec![0; 100_000]).expect("read");
    let sent = lane.control.wire_bytes_sent() - sent;
    assert!((100_000..102_000).contains(&sent), "{sent}");
    let received = incoming.lane.control.wire_bytes_received() - received;
    assert_eq!(received, sent);
}

fn accept_waits_then_closes((_link, listener): &Pair) {
    let start = Instant::now();
    let nobody = listener.accept(Duration::from_millis(50));
    assert!(matches!(nobody, Err(LinkError::Deadline)), "{nobody:?}");
    assert!(start.elapsed() >= Duration::from_millis(50));
    let waiting = Arc::clone(listener);
    let blocked = thread::spawn(move || waiting.accept(TIMEOUT));
    thread::sleep(Duration::from_millis(50));
    listener.close();
    let closed = blocked.join().expect("the accepting thread");
    assert!(matches!(closed, Err(LinkError::Closed)), "{closed:?}");
}
