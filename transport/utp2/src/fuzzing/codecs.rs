//! Parsers: any bytes give a value or `Malformed`; a value emitted again parses to itself, and what a parser has
//! consumed is all it looked at.

use alloc::format;
use alloc::vec::Vec;

use super::Input;
use crate::wire::ack::{self, Ack, Times};
use crate::wire::frame::{Frame, emit_data_head, emit_message_head};
use crate::wire::handshake::{Alert, Body, Init, ProveHead, Reply, Retry};
use crate::wire::header::{self, HANDSHAKE_HEADER, Header, ShortNumber};
use crate::wire::{Malformed, Reader, VARINT_MAX, put_varint, varint_len};

/// The first bytes of a datagram, and the packet number made whole.
pub fn header(data: &[u8]) {
    match Header::parse(data) {
        Ok(Header::Protected { cid, phase, number }) => {
            let mut out = Vec::new();
            header::emit_protected(&mut out, &cid, phase, number);
            assert_eq!(out, data[..number.header()]);
        }
        Ok(Header::Handshake { kind, cid }) => {
            let mut out = Vec::new();
            header::emit_handshake(&mut out, kind, &cid);
            assert_eq!(out, data[..HANDSHAKE_HEADER]);
        }
        Ok(Header::OtherVersion { version, .. }) => {
            assert!(data[0] & 0x80 != 0 && version != header::VERSION)
        }
        Err(Malformed) => {}
    }
    let mut input = Input::new(data);
    let low = u64::from(input.u32());
    let short = match input.flag() {
        true => ShortNumber::long(low),
        false => ShortNumber::of(low, Some(low), low & 1 << 12),
    };
    let range = short.range();
    let largest = input.flag().then(|| input.number() & VARINT_MAX);
    let number = short.expand(largest);
    assert_eq!(number % range, low % range);
    // No other number that ends so is nearer to the one expected.
    let expected = largest.map_or(0, |l| l + 1);
    let distance = number.abs_diff(expected);
    for other in [number.checked_sub(range), number.checked_add(range)].into_iter().flatten() {
        assert!(distance <= other.abs_diff(expected), "{low:x} after {largest:x?} is not {number:x}");
    }
}

/// Every packet of the handshake.
pub fn handshake(data: &[u8]) {
    if let Ok(init) = Init::parse(data) {
        let mut out = Vec::new();
        init.emit(&mut out);
        assert_eq!(format!("{init:?}"), format!("{:?}", Init::parse(&out).expect("what was emitted")));
    }
    if let Ok(retry) = Retry::parse(data) {
        let mut out = Vec::new();
        retry.emit(&[7; 8], &mut out);
        assert_eq!(retry.cookie, Retry::parse(&out).expect("what was emitted").cookie);
    }
    if let Ok(reply) = Reply::parse(data) {
        let mut out = Vec::new();
        reply.emit(&[7; 8], &mut out);
        assert_eq!(format!("{reply:?}"), format!("{:?}", Reply::parse(&out).expect("what was emitted")));
    }
    if let Ok(head) = ProveHead::parse(data) {
        assert!(head.index < head.count);
        let mut out = Vec::new();
        head.emit(&[7; 8], &mut out);
        assert_eq!(out[HANDSHAKE_HEADER..], data[HANDSHAKE_HEADER..out.len()]);
    }
    if let Ok(alert) = Alert::parse(data) {
        let mut out = Vec::new();
        alert.emit(&[7; 8], &mut out);
        assert_eq!(Alert::parse(&out), Ok(alert));
    }
    if let Ok(body) = Body::parse(data) {
        assert_eq!(body.signature, data[body.signature_at..body.signature_at + 64]);
        assert_eq!(body.confirmation, data[data.len() - 32..]);
        // What later versions add is not emitted again.
        let mut out = Vec::new();
        Body::emit_claims(&mut out, &body.public_key, &body.params, body.credential);
        let claims = out.len();
        out.extend_from_slice(&body.signature);
        out.extend_from_slice(&body.confirmation);
        let again = Body::parse(&out).expect("what was emitted");
        assert_eq!(
            (again.public_key, again.params, again.credential),
            (body.public_key, body.params, body.credential)
        );
        assert_eq!(again.signature_at, claims);
    }
}

/// Appends any frame as a sender would.
pub(super) fn emit(frame: &Frame<'_>, out: &mut Vec<u8>) {
    match frame {
        Frame::Data { tag, offset, fin, data } => {
            emit_data_head(out, *tag, *offset, *fin, Some(data.len()));
            out.extend_from_slice(data);
        }
        Frame::Message { offset, data } => {
            emit_message_head(out, *offset, data.len());
            out.extend_from_slice(data);
        }
        Frame::Ack(ack) => {
            assert!(ack::emit(out, crate::wire::frame::ACK, &times(ack), &merged(ack), 1 << 20));
        }
        frame => frame.emit_control(out),
    }
}

