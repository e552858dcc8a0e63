//! Random stretching of pauses, so that agents that started together do not stay in step.

use core::ops::RangeInclusive;
use core::time::Duration;

use rand_core::Rng;

/// `pause` × a random share from `percent`.
pub(crate) fn stretched(pause: Duration, percent: RangeInclusive<u32>, rng: &mut impl Rng) -> Duration {
    let choices = percent.end() - percent.start() + 1;
    pause * (percent.start() + rng.next_u32() % choices) / 100
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn stays_in_range_and_varies() {
        let mut rng = rand_chacha::ChaCha8Rng::from_seed([1; 32]);
        let draws: std::vec::Vec<_> =
            (0..100).map(|_| stretched(Duration::from_secs(100), 90..=110, &mut rng).as_secs()).collect();
        assert!(draws.iter().all(|d| (90..=110).contains(d)));
        assert!(draws.iter().any(|d| *d < 95) && draws.iter().any(|d| *d > 105));
    }
}
