//! How fast to send (PROTOCOL.md §9): the states FastStart, SpeedProbe and Avoid around a remembered rate.
//!
//! The congestion signal is queue delay wherever a queue can be seen; loss counts only beyond a *base loss* learned
//! while the queue was empty. Measurements are per [`interval::Interval`] of sending. The connection tells what was
//! sent, acknowledged and lost, and asks for [`Controller::rate`]; nothing here knows packets by number.

mod avoid;
mod base_loss;
mod buffer;
mod compete;
mod delivery;
mod fast_start;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod held;
mod interval;
mod longer;
mod math;
mod memory;
mod near;
mod onset;
mod shared;
mod speed_probe;
mod train;
mod trial;

use alloc::boxed::Box;
use core::time::Duration;

use timebase::Instant;

use self::avoid::Avoid;
use self::base_loss::BaseLoss;
use self::fast_start::FastStart;
use self::interval::{Interval, Intervals, Purpose};
use self::shared::{LOCAL_EXCESS, LOCAL_LIMIT, LOCAL_LOSS, LOCAL_PATIENCE, MAX_RATE, Shared};
use self::speed_probe::{Drain, SpeedProbe};
use crate::Mode;
use crate::connection::State;
use crate::control::{AckSample, PathMemory};

/// Share of a remembered rate to resume at, when the path seems the same and after a change of address.
const RESUME_SHARE: f64 = 0.95;
const MOVED_SHARE: f64 = 0.5;
/// Round trips that may bear out a memory.
const RECALL_SAMPLES: u32 = 4;

/// With so much lost beyond the base loss, a queue overflowed, whatever was done about it since.
const OVERFLOW: f64 = 0.1;

#[derive(Debug)]
enum Phase {
    FastStart(Box<FastStart>),
    SpeedProbe(SpeedProbe),
    Avoid(Box<Avoid>),
}

#[derive(Debug)]
pub(crate) struct Controller {
    shared: Shared,
    phase: Phase,
    intervals: Intervals,
    /// When an ACK last told something new, or sending began after quiet.
    last_progress: Instant,
    silent_halvings: u32,
    /// A memory not yet borne out by a round trip, and how many more may try.
    recalled: Option<(PathMemory, u32)>,
    last_silence: Instant,
    /// When too much was in flight to send more.
    last_held: Option<Instant>,
    /// Acknowledgements came again after a gap that held the sender back: what arrives is measured from the first
    /// packet sent since.
    resumed: Instant,
}

impl Controller {
    pub(crate) fn new(now: Instant, rtt: Duration, packet: usize, mode: Mode) -> Self {
        let shared = Shared::new(now, rtt, packet as f64, mode);
        let phase = Phase::FastStart(Box::new(FastStart::new()));
        Self {
            shared,
            phase,
            intervals: Intervals::new(),
            last_progress: now,
            silent_halvings: 0,
            last_silence: now,
            recalled: None,
            last_held: None,
            resumed: now,
        }
    }

    /// The path may be one met before (§9.8). Of use only while the first search for the rate lasts.
    pub(crate) fn recall(&mut self, now: Instant, memory: PathMemory) {
        let memory = PathMemory { rate: memory.rate.min(MAX_RATE as u64), ..memory };
        self.recalled = Some((memory, RECALL_SAMPLES));
        self.confirm(now, self.shared.rtt_min);
    }

    /// Resumes at the remembered rate if a round trip of `rtt` bears the memory out.
    fn confirm(&mut self, now: Instant, rtt: Duration) {
        let Some((memory, left)) = self.recalled.take() else { return };
        if !matches!(self.phase, Phase::FastStart(_)) || (memory.rate as f64) < self.shared.rate {
            return;
        }
        if memory.is_confirmed_by(rtt) {
            let s = &mut self.shared;
            self.phase = Phase::FastStart(Box::new(FastStart::resume(now, s, &memory, RESUME_SHARE)));
        } else if left > 1 {
            self.recalled = Some((memory, left - 1));
        }
    }

