//! What an ACK tells, what is lost, and when to probe (PROTOCOL.md §8.4–§8.6, §8.8).

use core::time::Duration;

use timebase::Instant;

use super::State;
use super::mtu;
use super::received::{FIRST_PACKETS, MAX_ACK_INTERVAL, Rhythm, STEADY_PACKETS};
use super::scoreboard::{Chunk, Fate, Sent};
use super::session::{Fault, Session};
use crate::Event;
use crate::control::AckSample;
use crate::wire::ack::Ack;

const REORDERING_FADES: Duration = Duration::from_secs(1);

/// Probes that carry data; those after them are PINGs.
const DATA_PROBES: u32 = 2;
/// So many PINGs follow each other this closely, or RTT/8; later ones wait this much longer each. A burst of losses on
/// the way back may swallow dozens of answers, and then it is no outage: the sooner there is another the better.
const QUICK_PINGS: u32 = 96;
const PING_PROBE: Duration = Duration::from_millis(10);
const PING_SLOWER: Duration = Duration::from_millis(4);
/// Longest time between probes of an outage: with half a second of RTT the first packet after it is still
/// acknowledged within a second. 30-byte packets at this pace are 100 bytes/s.
const OUTAGE_PROBE: Duration = Duration::from_millis(300);

/// Packets of up to so many bytes carry no data.
const BARE: u16 = 128;

/// What an ACK told that was not known.
#[derive(Debug, Default)]
struct News {
    bytes: u64,
    /// Round trip time by the largest number, and the controller's interval it belongs to.
    sample: Option<(Duration, u32)>,
    /// When that packet left, and how many bytes it had.
    sample_left: Instant,
    sample_size: u16,
    /// Interval and number of the newest packet.
    newest: Option<(u32, u64)>,
    /// Packets sent with an ECN mark.
    marked: u64,
}

#[cfg(test)]
impl Session {
    /// As if a packet of so many bytes had left.
    pub(crate) fn pretend_to_send(&mut self, now: Instant, size: usize) {
        self.sent.push(now, size, 0, Fate::Outstanding, 0);
    }

    /// Packets declared lost, and those that arrived after all.
    pub(crate) fn losses(&self) -> (u64, u64) {
        (self.stats.lost_packets, self.stats.spurious_losses)
    }
}

impl Session {
    /// `at`: when the datagram with the ACK reached this host, at or before `now`.
    pub(crate) fn on_ack(&mut self, now: Instant, at: Instant, ack: &Ack<'_>) -> Result<(), Fault> {
        if ack.largest >= self.sent.next_number() {
            return Err(Fault::Violation("acknowledged a packet that was never sent"));
        }
        self.stats.acks_received += 1;
        let before = self.newest_acked;
        let mut news = News::default();
        let mut told = false;
        self.seal.on_acked(ack.largest);
        let (base, oldest) = (self.sent.base(), self.sent.oldest());
        for (low, high) in ack.ranges() {
            if self.mtu.on_probe_acked(low, high) {
                self.resize(now);
            }
            if !told && let Some(number) = self.received.pending_within(low, high) {
                self.received.on_ack_of(number);
                told = true;
            }
            // Newest first: below the oldest record nothing is left to learn.
            if high < oldest {
                break;
            }
            // Ranges are repeated many times (§8.3): only what is new in them is walked.
            let mut number = low.max(oldest);
            while number <= high {
                let stop = match self.known.end_of(number) {
                    Ok(end) => {
                        number = end;
                        continue;
                    }
                    Err(next) => next.map_or(high, |n| high.min(n - 1)),
                };
                self.fresh.push((number, stop + 1));
                while number < base.min(stop + 1) {
                    let Some((ghost, sent)) = self.sent.take_ghost(number, stop.min(base - 1)) else {
                        number = base.min(stop + 1);
                        break;
                    };
                    self.on_acked_after_all(now, &sent, before, &mut news);
                    self.on_delivered(&sent);
                    number = ghost + 1;
                }
                while number <= stop {
                    self.on_newly_acked(now, at, number, ack, before, &mut news)?;
                    number += 1;
                }
            }
        }
        self.known.insert_all(&mut self.fresh);
        if news.bytes > 0 {
            (self.probe_backoff, self.probes, self.held) = (0, 0, None);
            self.probe_from = now;
        }
        let marked = self.ecn.on_ack(ack.largest, news.marked, ack.counts);
        if marked > 0
            && let Some((interval, _)) = news.newest
        {
            self.stats.marked_packets += marked;
            self.controller.on_marked(interval, u32::try_from(marked).unwrap_or(u32::MAX));
        }
        self.detect_losses(now);
        let longer = self.controller.on_ack(
            now,
            &AckSample {
                rtt: news.sample,
                left: news.sample_left,
                bare: news.sample_size <= BARE,
                smoothed: self.rtt.smoothed(),
                min: self.rtt.min(),
                arrival_us: ack.arrival_us,
                acked_bytes: news.bytes,
                in_flight: self.sent.in_flight_bytes(),
            },
        );
        if let Some(min) = longer {
            self.rtt.lengthen(now, min);
        }
        self.update_pacer(now);
        self.update_rhythm();
        while let Some(tag) = self.blocks.pop_done() {
            self.events.push_back(Event::BlockSent { tag });
        }
        Ok(())
    }

