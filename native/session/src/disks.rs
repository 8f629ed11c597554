//! The disks of a move: a gate each, between a unix socket here and a lane.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use novacron_disk::{GateError, GateOptions, HeldBlocks, NbdGate, Stream};
use novacron_transport::Lane;

use crate::failure::{Failure, FailureCode};

/// Longest flush: beyond it a disk is broken, not slow, and the move is better given up.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a VMM may take for the writes that it has of a mirror that is no more.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(10);

/// Counts, and at the target flushes and fences, what the mirrors write.
pub(crate) struct Disks {
    gates: Vec<NbdGate>,
    /// Of the streams: a gate that was raised above it lets none of them pass.
    epoch: u64,
}

impl Disks {
    pub(crate) fn new(count: usize, epoch: u64, options: GateOptions) -> Self {
        Self { gates: (0..count).map(|_| NbdGate::new(epoch, options)).collect(), epoch }
    }

    /// Relays a mirror's connection from here into a lane.
    pub(crate) fn relay_out(&self, index: usize, client: UnixStream, lane: Lane) {
        if let (Some(gate), Ok(client)) = (self.gates.get(index), Stream::from_unix(client)) {
            // The mirror job sees its connection end and reports that itself.
            let _ = gate.serve(self.epoch, client, lane_stream(lane));
        }
    }

    /// Relays a mirror's connection from a lane into the VMM's NBD server.
    pub(crate) fn relay_in(&self, index: usize, lane: Lane, server: UnixStream) {
        if let (Some(gate), Ok(server)) = (self.gates.get(index), Stream::from_unix(server)) {
            // As above: the lane ends, and the mirror job with it.
            let _ = gate.serve(self.epoch, lane_stream(lane), server);
        }
    }

    /// Ends the streams of a mirror that is no more and counts anew; says whether it wrote at all.
    pub(crate) fn restart(&self, index: usize) -> Result<bool, Failure> {
        let Some(gate) = self.gates.get(index) else { return Ok(false) };
        gate.restart(RESTART_WAIT_MAX).map_err(|error| {
            let detail = format!("disk {index}: ending the mirror of before: {error}");
            Failure::new(FailureCode::DiskMirror, detail)
        })
    }

    /// From now on only what the target's image does not hold is sent.
    pub(crate) fn pass_only_news(&self, index: usize, held: HeldBlocks) {
        if let Some(gate) = self.gates.get(index) {
            gate.pass_only_news(held);
        }
    }

    /// Writes that were answered with success, a disk each.
    pub(crate) fn io_sequence(&self) -> Vec<u64> {
        self.gates.iter().map(|gate| gate.counts().writes_completed).collect()
    }

    /// What those writes were, a disk each: equal on both sides once the mirrors are drained.
    pub(crate) fn digests(&self) -> Vec<u128> {
        self.gates.iter().map(|gate| gate.counts().writes_digest).collect()
    }

    /// Bytes of data in writes, all disks together.
    pub(crate) fn write_bytes(&self) -> u64 {
        self.gates.iter().map(|gate| gate.counts().write_bytes).sum()
    }

    /// Flushes every disk that a mirror has written to.
    pub(crate) fn flush(&self) -> Result<(), Failure> {
        for (index, gate) in self.gates.iter().enumerate() {
            match gate.flush(FLUSH_WAIT_MAX) {
                Ok(flushed) if flushed.complete => {}
                Ok(_) => {
                    let detail = format!("disk {index}: writes were in flight during the flush");
                    return Err(Failure::new(FailureCode::DiskMirror, detail));
                }
                // No mirror ever connected: nothing of ours is in that server.
                Err(GateError::NotConnected) if gate.counts().writes_sent == 0 => {}
                Err(error) => {
                    let detail = format!("flushing disk {index}: {error}");
                    return Err(Failure::new(FailureCode::DiskMirror, detail));
                }
            }
        }
        Ok(())
    }

    /// Refuses the streams of this session from now on if `epoch` is above theirs, and returns once
    /// none of their writes can reach a disk. The VMM's exports are gone by then, so a write that
    /// it never answered is no danger. All gates are raised before any is waited for; all are up
    /// even when this fails.
    pub(crate) fn raise(&self, epoch: u64, timeout: Duration) -> Result<(), Failure> {
        let until = Instant::now() + timeout;
        let mut outcome = Ok(());
        // First without waiting: one disk that hangs must not leave another one open.
        for wait in [false, true] {
            for (index, gate) in self.gates.iter().enumerate() {
                let left = if wait { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
                let raised = gate.raise(epoch, left);
                if wait && outcome.is_ok() {
                    outcome = raised.or_else(|error| settled(gate, index, &error));
                }
            }
        }
        outcome
    }

    pub(crate) fn close(&self) {
        self.gates.iter().for_each(NbdGate::close);
    }
}

/// What of a raise that did not succeed is a failure.
fn settled(gate: &NbdGate, index: usize, error: &GateError) -> Result<(), Failure> {
    let code = match error {
        GateError::NotConnected => {
            gate.settle_lost();
            return Ok(());
        }
        GateError::Fenced { .. } => FailureCode::OwnershipRefused,
        GateError::Deadline => FailureCode::VmmTimeout,
        _ => FailureCode::DiskMirror,
    };
    Err(Failure::new(code, format!("raising the gate of disk {index}: {error}")))
}

fn lane_stream(lane: Lane) -> Stream {
    let Lane { reader, writer, control } = lane;
    Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        cut: Box::new(move || control.shutdown()),
    }
}
