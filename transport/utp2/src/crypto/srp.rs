//! SRP-6a over group 2048 with SHA-256, with the checks the `srp` crate leaves to its caller (PROTOCOL.md §5.4).
//!
//! The crate gives the group and the numbers modulo N; its own client and server panic on public values longer than
//! the modulus, strip leading zeros from what they return, and bring multiplications of numbers of any length along:
//! 16 KB of program and 24 KB of stack on a Cortex-M4, for one product of 256 by 256 bits. The tests hold this against
//! them. Here every number from outside is exactly 256 bytes, below N and not 0, and every number given back is 256
//! bytes.

use core::fmt;

use ::srp::bigint::BoxedUint;
use ::srp::bigint::modular::BoxedMontyForm;
use ::srp::{Group, groups};
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

fn generator() -> BoxedMontyForm {
    groups::G2048::generator()
}

pub(crate) fn modulus() -> alloc::boxed::Box<[u8]> {
    generator().params().modulus().to_be_bytes()
}

/// The number of these bytes, 256 at most, modulo N.
fn element(bytes: &[u8]) -> BoxedMontyForm {
    let mut padded = Zeroizing::new([0; GROUP]);
    padded[GROUP - bytes.len()..].copy_from_slice(bytes);
    BoxedMontyForm::new(BoxedUint::from_be_slice_vartime(&padded[..]), generator().params())
}

fn public(n: &BoxedMontyForm) -> Public {
    let bytes = n.retrieve().to_be_bytes();
    let mut out = [0; GROUP];
    // Numbers modulo N carry its precision: exactly 256 bytes.
    out.copy_from_slice(&bytes);
    out
}

/// The number, if it is in 1..N. A public value: time need not be constant.
fn checked(value: &Public) -> Result<BoxedMontyForm, BadPublicValue> {
    check_public(value)?;
    Ok(element(value))
}

fn multiplier() -> BoxedMontyForm {
    let mut g = [0; GROUP];
    let generator = generator().retrieve().to_be_bytes();
    g[GROUP - generator.len()..].copy_from_slice(&generator);
    element(&hash(&[&modulus(), &g]))
}

fn scrambler(a: &Public, b: &Public) -> Result<[u8; 32], BadPublicValue> {
    let u = hash(&[a, b]);
    if u == [0; 32] { Err(BadPublicValue) } else { Ok(u) }
}

/// x.
fn password(context: &ContextId, secret: &[u8; 32], salt: &[u8; 16]) -> Zeroizing<[u8; 32]> {
    let identity = Zeroizing::new(hash(&[&context.0, b":", secret]));
    Zeroizing::new(hash(&[salt, &identity[..]]))
}

/// a + ux, in the same steps whatever the numbers are. It is below 2^513.
fn answer(a: &Exponent, u: &[u8; 32], x: &[u8; 32]) -> BoxedUint {
    /// The digits of a number to the base 2^32, the lowest first.
    fn digits<const LEN: usize>(bytes: &[u8]) -> Zeroizing<[u32; LEN]> {
        let mut digits = Zeroizing::new([0; LEN]);
        for (digit, four) in digits.iter_mut().zip(bytes.rchunks_exact(4)) {
            *digit = u32::from_be_bytes([four[0], four[1], four[2], four[3]]);
        }
        digits
    }
    let (u, x) = (digits::<8>(u), digits::<8>(x));
    let mut sum = digits::<17>(&a.0);
    for (nth, u) in u.iter().enumerate() {
        // None of these overflows: a digit times a digit and two more is less than two digits hold.
        let mut carry = 0;
        for (at, sum) in sum[nth..].iter_mut().enumerate() {
            let step = u64::from(*u) * u64::from(x.get(at).copied().unwrap_or(0)) + u64::from(*sum) + carry;
            (*sum, carry) = (step as u32, step >> 32);
        }
    }
    let mut bytes = Zeroizing::new([0; 17 * 4]);
    for (four, digit) in bytes.rchunks_exact_mut(4).zip(sum.iter()) {
        four.copy_from_slice(&digit.to_be_bytes());
    }
    BoxedUint::from_be_slice_vartime(&bytes[..])
}

