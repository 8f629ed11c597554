//! Frames of a lane: a fixed header with a version, then a bounded body.
//!
//! ```text
//! source ─► target   Pages* RoundEnd Pages* … Missing* Final    (memory lane i)
//! source ◄─ target   Resume first, then Applied now and then, the final marker always
//! source ◄─ target   Fault*, Whole                               (fault lane)
//! source ─► target   Pages*                                      (fault lane, one page each)
//! source ◄─ target   Listed* ListEnd, where a fault lane opens in mid-post-copy, before Fault*
//! source ─► target   Pages* Checked, then Pages for each Fault   (check lane, after the start)
//! source ◄─ target   Resume, then Fault* Applied                 (check lane)
//! source ◄─ target   Held* ListEnd, blocks for pages             (held-disk lane)
//! ```
//! A frame of the source carries a sequence that grows by one on its lane and goes on after a
//! reconnect; `Applied` and `Resume` name the last one that was applied, so that a source resends
//! only what comes after. Decoding is total: any bytes give a frame or an error.

use crate::pages::PageSet;
use crate::{CHUNK_BYTES, CHUNK_PAGES, MEMORY_BYTES_MAX, PAGE_BYTES};

/// Version of this protocol; a peer of another one is refused at the first frame.
pub const FRAME_VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a `Pages` body before the pages.
pub const PAGES_HEAD_BYTES: usize = 8 + 32 + 32;
/// Longest body: one full chunk.
pub const BODY_BYTES_MAX: usize = PAGES_HEAD_BYTES + CHUNK_BYTES;

const PAGES: u8 = 1;
const ROUND_END: u8 = 2;
const MISSING: u8 = 3;
const FINAL: u8 = 4;
const RECALL: u8 = 5;
const RESUME: u8 = 16;
const APPLIED: u8 = 17;
const FAULT: u8 = 19;
const WHOLE: u8 = 20;
const REFUSED: u8 = 21;
const LISTED: u8 = 22;
const LIST_END: u8 = 23;
const CHECKED: u8 = 24;
const HELD: u8 = 25;
/// Contributions of a `Held` frame, one for each page of the chunk.
const HELD_BYTES: usize = CHUNK_PAGES * 16;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The peer speaks another version.
    Version(u8),
    /// The kind is not known in this version.
    Kind(u8),
    /// The body is longer than its kind allows.
    TooLong(u32),
    /// The body does not have the shape of its kind.
    Malformed,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Version(version) => write!(f, "frame version {version}, not {FRAME_VERSION}"),
            Self::Kind(kind) => write!(f, "unknown frame kind {kind}"),
            Self::TooLong(length) => write!(f, "frame body of {length} bytes"),
            Self::Malformed => write!(f, "malformed frame body"),
        }
    }
}

impl core::error::Error for FrameError {}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    /// Bytes of the body that follows, at most `BODY_BYTES_MAX`.
    pub body_bytes: usize,
    /// Sequence of the frame on its lane (source), or the one it talks about (target).
    pub sequence: u64,
}

/// A decoded frame; borrows pages from the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Pages of one chunk: those in `data` follow back to back, those in `zero` are all zero.
    Pages { chunk: u64, data: PageSet, zero: PageSet, bytes: &'a [u8] },
    /// A round is sent; figures only.
    RoundEnd { round: u32 },
    /// Pages of a chunk that the target does not hold when it starts (post-copy).
    Missing { chunk: u64, pages: PageSet },
    /// Nothing follows on this lane before the target runs; `digest` is the lane's sum.
    Final { digest: u128 },
    /// A source that knows nothing of what its predecessor has sent asks what the target holds.
    Recall,
    /// First frame of the target: its lane goes on after the header's sequence.
    Resume,
    /// Everything up to the header's sequence is applied.
    Applied,
    /// A vCPU of the target waits for this page.
    Fault { page: u64 },
    /// Every page is present at the target; its digest.
    Whole { digest: u128 },
    /// Pages of a chunk that were missing when the target started, and those that still are:
    /// either side may have lost what it knew.
    Listed { chunk: u64, listed: PageSet, open: PageSet },
    /// What the target holds of a chunk: 16 bytes for each page, its contribution to the digest.
    Held { chunk: u64, values: &'a [u8] },
    /// Every chunk with missing pages, or of which something is held, was listed.
    ListEnd,
    /// The source has compared its frozen image with what was sent.
    Checked(Checked),
    /// The target ends the session for a reason of its own.
    Refused { reason: Refusal },
}

/// What comparing an image came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages that were compared, zero pages among them.
    pub pages: u64,
    /// Pages that are not what they ought to be.
    pub wrong: u64,
    /// From begin to end, microseconds.
    pub wall_micros: u64,
    /// CPU time of all threads together, microseconds.
    pub cpu_micros: u64,
}

