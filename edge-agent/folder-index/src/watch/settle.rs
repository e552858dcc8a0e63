//! When a noticed change has come to rest: no clock and no thread of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::How;
use crate::limits::NOTICED_MAX;
use crate::record::FolderId;

/// How long changes are waited for.
#[derive(Clone, Copy, Debug)]
pub struct SettleConfig {
    /// Pause after the last notice that something is done. Default 100 ms: programs that save a file
    /// write, close and rename in one go.
    pub done: Duration,
    /// Pause after the last notice of a file that is still open for writing. Default 1 s.
    pub writing: Duration,
    /// After so long a name is looked at, whatever happens to it. Default 10 s.
    pub most: Duration,
    /// Names that wait at a time; beyond, everything is looked at. Default [`NOTICED_MAX`].
    pub names_max: usize,
}

impl Default for SettleConfig {
    fn default() -> Self {
        Self {
            done: Duration::from_millis(100),
            writing: Duration::from_secs(1),
            most: Duration::from_secs(10),
            names_max: NOTICED_MAX,
        }
    }
}

/// Names that were noticed, until they are due.
#[derive(Debug, Default)]
pub struct Settle {
    config: SettleConfig,
    names: HashMap<(FolderId, Vec<u8>), Waiting>,
    everything: bool,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    due: Instant,
    /// It is looked at then, whatever comes.
    latest: Instant,
}

impl Settle {
    /// Nothing noticed yet.
    pub fn new(config: SettleConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Something happened to a name.
    pub fn notice(&mut self, now: Instant, folder: FolderId, name: &[u8], how: How) {
        let pause = match how {
            How::Done => self.config.done,
            How::Writing => self.config.writing,
        };
        self.put_off(now, folder, name, pause);
    }

    /// A name is to be looked at after a pause.
    pub fn put_off(&mut self, now: Instant, folder: FolderId, name: &[u8], pause: Duration) {
        if self.everything {
            return;
        }
        let due = now + pause;
        let latest = now + self.config.most.max(pause);
        let waiting = self.names.entry((folder, name.to_vec())).or_insert(Waiting { due, latest });
        waiting.due = due.min(waiting.latest);
        if self.names.len() > self.config.names_max {
            self.everything();
        }
    }

    /// Everything is to be looked at.
    pub fn everything(&mut self) {
        self.everything = true;
        self.names = HashMap::new();
    }

    /// Whether everything is to be looked at; from then on what is noticed counts again.
    pub fn take_everything(&mut self) -> bool {
        std::mem::take(&mut self.everything)
    }

    /// Names that have come to rest.
    pub fn take_due(&mut self, now: Instant) -> Vec<(FolderId, Vec<u8>)> {
        let mut due = Vec::new();
        if self.names.values().any(|waiting| waiting.due <= now) {
            self.names.retain(|name, waiting| {
                let keep = waiting.due > now;
                if !keep {
                    due.push(name.clone());
                }
                keep
            });
        }
        due
    }

    /// When the next name is due; everything is due at once.
    pub fn next_due(&self) -> Option<Instant> {
        self.names.values().map(|waiting| waiting.due).min()
    }

    /// Names that wait.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.everything
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const A: FolderId = FolderId(5);

    #[test]
    fn a_file_is_looked_at_when_it_has_come_to_rest_and_no_later_than_said() {
        let mut settle = Settle::new(SettleConfig::default());
        let begin = Instant::now();
        settle.notice(begin, A, b"saved", How::Writing);
        settle.notice(begin + 10 * MS, A, b"saved", How::Done);
        assert!(settle.take_due(begin + 109 * MS).is_empty());
        assert_eq!(settle.next_due(), Some(begin + 110 * MS));
        assert_eq!(settle.take_due(begin + 110 * MS), [(A, b"saved".to_vec())]);
        assert!(settle.is_empty() && settle.next_due().is_none());
        // Written to all the time.
        let mut looked = Vec::new();
        for ms in 0..25_000u32 {
            let now = begin + ms * MS;
            if ms.is_multiple_of(300) {
                settle.notice(now, A, b"log", How::Writing);
            }
            if !settle.take_due(now).is_empty() {
                looked.push(ms);
            }
        }
        assert_eq!(looked, [10_000, 20_200], "counted from the first notice after the last look");
    }

    #[test]
    fn too_much_at_once_is_everything() {
        let mut settle = Settle::new(SettleConfig::default());
        let now = Instant::now();
        for n in 0..=NOTICED_MAX as u32 {
            settle.notice(now, A, &n.to_le_bytes(), How::Done);
        }
        assert_eq!(settle.len(), 0, "memory is given back");
        assert!(!settle.is_empty() && settle.take_everything());
        assert!(settle.is_empty() && !settle.take_everything());
        settle.notice(now, A, b"x", How::Done);
        assert_eq!(settle.take_due(now + Duration::from_secs(1)).len(), 1, "and it goes on");
    }
}
