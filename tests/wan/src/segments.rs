//! Frames of a TUN device with offloads: an IP packet behind a `virtio_net_hdr`, which may stand for many packets on
//! the wire (TCP and UDP segmentation offload).
//!
//! Owns taking such a frame apart: how many packets it stands for, how long each is on the wire, and a frame made
//! of some of them. Knows nothing of queues and times. Without offloads a frame is the bare IP packet.

/// Length of the header before the packet.
pub(crate) const HEADER: usize = 10;

/// The largest frame: header and a packet with a 16-bit length.
pub(crate) const FRAME_MAX: usize = HEADER + 65_535;

/// The bits of `gso_type` without the ECN mark.
const TYPE_MASK: u8 = 0x7f;
const NONE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;

/// What a frame stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes before the packet: [`HEADER`] or 0.
    prefix: usize,
    /// IP and transport header of each packet on the wire.
    headers: usize,
    /// Where the transport header begins, from the packet's first byte.
    transport: usize,
    /// Payload bytes of each packet but the last.
    each: usize,
    /// Payload bytes in all.
    payload: usize,
    /// Whether the packets are TCP segments (otherwise UDP datagrams).
    tcp: bool,
    /// Packets on the wire.
    pub(crate) count: usize,
}

impl Layout {
    /// Looks at a frame. What it does not understand counts as one packet.
    pub(crate) fn of(frame: &[u8], offloads: bool) -> Self {
        let prefix = if offloads { HEADER.min(frame.len()) } else { 0 };
        let single = Self {
            prefix,
            headers: 0,
            transport: 0,
            each: frame.len() - prefix,
            payload: frame.len() - prefix,
            tcp: false,
            count: 1,
        };
        if prefix < HEADER {
            return single;
        }
        let kind = frame[1] & TYPE_MASK;
        let each = usize::from(u16::from_ne_bytes([frame[4], frame[5]]));
        let transport = usize::from(u16::from_ne_bytes([frame[6], frame[7]]));
        let packet = &frame[HEADER..];
        let transport_len = match kind {
            TCP4 | TCP6 => packet.get(transport + 12).map_or(0, |byte| usize::from(byte >> 4) * 4),
            UDP => 8,
            _ => return single,
        };
        let headers = transport + transport_len;
        if each == 0 || transport < 20 || transport_len < 8 || packet.len() <= headers {
            return single;
        }
        let payload = packet.len() - headers;
        let count = payload.div_ceil(each);
        Self { prefix, headers, transport, each, payload, tcp: kind != UDP, count }
    }

    /// IP bytes of the packet with this index.
    pub(crate) fn wire_len(&self, index: usize) -> usize {
        self.headers + self.payload_of(index).len()
    }

    /// IP bytes of all of them.
    pub(crate) fn wire_bytes(&self) -> usize {
        self.count * self.headers + self.payload
    }

    fn payload_of(&self, index: usize) -> std::ops::Range<usize> {
        let begin = index * self.each;
        begin..(begin + self.each).min(self.payload)
    }

    /// Whether packets that don't follow each other can share a frame: datagrams can, segments of a byte stream
    /// can't.
    pub(crate) fn mixes(&self) -> bool {
        !self.tcp
    }

