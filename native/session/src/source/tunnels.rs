//! The source's ends of the tunnels: QEMU's device state and the mirrors' connections.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use novacron_core::CHUNK_PAGES;
use novacron_core::frame::Frame;
use novacron_core::hello::LaneRole;
use novacron_disk::HeldBlocks;

use crate::REFUSED_PAUSE;
use crate::completion::lock;
use crate::failure::Failure;
use crate::frames::FrameReader;
use crate::source::orders::Phase;
use crate::source::{Shared, start};
use crate::tunnel;

/// Between two pieces of the list: the target reads and hashes its image meanwhile.
const LIST_WAIT_MAX: Duration = Duration::from_secs(30);

/// Holds a lane open for QEMU's device state, and relays it when QEMU connects.
pub(super) fn device_tunnel(shared: &Arc<Shared>, listener: &tunnel::SocketListener) {
    let mut told = false;
    while let Some(lane) = shared.open_lane(LaneRole::Device) {
        let ticket = shared.wire.add(lane.control.clone());
        if !std::mem::replace(&mut told, true) {
            shared.one_ready();
        }
        let waiting = tunnel::wait_for_client(listener, &lane.control, || shared.ended());
        let relayed = waiting.map(|client| tunnel::relay_source(client, lane, &shared.device));
        shared.wire.remove(ticket);
        match relayed {
            Some(Err(failure)) => return shared.note_device_failure(failure),
            Some(Ok(())) => return,
            None => shared.note_break("the device lane broke"),
        }
    }
}

/// Asks the target what its image holds of a mirror before this one, then relays each connection of
/// a mirror job over a lane of its own.
pub(super) fn disk_tunnel(shared: &Arc<Shared>, listener: &tunnel::SocketListener, index: u16) {
    let Some(held) = held_blocks(shared, index) else { return };
    shared.disks.pass_only_news(usize::from(index), held);
    shared.one_ready();
    while let Some(client) = listener.accept(|| shared.ended()) {
        let shared = shared.clone();
        let relay = move || {
            if let Some(lane) = shared.open_lane(LaneRole::Disk { index }) {
                let ticket = shared.wire.add(lane.control.clone());
                shared.disks.relay_out(usize::from(index), client, lane);
                shared.wire.remove(ticket);
            }
        };
        if start(&format!("disk-{index}-relay"), relay).is_err() {
            return;
        }
    }
}

/// Asks until it is answered; `None` when the session ended.
fn held_blocks(shared: &Arc<Shared>, index: u16) -> Option<HeldBlocks> {
    loop {
        let lane = shared.open_lane(LaneRole::HeldDisk { index })?;
        let ticket = shared.wire.add(lane.control.clone());
        let listed = read_list(FrameReader::new(lane.reader));
        shared.wire.remove(ticket);
        if let Some(held) = listed {
            return Some(held);
        }
        shared.note_break("the list of what a disk holds broke");
        thread::sleep(REFUSED_PAUSE);
    }
}

/// `None` when the lane broke. A target that can't say holds nothing that may be relied on.
fn read_list(mut frames: FrameReader) -> Option<HeldBlocks> {
    let mut held = HeldBlocks::default();
    loop {
        frames.wait_until(Instant::now() + LIST_WAIT_MAX);
        match frames.next() {
            Ok((_, Frame::Held { chunk, values })) => {
                for (number, value) in values.as_chunks::<16>().0.iter().enumerate() {
                    let block = chunk * CHUNK_PAGES as u64 + number as u64;
                    held.put(block, u128::from_le_bytes(*value));
                }
            }
            Ok((_, Frame::ListEnd)) => return Some(held),
            Ok(_) => return Some(HeldBlocks::default()),
            Err(_) => return None,
        }
    }
}

impl Shared {
    /// A device tunnel that breaks midway ends the try: QEMU can't send its state a second time.
    fn note_device_failure(&self, failure: Failure) {
        if self.orders.phase() != Phase::Push && self.whole.peek().is_none() {
            lock(&self.view).device_failure = Some(failure);
        }
    }
}
