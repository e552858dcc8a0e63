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
/// The packet number has three bytes instead of two.
const LONG: u8 = 0x20;
/// A protected packet's header without the packet number.
const BEFORE_NUMBER: usize = 9;

/// The last bytes of a packet number, as a protected packet's header has them (§3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortNumber {
    low: u32,
    long: bool,
}

impl ShortNumber {
    /// Of what is sent beyond what the peer is known to have, so many are told by two bytes: three quarters of half
    /// their range, so that packets may also come late by as many as are left.
    const NEAR: u64 = 3 << 13;

    /// As few bytes as the peer can understand that has `known`.
    #[inline]
    pub(crate) fn of(number: u64, known: Option<u64>) -> Self {
        let beyond = known.map_or(number, |k| number.saturating_sub(k));
        if beyond < Self::NEAR {
            Self { low: number as u32 & 0xffff, long: false }
        } else {
            Self::long(number)
        }
    }

    /// Three bytes, whatever the peer has.
    pub(crate) fn long(number: u64) -> Self {
        Self { low: number as u32 & 0xff_ffff, long: true }
    }

    /// Bytes of a header with it.
    #[inline]
    pub(crate) fn header(self) -> usize {
        BEFORE_NUMBER + if self.long { 3 } else { 2 }
    }

    /// The full packet number: the one nearest to `largest + 1` that ends so.
    #[inline]
    pub(crate) fn expand(self, largest: Option<u64>) -> u64 {
        let range: u64 = if self.long { 1 << 24 } else { 1 << 16 };
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
            if first & !(KEY_PHASE | LONG) != 0 {
                return Err(Malformed);
            }
            let (cid, phase, long) = (r.array()?, first & KEY_PHASE != 0, first & LONG != 0);
            let high = if long { u32::from(r.u8()?) << 16 } else { 0 };
            let number = ShortNumber { low: high | u32::from(r.u16()?), long };
            return Ok(Self::Protected { cid, phase, number });
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
    let mut h = [0; BEFORE_NUMBER + 3];
    h[0] = if phase { KEY_PHASE } else { 0 } | if number.long { LONG } else { 0 };
    h[1..BEFORE_NUMBER].copy_from_slice(cid);
    let bytes = number.header() - BEFORE_NUMBER;
    h[BEFORE_NUMBER..][..bytes].copy_from_slice(&number.low.to_be_bytes()[4 - bytes..]);
    out.extend_from_slice(&h[..number.header()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip() {
        let cid = *b"abcdefgh";
        let mut out = Vec::new();
        for number in [ShortNumber::of(0x1_2345_6789, Some(0x1_2345_6700)), ShortNumber::long(0x1_2345_6789)]
        {
            out.clear();
            emit_protected(&mut out, &cid, true, number);
            assert_eq!(out.len(), number.header());
            assert_eq!(Header::parse(&out), Ok(Header::Protected { cid, phase: true, number }));
            assert_eq!(Header::parse(&out[..out.len() - 1]), Err(Malformed));
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
        assert_eq!(Header::parse(&[0x01; 30]), Err(Malformed));
    }

    #[test]
    fn numbers_expand_to_the_nearest() {
        // The peer has `known`, and by the time the packet comes perhaps much of what left before or after it.
        for known in [None, Some(5u64), Some(0x7fff), Some(0xffff), Some(0xff_ffff), Some(0x5_8000_0001)] {
            for beyond in [0, 1, 9, ShortNumber::NEAR - 1, ShortNumber::NEAR, 1 << 22] {
                let number = known.map_or(0, |k| k + 1) + beyond;
                let short = ShortNumber::of(number, known);
                assert_eq!(
                    short.header(),
                    if beyond + u64::from(known.is_some()) < ShortNumber::NEAR { 11 } else { 12 }
                );
                let late = if short.long { 1 << 22 } else { 1 << 14 };
                for largest in [known, number.checked_sub(1), Some(number + 1), Some(number + late)] {
                    assert_eq!(short.expand(largest), number, "{number} of {known:?} after {largest:?}");
                }
            }
        }
    }
}
