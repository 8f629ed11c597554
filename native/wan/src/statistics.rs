//! What is counted, and how it is printed: one JSON object a line on stdout.

use serde::Serialize;

/// Counters of one direction. Segments are packets of the wire; the kernel hands over several at
/// once as one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionCounts {
    pub buffers_in: u64,
    pub segments_in: u64,
    pub bytes_in: u64,
    pub buffers_out: u64,
    pub segments_out: u64,
    pub bytes_out: u64,
    /// Lost by chance.
    pub segments_lost: u64,
    /// Dropped because the queue was full.
    pub segments_dropped: u64,
    pub segments_reordered: u64,
    /// Neither IPv4 nor IPv6 that could be cut; should be 0.
    pub malformed: u64,
    pub write_errors: u64,
    pub queue_bytes_max: u64,
    /// Longest that a segment left after its time, µs: this and the next two tell whether the run
    /// can be trusted.
    pub late_us_max: u64,
    pub late_us_sum: u64,
    pub late_over_1_ms: u64,
}

/// One line of statistics.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    pub ab: &'a DirectionCounts,
    pub ba: &'a DirectionCounts,
    pub segments_inside: usize,
    pub cpu_user_ms: u64,
    pub cpu_system_ms: u64,
}

impl Report<'_> {
    pub fn print(&self) {
        // Numbers always serialise.
        println!("{}", serde_json::to_string(self).unwrap_or_default());
    }
}
