//! CUBIC's window (RFC 9438), counted in segments, with the plain slow start of RFC 5681.
//!
//! HyStart++ is left out: it changes how a flow begins, not how it shares.

use core::time::Duration;

use timebase::Instant;

/// RFC 9438 §5: how fast the window grows back.
const C: f64 = 0.4;
/// What is left of the window after a loss.
const BETA: f64 = 0.7;
/// Additive increase that makes the Reno-friendly window as large as Reno's on average (§4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// RFC 6928.
const INITIAL_WINDOW: f64 = 10.0;

/// The window of one sender.
#[derive(Debug)]
pub(super) struct Cubic {
    window: f64,
    threshold: f64,
    /// Where the window was before the last reduction, or a bit less to let others grow.
    w_max: f64,
    /// The window just before the last reduction.
    prior: f64,
    /// Since when it grows.
    epoch: Option<Instant>,
    /// Time until it is back at `w_max`, seconds.
    k: f64,
    /// What Reno would have.
    reno: f64,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Self {
            window: INITIAL_WINDOW,
            threshold: f64::INFINITY,
            w_max: 0.0,
            prior: 0.0,
            epoch: None,
            k: 0.0,
            reno: 0.0,
        }
    }

    /// Segments that may be in flight.
    pub(super) fn window(&self) -> f64 {
        self.window
    }

    pub(super) fn in_slow_start(&self) -> bool {
        self.window < self.threshold
    }

    /// `acked` segments arrived, while the window was the limit.
    pub(super) fn on_ack(&mut self, now: Instant, acked: f64, rtt: Duration) {
        if self.in_slow_start() {
            self.window += acked;
            return;
        }
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.k = ((self.w_max - self.window).max(0.0) / C).cbrt();
            self.w_max = self.w_max.max(self.window);
            self.reno = self.window;
            now
        });
        let t = (now - epoch).as_secs_f64();
        let cubic = |t: f64| C * (t - self.k).powi(3) + self.w_max;
        let alpha = if self.reno < self.prior { ALPHA } else { 1.0 };
        self.reno += alpha * acked / self.window;
        if cubic(t) < self.reno {
            self.window = self.window.max(self.reno);
        } else {
            let target = cubic(t + rtt.as_secs_f64()).clamp(self.window, 1.5 * self.window);
            self.window += (target - self.window) / self.window * acked;
        }
    }

    /// A loss, or a mark; at most once per round trip.
    pub(super) fn on_congestion(&mut self) {
        self.prior = self.window;
        // Fast convergence (§4.7): one that could not get back leaves room to others.
        self.w_max = if self.window < self.w_max { self.window * (1.0 + BETA) / 2.0 } else { self.window };
        self.threshold = (self.window * BETA).max(2.0);
        self.window = self.threshold;
        self.epoch = None;
    }

    /// Nothing came back.
    pub(super) fn on_timeout(&mut self) {
        self.on_congestion();
        self.window = 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);

    /// Windows at the end of each second, a round trip's worth of acknowledgements at a time.
    fn seconds(cubic: &mut Cubic, from: u64, n: u64) -> Vec<f64> {
        (from..from + n)
            .map(|s| {
                for i in 0..10 {
                    let now = Instant::from_micros(s * 1_000_000 + i * 100_000);
                    cubic.on_ack(now, cubic.window(), RTT);
                }
                cubic.window()
            })
            .collect()
    }

    #[test]
    fn slow_start_doubles() {
        let mut c = Cubic::new();
        c.on_ack(Instant::ZERO, 10.0, RTT);
        c.on_ack(Instant::ZERO, 20.0, RTT);
        assert_eq!(c.window(), 40.0);
    }

    #[test]
    fn the_window_returns_flat_and_then_grows_steep() {
        let mut c = Cubic::new();
        c.on_ack(Instant::ZERO, 990.0, RTT);
        c.on_congestion();
        assert_eq!(c.window(), 700.0);
        // K = (300 / 0.4)^(1/3) = 9.1 s.
        let w = seconds(&mut c, 0, 16);
        assert!((950.0..1000.0).contains(&w[5]) && (990.0..1010.0).contains(&w[9]), "{w:?}");
        assert!(w[15] - w[14] > 30.0 && w[9] - w[8] < 3.0, "{w:?}");
    }

    #[test]
    fn small_windows_grow_as_renos_do() {
        let mut c = Cubic::new();
        c.on_ack(Instant::ZERO, 10.0, RTT);
        c.on_congestion();
        let w = seconds(&mut c, 0, 2);
        // 0.53 segments per round trip up to where it was.
        assert!((w[0] - 14.0 - 5.3).abs() < 0.5, "{w:?}");
    }

    #[test]
    fn who_does_not_get_back_remembers_less() {
        let mut c = Cubic::new();
        c.on_ack(Instant::ZERO, 990.0, RTT);
        c.on_congestion();
        c.on_congestion();
        assert!((c.w_max - 700.0 * 0.85).abs() < 1e-9);
        c.on_timeout();
        assert_eq!(c.window(), 1.0);
    }
}
