//! A peer that knows the keys and nothing else: authentic packets with any frames in any order.

use alloc::vec::Vec;

use timebase::Instant;

use super::world::{self, CIDS, End, OPENED};
use super::{Input, codecs};
use crate::crypto::aead::PacketKey;
use crate::crypto::kdf::Secret;
use crate::wire::frame::Frame;
use crate::wire::{VARINT_MAX, ack, frame, header, put_varint};
use crate::{Arrival, Ecn, Mode};

/// The fuzzer's side of the connection.
struct Peer {
    secret: Secret,
    key: PacketKey,
    phase: bool,
    number: u64,
    /// Packets the endpoint has sent, and the largest number of an ACK that would be no lie.
    seen: u64,
    from: u8,
}

impl Peer {
    fn new() -> Self {
        let key = PacketKey::of_traffic(&OPENED);
        Self { secret: OPENED, key, phase: false, number: 0, seen: 0, from: 1 }
    }

    fn seal(&mut self, frames: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let short = header::ShortNumber::long(self.number);
        header::emit_protected(&mut packet, &CIDS[0], self.phase, short);
        packet.extend_from_slice(frames);
        let tag = self.key.seal(self.number, &mut packet, short.header());
        packet.extend_from_slice(&tag);
        packet
    }

    /// A number an acknowledgement may tell: mostly one that was sent.
    fn acknowledged(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() {
            255 => input.number() & VARINT_MAX,
            back => self.seen.saturating_sub(1 + u64::from(back) / 2),
        }
    }

    fn frame(&mut self, input: &mut Input<'_>, out: &mut Vec<u8>) {
        let kind = input.u8();
        let limited = |input: &mut Input<'_>| input.number() & VARINT_MAX;
        match kind % 16 {
            // Everything seen so far, or a part: the honest answer.
            0 | 1 => {
                let largest = self.seen.saturating_sub(1 + u64::from(kind / 64));
                out.push(frame::ACK);
                for v in [largest, 0, limited(input), largest.min(u64::from(kind / 16 % 4) * 100), 0] {
                    put_varint(out, v);
                }
            }
            2..5 => {
                let largest = self.acknowledged(input);
                let more = u64::from(kind / 64);
                let flags = kind / 16 % 4;
                out.push(frame::ACK | flags);
                let mut left = largest;
                for v in [largest, limited(input), limited(input)] {
                    put_varint(out, v);
                }
                if flags & ack::COUNTS != 0 {
                    (0..3).for_each(|_| put_varint(out, limited(input)));
                }
                let first = left.min(u64::from(input.u8()));
                put_varint(out, first);
                left -= first;
                if flags & ack::BITS != 0 {
                    let n = (usize::from(input.u8()) % 64).min((left / 8) as usize);
                    let bits = input.bytes(n);
                    put_varint(out, bits.len() as u64);
                    out.extend_from_slice(bits);
                    left -= bits.len() as u64 * 8;
                }
                put_varint(out, more);
                for _ in 0..more {
                    let gap = u64::from(input.u8()) % 8;
                    let length = u64::from(input.u8()) % 16;
                    put_varint(out, gap);
                    put_varint(out, length.min(left.saturating_sub(gap + 2)));
                    left = left.saturating_sub(gap + 2 + length);
                }
            }
            5 | 6 => {
                let offset = if kind & 0x80 == 0 { u64::from(input.u16()) % 2000 } else { limited(input) };
                let len = usize::from(input.u8());
                codecs::emit(&Frame::Message { offset, data: input.bytes(len) }, out);
            }
            7 => Frame::Window { bytes: limited(input), message_limit: limited(input) }.emit_control(out),
            8 => Frame::PathChallenge(input.array()).emit_control(out),
            9 => Frame::PathResponse(input.array()).emit_control(out),
            10 => Frame::Ping.emit_control(out),
            11 => {
                let (tag, offset) = (input.number(), limited(input) as u32);
                let len = 1 + usize::from(input.u8());
                let data = input.bytes(len);
                let data = if data.is_empty() { &[7] } else { data };
                codecs::emit(
                    &Frame::Data { tag, offset: offset.min(1 << 31), fin: kind & 0x80 == 0, data },
                    out,
                );
            }
            12 => {
                let len = usize::from(input.u8());
                Frame::Close { code: input.u16(), reason: input.bytes(len) }.emit_control(out);
            }
            13 if kind & 0x80 == 0 => {
                Frame::AckRhythm { interval_us: limited(input), packets: limited(input) }.emit_control(out);
            }
            13 => out.push(frame::PADDING),
            // Any bytes at all.
            _ => out.extend_from_slice(input.bytes(usize::from(kind / 16) * 4 + 1)),
        }
        out.truncate(1400);
    }
}

