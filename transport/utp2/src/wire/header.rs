//! The first bytes of a datagram: which packet it is and whom it is for (PROTOCOL.md §3).

use alloc::vec::Vec;

use super::{Cid, Malformed, Reader};

/// Version 2 of the protocol, as on the wire.
pub(crate) const VERSION: u32 = 0x7570_3202;
/// Length of the handshake header (§3.2).
pub(crate) const HANDSHAKE_HEADER: usize = 13;
/// Length of the AEAD tag.
pub(crate) const TAG: usize = 16;

const KEY_PHASE: u8 = 0x40;
/// The highest bits of the packet number are in the first byte: five of them with one byte more, four with two or three.
const NUMBER_WIDE: u8 = 0x20;
const NUMBER_WIDEST: u8 = 0x10;
const NUMBER_BITS: [u8; 3] = [0x1f, 0x0f, 0x0f];
/// A protected packet's header without the bytes of the packet number behind the CID.
const BEFORE_NUMBER: usize = 9;

/// The last bits of a packet number, as a protected packet's header has them (§3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortNumber {
    low: u32,
    /// Bytes behind the CID: 1, 2 or 3.
    bytes: u8,
}

impl ShortNumber {
    /// How many different numbers so many bytes tell, with the bits of the first byte.
    const RANGE: [u64; 3] = [1 << 13, 1 << 20, 1 << 28];

    /// Of what is sent beyond what the peer is known to have, so many are told by so many bytes: three quarters of half
    /// their range. Packets may also come late by half of it.
    const NEAR: [u64; 2] = [3 << 10, 3 << 17];

    fn new(number: u64, bytes: u8) -> Self {
        let range = Self::RANGE[usize::from(bytes) - 1];
        Self { low: (number & (range - 1)) as u32, bytes }
    }

    /// As few bytes as the peer can understand that has `known`, whatever overtakes the packet within the time in which
    /// `soon` packets leave.
    #[inline]
    pub(crate) fn of(number: u64, known: Option<u64>, soon: u64) -> Self {
        let beyond = known.map_or(number, |k| number.saturating_sub(k)).max(soon);
        let bytes = 1 + Self::NEAR.iter().filter(|&&near| beyond >= near).count() as u8;
        Self::new(number, bytes)
    }

    /// All the header has room for, whatever the peer has.
    pub(crate) fn long(number: u64) -> Self {
        Self::new(number, 3)
    }

    /// Bytes of a header with it.
    #[inline]
    pub(crate) fn header(self) -> usize {
        BEFORE_NUMBER + usize::from(self.bytes)
    }

    /// The full packet number: the one nearest to `largest + 1` that ends so.
    #[inline]
    pub(crate) fn expand(self, largest: Option<u64>) -> u64 {
        let range = self.range();
        let expected = largest.map_or(0, |l| l + 1);
        let candidate = (expected & !(range - 1)) | u64::from(self.low);
        if candidate + range / 2 <= expected {
            candidate + range
        } else if candidate > expected + range / 2 && candidate >= range {
            candidate - range
        } else {
            candidate
        }
    }

    /// How many different numbers it can tell.
    pub(crate) fn range(self) -> u64 {
        Self::RANGE[usize::from(self.bytes) - 1]
    }
}

/// Types of handshake packets (§3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Init = 1,
    Retry = 2,
    Reply = 3,
    Prove = 4,
    Alert = 5,
    Resume = 6,
    Resumed = 7,
    Reset = 8,
}

/// The bit of the first byte that packets of a handshake have, in every version (§3.2).
const HANDSHAKE: u8 = 0x80;

impl Kind {
    /// The type of a packet of a handshake, if the first byte says one of ours.
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        Some(match datagram.first()?.checked_sub(HANDSHAKE)? {
            1 => Self::Init,
            2 => Self::Retry,
            3 => Self::Reply,
            4 => Self::Prove,
            5 => Self::Alert,
            6 => Self::Resume,
            7 => Self::Resumed,
            8 => Self::Reset,
            _ => return None,
        })
    }
}

/// Any datagram's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Handshake {
        kind: Kind,
        cid: Cid,
    },
    /// A handshake packet of a version we do not speak; its type and the rest mean what that version says, but for
    /// what §3.2 fixes for all of them.
    OtherVersion {
        version: u32,
        kind: u8,
        cid: Cid,
    },
    Protected {
        cid: Cid,
        phase: bool,
        number: ShortNumber,
    },
}

