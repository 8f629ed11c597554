//! Frames on a lane: whole ones in, whole ones out.

use novacron_core::frame::{
    BODY_BYTES_MAX, Frame, FrameError, HEADER_BYTES, Header, PAGES_HEAD_BYTES,
};
use novacron_transport::{LaneError, LaneReader, LaneWriter};

use crate::failure::{Failure, FailureCode};

/// Why no frame came.
#[derive(Debug)]
pub(crate) enum ReceiveError {
    Lane(LaneError),
    Frame(FrameError),
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Lane(error) => error.into(),
            ReceiveError::Frame(error) => Self::new(FailureCode::LinkRefused, error.to_string()),
        }
    }
}

/// Reads frames into a buffer that grows to the longest body that came, at most one chunk.
pub(crate) struct FrameReader {
    reader: LaneReader,
    body: Vec<u8>,
    spoil: bool,
}

impl FrameReader {
    pub(crate) fn new(reader: LaneReader) -> Self {
        Self { reader, body: Vec::new(), spoil: false }
    }

    /// Takes the deadline off again that the opening had.
    pub(crate) fn wait_for_ever(&mut self) {
        self.reader.set_deadline(None);
    }

    /// The next frame with pages comes with a wrong bit: a planted fault.
    pub(crate) fn spoil_once(&mut self) {
        self.spoil = true;
    }

    /// The next frame has so long to come.
    pub(crate) fn wait_until(&mut self, deadline: std::time::Instant) {
        self.reader.set_deadline(Some(deadline));
    }

    /// Waits for the next frame; answers its sequence and what it says.
    pub(crate) fn next(&mut self) -> Result<(u64, Frame<'_>), ReceiveError> {
        let mut bytes = [0; HEADER_BYTES];
        self.reader.read_exact(&mut bytes).map_err(ReceiveError::Lane)?;
        let header = Header::decode(&bytes).map_err(ReceiveError::Frame)?;
        debug_assert!(header.body_bytes <= BODY_BYTES_MAX);
        if self.body.len() < header.body_bytes {
            self.body.resize(header.body_bytes, 0);
        }
        let body = &mut self.body[..header.body_bytes];
        self.reader.read_exact(body).map_err(ReceiveError::Lane)?;
        if self.spoil && body.len() > PAGES_HEAD_BYTES {
            self.spoil = false;
            body[header.body_bytes - 1] ^= 1;
        }
        let frame = header.decode_body(body).map_err(ReceiveError::Frame)?;
        Ok((header.sequence, frame))
    }
}

/// Sends one small frame at once.
pub(crate) fn send_now(
    writer: &mut LaneWriter,
    sequence: u64,
    frame: Frame<'_>,
) -> Result<(), LaneError> {
    let mut bytes = Vec::with_capacity(64);
    frame.encode(sequence, &mut bytes);
    writer.write_all(&bytes)?;
    writer.flush()
}
