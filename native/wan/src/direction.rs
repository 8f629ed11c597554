//! One direction of the link: when each segment leaves, or that it does not. Pure.
//!
//! Order of things: a segment waits in the queue for the rate (or is dropped when that is full),
//! then may be lost, then takes delay and jitter. A lost one has used the link, as on a real one.

use crate::arguments::DirectionSettings;
use crate::packet::Packet;
use crate::random::Random;
use crate::statistics::DirectionCounts;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

/// Bytes that one moment of a trace lets pass (mahimahi's packet).
const TRACE_BYTES: u64 = 1504;
/// Different uses of one seed.
const SEED_STRIDE: u64 = 4;

/// Segments `from..to` of a packet that are due.
#[derive(Debug)]
pub struct Due {
    pub packet: Rc<Packet>,
    pub from: usize,
    pub to: usize,
}

/// A segment under way that keeps its place in the line.
struct Entry {
    at_ns: u64,
    segment: usize,
    packet: Rc<Packet>,
}

/// A segment under way that others may overtake; ordered by time, then arrival.
struct Held {
    at_ns: u64,
    number: u64,
    segment: usize,
    packet: Rc<Packet>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        (self.at_ns, self.number) == (other.at_ns, other.number)
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.number).cmp(&(other.at_ns, other.number))
    }
}

/// Where a trace stands: the next moment, and what is left of its bytes.
struct TracePosition {
    moment: u64,
    left_bytes: u64,
}

/// State of one direction.
pub struct Direction {
    settings: DirectionSettings,
    began_ns: u64,
    trace: TracePosition,
    /// When the link has sent everything that it has taken.
    free_at_ns: u64,
    queued_bytes: u64,
    queue: VecDeque<(u64, u64)>,
    line: VecDeque<Entry>,
    held: BinaryHeap<Reverse<Held>>,
    held_count: u64,
    last_in_line_ns: u64,
    loss: Random,
    jitter: Random,
    in_burst: bool,
    pub counts: DirectionCounts,
}

impl Direction {
    /// `number` (0 or 1) keeps the two directions of one seed apart.
    pub fn new(settings: DirectionSettings, number: u64, now_ns: u64) -> Self {
        let seed = settings.seed.wrapping_mul(SEED_STRIDE) + 2 * number;
        Self {
            settings,
            began_ns: now_ns,
            trace: TracePosition { moment: 0, left_bytes: TRACE_BYTES },
            free_at_ns: 0,
            queued_bytes: 0,
            queue: VecDeque::new(),
            line: VecDeque::new(),
            held: BinaryHeap::new(),
            held_count: 0,
            last_in_line_ns: 0,
            loss: Random::new(seed),
            jitter: Random::new(seed + 1),
            in_burst: false,
            counts: DirectionCounts::default(),
        }
    }

    /// A buffer arrived from the device (its virtio header first).
    pub fn offer(&mut self, buffer: &[u8], now_ns: u64) {
        let Some(packet) = Packet::parse(buffer) else {
            self.counts.malformed += 1;
            return;
        };
        let packet = Rc::new(packet);
        self.counts.buffers_in += 1;
        self.leave_queue(now_ns);
        for segment in 0..packet.segment_count() {
            self.offer_segment(&packet, segment, now_ns);
        }
    }

    fn offer_segment(&mut self, packet: &Rc<Packet>, segment: usize, now_ns: u64) {
        let bytes = packet.segment_bytes(segment) as u64;
        let link_bytes = bytes + self.settings.overhead_bytes;
        self.counts.segments_in += 1;
        self.counts.bytes_in += bytes;
        if self.queued_bytes + link_bytes > self.settings.queue_bytes_max {
            self.counts.segments_dropped += 1;
            return;
        }
        let sent_ns = self.depart(now_ns, link_bytes);
        if sent_ns > now_ns {
            self.queued_bytes += link_bytes;
            self.counts.queue_bytes_max = self.counts.queue_bytes_max.max(self.queued_bytes);
            self.queue.push_back((sent_ns, link_bytes));
        }
        if self.is_lost() {
            self.counts.segments_lost += 1;
            return;
        }
        let mut at_ns = sent_ns + self.settings.delay_ns;
        let mut overtakes = false;
        if self.settings.jitter_ns > 0 {
            at_ns += (self.jitter.share() * self.settings.jitter_ns as f64) as u64;
            overtakes = !self.settings.jitter_keeps_order;
        }
        if self.settings.reorder_share > 0.0 && self.jitter.share() < self.settings.reorder_share {
            at_ns += self.settings.reorder_extra_ns;
            overtakes = true;
            self.counts.segments_reordered += 1;
        }
        let packet = Rc::clone(packet);
        if overtakes {
            self.held_count += 1;
            self.held.push(Reverse(Held { at_ns, number: self.held_count, segment, packet }));
        } else {
            at_ns = at_ns.max(self.last_in_line_ns);
            self.last_in_line_ns = at_ns;
            self.line.push_back(Entry { at_ns, segment, packet });
        }
    }