/// Why a target ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// No session of that migration and epoch, or memory of another size.
    Unknown = 1,
    /// The sums of a lane differ.
    Digest = 2,
    /// The target could not apply what came.
    Failed = 3,
    /// The session was closed.
    Closed = 4,
}

impl Header {
    /// Parses and bounds a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [version, kind, reserved @ ..] = *bytes;
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let allowed = match kind {
            PAGES => PAGES_HEAD_BYTES..=BODY_BYTES_MAX,
            ROUND_END => 4..=4,
            MISSING => 40..=40,
            FINAL | WHOLE => 16..=16,
            LISTED => 72..=72,
            CHECKED => 32..=32,
            RESUME | APPLIED | LIST_END | RECALL => 0..=0,
            HELD => 8 + HELD_BYTES..=8 + HELD_BYTES,
            FAULT => 8..=8,
            REFUSED => 1..=1,
            other => return Err(FrameError::Kind(other)),
        };
        if length as usize > BODY_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if !allowed.contains(&(length as usize)) || reserved[..2] != [0, 0] {
            return Err(FrameError::Malformed);
        }
        Ok(Self { kind, body_bytes: length as usize, sequence: take_u64(bytes, 8) })
    }

    /// Parses the body that belongs to this header.
    pub fn decode_body<'a>(&self, body: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        if body.len() != self.body_bytes {
            return Err(FrameError::Malformed);
        }
        Ok(match self.kind {
            PAGES => return decode_pages(body),
            ROUND_END => {
                let [a, b, c, d] = *body else { return Err(FrameError::Malformed) };
                Frame::RoundEnd { round: u32::from_le_bytes([a, b, c, d]) }
            }
            MISSING => Frame::Missing {
                chunk: chunk_number(body)?,
                pages: take_set(body, 8).ok_or(FrameError::Malformed)?,
            },
            FINAL => Frame::Final { digest: take_u128(body)? },
            WHOLE => Frame::Whole { digest: take_u128(body)? },
            RESUME => Frame::Resume,
            APPLIED => Frame::Applied,
            FAULT => Frame::Fault { page: page_number(body)? },
            REFUSED => Frame::Refused { reason: refusal(body)? },
            LISTED => return decode_listed(body),
            LIST_END => Frame::ListEnd,
            CHECKED => Frame::Checked(Checked {
                pages: take_checked(body)?,
                wrong: take_checked(&body[8..])?,
                wall_micros: take_checked(&body[16..])?,
                cpu_micros: take_checked(&body[24..])?,
            }),
            RECALL => Frame::Recall,
            HELD => Frame::Held {
                chunk: chunk_number(body)?,
                values: body.get(8..).ok_or(FrameError::Malformed)?,
            },
            other => return Err(FrameError::Kind(other)),
        })
    }
}

fn decode_pages(body: &[u8]) -> Result<Frame<'_>, FrameError> {
    let chunk = chunk_number(body)?;
    let data = take_set(body, 8).ok_or(FrameError::Malformed)?;
    let zero = take_set(body, 40).ok_or(FrameError::Malformed)?;
    let bytes = body.get(PAGES_HEAD_BYTES..).ok_or(FrameError::Malformed)?;
    let empty = data.is_empty() && zero.is_empty();
    let both = !data.intersection(&zero).is_empty();
    if empty || both || bytes.len() != data.count() * PAGE_BYTES {
        return Err(FrameError::Malformed);
    }
    Ok(Frame::Pages { chunk, data, zero, bytes })
}

