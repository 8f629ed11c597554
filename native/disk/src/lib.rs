//! The gate in front of a disk.
//!
//! A mirror job at the source writes over NBD into the target's image. This crate stands in
//! between: it follows the protocol in both directions, counts the writes (that is ioSequence)
//! and sums up what they were,
//! asks the server to flush without the client's help, and refuses every write whose epoch is
//! lower than the gate's. Of a mirror that begins anew a tap lets only pass what the image does not
//! hold already. It leaves the sockets, the lanes and the mirror to others, and so the
//! epoch's durability: a file beside the disk holds it before `raise` is called.
//!
//! ```text
//!   mirror ─ unix ─► NbdGate as a tap ─ lane ─► NbdGate as the gate ─ unix ─► NBD server
//!   (source QEMU)    counts, sums               counts, sums, flushes, fences (target QEMU)
//! ```

mod books;
mod error;
mod gate;
mod held;
mod image;
mod negotiation;
mod protocol;
mod replies;
mod requests;

pub use error::GateError;
pub use gate::{Flushed, GateCounts, GateOptions, NbdGate, Stream};
pub use held::{HELD_BLOCK_BYTES, HeldBlocks, block_digest};
pub use image::read_blocks;
