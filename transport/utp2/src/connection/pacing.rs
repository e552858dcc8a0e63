//! When the next packet may leave: a shallow token bucket at the controller's rate (PROTOCOL.md §8.7).

use core::time::Duration;

use timebase::Instant;

/// How late a timer may be without lowering the rate, µs: one of 1 ms grain is late by that, and somewhat.
const LATE_US: u64 = 1_500;
/// How much is gathered before it is worth waking up: four packets, in no less and no more time than this, µs.
pub(crate) const QUANTUM_US: [u64; 2] = [250, 500];
const QUANTUM_PACKETS: i64 = 4;
/// How much more time that a busy machine did not let us use is made up for, µs; and how fast: by this part of the
/// rate more. What was not sent left the path's queue as much shorter, so this fills none.
const OWED_US: u64 = 10_000;
const OWED_PART: i64 = 4;
/// A timer that is late by more, µs, is one of a busy machine, or too coarse for the shortest paths.
const PUNCTUAL_US: u64 = 250;

#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    rate: u64,
    /// Bytes that may leave now, in millionths, so that slow rates lose nothing to rounding.
    tokens: i64,
    updated: Instant,
    /// Nothing waited to be sent: that time is not made up for.
    idle: bool,
    /// Too much is in flight already.
    held: bool,
    /// What time missed would have given, beyond what is made up for at once; as `tokens`.
    owed: i64,
    /// What was missed for good; as `tokens`.
    missed: i64,
    /// When something left last, and how much at that time; as `tokens`.
    burst: (Instant, i64),
    /// When somebody was told to look again.
    due: Option<Instant>,
    late: bool,
}

const SCALE: i64 = 1_000_000;

impl Pacer {
    pub(crate) fn new(now: Instant, rate: u64) -> Self {
        Self {
            rate,
            tokens: 0,
            updated: now,
            idle: false,
            held: false,
            owed: 0,
            missed: 0,
            burst: (now, 0),
            due: None,
            late: false,
        }
    }

    pub(crate) fn set_rate(&mut self, now: Instant, rate: u64, packet: usize) {
        self.refill(now, packet);
        self.rate = rate.max(1);
        self.owed = self.owed.min(self.worth(OWED_US));
    }

    fn refill(&mut self, now: Instant, packet: usize) {
        let elapsed = now.saturating_since(self.updated).as_micros().min(10_000_000) as u64;
        self.updated = now;
        if let Some(due) = self.due.take() {
            self.late |= now.saturating_since(due) > Duration::from_micros(PUNCTUAL_US);
        }
        // What had gathered before it fell idle stays.
        let most = if self.idle { self.quantum(packet).max(self.tokens) } else { self.depth(packet) };
        let given = self.worth(elapsed);
        let back = if self.idle || self.held { 0 } else { self.owed.min(given / OWED_PART) };
        self.owed -= back;
        let full = self.tokens.saturating_add(given).saturating_add(back);
        self.tokens = full.min(most);
        if !(self.idle || self.held) {
            let owed = self.owed.saturating_add(full - self.tokens);
            self.owed = owed.min(self.worth(OWED_US));
            self.missed = self.missed.saturating_add(owed - self.owed);
        }
    }

    /// Bytes that the rate would have given since this was asked last, and which a machine that was late did not send
    /// and never will.
    pub(crate) fn take_missed(&mut self) -> u64 {
        (core::mem::take(&mut self.missed) / SCALE).unsigned_abs()
    }

    /// Whether, since this was asked last, nobody looked again when told to, but clearly later.
    pub(crate) fn take_late(&mut self) -> bool {
        core::mem::take(&mut self.late)
    }

    /// What the rate gives in so many microseconds: a microsecond at `rate` bytes/s is `rate` millionths of a byte.
    fn worth(&self, us: u64) -> i64 {
        i64::try_from(self.rate.saturating_mul(us)).unwrap_or(i64::MAX)
    }

    fn depth(&self, packet: usize) -> i64 {
        self.quantum(packet).saturating_add(self.worth(LATE_US))
    }

    fn quantum(&self, packet: usize) -> i64 {
        let packet = packet as i64 * SCALE;
        (packet * QUANTUM_PACKETS).clamp(self.worth(QUANTUM_US[0]), self.worth(QUANTUM_US[1])).max(packet)
    }

    /// Whether a packet of `packet` bytes may leave now.
    pub(crate) fn is_ready(&mut self, now: Instant, packet: usize) -> bool {
        self.refill(now, packet);
        self.tokens >= packet as i64 * SCALE
    }

    /// Whether by now the path at this rate has carried away what left last, but for `packet` bytes: a packet that
    /// leaves now does not wait for it.
    pub(crate) fn is_rested(&self, packet: usize) -> bool {
        self.updated > self.burst.0 && self.tokens >= self.burst.1 - packet as i64 * SCALE
    }

    /// There is nothing to send, or a window does not allow it: what could have left meanwhile is not sent in a burst.
    pub(crate) fn on_idle(&mut self) {
        self.idle = true;
        self.owed = 0;
        self.due = None;
    }

    /// Too much is in flight: what could have left meanwhile is owed to nobody.
    pub(crate) fn on_held(&mut self) {
        self.held = true;
        self.owed = 0;
        self.due = None;
    }

