//! Groups of packets by the time they were sent: the unit in which the controller measures (PROTOCOL.md §9).

use alloc::collections::VecDeque;
use core::time::Duration;

use timebase::Instant;

/// What the rate of an interval was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Normal,
    /// Slow on purpose, to see base loss and base delay.
    DeepProbe,
    /// A little slower on purpose, so that a very short queue is empty and shows what else delays.
    Glance,
}

#[derive(Clone, Debug)]
pub(super) struct Interval {
    pub(super) began: Instant,
    pub(super) ended: Option<Instant>,
    pub(super) purpose: Purpose,
    /// Number of cuts before it; a decision must not rest on packets sent before the last cut.
    pub(super) epoch: u32,
    pub(super) sent: u32,
    pub(super) sent_bytes: u64,
    /// Bytes the rate would have allowed but a busy machine did not send.
    pub(super) missed_bytes: u64,
    pub(super) acked: u32,
    pub(super) lost: u32,
    /// Packets the network marked (ECN CE), by the ACKs whose newest packet lies in it.
    pub(super) marked: u32,
    /// Runs of lost packets without one between them that arrived.
    pub(super) loss_runs: u32,
    pub(super) last_lost: Option<u64>,
    pub(super) rtt_min: Option<Duration>,
    pub(super) rtt_max: Duration,
    /// A packet train: left at once, not at the rate.
    pub(super) train: bool,
    /// One of its packets asks for an acknowledgement at once.
    pub(super) asked: bool,
    /// The application or a window, not the controller, held sending back.
    pub(super) limited: bool,
    /// Packets of it went to an address where the peer no longer was.
    pub(super) withdrawn: bool,
    /// (receiver's clock µs, bytes delivered) at the first ACK whose largest packet lies in it.
    pub(super) first_ack: Option<(u64, u64)>,
}

impl Interval {
    pub(super) fn duration(&self) -> Duration {
        self.ended.unwrap_or(self.began).saturating_since(self.began)
    }

    /// Bytes per second really sent.
    pub(super) fn send_rate(&self) -> f64 {
        self.sent_bytes as f64 / self.duration().as_secs_f64().max(1e-4)
    }

    pub(super) fn loss(&self) -> f64 {
        f64::from(self.lost) / f64::from(self.sent.max(1))
    }

    /// Whether the next packet, if it leaves `now`, begins another one.
    pub(super) fn is_full(&self, now: Instant, rtt: Duration, (shortest, packets): (Duration, u32)) -> bool {
        let age = now.saturating_since(self.began);
        let wanted = (rtt / 2).clamp(shortest, Duration::from_millis(250));
        let longest = rtt.max(Duration::from_millis(50)) * 4;
        age >= wanted && self.sent >= packets || age >= longest
    }

    fn is_settled(&self) -> bool {
        self.ended.is_some() && self.acked + self.lost >= self.sent
    }
}

/// Intervals not judged yet, oldest first; the last one is being filled.
#[derive(Debug)]
pub(super) struct Intervals {
    ring: VecDeque<Interval>,
    base: u32,
}

/// Intervals waiting to be judged; beyond that (silence of many round trips) the oldest go unjudged.
const MAX_WAITING: usize = 256;
/// Packets an interval has at least, unless it lasts too long.
pub(super) const MIN_PACKETS: u32 = 40;

impl Intervals {
    pub(super) fn new() -> Self {
        Self { ring: VecDeque::new(), base: 0 }
    }

    /// The interval a packet sent now belongs to; begins a new one if it is time, and the present one has so much time
    /// and so many packets at least.
    pub(super) fn on_sent(
        &mut self,
        now: Instant,
        bytes: usize,
        rtt: Duration,
        (shortest, packets): (Duration, u32),
        purpose: Purpose,
        epoch: u32,
        train: bool,
    ) -> u32 {
        if let Some(last) = self.ring.back_mut()
            && (last.is_full(now, rtt, (shortest, packets))
                || last.purpose != purpose
                || last.epoch != epoch
                || last.train != train)
        {
            last.ended = Some(now);
        }
        if self.ring.back().is_none_or(|l| l.ended.is_some()) {
            if self.ring.len() == MAX_WAITING {
                self.ring.pop_front();
                self.base = self.base.wrapping_add(1);
            }
            self.ring.push_back(Interval {
                began: now,
                ended: None,
                purpose,
                epoch,
                sent: 0,
                sent_bytes: 0,
                missed_bytes: 0,
                acked: 0,
                lost: 0,
                marked: 0,
                loss_runs: 0,
                last_lost: None,
                rtt_min: None,
                rtt_max: Duration::ZERO,
                train,
                asked: false,
                limited: false,
                withdrawn: false,
                first_ack: None,
            });
        }
        let id = self.base.wrapping_add(self.ring.len() as u32 - 1);
        if let Some(last) = self.ring.back_mut() {
            last.sent += 1;
            last.sent_bytes += bytes as u64;
        }
        id
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Interval> {
        self.ring.get_mut(id.wrapping_sub(self.base) as usize)
    }

    /// Bytes sent since the oldest interval not judged yet began, and when that was.
    pub(super) fn outstanding(&self) -> Option<(u64, Instant)> {
        let began = self.ring.front()?.began;
        Some((self.ring.iter().map(|i| i.sent_bytes).sum(), began))
    }

    /// Whether nobody asked for an acknowledgement in the present interval yet; now somebody does.
    pub(super) fn wants_ping(&mut self) -> bool {
        self.ring.back_mut().is_some_and(|i| !core::mem::replace(&mut i.asked, true))
    }

    pub(super) fn current_mut(&mut self) -> Option<&mut Interval> {
        self.ring.back_mut()
    }

    /// The oldest interval, if all its packets are settled, with the first ACK of what came after it.
    pub(super) fn pop_settled(&mut self) -> Option<(Interval, Option<(u64, u64)>)> {
        if !self.ring.front()?.is_settled() {
            return None;
        }
        let next = self.ring.iter().skip(1).find_map(|i| i.first_ack);
        self.base = self.base.wrapping_add(1);
        self.ring.pop_front().map(|i| (i, next))
    }
}
