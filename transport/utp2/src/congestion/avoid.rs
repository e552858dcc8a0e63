//! Avoid: hold the rate around the remembered one (PROTOCOL.md §9.3, §9.4).
//!
//! Per interval, in this order: a standing queue is drained; loss beyond the base loss cuts, a little near the
//! remembered rate and more far below it, unless cutting is seen not to help; now and then a deep probe measures
//! base loss and base delay anew; else the rate moves by how far the queue is from its target.

use core::time::Duration;

use timebase::Instant;

use super::compete::Compete;
use super::interval::{Interval, Purpose};
use super::math::{fourth_root, sqrt};
use super::near::Near;
use super::shared::{NEAR, QUANTUM, REFERENCE};
use super::trial::{Trial, Verdict};
use super::{Change, Shared};
use crate::Mode;
use crate::control::AckSample;

#[derive(Debug)]
pub(super) struct Avoid {
    episode: Episode,
    /// Intervals since the last cut, pooled up to two round trips.
    pool: Pool,
    last_event: Option<Instant>,
    /// Cuts in a row.
    cuts: u32,
    trial: Option<Trial>,
    last_probe: Instant,
    /// When a deep probe last lasted long enough to tell the loss.
    last_asked: Instant,
    /// Growth of growth while new capacity shows.
    acceleration: f64,
    /// Patience with a queue that others hold up.
    leniency: f64,
    crowded_since: Option<Instant>,
    best: f64,
    /// What was sustainable before sending slowly on purpose, and until when what arrives tells of that.
    known: (f64, Instant),
    /// When the interval before began, and its shortest round trip.
    before: Option<(Instant, Duration)>,
    /// Beside a sender that only loss stops; with the rate held when the queue began to stand.
    compete: Option<Compete>,
    share: f64,
    /// When competition ended, how long it went without listening, and the rate it had.
    competed: Option<(Instant, Duration, f64)>,
    /// Since when the queue has stood at the longest delay ever seen, short of the target; packets sent and lost.
    stuck: Option<(Instant, f64, f64)>,
    near: Near,
}

/// Runs of losses that make an event: one burst is an accident, a queue that overflows drops again and again.
const RUNS_MIN: f64 = 4.0;

/// How much of what is predicted is believed.
const PREDICTION: f64 = 0.8;

/// A queue within this part of the longest seen is at the top; there it is taken to be full if that is short of the
/// target by so much.
const TOP: f64 = 0.9;
const TOP_SHORT_OF_TARGET: f64 = 0.95;

/// Packets of a deep probe that are to meet the queue at its shortest.
const SHORTEST_PACKETS: f64 = 12.0;

/// Packets of a deep probe that is to tell the loss.
const PROBE_PACKETS: f64 = 400.0;

#[derive(Debug)]
enum Episode {
    None,
    /// A queue is being drained.
    Drain {
        until: Instant,
        share: f64,
    },
    /// Slow on purpose.
    Probe {
        until: Instant,
        share: f64,
    },
}

#[derive(Debug, Default)]
struct Pool {
    began: Option<Instant>,
    sent: f64,
    lost: f64,
    /// Runs of lost packets: what is lost together is one accident.
    runs: f64,
    /// Longest and shortest delay beyond the minimum.
    delay_max: Duration,
}

/// ACKs in a row that make a flood.
const FLOOD_ACKS: u32 = 3;

impl Shared {
    /// The queue, if several ACKs in a row told of one far beyond what is aimed at, that still grows: the path has
    /// become slower, and to wait for an interval would fill its buffer.
    pub(super) fn flood(&mut self, ack: &AckSample) -> Option<Duration> {
        let (rtt, _) = ack.rtt?;
        let queue = rtt.saturating_sub(self.rtt_min);
        let much = (self.target() * 4).max(self.rtt_min / 4).max(Duration::from_millis(20)) + self.jitter * 2;
        self.flooded = if queue > much { self.flooded + 1 } else { 0 };
        (self.flooded >= FLOOD_ACKS && !self.is_local()).then_some(queue)
    }
}