fn decode_listed(body: &[u8]) -> Result<Frame<'_>, FrameError> {
    let listed = take_set(body, 8).ok_or(FrameError::Malformed)?;
    let open = take_set(body, 40).ok_or(FrameError::Malformed)?;
    if listed.is_empty() || !open.difference(&listed).is_empty() {
        return Err(FrameError::Malformed);
    }
    Ok(Frame::Listed { chunk: chunk_number(body)?, listed, open })
}

fn chunk_number(body: &[u8]) -> Result<u64, FrameError> {
    let chunk = take_checked(body)?;
    if chunk < MEMORY_BYTES_MAX / CHUNK_BYTES as u64 { Ok(chunk) } else { Err(FrameError::Malformed) }
}

fn page_number(body: &[u8]) -> Result<u64, FrameError> {
    let page = take_checked(body)?;
    if page < MEMORY_BYTES_MAX / PAGE_BYTES as u64 { Ok(page) } else { Err(FrameError::Malformed) }
}

fn refusal(body: &[u8]) -> Result<Refusal, FrameError> {
    match body {
        [1] => Ok(Refusal::Unknown),
        [2] => Ok(Refusal::Digest),
        [3] => Ok(Refusal::Failed),
        [4] => Ok(Refusal::Closed),
        _ => Err(FrameError::Malformed),
    }
}

fn take_checked(body: &[u8]) -> Result<u64, FrameError> {
    let first = body.first_chunk::<8>().ok_or(FrameError::Malformed)?;
    Ok(u64::from_le_bytes(*first))
}

fn take_u64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn take_u128(body: &[u8]) -> Result<u128, FrameError> {
    let first = body.first_chunk::<16>().ok_or(FrameError::Malformed)?;
    Ok(u128::from_le_bytes(*first))
}

fn take_set(body: &[u8], at: usize) -> Option<PageSet> {
    body.get(at..)?.first_chunk::<32>().map(PageSet::from_bytes)
}

