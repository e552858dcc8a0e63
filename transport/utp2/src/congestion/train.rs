//! Packet trains: how fast some packets sent at once arrive tells the order of the path's rate (PROTOCOL.md §9.5).
//!
//! A train is an interval of its own. Four of its packets ask for an acknowledgement at once, so the receiver's clock
//! says when they arrived. Of a train that came as one batch nothing is learned.

use core::time::Duration;

use timebase::Instant;

/// Packets of the first train, when nothing is known of the path.
const FIRST: u32 = 16;
/// Packets of later trains, at least and at most.
const LENGTH: [u32; 2] = [32, 128];
/// Trains are this share of what a round trip carries, between the limits.
const SHARE: f64 = 0.125;
/// Trains of one start.
const MAX_TRAINS: u32 = 10;
/// Arrivals are told apart no finer: receivers take packets in batches.
const RESOLUTION_US: u64 = 100;

#[derive(Debug, Default)]
pub(super) struct Trains {
    count: u32,
    began: Option<Instant>,
    rate_before: f64,
    /// Packets of the present train, and those still to be sent.
    len: u32,
    left: u32,
    /// The interval of the train that is under way.
    interval: Option<u32>,
    /// First and last point of it: (receiver's clock µs, bytes delivered).
    first: Option<(u64, u64)>,
    last: (u64, u64),
    /// Rates found, newest first.
    found: [f64; 3],
    /// Packets of the train that found the first of them.
    length: u32,
    /// The newest came faster than arrivals are told apart.
    coarse: bool,
}

impl Trains {
    /// Begins a train if it is time for one.
    pub(super) fn begin(&mut self, now: Instant, rtt: Duration, rate: f64, packet: f64) {
        let due = self.began.is_none_or(|t| {
            // Until the train before has been told of; what is lost of it must not hold up the next.
            let age = now.saturating_since(t);
            age >= rtt && self.interval.is_none() || age >= rtt * 3 / 2
        });
        if self.left > 0 || !due || self.count >= MAX_TRAINS {
            return;
        }
        self.finish(packet);
        let wanted = (rate * rtt.as_secs_f64() / packet * SHARE) as u32;
        self.len = if self.count == 0 { FIRST } else { wanted.clamp(LENGTH[0], LENGTH[1]) };
        self.left = self.len;
        self.count += 1;
        self.began = Some(now);
        self.rate_before = rate;
    }

    /// The sending rate when the last train left.
    pub(super) fn rate_before(&self) -> f64 {
        self.rate_before
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.left > 0
    }

    /// Whether the next packet should ask for an acknowledgement at once.
    pub(super) fn wants_ping(&self) -> bool {
        let at = self.len - self.left;
        self.left > 0 && (self.left == 1 || at.is_multiple_of((self.len / 3).max(1)))
    }

    /// A packet of the train left.
    pub(super) fn on_sent(&mut self, interval: u32) {
        self.interval.get_or_insert(interval);
        self.left = self.left.saturating_sub(1);
    }

    /// There was not enough to send for a whole train.
    pub(super) fn abandon(&mut self) {
        if self.left > 0 {
            (self.left, self.interval, self.first) = (0, None, None);
        }
    }

    /// An ACK whose largest packet is of `interval`, with the point it marks. True if a train has told its rate.
    pub(super) fn on_ack(&mut self, interval: u32, point: (u64, u64), packet: f64) -> bool {
        let Some(own) = self.interval else { return false };
        if interval == own {
            self.first.get_or_insert(point);
            self.last = point;
            if self.first.is_some_and(|f| (point.1 - f.1) as f64 >= packet * f64::from(self.len) * 0.9) {
                return self.finish(packet);
            }
        } else if interval.wrapping_sub(own) < u32::MAX / 2 {
            return self.finish(packet);
        }
        false
    }

    fn finish(&mut self, packet: f64) -> bool {
        if self.left > 0 || self.interval.take().is_none() {
            return false;
        }
        if let Some(first) = self.first.take() {
            let bytes = self.last.1.saturating_sub(first.1) as f64;
            let took = self.last.0.saturating_sub(first.0).max(RESOLUTION_US);
            if bytes >= packet * f64::from(self.len) * 0.45 {
                let coarse = took < RESOLUTION_US * 3 / 2;
                if self.coarse && !coarse {
                    // Those before were as fast as could be told, not as the path.
                    self.found = [0.0; 3];
                }
                if self.len >= 4 * self.length {
                    // What a host adds to the time of a train weighs little in one four times as long.
                    (self.found, self.length) = ([0.0; 3], self.len);
                }
                self.found.rotate_right(1);
                self.found[0] = bytes * 1e6 / took as f64;
                self.coarse = coarse;
                return true;
            }
        }
        false
    }

