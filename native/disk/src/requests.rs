//! From the client to the server: options, then requests, each looked at before it passes.

use crate::GateError;
use crate::books::InFlight;
use crate::gate::Shared;
use crate::held::HeldBlocks;
use crate::negotiation::{check_client_flags, follow_option};
use crate::protocol::{
    COMMAND_BLOCK_STATUS, COMMAND_CACHE, COMMAND_DISCONNECT, COMMAND_FLUSH, COMMAND_READ,
    COMMAND_TRIM, COMMAND_WRITE, COMMAND_WRITE_ZEROES, OPTION_BYTES, OWN_COOKIE, OWN_COOKIE_MASK,
    PAYLOAD_BYTES_MAX, REQUEST_BYTES, REQUEST_MAGIC, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, be16,
    be32, be64,
};
use crate::replies::{ToClient, send};
use std::io::{BufReader, ErrorKind, Read};

/// Data of a write that is in memory at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Longest write that is compared with what the image holds; a mirror's have 1 MiB.
const COMPARED_BYTES_MAX: usize = 4 << 20;

/// How a client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It said that it disconnects, so the server may end from then on, in whatever way.
    Disconnected,
    /// Its stream ended between two requests.
    Ended,
}

/// Passes what the client sends until it leaves.
pub(crate) fn pass_requests(
    shared: &Shared,
    id: u64,
    client: &mut dyn Read,
    to_client: &ToClient,
) -> Result<Leave, GateError> {
    let mut client = BufReader::with_capacity(PIECE_BYTES, client);
    let mut flags = [0; 4];
    if !read_or_end(&mut client, &mut flags)? {
        return Ok(Leave::Ended);
    }
    check_client_flags(flags)?;
    shared.forward(id, &flags, None)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut magic = [0; 4];
    while read_or_end(&mut client, &mut magic)? {
        let goes_on = if u32::from_be_bytes(magic) == REQUEST_MAGIC {
            pass_request(shared, id, &mut client, &mut piece, to_client)?
        } else {
            pass_option(shared, id, &mut client, &mut piece, magic)?
        };
        if !goes_on {
            return Ok(Leave::Disconnected);
        }
    }
    Ok(Leave::Ended)
}

fn pass_option(
    shared: &Shared,
    id: u64,
    client: &mut impl Read,
    piece: &mut [u8],
    magic: [u8; 4],
) -> Result<bool, GateError> {
    if shared.in_transmission(id)? {
        return Err(GateError::Protocol("no request"));
    }
    let mut header = [0; OPTION_BYTES];
    header[..4].copy_from_slice(&magic);
    client.read_exact(&mut header[4..])?;
    let data_bytes = follow_option(&mut header)? as usize;
    let whole = &mut piece[..OPTION_BYTES + data_bytes];
    whole[..OPTION_BYTES].copy_from_slice(&header);
    client.read_exact(&mut whole[OPTION_BYTES..])?;
    shared.forward(id, whole, None)?;
    Ok(true)
}

