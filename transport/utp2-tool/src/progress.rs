//! Progress for people, on stderr: a bar on a terminal, now and then a line elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal, and the text beside a bar is renewed.
const LINE_EVERY: Duration = Duration::from_secs(2);
const TEXT_EVERY: Duration = Duration::from_millis(200);

/// The rate shown is that of so long a time, looked at so often.
const RATE_OVER: Duration = Duration::from_secs(10);
const RATE_LOOK: Duration = Duration::from_millis(500);

/// A peer from which nothing came for so long is said to be silent.
const SILENT: Duration = Duration::from_secs(3);

/// A longer time left says nothing.
const LEFT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// Was there before: no part of the rate.
    skipped: u64,
    /// Bytes moved until a few moments of late, oldest first.
    past: VecDeque<(Instant, u64)>,
    /// Packets received when last looked, and since when they are so many.
    heard: (u64, Instant),
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{bar:30} {decimal_bytes}/{decimal_total_bytes} {msg}";
            let style = ProgressStyle::with_template(template).expect("a template without mistakes");
            ProgressBar::new(total).with_style(style)
        });
        let now = Instant::now();
        let past = VecDeque::from([(now, 0)]);
        Self { bar, total, done: 0, skipped: 0, past, heard: (0, now), last_line: now }
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

    /// Packets received from the peer so far; to be told now and then, also when there are no more.
    pub(crate) fn hear(&mut self, packets: u64) {
        if self.heard.0 != packets {
            self.heard = (packets, Instant::now());
        }
    }

    /// Bytes moved so far.
    pub(crate) fn set(&mut self, moved: u64) {
        let now = Instant::now();
        self.note(now, moved);
        let there = self.done + self.skipped;
        if let Some(bar) = &self.bar {
            bar.set_position(there);
            if now - self.last_line >= TEXT_EVERY {
                self.last_line = now;
                bar.set_message(self.text(now));
            }
        } else if now - self.last_line >= LINE_EVERY && there < self.total {
            self.last_line = now;
            eprintln!("{}", self.line(now));
        }
    }

    fn note(&mut self, now: Instant, moved: u64) {
        self.done = moved;
        if self.past.back().is_some_and(|(at, _)| now - *at < RATE_LOOK) {
            return;
        }
        self.past.push_back((now, moved));
        // The newest of those that are old enough stays: the rate is since then.
        while self.past.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER) {
            self.past.pop_front();
        }
    }

    fn line(&self, now: Instant) -> String {
        let there = self.done + self.skipped;
        format!("{} of {}, {}", DecimalBytes(there), DecimalBytes(self.total), self.text(now))
    }

    /// How fast it goes and how long it will take, as far as that can be said.
    fn text(&self, now: Instant) -> String {
        let silence = now - self.heard.1;
        if silence >= SILENT {
            return format!("nothing heard for {} s", silence.as_secs());
        }
        let left = self.total.saturating_sub(self.done + self.skipped);
        let (since, before) = self.past.front().copied().unwrap_or((now, self.done));
        let rate =
            self.done.saturating_sub(before) as f64 / now.duration_since(since).as_secs_f64().max(0.001);
        if left == 0 {
            return format!("{}/s", DecimalBytes(rate as u64));
        }
        if rate < 1.0 {
            return "waiting for the other side".into();
        }
        let time = left as f64 / rate;
        if time > LEFT_MAX.as_secs_f64() {
            return format!("{}/s", DecimalBytes(rate as u64));
        }
        format!("{}/s, {} left", DecimalBytes(rate as u64), HumanDuration(Duration::from_secs_f64(time)))
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
    round(bytes as f64 * 8.0 / 1e6 / time.as_secs_f64().max(1e-6), 3)
}

pub(crate) fn seconds(time: Duration) -> f64 {
    round(time.as_secs_f64(), 3)
}

pub(crate) fn millis(time: Duration) -> f64 {
    round(time.as_micros() as f64 / 1e3, 3)
}

/// To so many digits behind the point.
pub(crate) fn round(x: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (x * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_how_long() {
        let mut progress = Progress::new(1_000_000);
        progress.skip(250_000);
        progress.hear(1);
        let begun = progress.past[0].0;
        progress.note(begun + Duration::from_secs(1), 250_000);
        let line = progress.line(begun + Duration::from_secs(1));
        assert_eq!(line, "500.00 kB of 1.00 MB, 250.00 kB/s, 2 seconds left");
        assert_eq!(mbps(1_000_000, Duration::from_secs(4)), 2.0);
        assert_eq!(millis(Duration::from_micros(9)).to_string(), "0.009");
    }

    #[test]
    fn silence_is_told_and_nothing_is_promised() {
        let mut progress = Progress::new(1_000_000_000);
        let begun = progress.past[0].0;
        let at = |seconds| begun + Duration::from_secs(seconds);
        for second in 1..=20 {
            progress.note(at(second), second * 1_000_000);
        }
        progress.heard = (5, at(20));
        assert_eq!(progress.text(at(20)), "1.00 MB/s, 16 minutes left", "of late, not on the average");
        assert_eq!(progress.text(at(27)), "nothing heard for 7 s");
        // It is there, but nothing moves.
        for second in 21..=40 {
            progress.note(at(second), 20_000_000);
        }
        progress.heard = (9, at(40));
        assert_eq!(progress.text(at(40)), "waiting for the other side");
        // As good as nothing.
        progress.note(at(41), 20_000_100);
        assert_eq!(progress.text(at(41)), "10 B/s");
        assert!(progress.past.len() < 50, "{}", progress.past.len());
    }
}