    /// When the link has finished sending these bytes that arrive now.
    fn depart(&mut self, now_ns: u64, bytes: u64) -> u64 {
        if self.settings.trace_ns.is_some() {
            return self.depart_by_trace(now_ns, bytes);
        }
        if self.settings.rate_bits_per_second <= 0.0 {
            return now_ns;
        }
        let sending_ns = (bytes as f64 * 8e9 / self.settings.rate_bits_per_second) as u64;
        self.free_at_ns = self.free_at_ns.max(now_ns) + sending_ns;
        self.free_at_ns
    }

    fn depart_by_trace(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let moments = self.settings.trace_ns.as_deref().unwrap_or(&[1]);
        let (count, period_ns) = (moments.len() as u64, moments[moments.len() - 1]);
        let began_ns = self.began_ns;
        let at = |moment: u64| {
            began_ns + moment / count * period_ns + moments[(moment % count) as usize]
        };
        if at(self.trace.moment) < now_ns {
            // Moments that passed unused are lost, as in mahimahi.
            let since_ns = now_ns - began_ns;
            let passed = moments.partition_point(|&moment| moment < since_ns % period_ns);
            self.trace.moment = since_ns / period_ns * count + passed as u64;
            self.trace.left_bytes = TRACE_BYTES;
        }
        let mut wanted = bytes;
        while self.trace.left_bytes < wanted {
            wanted -= self.trace.left_bytes;
            self.trace.moment += 1;
            self.trace.left_bytes = TRACE_BYTES;
        }
        self.trace.left_bytes -= wanted;
        at(self.trace.moment)
    }

    fn leave_queue(&mut self, now_ns: u64) {
        while let Some(&(sent_ns, bytes)) = self.queue.front()
            && sent_ns <= now_ns
        {
            self.queued_bytes -= bytes;
            self.queue.pop_front();
        }
    }

    /// Independent losses, or Gilbert's two states with the asked mean loss and mean burst.
    fn is_lost(&mut self) -> bool {
        let loss = self.settings.loss_share;
        if loss <= 0.0 {
            return false;
        }
        let chance = self.loss.share();
        if self.settings.burst_packets <= 1.0 {
            return chance < loss;
        }
        let leaves = 1.0 / self.settings.burst_packets;
        let enters = loss * leaves / (1.0 - loss);
        let turns = chance < if self.in_burst { leaves } else { enters };
        self.in_burst ^= turns;
        self.in_burst
    }

    /// When the next segment is due; `None` when nothing is under way.
    pub fn next_ns(&self) -> Option<u64> {
        let held = self.held.peek().map(|held| held.0.at_ns);
        let line = self.line.front().map(|entry| entry.at_ns);
        held.into_iter().chain(line).min()
    }

    /// Takes what is due first; segments of one packet that are due together come together.
    pub fn take_due(&mut self, now_ns: u64) -> Option<Due> {
        let held_ns = self.held.peek().map_or(u64::MAX, |held| held.0.at_ns);
        let line_ns = self.line.front().map_or(u64::MAX, |entry| entry.at_ns);
        if held_ns.min(line_ns) > now_ns {
            return None;
        }
        let (due, at_ns) = if held_ns < line_ns {
            let Reverse(held) = self.held.pop()?;
            let (from, to) = (held.segment, held.segment + 1);
            (Due { packet: held.packet, from, to }, held.at_ns)
        } else {
            let first = self.line.pop_front()?;
            let mut due = Due { packet: first.packet, from: first.segment, to: first.segment + 1 };
            while self.line.front().is_some_and(|next| {
                next.at_ns <= now_ns.min(held_ns)
                    && Rc::ptr_eq(&next.packet, &due.packet)
                    && next.segment == due.to
            }) {
                self.line.pop_front();
                due.to += 1;
            }
            (due, first.at_ns)
        };
        self.count_out(&due, now_ns - at_ns);
        Some(due)
    }

    fn count_out(&mut self, due: &Due, late_ns: u64) {
        let (late_us, segments) = (late_ns / 1000, (due.to - due.from) as u64);
        let counts = &mut self.counts;
        counts.late_us_sum += late_us * segments;
        counts.late_us_max = counts.late_us_max.max(late_us);
        if late_us > 1000 {
            counts.late_over_1_ms += segments;
        }
        counts.buffers_out += 1;
        counts.segments_out += segments;
        let bytes = (due.from..due.to).map(|segment| due.packet.segment_bytes(segment) as u64);
        counts.bytes_out += bytes.sum::<u64>();
    }

    pub fn segments_inside(&self) -> usize {
        self.line.len() + self.held.len()
    }
}
