//! The source's ends of the tunnels: QEMU's device state and the mirrors' connections.

use std::sync::Arc;

use novacron_core::hello::LaneRole;

use crate::completion::lock;
use crate::failure::Failure;
use crate::source::orders::Phase;
use crate::source::{Shared, start};
use crate::tunnel;

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

/// Relays each connection of a mirror job over a lane of its own.
pub(super) fn disk_tunnel(shared: &Arc<Shared>, listener: &tunnel::SocketListener, index: u16) {
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

impl Shared {
    /// A device tunnel that breaks midway ends the try: QEMU can't send its state a second time.
    fn note_device_failure(&self, failure: Failure) {
        if self.orders.phase() != Phase::Push && self.whole.peek().is_none() {
            lock(&self.view).device_failure = Some(failure);
        }
    }
}