/// Writes a header.
fn put_header(out: &mut Vec<u8>, kind: u8, body_bytes: usize, sequence: u64) {
    out.extend_from_slice(&[FRAME_VERSION, kind, 0, 0]);
    out.extend_from_slice(&(body_bytes as u32).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
}

impl Frame<'_> {
    /// Appends the whole frame to `out`.
    pub fn encode(&self, sequence: u64, out: &mut Vec<u8>) {
        match *self {
            Frame::Pages { chunk, data, zero, bytes } => {
                out.extend_from_slice(&pages_head(sequence, chunk, data, zero));
                out.extend_from_slice(bytes);
            }
            Frame::RoundEnd { round } => {
                put_header(out, ROUND_END, 4, sequence);
                out.extend_from_slice(&round.to_le_bytes());
            }
            Frame::Missing { chunk, pages } => {
                put_header(out, MISSING, 40, sequence);
                out.extend_from_slice(&chunk.to_le_bytes());
                out.extend_from_slice(&pages.to_bytes());
            }
            Frame::Final { digest } => {
                put_header(out, FINAL, 16, sequence);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            Frame::Whole { digest } => {
                put_header(out, WHOLE, 16, sequence);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            Frame::Resume => put_header(out, RESUME, 0, sequence),
            Frame::Applied => put_header(out, APPLIED, 0, sequence),
            Frame::Fault { page } => {
                put_header(out, FAULT, 8, sequence);
                out.extend_from_slice(&page.to_le_bytes());
            }
            Frame::Listed { chunk, listed, open } => {
                put_header(out, LISTED, 72, sequence);
                out.extend_from_slice(&chunk.to_le_bytes());
                out.extend_from_slice(&listed.to_bytes());
                out.extend_from_slice(&open.to_bytes());
            }
            Frame::ListEnd => put_header(out, LIST_END, 0, sequence),
            Frame::Checked(Checked { pages, wrong, wall_micros, cpu_micros }) => {
                put_header(out, CHECKED, 32, sequence);
                for value in [pages, wrong, wall_micros, cpu_micros] {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
            Frame::Recall => put_header(out, RECALL, 0, sequence),
            Frame::Held { chunk, values } => {
                put_header(out, HELD, 8 + values.len(), sequence);
                out.extend_from_slice(&chunk.to_le_bytes());
                out.extend_from_slice(values);
            }
            Frame::Refused { reason } => {
                put_header(out, REFUSED, 1, sequence);
                out.push(reason as u8);
            }
        }
    }
}

/// Header and head of a `Pages` frame whose pages lie behind it already: the sender reads guest
/// memory straight into the send buffer and fills this in afterwards.
pub fn pages_head(
    sequence: u64,
    chunk: u64,
    data: PageSet,
    zero: PageSet,
) -> [u8; HEADER_BYTES + PAGES_HEAD_BYTES] {
    let mut head = [0; HEADER_BYTES + PAGES_HEAD_BYTES];
    head[0] = FRAME_VERSION;
    head[1] = PAGES;
    let length = (PAGES_HEAD_BYTES + data.count() * PAGE_BYTES) as u32;
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..24].copy_from_slice(&chunk.to_le_bytes());
    head[24..56].copy_from_slice(&data.to_bytes());
    head[56..88].copy_from_slice(&zero.to_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<(u64, Frame<'_>), FrameError> {
        let header = Header::decode(bytes.first_chunk().ok_or(FrameError::Malformed)?)?;
        let body = bytes.get(HEADER_BYTES..).ok_or(FrameError::Malformed)?;
        Ok((header.sequence, header.decode_body(body)?))
    }

    fn round_trip(sequence: u64, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(sequence, &mut bytes);
        assert_eq!(decode(&bytes), Ok((sequence, frame)));
        for cut in 0..bytes.len().min(200) {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut} of {frame:?}");
        }
    }

    #[test]
    fn every_kind_survives_the_way() {
        let set = PageSet([5, 0, 1 << 63, 0]);
        let zero = PageSet([2, 7, 0, 0]);
        let bytes = vec![9; set.count() * PAGE_BYTES];
        round_trip(1, Frame::Pages { chunk: 77, data: set, zero, bytes: &bytes });
        round_trip(2, Frame::RoundEnd { round: 9 });
        round_trip(3, Frame::Missing { chunk: 0, pages: set });
        round_trip(u64::MAX, Frame::Final { digest: u128::MAX - 3 });
        round_trip(5, Frame::Whole { digest: 1 });
        let open = PageSet([1, 0, 0, 0]);
        round_trip(5, Frame::Listed { chunk: 3, listed: set, open });
        round_trip(5, Frame::Held { chunk: 9, values: &[7; HELD_BYTES] });
        for frame in [Frame::Resume, Frame::Applied, Frame::ListEnd, Frame::Recall] {
            round_trip(6, frame);
        }
        round_trip(7, Frame::Fault { page: 262_143 });
        let checked = Checked { pages: 1 << 28, wrong: 3, wall_micros: 7, cpu_micros: u64::MAX };
        round_trip(7, Frame::Checked(checked));
        for reason in [Refusal::Unknown, Refusal::Digest, Refusal::Failed, Refusal::Closed] {
            round_trip(8, Frame::Refused { reason });
        }
    }

    #[test]
    fn a_page_is_never_both_data_and_zero() {
        let set = PageSet([1, 0, 0, 0]);
        let bytes = vec![9; PAGE_BYTES];
        let mut out = Vec::new();
        Frame::Pages { chunk: 0, data: set, zero: set, bytes: &bytes }.encode(0, &mut out);
        assert_eq!(decode(&out), Err(FrameError::Malformed));
    }

    #[test]
    fn an_open_page_that_was_never_missing_is_refused() {
        let (listed, open) = (PageSet([1, 0, 0, 0]), PageSet([2, 0, 0, 0]));
        let mut out = Vec::new();
        Frame::Listed { chunk: 0, listed, open }.encode(0, &mut out);
        assert_eq!(decode(&out), Err(FrameError::Malformed));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn garbage_with_a_plausible_header_never_panics(
            kind in 0_u8..27,
            body in proptest::collection::vec(any::<u8>(), 0..5000),
            length in proptest::option::of(any::<u32>()),
        ) {
            let mut bytes = Vec::new();
            put_header(&mut bytes, kind, body.len(), 3);
            if let Some(length) = length {
                bytes[4..8].copy_from_slice(&length.to_le_bytes());
            }
            bytes.extend_from_slice(&body);
            if let Ok((_, Frame::Pages { data, bytes, .. })) = decode(&bytes) {
                prop_assert_eq!(bytes.len(), data.count() * PAGE_BYTES);
            }
        }
    }
}
