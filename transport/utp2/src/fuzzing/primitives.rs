//! Primitives with hostile numbers: SRP with any public value, salt and secret, X25519 with any share, and packet
//! protection with any packet.

use alloc::vec::Vec;

use super::Input;
use crate::ContextId;
use crate::crypto::aead::PacketKey;
use crate::crypto::exchange::Share;
use crate::crypto::srp::{self, EXPONENT, Exponent, Public};
use crate::wire::handshake::GROUP;
use crate::wire::header::TAG;

/// A public value: any bytes, padded in front or behind, or one near the ends of the group.
fn public(input: &mut Input<'_>) -> Public {
    let mut out = [0; GROUP];
    match input.u8() % 4 {
        0 => out = input.array(),
        1 => {
            let low: [u8; 8] = input.array();
            out[GROUP - 8..].copy_from_slice(&low);
        }
        kind => {
            // N plus or minus something small. N is far from 0 and from 2^2048 − 1: no carry leaves the number.
            out.copy_from_slice(&srp::modulus());
            let tail = u64::from_be_bytes(*out.last_chunk().expect("8 bytes"));
            let by = u64::from(input.u8());
            let tail = if kind == 2 { tail.wrapping_add(by) } else { tail.wrapping_sub(by) };
            out[GROUP - 8..].copy_from_slice(&tail.to_be_bytes());
        }
    }
    out
}

fn is_in_group(value: &Public) -> bool {
    value.iter().any(|b| *b != 0) && value[..] < srp::modulus()[..]
}

/// SRP with numbers no honest peer sends: refused or computed, never a panic; honest numbers always agree.
pub fn srp(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let (context, salt) = (ContextId(input.array()), input.array::<16>());
    let (secret, a, b) = (input.array::<32>(), Exponent(input.array()), Exponent(input.array()));
    if kind & 1 == 0 {
        // The peer's value is hostile.
        let value = public(&mut input);
        let good = is_in_group(&value);
        assert_eq!(srp::check_public(&value).is_ok(), good);
        let (own, verifier) = (public(&mut input), public(&mut input));
        if kind & 2 == 0 {
            assert_eq!(srp::initiator_premaster(&a, &own, &value, &context, &secret, &salt).is_ok(), good);
        } else {
            assert_eq!(srp::responder_premaster(&b, &own, &value, &verifier).is_ok(), good);
        }
    } else if a.0 != [0; EXPONENT] && b.0 != [0; EXPONENT] {
        let verifier = srp::verifier(&context, &secret, &salt);
        let (own, theirs) = (srp::initiator_public(&a), srp::responder_public(&b, &verifier));
        if !is_in_group(&theirs) {
            return;
        }
        let one =
            srp::initiator_premaster(&a, &own, &theirs, &context, &secret, &salt).expect("both in the group");
        let other = srp::responder_premaster(&b, &theirs, &own, &verifier).expect("both in the group");
        assert!(one == other);
    }
}

/// Any packet under any key: only what was sealed opens, to what it was, and only under its number.
pub fn aead(data: &[u8]) {
    let mut input = Input::new(data);
    let key = PacketKey::new(input.array(), input.array());
    let (number, header) = (input.number(), usize::from(input.u8()) % 40);
    let (flip, other) = (usize::from(input.u16()), input.number());
    let rest = input.bytes(2000);
    let mut forged = rest.to_vec();
    let forged = key.open(number, &mut forged, header).is_ok();
    let mut packet = Vec::from(rest);
    packet.resize(packet.len().max(header), 0);
    let plain = packet.clone();
    let tag = key.seal(number, &mut packet, header);
    packet.extend_from_slice(&tag);
    assert!(!forged || rest.len() >= header + TAG);
    assert_eq!(packet[..header], plain[..header], "the header stays readable");
    if other != number {
        assert!(key.open(other, &mut packet.clone(), header).is_err());
    }
    let mut bad = packet.clone();
    bad[flip / 8 % packet.len()] ^= 1 << (flip % 8);
    assert!(key.open(number, &mut bad, header).is_err());
    assert!(key.open(number, &mut packet[..flip % (packet.len() - 1)].to_vec(), header).is_err());
    let opened = key.open(number, &mut packet, header).expect("what was sealed");
    assert_eq!(opened, &plain[header..]);
}

/// Any share, and any exponents: refused if it gives zero, the same on both sides if it is honest.
pub fn exchange(data: &[u8]) {
    let mut input = Input::new(data);
    let (a, b) = (Share::new(input.array()), Share::new(input.array()));
    let shared = |s: &Share, public| s.shared(public).map(|s| *s.as_bytes());
    let (one, other) = (shared(&a, b.public()), shared(&b, a.public()));
    assert!(one.is_some() && one == other);
    let share = input.array();
    if let Some(s) = shared(&a, share) {
        assert!(s != [0; 32]);
        // The top bit of a share says nothing (RFC 7748 §5).
        let mut same = share;
        same[31] ^= 0x80;
        assert_eq!(shared(&a, same), Some(s));
    }
}
