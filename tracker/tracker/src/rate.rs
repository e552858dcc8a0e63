//! How often one source is served: token buckets in a table of fixed size (`PROTOCOL.md` §8).
//!
//! Sources are spread over the slots by a keyed hash, so nobody can choose whose slot to share. Two
//! sources in one slot share its budget; with thousands of slots and honest senders that is rare, and it
//! costs no memory under a flood from made-up addresses.

use std::hash::{BuildHasher, Hash, RandomState};

use timebase::Instant;
use tracker_proto::TokenBucket;

use crate::limits::RATE_SLOTS;

pub(crate) struct RateLimiter {
    hash: RandomState,
    slots: Box<[TokenBucket]>,
    rate: (u32, u32),
}

impl RateLimiter {
    /// `rate`: per second, and at once after a quiet time.
    pub(crate) fn new(rate: (u32, u32)) -> Self {
        let slots = vec![TokenBucket::full(rate); RATE_SLOTS].into();
        Self { hash: RandomState::new(), slots, rate }
    }

    /// Takes one token of the source's; false if there is none.
    pub(crate) fn allows(&mut self, now: Instant, source: impl Hash) -> bool {
        let slot = (self.hash.hash_one(source) % self.slots.len() as u64) as usize;
        self.slots[slot].take(now, self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use std::time::Duration;

    fn allowed(limiter: &mut RateLimiter, at_ms: u64, source: &str, tries: usize) -> usize {
        let now = Instant::ZERO + Duration::from_millis(at_ms);
        (0..tries).filter(|_| limiter.allows(now, source.parse::<IpAddr>().unwrap())).count()
    }

    #[test]
    fn burst_then_rate() {
        let mut l = RateLimiter::new((10, 30));
        assert_eq!(allowed(&mut l, 0, "192.0.2.1", 100), 30);
        assert_eq!(allowed(&mut l, 500, "192.0.2.1", 100), 5);
        assert_eq!(allowed(&mut l, 550, "192.0.2.1", 100), 0);
        assert_eq!(allowed(&mut l, 600, "192.0.2.1", 100), 1);
        assert_eq!(allowed(&mut l, 3_600_000, "192.0.2.1", 100), 30);
    }

    #[test]
    fn a_flood_from_one_source_leaves_the_others_alone() {
        let mut l = RateLimiter::new((10, 30));
        allowed(&mut l, 0, "192.0.2.1", 10_000);
        let served = (0..100).filter(|i| allowed(&mut l, 0, &format!("198.51.100.{i}"), 1) == 1).count();
        assert!(served >= 98, "{served}");
    }
}
