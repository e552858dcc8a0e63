//! SRP-6a over group 2048 with SHA-256, with the checks the `srp` crate leaves to its caller (PROTOCOL.md §5.4).
//!
//! The crate panics on public values longer than the modulus and strips leading zeros from what it returns; here
//! every number from outside is exactly 256 bytes, below N and not 0, and every number given back is 256 bytes.

use core::fmt;

use ::srp::bigint::BoxedUint;
use ::srp::{ClientG2048, Group, ServerG2048, groups};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::kdf::hash;
use crate::ContextId;
use crate::wire::handshake::GROUP;

/// Bytes of an ephemeral exponent: 384 bits, as the group's strength asks for with a margin.
pub(crate) const EXPONENT: usize = 48;

/// A public value that no honest peer would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadPublicValue;

/// A, B or the verifier: 256 bytes, big-endian.
pub(crate) type Public = [u8; GROUP];

/// The premaster secret S, left-padded.
pub(crate) type Premaster = Zeroizing<[u8; GROUP]>;

/// A secret exponent, erased when dropped.
#[derive(Clone)]
pub(crate) struct Exponent(pub(crate) [u8; EXPONENT]);

impl Drop for Exponent {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Exponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exponent")
    }
}

impl Exponent {
    fn number(&self) -> BoxedUint {
        BoxedUint::from_be_slice_vartime(&self.0)
    }
}

pub(crate) fn modulus() -> alloc::boxed::Box<[u8]> {
    groups::G2048::generator().params().modulus().to_be_bytes()
}

fn public(n: &BoxedUint) -> Public {
    let bytes = n.to_be_bytes();
    let mut out = [0; GROUP];
    // Numbers modulo N carry its precision: exactly 256 bytes.
    out.copy_from_slice(&bytes);
    out
}

/// The number, if it is in 1..N. A public value: time need not be constant.
fn checked(value: &Public) -> Result<BoxedUint, BadPublicValue> {
    let n = modulus();
    if value[..] >= n[..] || value.iter().all(|b| *b == 0) {
        return Err(BadPublicValue);
    }
    Ok(BoxedUint::from_be_slice_vartime(value))
}

fn multiplier() -> BoxedUint {
    let mut g = [0; GROUP];
    let generator = groups::G2048::generator().retrieve().to_be_bytes();
    g[GROUP - generator.len()..].copy_from_slice(&generator);
    BoxedUint::from_be_slice_vartime(&hash(&[&modulus(), &g]))
}

fn scrambler(a: &Public, b: &Public) -> Result<BoxedUint, BadPublicValue> {
    let u = hash(&[a, b]);
    if u == [0; 32] { Err(BadPublicValue) } else { Ok(BoxedUint::from_be_slice_vartime(&u)) }
}

fn password(context: &ContextId, secret: &[u8; 32], salt: &[u8; 16]) -> BoxedUint {
    let identity = ClientG2048::<Sha256>::compute_identity_hash(&context.0, secret);
    ClientG2048::<Sha256>::compute_x(&identity, salt)
}

/// v = g^x: what the responder keeps per context.
pub(crate) fn verifier(context: &ContextId, secret: &[u8; 32], salt: &[u8; 16]) -> Public {
    public(&ClientG2048::<Sha256>::new().compute_g_x(&password(context, secret, salt)))
}

/// A = g^a.
pub(crate) fn initiator_public(a: &Exponent) -> Public {
    public(&ClientG2048::<Sha256>::new().compute_g_x(&a.number()))
}

/// B = kv + g^b.
pub(crate) fn responder_public(b: &Exponent, verifier: &Public) -> Public {
    let v = BoxedUint::from_be_slice_vartime(verifier);
    public(&ServerG2048::<Sha256>::new().compute_b_pub(&b.number(), &multiplier(), &v))
}

/// The initiator's S.
pub(crate) fn initiator_premaster(
    a: &Exponent,
    a_public: &Public,
    b_public: &Public,
    context: &ContextId,
    secret: &[u8; 32],
    salt: &[u8; 16],
) -> Result<Premaster, BadPublicValue> {
    let b = checked(b_public)?;
    let u = scrambler(a_public, b_public)?;
    let x = password(context, secret, salt);
    let s = ClientG2048::<Sha256>::new().compute_premaster_secret(&b, &multiplier(), &x, &a.number(), &u);
    Ok(Zeroizing::new(public(&s)))
}

/// Whether A may be answered at all; cheap.
pub(crate) fn check_public(value: &Public) -> Result<(), BadPublicValue> {
    checked(value).map(|_| ())
}

/// The responder's S.
pub(crate) fn responder_premaster(
    b: &Exponent,
    b_public: &Public,
    a_public: &Public,
    verifier: &Public,
) -> Result<Premaster, BadPublicValue> {
    let a = checked(a_public)?;
    let u = scrambler(a_public, b_public)?;
    let v = BoxedUint::from_be_slice_vartime(verifier);
    let s = ServerG2048::<Sha256>::new().compute_premaster_secret(&a, &v, &u, &b.number());
    Ok(Zeroizing::new(public(&s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_exactly_when_the_secrets_do() {
        let (ctx, salt) = (ContextId([1; 16]), [2; 16]);
        let (a, b) = (Exponent([0xa5; EXPONENT]), Exponent([0x5b; EXPONENT]));
        let v = verifier(&ctx, &[3; 32], &salt);
        let (pa, pb) = (initiator_public(&a), responder_public(&b, &v));
        let right = initiator_premaster(&a, &pa, &pb, &ctx, &[3; 32], &salt).unwrap();
        let wrong = initiator_premaster(&a, &pa, &pb, &ctx, &[4; 32], &salt).unwrap();
        let theirs = responder_premaster(&b, &pb, &pa, &v).unwrap();
        assert_eq!(right, theirs);
        assert_ne!(wrong, theirs);
        // The crate's own way comes to the same S.
        let reference = ServerG2048::<Sha256>::new().process_reply(&ctx.0, &salt, &b.0, &v, &pa).unwrap();
        let skip = theirs.iter().take_while(|b| **b == 0).count();
        assert_eq!(reference.key(), &theirs[skip..]);
    }

    #[test]
    fn values_outside_the_group_are_refused_without_a_panic() {
        let mut n = [0; GROUP];
        n.copy_from_slice(&modulus());
        let mut above = n;
        above[GROUP - 1] = 0xff;
        let (b, v) = (Exponent([5; EXPONENT]), [9; GROUP]);
        for bad in [[0; GROUP], n, above, [0xff; GROUP]] {
            assert_eq!(check_public(&bad), Err(BadPublicValue));
            assert_eq!(responder_premaster(&b, &v, &bad, &v), Err(BadPublicValue));
            let r = initiator_premaster(&b, &v, &bad, &ContextId([0; 16]), &[0; 32], &[0; 16]);
            assert_eq!(r, Err(BadPublicValue));
        }
        let mut below = n;
        below[GROUP - 1] -= 1;
        assert_eq!(check_public(&below), Ok(()));
    }
}
