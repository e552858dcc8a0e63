//! What the phases of the controller share: the rate, and what was measured of the path.

use core::time::Duration;

use timebase::Instant;

use super::base_loss::BaseLoss;
use super::buffer::Buffer;
use super::delivery::Delivery;
use super::held::Held;
use super::interval::{Interval, Purpose};
use super::longer::Longer;
use super::math::fourth_root;
use crate::Mode;
use crate::connection::pacing::QUANTUM_US;

/// The rate the constants below were tuned at: 1 Gbit/s.
pub(super) const REFERENCE: f64 = 125e6;
/// No path is taken to be faster: 100 Gbit/s.
pub(super) const MAX_RATE: f64 = 12.5e9;
/// Paths with a shorter round trip are judged as if it were this long: timers and schedulers are no finer.
pub(super) const MIN_RTT: Duration = Duration::from_millis(10);
/// Paths with a shorter round trip lie within a machine or a room: what delays there is schedulers and socket buffers.
pub(super) const LOCAL: Duration = Duration::from_micros(500);

/// Bytes in flight on a local path: nearly all of them wait in the peer's socket buffer, of unknown size, until it
/// overflows. The limit begins at the first number, shrinks with every loss and grows slowly without, between the
/// others: what a system gives at worst, and what is of use to the fastest.
pub(super) const LOCAL_LIMIT: [f64; 3] = [2e6, 96e3, 8e6];

/// How far above what arrives the rate may be on a local path, at least and at most. It begins and mostly stays at the
/// latter; but where more than [`LOCAL_LOSS`] is lost for [`LOCAL_PATIENCE`] intervals in a row, that is no stall but a
/// queue of a few packets which no delay shows.
pub(super) const LOCAL_EXCESS: [f64; 2] = [0.85, 2.6];
pub(super) const LOCAL_LOSS: f64 = 0.08;
pub(super) const LOCAL_PATIENCE: u32 = 4;

/// On shorter round trips, which are judged as if they were far longer, a packet in each is much.
pub(super) const NEAR: Duration = Duration::from_millis(2);

/// A path whose queue delay stays below this for [`Shared::peak`]'s memory has a queue too short to be seen.
pub(super) const UNSEEN: Duration = Duration::from_millis(2);

/// What the pacer lets go at once, in time at the rate (§8.7).
pub(super) const QUANTUM: Duration = Duration::from_micros(QUANTUM_US[0]);

/// A machine whose timers were late within this time does not tell so short a queue from its own doing.
const LATE_MEMORY: Duration = Duration::from_secs(10);

/// Where fewer packets pass in a round trip, a few of them take as long as the queue of a short way.
const FEWEST: f64 = 16.0;

/// On a near path the delivered rate is measured over so many round trips and packets at least, and over 100 ms at most.
const WINDOW_ROUNDS: u32 = 20;
const WINDOW_PACKETS: f64 = 400.0;