/// False after a disconnect. Behind a gate the server does not see it: the connection stays for the
/// last flush.
fn pass_request(
    shared: &Shared,
    id: u64,
    client: &mut impl Read,
    piece: &mut [u8],
    to_client: &ToClient,
) -> Result<bool, GateError> {
    if !shared.in_transmission(id)? {
        return Err(GateError::Protocol("a request before the options were agreed"));
    }
    let header = &mut piece[..REQUEST_BYTES];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    client.read_exact(&mut header[4..])?;
    let (command, cookie, length) = (be16(header, 6), be64(header, 8), be32(header, 24));
    if cookie & OWN_COOKIE_MASK == OWN_COOKIE {
        return Err(GateError::Protocol("a cookie that is reserved"));
    }
    let (is_write, data_bytes, reply_bytes) = match command {
        COMMAND_READ => (false, 0, length),
        COMMAND_WRITE => (true, length, 0),
        COMMAND_TRIM | COMMAND_WRITE_ZEROES => (true, 0, 0),
        COMMAND_FLUSH | COMMAND_CACHE | COMMAND_BLOCK_STATUS => (false, 0, 0),
        COMMAND_DISCONNECT => {
            if shared.passes_disconnects() {
                let header = piece[..REQUEST_BYTES].to_vec();
                shared.forward(id, &header, None)?;
            }
            return Ok(false);
        }
        _ => return Err(GateError::Protocol("an unknown command")),
    };
    if data_bytes.max(reply_bytes) > PAYLOAD_BYTES_MAX {
        return Err(GateError::Protocol("a request for too many bytes"));
    }
    let offset = be64(header, 16);
    if is_write {
        shared.check_writer(id)?;
    }
    if is_compared(shared, command, offset, length) {
        return pass_news(shared, id, client, piece, to_client);
    }
    let mut digest = blake3::Hasher::new();
    digest.update(&piece[4..8]).update(&piece[16..REQUEST_BYTES]);
    let mut left = data_bytes as usize;
    let mut filled = REQUEST_BYTES;
    shared.begin_request(id)?;
    loop {
        let count = left.min(piece.len() - filled);
        client.read_exact(&mut piece[filled..filled + count])?;
        left -= count;
        if is_write {
            digest.update(&piece[filled..filled + count]);
        }
        let last = (left == 0).then(|| {
            let digest = first_half(&digest.finalize());
            let request = InFlight { is_write, digest, reply_bytes, failed: false };
            (cookie, request, u64::from(data_bytes))
        });
        shared.forward(id, &piece[..filled + count], last)?;
        filled = 0;
        if left == 0 {
            shared.end_request(id)?;
            return Ok(true);
        }
    }
}

/// Whether something of the request may be held already; what another writes is not any more.
fn is_compared(shared: &Shared, command: u16, offset: u64, length: u32) -> bool {
    let mut held = shared.held();
    match command {
        COMMAND_WRITE if length as usize <= COMPARED_BYTES_MAX && !held.is_empty() => return true,
        COMMAND_WRITE | COMMAND_TRIM | COMMAND_WRITE_ZEROES => {
            held.forget(offset, u64::from(length));
        }
        // The answers of our own must not fall between the pieces of a long reply.
        COMMAND_READ => *held = HeldBlocks::default(),
        _ => {}
    }
    false
}

/// Passes of a write what the image does not hold; all of it held, the answer is ours.
fn pass_news(
    shared: &Shared,
    id: u64,
    client: &mut impl Read,
    piece: &[u8],
    to_client: &ToClient,
) -> Result<bool, GateError> {
    let (cookie, offset, length) = (be64(piece, 8), be64(piece, 16), be32(piece, 24) as usize);
    let mut whole = vec![0; REQUEST_BYTES + length];
    whole[..REQUEST_BYTES].copy_from_slice(&piece[..REQUEST_BYTES]);
    client.read_exact(&mut whole[REQUEST_BYTES..])?;
    let news = shared.held().differing(offset, &whole[REQUEST_BYTES..]);
    if news.is_empty() {
        let mut reply = [0; SIMPLE_REPLY_BYTES];
        reply[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        reply[8..].copy_from_slice(&cookie.to_be_bytes());
        send(to_client, &reply);
        return Ok(true);
    }
    let offset = offset.wrapping_add(news.start as u64);
    shared.held().forget(offset, news.len() as u64);
    // The header moves up to the first byte that is news: a reply names only its cookie.
    let mut header = [0; REQUEST_BYTES];
    header.copy_from_slice(&whole[..REQUEST_BYTES]);
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..].copy_from_slice(&(news.len() as u32).to_be_bytes());
    whole[news.start..news.start + REQUEST_BYTES].copy_from_slice(&header);
    let request = &whole[news.start..REQUEST_BYTES + news.end];
    let mut digest = blake3::Hasher::new();
    digest.update(&request[4..8]).update(&request[16..]);
    let digest = first_half(&digest.finalize());
    shared.begin_request(id)?;
    let in_flight = InFlight { is_write: true, digest, reply_bytes: 0, failed: false };
    shared.forward(id, request, Some((cookie, in_flight, news.len() as u64)))?;
    shared.end_request(id)?;
    Ok(true)
}

fn first_half(hash: &blake3::Hash) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// Fills the buffer; false when the client ended properly before its first byte.
fn read_or_end(client: &mut impl Read, buffer: &mut [u8]) -> Result<bool, GateError> {
    let first = loop {
        match client.read(buffer) {
            Ok(count) => break count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    };
    if first > 0 {
        client.read_exact(&mut buffer[first..])?;
    }
    Ok(first > 0)
}
