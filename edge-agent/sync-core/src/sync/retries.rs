//! Paths that are to be tried again, and when. What is asked at every call must not cost more the more of them there are.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use timebase::Instant;

use super::config::RETRIES_MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// When, if that has not come yet, and how often they failed.
    paths: BTreeMap<Vec<u8>, (Option<Instant>, u32)>,
    due: BTreeSet<(Instant, Vec<u8>)>,
}

impl Retries {
    /// Has a path tried again, at this time and not before. Where there are too many the first by path is tried early.
    pub(super) fn set(&mut self, path: &[u8], at: Instant, tries: u32) {
        self.remove(path);
        self.due.insert((at, path.to_vec()));
        self.paths.insert(path.to_vec(), (Some(at), tries));
        while self.paths.len() > RETRIES_MAX {
            let Some((path, (at, _))) = self.paths.pop_first() else { break };
            if let Some(at) = at {
                self.due.remove(&(at, path));
            }
        }
    }

    pub(super) fn remove(&mut self, path: &[u8]) {
        if let Some((Some(at), _)) = self.paths.remove(path) {
            self.due.remove(&(at, path.to_vec()));
        }
    }

    /// Whether the path failed since it was last as it should be.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.paths.contains_key(path)
    }

    /// Whether its time is still to come.
    pub(super) fn waits(&self, path: &[u8]) -> bool {
        self.paths.get(path).is_some_and(|(at, _)| at.is_some())
    }

    /// How often it failed, if it did.
    pub(super) fn tries(&self, path: &[u8]) -> Option<u32> {
        self.paths.get(path).map(|(_, tries)| *tries)
    }

    /// When the next one's time comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Lets those go whose time has come; false if there is none. They stay known, so that the next failure waits longer.
    pub(super) fn come(&mut self, now: Instant) -> bool {
        let mut any = false;
        while self.next_due().is_some_and(|at| at <= now) {
            let Some((_, path)) = self.due.pop_first() else { break };
            if let Some((at, _)) = self.paths.get_mut(&path) {
                *at = None;
            }
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use core::time::Duration;

    use super::*;

    #[test]
    fn paths_come_when_it_is_time_and_are_remembered() {
        let at = |ms: u64| Instant::ZERO + Duration::from_millis(ms);
        let mut retries = Retries::default();
        retries.set(b"a", at(20), 0);
        retries.set(b"b", at(10), 3);
        retries.set(b"a", at(30), 1);
        assert_eq!((retries.next_due(), retries.come(at(9))), (Some(at(10)), false));
        assert!(retries.come(at(10)) && !retries.come(at(29)));
        assert_eq!((retries.has(b"b"), retries.waits(b"b"), retries.tries(b"b")), (true, false, Some(3)));
        assert!(retries.waits(b"a"));
        retries.remove(b"a");
        assert_eq!((retries.next_due(), retries.tries(b"a")), (None, None));
        for i in 0..2 * RETRIES_MAX {
            retries.set(format!("{i:06}").as_bytes(), at(50), 0);
        }
        assert_eq!(
            (retries.paths.len(), retries.due.len()),
            (RETRIES_MAX, RETRIES_MAX - usize::from(retries.has(b"b")))
        );
        assert!(!retries.has(b"000000"));
    }
}
