//! Loss and delay between the protocol and the socket: a bad network on a good machine.
//!
//! For tests and the tool's hidden options. Datagrams still pass through real sockets; those that are to
//! be delayed wait here, in order, so that the path is slow but does not reorder.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;

/// Bytes that may wait in each direction; the oldest path to be imitated is 1 Gbit/s × 1 s. Beyond it
/// datagrams are lost, as in a full queue.
const WAITING_MAX: usize = 128 << 20;

/// A bad path around one endpoint, both ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossInjector {
    /// Probability that a datagram is lost, 0 to 1, for each one sent and each one received.
    pub loss: f64,
    /// Added to the round trip: half of it to datagrams sent, half to those received.
    pub delay: Duration,
    /// Decides which datagrams are lost.
    pub seed: u64,
}

struct Waiting {
    due: Instant,
    remote: SocketAddr,
    data: Vec<u8>,
}

/// One direction of a [`LossInjector`] at work.
pub(crate) struct BadPath {
    loss: f64,
    delay: Duration,
    rng: ChaCha8Rng,
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

impl BadPath {
    /// The way out and the way in.
    pub(crate) fn both_ways(injector: &LossInjector) -> (Self, Self) {
        let one = |stream| {
            let mut rng = ChaCha8Rng::seed_from_u64(injector.seed);
            rng.set_stream(stream);
            let delay = injector.delay / 2;
            Self { loss: injector.loss, delay, rng, waiting: VecDeque::new(), bytes: 0 }
        };
        (one(0), one(1))
    }

    /// Takes a datagram, to be lost or to wait.
    pub(crate) fn push(&mut self, now: Instant, remote: SocketAddr, data: &[u8]) {
        let r = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        if r < self.loss || self.bytes + data.len() > WAITING_MAX {
            return;
        }
        self.bytes += data.len();
        self.waiting.push_back(Waiting { due: now + self.delay, remote, data: data.to_vec() });
    }

    /// How long a datagram waits here.
    pub(crate) fn delay(&self) -> Duration {
        self.delay
    }

    /// When the next one is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|w| w.due)
    }

    /// The next datagram that has waited long enough.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        if self.due()? > now {
            return None;
        }
        let w = self.waiting.pop_front()?;
        self.bytes -= w.data.len();
        Some((w.remote, w.data))
    }

    /// Moves datagrams that have waited long enough to `buf`, which is empty: to one place, of one size but
    /// for the last, at most `segments_max`. Gives the place and the size.
    pub(crate) fn pop_run(
        &mut self,
        now: Instant,
        segments_max: usize,
        buf: &mut Vec<u8>,
    ) -> Option<(SocketAddr, usize)> {
        let (remote, first) = self.pop(now)?;
        let size = first.len();
        buf.extend_from_slice(&first);
        for _ in 1..segments_max {
            let fits = |w: &Waiting| w.due <= now && w.remote == remote && (1..=size).contains(&w.data.len());
            if !buf.len().is_multiple_of(size.max(1)) || !self.waiting.front().is_some_and(fits) {
                break;
            }
            if let Some((_, data)) = self.pop(now) {
                buf.extend_from_slice(&data);
            }
        }
        Some((remote, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loses_its_share_and_delays_the_rest_in_order() {
        let injector = LossInjector { loss: 0.25, delay: Duration::from_millis(100), seed: 3 };
        let (mut out, _) = BadPath::both_ways(&injector);
        let remote = "127.0.0.1:1".parse().unwrap();
        for i in 0..10_000u32 {
            out.push(Instant::from_micros(u64::from(i)), remote, &i.to_le_bytes());
        }
        assert!(out.pop(Instant::from_micros(49_999)).is_none());
        let mut numbers = Vec::new();
        while let Some((_, data)) = out.pop(Instant::from_micros(60_000)) {
            numbers.push(u32::from_le_bytes(data.try_into().unwrap()));
        }
        assert!(numbers.is_sorted());
        assert!((7300..7700).contains(&numbers.len()), "{}", numbers.len());
        assert_eq!((out.due(), out.bytes), (None, 0));
    }

    #[test]
    fn equal_datagrams_to_one_place_leave_together() {
        let (mut out, _) = BadPath::both_ways(&LossInjector { loss: 0.0, delay: Duration::ZERO, seed: 0 });
        let (a, b) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        for (remote, len) in [(a, 5), (a, 5), (a, 3), (a, 5), (a, 6), (a, 6), (a, 6), (b, 6), (b, 0), (b, 1)]
        {
            out.push(Instant::ZERO, remote, &vec![1; len]);
        }
        let mut runs = Vec::new();
        let mut buf = Vec::new();
        while let Some((remote, size)) = out.pop_run(Instant::ZERO, 2, &mut buf) {
            runs.push((remote, size, buf.len()));
            buf.clear();
        }
        let expected =
            [(a, 5, 10), (a, 3, 3), (a, 5, 5), (a, 6, 12), (a, 6, 6), (b, 6, 6), (b, 0, 0), (b, 1, 1)];
        assert_eq!(runs, expected);
        assert_eq!(out.bytes, 0);
    }

    #[test]
    fn what_waits_is_limited() {
        let injector = LossInjector { loss: 0.0, delay: Duration::from_secs(1), seed: 0 };
        let (mut out, _) = BadPath::both_ways(&injector);
        let big = vec![0; 1 << 20];
        for _ in 0..1000 {
            out.push(Instant::ZERO, "127.0.0.1:1".parse().unwrap(), &big);
        }
        assert_eq!(out.bytes, WAITING_MAX);
    }
}
