//! A small NBD client that reads an image through its export and tells the digests of its blocks.

use std::io::{Error, ErrorKind, Read, Write};

use crate::GateError;
use crate::held::{HELD_BLOCK_BYTES, block_digest};
use crate::negotiation::check_greeting;
use crate::protocol::{
    CHUNK_DONE, CHUNK_ERROR_BIT, CHUNK_HEADER_BYTES, CHUNK_OFFSET_DATA, COMMAND_READ,
    GREETING_BYTES, INFO_EXPORT, OPTION_DATA_BYTES_MAX, OPTION_GO, OPTION_MAGIC,
    OPTION_REPLY_BYTES, OPTION_REPLY_MAGIC, OPTION_STRUCTURED_REPLY, PAYLOAD_BYTES_MAX, REPLY_ACK,
    REPLY_INFO, REQUEST_BYTES, REQUEST_MAGIC, STRUCTURED_REPLY_MAGIC, be16, be32, be64,
};

/// Read at once: holes cost a reply each.
const READ_BYTES: usize = 16 * HELD_BLOCK_BYTES;

/// Calls `each(number, digest)` for every whole block that is not a hole, ascending.
pub fn read_blocks(
    mut server: impl Read + Write,
    export: &str,
    mut each: impl FnMut(u64, u128) -> Result<(), GateError>,
) -> Result<(), GateError> {
    let size = agree(&mut server, export)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(READ_BYTES as u64) as usize;
        let has_data = read(&mut server, at, &mut buffer[..length])?;
        let first = at / HELD_BLOCK_BYTES as u64;
        for (number, block) in buffer[..length].chunks_exact(HELD_BLOCK_BYTES).enumerate() {
            if has_data & 1 << number != 0 {
                each(first + number as u64, block_digest(block))?;
            }
        }
        at += length as u64;
    }
    Ok(())
}

/// Negotiates; answers the size of the image.
fn agree(server: &mut (impl Read + Write), export: &str) -> Result<u64, GateError> {
    let mut greeting = [0; GREETING_BYTES];
    server.read_exact(&mut greeting)?;
    check_greeting(&greeting)?;
    // Fixed newstyle, no zeroes.
    server.write_all(&3_u32.to_be_bytes())?;
    option(server, OPTION_STRUCTURED_REPLY, &[])?;
    let (kind, _) = option_reply(server, OPTION_STRUCTURED_REPLY)?;
    if kind != REPLY_ACK {
        return Err(GateError::Protocol("a server without structured replies"));
    }
    let mut name = (export.len() as u32).to_be_bytes().to_vec();
    name.extend_from_slice(export.as_bytes());
    name.extend_from_slice(&[0, 0]);
    option(server, OPTION_GO, &name)?;
    let mut size = None;
    loop {
        match option_reply(server, OPTION_GO)? {
            (REPLY_ACK, _) => return size.ok_or(GateError::Protocol("an export without a size")),
            (REPLY_INFO, data) if data.len() >= 10 && be16(&data, 0) == INFO_EXPORT => {
                size = Some(be64(&data, 2));
            }
            (REPLY_INFO, _) => {}
            _ => return Err(GateError::Protocol("the export is refused")),
        }
    }
}

fn option(server: &mut impl Write, number: u32, data: &[u8]) -> Result<(), GateError> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    Ok(server.write_all(&bytes)?)
}

fn option_reply(server: &mut impl Read, number: u32) -> Result<(u32, Vec<u8>), GateError> {
    let mut header = [0; OPTION_REPLY_BYTES];
    server.read_exact(&mut header)?;
    let data_bytes = be32(&header, 16);
    if be64(&header, 0) != OPTION_REPLY_MAGIC || be32(&header, 8) != number {
        return Err(GateError::Protocol("no answer to the option"));
    }
    if data_bytes > OPTION_DATA_BYTES_MAX {
        return Err(GateError::Protocol("an answer with too much data"));
    }
    let mut data = vec![0; data_bytes as usize];
    server.read_exact(&mut data)?;
    Ok((be32(&header, 12), data))
}

/// Fills the buffer; answers which of its blocks have data, a bit each.
fn read(
    server: &mut (impl Read + Write),
    offset: u64,
    buffer: &mut [u8],
) -> Result<u32, GateError> {
    let mut request = [0; REQUEST_BYTES];
    request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    request[6..8].copy_from_slice(&COMMAND_READ.to_be_bytes());
    request[16..24].copy_from_slice(&offset.to_be_bytes());
    request[24..28].copy_from_slice(&(buffer.len() as u32).to_be_bytes());
    server.write_all(&request)?;
    buffer.fill(0);
    let mut has_data = 0;
    loop {
        let mut header = [0; CHUNK_HEADER_BYTES];
        server.read_exact(&mut header)?;
        let (flags, kind, length) = (be16(&header, 4), be16(&header, 6), be32(&header, 16));
        if be32(&header, 0) != STRUCTURED_REPLY_MAGIC || length > PAYLOAD_BYTES_MAX {
            return Err(GateError::Protocol("no chunk"));
        }
        if kind & CHUNK_ERROR_BIT != 0 {
            return Err(Error::new(ErrorKind::InvalidData, "the server could not read").into());
        }
        if kind == CHUNK_OFFSET_DATA && length >= 8 {
            let mut place = [0; 8];
            server.read_exact(&mut place)?;
            let from = be64(&place, 0).wrapping_sub(offset) as usize;
            let to = from.saturating_add(length as usize - 8);
            let part = buffer.get_mut(from..to);
            server.read_exact(part.ok_or(GateError::Protocol("data of another place"))?)?;
            for block in from / HELD_BLOCK_BYTES..to.div_ceil(HELD_BLOCK_BYTES) {
                has_data |= 1 << block;
            }
        } else {
            // A hole, or the end: nothing in it that is needed.
            server.take(u64::from(length)).read_to_end(&mut Vec::new())?;
        }
        if flags & CHUNK_DONE != 0 {
            return Ok(has_data);
        }
    }
}
