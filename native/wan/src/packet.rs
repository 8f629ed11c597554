//! A buffer from a TUN device with its virtio header, and how it is cut into packets of the wire.

/// Bytes of struct `virtio_net_hdr`, little endian.
pub const VIRTIO_BYTES: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Explicit congestion notification bit beside the type.
const GSO_ECN: u8 = 0x80;
const TCP_HEADER_BYTES_MIN: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
/// IP and TCP headers with every option fit many times over.
const HEADERS_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, Default)]
struct Virtio {
    flags: u8,
    gso_type: u8,
    header_bytes: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Virtio {
    fn parse(b: &[u8; VIRTIO_BYTES]) -> Self {
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            header_bytes: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    fn bytes(self) -> [u8; VIRTIO_BYTES] {
        let [header_low, header_high] = self.header_bytes.to_le_bytes();
        let [size_low, size_high] = self.gso_size.to_le_bytes();
        let [start_low, start_high] = self.checksum_start.to_le_bytes();
        let [offset_low, offset_high] = self.checksum_offset.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            header_low,
            header_high,
            size_low,
            size_high,
            start_low,
            start_high,
            offset_low,
            offset_high,
        ]
    }
}

/// One buffer: a packet, or a large one that stands for several of the wire.
#[derive(Debug)]
pub struct Packet {
    virtio: Virtio,
    data: Box<[u8]>,
    transport_at: usize,
    headers_bytes: usize,
    segment_count: usize,
    is_udp: bool,
}

impl Packet {
    /// `None` when the buffer can't be what the kernel says it is.
    pub fn parse(buffer: &[u8]) -> Option<Self> {
        let virtio = Virtio::parse(buffer.first_chunk()?);
        let data: Box<[u8]> = buffer[VIRTIO_BYTES..].into();
        let gso = virtio.gso_type & !GSO_ECN;
        if gso == GSO_NONE {
            let headers_bytes = data.len();
            let (transport_at, segment_count) = (0, 1);
            return Some(Self {
                virtio,
                data,
                transport_at,
                headers_bytes,
                segment_count,
                is_udp: false,
            });
        }
        let transport_at = usize::from(virtio.checksum_start);
        let is_udp = gso == GSO_UDP;
        let fits = [GSO_TCP4, GSO_TCP6, GSO_UDP].contains(&gso)
            && virtio.gso_size > 0
            && transport_at >= TCP_HEADER_BYTES_MIN
            && data.len() >= transport_at + TCP_HEADER_BYTES_MIN;
        if !fits {
            return None;
        }
        let headers_bytes = if is_udp {
            transport_at + UDP_HEADER_BYTES
        } else {
            transport_at + usize::from(data[transport_at + 12] >> 4) * 4
        };
        let checksum_at = transport_at + usize::from(virtio.checksum_offset);
        let payload = data.len().checked_sub(headers_bytes)?;
        if headers_bytes > HEADERS_BYTES_MAX || checksum_at + 2 > headers_bytes {
            return None;
        }
        let version_fits = match data[0] >> 4 {
            6 => transport_at >= 40,
            4 => usize::from(data[0] & 15) * 4 <= transport_at && data[0] & 15 >= 5,
            _ => false,
        };
        let segment_count = payload.div_ceil(usize::from(virtio.gso_size)).max(1);
        version_fits.then_some(Self {
            virtio,
            data,
            transport_at,
            headers_bytes,
            segment_count,
            is_udp,
        })
    }

    pub fn segment_count(&self) -> usize {
        self.segment_count
    }

    /// Bytes of one segment on the wire, headers included.
    pub fn segment_bytes(&self, segment: usize) -> usize {
        if self.segment_count == 1 {
            return self.data.len();
        }
        let size = usize::from(self.virtio.gso_size);
        let payload = self.data.len() - self.headers_bytes;
        self.headers_bytes + (payload - segment * size).min(size)
    }

    /// Segments `from..to` as one buffer for the other device: virtio header, headers, payload.
    pub fn assemble(&self, from: usize, to: usize) -> (Vec<u8>, &[u8]) {
        if self.virtio.gso_type & !GSO_ECN == GSO_NONE {
            return (self.virtio.bytes().to_vec(), &self.data);
        }
        let size = usize::from(self.virtio.gso_size);
        let payload = &self.data[self.headers_bytes..];
        let piece = &payload[from * size..(to * size).min(payload.len())];
        let mut headers = self.data[..self.headers_bytes].to_vec();
        let transport_bytes = self.headers_bytes - self.transport_at + piece.len();
        let (addresses, protocol) = self.rewrite_ip(&mut headers, from, piece.len());
        self.rewrite_transport(&mut headers, from, to, transport_bytes);
        // The kernel completes the checksum from that of the pseudo header.
        let pseudo = fold(sum(&headers[addresses], protocol + transport_bytes as u32));
        let at = self.transport_at + usize::from(self.virtio.checksum_offset);
        headers[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let mut virtio = self.virtio;
        virtio.flags = NEEDS_CHECKSUM;
        virtio.header_bytes = self.headers_bytes as u16;
        if to - from == 1 {
            virtio.gso_type = GSO_NONE;
            virtio.gso_size = 0;
        }
        ([&virtio.bytes()[..], &headers].concat(), piece)
    }

    /// Lengths, number and checksum of the IP header; answers where the addresses are, and the
    /// transport's protocol number.
    fn rewrite_ip(
        &self,
        headers: &mut [u8],
        from: usize,
        piece_bytes: usize,
    ) -> (std::ops::Range<usize>, u32) {
        if headers[0] >> 4 == 6 {
            let length = (self.headers_bytes - 40 + piece_bytes) as u16;
            headers[4..6].copy_from_slice(&length.to_be_bytes());
            return (8..40, if self.is_udp { 17 } else { 6 });
        }
        let length = (self.headers_bytes + piece_bytes) as u16;
        headers[2..4].copy_from_slice(&length.to_be_bytes());
        let number = u16::from_be_bytes([headers[4], headers[5]]).wrapping_add(from as u16);
        headers[4..6].copy_from_slice(&number.to_be_bytes());
        headers[10..12].fill(0);
        let ip_bytes = usize::from(headers[0] & 15) * 4;
        let checksum = !fold(sum(&headers[..ip_bytes], 0));
        headers[10..12].copy_from_slice(&checksum.to_be_bytes());
        (12..20, u32::from(headers[9]))
    }

    fn rewrite_transport(&self, headers: &mut [u8], from: usize, to: usize, bytes: usize) {
        let at = self.transport_at;
        if self.is_udp {
            headers[at + 4..at + 6].copy_from_slice(&(bytes as u16).to_be_bytes());
            return;
        }
        let mut number = [0; 4];
        number.copy_from_slice(&headers[at + 4..at + 8]);
        let skipped = from * usize::from(self.virtio.gso_size);
        let sequence = u32::from_be_bytes(number).wrapping_add(skipped as u32);
        headers[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        if to < self.segment_count {
            headers[at + 13] &= !0x09; // FIN and PSH belong to the last one
        }
        if from > 0 {
            headers[at + 13] &= !0x80; // CWR to the first
        }
    }
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
