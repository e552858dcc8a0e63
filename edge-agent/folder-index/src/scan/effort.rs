//! How hard a scan may work: threads, bytes a second, priority.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a scan may use.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Threads that read and hash. Default half of the processors, at least one, at most 8.
    pub threads: usize,
    /// Bytes read a second, by all of them; none: no limit, the default.
    pub bytes_per_second: Option<u64>,
    /// Whether reading and hashing stand back behind everything else on the machine. Default true.
    ///
    /// The threads get nice 10, from which Linux also derives a low I/O priority.
    pub background: bool,
}

impl Default for Effort {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { threads: (processors / 2).clamp(1, 8), bytes_per_second: None, background: true }
    }
}

impl Effort {
    /// For somebody who waits for it: a thread for each processor, at most 8, and none stands back.
    pub fn urgent() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { threads: processors.clamp(1, 8), bytes_per_second: None, background: false }
    }

    /// Makes the calling thread stand back, if that is wanted.
    pub(crate) fn apply_to_thread(&self) {
        if self.background {
            // On Linux that is of the thread alone. Refused where it is lower already: just as well.
            let _ = rustix::process::setpriority_process(None, 10);
        }
    }
}

/// Shares out bytes a second.
pub(super) struct Pace {
    rate: Option<u64>,
    /// When everything allowed so far will have been used.
    used_until: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), used_until: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be read. What was not used for a fifth of a second is forgotten.
    pub(super) fn wait(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let until = {
            let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
            let floor = now.checked_sub(Duration::from_millis(200)).unwrap_or(now);
            *used_until = (*used_until).max(floor) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *used_until
        };
        if let Some(pause) = until.checked_duration_since(now) {
            std::thread::sleep(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_held() {
        let pace = Pace::new(Some(1_000_000));
        let begin = Instant::now();
        for _ in 0..50 {
            pace.wait(10_000);
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!((0.45..5.0).contains(&seconds), "{seconds}");
        let begin = Instant::now();
        Pace::new(None).wait(usize::MAX);
        assert!(begin.elapsed() < Duration::from_secs(1));
    }
}
