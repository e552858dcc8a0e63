//! What an ACK tells, what is lost, and when to probe (PROTOCOL.md §8.4–§8.6, §8.8).

use core::time::Duration;

use timebase::Instant;

use super::mtu;
use super::rtt::MAX_ACK_INTERVAL;
use super::scoreboard::{Chunk, Fate, Sent};
use super::session::{Fault, Session};
use crate::Event;
use crate::congestion::AckSample;
use crate::wire::ack::Ack;

const REORDERING_FADES: Duration = Duration::from_secs(1);

/// Probes that carry data; those after them are PINGs.
const DATA_PROBES: u32 = 3;
/// Longest time between probes of an outage: with half a second of RTT the first packet after it is still
/// acknowledged within a second. 30-byte packets at this pace are 100 bytes/s.
const OUTAGE_PROBE: Duration = Duration::from_millis(300);

impl Session {
    /// `at`: when the datagram with the ACK reached this host, at or before `now`.
    pub(crate) fn on_ack(&mut self, now: Instant, at: Instant, ack: &Ack<'_>) -> Result<(), Fault> {
        if ack.largest >= self.sent.next_number() {
            return Err(Fault::Violation("acknowledged a packet that was never sent"));
        }
        self.stats.acks_received += 1;
        let base = self.sent.base();
        let mut acked_bytes = 0;
        let mut sample = None;
        let mut told = false;
        for (low, high) in ack.ranges() {
            self.seal.on_acked(high);
            if self.mtu.on_probe_acked(low, high) {
                self.resize(now);
            }
            if !told && let Some(number) = self.received.pending_within(low, high) {
                self.received.on_ack_of(number);
                told = true;
            }
            if high < base {
                break;
            }
            for number in low.max(base)..=high {
                let Some(sent) = self.sent.get(number).copied() else { continue };
                match sent.fate {
                    Fate::Acked => continue,
                    Fate::Skipped => return Err(Fault::Violation("acknowledged a number that was left out")),
                    Fate::Quiet => {}
                    Fate::Lost => {
                        self.stats.spurious_losses += 1;
                        self.stats.lost_packets = self.stats.lost_packets.saturating_sub(1);
                        self.on_reordered(now, &sent);
                        self.controller.on_spurious(sent.interval, u64::from(sent.size));
                        acked_bytes += u64::from(sent.size);
                    }
                    Fate::Outstanding => {
                        self.controller.on_acked(sent.interval, u64::from(sent.size));
                        self.mtu.on_acked(number, sent.size);
                        acked_bytes += u64::from(sent.size);
                        if number == ack.largest {
                            let hold = Duration::from_micros(ack.hold_us);
                            // A receive time before the sending is a clock's fault.
                            let at = if at > sent.at { at } else { now };
                            let rtt = at.saturating_since(sent.at).saturating_sub(hold);
                            self.rtt.sample(now, rtt);
                            sample = Some((rtt.max(Duration::from_micros(1)), sent.interval));
                        }
                        if self.newest_acked.is_none_or(|(n, _)| number > n) {
                            self.newest_acked = Some((number, sent.at));
                            self.newest_acked_size = sent.size;
                        }
                    }
                }
                self.sent.settle(number, Fate::Acked);
                self.on_delivered(&sent);
            }
        }
        if acked_bytes > 0 {
            (self.probe_backoff, self.probes) = (0, 0);
            self.probe_from = now;
        }
        self.detect_losses(now);
        self.controller.on_ack(
            now,
            &AckSample {
                rtt: sample,
                smoothed: self.rtt.smoothed(),
                min: self.rtt.min(),
                arrival_us: ack.arrival_us,
                acked_bytes,
            },
        );
        self.update_pacer(now);
        while let Some(tag) = self.blocks.pop_done() {
            self.events.push_back(Event::BlockSent { tag });
        }
        Ok(())
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

    /// A packet declared lost arrived: be more patient from now on.
    fn on_reordered(&mut self, now: Instant, sent: &Sent) {
        if let Some((_, newest)) = self.newest_acked {
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
            let Some(sent) = self.sent.get(number).copied() else { break };
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
        // A lost packet's record is kept for two round trips, to notice that it was not lost.
        self.sent.trim(now - self.rtt.smoothed() * 3 - Duration::from_millis(20));
    }

    fn on_lost(&mut self, now: Instant, number: u64, sent: &Sent) {
        self.sent.settle(number, Fate::Lost);
        self.stats.lost_packets += 1;
        if number < self.path.former_below() {
            // Settled, and neither congestion nor a matter of size.
            self.controller.on_withdrawn(sent.interval, u64::from(sent.size));
        } else {
            match self.mtu.on_lost(number, sent.size, self.newest_acked_size, self.sent.next_number()) {
                mtu::Loss::Usual => self.controller.on_lost(sent.interval),
                mtu::Loss::HoleFound => {
                    // Where the size changes, the route did; and what did not arrive meanwhile is no measure of the
                    // rate.
                    self.controller.on_black_hole(now);
                    self.resize(now);
                }
                // Settled, and no congestion.
                mtu::Loss::InHole => self.controller.on_acked(sent.interval, 0),
            }
        }
        if self.window_told_in == Some(number) {
            self.tell_window = true;
        }
        let mut i = 0;
        while let Some(chunk) = self.sent.chunk(sent, i) {
            self.resend(chunk, false);
            i += 1;
        }
    }

    /// A new address of the peer is proven: what was sent before it was used went elsewhere, and is no sign of
    /// congestion (§10.3). By now the acknowledgement of all that arrived has come along with the RESPONSE.
    pub(super) fn withdraw_below(&mut self, now: Instant, first_number: u64) {
        let mut number = self.loss_scan.max(self.sent.base());
        while number < first_number {
            let Some(sent) = self.sent.get(number).copied() else { break };
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
        (self.sent.in_flight_packets() > 0)
            .then(|| self.probe_from.max(self.last_eliciting) + self.probe_interval())
    }

    /// PTO, doubled each time, but never so long that the end of an outage goes unnoticed for long (§8.6).
    fn probe_interval(&self) -> Duration {
        let pto = self.probe_timeout();
        let doubled = pto * (1 << self.probe_backoff.min(10));
        // The first ones carry data: on a slow path they wait for their answer.
        let most = if self.probe_backoff < DATA_PROBES { pto.max(OUTAGE_PROBE) } else { OUTAGE_PROBE };
        doubled.min(most)
    }

    /// Nothing was acknowledged for too long: send the oldest pieces again, whatever windows say.
    pub(super) fn on_probe_timeout(&mut self, now: Instant) {
        self.stats.probe_timeouts += 1;
        self.probe_backoff += 1;
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
        while let Some(sent) = self.sent.get(number).copied()
            && found < 2
        {
            number += 1;
            if sent.fate != Fate::Outstanding {
                continue;
            }
            found += 1;
            if self.window_told_in == Some(number - 1) {
                self.tell_window = true;
            }
            let mut i = 0;
            while let Some(chunk) = self.sent.chunk(&sent, i) {
                self.resend(chunk, true);
                i += 1;
            }
        }
    }
}
