//! The TLS handshake over a non-blocking socket, one step at a time.
//!
//! rustls' unbuffered connection decides; this file moves its bytes and, when it is done, takes
//! the traffic keys out for `stream`. The caller waits between the steps, alone (`connector`) or
//! for many at once (`acceptor`).

use super::socket::Socket;
use super::stream::{Established, KeySchedule};
use crate::{LaneError, LinkError, PeerIdentity};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

/// Bytes taken from the socket at once.
const CHUNK_BYTES: usize = 4096;
/// Bytes of a peer's handshake; two certificate chains fit many times over.
const INCOMING_BYTES_MAX: usize = 64 * 1024;

/// What has to happen before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    AwaitsInput,
    AwaitsRoom,
    Done,
}

enum Machine {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What one look at the connection led to.
enum Step {
    Again,
    Blocked,
    Done,
}

/// A handshake under way.
pub(super) struct Handshake {
    pub(super) socket: Socket,
    machine: Machine,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    plain: Vec<u8>,
    done: bool,
}

impl Handshake {
    pub(super) fn client(socket: Socket, connection: UnbufferedClientConnection) -> Self {
        Self::new(socket, Machine::Client(connection))
    }

    pub(super) fn server(socket: Socket, connection: UnbufferedServerConnection) -> Self {
        Self::new(socket, Machine::Server(connection))
    }

    fn new(socket: Socket, machine: Machine) -> Self {
        Self {
            socket,
            machine,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            plain: Vec::new(),
            done: false,
        }
    }

    /// Goes as far as it can without waiting. On failure the alert for the peer is still sent, as
    /// far as the socket takes it.
    pub(super) fn advance(&mut self) -> Result<Progress, LinkError> {
        loop {
            if !self.done {
                self.run_machine()?;
            }
            if !self.send_outgoing().map_err(LinkError::from_lane)? {
                return Ok(Progress::AwaitsRoom);
            }
            if self.done {
                return Ok(Progress::Done);
            }
            if !self.receive()? {
                return Ok(Progress::AwaitsInput);
            }
        }
    }

    fn run_machine(&mut self) -> Result<(), LinkError> {
        loop {
            match self.step() {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) => return Ok(()),
                Ok(Step::Done) => {
                    self.done = true;
                    return Ok(());
                }
                Err(cause) => {
                    // The alert that says why waits inside the connection. No further than that:
                    // input that was refused must not be looked at again.
                    while self.has_alert() && matches!(self.step(), Ok(Step::Again)) {}
                    let _ = self.send_outgoing();
                    return Err(LinkError::Refused(cause.to_string()));
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, rustls::Error> {
        let (discard, step) = match &mut self.machine {
            Machine::Client(connection) => look(
                connection.process_tls_records(&mut self.incoming),
                &mut self.outgoing,
                &mut self.plain,
            ),
            Machine::Server(connection) => look(
                connection.process_tls_records(&mut self.incoming),
                &mut self.outgoing,
                &mut self.plain,
            ),
        };
        self.incoming.drain(..discard);
        step
    }

    fn has_alert(&self) -> bool {
        match &self.machine {
            Machine::Client(connection) => connection.wants_write(),
            Machine::Server(connection) => connection.wants_write(),
        }
    }

    /// False when the socket takes no more now.
    fn send_outgoing(&mut self) -> Result<bool, LaneError> {
        while !self.outgoing.is_empty() {
            match self.socket.send(&self.outgoing)? {
                Some(count) => drop(self.outgoing.drain(..count)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// False when nothing has arrived.
    fn receive(&mut self) -> Result<bool, LinkError> {
        let filled = self.incoming.len();
        if filled >= INCOMING_BYTES_MAX {
            return Err(LinkError::Refused("the peer's handshake is too long".to_owned()));
        }
        self.incoming.resize(filled + CHUNK_BYTES, 0);
        let received = self.socket.receive(&mut self.incoming[filled..]);
        let count = received.as_ref().map_or(0, |count| count.unwrap_or(0));
        self.incoming.truncate(filled + count);
        match received.map_err(LinkError::from_lane)? {
            None => Ok(false),
            Some(0) => Err(LinkError::from_lane(LaneError::Truncated)),
            Some(_) => Ok(true),
        }
    }

    /// Whom the peer's certificate names; the verifier has checked it.
    pub(super) fn peer(&self) -> Result<PeerIdentity, LinkError> {
        let certificates: Option<&[CertificateDer<'_>]> = match &self.machine {
            Machine::Client(connection) => connection.peer_certificates(),
            Machine::Server(connection) => connection.peer_certificates(),
        };
        let certificate = certificates
            .and_then(<[_]>::first)
            .ok_or_else(|| LinkError::Refused("the peer showed no certificate".to_owned()))?;
        super::verify::identity_of(certificate).map_err(LinkError::Refused)
    }

    /// Name of the key agreement that was used, for the tests and the log.
    pub(super) fn key_agreement(&self) -> String {
        let group = match &self.machine {
            Machine::Client(connection) => connection.negotiated_key_exchange_group(),
            Machine::Server(connection) => connection.negotiated_key_exchange_group(),
        };
        group.map_or_else(String::new, |group| format!("{:?}", group.name()))
    }

    /// After `Done`: the keys, and what arrived behind the handshake.
    pub(super) fn establish(self) -> Result<Established, LinkError> {
        let refused = |cause: rustls::Error| LinkError::Refused(cause.to_string());
        let (secrets, schedule) = match self.machine {
            Machine::Client(connection) => {
                let (secrets, schedule) =
                    connection.dangerous_into_kernel_connection().map_err(refused)?;
                (secrets, KeySchedule::Client(schedule))
            }
            Machine::Server(connection) => {
                let (secrets, schedule) =
                    connection.dangerous_into_kernel_connection().map_err(refused)?;
                (secrets, KeySchedule::Server(schedule))
            }
        };
        Ok(Established {
            socket: self.socket,
            secrets,
            schedule,
            wire: self.incoming,
            plain: self.plain,
        })
    }
}

/// Does what one state of the connection asks for; answers how much of the input is used up.
fn look<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(cause) => Err(cause),
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let start = outgoing.len();
            if let Err(EncodeError::InsufficientSize(needed)) = message.encode(&mut []) {
                outgoing.resize(start + needed.required_size, 0);
                let encoded = message.encode(&mut outgoing[start..]).unwrap_or(0);
                outgoing.truncate(start + encoded);
            }
            Ok(Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmission)) => {
            // `outgoing` keeps the order, so what is encoded counts as sent.
            transmission.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    Err(cause) => return (discard, Err(cause)),
                }
            }
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(_) => Err(rustls::Error::General("the peer ended the handshake".to_owned())),
    };
    (discard, step)
}