fn times(ack: &Ack<'_>) -> Times {
    Times { hold_us: ack.hold_us, arrival_us: ack.arrival_us, counts: ack.counts.unwrap_or_default() }
}

/// What an ACK tells as a receiver keeps it: half-open, oldest first, neighbours that touch made one.
fn merged(ack: &Ack<'_>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (low, high) in ack.ranges() {
        match out.last_mut() {
            Some(last) if last.0 == high + 1 => last.0 = low,
            _ => out.push((low, high + 1)),
        }
    }
    out.reverse();
    out
}

fn told(frame: &Frame<'_>) -> alloc::string::String {
    match frame {
        // Numbers and bits are two ways to say the same.
        Frame::Ack(a) => format!("{} {:?} {:?}", a.largest, times(a), merged(a)),
        other => format!("{other:?}"),
    }
}

/// The frames of a packet, one after the other.
pub fn frames(data: &[u8]) {
    let mut r = Reader::new(data);
    while !r.is_empty() {
        let before = r;
        let Ok(frame) = Frame::parse(&mut r) else { return };
        let consumed = { before }.rest().len() - { r }.rest().len();
        assert!(consumed > 0);
        let first = { before }.bytes(consumed).expect("consumed");
        let alone = Frame::parse(&mut Reader::new(first)).expect("it needed no more");
        assert_eq!(told(&frame), told(&alone));
        let mut out = Vec::new();
        emit(&frame, &mut out);
        let mut again = Reader::new(&out);
        assert_eq!(told(&frame), told(&Frame::parse(&mut again).expect("what was emitted")));
        assert!(again.is_empty());
        let _ = frame.is_eliciting();
    }
}

/// The fields of an ACK, and as much of it as fits when it is told again.
pub fn ack(data: &[u8]) {
    let Some((&[flags, a, b], rest)) = data.split_first_chunk() else { return };
    let mut r = Reader::new(rest);
    let Ok(ack) = Ack::parse(flags, &mut r) else { return };
    let ranges: Vec<_> = ack.ranges().collect();
    assert_eq!(ranges[0].1, ack.largest);
    assert!(ranges.iter().all(|(low, high)| low <= high));
    assert!(ranges.windows(2).all(|w| w[1].1 < w[0].0), "newest first");
    let (room, ranges) = (usize::from(u16::from_be_bytes([a, b])), merged(&ack));
    let mut out = Vec::new();
    if ack::emit(&mut out, crate::wire::frame::ACK, &times(&ack), &ranges, room) {
        assert!(out.len() <= room);
        let mut r = Reader::new(&out[1..]);
        let again = Ack::parse(out[0], &mut r).expect("what was emitted");
        assert!(r.is_empty());
        assert_eq!(
            (again.largest, format!("{:?}", times(&again))),
            (ack.largest, format!("{:?}", times(&ack)))
        );
        // From the smallest number told on, all of it and nothing else.
        let told = merged(&again);
        let above = ranges.iter().filter(|r| r.1 > told[0].0).map(|r| (r.0.max(told[0].0), r.1));
        assert_eq!(told, above.collect::<Vec<_>>());
    } else {
        assert!(out.is_empty());
    }
}