/// What the phases share: the rate and the measurements.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) mode: Mode,
    pub(super) packet: f64,
    pub(super) rate: f64,
    /// The rate at which congestion was last seen: R_max.
    pub(super) remembered: f64,
    pub(super) rtt: Duration,
    pub(super) rtt_min: Duration,
    pub(super) purpose: Purpose,
    pub(super) epoch: u32,
    pub(super) delivery: Delivery,
    pub(super) base_loss: BaseLoss,
    /// Whether enough was sent slowly for it to be known, as it is in Avoid.
    pub(super) is_loss_known: bool,
    /// Largest queue delay of the present and the previous quarter of a minute.
    pub(super) queue_peak: [Duration; 2],
    pub(super) peak_began: Instant,
    /// How much delay the path's queue can hold.
    pub(super) buffer: Buffer,
    /// Noise of the queue delay between neighbouring intervals.
    pub(super) jitter: Duration,
    pub(super) last_queue: Duration,
    pub(super) last_limited: Option<Instant>,
    /// Best delivered rate per quarter of the memory [`Shared::capacity`] has; the newest first.
    pub(super) best: [f64; 4],
    pub(super) best_began: Instant,
    /// See [`LOCAL_LIMIT`]; and when it shrank last.
    pub(super) local_limit: f64,
    pub(super) local_shrank: Instant,
    /// See [`LOCAL_EXCESS`]; and how many intervals in a row lost much.
    pub(super) local_excess: f64,
    pub(super) local_lossy: u32,
    /// Bytes sent since the interval being judged, and in what time.
    pub(super) since_judged: (u64, Duration),
    /// When a delay near the minimum was last seen.
    pub(super) last_near_minimum: Instant,
    /// The shortest round trip since the last deep probe, and when it was: a moment all flows on the path share.
    pub(super) low: Option<(Duration, Instant)>,
    /// What the path was seen to sustain while the sender was not held back; 0 before. For [`super::PathMemory`].
    pub(super) learned: f64,
    /// Bytes in flight at the last ACK.
    pub(super) in_flight: u64,
    /// The rate the path bore when it last showed a queue or loss beyond chance.
    pub(super) congested: f64,
    /// ACKs in a row that told of a queue far beyond what is aimed at.
    pub(super) flooded: u32,
    /// What the machine let us send of what the rate allowed, in the intervals judged last.
    pub(super) held: Held,
    pub(super) longer: Longer,
    /// When the path last became shorter at once.
    pub(super) path_since: Instant,
    /// When a timer was late last, and whether that was lately.
    pub(super) last_late: Option<Instant>,
    pub(super) late: bool,
}

impl Shared {
    pub(super) fn new(now: Instant, rtt: Duration, packet: f64, mode: Mode) -> Self {
        // 32 packets in 100 ms, or 10 in a round trip or 4 ms.
        let rate = (packet * 320.0).max(packet * 10.0 / rtt.as_secs_f64().max(4e-3));
        Self {
            mode,
            packet,
            rate,
            remembered: rate,
            rtt,
            rtt_min: rtt,
            purpose: Purpose::Normal,
            epoch: 0,
            delivery: Delivery::default(),
            base_loss: BaseLoss::new(),
            is_loss_known: false,
            queue_peak: [Duration::ZERO; 2],
            peak_began: now,
            buffer: Buffer::default(),
            jitter: Duration::ZERO,
            last_queue: Duration::ZERO,
            last_limited: None,
            best: [0.0; 4],
            best_began: now,
            local_limit: LOCAL_LIMIT[0],
            local_shrank: now,
            local_excess: LOCAL_EXCESS[1],
            local_lossy: 0,
            since_judged: (0, Duration::ZERO),
            last_near_minimum: now,
            low: None,
            learned: 0.0,
            in_flight: 0,
            congested: f64::INFINITY,
            flooded: 0,
            held: Held::default(),
            longer: Longer::default(),
            path_since: now,
            last_late: None,
            late: false,
        }
    }

    /// Queue delay of an interval: what even its luckiest packet waited.
    pub(super) fn queue(&self, i: &Interval) -> Duration {
        i.rtt_min.map_or(Duration::ZERO, |r| r.saturating_sub(self.rtt_min))
    }

    /// The round trip for decisions.
    pub(super) fn rtt(&self) -> Duration {
        self.rtt.max(MIN_RTT)
    }

    pub(super) fn peak(&self) -> Duration {
        self.queue_peak[0].max(self.queue_peak[1])
    }

    /// On a path of less than half a millisecond, a few milliseconds are the work of schedulers, not of queues.
    pub(super) fn is_local(&self) -> bool {
        self.rtt_min < LOCAL
    }

    /// Whether the way is so short that what the pacer lets go at once may be as much as the queue holds, and yet the
    /// latter can be told: more than a few packets, by a machine that is punctual.
    fn is_short(&self) -> bool {
        self.rtt_min < MIN_RTT / 2
            && !self.is_local()
            && !self.late
            && self.arriving().is_some_and(|a| FEWEST * self.packet <= a * self.rtt_min.as_secs_f64())
    }

    /// Whether the way is short, and it is known what its queue holds.
    pub(super) fn is_near(&self) -> bool {
        self.is_short() && self.room().is_some()
    }

    /// What arrived at best lately, and in the start, in the last few round trips.
    fn arriving(&self) -> Option<f64> {
        let some = self.rtt_min * WINDOW_ROUNDS / 2;
        self.capacity().or_else(|| self.delivery.rate(some.as_micros() as u64))
    }

