//! From what people type to what the protocol needs.

use hkdf::Hkdf;
use sha2::Sha256;
use utp2::ContextId;

/// The same for every secret: were it derived from the secret, whoever saw a handshake could try guesses
/// at home. So only the handshake itself tells whether a guess is right, one try each.
pub(crate) const CONTEXT: ContextId = ContextId(*b"utp2 tool, ctx 1");

/// 32 bytes from a text. There is no stretching: a text that can be guessed can be found out by trying it
/// against a listening receiver.
pub(crate) fn derive(text: &str) -> [u8; 32] {
    let mut secret = [0; 32];
    Hkdf::<Sha256>::new(Some(b"flotilla utp2 tool"), text.as_bytes())
        .expand(b"shared secret v1", &mut secret)
        .expect("32 bytes are within HKDF's limit");
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivation_is_fixed() {
        // Both sides may run different releases: this value must never change.
        let hex = data_encoding::HEXLOWER.encode(&derive("correct horse battery staple"));
        assert_eq!(hex, GOLDEN);
        assert_ne!(derive("a"), derive("b"));
    }

    /// Computed with another implementation of HKDF (RFC 5869).
    const GOLDEN: &str = "674bf39afef29ed4723b59e1d1d467d3d0bbe0db7f8a640bde36fa4960ca50ff";
}