    pub(crate) fn on_sent(&mut self, bytes: usize) {
        (self.idle, self.held) = (false, false);
        if self.burst.0 != self.updated {
            self.burst = (self.updated, 0);
        }
        self.burst.1 += bytes as i64 * SCALE;
        // Debt (probes, acknowledgements) is limited, so that it never silences for long.
        self.tokens = (self.tokens - bytes as i64 * SCALE).max(-64 * SCALE * 1500);
    }

    /// When to look again: once a quantum, and one packet at least, has gathered.
    pub(crate) fn next(&mut self, packet: usize) -> Instant {
        let missing = self.quantum(packet).saturating_sub(self.tokens).max(0) as u64;
        let due = self.updated + Duration::from_micros(missing.div_ceil(self.rate));
        self.due = Some(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent when each timer is late by up to `late`, which the burst may make up for.
    fn sent_in_a_second(rate: u64, packet: usize, late: Duration) -> u64 {
        let mut now = Instant::ZERO;
        let mut pacer = Pacer::new(now, rate);
        let mut sent = 0;
        while now < Instant::from_micros(1_000_000) {
            let mut burst = 0;
            while pacer.is_ready(now, packet) {
                pacer.on_sent(packet);
                burst += packet as u64;
            }
            let slack = QUANTUM_US[1] + late.as_micros() as u64;
            assert!(burst <= rate * slack / 1_000_000 + packet as u64, "{burst} at {rate}");
            sent += burst;
            now = pacer.next(packet).max(now) + late;
        }
        sent
    }

    #[test]
    fn the_rate_is_kept_for_slow_and_fast_and_late_timers() {
        for rate in [3_000, 100_000, 12_500_000, 125_000_000, 1_250_000_000] {
            let got = sent_in_a_second(rate, 1452, Duration::ZERO);
            assert!(got.abs_diff(rate) < rate / 50 + 2 * 1452, "{got} of {rate}");
        }
        for rate in [1_000_000, 12_500_000, 125_000_000, 1_250_000_000] {
            let got = sent_in_a_second(rate, 1452, Duration::from_millis(1));
            assert!(got.abs_diff(rate) < rate / 50 + 2 * 1452, "{got} of {rate} with timers late by 1 ms");
        }
    }

    #[test]
    fn a_stall_is_made_up_for_bit_by_bit_and_what_is_not_is_told() {
        let (rate, packet) = (125_000_000, 1250);
        for (stall, missed) in [(5, 0), (10, 0), (40, 28)] {
            let mut p = Pacer::new(Instant::ZERO, rate);
            let (mut now, mut sent) = (Instant::from_micros(stall * 1000), 0);
            while now < Instant::from_micros(200_000) {
                let mut burst = 0;
                while p.is_ready(now, packet) {
                    p.on_sent(packet);
                    burst += packet as u64;
                }
                assert!(burst <= 2_250_000 / 8, "{burst} at once");
                sent += burst;
                now = p.next(packet).max(now);
            }
            let told = p.take_missed();
            let expected = missed * rate / 1000;
            assert!(told.abs_diff(expected) < rate / 1000, "{told} missed in {stall} ms");
            assert!((sent + told).abs_diff(rate / 5) < rate / 500, "{sent} sent after {stall} ms");
        }
    }

    #[test]
    fn a_packet_behind_a_burst_waits_for_it_and_one_after_its_time_does_not() {
        let mut p = Pacer::new(Instant::ZERO, 125_000_000);
        let mut now = Instant::from_micros(250);
        assert!(p.is_ready(now, 1250) && p.is_rested(1250), "the first");
        for _ in 0..20 {
            assert!(p.is_ready(now, 1250));
            p.on_sent(1250);
        }
        assert!(!p.is_rested(1250), "at the same time");
        now += Duration::from_micros(100);
        assert!(p.is_ready(now, 1250) && !p.is_rested(1250), "before it has gone");
        now += Duration::from_micros(150);
        assert!(p.is_ready(now, 1250) && p.is_rested(1250));
    }

    #[test]
    fn a_late_timer_is_told_and_quiet_is_not() {
        let mut p = Pacer::new(Instant::ZERO, 125_000_000);
        let look = |p: &mut Pacer, late: u64| {
            let now = p.next(1250) + Duration::from_micros(late);
            while p.is_ready(now, 1250) {
                p.on_sent(1250);
            }
            p.take_late()
        };
        assert!(!look(&mut p, 0));
        assert!(!look(&mut p, 200));
        assert!(look(&mut p, 300));
        assert!(!look(&mut p, 0), "told once");
        let now = p.next(1250);
        p.on_idle();
        assert!(p.is_ready(now + Duration::from_millis(5), 1250) && !p.take_late(), "nothing to send");
    }

    #[test]
    fn time_without_anything_to_send_is_not_made_up_for() {
        let mut p = Pacer::new(Instant::ZERO, 125_000_000);
        let mut burst = |after_idle: bool| {
            if after_idle {
                p.on_idle();
            }
            let now = p.updated + Duration::from_secs(1);
            let mut sent = 0;
            while p.is_ready(now, 1250) {
                p.on_sent(1250);
                sent += 1250;
            }
            sent
        };
        assert_eq!(burst(false), 218_750, "what a late timer may make up for");
        assert_eq!(burst(true), 31_250, "a quarter of one after quiet");
    }
}
