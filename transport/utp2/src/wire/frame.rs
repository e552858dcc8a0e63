//! Frames inside protected packets (PROTOCOL.md §4).

use alloc::vec::Vec;

use super::ack::{self, Ack};
use crate::handshake::ticket::MAX_TICKET;

use super::{Malformed, Reader, VARINT_MAX, put_varint, varint_len};

pub(crate) const PADDING: u8 = 0x00;
pub(crate) const PING: u8 = 0x01;
const MESSAGE: u8 = 0x03;
const WINDOW: u8 = 0x04;
const CLOSE: u8 = 0x05;
const PATH_CHALLENGE: u8 = 0x06;
const PATH_RESPONSE: u8 = 0x07;
pub(crate) const ACK: u8 = 0x0c;
const ACK_RHYTHM: u8 = 0x18;
const TICKET: u8 = 0x08;
const DATA: u8 = 0x10;
const FIN: u8 = 0x01;
const LENGTH: u8 = 0x02;
const WIDE: u8 = 0x04;
/// The offset has two bytes instead of being a varint of four.
const SHORT: u8 = 0x20;
/// DATA in short: the tag begins in the type, the offset has two bytes, the piece runs to the packet's end and is not
/// the last of its block.
const COMPACT: u8 = 0x80;
/// Of such a type: two bytes of the tag follow instead of one.
const COMPACT_LONG: u8 = 0x40;
/// The highest bits of the tag, in such a type.
const COMPACT_TAG: u8 = 0x3f;

/// Longest reason text of a CLOSE.
pub(crate) const MAX_REASON: usize = 256;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Frame<'a> {
    Padding,
    Ping,
    Ack(Ack<'a>),
    Message {
        offset: u64,
        data: &'a [u8],
    },
    Window {
        bytes: u64,
        message_limit: u64,
    },
    Close {
        code: u16,
        reason: &'a [u8],
    },
    PathChallenge([u8; 8]),
    PathResponse([u8; 8]),
    AckRhythm {
        interval_us: u64,
        packets: u64,
    },
    /// Lifetime in seconds, what its secret is derived with, and the ticket itself (§5.8).
    Ticket {
        lifetime: u32,
        nonce: [u8; 16],
        ticket: &'a [u8],
    },
    Data {
        tag: u64,
        offset: u32,
        fin: bool,
        data: &'a [u8],
    },
}

impl<'a> Frame<'a> {
    /// The next frame.
    #[inline]
    pub(crate) fn parse(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        let kind = r.u8()?;
        Ok(match kind {
            PADDING => Self::Padding,
            PING => Self::Ping,
            _ if kind & !(ack::COUNTS | ack::BITS) == ACK => Self::Ack(Ack::parse(kind, r)?),
            ACK_RHYTHM => Self::AckRhythm { interval_us: r.varint()?, packets: r.varint()? },
            MESSAGE => {
                let offset = r.varint()?;
                let len = usize::try_from(r.varint()?).map_err(|_| Malformed)?;
                Self::Message { offset, data: r.bytes(len)? }
            }
            WINDOW => Self::Window { bytes: r.varint()?, message_limit: r.varint()? },
            CLOSE => {
                let code = r.u16()?;
                let len = usize::try_from(r.varint()?).map_err(|_| Malformed)?;
                if len > MAX_REASON {
                    return Err(Malformed);
                }
                Self::Close { code, reason: r.bytes(len)? }
            }
            PATH_CHALLENGE => Self::PathChallenge(r.array()?),
            PATH_RESPONSE => Self::PathResponse(r.array()?),
            TICKET => {
                let lifetime = u32::try_from(r.varint()?).map_err(|_| Malformed)?;
                let nonce = r.array()?;
                let len = usize::try_from(r.varint()?).map_err(|_| Malformed)?;
                if len > MAX_TICKET {
                    return Err(Malformed);
                }
                Self::Ticket { lifetime, nonce, ticket: r.bytes(len)? }
            }
            _ if kind & COMPACT != 0 => {
                let high = u64::from(kind & COMPACT_TAG);
                let tag = if kind & COMPACT_LONG != 0 {
                    high << 16 | u64::from(r.u16()?)
                } else {
                    high << 8 | u64::from(r.u8()?)
                };
                let (offset, data) = (u32::from(r.u16()?), r.rest());
                if data.is_empty() || u32::try_from(data.len()).is_err() {
                    return Err(Malformed);
                }
                Self::Data { tag, offset, fin: false, data }
            }
            _ if kind & !(FIN | LENGTH | WIDE | SHORT) == DATA => {
                let tag = if kind & WIDE != 0 { r.u64()? } else { r.varint()? };
                let offset = if kind & SHORT != 0 {
                    u32::from(r.u16()?)
                } else {
                    u32::try_from(r.varint()?).map_err(|_| Malformed)?
                };
                let data = if kind & LENGTH != 0 {
                    let len = usize::try_from(r.varint()?).map_err(|_| Malformed)?;
                    r.bytes(len)?
                } else {
                    r.rest()
                };
                let end = u32::try_from(data.len()).ok().and_then(|n| offset.checked_add(n));
                if data.is_empty() || end.is_none() {
                    return Err(Malformed);
                }
                Self::Data { tag, offset, fin: kind & FIN != 0, data }
            }
            _ => return Err(Malformed),
        })
    }