    fn on_newly_acked(
        &mut self,
        now: Instant,
        at: Instant,
        number: u64,
        ack: &Ack<'_>,
        before: Option<(u64, Instant)>,
        news: &mut News,
    ) -> Result<(), Fault> {
        let Some(sent) = self.sent.get(number) else { return Ok(()) };
        match sent.fate {
            Fate::Acked => return Ok(()),
            Fate::Skipped => return Err(Fault::Violation("acknowledged a number that was left out")),
            Fate::Quiet => {}
            Fate::Lost => self.on_acked_after_all(now, &sent, before, news),
            Fate::Outstanding => {
                self.controller.on_acked(sent.interval, u64::from(sent.size));
                self.mtu.on_acked(number, sent.size);
                news.bytes += u64::from(sent.size);
                if number == ack.largest {
                    let hold = Duration::from_micros(ack.hold_us);
                    // A receive time before the sending is a clock's fault.
                    let at = if at > sent.at { at } else { now };
                    let rtt = at.saturating_since(sent.at).saturating_sub(hold);
                    self.rtt.sample(now, rtt);
                    news.sample = Some((rtt.max(Duration::from_micros(1)), sent.interval));
                    (news.sample_left, news.sample_size) = (sent.at, sent.size);
                }
                if news.newest.is_none_or(|(_, n)| number > n) {
                    news.newest = Some((sent.interval, number));
                }
                if self.newest_acked.is_none_or(|(n, _)| number > n) {
                    self.newest_acked = Some((number, sent.at));
                    self.newest_acked_size = sent.size;
                }
                // Overtaken by what an earlier ACK told of: how far says how patient to be with others.
                if before.is_some_and(|(n, _)| number < n) {
                    self.on_reordered(now, &sent, before);
                }
            }
        }
        news.marked += u64::from(self.ecn.counts_packet(number));
        self.sent.settle(number, Fate::Acked);
        if self.ticket_told_in == Some(number) {
            (self.ticket, self.ticket_told_in, self.tell_ticket) = (None, None, false);
        }
        self.on_delivered(&sent);
        Ok(())
    }

    /// A packet declared lost arrived.
    fn on_acked_after_all(
        &mut self,
        now: Instant,
        sent: &Sent,
        before: Option<(u64, Instant)>,
        news: &mut News,
    ) {
        self.stats.spurious_losses += 1;
        self.stats.lost_packets = self.stats.lost_packets.saturating_sub(1);
        self.on_reordered(now, sent, before);
        self.controller.on_spurious(sent.interval, u64::from(sent.size));
        news.bytes += u64::from(sent.size);
    }

    fn on_delivered(&mut self, sent: &Sent) {
        let mut i = 0;
        while let Some(chunk) = self.sent.chunk(sent, i) {
            i += 1;
            match chunk {
                Chunk::Block { block, offset, len } => self.blocks.on_acked(block, offset, u32::from(len)),
                Chunk::Message { offset, len } => {
                    if self.messages_out.on_acked(offset, usize::from(len)) {
                        self.events.push_back(Event::MessagesWritable);
                    }
                }
            }
        }
    }