    /// Whether the path may be much faster than [`Trains::rate`] says.
    pub(super) fn is_coarse(&self) -> bool {
        self.coarse
    }

    /// Whether a train is under way of which nothing was heard yet.
    pub(super) fn is_first(&self, interval: u32) -> bool {
        self.interval == Some(interval) && self.first.is_none()
    }

    /// The path's rate in bytes/s: the middle one of three trains, or the lower of two.
    pub(super) fn rate(&self) -> Option<f64> {
        let [a, b, c] = self.found;
        let rate = match (b > 0.0, c > 0.0) {
            (false, _) => a,
            (true, false) => a.min(b),
            _ => a.max(b).min(a.min(b).max(c)),
        };
        (rate > 0.0).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: f64 = 1000.0;

    /// Sends a train and has it arrive at `rate` bytes/s, all packets or none in between acknowledged.
    fn send(t: &mut Trains, now: &mut Instant, id: u32, rate: f64, acks: bool) {
        send_at(t, now, id, 1e6, rate, acks);
    }

    /// The same while `sending` bytes/s are sent, on which the length of the train depends.
    fn send_at(t: &mut Trains, now: &mut Instant, id: u32, sending: f64, rate: f64, acks: bool) {
        t.begin(*now, Duration::from_millis(50), sending, PACKET);
        let (mut n, mut pings) = (0, 0);
        let start = u64::from(id) * 1_000_000;
        while t.is_leaving() {
            let ping = t.wants_ping();
            t.on_sent(id);
            n += 1;
            if ping && (acks || !t.is_leaving()) {
                pings += 1;
                let bytes = n * PACKET as u64;
                t.on_ack(id, (start + (bytes as f64 / rate * 1e6) as u64, bytes), PACKET);
            }
        }
        assert!(!acks || (4..=5).contains(&pings), "{pings} pings");
        t.on_ack(id + 1, (start + 500_000, 1 << 20), PACKET);
        *now += Duration::from_millis(50);
    }

    #[test]
    fn the_middle_of_three_trains_counts() {
        let (mut t, mut now) = (Trains::default(), Instant::from_micros(1));
        assert_eq!(t.rate(), None);
        send(&mut t, &mut now, 10, 20e6, true);
        assert!((t.rate().unwrap() / 20e6 - 1.0).abs() < 0.02, "{:?}", t.rate());
        send(&mut t, &mut now, 20, 500e6, true);
        assert!((t.rate().unwrap() / 20e6 - 1.0).abs() < 0.02, "{:?}", t.rate());
        send(&mut t, &mut now, 30, 22e6, true);
        assert!((t.rate().unwrap() / 22e6 - 1.0).abs() < 0.02, "{:?}", t.rate());
    }

    #[test]
    fn a_longer_train_is_believed_before_shorter_ones() {
        let (mut t, mut now) = (Trains::default(), Instant::from_micros(1));
        // A host that adds a third of a millisecond to each of them.
        let slowed = |packets: f64| 1.0 / (1.0 / 400e6 + 300e-6 / (packets * PACKET));
        for (id, len, sending) in [(10, 16.0, 1e6), (20, 32.0, 1e6), (30, 128.0, 50e6)] {
            send_at(&mut t, &mut now, id, sending, slowed(len), true);
        }
        assert!(t.rate().unwrap() > 200e6, "{:?}", t.rate());
    }

    #[test]
    fn a_train_that_came_as_one_batch_tells_nothing() {
        let (mut t, mut now) = (Trains::default(), Instant::from_micros(1));
        send(&mut t, &mut now, 10, 1e9, false);
        assert_eq!(t.rate(), None);
        // Faster than can be told apart counts as no faster than that.
        send(&mut t, &mut now, 20, 1e12, true);
        assert!(t.rate().unwrap() <= 32.0 * PACKET * 1e6 / RESOLUTION_US as f64);
    }

    #[test]
    fn trains_come_once_a_round_trip_and_not_for_ever() {
        let (mut t, mut now) = (Trains::default(), Instant::from_micros(1));
        let mut packets = 0;
        for _ in 0..1000 {
            t.begin(now, Duration::from_millis(50), 1e9, PACKET);
            while t.is_leaving() {
                t.on_sent(1);
                packets += 1;
            }
            now += Duration::from_millis(10);
        }
        assert_eq!(packets, FIRST + (MAX_TRAINS - 1) * LENGTH[1]);
        assert_eq!(t.rate(), None);
    }
}
