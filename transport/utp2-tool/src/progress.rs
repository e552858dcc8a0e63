//! Progress for people, on stderr: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// Was there before: no part of the rate.
    skipped: u64,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template =
                "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template).expect("a template without mistakes");
            ProgressBar::new(total).with_style(style)
        });
        let now = Instant::now();
        Self { bar, total, done: 0, skipped: 0, started: now, last_line: now }
    }

    pub(crate) fn add_total(&mut self, bytes: u64) {
        self.total = self.total.saturating_add(bytes);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
        }
    }

    /// Bytes that need not be moved.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.skipped += bytes;
        self.set(self.done);
    }

    /// Bytes moved so far.
    pub(crate) fn set(&mut self, moved: u64) {
        self.done = moved;
        let there = self.done + self.skipped;
        if let Some(bar) = &self.bar {
            bar.set_position(there);
        } else if self.last_line.elapsed() >= LINE_EVERY && there < self.total {
            self.last_line = Instant::now();
            eprintln!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let there = self.done + self.skipped;
        let rate = self.done as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let left = (self.total.saturating_sub(there)) as f64 / rate.max(1.0);
        format!(
            "{} of {}, {}/s, {} left",
            DecimalBytes(there),
            DecimalBytes(self.total),
            DecimalBytes(rate as u64),
            HumanDuration(Duration::from_secs_f64(left.min(1e9))),
        )
    }

    /// Says something without disturbing the bar.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// 10^6 bits per second.
pub(crate) fn mbps(bytes: u64, time: Duration) -> f64 {
    let exact = bytes as f64 * 8.0 / 1e6 / time.as_secs_f64().max(1e-6);
    (exact * 1000.0).round() / 1000.0
}

pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_how_long() {
        let mut progress = Progress::new(1_000_000);
        progress.skip(250_000);
        progress.set(250_000);
        let line = progress.line();
        assert!(line.starts_with("500.00 kB of 1.00 MB, ") && line.ends_with(" left"), "{line}");
        assert_eq!(mbps(1_000_000, Duration::from_secs(4)), 2.0);
    }
}
