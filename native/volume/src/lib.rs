//! Shared volumes: disks that outlive their VM's host.
//!
//! ```text
//!   VMM ─ unix ─► link ══ TLS 1.3, one epoch ══► gate ─ unix ─► NBD server
//!   (one a VM and volume, outlives the runner)   (beside the server; its epochs are durable)
//! ```
//!
//! The gate decides whose writes reach a volume: only those of connections whose epoch it stands
//! at. Which epoch is right is the ledger's to say; a host raises the gate before its VM's next
//! instruction. NBD itself, and what is in flight, are `novacron-disk`'s matter.

pub mod config;
pub mod epoch;
pub mod gate;
pub mod link;
pub mod words;
