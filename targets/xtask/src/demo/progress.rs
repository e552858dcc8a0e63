//! How far the run is: a bar in a terminal, a line now and then elsewhere; always on stderr.
//!
//! Owns the rate and the estimate of what is left, both from what the destinations hold.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::demo::operator::Run;

/// The rate is the mean over this long: steady to read, and still quick to follow.
const WINDOW: Duration = Duration::from_secs(3);
/// Without a terminal, a line this often.
const LINE: Duration = Duration::from_secs(2);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    rate: Rate,
    last_line: Option<Instant>,
}

impl Progress {
    /// `total`: what all destinations together shall hold, in bytes.
    pub(crate) fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3}%  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, total, rate: Rate::default(), last_line: None }
    }

    pub(crate) fn show(&mut self, run: &Run, now: Instant) {
        let done: u64 = run.destinations().map(|agent| agent.bytes_done).sum::<u64>().min(self.total);
        self.rate.note(now, done);
        let [ready, all] = [
            run.destinations()
                .filter(|agent| ["done", "done_with_errors"].contains(&agent.state.as_str()))
                .count(),
            run.destinations().count(),
        ];
        let per_second = self.rate.per_second();
        // The service's own estimate knows more than ours; ours fills in until it has one.
        let left =
            run.eta_seconds.or_else(|| (per_second > 0.0).then(|| (self.total - done) as f64 / per_second));
        let left = left.map_or_else(|| "ETA ?".to_owned(), |seconds| format!("ETA {seconds:.0} s"));
        let text = format!(
            "{} of {}  {}/s  {left}  {}  {ready}/{all} agents",
            size(done as f64),
            size(self.total as f64),
            size(per_second),
            run.state,
        );
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(text);
        } else if run.ended() || self.last_line.is_none_or(|at| now.duration_since(at) >= LINE) {
            let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
            let _ = writeln!(std::io::stderr(), "{percent:>3}%  {text}");
            self.last_line = Some(now);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            // It leaves the cursor behind the bar.
            bar.abandon();
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// The mean over the last moments.
#[derive(Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn note(&mut self, now: Instant, done: u64) {
        self.samples.push_back((now, done));
        // The one before the window stays: the window begins at it.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    fn per_second(&self) -> f64 {
        let (Some((start, from)), Some((end, to))) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        let seconds = end.duration_since(*start).as_secs_f64();
        if seconds > 0.0 { to.saturating_sub(*from) as f64 / seconds } else { 0.0 }
    }
}

/// Bytes as people say them, in powers of ten.
pub(crate) fn size(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let places = usize::from(unit > 0 && value < 99.95);
    format!("{value:.places$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [(0.0, "0 B"), (999.0, "999 B"), (1_000.0, "1.0 kB"), (203_400_000.0, "203 MB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(999_700.0), "1.0 MB");
        assert_eq!(size(2e15), "2000 TB");
    }

    #[test]
    fn the_rate_follows_what_happens_now() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), 0.0);
        for second in 0..10 {
            rate.note(start + Duration::from_secs(second), second * 100);
        }
        assert_eq!(rate.per_second(), 100.0);
        for second in 10..20 {
            rate.note(start + Duration::from_secs(second), 900);
        }
        assert_eq!(rate.per_second(), 0.0);
    }
}
