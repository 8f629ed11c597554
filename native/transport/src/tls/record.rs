//! TLS 1.3 record protection (RFC 8446, section 5), one object for each direction.
//!
//! rustls does the handshake and hands over the traffic secrets; from then on the two directions
//! share nothing but the key schedule, so the thread that reads and the thread that writes never
//! wait for each other, and a record is decrypted in the caller's buffer. This file decides how one
//! record looks; it leaves what is in it to `stream`.
//!
//! ring seals the records although aws-lc-rs shook hands: its AES-GCM is 1.8 times as fast on CPUs
//! with VAES but without AVX-512 (7.0 against 3.9 GB/s a core here), and as fast elsewhere.

use crate::LaneError;
use ring::aead::{self, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Most plaintext in one record (RFC 8446, 5.1).
pub(crate) const PLAIN_BYTES_MAX: usize = 16 * 1024;
pub(crate) const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// Longest body: plaintext, its type, padding and tag (RFC 8446, 5.2).
pub(crate) const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;
/// What a record costs on top of its plaintext.
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// Records under one AES-GCM key; RFC 8446 5.5 allows 2^24.5. At full size this is 256 GiB.
pub(crate) const RECORDS_PER_KEY_MAX: u64 = 1 << 24;

/// Type of what a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ContentType {
    Alert = 21,
    Handshake = 22,
    ApplicationData = 23,
}

struct Protection {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    sequence: u64,
}

impl Protection {
    fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> Result<Self, LaneError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(LaneError::Protocol("a cipher suite that was not offered")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| LaneError::Protocol("a traffic key of the wrong length"))?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_| LaneError::Protocol("a traffic iv of the wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of the next record; each is used once (RFC 8446, 5.3).
    fn next_nonce(&mut self) -> Result<Nonce, LaneError> {
        let mut nonce = self.iv;
        for (byte, part) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= part;
        }
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or(LaneError::Protocol("the record numbers are used up"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Encrypts records of one direction.
pub(crate) struct Sealer(Protection);

impl Sealer {
    pub(crate) fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> Result<Self, LaneError> {
        Ok(Self(Protection::new(sequence, secrets)?))
    }

    /// Records sealed under this key, those of the handshake included.
    pub(crate) fn record_count(&self) -> u64 {
        self.0.sequence
    }

    /// Appends one record with `plain` (at most [`PLAIN_BYTES_MAX`]) to `wire`.
    pub(crate) fn seal(
        &mut self,
        content: ContentType,
        plain: &[u8],
        wire: &mut Vec<u8>,
    ) -> Result<(), LaneError> {
        assert!(plain.len() <= PLAIN_BYTES_MAX, "a record holds at most 16 KiB");
        let body_bytes = (plain.len() + 1 + TAG_BYTES) as u16;
        let [high, low] = body_bytes.to_be_bytes();
        let header = [ContentType::ApplicationData as u8, 3, 3, high, low];
        let nonce = self.0.next_nonce()?;
        wire.extend_from_slice(&header);
        let start = wire.len();
        wire.extend_from_slice(plain);
        wire.push(content as u8);
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut wire[start..])
            .map_err(|_| LaneError::Protocol("a record could not be sealed"))?;
        wire.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// Length of the record that starts in `wire`, header included; `None` while the header is not
/// complete. Fails on anything that TLS 1.3 does not send after its handshake.
pub(crate) fn record_length(wire: &[u8]) -> Result<Option<usize>, LaneError> {
    let Some(&[kind, major, _, high, low]) = wire.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let body_bytes = usize::from(u16::from_be_bytes([high, low]));
    if kind != ContentType::ApplicationData as u8 || major != 3 {
        return Err(LaneError::Protocol("a record that is not encrypted"));
    }
    if !(1 + TAG_BYTES..=BODY_BYTES_MAX).contains(&body_bytes) {
        return Err(LaneError::Protocol("a record of impossible length"));
    }
    Ok(Some(HEADER_BYTES + body_bytes))
}

/// Bytes that the destination of [`Opener::open`] needs for a record of this length.
pub(crate) const fn opened_room(record_length: usize) -> usize {
    record_length - HEADER_BYTES - TAG_BYTES
}

/// Decrypts records of one direction.
pub(crate) struct Opener(Protection);

impl Opener {
    pub(crate) fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> Result<Self, LaneError> {
        Ok(Self(Protection::new(sequence, secrets)?))
    }

    /// Decrypts one whole record into the start of `plain`, which has at least
    /// [`opened_room`] bytes (one more than the content: its type). Answers type and length.
    pub(crate) fn open(
        &mut self,
        record: &[u8],
        plain: &mut [u8],
    ) -> Result<(ContentType, usize), LaneError> {
        let (header, body) = record.split_at(HEADER_BYTES);
        let (sealed, tag) = body.split_at(body.len() - TAG_BYTES);
        let nonce = self.0.next_nonce()?;
        let changed = || LaneError::Protocol("a record that was changed on the way");
        let tag = Tag::try_from(tag).map_err(|_| changed())?;
        let plain = &mut plain[..sealed.len()];
        plain.copy_from_slice(sealed);
        self.0
            .key
            .open_in_place_separate_tag(nonce, Aad::from(header), tag, plain, 0..)
            .map_err(|_| changed())?;
        // Zeros after the type are padding (RFC 8446, 5.4).
        let last = plain
            .iter()
            .rposition(|&byte| byte != 0)
            .ok_or(LaneError::Protocol("a record without content type"))?;
        if last > PLAIN_BYTES_MAX {
            return Err(LaneError::Protocol("a record with too much content"));
        }
        let content = match plain[last] {
            21 => ContentType::Alert,
            22 => ContentType::Handshake,
            23 => ContentType::ApplicationData,
            _ => return Err(LaneError::Protocol("a record of unknown content")),
        };
        Ok((content, last))
    }
}