    /// Bytes/s really sent in an interval: known to within what leaves at once, and within that, what was meant.
    pub(super) fn sent_rate(&self, i: &Interval) -> f64 {
        let sent = i.send_rate();
        let burst = QUANTUM.as_secs_f64() / i.duration().as_secs_f64().max(1e-3);
        self.rate.clamp(sent * (1.0 - burst), sent * (1.0 + burst))
    }

    /// How far the rate may be above what arrives. A local machine that sleeps half of the time must send twice as
    /// fast when it is awake; there, the limit of what is in flight protects the receiver.
    pub(super) fn headroom(&self) -> f64 {
        if self.is_local() { 2.0 } else { 1.0 }
    }

    /// Delay below which a queue counts as empty.
    pub(super) fn empty_below(&self) -> Duration {
        let floor = if self.is_local() { Duration::from_millis(4) } else { Duration::from_micros(1500) };
        let floor = match self.room() {
            Some(room) if !self.is_local() => floor.min(room.mul_f64(0.4).max(self.visible().mul_f64(0.75))),
            _ => floor,
        };
        floor.max(self.peak() / 4) + self.jitter.min(Duration::from_millis(20))
    }

    /// Q*: the standing queue aimed at. Falls with the rate, so that equal queues mean equal rates.
    pub(super) fn target(&self) -> Duration {
        let ms = 10.0 * fourth_root(REFERENCE / self.rate.max(1.0));
        let mut base = Duration::from_secs_f64(ms.clamp(3.0, 80.0) / 1e3);
        if self.is_local() {
            base = base.max(Duration::from_millis(10));
        }
        if self.mode == Mode::Background {
            base = base.min(Duration::from_millis(10)).min((self.peak() / 4).max(Duration::from_millis(2)));
        } else if self.mode == Mode::Fair {
            base /= 2;
        }
        let base = base + (self.jitter * 3 / 2).min(Duration::from_millis(60));
        if let Some(room) = self.room() {
            // A short queue is shared as a long one is: the ratio between targets at different rates stays, and that is
            // what makes rates equal.
            let scale = (room.as_secs_f64() / 0.057).min(1.0);
            let base = base
                .mul_f64(scale)
                .max(room.mul_f64(0.4).min(Duration::from_micros(2500)))
                .min(room.mul_f64(0.75));
            if self.is_near() {
                // What leaves at once comes on top of what stands.
                return base.min((room.saturating_sub(QUANTUM) / 2).max(room / 8));
            }
            return base;
        }
        base
    }

    /// d̄: bytes/s the peer lately received.
    pub(super) fn delivered(&self) -> Option<f64> {
        self.delivery.rate(self.window().as_micros() as u64)
    }

    /// Over what time d̄ is measured: long enough for noise to even out, and on a near path not so many round trips that
    /// it tells of long ago.
    pub(super) fn window(&self) -> Duration {
        if !self.is_near() {
            return self.rtt.max(Duration::from_millis(100));
        }
        let some = Duration::from_secs_f64((WINDOW_PACKETS * self.packet / self.rate.max(1.0)).min(0.1));
        (self.rtt_min * WINDOW_ROUNDS).max(some).min(Duration::from_millis(100)).max(self.rtt)
    }

    /// What the queue holds, if that is known; one shorter than [`UNSEEN`] only on a short way, and if delays do not vary
    /// by more on their own.
    pub(super) fn room(&self) -> Option<Duration> {
        let fits = |room| self.is_short() && self.jitter * 2 <= room;
        self.buffer.room().filter(|&room| self.buffer.taught() >= UNSEEN || fits(room))
    }

    /// What an interval lost beyond chance while the queue was at its longest tells how much it holds.
    pub(super) fn learn_room(&mut self, now: Instant, i: &Interval, queue: Duration) {
        if i.lost == 0 || i.rtt_min.is_none() || !self.is_loss_known {
            return;
        }
        let longest = i.rtt_max.saturating_sub(self.rtt_min);
        // Where delays vary by themselves, the longest is no queue's.
        let longest = if self.jitter > Duration::from_millis(1) { longest.min(queue * 4) } else { longest };
        let (sent, lost, p) = (f64::from(i.sent), f64::from(i.lost), self.base_loss.estimate());
        let chance = if p > 0.0 { sent * (p + 3.5 * self.base_loss.sigma(p, sent)) + 1.0 } else { 0.0 };
        if lost > chance {
            self.buffer.on_loss(now, longest, self.visible());
        }
    }

