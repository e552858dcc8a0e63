//! The controller fed with whatever a peer can make a connection tell it, for [`crate::fuzzing`].

use alloc::vec::Vec;
use core::time::Duration;

use timebase::Instant;

use super::{Controller, MAX_RATE};
use crate::Mode;
use crate::control::{AckSample, PathMemory};
use crate::fuzzing::Input;

/// Longest round trip that a sample may tell: the idle timeout would have ended the connection before.
const RTT_MAX: Duration = Duration::from_secs(120);

/// Sent, acknowledged, lost and timed in any order: the rate stays between two packets per round trip and the most
/// there is, and every number stays a number.
pub fn controller(data: &[u8]) {
    let mut input = Input::new(data);
    let mut now = Instant::from_micros(input.number() >> 14);
    let packet = 1200 + usize::from(input.u16()) % 8000;
    let mut rtt = input.time().max(Duration::from_micros(1));
    let mut min = rtt;
    let mut c = Controller::new(now, rtt, packet, mode(input.u8()));
    let mut flying: Vec<u32> = Vec::new();
    let mut arrival = input.number() & crate::wire::VARINT_MAX;
    let mut number = 0;
    while !input.is_empty() {
        let op = input.u8();
        match op % 16 {
            0..6 => {
                let each = input.time() / 64;
                for _ in 0..1 + op / 16 * 4 {
                    now += each;
                    let _ =
                        (c.is_train(now, (op & 0x40 == 0).then_some(1 << 20)), c.wants_ping(op & 0x20 == 0));
                    let bytes = if op & 0x80 == 0 { packet } else { usize::from(input.u8()) + 30 };
                    flying.push(c.on_sent(now, bytes, flying.is_empty()));
                }
            }
            6..10 => {
                now += input.time();
                let (count, lost, spurious) = (usize::from(input.u8()), input.u8(), input.u8());
                let mut acked_bytes = 0;
                let mut sample = None;
                for (i, interval) in flying.drain(..count.min(flying.len())).enumerate() {
                    if lost != 0 && i % usize::from(lost) == 0 {
                        number += 1;
                        c.on_lost(interval, number);
                        if spurious != 0 && i % usize::from(spurious) == 0 {
                            c.on_spurious(interval, packet as u64);
                            acked_bytes += packet as u64;
                        }
                    } else {
                        c.on_acked(interval, packet as u64);
                        acked_bytes += packet as u64;
                        sample = Some(interval);
                    }
                }
                if op & 0x40 == 0 {
                    rtt = input.time().clamp(Duration::from_micros(1), RTT_MAX);
                    min = if op & 0x80 == 0 { min.min(rtt) } else { rtt };
                }
                // Forward, backward, or anywhere: it is the peer's word.
                arrival = match op / 16 % 4 {
                    0 => input.number() & crate::wire::VARINT_MAX,
                    1 => arrival.saturating_sub(u64::from(input.u16())),
                    _ => (arrival + input.time().as_micros() as u64) & crate::wire::VARINT_MAX,
                };
                let sample = sample.map(|interval| (rtt, interval));
                let in_flight = (flying.len() * packet) as u64;
                c.on_ack(
                    now,
                    &AckSample {
                        rtt: sample,
                        left: now - rtt.min(now.saturating_since(Instant::ZERO)),
                        bare: false,
                        smoothed: rtt,
                        min,
                        arrival_us: arrival,
                        acked_bytes,
                        in_flight,
                    },
                );
            }
            10 => match op / 16 % 4 {
                0 => c.on_limited(now),
                1 => c.on_marked(flying.last().copied().unwrap_or(0), input.u32()),
                2 => c.on_black_hole(now),
                _ => {
                    let (rate, rtt_min, base_loss_ppm) = (input.number(), input.time(), input.u32());
                    c.recall(now, PathMemory { rate, rtt_min, base_loss_ppm });
                }
            },
            11 => {
                now = now.max(c.silence_deadline());
                c.on_silence(now);
            }
            12 => c.on_new_path(now, op & 0x80 == 0),
            13 => c.set_mode(mode(input.u8())),
            // A fate told for an interval long gone, or never begun.
            14 => match op / 16 % 4 {
                0 => c.on_acked(input.u32(), packet as u64),
                1 => c.on_lost(input.u32(), input.number()),
                2 => c.on_withdrawn(flying.pop().unwrap_or(0), packet as u64),
                _ => c.on_spurious(input.u32(), packet as u64),
            },
            _ => now += input.time(),
        }
        check(&c, packet);
    }
}

fn mode(byte: u8) -> Mode {
    [Mode::Full, Mode::Fair, Mode::Background][usize::from(byte % 3)]
}

fn check(c: &Controller, packet: usize) {
    let s = &c.shared;
    assert!(s.rate.is_finite() && s.rate > 0.0 && s.rate <= MAX_RATE, "rate {}", s.rate);
    let floor = (2.0 * packet as f64 / s.rtt.as_secs_f64().max(0.01)).min(MAX_RATE);
    // A second's slack where the round trip changed and no acknowledgement came yet.
    assert!(s.rate >= floor * 0.999 - 1.0, "rate {} below {floor}", s.rate);
    assert!(s.remembered.is_finite() && s.remembered >= 0.0, "remembered {}", s.remembered);
    let base = s.base_loss.estimate();
    assert!((0.0..1.0).contains(&base), "base loss {base}");
    assert!(c.base_loss_ppm() < 1_000_000);
    assert!(s.delivered().is_none_or(|d| d.is_finite() && d >= 0.0));
    assert!(s.capacity().is_none_or(f64::is_finite));
    assert!(c.in_flight_limit() > 0 && c.in_flight_limit() < 1 << 50, "in flight {}", c.in_flight_limit());
    if let Some(memory) = c.path_memory() {
        assert!(memory.rate > 0 && memory.base_loss_ppm < 1_000_000, "{memory:?}");
    }
    let _ = (c.delivered_rate(), c.state(), c.silence_deadline());
}
