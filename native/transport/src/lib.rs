//! Links between hosts: ordered, bounded lanes of bytes, each authenticated and encrypted.
//!
//! This crate decides how bytes get from one host to the other and who may be at the other end. It
//! leaves what the bytes mean, how fast they go (pacing) and how many lanes there are to `session`.
//!
//! ```text
//!   Link::open(hello) ──► Lane { reader, writer, control }      side that dials
//!   Listener::accept() ─► Incoming { lane, identity, hello }    side that listens
//! ```
//!
//! Two implementations pass the same conformance suite (`tests/conformance.rs`): [`tls`], TLS 1.3
//! over TCP, which is the only one that leaves the machine, and [`memory`], for tests of the
//! layers above. QUIC, RDMA and shared memory get their own modules when they come.

mod error;
mod identity;
mod lane;
pub mod memory;
pub mod tls;

pub use error::{LaneError, LinkError};
pub use identity::PeerIdentity;
pub use lane::{
    HELLO_BYTES_MAX, Incoming, Lane, LaneControl, LaneReader, LaneWriter, Link, Listener, ReadHalf,
    WireControl, WriteHalf,
};