/// An established connection whose peer is the fuzzer.
pub fn peer(data: &[u8]) {
    let mut input = Input::new(data);
    let config = world::config(&mut input);
    let peer_config = world::config(&mut input);
    let mut now = Instant::from_micros(1_000_000);
    let mut end = End::new(world::endpoint(&config, 1), usize::from(input.u8() % 20));
    let rtt = input.time();
    let e = world::established(&peer_config, 0, rtt);
    let handle = end.endpoint.adopt(now, world::CONTEXT, e, CIDS[0], input.flag());
    end.handle = Some(handle);
    let mut peer = Peer::new();
    let mut next_tag = 0;
    while !input.is_empty() {
        let op = input.u8();
        match op % 16 {
            0..6 => {
                peer.number = match op / 64 {
                    3 => input.number() & VARINT_MAX,
                    2 => peer.number + u64::from(input.u8()),
                    _ => peer.number + 1,
                };
                let mut frames = Vec::new();
                for _ in 0..1 + op / 16 % 4 {
                    peer.frame(&mut input, &mut frames);
                }
                let mut packet = peer.seal(&frames);
                let at = if op & 1 == 0 { now } else { now - input.time() };
                let ecn = Ecn::from_bits(op / 16);
                let arrival = Arrival { remote: world::address(peer.from), at, ecn };
                end.endpoint.handle_datagram(now, arrival, &mut packet, &mut end.blocks);
            }
            6 => now += input.time(),
            7 | 8 => {
                if let Some(t) = end.endpoint.poll_timeout() {
                    now = now.max(t);
                }
            }
            9 => {
                if let Some(c) = end.endpoint.connection_mut(handle) {
                    let _ = c.send_block(next_tag, 1 + u32::from(input.u16()), op / 16);
                    next_tag += 1;
                }
            }
            10 => {
                if let Some(c) = end.endpoint.connection_mut(handle) {
                    let _ = c.send_message(&[op; 5000][..usize::from(input.u16()) % 5000]);
                }
            }
            11 => peer.from = input.u8(),
            12 => {
                // The next key, early or late; a wrong turn is only one of many packets that do not open.
                peer.secret = peer.secret.derive("ku", b"");
                peer.key = PacketKey::of_traffic(&peer.secret);
                peer.phase = !peer.phase;
            }
            13 => {
                let Some(c) = end.endpoint.connection_mut(handle) else { continue };
                match op / 16 % 8 {
                    0 => c.cancel_block(u64::from(input.u8())),
                    1 => c.set_receive_window(input.number() as u32),
                    2 => c.hold_messages(true),
                    3 => c.hold_messages(false),
                    4 => c.set_mode([Mode::Full, Mode::Fair, Mode::Background][usize::from(input.u8() % 3)]),
                    5 => c.set_rate_limit((op & 0x80 == 0).then_some(input.number())),
                    6 => c.close(input.u16(), "enough"),
                    _ => {}
                }
            }
            14 => {
                // Not authentic at all.
                let mut datagram = input.bytes(64).to_vec();
                if op & 0x80 == 0 && datagram.len() >= 9 {
                    datagram[1..9].copy_from_slice(&CIDS[0]);
                }
                let arrival = Arrival { remote: world::address(peer.from), at: now, ecn: Ecn::NotEct };
                end.endpoint.handle_datagram(now, arrival, &mut datagram, &mut end.blocks);
            }
            _ => {
                for tag in 0..u64::from(op / 16) {
                    if let Some(c) = end.endpoint.connection_mut(handle) {
                        let _ = c.send_block(1000 + tag, 30_000, 0);
                    }
                }
            }
        }
        let mut out = end.drain(now);
        out.extend(end.timeout(now));
        for (_, _, datagram) in out {
            assert!(datagram.len() <= usize::from(config.max_datagram.min(peer_config.max_datagram)));
            if let Ok(header::Header::Protected { number, .. }) = header::Header::parse(&datagram) {
                let number = number.expand(peer.seen.checked_sub(1));
                peer.seen = peer.seen.max(number + 1);
            }
        }
        if end.closed.is_some() && end.endpoint.connection_count() == 0 {
            return;
        }
    }
    // Left alone it comes to an end, and is forgotten.
    for _ in 0..2000 {
        let Some(t) = end.endpoint.poll_timeout() else { break };
        assert!(t > now || end.closed.is_some(), "due already");
        now = now.max(t);
        end.endpoint.handle_timeout(now);
        end.drain(now);
        end.timeout(now);
    }
    assert_eq!(end.endpoint.connection_count(), 0, "still there at {now:?}: {}", end.endpoint.tell());
}