/// v = g^x: what the responder keeps per context.
pub(crate) fn verifier(context: &ContextId, secret: &[u8; 32], salt: &[u8; 16]) -> Public {
    public(&power_of_password(&password(context, secret, salt)))
}

/// g^x.
fn power_of_password(x: &[u8; 32]) -> BoxedMontyForm {
    generator().pow(&BoxedUint::from_be_slice_vartime(x))
}

/// A = g^a.
pub(crate) fn initiator_public(a: &Exponent) -> Public {
    public(&generator().pow(&a.number()))
}

/// B = kv + g^b.
pub(crate) fn responder_public(b: &Exponent, verifier: &Public) -> Public {
    public(&(multiplier() * element(verifier) + generator().pow(&b.number())))
}

/// The initiator's S = (B - kg^x)^(a + ux).
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
    let base = b - multiplier() * power_of_password(&x);
    Ok(Zeroizing::new(public(&base.pow(&answer(a, &u, &x)))))
}

/// Whether A may be answered at all; cheap.
pub(crate) fn check_public(value: &Public) -> Result<(), BadPublicValue> {
    let n = modulus();
    if value[..] >= n[..] || value.iter().all(|b| *b == 0) {
        return Err(BadPublicValue);
    }
    Ok(())
}

/// The responder's S = (Av^u)^b.
pub(crate) fn responder_premaster(
    b: &Exponent,
    b_public: &Public,
    a_public: &Public,
    verifier: &Public,
) -> Result<Premaster, BadPublicValue> {
    let a = checked(a_public)?;
    let u = BoxedUint::from_be_slice_vartime(&scrambler(a_public, b_public)?);
    let base = a * element(verifier).pow(&u);
    Ok(Zeroizing::new(public(&base.pow(&b.number()))))
}

#[cfg(test)]
mod tests {
    use ::srp::{ClientG2048, ServerG2048};
    use sha2::Sha256;

    use super::*;

    /// Bytes that a seed determines.
    fn bytes<const LEN: usize>(seed: u8) -> [u8; LEN] {
        core::array::from_fn(|nth| hash(&[&[seed, nth as u8]])[0])
    }

    #[test]
    fn what_the_crate_comes_to_is_what_we_come_to() {
        let client = ClientG2048::<Sha256>::new();
        for seed in 0..4 {
            let (context, salt, secret) = (ContextId([seed; 16]), bytes(seed + 1), bytes(seed + 2));
            let (a, b) = (Exponent(bytes(seed + 3)), Exponent(bytes(seed + 4)));
            let v = verifier(&context, &secret, &salt);
            assert_eq!(v[..], client.compute_verifier(&context.0, &secret, &salt)[..]);
            let (pa, pb) = (initiator_public(&a), responder_public(&b, &v));
            assert_eq!(pa[..], client.compute_public_ephemeral(&a.0)[..]);
            assert_eq!(pb[..], ServerG2048::<Sha256>::new().compute_public_ephemeral(&b.0, &v)[..]);
            let ours = initiator_premaster(&a, &pa, &pb, &context, &secret, &salt).unwrap();
            let theirs = client.process_reply(&a.0, &context.0, &secret, &salt, &pb).unwrap();
            let skip = ours.iter().take_while(|b| **b == 0).count();
            assert_eq!(theirs.key(), &ours[skip..]);
        }
    }

    #[test]
    fn the_greatest_exponent_is_right() {
        let all = answer(&Exponent([0xff; EXPONENT]), &[0xff; 32], &[0xff; 32]);
        // 2^384 - 1 + (2^256 - 1)^2 = 2^512 + 2^384 - 2^257
        let mut right = [0; 68];
        right[3] = 1;
        right[20..35].fill(0xff);
        right[35] = 0xfe;
        assert_eq!(all, BoxedUint::from_be_slice_vartime(&right));
    }

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