/// Numbers of one to eight bytes.
pub fn varint(data: &[u8]) {
    let mut r = Reader::new(data);
    while let Ok(v) = r.varint() {
        assert!(v <= VARINT_MAX);
        let mut out = Vec::new();
        put_varint(&mut out, v);
        assert_eq!(out.len(), varint_len(v));
        let mut again = Reader::new(&out);
        assert_eq!(again.varint(), Ok(v));
        assert!(again.is_empty());
    }
    // Only the end of the bytes stops it.
    assert!({ r }.rest().len() < 8);
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::collection::vec as many;
    use proptest::prelude::*;

    use super::*;
    use crate::connection::ecn::Counts;
    use crate::wire::handshake::{COOKIE, GROUP, Params};

    fn numbers() -> impl Strategy<Value = u64> {
        (0u32..62, any::<u64>()).prop_map(|(bits, v)| v & ((2u64 << bits) - 1))
    }

    /// Ranges as a receiver has them, near to each other as well as far apart.
    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        (many((0u32..40, any::<u64>(), any::<u64>()), 1..60), 0u64..1 << 60).prop_map(|(steps, start)| {
            let mut low = start;
            let mut out = vec![];
            for (bits, length, gap) in steps {
                let mask = (1u64 << bits) - 1;
                out.push((low, low + 1 + (length & mask)));
                low += 2 + (length & mask) + (gap & mask);
            }
            out
        })
    }

    fn one(frame: &Frame<'_>) -> Result<(), TestCaseError> {
        let mut out = Vec::new();
        emit(frame, &mut out);
        let mut r = Reader::new(&out);
        let again = Frame::parse(&mut r).map_err(|_| TestCaseError::fail("malformed"))?;
        prop_assert!(r.is_empty());
        prop_assert_eq!(told(frame), told(&again));
        for cut in 0..out.len() {
            // A piece without a length may be shorter; everything else is cut visibly.
            if let Ok(f) = Frame::parse(&mut Reader::new(&out[..cut])) {
                prop_assert!(matches!(f, Frame::Data { .. }), "{cut} bytes of {frame:?} are {f:?}");
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_survive_the_round_trip(
            (a, b, bytes) in (numbers(), numbers(), many(any::<u8>(), 1..300)),
            (tag, offset, fin) in (any::<u64>(), 0u32..u32::MAX - 400, any::<bool>()),
            eight in any::<[u8; 8]>(),
            code in any::<u16>(),
        ) {
            one(&Frame::Padding)?;
            one(&Frame::Ping)?;
            one(&Frame::Message { offset: a, data: &bytes })?;
            one(&Frame::Message { offset: a, data: &[] })?;
            one(&Frame::Window { bytes: a, message_limit: b })?;
            one(&Frame::AckRhythm { interval_us: a, packets: b })?;
            one(&Frame::Close { code, reason: &bytes[..bytes.len().min(256)] })?;
            one(&Frame::PathChallenge(eight))?;
            one(&Frame::PathResponse(eight))?;
            one(&Frame::Data { tag, offset, fin, data: &bytes })?;
        }

        #[test]
        fn acknowledgements_survive_the_round_trip(
            ranges in ranges(),
            (hold_us, arrival_us) in (numbers(), numbers()),
            (ect0, ect1, ce) in (numbers(), numbers(), numbers()),
        ) {
            let mut out = Vec::new();
            let times = Times { hold_us, arrival_us, counts: Counts { ect0, ect1, ce } };
            prop_assert!(ack::emit(&mut out, crate::wire::frame::ACK, &times, &ranges, 1 << 20));
            let mut r = Reader::new(&out[1..]);
            let ack = Ack::parse(out[0], &mut r).map_err(|_| TestCaseError::fail("malformed"))?;
            prop_assert!(r.is_empty());
            prop_assert_eq!((ack.largest, ack.hold_us, ack.arrival_us), (ranges[ranges.len() - 1].1 - 1, hold_us, arrival_us));
            prop_assert_eq!(format!("{:?}", ack.counts.unwrap_or_default()), format!("{:?}", times.counts));
            prop_assert_eq!(merged(&ack), ranges);
            for cut in 1..out.len() {
                prop_assert!(Ack::parse(out[0], &mut Reader::new(&out[1..cut])).is_err());
            }
        }

        #[test]
        fn handshake_packets_survive_the_round_trip(
            (source, nonce, tag, salt) in any::<([u8; 8], [u8; 32], [u8; 16], [u8; 16])>(),
            (suite, byte, cookie) in any::<(u8, u8, bool)>(),
            (max_datagram, receive_window) in (1200u16.., any::<u32>()),
            (message_limit, max_message, idle_timeout_ms) in any::<(u32, u32, u32)>(),
            credential in many(any::<u8>(), 0..2048),
        ) {
            let group = [byte; GROUP];
            let cookie: &[u8] = if cookie { &[9; COOKIE] } else { &[] };
            let init = Init { source, suite, nonce, tag, a: &group, cookie };
            let mut out = Vec::new();
            init.emit(&mut out);
            prop_assert_eq!(format!("{init:?}"), format!("{:?}", Init::parse(&out).expect("an INIT")));
            let reply = Reply { source, suite, nonce, salt, b: &group };
            out.clear();
            reply.emit(&source, &mut out);
            prop_assert_eq!(format!("{reply:?}"), format!("{:?}", Reply::parse(&out).expect("a REPLY")));
            for cut in 0..out.len() {
                prop_assert!(Reply::parse(&out[..cut]).is_err());
            }
            let reset_token = [byte; 16];
            let params = Params { max_datagram, receive_window, message_limit, max_message, idle_timeout_ms, reset_token };
            out.clear();
            Body::emit_claims(&mut out, &nonce, &params, &credential);
            out.extend_from_slice(&[byte; 96]);
            let body = Body::parse(&out).expect("a body");
            prop_assert_eq!((body.public_key, body.params, body.credential), (nonce, params, &credential[..]));
        }

        #[test]
        fn any_bytes_do_no_harm(data in many(any::<u8>(), 0..1400)) {
            super::super::TARGETS.iter().filter(|t| ["ack", "frames", "handshake", "header", "varint"].contains(&t.0))
                .for_each(|t| t.1(&data));
        }
    }
}
