//! Pure rules of a move: frames, convergence, pacing, progress and the digest of guest memory.
//!
//! Nothing here reads a clock, opens a file or starts a thread: time, bytes and figures come in
//! as arguments, decisions and bytes go out. What is done with them is `session`'s matter.

pub mod convergence;
pub mod digest;
pub mod dirtying;
pub mod frame;
pub mod hello;
pub mod pacing;
pub mod pages;
pub mod progress;
pub mod push_limit;

/// Bytes of a guest page. Both sides track 4 KiB pages, whatever backs them.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a chunk: the unit that is bound to a lane and read, hashed and written at once (1 MiB).
pub const CHUNK_PAGES: usize = 256;
/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = PAGE_BYTES * CHUNK_PAGES;
/// Largest guest: the digest table takes 16 bytes a page, so 4 GiB of it for 1 TiB.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;
/// Most lanes of one move: cores, not links, are the bound on one machine.
pub const LANE_COUNT_MAX: u16 = 16;
