//! The link that leaves the machine: TLS 1.3 over TCP, authenticated in both directions.
//!
//! Who may connect is decided by the certificate: signed by our CA, inside its dates, not revoked,
//! carrying one identity `novacron://<role>/<name>` that the other side expects. There is no mode
//! without it. Key agreement is X25519MLKEM768 where both ends have it, else X25519.
//!
//! ```text
//!   source                                   target
//!     TCP connect ───────────────────────────►
//!     TLS 1.3 handshake, both certificates ◄──►   at most handshake time-out, few at a time
//!     u16 length, hello ─────────────────────►    first bytes under encryption
//!     ◄───────────────────────────── 1 byte: 1    certificate and hello were taken
//!     lane: bytes in both directions ◄───────►
//! ```
//!
//! The answer byte costs one round trip and makes a refusal an error of `open` instead of a
//! surprise later: with TLS 1.3 the dialling side is done before the other has looked at its
//! certificate.

mod acceptor;
mod connector;
mod credentials;
mod handshake;
mod record;
mod socket;
mod stream;
mod verify;

pub use acceptor::{Acceptor, AcceptorOptions, Refusal};
pub use connector::Connector;
pub use credentials::{CredentialFiles, Credentials, RevokedSerials};
pub use socket::SocketOptions;

/// Protocol name in the handshake (ALPN): the version of hello and lane framing.
const LANE_PROTOCOL: &[u8] = b"novacron-lane/1";
/// Answer of the listening side once it has taken certificate and hello.
const HELLO_TAKEN: u8 = 1;