    /// Whether the next packet is one of a train: it does not wait for the pacer (§9.5). `limit` is the
    /// application's limit of the rate.
    pub(crate) fn is_train(&mut self, now: Instant, limit: Option<u64>) -> bool {
        let Phase::FastStart(f) = &mut self.phase else { return false };
        let s = &self.shared;
        if limit.is_none_or(|l| l as f64 > 16.0 * s.rate) && f.wants_train(s) {
            f.trains.begin(now, s.rtt(), s.rate, s.packet);
        }
        f.trains.is_leaving()
    }

    /// Whether the next packet should ask for an acknowledgement at once. `rested` tells that the pacer let as much
    /// gather as leaves at once.
    pub(crate) fn wants_ping(&mut self, rested: bool) -> bool {
        match &self.phase {
            Phase::FastStart(f) => f.trains.wants_ping(),
            // The first packet after a pause of the pacer meets the queue that stands; the others also what left along
            // with them, which on a short way is as much as the queue holds.
            _ => rested && self.shared.is_near() && self.intervals.wants_ping(),
        }
    }

    /// The shortest interval, and the fewest packets of one.
    fn least(&self) -> (Duration, u32) {
        let s = &self.shared;
        // Long enough that its luckiest packet met a machine that was awake.
        let fast_start = matches!(self.phase, Phase::FastStart(_));
        let shortest = match (s.is_local(), fast_start) {
            (true, false) => 50,
            (true, true) => 20,
            (false, false) => 10,
            (false, true) => 4,
        };
        // Where many round trips pass in an interval, the start must not wait for more packets than it needs.
        let packets = interval::MIN_PACKETS / if fast_start && s.rtt_min < fast_start::SHORT { 2 } else { 1 };
        (Duration::from_millis(shortest), packets)
    }

    /// Bytes/s of UDP payload.
    pub(crate) fn rate(&self) -> u64 {
        self.shared.rate as u64
    }

    /// Bytes that may be in flight: what the rate needs, and no more, so that a receiver or a machine that stalls
    /// for some milliseconds is not flooded meanwhile.
    pub(crate) fn in_flight_limit(&self) -> u64 {
        let s = &self.shared;
        let best = s.best();
        if s.is_local() {
            return s.local_limit as u64;
        }
        let time = s.rtt * 3 / 2 + s.jitter * 2 + Duration::from_millis(15);
        let bytes = s.rate.max(best.unwrap_or(0.0)) * time.as_secs_f64();
        bytes.max(128.0 * s.packet) as u64
    }

    pub(crate) fn delivered_rate(&self) -> u64 {
        self.shared.delivered().unwrap_or(0.0) as u64
    }

    pub(crate) fn base_loss_ppm(&self) -> u32 {
        (self.shared.base_loss.estimate() * 1e6) as u32
    }

