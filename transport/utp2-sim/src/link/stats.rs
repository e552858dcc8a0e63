//! What a link counts: in all, and in steps of time.

use core::time::Duration;

use timebase::Instant;

/// What a link has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Datagrams handed to the link.
    pub datagrams: u64,
    /// Their bytes, without the wire's overhead.
    pub bytes: u64,
    /// Datagrams that arrived, duplicates not counted.
    pub delivered: u64,
    /// Datagrams refused by the full queue.
    pub queue_drops: u64,
    /// Datagrams dropped by the queue's discipline before it was full.
    pub aqm_drops: u64,
    /// Datagrams marked by the queue's discipline.
    pub marked: u64,
    /// Datagrams over the policer's rate.
    pub policed: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Datagrams lost because the link was down.
    pub down_drops: u64,
    /// Datagrams too large for the link.
    pub too_big: u64,
    /// Datagrams that arrived twice.
    pub duplicated: u64,
    /// Datagrams that were held back.
    pub reordered: u64,
    /// Datagrams with a flipped bit.
    pub corrupted: u64,
    /// The longest wait in the queue, in microseconds.
    pub queue_max_us: u64,
}

impl LinkStats {
    /// Datagrams that died because more came than the link takes: full queue, discipline, policer.
    #[must_use]
    pub fn congestion_drops(&self) -> u64 {
        self.queue_drops + self.aqm_drops + self.policed
    }
}

/// What a link did in one step of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStep {
    /// Datagrams handed to the link.
    pub datagrams: u64,
    /// Of these, those that died of congestion.
    pub congestion_drops: u64,
    /// Datagrams that left the queue.
    pub departed: u64,
    /// Their waits together, in microseconds.
    pub wait_sum_us: u64,
    /// The longest wait.
    pub wait_max_us: u64,
    /// The shortest wait; of no meaning if nothing departed.
    pub wait_min_us: u64,
}

/// A span of a link's timeline, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueSummary {
    /// Mean wait over all datagrams, ms.
    pub mean_ms: f64,
    /// Median over the steps of their shortest wait, ms: what *stands* in the queue.
    pub standing_ms: f64,
    /// Median over the steps of their mean wait, ms.
    pub p50_ms: f64,
    /// 95th percentile over the steps of their mean wait, ms.
    pub p95_ms: f64,
    /// Longest wait, ms.
    pub max_ms: f64,
    /// Share of the datagrams that died of congestion.
    pub congestion_loss: f64,
}

/// Counts per step of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    step_us: u64,
    steps: Vec<LinkStep>,
}

impl Timeline {
    pub(super) fn new(step: Duration) -> Self {
        Self { step_us: u64::try_from(step.as_micros()).unwrap_or(u64::MAX).max(1), steps: Vec::new() }
    }

    /// The step at `us`; `None` if no timeline is kept.
    pub(super) fn at(&mut self, us: u64) -> Option<&mut LinkStep> {
        if self.step_us == 0 {
            return None;
        }
        let index = usize::try_from(us / self.step_us).expect("simulated time is short");
        if self.steps.len() <= index {
            self.steps.resize(index + 1, LinkStep::default());
        }
        Some(&mut self.steps[index])
    }

    pub(super) fn steps(&self) -> &[LinkStep] {
        &self.steps
    }

    pub(super) fn summary(&self, from: Instant, until: Instant) -> QueueSummary {
        let step = self.step_us.max(1);
        let from =
            usize::try_from(from.as_micros().div_ceil(step)).unwrap_or(usize::MAX).min(self.steps.len());
        let until = usize::try_from(until.as_micros() / step).unwrap_or(usize::MAX).min(self.steps.len());
        let steps = &self.steps[from..until.max(from)];
        let busy: Vec<&LinkStep> = steps.iter().filter(|s| s.departed > 0).collect();
        let ms = |us: f64| us / 1e3;
        let total = |f: fn(&LinkStep) -> u64| steps.iter().map(f).sum::<u64>() as f64;
        let mut means: Vec<f64> = busy.iter().map(|s| s.wait_sum_us as f64 / s.departed as f64).collect();
        let mut mins: Vec<f64> = busy.iter().map(|s| s.wait_min_us as f64).collect();
        means.sort_by(f64::total_cmp);
        mins.sort_by(f64::total_cmp);
        QueueSummary {
            mean_ms: ms(total(|s| s.wait_sum_us) / total(|s| s.departed).max(1.0)),
            standing_ms: ms(percentile(&mins, 0.5)),
            p50_ms: ms(percentile(&means, 0.5)),
            p95_ms: ms(percentile(&means, 0.95)),
            max_ms: ms(busy.iter().map(|s| s.wait_max_us).max().unwrap_or(0) as f64),
            congestion_loss: total(|s| s.congestion_drops) / total(|s| s.datagrams).max(1.0),
        }
    }
}

/// The value below which `share` of `sorted` lie; 0 of nothing.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let index = ((sorted.len().max(1) - 1) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_summed_up() {
        let mut line = Timeline::new(Duration::from_millis(10));
        for i in 0..10u64 {
            let step = line.at(i * 10_000).unwrap();
            *step = LinkStep {
                datagrams: 20,
                congestion_drops: 1,
                departed: 10,
                wait_sum_us: i * 10_000,
                wait_max_us: 2 * i * 1000,
                wait_min_us: i * 500,
            };
        }
        let s = line.summary(Instant::from_micros(20_000), Instant::from_micros(70_000));
        assert_eq!((s.mean_ms, s.p50_ms, s.p95_ms, s.max_ms), (4.0, 4.0, 6.0, 12.0));
        assert_eq!((s.standing_ms, s.congestion_loss), (2.0, 0.05));
        assert_eq!(line.summary(Instant::from_micros(1 << 40), Instant::ZERO), QueueSummary::default());
    }
}
