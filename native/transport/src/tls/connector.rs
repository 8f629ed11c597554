//! The dialling side: connect, shake hands, say hello, wait for the answer.

use super::HELLO_TAKEN;
use super::credentials::Credentials;
use super::handshake::{Handshake, Progress};
use super::socket::{Socket, SocketOptions, connect};
use super::stream::TlsStream;
use crate::lane::{ReadHalf, WriteHalf};
use crate::{HELLO_BYTES_MAX, Lane, LaneError, Link, LinkError, PeerIdentity};
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A way to one listener of one peer.
#[derive(Clone, Debug)]
pub struct Connector {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    options: SocketOptions,
}

impl Connector {
    /// Lanes to `address`, whose holder must show the certificate of `expected`.
    pub fn new(
        address: SocketAddr,
        credentials: &Credentials,
        expected: &PeerIdentity,
        options: SocketOptions,
    ) -> Result<Self, LinkError> {
        let config = credentials.client_config(expected.clone())?;
        Ok(Self { address, config, options })
    }

    fn shake_hands(&self, deadline: Instant) -> Result<Handshake, LinkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::Deadline);
        }
        let stream = connect(self.address, &self.options, left).map_err(|cause| {
            if cause.kind() == std::io::ErrorKind::TimedOut {
                LinkError::Deadline
            } else {
                LinkError::Unreachable(cause)
            }
        })?;
        let socket = Socket::new(stream).map_err(LinkError::Unreachable)?;
        // Never sent: there is no SNI, and the verifier looks at the SAN URI instead.
        let name = ServerName::IpAddress(self.address.ip().into());
        let connection = UnbufferedClientConnection::new(Arc::clone(&self.config), name)
            .map_err(|e| LinkError::Credentials(e.to_string()))?;
        let mut handshake = Handshake::client(socket, connection);
        loop {
            let events = match handshake.advance()? {
                Progress::Done => return Ok(handshake),
                Progress::AwaitsInput => libc::POLLIN,
                Progress::AwaitsRoom => libc::POLLOUT,
            };
            handshake.socket.wait(events, Some(deadline)).map_err(LinkError::from_lane)?;
        }
    }

    /// As [`Link::open`], and names the key agreement that was used.
    pub fn open_named(&self, hello: &[u8], timeout: Duration) -> Result<(Lane, String), LinkError> {
        if hello.len() > HELLO_BYTES_MAX {
            return Err(LinkError::HelloTooLong(hello.len()));
        }
        let deadline = Instant::now() + timeout;
        let handshake = self.shake_hands(deadline)?;
        let key_agreement = handshake.key_agreement();
        let mut stream = TlsStream::new(handshake.establish()?).map_err(LinkError::from_lane)?;
        greet(&mut stream, hello, deadline).map_err(LinkError::from_lane)?;
        Ok((stream.into_lane(), key_agreement))
    }
}

fn greet(stream: &mut TlsStream, hello: &[u8], deadline: Instant) -> Result<(), LaneError> {
    let TlsStream { reader, writer } = stream;
    writer.set_deadline(Some(deadline));
    reader.set_deadline(Some(deadline));
    writer.write_all(&(hello.len() as u16).to_be_bytes())?;
    writer.write_all(hello)?;
    writer.flush()?;
    let mut answer = [0];
    if reader.read(&mut answer)? != 1 || answer != [HELLO_TAKEN] {
        return Err(LaneError::Protocol("the hello was not taken"));
    }
    writer.set_deadline(None);
    reader.set_deadline(None);
    Ok(())
}

impl Link for Connector {
    fn open(&self, hello: &[u8], timeout: Duration) -> Result<Lane, LinkError> {
        self.open_named(hello, timeout).map(|(lane, _)| lane)
    }
}
