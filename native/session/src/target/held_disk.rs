//! Tells a source whose mirror begins anew what the image of a disk holds already.

use novacron_core::CHUNK_PAGES;
use novacron_core::frame::{Frame, Refusal};
use novacron_disk::read_blocks;
use novacron_transport::{Lane, LaneWriter};

use crate::failure::{Failure, FailureCode};
use crate::frames::send_now;
use crate::target::{DEVICE_SOCKET_WAIT_MAX, Shared, refuse};
use crate::tunnel;

/// Blocks of one frame, as many as a chunk of memory has pages.
const GROUP: u64 = CHUNK_PAGES as u64;

pub(crate) fn serve_lane(shared: &Shared, mut lane: Lane, index: u16) {
    // Whatever ends the list early, the source sends what it does not know of.
    match tell(shared, &mut lane.writer, index) {
        Ok(()) => drop(lane.writer.finish()),
        Err(_) => refuse(lane, Refusal::Failed),
    }
}

fn tell(shared: &Shared, writer: &mut LaneWriter, index: u16) -> Result<(), Failure> {
    let unknown = || Failure::new(FailureCode::LinkRefused, "no such disk");
    let disk = shared.options.disks.get(usize::from(index)).ok_or_else(unknown)?;
    let was_written = shared.disks.restart(usize::from(index))?;
    if was_written || shared.options.adopted {
        let ended = || shared.ended();
        let server = tunnel::connect_patiently(&disk.nbd_socket, DEVICE_SOCKET_WAIT_MAX, ended)?;
        let mut group = Group::new();
        read_blocks(server, &disk.export_name, |block, digest| group.put(writer, block, digest))
            .map_err(|error| Failure::new(FailureCode::DiskMirror, error.to_string()))?;
        group.send(writer)?;
    }
    send_now(writer, 0, Frame::ListEnd)?;
    Ok(())
}

/// Digests of blocks that go in one frame.
struct Group {
    number: u64,
    values: [u8; CHUNK_PAGES * 16],
}

impl Group {
    fn new() -> Self {
        Self { number: 0, values: [0; CHUNK_PAGES * 16] }
    }

    fn put(
        &mut self,
        writer: &mut LaneWriter,
        block: u64,
        digest: u128,
    ) -> Result<(), novacron_disk::GateError> {
        if block / GROUP != self.number {
            self.send(writer).map_err(std::io::Error::other)?;
            *self = Self { number: block / GROUP, ..Self::new() };
        }
        let at = (block % GROUP) as usize * 16;
        self.values[at..at + 16].copy_from_slice(&digest.to_le_bytes());
        Ok(())
    }

    fn send(&self, writer: &mut LaneWriter) -> Result<(), novacron_transport::LaneError> {
        if self.values.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        send_now(writer, 0, Frame::Held { chunk: self.number, values: &self.values })
    }
}