impl Header {
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram);
        let first = r.u8()?;
        if first & HANDSHAKE == 0 {
            let (cid, phase) = (r.array()?, first & KEY_PHASE != 0);
            let bytes = match (first & NUMBER_WIDE != 0, first & NUMBER_WIDEST != 0) {
                (false, _) => 1,
                (true, false) => 2,
                (true, true) => 3,
            };
            let high = first & NUMBER_BITS[usize::from(bytes) - 1];
            let low = (0..bytes).try_fold(u32::from(high), |n, _| Ok(n << 8 | u32::from(r.u8()?)))?;
            return Ok(Self::Protected { cid, phase, number: ShortNumber { low, bytes } });
        }
        let version = r.u32()?;
        let cid = r.array()?;
        if version != VERSION {
            return Ok(Self::OtherVersion { version, kind: first & !HANDSHAKE, cid });
        }
        let kind = Kind::of(datagram).ok_or(Malformed)?;
        Ok(Self::Handshake { kind, cid })
    }
}

pub(crate) fn emit_handshake(out: &mut Vec<u8>, kind: Kind, cid: &Cid) {
    emit_handshake_of(VERSION, out, kind, cid);
}

/// A header that another version's peer can read.
pub(crate) fn emit_handshake_of(version: u32, out: &mut Vec<u8>, kind: Kind, cid: &Cid) {
    out.push(HANDSHAKE | kind as u8);
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(cid);
}

#[inline]
pub(crate) fn emit_protected(out: &mut Vec<u8>, cid: &Cid, phase: bool, number: ShortNumber) {
    let bytes = usize::from(number.bytes);
    // The number's highest bits are the first byte's lowest, the others lie behind the CID.
    let low = number.low.to_be_bytes();
    let wide = [0, NUMBER_WIDE, NUMBER_WIDE | NUMBER_WIDEST][bytes - 1];
    let mut h = [0; BEFORE_NUMBER + 3];
    h[0] = if phase { KEY_PHASE } else { 0 } | wide | low[3 - bytes];
    h[1..BEFORE_NUMBER].copy_from_slice(cid);
    h[BEFORE_NUMBER..][..bytes].copy_from_slice(&low[4 - bytes..]);
    out.extend_from_slice(&h[..number.header()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip() {
        let cid = *b"abcdefgh";
        let mut out = Vec::new();
        for beyond in [0, 1 << 12, 1 << 19] {
            let number = ShortNumber::of(0x1_2345_6789, Some(0x1_2345_6789 - beyond), 0);
            for phase in [false, true] {
                out.clear();
                emit_protected(&mut out, &cid, phase, number);
                assert_eq!(out.len(), number.header());
                assert_eq!(Header::parse(&out), Ok(Header::Protected { cid, phase, number }));
                assert_eq!(Header::parse(&out[..out.len() - 1]), Err(Malformed));
            }
        }
        // Bit for bit (§3.8).
        for (number, first, rest) in [
            (ShortNumber::of(0x1234, Some(0x1234), 0), 0x12, &[0x34][..]),
            (ShortNumber::of(0xf_edcb, Some(0xf_edcb), 3 << 10), 0x2f, &[0xed, 0xcb]),
            (ShortNumber::long(0x5abc_def0), 0x3a, &[0xbc, 0xde, 0xf0]),
        ] {
            out.clear();
            emit_protected(&mut out, &cid, false, number);
            assert_eq!(out, [&[first][..], &cid, rest].concat());
        }
        use Kind::*;
        for kind in [Init, Retry, Reply, Prove, Alert, Resume, Resumed, Reset] {
            out.clear();
            emit_handshake(&mut out, kind, &cid);
            assert_eq!(Header::parse(&out), Ok(Header::Handshake { kind, cid }));
            out[4] ^= 1;
            let other = Header::OtherVersion { version: VERSION ^ 1, kind: kind as u8, cid };
            assert_eq!(Header::parse(&out), Ok(other));
        }
        assert_eq!(Header::parse(&[]), Err(Malformed));
    }

    #[test]
    fn numbers_expand_to_the_nearest() {
        // The peer has `known`, and by the time the packet comes perhaps much of what left before or after it.
        for known in [None, Some(5u64), Some(0x7fff), Some(0xffff), Some(0xff_ffff), Some(0x5_8000_0001)] {
            let [near, far] = ShortNumber::NEAR;
            for beyond in [0, 1, 9, near - 2, near, far - 2, far, 1 << 22] {
                let number = known.map_or(0, |k| k + 1) + beyond;
                let short = ShortNumber::of(number, known, 0);
                let bytes = if beyond < near - 1 { 1 } else { 2 + usize::from(beyond >= far - 1) };
                assert_eq!(short.header(), BEFORE_NUMBER + bytes);
                assert_eq!(ShortNumber::of(number, known, far), ShortNumber::long(number));
                let late = short.range() / 2 - 2;
                for largest in [known, number.checked_sub(1), Some(number + 1), Some(number + late)] {
                    assert_eq!(short.expand(largest), number, "{number} of {known:?} after {largest:?}");
                }
            }
        }
    }
}