    pub(crate) fn state(&self) -> State {
        match self.phase {
            Phase::FastStart(_) => State::FastStart,
            Phase::SpeedProbe(_) => State::SpeedProbe,
            Phase::Avoid(_) => State::Avoid,
        }
    }

    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.shared.mode = mode;
    }

    /// An eliciting packet leaves. Returns the interval to name when its fate is told.
    pub(crate) fn on_sent(&mut self, now: Instant, bytes: usize, alone: bool) -> u32 {
        if alone {
            self.last_progress = now;
        }
        let s = &mut self.shared;
        if let Phase::Avoid(a) = &mut self.phase {
            a.on_sent(now, s);
        }
        s.longer.on_sent(now, bytes, s.rtt);
        let least = self.least();
        let s = &self.shared;
        let train = match &mut self.phase {
            Phase::FastStart(f) if f.trains.is_leaving() => Some(&mut f.trains),
            _ => None,
        };
        let id = self.intervals.on_sent(now, bytes, s.rtt, least, s.purpose, s.epoch, train.is_some());
        if let Some(train) = train {
            train.on_sent(id);
        }
        id
    }

    /// There was nothing to send, or a window did not allow it.
    pub(crate) fn on_limited(&mut self, now: Instant) {
        self.shared.last_limited = Some(now);
        if let Phase::FastStart(f) = &mut self.phase {
            f.trains.abandon();
        }
        if let Some(i) = self.intervals.current_mut() {
            i.limited = true;
        }
    }

    /// So much is in flight that the next packet has to wait.
    pub(crate) fn on_held(&mut self, now: Instant) {
        self.last_held = Some(now);
    }

    /// The network marked packets (ECN CE); the newest of those acknowledged along with that belongs to the interval.
    pub(crate) fn on_marked(&mut self, interval: u32, packets: u32) {
        if let Some(i) = self.intervals.get_mut(interval) {
            i.marked = i.marked.saturating_add(packets);
        }
    }

    /// A busy machine did not send what the rate allowed.
    pub(crate) fn on_missed(&mut self, bytes: u64) {
        if bytes > 0
            && let Some(i) = self.intervals.current_mut()
        {
            i.missed_bytes += bytes;
        }
    }

    /// A timer of the pacer's was late.
    pub(crate) fn on_late(&mut self, now: Instant) {
        (self.shared.last_late, self.shared.late) = (Some(now), true);
    }

    pub(crate) fn on_acked(&mut self, interval: u32, bytes: u64) {
        self.shared.delivery.add(bytes);
        if let Some(i) = self.intervals.get_mut(interval) {
            i.acked += 1;
        }
    }

    /// Packets are told lost in the order of their numbers.
    pub(crate) fn on_lost(&mut self, interval: u32, number: u64) {
        if let Some(i) = self.intervals.get_mut(interval) {
            i.lost += 1;
            i.loss_runs += u32::from(i.last_lost != Some(number.wrapping_sub(1)));
            i.last_lost = Some(number);
        }
    }

    /// A packet went to an address where the peer no longer is: as if never sent.
    pub(crate) fn on_withdrawn(&mut self, interval: u32, bytes: u64) {
        if let Some(i) = self.intervals.get_mut(interval) {
            i.withdrawn = true;
            i.sent = i.sent.saturating_sub(1);
            i.sent_bytes = i.sent_bytes.saturating_sub(bytes);
        }
    }

    /// A packet declared lost arrived after all.
    pub(crate) fn on_spurious(&mut self, interval: u32, bytes: u64) {
        self.shared.delivery.add(bytes);
        if let Some(i) = self.intervals.get_mut(interval) {
            i.lost = i.lost.saturating_sub(1);
            i.acked += 1;
        }
    }

    /// An ACK was processed; the fates it told were told before. If the path was found to have become longer, gives
    /// the round trip at which the minimum is to begin anew.
    pub(crate) fn on_ack(&mut self, now: Instant, ack: &AckSample) -> Option<Duration> {
        if ack.acked_bytes > 0 {
            let gap = now.saturating_since(self.last_progress);
            if gap > self.shared.rtt.max(Duration::from_millis(100)) {
                // A gap that no congestion makes: what arrived on average over it is no measure of the path.
                self.shared.delivery.clear_points();
                // Nor is what arrived of the round trip in which nothing was sent, because nothing was heard although
                // it had arrived: where the way has become longer, the round trip is as long as the gap.
                let heard = ack.rtt.is_some_and(|(rtt, _)| rtt < gap);
                if heard && self.last_held.is_some_and(|h| h > self.last_progress) {
                    self.shared.delivery.pause();
                    self.resumed = now;
                }
            }
            self.last_progress = now;
            if core::mem::take(&mut self.silent_halvings) > 0 {
                self.return_from_silence();
            }
        }
        let s = &mut self.shared;
        s.rtt = ack.smoothed;
        let shorter = ack.min + (s.rtt_min / 20).max(Duration::from_millis(2)) < s.rtt_min;
        if shorter && ack.rtt.is_some_and(|(rtt, _)| s.longer.is_step_down(s, (ack.left, rtt))) {
            // The way itself: what was sent before has met no such queue as it seems, nor is lost if overtaken.
            s.path_since = now;
        } else {
            if shorter {
                // What was taken for an empty queue was none: what was lost in it tells nothing.
                s.base_loss.replace(0.0);
            }
            s.buffer.on_shorter(s.rtt_min.saturating_sub(ack.min));
        }
        s.rtt_min = ack.min;
        s.in_flight = ack.in_flight;
        let (mut train, mut lengthened) = (false, None);
        let keep = s.rtt.max(Duration::from_millis(100)) * 2;
        if ack.rtt.is_some() && ack.left >= self.resumed {
            s.delivery.resume(ack.arrival_us);
        }
        s.delivery.mark(ack.arrival_us, keep.as_micros() as u64);
        s.remember_best(now);
        if let Some((rtt, interval)) = ack.rtt {
            if rtt.saturating_sub(s.rtt_min) < Duration::from_micros(500) {
                s.last_near_minimum = now;
            }
            if s.low.is_none_or(|l| rtt < l.0) {
                s.low = Some((rtt, now));
            }
            let point = (ack.arrival_us, s.delivery.total());
            if let Some(i) = self.intervals.get_mut(interval) {
                i.rtt_min = Some(i.rtt_min.map_or(rtt, |m| m.min(rtt)));
                i.rtt_max = i.rtt_max.max(rtt);
                i.first_ack.get_or_insert(point);
                train = i.train;
            }
            if !train && !ack.bare {
                lengthened = self.watch(now, (ack.left, rtt), point);
            }
            self.confirm(now, rtt);
        }
        let s = &mut self.shared;
        let change = match &mut self.phase {
            Phase::FastStart(f) => f.on_ack(now, s, ack, train),
            Phase::SpeedProbe(p) => {
                p.on_ack(now, s, ack);
                Change::Stay
            }
            Phase::Avoid(a) => {
                if let Some(queue) = s.flood(ack) {
                    a.flood(now, s, queue);
                }
                Change::Stay
            }
        };
        self.change(now, change);
        while let Some((interval, next)) = self.intervals.pop_settled() {
            // Half of it went elsewhere, or was overtaken by what took a shorter way: says nothing of any path.
            if !interval.withdrawn && interval.began >= self.shared.path_since {
                self.judge(now, &interval, next);
                // One acknowledgement may settle several: each is judged by a rate that there is.
                self.shared.rate = self.shared.rate.max(self.shared.floor().min(MAX_RATE));
            }
        }
        self.clamp(now);
        lengthened
    }

    fn judge(&mut self, now: Instant, i: &Interval, next: Option<(u64, u64)>) {
        let s = &mut self.shared;
        s.since_judged = self
            .intervals
            .outstanding()
            .map_or_else(Default::default, |(b, at)| (b, now.saturating_since(at)));
        let queue = s.queue(i);
        s.held.add(i, s.rtt.max(Duration::from_millis(100)));
        if i.rtt_min.is_some() && !i.train {
            // Noise is what changes from one interval to the next although the rate did not.
            let step = queue.abs_diff(s.last_queue).min(Duration::from_millis(50));
            let own = s.rtt().mul_f64(0.02);
            // Within an interval, delays spread by noise and by how fast the queue grows.
            let spread = i.rtt_min.map_or(Duration::ZERO, |m| i.rtt_max.saturating_sub(m));
            let ramp = i.duration().mul_f64(0.15);
            let spread = (spread.saturating_sub(ramp) / 3).min(Duration::from_millis(50));
            s.jitter = (s.jitter * 9 + step.saturating_sub(own).max(spread)) / 10;
            s.last_queue = queue;
            if now.saturating_since(s.peak_began) > Duration::from_secs(15) {
                s.queue_peak = [Duration::ZERO, s.queue_peak[0]];
                s.peak_began = now;
            }
            s.queue_peak[0] = s.queue_peak[0].max(queue);
            s.buffer.observe(now, i.rtt_max.saturating_sub(s.rtt_min));
        }
        let (sent, lost) = (f64::from(i.sent), f64::from(i.lost));
        if i.lost == 0 {
            s.local_limit = (s.local_limit * 1.01).min(LOCAL_LIMIT[2]);
        } else if now.saturating_since(s.local_shrank) >= Duration::from_millis(100) {
            s.local_limit = (s.local_limit * 0.7).max(LOCAL_LIMIT[1]);
            s.local_shrank = now;
        }
        s.local_lossy = if i.loss() > LOCAL_LOSS { s.local_lossy + 1 } else { 0 };
        if s.local_lossy >= LOCAL_PATIENCE {
            s.local_excess = (s.local_excess * 0.95).max(LOCAL_EXCESS[0]);
        } else if i.loss() < LOCAL_LOSS * 0.75 {
            s.local_excess = (s.local_excess * 1.01).min(LOCAL_EXCESS[1]);
        }
        let empty = i.rtt_min.is_some() && queue < s.empty_below();
        // What was lost to an overshoot, and while the start looked for the rate, teaches nothing of chance.
        let settled = match self.phase {
            Phase::FastStart(_) => false,
            Phase::SpeedProbe(_) => i.epoch == s.epoch,
            Phase::Avoid(_) => !i.train,
        };
        if settled {
            if empty {
                s.base_loss.observe_dispersion(sent, lost);
            }
            let longest = i.rtt_max.saturating_sub(s.rtt_min);
            let noisy = s.jitter > Duration::from_millis(1);
            let empty = empty && (noisy || longest < s.empty_below() * 2);
            let in_doubt = matches!(&self.phase, Phase::Avoid(a) if a.is_in_doubt());
            let empty = empty && !in_doubt;
            s.base_loss.add(now, s.rtt(), (sent, lost, i.send_rate()), empty, noisy);
        }
        // Delivered rate between the first ACK of this interval and the first of the next.
        let delivered = match (i.first_ack, next) {
            // The order is the peer's word; what it tells of the past is no rate.
            (Some(a), Some(b)) => s.delivery.between(a, b),
            _ => None,
        };
        if !i.train {
            // A growing queue is answered before what it lost is known: that is often judged in another epoch or phase.
            // All who share a queue should learn its length, or those who did not would take the shares of the others;
            // in `background`, that is what is meant.
            let starts = matches!(self.phase, Phase::FastStart(_));
            let severe = if starts { i.loss() > 0.02 } else { i.loss() - s.base_loss.estimate() > OVERFLOW };
            let shares = s.mode != Mode::Background;
            if severe && (starts || shares && i.epoch != s.epoch) {
                let longest = i.rtt_max.saturating_sub(s.rtt_min);
                s.buffer.on_excess_loss(now, longest, s.visible());
            } else if !starts && shares {
                s.learn_room(now, i, queue);
            }
        }
        let change = match &mut self.phase {
            Phase::FastStart(f) => f.judge(now, s, i, queue, delivered),
            Phase::SpeedProbe(p) => p.judge(now, s, i, queue),
            Phase::Avoid(a) => a.judge(now, s, i, queue),
        };
        self.learn(now, i);
        let risen = change == Change::Stay && self.has_risen(now, i, queue, delivered);
        self.change(now, if risen { Change::Search } else { change });
    }

    /// Whether the path by now carries clearly more than when it was last congested.
    fn has_risen(&mut self, now: Instant, i: &Interval, queue: Duration, delivered: Option<f64>) -> bool {
        let s = &mut self.shared;
        let judged = matches!(self.phase, Phase::Avoid(_)) && i.epoch == s.epoch && !i.limited && i.sent > 0;
        if !judged || s.is_local() || s.is_limited(now) || i.purpose != Purpose::Normal || i.rtt_min.is_none()
        {
            return false;
        }
        let Some(d) = delivered.map(|d| d / (1.0 - s.base_loss.estimate())) else { return false };
        let excess = i.loss() - s.base_loss.estimate() > s.base_loss.noise(f64::from(i.sent));
        if queue > s.target() / 2 {
            s.congested = d;
        } else if excess {
            // Where no queue evens it out, less may arrive of too much than of enough.
            let before = if s.peak() < s.visible() { 0.97 * s.congested } else { 0.0 };
            s.congested = d.max(before);
        }
        s.mode != Mode::Background && d > 1.2 * s.congested && s.rate > 1.2 * s.congested
    }

    /// Remembers what the path sustains; not what an idle application or a silent path left of it.
    fn learn(&mut self, now: Instant, i: &Interval) {
        let s = &mut self.shared;
        let steady =
            matches!(self.phase, Phase::Avoid(_)) && i.purpose == Purpose::Normal && i.epoch == s.epoch;
        if !steady || i.limited || s.is_limited(now) || i.sent == 0 {
            return;
        }
        if let Some(r) = s.sustainable() {
            s.learned = if s.learned > 0.0 { s.learned + (r - s.learned) / 8.0 } else { r };
        }
    }

    fn change(&mut self, now: Instant, change: Change) {
        match change {
            Change::Stay => {}
            Change::SpeedProbe { drain } => self.phase = Phase::SpeedProbe(SpeedProbe::new(now, drain)),
            Change::Avoid => {
                self.shared.is_loss_known = true;
                self.shared.congested = self.shared.remembered;
                self.phase = Phase::Avoid(Box::new(Avoid::new(now)));
            }
            Change::Search => self.phase = Phase::FastStart(Box::new(FastStart::again(&self.shared))),
        }
    }

    fn clamp(&mut self, now: Instant) {
        let s = &mut self.shared;
        if !matches!(self.phase, Phase::FastStart(_))
            && !s.is_limited(now)
            && let Some(c) = s.capacity()
        {
            let most = if s.is_local() { s.local_excess } else { 1.3 };
            s.rate = s.rate.min(most * c / (1.0 - s.base_loss.estimate()));
        }
        let floor = s.floor();
        s.rate = s.rate.clamp(floor.min(MAX_RATE), MAX_RATE);
    }

    /// When silence begins to count, given that packets are in flight.
    pub(crate) fn silence_deadline(&self) -> Instant {
        let s = &self.shared;
        let patience = (s.rtt * 3).max(Duration::from_millis(300));
        match self.silent_halvings {
            0 => self.last_progress + patience,
            // At the lowest rate nothing is left to halve: ever more seldom, or a dead path wakes us for nothing.
            n => self.last_silence + s.rtt() * (1 << n.saturating_sub(4).min(12)),
        }
    }

    /// Nothing was acknowledged for long although packets are in flight.
    pub(crate) fn on_silence(&mut self, now: Instant) {
        let s = &mut self.shared;
        if self.silent_halvings == 0 {
            // What to come back to. A rate held back by the application is no measure.
            s.remembered = if matches!(self.phase, Phase::FastStart(_)) {
                s.rate
            } else {
                s.remembered.min(s.rate * 1.2)
            };
        }
        self.silent_halvings += 1;
        // Counted from here: after a long sleep, one halving a turn and not all that were missed.
        self.last_silence = now;
        let floor = s.floor();
        let rate = if self.silent_halvings >= 4 { floor } else { (s.rate * 0.5).max(floor) };
        s.cut(now, rate);
    }

    /// The path is back, or another one: half of what it bore is tried at once.
    fn return_from_silence(&mut self) {
        let s = &mut self.shared;
        let expected = s.expectation(true);
        s.forget_delivered();
        let floor = s.floor();
        let memory = PathMemory { rate: expected.rate.max((floor * 16.0) as u64), ..expected };
        let now = self.last_progress;
        s.rate = floor;
        self.phase = Phase::FastStart(Box::new(FastStart::resume(now, s, &memory, MOVED_SHARE)));
    }

    /// The path ceased to carry packets of the size sent (§3.1): what was not delivered meanwhile is no measure.
    pub(crate) fn on_black_hole(&mut self, now: Instant) {
        let s = &mut self.shared;
        s.forget_delivered();
        if matches!(self.phase, Phase::FastStart(_)) {
            let rate = s.rate * 0.5;
            s.cut(now, rate);
        } else {
            let rate = s.rate * 0.9;
            s.cut(now, rate);
            self.phase = Phase::SpeedProbe(SpeedProbe::new(now, None));
        }
        self.clamp(now);
    }

    /// The peer has another address (§10). Of the same host, only a NAT has forgotten: the path is the same.
    /// Else what was learned is about another path, and half of it a first guess about this one.
    pub(crate) fn on_new_path(&mut self, now: Instant, same_host: bool) {
        // Nothing arrived since the old address went, and that says nothing of the path.
        let memory = self.shared.expectation(self.silent_halvings > 0);
        self.last_progress = now;
        self.silent_halvings = 0;
        self.shared.delivery.clear_points();
        if same_host {
            return;
        }
        let s = &mut self.shared;
        s.forget_path(now);
        s.base_loss = BaseLoss::new();
        s.learned = 0.0;
        s.jitter = Duration::ZERO;
        s.longer.forget();
        s.rate = 0.0;
        self.recalled = None;
        self.phase = Phase::FastStart(Box::new(FastStart::resume(now, s, &memory, MOVED_SHARE)));
        self.clamp(now);
    }
}

/// What a phase decides about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Stay,
    SpeedProbe {
        /// A queue that is to be emptied first, at half the rate.
        drain: Option<Drain>,
    },
    Avoid,
    /// The path carries more than it did: look for its rate again.
    Search,
}
