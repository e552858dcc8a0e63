//! An endpoint that anybody may send datagrams to: handshakes forged, cut, repeated and mixed, from any address at any
//! time, beside a connection that is up.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

use super::Input;
use super::world::{self, CIDS, CONTEXT, End};
use crate::crypto::srp::Public;
use crate::handshake::initiator::context_tag;
use crate::wire::handshake::{Init, SUITE};
use crate::wire::header::HANDSHAKE_HEADER;
use crate::{Arrival, Config, Ecn};

/// Handshakes cost milliseconds each: an input may begin so many.
const MAX_INITS: usize = 4;

/// Any datagrams, times and timeouts.
pub fn endpoint(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let config = Config { retry_threshold: usize::from(flags % 3), ..world::config(&mut input) };
    let mut now = Instant::from_micros(1_000_000);
    let mut end = End::new(world::endpoint(&config, 1), 1 + usize::from(flags / 16));
    let e = world::established(&Config::default(), 0, Duration::from_millis(20));
    let handle = end.endpoint.adopt(now, CONTEXT, e, CIDS[0], true);
    end.handle = Some(handle);
    // What was sent, to be answered, repeated and turned round.
    let mut seen: Vec<Vec<u8>> = vec![];
    let (mut inits, mut bytes_in, mut bytes_out) = (0, [0usize; 256], [0usize; 256]);
    while !input.is_empty() {
        let op = input.u8();
        let from = input.u8();
        let mut datagram = match op % 8 {
            0 => {
                let len = usize::from(input.u8()) * 6;
                input.bytes(len).to_vec()
            }
            1 | 2 if inits < MAX_INITS => {
                inits += 1;
                init(&mut input, op, &seen)
            }
            // One of those sent, as it is or changed, to whom it claims to be for or to us.
            3 | 4 if !seen.is_empty() => {
                let mut d = seen[usize::from(input.u8()) % seen.len()].clone();
                for _ in 0..op / 64 {
                    let at = usize::from(input.u16()) % d.len();
                    d[at] = input.u8();
                }
                d.truncate(if op & 8 == 0 { d.len() } else { usize::from(input.u16()) });
                d
            }
            // A handshake packet of any kind for a connection that exists.
            5 => {
                let mut d = vec![0x80 | (op / 8 % 10)];
                d.extend_from_slice(&crate::wire::header::VERSION.to_be_bytes());
                d.extend_from_slice(&known(&mut input, &seen));
                let len = usize::from(input.u8()) * 6;
                d.extend_from_slice(input.bytes(len));
                d
            }
            6 => {
                match op / 8 {
                    0 => now += Duration::from_secs(u64::from(input.u8())),
                    1 if inits < MAX_INITS => {
                        inits += 1;
                        let _ = end.endpoint.connect(now, world::address(from), CONTEXT);
                    }
                    2 => end.endpoint.remove_context(CONTEXT),
                    3 => end.endpoint.add_context(CONTEXT, &world::SECRET),
                    _ => now += input.time(),
                }
                vec![]
            }
            _ => {
                now = end.endpoint.poll_timeout().map_or(now, |t| now.max(t));
                vec![]
            }
        };
        let remote = world::address(from);
        if !datagram.is_empty() {
            bytes_in[index(remote)] += datagram.len();
            let arrival = Arrival { remote, at: now, ecn: Ecn::from_bits(op) };
            end.endpoint.handle_datagram(now, arrival, &mut datagram, &mut end.blocks);
        }
        let asked = op % 8 == 6;
        let mut out = end.drain(now);
        out.extend(end.timeout(now));
        for (to, _, d) in out {
            bytes_out[index(to)] += d.len();
            if seen.len() < 64 {
                seen.push(d);
            }
        }
        // Nobody who was not asked gets more than was sent from there. Address 1 has the connection.
        if !asked && inits == 0 {
            for i in (0..256).filter(|i| *i != index(world::address(1))) {
                assert!(
                    bytes_out[i] <= bytes_in[i] * 3,
                    "{} bytes for {} from {i}",
                    bytes_out[i],
                    bytes_in[i]
                );
            }
        }
    }
    for _ in 0..5000 {
        let Some(t) = end.endpoint.poll_timeout() else { break };
        now = now.max(t);
        end.timeout(now);
    }
    assert_eq!(end.endpoint.connection_count(), 0, "still there at {now:?}");
}

fn index(address: SocketAddr) -> usize {
    usize::from(address.port()) % 256
}

/// The id of a connection: of the one that is up, or of one whose packets were seen.
fn known(input: &mut Input<'_>, seen: &[Vec<u8>]) -> [u8; 8] {
    let pick = usize::from(input.u8());
    let source = |d: &Vec<u8>| d.get(HANDSHAKE_HEADER..)?.first_chunk::<8>().copied();
    match seen.get(pick.wrapping_sub(1) % 64).and_then(source) {
        Some(cid) => cid,
        None => CIDS[0],
    }
}

/// An INIT that is meant well, or nearly.
fn init(input: &mut Input<'_>, op: u8, seen: &[Vec<u8>]) -> Vec<u8> {
    let nonce = [input.u8(); 32];
    let mut a: Public = [0; 256];
    let value = input.bytes(usize::from(op / 8) * 8);
    a[256 - value.len()..].copy_from_slice(value);
    a[255] |= 1;
    // The cookie of a RETRY, should one have come.
    let retry = seen.iter().rev().find(|d| d.first() == Some(&0x82));
    let cookie = retry.and_then(|d| d.get(HANDSHAKE_HEADER + 2..)).unwrap_or_default();
    let cookie = if op & 8 == 0 { cookie } else { &[] };
    let suite = if op & 16 == 0 { SUITE } else { input.u8() };
    let tag = if op & 32 == 0 { context_tag(&CONTEXT, &nonce) } else { input.array() };
    let mut out = vec![];
    Init { source: [input.u8(); 8], suite, nonce, tag, a: &a, cookie }.emit(&mut out);
    out
}
