//! Cookies: proof that an initiator receives at its address, without keeping anything (PROTOCOL.md §5.3).

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use subtle::ConstantTimeEq;
use timebase::Instant;

use crate::crypto::kdf::Secret;
use crate::wire::Cid;
use crate::wire::handshake::COOKIE;

const VALID: Duration = Duration::from_secs(10);

/// What a cookie is bound to beside its address: the asker's CID and nonce, in INIT and RESUME alike.
pub(crate) type Asker<'a> = (&'a Cid, &'a [u8; 32]);

fn mac(key: &Secret, time: &[u8], from: SocketAddr, (cid, nonce): Asker<'_>) -> [u8; 16] {
    let ip = match from.ip() {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    };
    let full = key.mac(&[time, &ip, &from.port().to_be_bytes(), cid, nonce]);
    let mut out = [0; 16];
    out.copy_from_slice(&full[..16]);
    out
}

pub(crate) fn issue(key: &Secret, now: Instant, from: SocketAddr, asker: Asker<'_>) -> [u8; COOKIE] {
    let time = now.as_micros().to_be_bytes();
    let mut out = [0; COOKIE];
    out[..8].copy_from_slice(&time);
    out[8..].copy_from_slice(&mac(key, &time, from, asker));
    out
}

pub(crate) fn is_valid(
    key: &Secret,
    now: Instant,
    from: SocketAddr,
    asker: Asker<'_>,
    cookie: &[u8],
) -> bool {
    let Some((time, tag)) = cookie.split_first_chunk::<8>() else { return false };
    let issued = Instant::from_micros(u64::from_be_bytes(*time));
    bool::from(mac(key, time, from, asker).ct_eq(tag))
        && issued <= now
        && now.saturating_since(issued) <= VALID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_its_address_its_init_and_ten_seconds() {
        let key = Secret([1; 32]);
        let (a, b): (SocketAddr, SocketAddr) = ("10.0.0.1:5".parse().unwrap(), "10.0.0.2:5".parse().unwrap());
        let t = |s: u64| Instant::from_micros(s * 1_000_000);
        let asker = (&[1; 8], &[2; 32]);
        assert!(!is_valid(&key, t(5), a, asker, &[]));
        let cookie = issue(&key, t(5), a, asker);
        assert!(is_valid(&key, t(5), a, asker, &cookie) && is_valid(&key, t(15), a, asker, &cookie));
        assert!(!is_valid(&key, t(16), a, asker, &cookie) && !is_valid(&key, t(4), a, asker, &cookie));
        assert!(!is_valid(&key, t(5), b, asker, &cookie));
        assert!(!is_valid(&Secret([2; 32]), t(5), a, asker, &cookie));
        assert!(!is_valid(&key, t(5), a, (&[1; 8], &[3; 32]), &cookie));
    }
}
