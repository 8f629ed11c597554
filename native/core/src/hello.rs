//! What a source says when it opens a lane: which migration, which epoch, what the lane is for.

use crate::{LANE_COUNT_MAX, MEMORY_BYTES_MAX, PAGE_BYTES};

/// Version of the hello; changes together with the frames.
pub const HELLO_VERSION: u8 = 1;
/// Longest migration id taken; ids are workflow ids of about 80 characters.
pub const MIGRATION_BYTES_MAX: usize = 512;
/// Most disks of a VM, as contracts/limits.ts says.
pub const DISK_COUNT_MAX: u16 = 8;

/// What a lane carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneRole {
    /// Memory lane `index` of `count`.
    Memory { index: u16, count: u16 },
    /// Fault requests and their pages.
    Fault,
    /// QEMU's device-state stream.
    Device,
    /// One NBD connection of the mirror of disk `index`.
    Disk { index: u16 },
    /// Pages that a check of the images found wrong, and what the check came to.
    Check,
    /// What the image of disk `index` holds, before its mirror begins anew.
    HeldDisk { index: u16 },
}

/// The opening words of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub migration: String,
    pub epoch: u64,
    /// Bytes of guest memory; both sides must mean the same VM.
    pub memory_bytes: u64,
    pub role: LaneRole,
}

impl Hello {
    /// Bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, index, count) = match self.role {
            LaneRole::Memory { index, count } => (1_u8, index, count),
            LaneRole::Fault => (2, 0, 0),
            LaneRole::Device => (3, 0, 0),
            LaneRole::Disk { index } => (4, index, 0),
            LaneRole::Check => (5, 0, 0),
            LaneRole::HeldDisk { index } => (6, index, 0),
        };
        let mut out = vec![HELLO_VERSION, kind];
        out.extend_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.memory_bytes.to_le_bytes());
        out.extend_from_slice(self.migration.as_bytes());
        out
    }

    /// Parses bytes of a peer; `None` for anything that is not a hello of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, migration) = bytes.split_first_chunk::<22>()?;
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let long = |at: usize| u64::from_le_bytes(core::array::from_fn(|index| head[at + index]));
        if head[0] != HELLO_VERSION || migration.is_empty() || migration.len() > MIGRATION_BYTES_MAX {
            return None;
        }
        let (index, count) = (short(2), short(4));
        let role = match head[1] {
            1 if index < count && count <= LANE_COUNT_MAX => LaneRole::Memory { index, count },
            2 if (index, count) == (0, 0) => LaneRole::Fault,
            3 if (index, count) == (0, 0) => LaneRole::Device,
            4 if index < DISK_COUNT_MAX && count == 0 => LaneRole::Disk { index },
            5 if (index, count) == (0, 0) => LaneRole::Check,
            6 if index < DISK_COUNT_MAX && count == 0 => LaneRole::HeldDisk { index },
            _ => return None,
        };
        let memory_bytes = long(14);
        let whole = memory_bytes > 0 && memory_bytes.is_multiple_of(PAGE_BYTES as u64);
        if !whole || memory_bytes > MEMORY_BYTES_MAX {
            return None;
        }
        let migration = core::str::from_utf8(migration).ok()?.to_owned();
        Some(Self { migration, epoch: long(6), memory_bytes, role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hello_survives_the_way(epoch in any::<u64>(), pages in 1_u64..1 << 28, kind in 0..6,
            index in 0_u16..8, migration in "[a-z/0-9-]{1,80}") {
            let role = match kind {
                0 => LaneRole::Memory { index, count: 16 },
                1 => LaneRole::Fault,
                2 => LaneRole::Device,
                3 => LaneRole::Check,
                4 => LaneRole::HeldDisk { index },
                _ => LaneRole::Disk { index },
            };
            let hello = Hello { migration, epoch, memory_bytes: pages * 4096, role };
            prop_assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(hello.encode(), bytes);
            }
        }
    }
}