impl Avoid {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            episode: Episode::None,
            pool: Pool::default(),
            last_event: None,
            cuts: 0,
            trial: None,
            last_probe: now,
            last_asked: now,
            acceleration: 1.0,
            leniency: 1.0,
            crowded_since: None,
            best: 0.0,
            known: (0.0, now),
            before: None,
            compete: None,
            share: 0.0,
            competed: None,
            stuck: None,
            near: Near::default(),
        }
    }

    /// Whether the loss seen at present may be of our own making.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.trial.is_some() || self.compete.is_some()
    }

    pub(super) fn judge(&mut self, now: Instant, s: &mut Shared, i: &Interval, queue: Duration) -> Change {
        if i.purpose != Purpose::Normal {
            s.base_loss.add_probe(f64::from(i.sent), f64::from(i.lost));
        }
        if i.purpose == Purpose::Glance && i.epoch == s.epoch && i.rtt_min.is_some() {
            self.near.on_glance(queue);
        }
        if let Episode::Drain { until, share } | Episode::Probe { until, share } = self.episode {
            return self.continue_episode(now, s, i, queue, until, share);
        }
        if i.epoch != s.epoch || i.sent == 0 {
            return Change::Stay;
        }
        if s.mode != Mode::Fair {
            self.compete = None;
        }
        if self.compete.is_some() {
            self.compete(now, s, i, queue);
            return Change::Stay;
        }
        let rtt = s.rtt();
        let target = s.target().mul_f64(self.leniency);
        let room = s.room().filter(|_| s.is_near());
        let queue = room.map_or(queue, |room| self.near.queue(queue, room));
        let x = if i.rtt_min.is_some() { queue.as_secs_f64() / target.as_secs_f64() } else { 1.0 };
        self.best = self.best.max(s.rate);

        if i.rtt_min.is_some() && queue > target * 5 / 2 + rtt / 20 {
            self.drain(now, s, queue);
            return Change::Stay;
        }
        if i.marked > 0 && self.on_marks(now, s, i) {
            return Change::Stay;
        }
        if let Some(change) = self.on_loss(now, s, i, queue) {
            return change;
        }
        if s.mode == Mode::Fair && self.is_crowded(now, s, x, rtt) {
            self.enter(now, s, self.share);
            return Change::Stay;
        }
        self.update_leniency(now, s, x, rtt, target);
        self.watch_top(now, s, i, x, queue);
        if self.probe_is_due(now, s) {
            self.probe(now, s, queue);
            return Change::Stay;
        }
        if room.is_some()
            && self.trial.is_none()
            && let Some(depth) = self.near.glance(now, s)
        {
            self.glance(now, s, depth);
            return Change::Stay;
        }
        if i.rtt_min.is_none() {
            // Nobody knows what it met: one ACK told of it and of later ones. After a stall that is what happens, and
            // what arrived meanwhile is no reason to send less.
            self.before = None;
            return Change::Stay;
        }
        // What arrives of less than the path carries does not tell what it carries: while no queue is seen, the best
        // lately does. Else growth alone would seem to make a queue, and where queues are short, to cut in vain.
        let r = self.sustainable(now, s).map(|r| {
            let unseen = queue < target / 2 && !s.is_local();
            if unseen { s.best().map_or(r, |b| r.max(b)) } else { r }
        });
        let x = r.and_then(|r| self.predict(s, i, queue, target, r)).unwrap_or(x);
        if room.is_some() {
            self.steer_near(now, s, i, x);
        } else {
            self.steer(now, s, i, x, rtt, r);
        }
        self.before = i.rtt_min.map(|r| (i.began, r));
        Change::Stay
    }

    /// The path has become much slower than the rate: drain at once, by what arrives now.
    pub(super) fn flood(&mut self, now: Instant, s: &mut Shared, queue: Duration) {
        if !matches!(self.episode, Episode::None) || self.compete.is_some() || s.is_limited(now) {
            return;
        }
        let window = (s.rtt_min / 2).max(Duration::from_millis(20)).as_micros() as u64;
        let d = match s.longer.arrived(now, s.rtt()) {
            None => s.delivery.rate(window),
            Some(d) => d,
        };
        let Some(d) = d else { return };
        let share = d / (1.0 - s.base_loss.estimate());
        // Where the way itself may be longer, only this tells.
        if share < 0.75 * s.rate || s.longer.is_in_doubt() {
            let share = share.min(s.rate);
            s.remembered = share;
            s.cut(now, share * 0.5);
            self.episode = Episode::Drain { until: now + queue * 2 + s.rtt() * 5 / 2, share };
            self.acceleration = 1.0;
        }
    }

    fn drain(&mut self, now: Instant, s: &mut Shared, queue: Duration) {
        let share =
            if s.is_limited(now) { s.rate } else { s.sustainable().map_or(s.rate, |r| r.min(s.rate)) };
        // A deep queue would take too long to drain by a seventh of the rate.
        let deep = s.mode == Mode::Background || queue > s.rtt_min / 2 || s.longer.is_in_doubt();
        let depth = if deep { 0.5 } else { 0.85 };
        let until = now + queue.mul_f64(1.0 / (1.0 - depth)) + s.rtt() * 5 / 2;
        s.remembered = share;
        s.cut(now, share * depth);
        self.episode = Episode::Drain { until, share };
        self.acceleration = 1.0;
    }

    fn continue_episode(
        &mut self,
        now: Instant,
        s: &mut Shared,
        i: &Interval,
        queue: Duration,
        until: Instant,
        share: f64,
    ) -> Change {
        let over = now >= until;
        match self.episode {
            Episode::Drain { .. } => {
                let drained = i.epoch == s.epoch
                    && i.rtt_min.is_some()
                    && queue < (s.target() / 4).max(s.empty_below());
                if (drained || over) && s.mode == Mode::Fair && (self.compete.is_some() || !drained) {
                    self.listened(now, s, share, drained);
                } else if drained || over {
                    let back = if drained { share } else { share * 0.85 };
                    s.cut(now, back);
                    self.episode = Episode::None;
                    self.pool = Pool::default();
                }
            }
            _ => self.end_probe(now, s),
        }
        Change::Stay
    }

    /// With every packet: a deep probe ends in time, what it lasts longer the path is idle. Not with a near host: there
    /// it lasts to the end of an interval, or a machine that was not awake in so short a time saw nothing by it.
    pub(super) fn on_sent(&mut self, now: Instant, s: &mut Shared) {
        if s.rtt_min >= NEAR {
            self.end_probe(now, s);
        }
    }

    /// Ends a deep probe whose time is over.
    fn end_probe(&mut self, now: Instant, s: &mut Shared) {
        let Episode::Probe { until, share } = self.episode else { return };
        if now < until {
            return;
        }
        // What arrives is measured over many round trips of a near path.
        let told = if s.is_near() { s.window() } else { Duration::ZERO };
        self.known.1 = now + told.max(s.rtt * 5 / 2);
        s.purpose = Purpose::Normal;
        // The round trip may have become shorter meanwhile.
        s.cut(now, share.max(s.floor()));
        self.episode = Episode::None;
        self.pool = Pool::default();
    }

    /// Whether others have held the queue up for long.
    fn is_crowded(&mut self, now: Instant, s: &Shared, x: f64, rtt: Duration) -> bool {
        if x <= 1.25 {
            self.crowded_since = None;
            return false;
        }
        if self.crowded_since.is_none() {
            self.crowded_since = Some(now);
            self.share = s.rate;
        }
        let long = (rtt * 8).max(Duration::from_millis(800));
        self.crowded_since.is_some_and(|t| now.saturating_since(t) >= long) && !s.is_limited(now)
    }

    fn enter(&mut self, now: Instant, s: &mut Shared, rate: f64) {
        let lately = self.competed.filter(|c| now.saturating_since(c.0) < Duration::from_secs(20));
        // If it ended by mistake, what was yielded meanwhile is taken back.
        let rate = lately.map_or(rate.max(s.rate), |c| c.2);
        let c = Compete::new(now, s, rate, lately.map(|c| c.1));
        let rate = c.rate(s);
        s.cut(now, rate);
        self.crowded_since = None;
        self.trial = None;
        self.compete = Some(c);
    }

    fn compete(&mut self, now: Instant, s: &mut Shared, i: &Interval, queue: Duration) {
        let Some(c) = &mut self.compete else { return };
        let cut = c.judge(now, s, i);
        let rate = c.rate(s);
        s.remembered = s.remembered.max(rate);
        if cut {
            let longest = i.rtt_max.saturating_sub(s.rtt_min);
            s.buffer.on_excess_loss(now, longest, s.visible());
            s.cut(now, rate);
        } else {
            s.rate = rate;
        }
        if now >= c.listen_at {
            c.listen_at = now + c.period;
            self.listen(now, s, queue);
        }
    }

    /// Drains, to see whether the queue is ours.
    fn listen(&mut self, now: Instant, s: &mut Shared, queue: Duration) {
        let share = s.rate;
        let until = now + queue.mul_f64(1.0 / 0.3) + s.rtt() * 2;
        s.cut(now, 0.7 * share);
        self.episode = Episode::Drain { until, share };
    }

    fn listened(&mut self, now: Instant, s: &mut Shared, share: f64, drained: bool) {
        self.episode = Episode::None;
        self.pool = Pool::default();
        if drained {
            if let Some(c) = self.compete.take() {
                self.competed = Some((now, c.period, share));
            }
            s.remembered = share;
            s.cut(now, share);
        } else if let Some(c) = &mut self.compete {
            c.resume(now);
            let rate = c.rate(s);
            s.cut(now, rate);
        } else {
            self.enter(now, s, share);
        }
    }

    /// Where chance loses packets, a queue that overflows now and then is not told from it by loss alone. One that for
    /// long stays at the longest delay seen, although more was let in, is full.
    fn watch_top(&mut self, now: Instant, s: &mut Shared, i: &Interval, x: f64, queue: Duration) {
        let p = s.base_loss.estimate();
        let peak = s.buffer.peak();
        let top = i.rtt_min.is_some() && queue >= peak.mul_f64(TOP) && x < TOP_SHORT_OF_TARGET;
        if !top || p <= 0.0 || s.buffer.room().is_some() || s.is_limited(now) {
            self.stuck = None;
            return;
        }
        let (since, sent, lost) = self.stuck.unwrap_or((now, 0.0, 0.0));
        let (sent, lost) = (sent + f64::from(i.sent), lost + f64::from(i.lost));
        self.stuck = Some((since, sent, lost));
        if now.saturating_since(since) >= (s.rtt() * 10).max(Duration::from_secs(1)) && lost > p * sent {
            s.buffer.on_loss(now, peak, s.visible());
            self.stuck = None;
        }
    }

    fn probe_is_due(&self, now: Instant, s: &Shared) -> bool {
        let period = (s.rtt() * 75).clamp(Duration::from_secs(5), Duration::from_secs(20));
        let since_probe = now.saturating_since(self.last_probe);
        // Within a fifth of a second, or it would cost more than it tells.
        let quick = s.rate > 5.0 * PROBE_PACKETS * s.packet;
        let unknown =
            quick && s.base_loss.is_unproven() && since_probe >= (s.rtt() * 10).max(Duration::from_secs(1));
        let low = s.low.map_or(self.last_probe, |l| l.1);
        let stale = now.saturating_since(s.last_near_minimum.max(self.last_probe).max(low)) >= period;
        (stale || unknown && s.base_loss.estimate() > 0.003 || self.asks_for_loss(now, s))
            && !s.is_limited(now)
    }

    /// Whether the next deep probe should last long enough to tell the loss: seldom enough that a slow path, where that
    /// takes long, loses little by it.
    fn asks_for_loss(&self, now: Instant, s: &Shared) -> bool {
        let period = (s.rtt() * 75).clamp(Duration::from_secs(5), Duration::from_secs(20));
        let enough = Duration::from_secs_f64(60.0 * PROBE_PACKETS * s.packet / s.rate.max(1.0));
        let rest = period.max(Duration::from_secs(10)).max(enough.min(Duration::from_secs(40)));
        s.base_loss.estimate() > 0.003 && now.saturating_since(self.last_asked) >= rest
    }

    fn probe(&mut self, now: Instant, s: &mut Shared, queue: Duration) {
        let rtt = s.rtt();
        let share = s.rate;
        let (mut lasts, mut depth) = (Duration::from_millis(20), 0.3);
        if queue > Duration::from_millis(1) {
            let time = queue.mul_f64(1.0 / 0.3).min(rtt / 2 + Duration::from_millis(150));
            depth = (queue.as_secs_f64() / time.as_secs_f64()).clamp(0.3, 0.6);
            lasts = time;
        }
        let slow = s.delivered().map_or(share * (1.0 - depth), |d| ((1.0 - depth) * d).min(0.85 * share));
        if queue > Duration::from_millis(1) {
            // Others drain at about the same time, and each must have some packets meet the queue at its shortest.
            let some = Duration::from_secs_f64((SHORTEST_PACKETS * s.packet / slow.max(1.0)).min(1.0));
            lasts += some.min(rtt).max(rtt / 5);
        }
        let unproven = s.base_loss.estimate() > 0.003 && s.base_loss.is_unproven();
        if unproven && s.rate > 5.0 * PROBE_PACKETS * s.packet || self.asks_for_loss(now, s) {
            let packets = Duration::from_secs_f64((PROBE_PACKETS * s.packet / slow.max(1.0)).min(1.0));
            lasts = lasts.max(packets);
            self.last_asked = now;
            s.base_loss.begin_probe();
        }
        self.known.0 = s.sustainable().map_or(share, |r| r.min(share));
        s.purpose = Purpose::DeepProbe;
        s.cut(now, slow);
        self.last_probe = now;
        s.low = None;
        self.episode = Episode::Probe { until: now + lasts, share };
    }

    /// Sends a little less for an interval, to see what delays on a near path when no queue does.
    fn glance(&mut self, now: Instant, s: &mut Shared, depth: f64) {
        let share = s.rate;
        self.known.0 = s.sustainable().map_or(share, |r| r.min(share));
        s.purpose = Purpose::Glance;
        s.base_loss.begin_probe();
        s.cut(now, share * (1.0 - depth));
        self.episode = Episode::Probe { until: now + s.rtt(), share };
    }

    /// Loss beyond what is known to be random: cut, or find out that it is random too.
    fn on_loss(&mut self, now: Instant, s: &mut Shared, i: &Interval, queue: Duration) -> Option<Change> {
        let rtt = s.rtt();
        let began = *self.pool.began.get_or_insert(i.began);
        if i.began.saturating_since(began) > rtt * 2 && self.pool.sent >= 200.0 {
            // Older intervals of the pool weigh half, so that it follows.
            self.pool.sent /= 2.0;
            self.pool.lost /= 2.0;
            self.pool.runs /= 2.0;
            self.pool.began = Some(i.began);
        }
        self.pool.sent += f64::from(i.sent);
        self.pool.lost += f64::from(i.lost);
        self.pool.runs += f64::from(i.loss_runs);
        if i.lost > 0 && i.rtt_min.is_some() {
            let longest = i.rtt_max.saturating_sub(s.rtt_min);
            // Where delays vary by themselves, the longest is no queue's.
            let longest = if s.jitter > Duration::from_millis(1) { longest.min(queue * 4) } else { longest };
            self.pool.delay_max = self.pool.delay_max.max(longest);
            if s.mode == Mode::Background {
                s.learn_room(now, i, queue);
            }
        }
        if let Some(trial) = &mut self.trial {
            match trial.judge(s, i, queue) {
                Verdict::Waiting => return Some(Change::Stay),
                Verdict::Queue => {}
                Verdict::Own(sent, lost) => {
                    s.remembered = s.remembered.min(trial.rate);
                    s.sent_slower(sent, lost);
                }
                Verdict::Chance(loss) => {
                    s.base_loss.replace(1.03 * loss);
                    let back = 0.98 * trial.rate;
                    s.cut(now, back);
                    self.cuts = 0;
                }
            }
            self.trial = None;
            self.pool = Pool::default();
            return Some(Change::Stay);
        }
        let enough =
            self.pool.sent >= 200.0 || i.began.saturating_since(began) >= rtt * 2 && self.pool.sent >= 20.0;
        let loss = self.pool.lost / self.pool.sent.max(1.0);
        let recent =
            self.last_event.is_some_and(|t| now.saturating_since(t) < rtt.max(Duration::from_millis(50)));
        let seldom = self.pool.runs < RUNS_MIN && loss < 0.5;
        if !enough || recent || seldom || loss - s.base_loss.estimate() <= s.base_loss.noise(self.pool.sent) {
            if self.last_event.is_some_and(|t| now.saturating_since(t) > rtt * 10) {
                self.cuts = 0;
            }
            return None;
        }
        self.cuts += 1;
        self.last_event = Some(now);
        self.leniency = 1.0 + (self.leniency - 1.0) / 2.0;
        self.acceleration = 1.0;
        let full = s.buffer.on_excess_loss(now, self.pool.delay_max, s.visible());
        let loss_before = s.base_loss.estimate();
        self.pool = Pool::default();
        let r = if s.is_limited(now) { None } else { s.sustainable() }.unwrap_or(s.rate);
        let base = r.min(s.rate);
        if !full {
            let trial = Trial::new(s.rate, loss, loss_before);
            let slower = trial.slower().min(0.98 * base);
            s.cut(now, slower);
            self.trial = Some(trial);
            return Some(Change::Stay);
        }
        if s.mode == Mode::Fair && s.base_loss.estimate() < 0.003 {
            s.remembered = base;
            self.enter(now, s, base);
            if let Some(c) = &mut self.compete {
                c.judge(now, s, i);
                let rate = c.rate(s);
                s.cut(now, rate);
            }
            return Some(Change::Stay);
        }
        let near = s.rate > 0.85 * s.remembered;
        let rate = self.after_event(s, base, r);
        s.cut(now, rate);
        if !near && self.cuts >= 4 {
            return Some(Change::SpeedProbe { drain: None });
        }
        Some(Change::Stay)
    }

    /// The network says itself that there is congestion: nothing to find out. Tells whether the rate was cut.
    fn on_marks(&mut self, now: Instant, s: &mut Shared, i: &Interval) -> bool {
        let pause = s.rtt().max(Duration::from_millis(50));
        if self.last_event.is_some_and(|t| now.saturating_since(t) < pause) {
            return false;
        }
        s.buffer.on_excess_loss(now, i.rtt_max.saturating_sub(s.rtt_min), s.visible());
        self.cuts += 1;
        self.last_event = Some(now);
        self.acceleration = 1.0;
        self.trial = None;
        self.pool = Pool::default();
        let r = if s.is_limited(now) { None } else { s.sustainable() }.unwrap_or(s.rate);
        let base = r.min(s.rate);
        if s.mode == Mode::Fair {
            self.enter(now, s, base);
            self.compete(now, s, i, Duration::ZERO);
            return true;
        }
        let rate = self.after_event(s, base, r);
        s.cut(now, rate);
        true
    }

    /// The rate after congestion that left `base` of it, where `r` was sustainable; what is remembered follows.
    fn after_event(&self, s: &mut Shared, base: f64, r: f64) -> f64 {
        if s.mode == Mode::Background {
            s.remembered = base;
            0.5 * base
        } else if s.rate > 0.85 * s.remembered {
            let mut beta = (0.05 * fourth_root(s.rate / REFERENCE)).clamp(0.015, 0.10);
            if s.mode == Mode::Fair {
                beta = beta.max(0.15);
            }
            beta += 0.03 * f64::from(self.cuts.saturating_sub(1).min(3));
            s.remembered = 0.6 * s.remembered + 0.4 * r;
            base * (1.0 - beta)
        } else {
            s.remembered = s.remembered.min(r);
            0.85 * base
        }
    }

    /// Others hold the queue up: aim higher, slowly, so as not to starve beside a flow that only loss stops.
    fn update_leniency(&mut self, now: Instant, s: &Shared, x: f64, rtt: Duration, target: Duration) {
        if s.mode != Mode::Full {
            self.leniency = 1.0;
            return;
        }
        if x < 0.5 {
            self.leniency = 1.0 + (self.leniency - 1.0) * 0.95;
        }
        if x <= 1.1 {
            self.crowded_since = None;
            return;
        }
        let since = *self.crowded_since.get_or_insert(now);
        let long = now.saturating_since(since) >= (rtt * 10).max(Duration::from_secs(1));
        if long && s.rate < 0.8 * self.best && target < s.peak().mul_f64(0.9) {
            self.leniency =
                (self.leniency * (1.0 + 0.025 * (rtt.as_secs_f64() / 0.1).clamp(0.2, 2.0))).min(16.0);
        }
        self.best *= 0.999;
    }

    /// R, unless the application limits what arrives.
    fn sustainable(&self, now: Instant, s: &Shared) -> Option<f64> {
        let r = s.sustainable().filter(|_| !s.is_limited(now))?;
        // Where a queue stands meanwhile, others have taken what was left to them.
        let alone = s.is_near() || s.last_queue < s.target() / 2;
        Some(if now < self.known.1 && alone { r.max(self.known.0) } else { r })
    }

    /// The queue that what was sent since will have made, in targets: what is seen is more than a round trip old, and to
    /// steer by it alone would be to swing.
    fn predict(&self, s: &Shared, i: &Interval, queue: Duration, target: Duration, r: f64) -> Option<f64> {
        if i.rtt_min.is_none() || s.mode == Mode::Background || s.is_local() {
            return None;
        }
        let (bytes, time) = s.since_judged;
        let grown = bytes as f64 / r.max(1.0) - time.as_secs_f64();
        // Counted from the departure of its first packet, up to one packet is ahead of its time without making a queue:
        // at a few packets in a round trip that alone would be more than what is aimed at. Where the way is short, so is
        // the queue, and a packet too many is one that counts.
        let ahead = s.packet / r.max(1.0);
        let grown = if s.is_near() {
            // There, what leaves at once is more than a packet, and how much of it has left is chance.
            let even = (s.rate / r.max(1.0) - 1.0) * time.as_secs_f64();
            even.clamp(grown - QUANTUM.as_secs_f64().max(ahead), grown)
        } else if grown > 0.0 && s.rtt_min >= NEAR {
            (grown - ahead).max(0.0)
        } else {
            grown
        };
        Some((queue.as_secs_f64() + PREDICTION * grown).max(0.0) / target.as_secs_f64())
    }

    /// The rate that would just be delivered, by how the queue grew. The base loss, of which every flow has another
    /// estimate, has no part in it: so equal flows get equal shares.
    fn refine(&self, s: &Shared, i: &Interval, sent: f64, delivered: f64) -> f64 {
        let (Some(before), Some(rtt)) = (self.before, i.rtt_min) else { return delivered };
        let apart = i.began.saturating_since(before.0).as_secs_f64();
        if apart <= 0.0
            || apart > 2.0 * s.rtt().as_secs_f64()
            || s.jitter > Duration::from_millis(1)
            || s.is_local()
        {
            return delivered;
        }
        let growth = (rtt.as_secs_f64() - before.1.as_secs_f64()) / apart;
        (sent / (1.0 + growth).max(0.5)).clamp(0.95 * delivered, delivered)
    }

    /// The rate law on a near path whose room is known.
    fn steer_near(&mut self, now: Instant, s: &mut Shared, i: &Interval, x: f64) {
        if i.limited {
            return;
        }
        let r = self.sustainable(now, s).map(|r| match s.best() {
            _ if x >= 0.5 => self.refine(s, i, s.sent_rate(i), r),
            best => best.map_or(r, |b| r.max(b)),
        });
        self.near.steer(now, s, i, x, r, &mut self.acceleration);
    }

    /// The rate law. `bearable` is what the path was lately seen to bear.
    fn steer(
        &mut self,
        now: Instant,
        s: &mut Shared,
        i: &Interval,
        x: f64,
        rtt: Duration,
        bearable: Option<f64>,
    ) {
        if i.limited {
            return;
        }
        let rounds = (i.duration().as_secs_f64() / rtt.as_secs_f64()).clamp(0.05, 2.0);
        let target = s.target().as_secs_f64();
        let kappa = (0.5 * target.max(0.004) / rtt.as_secs_f64()).clamp(0.01, 0.10);
        let relative = REFERENCE / s.rate.max(1.0);
        let f = fourth_root(relative).clamp(0.5, 3.0);
        let least = 0.004 * sqrt(relative).min(10.0) * (rtt.as_secs_f64() / 0.1).clamp(0.1, 2.0);
        // A packet per round trip is no haste: without it, who has little keeps little.
        let near = s.rtt_min < NEAR;
        let packet = if near { 0.0 } else { s.packet / (s.rate.max(1.0) * rtt.as_secs_f64()) };
        let least = least.max(packet.min(0.25));
        let r =
            self.sustainable(now, s).map(|r| if x >= 0.5 { self.refine(s, i, i.send_rate(), r) } else { r });
        if x >= 1.0 {
            if let Some(r) = r.and_then(|r| if s.last_queue < s.target() / 2 { bearable } else { Some(r) }) {
                let step = if s.mode == Mode::Background {
                    (0.25 * (x - 1.0)).min(0.5)
                } else {
                    // Behind a very short queue a cut would empty it; beside CUBIC it would yield.
                    let gentle = target < 0.004 || s.mode == Mode::Fair;
                    let gain = if gentle { kappa } else { 2.0 * kappa };
                    (gain * (x - 1.0) / f.max(1.0)).min(0.12)
                };
                s.rate = s.rate.min(s.headroom() * r * (1.0 - step));
                s.remembered = r;
            }
            self.acceleration = 1.0;
            return;
        }
        // What this interval shows, it shows of the rate it was sent at.
        let seen = i.send_rate();
        let g = if seen < 0.88 * s.remembered && x < 0.5 {
            (0.3 * (s.remembered / seen - 1.0)).clamp(least, 0.25)
        } else {
            let lossy = self.last_event.is_some_and(|t| now.saturating_since(t) < Duration::from_secs(30))
                && s.peak() <= s.target();
            // Faster than remembered, no queue, and it does arrive: there is more than there was.
            if x < 0.5 && seen > 1.04 * s.remembered && r.is_some_and(|r| r > 1.02 * s.remembered) {
                self.acceleration = (self.acceleration * (1.0 + 0.5 * rounds)).min(16.0);
            }
            let base = if lossy { least } else { (kappa * f).min(0.12).max(least) };
            (base * (1.0 - x) * self.acceleration).min(0.25)
        };
        if x < 0.5 {
            // Not further ahead of what was seen to pass than two round trips of growth.
            let mut rate = (s.rate * (1.0 + g * rounds)).min(s.rate.max(seen * (1.0 + 2.0 * g)));
            if let Some(r) = r.filter(|_| !s.is_local()) {
                // Nor than what arrives; the queue this builds shows only a round trip and a half later.
                rate = rate.min((r * (1.02 + g)).max(s.rate * (1.0 - kappa / 2.0)));
            }
            s.rate = rate;
        } else {
            let weight = 2.0 * (x - 0.5);
            let towards = r.map_or(s.rate, |r| s.rate + weight * (r - s.rate)) * (1.0 + g * rounds);
            s.rate = towards.clamp(s.rate * (1.0 - kappa / 2.0), s.rate * (1.0 + g * rounds));
        }
    }
}