    /// The shortest queue that is told from noise.
    pub(super) fn visible(&self) -> Duration {
        if !self.is_short() {
            return UNSEEN;
        }
        // A large packet takes longer than a small one, by this at most.
        let rate = self.arriving().map_or(self.rate, |a| a.min(self.rate)).max(1.0);
        let packets = Duration::from_secs_f64((2.0 * self.packet / rate).min(1.0));
        (self.rtt_min / 4).max(packets).max(self.jitter * 2).min(UNSEEN)
    }

    /// The best delivered rate of the last second or ten round trips: a machine that did not get to run for some
    /// milliseconds, or acknowledgements that came late, say nothing about the path.
    pub(super) fn capacity(&self) -> Option<f64> {
        let best = self.best.iter().copied().fold(0.0, f64::max);
        (best > 0.0).then_some(best)
    }

    pub(super) fn remember_best(&mut self, now: Instant) {
        self.late = self.last_late.is_some_and(|t| now.saturating_since(t) < LATE_MEMORY);
        let quarter = (self.rtt * 5 / 2).max(Duration::from_millis(250));
        if now.saturating_since(self.best_began) >= quarter {
            self.best.rotate_right(1);
            self.best[0] = 0.0;
            self.best_began = now;
        }
        if let Some(d) = self.delivered() {
            self.best[0] = self.best[0].max(d);
        }
    }

    /// R: the rate that would just be delivered, d̄/(1 − p̂).
    pub(super) fn sustainable(&self) -> Option<f64> {
        let d = if self.is_local() { self.capacity() } else { self.delivered() };
        // Where no queue stands, what a busy machine did not send would have arrived as well.
        let held =
            if self.last_queue < self.target() / 2 && !self.is_local() { self.held.factor() } else { 1.0 };
        d.map(|d| held * d / (1.0 - self.base_loss.estimate()))
    }

    /// The highest R of the last second or ten round trips.
    pub(super) fn best(&self) -> Option<f64> {
        self.capacity().map(|c| c / (1.0 - self.base_loss.estimate()))
    }

    /// Whether the delivered rate tells of the application rather than of the path.
    pub(super) fn is_limited(&self, now: Instant) -> bool {
        let memory = self.rtt() * 2 + Duration::from_millis(100);
        self.last_limited.is_some_and(|t| now.saturating_since(t) < memory)
    }

    /// The lowest rate: two packets in a round trip.
    pub(super) fn floor(&self) -> f64 {
        2.0 * self.packet / self.rtt.as_secs_f64().max(0.01)
    }

    /// What was delivered lately is no measure of the path.
    pub(super) fn forget_delivered(&mut self) {
        self.delivery.clear_points();
        self.best = [0.0; 4];
        self.purpose = Purpose::Normal;
    }

    /// Slower than what the path was seen to bear, `lost` of `sent` were lost: the base loss is no more than that. Of
    /// use only where no delay shows the queue; else what is lost while it is seen empty tells more, and all flows the
    /// same.
    pub(super) fn sent_slower(&mut self, sent: f64, lost: f64) {
        if self.peak() < self.visible() {
            self.base_loss.add_slower(sent, lost);
        }
    }

    /// What is known of delays and of the queue belongs to a path that is no more.
    pub(super) fn forget_path(&mut self, now: Instant) {
        self.queue_peak = [Duration::ZERO; 2];
        self.buffer = Buffer::default();
        self.last_queue = Duration::ZERO;
        self.flooded = 0;
        self.low = None;
        self.last_near_minimum = now;
        self.forget_delivered();
    }

    /// Sets the rate in answer to congestion: what was sent before tells nothing about it.
    pub(super) fn cut(&mut self, now: Instant, rate: f64) {
        self.rate = rate;
        self.epoch = self.epoch.wrapping_add(1);
        self.base_loss.restart(now);
    }
}
