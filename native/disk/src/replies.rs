//! From the server to the client: greeting and answers, then replies; those to the gate's own
//! flushes stay here. A completion is booked before the client can read it, so the source never
//! counts a write that the target has not counted.

use crate::GateError;
use crate::gate::Shared;
use crate::negotiation::{Agreed, check_greeting, follow_option_reply};
use crate::protocol::{
    CHUNK_DONE, CHUNK_ERROR_BIT, CHUNK_HEADER_BYTES, GREETING_BYTES, OPTION_REPLY_BYTES,
    OWN_COOKIE, OWN_COOKIE_MASK, PAYLOAD_BYTES_MAX, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, be16, be32, be64,
};
use std::io::{BufReader, Read, Write};
use std::sync::{Mutex, PoisonError};

/// Bytes of replies that are in memory at once.
const PIECE_BYTES: usize = 256 * 1024;

/// The client's writing end; empty once it has left.
pub(crate) type ToClient = Mutex<Option<Box<dyn Write + Send>>>;

/// Passes what the server sends until it ends.
pub(crate) fn pass_replies(
    shared: &Shared,
    id: u64,
    server: &mut dyn Read,
    to_client: &ToClient,
) -> Result<(), GateError> {
    let mut server = BufReader::with_capacity(PIECE_BYTES, server);
    let mut greeting = [0; GREETING_BYTES];
    if !filled(&mut server, &mut greeting)? {
        return Ok(());
    }
    check_greeting(&greeting)?;
    send(to_client, &greeting);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let mut header = [0; OPTION_REPLY_BYTES];
        if !filled(&mut server, &mut header)? {
            return Ok(());
        }
        let (data_bytes, agreed) = follow_option_reply(&mut header)?;
        let whole = &mut piece[..OPTION_REPLY_BYTES + data_bytes as usize];
        whole[..OPTION_REPLY_BYTES].copy_from_slice(&header);
        server.read_exact(&mut whole[OPTION_REPLY_BYTES..])?;
        match agreed {
            Agreed::Nothing => {}
            Agreed::StructuredReplies => shared.set_structured(id)?,
            Agreed::Transmission => shared.set_transmission(id)?,
        }
        send(to_client, whole);
        if agreed == Agreed::Transmission {
            break;
        }
    }
    let structured = shared.is_structured(id)?;
    let mut magic = [0; 4];
    while filled(&mut server, &mut magic)? {
        match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => pass_simple(shared, id, &mut server, to_client, &mut piece)?,
            STRUCTURED_REPLY_MAGIC if structured => {
                pass_chunk(shared, id, &mut server, to_client, &mut piece)?;
            }
            _ => return Err(GateError::Protocol("no reply")),
        }
    }
    Ok(())
}

fn pass_simple(
    shared: &Shared,
    id: u64,
    server: &mut impl Read,
    to_client: &ToClient,
    piece: &mut [u8],
) -> Result<(), GateError> {
    let header = &mut piece[..SIMPLE_REPLY_BYTES];
    header[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    server.read_exact(&mut header[4..])?;
    let (error, cookie) = (be32(header, 4), be64(header, 8));
    if cookie & OWN_COOKIE_MASK == OWN_COOKIE {
        return shared.complete_flush(id, cookie as u32, error);
    }
    let request = shared.look_up(id, cookie)?;
    let data_bytes = if error == 0 { request.reply_bytes } else { 0 };
    shared.complete(id, cookie, error != 0)?;
    pass_bytes(server, to_client, piece, SIMPLE_REPLY_BYTES, data_bytes as usize)
}

fn pass_chunk(
    shared: &Shared,
    id: u64,
    server: &mut impl Read,
    to_client: &ToClient,
    piece: &mut [u8],
) -> Result<(), GateError> {
    let header = &mut piece[..CHUNK_HEADER_BYTES];
    header[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    server.read_exact(&mut header[4..])?;
    let (flags, kind) = (be16(header, 4), be16(header, 6));
    let (cookie, data_bytes) = (be64(header, 8), be32(header, 16));
    if data_bytes > PAYLOAD_BYTES_MAX {
        return Err(GateError::Protocol("a chunk of too many bytes"));
    }
    let (failed, done) = (kind & CHUNK_ERROR_BIT != 0, flags & CHUNK_DONE != 0);
    if cookie & OWN_COOKIE_MASK == OWN_COOKIE {
        return swallow_flush(shared, id, server, cookie as u32, data_bytes, failed);
    }
    shared.look_up(id, cookie)?;
    if done {
        shared.complete(id, cookie, failed)?;
    } else if failed {
        shared.note_error(id, cookie)?;
    }
    pass_bytes(server, to_client, piece, CHUNK_HEADER_BYTES, data_bytes as usize)
}

/// A flush has one chunk: nothing, or an error number and a text.
fn swallow_flush(
    shared: &Shared,
    id: u64,
    server: &mut impl Read,
    number: u32,
    data_bytes: u32,
    failed: bool,
) -> Result<(), GateError> {
    let mut text = Vec::new();
    server.take(u64::from(data_bytes)).read_to_end(&mut text)?;
    let error = text.first_chunk::<4>().map_or(1, |code| u32::from_be_bytes(*code));
    shared.complete_flush(id, number, if failed { error.max(1) } else { 0 })
}

/// Passes the header that stands at the start of `piece` and the bytes that follow it.
fn pass_bytes(
    server: &mut impl Read,
    to_client: &ToClient,
    piece: &mut [u8],
    header_bytes: usize,
    data_bytes: usize,
) -> Result<(), GateError> {
    let (mut filled, mut left) = (header_bytes, data_bytes);
    loop {
        let count = left.min(piece.len() - filled);
        server.read_exact(&mut piece[filled..filled + count])?;
        left -= count;
        send(to_client, &piece[..filled + count]);
        filled = 0;
        if left == 0 {
            return Ok(());
        }
    }
}

/// To the client, if it is still there; that it left is noticed by the other direction.
pub(crate) fn send(to_client: &ToClient, bytes: &[u8]) {
    let mut slot = to_client.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = slot.as_mut()
        && client.write_all(bytes).and_then(|()| client.flush()).is_err()
    {
        *slot = None;
    }
}

/// Fills the buffer; false when the server ended before its first byte.
fn filled(server: &mut impl Read, buffer: &mut [u8]) -> Result<bool, GateError> {
    let first = server.read(buffer)?;
    if first > 0 {
        server.read_exact(&mut buffer[first..])?;
    }
    Ok(first > 0)
}