    /// A packet arrived after ones sent later: be more patient from now on. `before` is the newest that an earlier ACK
    /// told of; what came along with the packet itself may have been behind it.
    fn on_reordered(&mut self, now: Instant, sent: &Sent, before: Option<(u64, Instant)>) {
        if let Some((_, newest)) = before {
            let by = newest.saturating_since(sent.at).min(self.rtt.smoothed() + Duration::from_millis(10));
            if by > self.reordering.seen {
                self.reordering.seen = by;
                self.reordering.faded = now;
            }
        }
    }

    /// W of §8.5.
    fn reorder_window(&mut self, now: Instant) -> Duration {
        while now.saturating_since(self.reordering.faded) >= REORDERING_FADES {
            self.reordering.faded += REORDERING_FADES;
            self.reordering.seen = self.reordering.seen * 9 / 10;
            if self.reordering.seen < Duration::from_micros(100) {
                self.reordering.seen = Duration::ZERO;
                self.reordering.faded = now;
            }
        }
        let rtt = self.rtt.smoothed();
        (rtt / 8)
            .max(Duration::from_millis(1))
            .max(self.reordering.seen * 5 / 4)
            .min(rtt + Duration::from_millis(10))
    }

    pub(super) fn detect_losses(&mut self, now: Instant) {
        self.loss_deadline = None;
        let Some((newest, newest_at)) = self.newest_acked else { return };
        let w = self.reorder_window(now);
        let overdue = newest_at - w;
        let patience = self.rtt.patience() + w + MAX_ACK_INTERVAL;
        let mut number = self.loss_scan.max(self.sent.base());
        while number < newest {
            let Some(sent) = self.sent.get(number) else { break };
            if sent.fate == Fate::Outstanding {
                // Packets left in the order of their numbers: once one is not lost, none after it is.
                if sent.at > overdue && sent.at + patience > now {
                    self.loss_deadline = Some(sent.at + patience);
                    break;
                }
                self.on_lost(now, number, &sent);
            }
            number += 1;
        }
        self.loss_scan = number;
        // A lost packet's record is kept for a while (§8.5), to notice that it was not lost.
        self.sent.trim(now - self.rtt.smoothed() * 3 - Duration::from_millis(20));
        self.known.remove_below(self.sent.oldest());
    }

    /// Asks the peer for the acknowledgements that this side's sending needs, when it needs others (§8.1).
    fn update_rhythm(&mut self) {
        // A beginner's first packets want an answer each; a steady flow pays with 1 % of its rate for one in ten.
        let packets =
            if self.controller.state() == State::FastStart { FIRST_PACKETS } else { STEADY_PACKETS };
        let wanted = Rhythm { interval: self.rtt.ack_interval(), packets };
        let (told, _) = self.rhythm_told;
        let other = told.packets != packets || told.interval.abs_diff(wanted.interval) > told.interval / 4;
        if other && self.stats.data_bytes_sent > 0 {
            self.tell_rhythm = true;
        }
    }

    fn on_lost(&mut self, now: Instant, number: u64, sent: &Sent) {
        self.sent.settle(number, Fate::Lost);
        self.stats.lost_packets += 1;
        if number < self.path.former_below() {
            // Settled, and neither congestion nor a matter of size.
            self.controller.on_withdrawn(sent.interval, u64::from(sent.size));
        } else {
            match self.mtu.on_lost(number, sent.size, self.newest_acked_size, self.sent.next_number()) {
                mtu::Loss::Usual => self.controller.on_lost(sent.interval, number),
                mtu::Loss::HoleFound => {
                    // Settled as well, or its interval would hold up the judgement of all after it.
                    self.controller.on_acked(sent.interval, 0);
                    // Where the size changes, the route did; and what did not arrive meanwhile is no measure of the
                    // rate.
                    self.controller.on_black_hole(now);
                    self.resize(now);
                }
                // Settled, and no congestion.
                mtu::Loss::InHole => self.controller.on_acked(sent.interval, 0),
            }
        }
        self.tell_again(number, sent, false);
    }

