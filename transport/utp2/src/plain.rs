//! How fast a device sends, that has little to send: a rate that grows until something is lost (PROTOCOL.md §9.11).
//!
//! In place of [`crate::congestion`] where the feature `control` is off, with the same calls. It measures no queue, no
//! base loss and no delivered rate, and remembers no path. Whole numbers alone: a microcontroller calculates `f64` in
//! software.

use core::time::Duration;

use timebase::Instant;

use crate::Mode;
use crate::connection::State;
use crate::control::{AckSample, PathMemory};

/// The highest rate, bytes/s: what a device sends is little, and a path that nothing is known of bears no more.
const MAX_RATE: u64 = 1_250_000;
/// The rate at the beginning, as in §9.5: so many packets per second, or so many per round trip if that is more.
const FIRST_PER_SECOND: u64 = 320;
const FIRST: u64 = 10;
/// Packets per round trip, at least.
const LEAST: u64 = 2;
/// A round trip is not taken to be shorter, or rates were a matter of microseconds.
const SHORTEST: Duration = Duration::from_millis(4);
/// Silence halves the rate so often; then it is the lowest.
const HALVINGS: u32 = 4;

#[derive(Debug)]
pub(crate) struct Controller {
    rate: u64,
    rtt: Duration,
    packet: u64,
    /// Nothing was lost yet: the rate may double in a round trip.
    unknown: bool,
    /// Cuts so far; packets carry the number, so that those sent before a cut do not cut again.
    cuts: u32,
    last_progress: Instant,
    last_silence: Instant,
    silent_halvings: u32,
}

impl Controller {
    pub(crate) fn new(now: Instant, rtt: Duration, packet: usize, _: Mode) -> Self {
        let packet = packet as u64;
        let mut new = Self {
            rate: 0,
            rtt,
            packet,
            unknown: true,
            cuts: 0,
            last_progress: now,
            last_silence: now,
            silent_halvings: 0,
        };
        new.set_rate(new.first_rate());
        new
    }

    fn first_rate(&self) -> u64 {
        self.per_round_trip(FIRST).max(FIRST_PER_SECOND * self.packet)
    }

    /// So many packets in a round trip, as a rate.
    fn per_round_trip(&self, packets: u64) -> u64 {
        packets * self.packet * 1_000_000 / self.rtt.max(SHORTEST).as_micros() as u64
    }

    fn set_rate(&mut self, rate: u64) {
        let least = self.per_round_trip(LEAST).min(MAX_RATE);
        self.rate = rate.clamp(least, MAX_RATE);
    }

    /// Once for all that was sent before the last time.
    fn cut(&mut self, sent_at: u32) {
        if sent_at == self.cuts {
            self.cuts = self.cuts.wrapping_add(1);
            self.unknown = false;
            self.set_rate(self.rate / 2);
        }
    }

    /// Bytes/s of UDP payload.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// Bytes that may be in flight: what the rate sends in one and a half round trips and 15 ms.
    pub(crate) fn in_flight_limit(&self) -> u64 {
        let time = self.rtt.as_micros() as u64 * 3 / 2 + 15_000;
        (self.rate * time / 1_000_000).max(FIRST * self.packet)
    }

    pub(crate) fn state(&self) -> State {
        if self.unknown { State::FastStart } else { State::Avoid }
    }

    pub(crate) fn on_sent(&mut self, now: Instant, _: usize, alone: bool) -> u32 {
        if alone {
            self.last_progress = now;
        }
        self.cuts
    }

    pub(crate) fn on_lost(&mut self, sent_at: u32, _: u64) {
        self.cut(sent_at);
    }

    pub(crate) fn on_marked(&mut self, sent_at: u32, _: u32) {
        self.cut(sent_at);
    }

    pub(crate) fn on_ack(&mut self, now: Instant, ack: &AckSample) -> Option<Duration> {
        self.rtt = ack.smoothed;
        if ack.acked_bytes > 0 {
            self.last_progress = now;
            if core::mem::take(&mut self.silent_halvings) > 0 {
                // As if nothing was known of it: it may be another path.
                self.unknown = true;
            }
            // Doubled in a round trip, or a packet more in each.
            let grown = if self.unknown {
                ack.acked_bytes * 1_000_000 / self.rtt.max(SHORTEST).as_micros() as u64
            } else {
                let in_a_round_trip = (self.rate * self.rtt.as_micros() as u64 / 1_000_000).max(self.packet);
                self.per_round_trip(1) * ack.acked_bytes / in_a_round_trip
            };
            self.set_rate(self.rate.saturating_add(grown));
        }
        None
    }

    pub(crate) fn silence_deadline(&self) -> Instant {
        match self.silent_halvings {
            0 => self.last_progress + (self.rtt * 3).max(Duration::from_millis(300)),
            n => self.last_silence + self.rtt.max(SHORTEST) * (1 << n.saturating_sub(HALVINGS).min(12)),
        }
    }

    pub(crate) fn on_silence(&mut self, now: Instant) {
        self.silent_halvings += 1;
        self.last_silence = now;
        self.set_rate(if self.silent_halvings >= HALVINGS { 0 } else { self.rate / 2 });
    }

