//! The decisions of one direction in simulated time, and the cutting of large buffers.

use novacron_wan::arguments::DirectionSettings;
use novacron_wan::direction::Direction;
use novacron_wan::packet::{Packet, VIRTIO_BYTES};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn settings() -> DirectionSettings {
    DirectionSettings {
        rate_bits_per_second: 0.0,
        delay_ns: 0,
        queue_bytes_max: 1 << 50,
        loss_share: 0.0,
        burst_packets: 1.0,
        jitter_ns: 0,
        jitter_keeps_order: true,
        reorder_share: 0.0,
        reorder_extra_ns: 0,
        overhead_bytes: 0,
        trace_ns: None,
        seed: 7,
    }
}

/// A small packet that carries its number.
fn plain(number: u32, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; VIRTIO_BYTES + bytes];
    buffer[VIRTIO_BYTES..VIRTIO_BYTES + 4].copy_from_slice(&number.to_be_bytes());
    buffer
}

/// Offers a packet every `gap_ns`; answers number and time of those that arrive.
fn arrivals(settings: DirectionSettings, count: u32, gap_ns: u64) -> (Vec<(u32, u64)>, Direction) {
    let mut direction = Direction::new(settings, 0, 0);
    let mut arrived = Vec::new();
    let mut take = |direction: &mut Direction, until: u64| {
        while let Some(next) = direction.next_ns().filter(|&next| next <= until) {
            let due = direction.take_due(next).expect("it said so");
            let (_, payload) = due.packet.assemble(due.from, due.to);
            let number = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
            arrived.push((number, next));
        }
    };
    for number in 0..count {
        let now = u64::from(number) * gap_ns;
        take(&mut direction, now);
        direction.offer(&plain(number, 1000), now);
    }
    take(&mut direction, u64::MAX);
    (arrived, direction)
}

#[test]
fn delay_is_exact_and_order_kept() {
    let (arrived, _) = arrivals(DirectionSettings { delay_ns: 25 * MS, ..settings() }, 100, MS);
    for (place, &(number, at)) in arrived.iter().enumerate() {
        assert_eq!((number as usize, at), (place, u64::from(number) * MS + 25 * MS));
    }
}

#[test]
fn rate_is_honest() {
    // 1000 bytes every 0.1 ms are 80 Mbit/s; 8 Mbit/s let a packet pass each ms.
    let slow = DirectionSettings { rate_bits_per_second: 8e6, ..settings() };
    let (arrived, direction) = arrivals(slow, 1000, MS / 10);
    assert_eq!(arrived.last(), Some(&(999, SECOND)));
    assert!(direction.counts.queue_bytes_max > 800_000);
    let shallow =
        DirectionSettings { queue_bytes_max: 10_000, rate_bits_per_second: 8e6, ..settings() };
    let (arrived, direction) = arrivals(shallow, 1000, MS / 10);
    assert!((100..=112).contains(&arrived.len()), "{}", arrived.len());
    assert_eq!(direction.counts.segments_dropped + arrived.len() as u64, 1000);
    assert!(direction.counts.queue_bytes_max <= 10_000);
}

#[test]
fn trace_gives_its_own_rate() {
    // Two opportunities each 10 ms: 2 * 1504 bytes, 300,800 bytes a second.
    let trace = DirectionSettings { trace_ns: Some(vec![5 * MS, 10 * MS]), ..settings() };
    let (arrived, _) = arrivals(trace, 1000, MS / 10);
    let took = arrived.last().expect("all arrive").1;
    let bytes_per_second = 1_000_000.0 / (took as f64 / SECOND as f64);
    assert!((bytes_per_second / 300_800.0 - 1.0).abs() < 0.05, "{bytes_per_second}");
}

#[test]
fn loss_is_honest_and_the_seed_decides() {
    for (loss, burst) in [(0.001, 1.0), (0.01, 1.0), (0.05, 8.0)] {
        let lossy = DirectionSettings { loss_share: loss, burst_packets: burst, ..settings() };
        let (arrived, _) = arrivals(lossy.clone(), 1_000_000, 1000);
        let lost = 1.0 - arrived.len() as f64 / 1e6;
        assert!((lost / loss - 1.0).abs() < 0.1, "asked {loss}, lost {lost}");
        let numbers = |settings| -> Vec<u32> {
            arrivals(settings, 20_000, 1000).0.into_iter().map(|(number, _)| number).collect()
        };
        assert_eq!(numbers(lossy.clone()), numbers(lossy.clone()));
        assert_ne!(numbers(lossy.clone()), numbers(DirectionSettings { seed: 8, ..lossy }));
    }
}