    /// Makes a frame of the packets with these indices (rising; without gaps unless [`Layout::mixes`]).
    pub(crate) fn pick(&self, frame: &[u8], indices: &[usize], out: &mut Vec<u8>) {
        out.clear();
        let Some((&first, &last)) = indices.first().zip(indices.last()) else { return };
        let begin = self.prefix + self.headers;
        out.extend_from_slice(&frame[..begin]);
        for &index in indices {
            let range = self.payload_of(index);
            out.extend_from_slice(&frame[begin + range.start..begin + range.end]);
        }
        if self.prefix == 0 || self.headers == 0 {
            return;
        }
        let old_len = self.headers + self.payload - self.transport;
        let new_len = out.len() - self.prefix - self.transport;
        if indices.len() == 1 {
            out[1] = NONE;
            out[4..6].fill(0);
        }
        out[2..4].copy_from_slice(&(self.headers as u16).to_ne_bytes());
        let packet = &mut out[self.prefix..];
        if packet[0] >> 4 == 4 {
            let total = packet.len() as u16;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(first as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let header = usize::from(packet[0] & 15) * 4;
            let sum = !fold(packet[..header.min(self.transport)].chunks(2).map(word).sum());
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let len = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let transport = &mut packet[self.transport..];
        let check = if self.tcp { 16 } else { 6 };
        // The checksum field holds the sum of the pseudo-header, which has the length in it.
        let old = u16::from_be_bytes([transport[check], transport[check + 1]]);
        let new = fold(u32::from(old) + u32::from(!(old_len as u16)) + u32::from(new_len as u16));
        transport[check..check + 2].copy_from_slice(&new.to_be_bytes());
        if self.tcp {
            let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = sequence.wrapping_add((first * self.each) as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if last + 1 < self.count {
                transport[13] &= !0x09; // FIN and PSH belong to the last
            }
            if first > 0 {
                transport[13] &= !0x80; // CWR to the first
            }
        } else {
            transport[4..6].copy_from_slice(&(new_len as u16).to_be_bytes());
        }
    }
}

fn word(pair: &[u8]) -> u32 {
    u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))
}

/// The one's complement sum of 16 bits.
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of `payload` bytes in packets of `each`, as the kernel hands it over.
    fn frame(kind: u8, each: u16, payload: usize) -> Vec<u8> {
        let transport = if kind == UDP { 8 } else { 20 };
        let total = 20 + transport + payload;
        let mut f = vec![1, kind, 0, 0];
        f.extend(each.to_ne_bytes());
        f.extend(20u16.to_ne_bytes());
        f.extend((if kind == UDP { 6u16 } else { 16 }).to_ne_bytes());
        let mut ip = vec![0u8; 20];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        ip[8..10].copy_from_slice(&[64, if kind == UDP { 17 } else { 6 }]);
        ip[12..20].copy_from_slice(&[10, 77, 0, 1, 10, 77, 0, 2]);
        let sum = !fold(ip.chunks(2).map(word).sum());
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let len = transport + payload;
        let check = pseudo(&ip, len);
        let mut t = vec![0u8; transport];
        if kind == UDP {
            t[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            t[6..8].copy_from_slice(&check.to_be_bytes());
        } else {
            t[4..8].copy_from_slice(&1000u32.to_be_bytes());
            t[12] = 5 << 4;
            t[13] = 0x18;
            t[16..18].copy_from_slice(&check.to_be_bytes());
        }
        f.extend(ip);
        f.extend(t);
        f.extend((0..payload).map(|i| (i / usize::from(each)) as u8));
        f
    }

    fn pseudo(ip: &[u8], len: usize) -> u16 {
        fold(ip[12..20].chunks(2).map(word).sum::<u32>() + u32::from(ip[9]) + len as u32)
    }

    #[track_caller]
    fn sound(f: &[u8], len: usize, check: usize) {
        let ip = &f[HEADER..HEADER + 20];
        assert_eq!(fold(ip.chunks(2).map(word).sum()), 0xffff, "the IP checksum fits");
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), f.len() - HEADER);
        let transport = &f[HEADER + 20..];
        assert_eq!(transport.len(), len);
        assert_eq!(u16::from_be_bytes([transport[check], transport[check + 1]]), pseudo(ip, len));
    }

    #[test]
    fn datagrams_are_counted_and_the_survivors_share_a_frame() {
        let f = frame(UDP, 1000, 4500);
        let layout = Layout::of(&f, true);
        assert_eq!((layout.count, layout.wire_len(0), layout.wire_len(4)), (5, 1028, 528));
        assert!(layout.mixes());
        assert_eq!(layout.wire_bytes(), (0..layout.count).map(|index| layout.wire_len(index)).sum());
        let mut out = Vec::new();
        layout.pick(&f, &[0, 1, 2, 3, 4], &mut out);
        sound(&out, 4508, 6);
        assert_eq!(out[HEADER..], f[HEADER..]);
        layout.pick(&f, &[0, 3, 4], &mut out);
        sound(&out, 2508, 6);
        assert_eq!(Layout::of(&out, true).count, 3);
        assert_eq!((out[HEADER + 28], out[HEADER + 1028], out[HEADER + 2028]), (0, 3, 4));
        layout.pick(&f, &[4], &mut out);
        sound(&out, 508, 6);
        assert_eq!((out[1], Layout::of(&out, true).count), (NONE, 1));
    }

    #[test]
    fn segments_keep_their_place_in_the_stream() {
        let f = frame(TCP4, 1448, 1448 * 3 + 10);
        let layout = Layout::of(&f, true);
        assert_eq!((layout.count, layout.wire_len(0), layout.wire_len(3)), (4, 1488, 50));
        let mut out = Vec::new();
        layout.pick(&f, &[1, 2], &mut out);
        sound(&out, 20 + 2896, 16);
        let t = HEADER + 20;
        assert_eq!(out[t + 4..t + 8], (1000u32 + 1448).to_be_bytes());
        assert_eq!(out[t + 13], 0x10, "no PSH in the middle");
        layout.pick(&f, &[3], &mut out);
        sound(&out, 30, 16);
        assert_eq!(out[t + 13], 0x18);
    }

    #[test]
    fn what_is_not_understood_is_one_packet() {
        for f in [&b""[..], b"short", &[0; 10], &[9; 40], &[1, TCP4, 0, 0, 1, 0, 20, 0, 16, 0, 0x45]] {
            let layout = Layout::of(f, true);
            assert_eq!(layout.count, 1);
            let mut out = Vec::new();
            layout.pick(f, &[0], &mut out);
            assert_eq!(out, f);
        }
        assert_eq!(Layout::of(&[0; 1500], false).wire_len(0), 1500);
    }
}