    /// Whether the peer has to acknowledge it (§4).
    pub(crate) fn is_eliciting(&self) -> bool {
        !matches!(self, Self::Padding | Self::Ack(_) | Self::Close { .. })
    }

    /// Appends a control frame. DATA, MESSAGE and ACK have functions of their own, as their payload is not at hand.
    pub(crate) fn emit_control(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Padding => out.push(PADDING),
            Self::Ping => out.push(PING),
            Self::Window { bytes, message_limit } => {
                out.push(WINDOW);
                put_varint(out, bytes);
                put_varint(out, message_limit);
            }
            Self::AckRhythm { interval_us, packets } => {
                out.push(ACK_RHYTHM);
                put_varint(out, interval_us);
                put_varint(out, packets);
            }
            Self::Close { code, reason } => {
                out.push(CLOSE);
                out.extend_from_slice(&code.to_be_bytes());
                put_varint(out, reason.len() as u64);
                out.extend_from_slice(reason);
            }
            Self::PathChallenge(b) | Self::PathResponse(b) => {
                out.push(if matches!(self, Self::PathChallenge(_)) { PATH_CHALLENGE } else { PATH_RESPONSE });
                out.extend_from_slice(&b);
            }
            Self::Ticket { lifetime, nonce, ticket } => {
                out.push(TICKET);
                put_varint(out, u64::from(lifetime));
                out.extend_from_slice(&nonce);
                put_varint(out, ticket.len() as u64);
                out.extend_from_slice(ticket);
            }
            Self::Ack(_) | Self::Message { .. } | Self::Data { .. } => unreachable!("has its own function"),
        }
    }
}

/// Appends the head of a DATA frame in short, if one can say this: the piece must fill the packet, and not be the last of
/// its block.
#[inline]
pub(crate) fn emit_compact_head(out: &mut Vec<u8>, tag: u64, offset: u32) {
    debug_assert!(compact_head_len(tag, offset).is_some());
    let tag = tag as u32;
    if tag < 1 << 14 {
        out.extend_from_slice(&[COMPACT | (tag >> 8) as u8, tag as u8]);
    } else {
        out.extend_from_slice(&[COMPACT | COMPACT_LONG | (tag >> 16) as u8, (tag >> 8) as u8, tag as u8]);
    }
    out.extend_from_slice(&(offset as u16).to_be_bytes());
}

/// Appends the head of a DATA frame. With `len`, the piece's length is written; without, it runs to the packet's end.
#[inline]
pub(crate) fn emit_data_head(out: &mut Vec<u8>, tag: u64, offset: u32, fin: bool, len: Option<usize>) {
    let wide = tag > VARINT_MAX;
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    let short = is_short(offset);
    out.push(DATA | flag(fin, FIN) | flag(len.is_some(), LENGTH) | flag(wide, WIDE) | flag(short, SHORT));
    if wide {
        out.extend_from_slice(&tag.to_be_bytes());
    } else {
        put_varint(out, tag);
    }
    if short {
        out.extend_from_slice(&(offset as u16).to_be_bytes());
    } else {
        put_varint(out, u64::from(offset));
    }
    if let Some(len) = len {
        put_varint(out, len as u64);
    }
}

/// Bytes of a DATA head in short, if one can say this.
#[inline]
pub(crate) const fn compact_head_len(tag: u64, offset: u32) -> Option<usize> {
    if offset >= 1 << 16 || tag >= 1 << 22 {
        return None;
    }
    Some(if tag < 1 << 14 { 4 } else { 5 })
}

/// Bytes of a DATA head without a length that is not in short.
pub(crate) const fn data_head_len(tag: u64, offset: u32) -> usize {
    let tag = if tag > VARINT_MAX { 8 } else { varint_len(tag) };
    1 + tag + if is_short(offset) { 2 } else { varint_len(offset as u64) }
}

/// Whether two bytes hold an offset for which a varint takes four.
const fn is_short(offset: u32) -> bool {
    offset >= 1 << 14 && offset < 1 << 16
}

