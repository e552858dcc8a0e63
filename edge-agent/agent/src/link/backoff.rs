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

    /// Everything that can be tried has failed (once more): the bound doubles from the second time on.
    pub(crate) fn grow(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How long to wait now: random between nothing and the bound.
    pub(crate) fn pause(&self) -> Duration {
        let doubled = self.failures.saturating_sub(1).min(16);
        BACKOFF_MIN.saturating_mul(1 << doubled).min(BACKOFF_MAX).mul_f64(random())
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
                backoff.grow();
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
