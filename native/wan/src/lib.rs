//! A packet-level emulator of a wide-area link between two network namespaces, for the lab only.
//!
//! Two TUN devices, one thread, no kernel queueing discipline: it works where netem is missing. It
//! decides when each packet leaves, or that it is lost; what the packets mean is TCP's business.
//!
//! ```text
//!   namespace a ─ tun ─► Direction ab: queue, rate, loss, delay, jitter ─► tun ─ namespace b
//!               ◄─ tun ─ Direction ba:       the same, set apart         ◄─ tun ─
//! ```
//!
//! `direction` is pure (time and seed are arguments) and decides alike for the same packets and
//! seed; `packet` cuts the kernel's large segments into those of the wire; `emulator` waits and
//! moves bytes. It is honest only while it is punctual: reject runs whose lateness is high.

pub mod arguments;
pub mod direction;
pub mod emulator;
pub mod packet;
pub mod random;
pub mod statistics;
pub mod tun;
