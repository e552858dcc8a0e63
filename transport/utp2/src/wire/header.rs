//! The first bytes of a datagram: which packet it is and whom it is for (PROTOCOL.md §3).

use alloc::vec::Vec;

use super::{Cid, Malformed, Reader};

/// Version 2 of the protocol, as on the wire.
pub(crate) const VERSION: u32 = 0x7570_3202;
/// Length of the handshake header (§3.2).
pub(crate) const HANDSHAKE_HEADER: usize = 13;
/// Length of the header of a protected packet (§3.8).
pub(crate) const PROTECTED_HEADER: usize = 13;
/// Length of the AEAD tag.
pub(crate) const TAG: usize = 16;

const KEY_PHASE: u8 = 0x40;

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

/// Any datagram's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Handshake {
        kind: Kind,
        cid: Cid,
    },
    /// A handshake packet of a version we do not speak.
    OtherVersion,
    Protected {
        cid: Cid,
        phase: bool,
        number: u32,
    },
}

impl Header {
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(datagram);
        let first = r.u8()?;
        if first & 0x80 == 0 {
            if first & !KEY_PHASE != 0 {
                return Err(Malformed);
            }
            return Ok(Self::Protected { cid: r.array()?, phase: first & KEY_PHASE != 0, number: r.u32()? });
        }
        let version = r.u32()?;
        let cid = r.array()?;
        if version != VERSION {
            return Ok(Self::OtherVersion);
        }
        let kind = match first & 0x7f {
            1 => Kind::Init,
            2 => Kind::Retry,
            3 => Kind::Reply,
            4 => Kind::Prove,
            5 => Kind::Alert,
            6 => Kind::Resume,
            7 => Kind::Resumed,
            8 => Kind::Reset,
            _ => return Err(Malformed),
        };
        Ok(Self::Handshake { kind, cid })
    }
}

pub(crate) fn emit_handshake(out: &mut Vec<u8>, kind: Kind, cid: &Cid) {
    out.push(0x80 | kind as u8);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(cid);
}

#[inline]
pub(crate) fn emit_protected(out: &mut Vec<u8>, cid: &Cid, phase: bool, number: u64) {
    let mut h = [0; PROTECTED_HEADER];
    h[0] = if phase { KEY_PHASE } else { 0 };
    h[1..9].copy_from_slice(cid);
    h[9..].copy_from_slice(&(number as u32).to_be_bytes());
    out.extend_from_slice(&h);
}

/// The full packet number: the one nearest to `largest + 1` that ends in `low` (§3.8).
pub(crate) fn expand_number(low: u32, largest: Option<u64>) -> u64 {
    const WINDOW: u64 = 1 << 32;
    let expected = largest.map_or(0, |l| l + 1);
    let candidate = (expected & !(WINDOW - 1)) | u64::from(low);
    if candidate + WINDOW / 2 <= expected {
        candidate + WINDOW
    } else if candidate > expected + WINDOW / 2 && candidate >= WINDOW {
        candidate - WINDOW
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip() {
        let cid = *b"abcdefgh";
        let mut out = Vec::new();
        emit_protected(&mut out, &cid, true, 0x1_2345_6789);
        assert_eq!(Header::parse(&out), Ok(Header::Protected { cid, phase: true, number: 0x2345_6789 }));
        use Kind::*;
        for kind in [Init, Retry, Reply, Prove, Alert, Resume, Resumed, Reset] {
            out.clear();
            emit_handshake(&mut out, kind, &cid);
            assert_eq!(Header::parse(&out), Ok(Header::Handshake { kind, cid }));
            out[4] ^= 1;
            assert_eq!(Header::parse(&out), Ok(Header::OtherVersion));
        }
        assert_eq!(Header::parse(&[]), Err(Malformed));
        assert_eq!(Header::parse(&[0x01; 30]), Err(Malformed));
    }

    #[test]
    fn numbers_expand_to_the_nearest() {
        for largest in [0u64, 5, 0x7fff_ffff, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 0x5_8000_0001] {
            for n in largest.saturating_sub(70_000)..largest.saturating_sub(69_990) {
                assert_eq!(expand_number(n as u32, Some(largest)), n, "{n} after {largest}");
            }
            for n in largest + 1..largest + 9 {
                assert_eq!(expand_number(n as u32, Some(largest)), n, "{n} after {largest}");
            }
        }
        assert_eq!(expand_number(0, None), 0);
        assert_eq!(expand_number(7, None), 7);
    }
}
