//! Token buckets: so many a second, so many at once after a quiet time.

use timebase::Instant;

/// Tokens are counted in millionths, so that a microsecond adds as many of them as a second adds tokens.
const TOKEN: u64 = 1_000_000;

/// How much one somebody may do now. The rate is told with each use: many buckets share one.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    tokens: u64,
    at: Instant,
}

impl TokenBucket {
    /// One that nothing was taken from.
    pub fn full((_, burst): (u32, u32)) -> Self {
        Self { tokens: u64::from(burst) * TOKEN, at: Instant::ZERO }
    }

    /// Takes a token; false if there is none. `per_second`, `burst`: always the same for one bucket.
    pub fn take(&mut self, now: Instant, (per_second, burst): (u32, u32)) -> bool {
        self.refill(now, (per_second, burst));
        let rest = self.tokens.checked_sub(TOKEN);
        self.tokens = rest.unwrap_or(self.tokens);
        rest.is_some()
    }

    /// Whether nothing is missing: then it may be forgotten.
    pub fn is_full(&mut self, now: Instant, (per_second, burst): (u32, u32)) -> bool {
        self.refill(now, (per_second, burst));
        self.tokens == u64::from(burst) * TOKEN
    }

    fn refill(&mut self, now: Instant, (per_second, burst): (u32, u32)) {
        let elapsed = u64::try_from((now - self.at).as_micros()).unwrap_or(u64::MAX);
        let gained = elapsed.saturating_mul(per_second.into());
        self.tokens = self.tokens.saturating_add(gained).min(u64::from(burst) * TOKEN);
        // A clock that goes back gives nothing twice.
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    #[test]
    fn a_burst_then_the_rate_and_no_more_for_clocks_that_leap() {
        let rate = (10, 30);
        let mut bucket = TokenBucket::full(rate);
        let mut taken = |ms| {
            let now = Instant::ZERO + Duration::from_millis(ms);
            (0..100).filter(|_| bucket.take(now, rate)).count()
        };
        assert_eq!([taken(0), taken(500), taken(550), taken(600)], [30, 5, 0, 1]);
        assert_eq!([taken(3_600_000), taken(0), taken(3_600_000)], [30, 0, 0]);
        assert!(!bucket.is_full(Instant::ZERO + Duration::from_secs(3601), rate));
        assert!(bucket.is_full(Instant::ZERO + Duration::from_secs(3604), rate));
    }
}