pub(crate) fn emit_message_head(out: &mut Vec<u8>, offset: u64, len: usize) {
    out.push(MESSAGE);
    put_varint(out, offset);
    put_varint(out, len as u64);
}

/// Bytes of a MESSAGE head for a piece of at most `len` bytes.
pub(crate) const fn message_head_len(offset: u64, len: usize) -> usize {
    1 + varint_len(offset) + varint_len(len as u64)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    fn one(bytes: &[u8]) -> Frame<'_> {
        let mut r = Reader::new(bytes);
        let f = Frame::parse(&mut r).unwrap();
        assert!(r.is_empty());
        f
    }

    #[test]
    fn data_heads_survive_the_round_trip() {
        for tag in [
            0,
            63,
            16_383,
            16_384,
            1 << 20,
            (1 << 22) - 1,
            1 << 22,
            VARINT_MAX,
            VARINT_MAX + 1,
            1 << 63,
            u64::MAX,
        ] {
            for offset in [0, 100, 16_383, 16_384, 32_000, 65_535, 65_536, u32::MAX - 3] {
                for fin in [false, true] {
                    for len in [None, Some(3)] {
                        let mut out = Vec::new();
                        emit_data_head(&mut out, tag, offset, fin, len);
                        assert_eq!(out.len(), data_head_len(tag, offset) + len.map_or(0, |_| 1));
                        out.extend_from_slice(b"abc");
                        let Frame::Data { tag: t, offset: o, fin: f, data } = one(&out) else { panic!() };
                        assert_eq!((t, o, f, data), (tag, offset, fin, &b"abc"[..]));
                    }
                }
                let mut out = Vec::new();
                let Some(len) = compact_head_len(tag, offset) else { continue };
                emit_compact_head(&mut out, tag, offset);
                assert_eq!(out.len(), len);
                out.extend_from_slice(b"abc");
                let Frame::Data { tag: t, offset: o, fin, data } = one(&out) else { panic!() };
                assert_eq!((t, o, fin, data), (tag, offset, false, &b"abc"[..]));
            }
        }
        // An offset whose end passes 2^32, and an empty piece.
        let mut out = Vec::new();
        emit_data_head(&mut out, 1, u32::MAX - 1, false, None);
        out.extend_from_slice(b"abc");
        assert!(Frame::parse(&mut Reader::new(&out)).is_err());
        assert!(Frame::parse(&mut Reader::new(&[DATA, 0, 0])).is_err());
        for short in [&[COMPACT, 0, 0, 0][..], &[0xff, 0, 0, 0, 0], &[0xff, 0, 0]] {
            assert!(Frame::parse(&mut Reader::new(short)).is_err());
        }
    }

    #[test]
    fn control_frames_survive_the_round_trip() {
        let frames = [
            Frame::Padding,
            Frame::Ping,
            Frame::Window { bytes: 1 << 24, message_limit: 77 },
            Frame::Close { code: 0xff01, reason: b"why" },
            Frame::PathChallenge(*b"12345678"),
            Frame::PathResponse(*b"12345678"),
            Frame::AckRhythm { interval_us: 25_000, packets: 10 },
            Frame::Ticket { lifetime: 43_200, nonce: [9; 16], ticket: &[8; 300] },
        ];
        for f in frames {
            let mut out = Vec::new();
            f.emit_control(&mut out);
            assert_eq!(std::format!("{f:?}"), std::format!("{:?}", one(&out)));
            for cut in 0..out.len() {
                assert!(Frame::parse(&mut Reader::new(&out[..cut])).is_err());
            }
        }
        let mut out = Vec::new();
        emit_message_head(&mut out, 1 << 40, 2);
        assert_eq!(out.len(), message_head_len(1 << 40, 2));
        out.extend_from_slice(b"hi");
        assert!(matches!(one(&out), Frame::Message { offset, data: b"hi" } if offset == 1 << 40));
    }

    #[test]
    fn parsing_is_total_on_random_bytes() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut buf = [0; 200];
        let mut good = 0;
        for _ in 0..200_000 {
            let n = rng.next_u32() as usize % buf.len();
            rng.fill_bytes(&mut buf[..n]);
            if n > 0 && rng.next_u32() & 1 == 0 {
                buf[0] &= 0x1f; // mostly known types
            }
            let mut r = Reader::new(&buf[..n]);
            while !r.is_empty() {
                match Frame::parse(&mut r) {
                    Ok(Frame::Ack(a)) => good += a.ranges().count(),
                    Ok(_) => good += 1,
                    Err(Malformed) => break,
                }
            }
        }
        assert!(good > 10_000);
    }
}
