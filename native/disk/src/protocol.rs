//! Numbers of the NBD protocol (doc/proto.md of the NBD project), as far as the gate follows it.

pub(crate) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // IHAVEOPT
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

pub(crate) const GREETING_FIXED_NEWSTYLE: u16 = 1;
/// Fixed newstyle, and no zeroes.
pub(crate) const CLIENT_FLAGS_KNOWN: u32 = 3;

pub(crate) const OPTION_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPTION_GO: u32 = 7;
/// Abort, list, info, go, structured replies, list and set meta context. The export name (1) is
/// missing because its answer has no frame, TLS (5) and extended headers (11) as they change one.
pub(crate) const OPTIONS_FOLLOWED: [u32; 7] = [2, 3, 6, OPTION_GO, OPTION_STRUCTURED_REPLY, 9, 10];
pub(crate) const OPTION_EXPORT_NAME: u32 = 1;
/// Options that are not followed reach the server under a number that none knows, so that it
/// refuses them itself; the answer gets its number back.
pub(crate) const OPTION_HIDDEN: u32 = 0x6e00_0000;
/// Highest option number that can be hidden and brought back.
pub(crate) const OPTION_NUMBER_MAX: u32 = 0x00ff_ffff;
pub(crate) const REPLY_ACK: u32 = 1;
pub(crate) const REPLY_INFO: u32 = 3;
pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const REPLY_ERROR_BIT: u32 = 1 << 31;

pub(crate) const COMMAND_READ: u16 = 0;
pub(crate) const COMMAND_WRITE: u16 = 1;
pub(crate) const COMMAND_DISCONNECT: u16 = 2;
pub(crate) const COMMAND_FLUSH: u16 = 3;
pub(crate) const COMMAND_TRIM: u16 = 4;
pub(crate) const COMMAND_CACHE: u16 = 5;
pub(crate) const COMMAND_WRITE_ZEROES: u16 = 6;
pub(crate) const COMMAND_BLOCK_STATUS: u16 = 7;

pub(crate) const CHUNK_DONE: u16 = 1;
pub(crate) const CHUNK_OFFSET_DATA: u16 = 1;
pub(crate) const CHUNK_ERROR_BIT: u16 = 1 << 15;

pub(crate) const REQUEST_BYTES: usize = 28;
pub(crate) const SIMPLE_REPLY_BYTES: usize = 16;
pub(crate) const CHUNK_HEADER_BYTES: usize = 20;
pub(crate) const OPTION_BYTES: usize = 16;
pub(crate) const OPTION_REPLY_BYTES: usize = 20;
pub(crate) const GREETING_BYTES: usize = 18;

/// Data of one option or of its answer; an export's name is at most 4 KiB.
pub(crate) const OPTION_DATA_BYTES_MAX: u32 = 64 * 1024;
/// Payload of one request or chunk: QEMU's own limit is 32 MiB, plus a chunk's offset.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024 + 4096;
/// Requests in flight on one connection; QEMU sends 16.
pub(crate) const IN_FLIGHT_MAX: usize = 1024;
/// Cookies that begin so are the gate's own. QEMU's are small numbers or addresses of user space,
/// whose upper 16 bits are zero; a client that uses one of these is refused.
pub(crate) const OWN_COOKIE: u64 = 0x6e6f_7661_0000_0000;
pub(crate) const OWN_COOKIE_MASK: u64 = 0xffff_ffff_0000_0000;

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// A flush request of the gate's own.
pub(crate) fn flush_request(number: u32) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    request[6..8].copy_from_slice(&COMMAND_FLUSH.to_be_bytes());
    request[8..16].copy_from_slice(&(OWN_COOKIE | u64::from(number)).to_be_bytes());
    request
}
