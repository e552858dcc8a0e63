//! Whether what is missing is a deletion, or a disk that was taken out (§5).

use std::time::{Duration, Instant};

/// From where on many deletions are asked about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardConfig {
    /// Largest share of all entries that may go at once, 0 to 1. Default 0.5: who empties a folder on
    /// purpose can say so, and a disk that is missing takes all.
    pub share_max: f64,
    /// Fewer than so many are never asked about. Default 20.
    pub least: u64,
    /// What "at once" is. Default 10 minutes: deletions that the watcher sees one by one count together.
    pub window: Duration,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { share_max: 0.5, least: 20, window: Duration::from_secs(600) }
    }
}

/// Why what is missing is not taken for deleted before somebody says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// The folder itself is not there or cannot be opened.
    RootGone,
    /// Another folder stands in its place: a disk is missing, or another one is there.
    OtherRoot,
    /// A file system that was mounted below it is not there.
    MountGone {
        /// Path of the folder it was mounted on.
        path: Vec<u8>,
    },
    /// Too large a share is missing.
    ManyGone {
        /// Entries missing: this many at least.
        missing: u64,
        /// Entries known.
        known: u64,
        /// A few of the missing ones.
        examples: Vec<Vec<u8>>,
    },
}

impl std::fmt::Display for Suspicion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RootGone => f.write_str("the folder is not there"),
            Self::OtherRoot => f.write_str("another folder is in its place; is a disk missing?"),
            Self::MountGone { path } => {
                write!(f, "nothing is mounted at {} any more", path.escape_ascii())
            }
            Self::ManyGone { missing, known, .. } => {
                write!(f, "{missing} or more of {known} entries are missing at once")
            }
        }
    }
}

/// Counts what goes over time.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    config: GuardConfig,
    /// When the window began, the most that was known since, and what went.
    window: Option<(Instant, u64, u64)>,
}

impl Guard {
    pub(crate) fn new(config: GuardConfig) -> Self {
        Self { config, window: None }
    }

    /// So many entries may go now; counting further is not needed.
    pub(crate) fn limit(&mut self, now: Instant, known: u64) -> u64 {
        let (_, known, gone) = self.at(now, known);
        let share = (known as f64 * self.config.share_max) as u64;
        share.max(self.config.least.saturating_sub(1)).saturating_sub(gone)
    }

    /// So many went.
    pub(crate) fn gone(&mut self, now: Instant, known: u64, count: u64) {
        let (began, known, gone) = self.at(now, known);
        self.window = Some((began, known, gone + count));
    }

    /// Somebody said that it is all right: the counting begins anew.
    pub(crate) fn reset(&mut self) {
        self.window = None;
    }

    fn at(&self, now: Instant, known: u64) -> (Instant, u64, u64) {
        match self.window {
            Some((began, most, gone)) if now.duration_since(began) < self.config.window => {
                (began, most.max(known), gone)
            }
            _ => (now, known, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_in_small_portions_count_together() {
        let mut guard = Guard::new(GuardConfig::default());
        let begin = Instant::now();
        assert_eq!(guard.limit(begin, 1000), 500);
        guard.gone(begin, 1000, 300);
        let later = begin + Duration::from_secs(60);
        assert_eq!(guard.limit(later, 700), 200, "half of what there was at the beginning");
        guard.gone(later, 700, 200);
        assert_eq!(guard.limit(later, 500), 0);
        assert_eq!(guard.limit(begin + Duration::from_secs(601), 500), 250, "a new window");
        guard.reset();
        assert_eq!(guard.limit(later, 500), 250);
    }

    #[test]
    fn small_folders_may_be_emptied() {
        let mut guard = Guard::new(GuardConfig::default());
        assert_eq!(guard.limit(Instant::now(), 10), 19);
        let mut new = Guard::new(GuardConfig::default());
        new.gone(Instant::now(), 0, 0);
        assert_eq!(new.limit(Instant::now(), 1000), 500, "a first scan begins with nothing");
        let mut none = Guard::new(GuardConfig { share_max: 0.0, least: 0, ..GuardConfig::default() });
        assert_eq!(none.limit(Instant::now(), 1_000_000), 0);
    }
}