    /// What packet `number` told is told again; `at_once`, whatever windows say.
    fn tell_again(&mut self, number: u64, sent: &Sent, at_once: bool) {
        self.tell_window |= self.window_told_in == Some(number);
        self.tell_rhythm |= self.rhythm_told.1 == number;
        self.tell_ticket |= self.ticket_told_in == Some(number);
        let mut i = 0;
        while let Some(chunk) = self.sent.chunk(sent, i) {
            self.resend(chunk, at_once);
            i += 1;
        }
    }

    /// A new address of the peer is proven: what was sent before it was used went elsewhere, and is no sign of
    /// congestion (§10.3). By now the acknowledgement of all that arrived has come along with the RESPONSE.
    pub(super) fn withdraw_below(&mut self, now: Instant, first_number: u64) {
        let mut number = self.loss_scan.max(self.sent.base());
        while number < first_number {
            let Some(sent) = self.sent.get(number) else { break };
            if sent.fate == Fate::Outstanding {
                self.on_lost(now, number, &sent);
            }
            number += 1;
        }
    }

    /// PTO of §8.6, not yet doubled.
    pub(super) fn probe_timeout(&self) -> Duration {
        let wait = self.rtt.patience() + self.rtt.ack_interval() * 2 + Duration::from_millis(5);
        wait.max(Duration::from_millis(10))
    }

    /// How long an MTU probe may take to be acknowledged.
    pub(super) fn mtu_patience(&self) -> Duration {
        self.rtt.patience() + MAX_ACK_INTERVAL
    }

    pub(super) fn probe_deadline(&self) -> Option<Instant> {
        if self.sent.in_flight_packets() == 0 {
            return None;
        }
        let interval = self.probe_interval();
        let usual = self.probe_from.max(self.last_eliciting) + interval;
        // As long as data leaves, answers to it come; while it may not, PINGs take its place as soon as the oldest
        // answer is overdue.
        let early = self.held.filter(|_| self.probe_backoff == 0).map(|oldest| oldest + interval);
        Some(early.map_or(usual, |e| e.min(usual)))
    }

    /// When the oldest packet left whose fate is not known.
    pub(super) fn oldest_outstanding(&self) -> Option<Instant> {
        let mut number = self.loss_scan.max(self.sent.base());
        loop {
            let sent = self.sent.get(number)?;
            if sent.fate == Fate::Outstanding {
                return Some(sent.at);
            }
            number += 1;
        }
    }

    /// PTO, doubled each time, but never so long that the end of an outage goes unnoticed for long (§8.6).
    fn probe_interval(&self) -> Duration {
        let pto = self.probe_timeout();
        if let Some(pings) = self.probe_backoff.checked_sub(DATA_PROBES + 1) {
            let first = PING_PROBE.max(self.rtt.smoothed() / 8);
            let slower = PING_SLOWER * pings.saturating_sub(QUICK_PINGS).min(100);
            return (first + slower).min(OUTAGE_PROBE);
        }
        let doubled = pto * (1 << self.probe_backoff.min(10));
        // The first ones carry data: on a slow path they wait for their answer.
        let most = if self.probe_backoff < DATA_PROBES { pto.max(OUTAGE_PROBE) } else { OUTAGE_PROBE };
        doubled.min(most)
    }

    /// Nothing was acknowledged for too long: send the oldest pieces again, whatever windows say.
    pub(super) fn on_probe_timeout(&mut self, now: Instant) {
        self.stats.probe_timeouts += 1;
        if self.held.is_some() {
            // More data is what may not be sent; what is missing is known as soon as a PING is answered.
            self.probe_backoff = self.probe_backoff.max(DATA_PROBES);
        }
        self.probe_backoff += 1;
        self.ecn.on_probe_timeout(self.probe_backoff);
        self.probe_from = now;
        self.ping = true;
        if self.probe_backoff > DATA_PROBES {
            // An outage: a PING finds out when it ends as well as data does, in 30 bytes.
            self.probes = 0;
            return;
        }
        self.probes = 2;
        let mut number = self.loss_scan.max(self.sent.base());
        let mut found = 0;
        while let Some(sent) = self.sent.get(number)
            && found < 2
        {
            if sent.fate == Fate::Outstanding {
                found += 1;
                self.tell_again(number, &sent, true);
            }
            number += 1;
        }
    }
}
