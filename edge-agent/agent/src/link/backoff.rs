//! Pauses between attempts: exponential, with full jitter, so that a fleet does not come back as one.

use std::time::Duration;

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN};

/// How often in a row it failed.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next attempt is a first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait now: random between nothing and a bound that doubles each time.
    pub(crate) fn pause(&mut self) -> Duration {
        let bound = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random())
    }
}

/// Evenly between 0 and 1.
pub(crate) fn random() -> f64 {
    let bits = getrandom::u32().expect("the system has randomness");
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_cap_and_is_spread_evenly() {
        let mut sum = Duration::ZERO;
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            for n in 0..40 {
                let pause = backoff.pause();
                assert!(pause <= BACKOFF_MIN * 2_u32.saturating_pow(n) && pause <= BACKOFF_MAX);
                if n == 39 {
                    sum += pause;
                }
            }
            backoff.reset();
            assert!(backoff.pause() <= BACKOFF_MIN);
        }
        let mean = sum / 200;
        assert!(mean > BACKOFF_MAX / 3 && mean < BACKOFF_MAX * 2 / 3, "{mean:?}");
    }
}
