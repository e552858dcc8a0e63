//! What a connection remembers of a path, for the next one over it (PROTOCOL.md §9.8).
//!
//! Read first: the idea of careful resume, draft-ietf-tsvwg-careful-resume. How the memory is used is decided in
//! [`super::fast_start`].

use core::time::Duration;

use super::{Controller, Shared};
use crate::control::PathMemory;

/// Base loss is not believed to be higher when it is only remembered.
const LOSS_CAP_PPM: u32 = 100_000;

impl PathMemory {
    /// Whether a measured round trip may be that of the remembered path: from half to one and a half times as long,
    /// and what a handshake's arithmetic takes.
    pub(super) fn is_confirmed_by(&self, rtt: Duration) -> bool {
        self.rate > 0 && rtt >= self.rtt_min / 2 && rtt <= self.rtt_min * 3 / 2 + Duration::from_millis(10)
    }

    /// The remembered base loss, as a share.
    pub(super) fn base_loss(&self) -> f64 {
        f64::from(self.base_loss_ppm.min(LOSS_CAP_PPM)) / 1e6
    }
}

impl Shared {
    /// What this path or a like one may be expected to bear; after silence, the present rate tells nothing of it.
    pub(super) fn expectation(&self, silent: bool) -> PathMemory {
        let guess = if silent { self.remembered } else { self.rate };
        self.memory(if self.learned > 0.0 { self.learned } else { guess })
    }

    /// The path, as remembered at `rate`.
    pub(super) fn memory(&self, rate: f64) -> PathMemory {
        let base_loss_ppm = (self.base_loss.estimate() * 1e6) as u32;
        PathMemory { rate: rate as u64, rtt_min: self.rtt_min, base_loss_ppm }
    }
}

impl Controller {
    /// What is worth remembering of the path; `None` while too little is known of it.
    pub(crate) fn path_memory(&self) -> Option<PathMemory> {
        let learned = self.shared.learned;
        (learned >= 1.0).then(|| self.shared.memory(learned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_round_trip_is_another_path() {
        let ms = Duration::from_millis;
        let memory = PathMemory { rate: 1, rtt_min: ms(100), base_loss_ppm: 900_000 };
        for (rtt, confirmed) in [(49, false), (50, true), (100, true), (160, true), (161, false)] {
            assert_eq!(memory.is_confirmed_by(ms(rtt)), confirmed, "{rtt} ms");
        }
        assert!((memory.base_loss() - 0.1).abs() < 1e-9, "a share beyond belief is cut");
        assert!(!PathMemory { rate: 0, ..memory }.is_confirmed_by(ms(100)), "nothing is remembered");
    }
}