    pub(crate) fn on_black_hole(&mut self, _: Instant) {
        self.set_rate(self.rate / 2);
    }

    pub(crate) fn on_new_path(&mut self, now: Instant, same_host: bool) {
        (self.last_progress, self.silent_halvings) = (now, 0);
        if !same_host {
            self.unknown = true;
            self.set_rate(self.first_rate().min(self.rate));
        }
    }
}

/// What the other controller is told and asked, and this one has no use for.
impl Controller {
    pub(crate) fn recall(&mut self, _: Instant, _: PathMemory) {}

    pub(crate) fn path_memory(&self) -> Option<PathMemory> {
        None
    }

    pub(crate) fn is_train(&mut self, _: Instant, _: Option<u64>) -> bool {
        false
    }

    pub(crate) fn wants_ping(&mut self, _: bool) -> bool {
        false
    }

    pub(crate) fn delivered_rate(&self) -> u64 {
        0
    }

    pub(crate) fn base_loss_ppm(&self) -> u32 {
        0
    }

    pub(crate) fn set_mode(&mut self, _: Mode) {}

    pub(crate) fn on_limited(&mut self, _: Instant) {}

    pub(crate) fn on_held(&mut self, _: Instant) {}

    pub(crate) fn on_missed(&mut self, _: u64) {}

    pub(crate) fn on_late(&mut self, _: Instant) {}

    pub(crate) fn on_acked(&mut self, _: u32, _: u64) {}

    pub(crate) fn on_withdrawn(&mut self, _: u32, _: u64) {}

    pub(crate) fn on_spurious(&mut self, _: u32, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);
    const PACKET: u64 = 1000;
    const FIRST_RATE: u64 = 320 * PACKET;

    fn start() -> Controller {
        Controller::new(Instant::ZERO, RTT, PACKET as usize, Mode::default())
    }

    /// A round trip in which all that the rate allows was acknowledged.
    fn round(c: &mut Controller) {
        let bytes = c.rate() / 10;
        for _ in 0..10 {
            c.on_ack(
                Instant::ZERO,
                &AckSample {
                    rtt: None,
                    left: Instant::ZERO,
                    bare: false,
                    smoothed: RTT,
                    min: RTT,
                    arrival_us: 0,
                    acked_bytes: bytes / 10,
                    in_flight: 0,
                },
            );
        }
    }

    #[test]
    fn the_rate_doubles_until_something_is_lost_and_then_grows_by_a_packet_in_a_round_trip() {
        let mut c = start();
        assert_eq!((c.rate(), c.state()), (FIRST_RATE, State::FastStart));
        round(&mut c);
        let doubled = c.rate();
        assert!((FIRST_RATE * 19 / 10..=FIRST_RATE * 2).contains(&doubled), "{doubled}");
        let sent = c.on_sent(Instant::ZERO, 1000, false);
        c.on_lost(sent, 7);
        let half = c.rate();
        assert_eq!((half, c.state()), (doubled / 2, State::Avoid));
        // Of the same round trip.
        c.on_lost(sent, 8);
        c.on_marked(sent, 1);
        assert_eq!(c.rate(), half);
        round(&mut c);
        assert!((half + 8_000..=half + 10_000).contains(&c.rate()), "{half} {}", c.rate());
    }

    #[test]
    fn the_rate_has_bounds() {
        let mut c = start();
        for _ in 0..20 {
            round(&mut c);
        }
        assert_eq!(c.rate(), MAX_RATE);
        for _ in 0..20 {
            let sent = c.on_sent(Instant::ZERO, 1000, false);
            c.on_lost(sent, 0);
        }
        assert_eq!(c.rate(), LEAST * PACKET * 10);
        assert!(c.in_flight_limit() >= FIRST * PACKET);
    }

    #[test]
    fn another_path_is_begun_anew_and_a_black_hole_halves() {
        let mut c = start();
        round(&mut c);
        let rate = c.rate();
        c.on_new_path(Instant::ZERO, true);
        assert_eq!(c.rate(), rate, "the same host");
        c.on_black_hole(Instant::ZERO);
        assert_eq!(c.rate(), rate / 2);
        round(&mut c);
        c.on_new_path(Instant::ZERO, false);
        assert_eq!((c.rate(), c.state()), (FIRST_RATE, State::FastStart));
    }

    #[test]
    fn silence_halves_the_rate_ever_more_seldom() {
        let mut c = start();
        let mut at = c.silence_deadline();
        assert_eq!(at, Instant::ZERO + RTT * 3);
        let mut waits = std::vec::Vec::new();
        for _ in 0..6 {
            c.on_silence(at);
            waits.push(c.silence_deadline().saturating_since(at).as_millis());
            at = c.silence_deadline();
        }
        assert_eq!((&waits[..], c.rate()), (&[100, 100, 100, 100, 200, 400][..], LEAST * PACKET * 10));
        round(&mut c);
        assert_eq!((c.state(), c.silence_deadline()), (State::FastStart, Instant::ZERO + RTT * 3));
    }
}