#[test]
fn bursts_are_as_long_as_asked() {
    let lossy = DirectionSettings { loss_share: 0.02, burst_packets: 10.0, ..settings() };
    let (arrived, _) = arrivals(lossy, 1_000_000, 1000);
    let bursts = arrived.windows(2).filter(|pair| pair[1].0 > pair[0].0 + 1).count();
    let mean = (1_000_000 - arrived.len()) as f64 / bursts as f64;
    assert!((8.0..12.5).contains(&mean), "{mean}");
}

#[test]
fn jitter_and_reordering_stay_in_bounds() {
    let jittery = DirectionSettings { delay_ns: 10 * MS, jitter_ns: 5 * MS, ..settings() };
    let (arrived, _) = arrivals(jittery.clone(), 10_000, MS / 100);
    assert!(arrived.is_sorted_by_key(|&(number, _)| number), "order was to be kept");
    let loose = DirectionSettings { jitter_keeps_order: false, ..jittery };
    let (arrived, _) = arrivals(loose, 10_000, MS / 100);
    assert!(!arrived.is_sorted_by_key(|&(number, _)| number));
    for (number, at) in arrived {
        let took = at - u64::from(number) * (MS / 100);
        assert!((10 * MS..=15 * MS).contains(&took), "{took}");
    }
    let reordering =
        DirectionSettings { reorder_share: 0.1, reorder_extra_ns: 3 * MS, ..settings() };
    let (arrived, direction) = arrivals(reordering, 10_000, MS);
    let late = arrived.iter().filter(|&&(number, at)| at > u64::from(number) * MS).count() as u64;
    assert_eq!(late, direction.counts.segments_reordered);
    assert!((800..1200).contains(&late), "{late}");
}

/// A TCP buffer over IPv4 with `payload` bytes, to be cut at 1448, and its virtio header.
fn large_tcp(payload: usize) -> Vec<u8> {
    let mut buffer = vec![1, 1, 54, 0];
    buffer.extend_from_slice(&1448_u16.to_le_bytes());
    buffer.extend_from_slice(&[20, 0, 16, 0]);
    let total = (52 + payload) as u16;
    buffer.extend_from_slice(&[0x45, 0]);
    buffer.extend_from_slice(&total.to_be_bytes());
    buffer.extend_from_slice(&[0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    buffer.extend_from_slice(&[0x1f, 0x90, 0x04, 0xd2, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1]);
    // 32 bytes of header; FIN, PSH, ACK and CWR are set.
    buffer.extend_from_slice(&[0x80, 0x99, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    buffer.extend((0..payload).map(|at| (at * 7) as u8));
    buffer
}

fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|b| u32::from(b[0]) << 8 | u32::from(*b.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn large_buffers_are_cut_as_a_card_would() {
    let buffer = large_tcp(4000);
    let packet = Packet::parse(&buffer).expect("a TCP buffer");
    assert_eq!(packet.segment_count(), 3);
    let sizes: Vec<usize> = (0..3).map(|segment| packet.segment_bytes(segment)).collect();
    assert_eq!(sizes, [1500, 1500, 52 + 4000 - 2 * 1448]);
    let mut payload = Vec::new();
    for segment in 0..3 {
        let (headers, piece) = packet.assemble(segment, segment + 1);
        let ip = &headers[VIRTIO_BYTES..];
        assert_eq!(headers[1], 0, "a packet of its own");
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len() + piece.len());
        assert_eq!(ones_complement(&ip[..20]), 0xffff, "the IP checksum fits");
        assert_eq!(u16::from_be_bytes([ip[4], ip[5]]), 0x1234 + segment as u16);
        let sequence = u32::from_be_bytes([ip[24], ip[25], ip[26], ip[27]]);
        assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(segment as u32 * 1448));
        let flags = ip[33];
        assert_eq!(flags & 0x09 != 0, segment == 2, "FIN and PSH on the last");
        assert_eq!(flags & 0x80 != 0, segment == 0, "CWR on the first");
        payload.extend_from_slice(piece);
    }
    assert_eq!(payload, &buffer[VIRTIO_BYTES + 52..]);
    let (together, piece) = packet.assemble(0, 2);
    assert_eq!((together[1], piece.len()), (1, 2896));
}

#[test]
fn nonsense_from_a_device_is_counted_and_dropped() {
    let mut state = std::time::UNIX_EPOCH.elapsed().map_or(1, |passed| passed.as_nanos() as u64);
    println!("seed {state}");
    let mut direction = Direction::new(settings(), 0, 0);
    for _ in 0..200_000 {
        let mut buffer = large_tcp(100);
        let bytes = buffer.len();
        for _ in 0..6 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % bytes.min(40);
            buffer[at] = (state >> 25) as u8;
        }
        buffer.truncate((state >> 40) as usize % (bytes + 1));
        direction.offer(&buffer, 1);
        while let Some(due) = direction.take_due(1) {
            let _ = due.packet.assemble(due.from, due.to);
        }
    }
    assert!(direction.counts.malformed > 1000 && direction.counts.segments_out > 1000);
}
