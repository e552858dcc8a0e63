//! Whether the path carries ECN marks truthfully, and what they say: RFC 9000 §13.4 in this protocol (PROTOCOL.md §8.9).

use crate::Ecn;

/// Packets received by their mark, since the connection began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ect0: u64,
    pub(crate) ect1: u64,
    pub(crate) ce: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, ecn: Ecn) {
        match ecn {
            Ecn::NotEct => {}
            Ecn::Ect0 => self.ect0 += 1,
            Ecn::Ect1 => self.ect1 += 1,
            Ecn::Ce => self.ce += 1,
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Marked packets are sent; nothing is known yet.
    Testing,
    Capable,
    /// Something did not add up: not marked any more on this path.
    Off,
}

/// Marked packets that must not all come back as CE: a path that sets the bit blindly.
const TEST_PACKETS: u64 = 10;
/// Probe timeouts in a row, with nothing acknowledged since the start, that blame the mark.
const TEST_TIMEOUTS: u32 = 2;

/// The sender's side.
#[derive(Clone, Debug)]
pub(crate) struct EcnSender {
    state: State,
    /// The first packet sent marked on this path, and how many were.
    from: u64,
    sent: u64,
    /// What the peer told last, and before this path.
    counts: Counts,
    start: Counts,
    /// The largest acknowledged number of the ACKs that were looked at, plus one.
    seen: u64,
}

impl EcnSender {
    /// From packet `next` on.
    pub(crate) fn new(next: u64) -> Self {
        let counts = Counts::default();
        Self { state: State::Testing, from: next, sent: 0, counts, start: counts, seen: next }
    }

    /// Another path: the test begins anew with packet `next`.
    pub(crate) fn reset(&mut self, next: u64) {
        *self = Self { counts: self.counts, start: self.counts, ..Self::new(next) };
    }

    /// The mark to send.
    pub(crate) fn mark(&self) -> Ecn {
        if self.state == State::Off { Ecn::NotEct } else { Ecn::Ect0 }
    }

    /// Whether marks are in use and were seen to work.
    pub(crate) fn is_capable(&self) -> bool {
        self.state == State::Capable
    }

    pub(crate) fn on_sent(&mut self, packets: usize) {
        if self.state != State::Off {
            self.sent += packets as u64;
        }
    }

    /// Whether the packet was sent marked; to be asked for newly acknowledged ones.
    #[inline]
    pub(crate) fn counts_packet(&self, number: u64) -> bool {
        self.state != State::Off && number >= self.from
    }

    pub(crate) fn on_probe_timeout(&mut self, backoff: u32) {
        if self.state == State::Testing && backoff >= TEST_TIMEOUTS {
            self.state = State::Off;
        }
    }

    /// An ACK up to `largest` told of `newly` packets sent marked for the first time. Returns how many packets were
    /// marked by the network since the last.
    pub(crate) fn on_ack(&mut self, largest: u64, newly: u64, told: Option<Counts>) -> u64 {
        if self.state == State::Off || largest < self.seen {
            return 0;
        }
        self.seen = largest + 1;
        let Some(told) = told else {
            if newly > 0 {
                self.state = State::Off;
            }
            return 0;
        };
        let last = self.counts;
        let shrunk = told.ect0 < last.ect0 || told.ect1 < last.ect1 || told.ce < last.ce;
        if shrunk {
            self.state = State::Off;
            return 0;
        }
        self.counts = told;
        // Packets of the path before may still be counted, so the upper bound is theirs as well.
        let marked = (told.ect0 - last.ect0) + (told.ce - last.ce);
        let total = (told.ect0 - self.start.ect0) + (told.ce - self.start.ce);
        let ce = told.ce - last.ce;
        let blind = self.state == State::Testing && total == told.ce - self.start.ce && total >= TEST_PACKETS;
        if marked < newly || told.ect1 > self.start.ect1 || total > self.sent + self.from || blind {
            self.state = State::Off;
            return 0;
        }
        if newly > 0 && (told.ect0 > self.start.ect0 || self.state == State::Capable) {
            self.state = State::Capable;
        }
        ce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(ect0: u64, ect1: u64, ce: u64) -> Option<Counts> {
        Some(Counts { ect0, ect1, ce })
    }

    #[test]
    fn counters_that_add_up_make_the_path_capable_and_give_the_marks() {
        let mut e = EcnSender::new(0);
        e.on_sent(100);
        assert_eq!((e.mark(), e.is_capable()), (Ecn::Ect0, false));
        assert_eq!(e.on_ack(9, 10, counts(9, 0, 1)), 1);
        assert!(e.is_capable());
        assert_eq!(e.on_ack(5, 0, counts(3, 0, 0)), 0, "an old ACK says nothing");
        assert_eq!(e.on_ack(20, 5, counts(14, 0, 6)), 5, "more counted than could be told is fine");
        e.reset(50);
        assert!(!e.is_capable() && e.counts_packet(50) && !e.counts_packet(49));
        e.on_sent(10);
        assert_eq!(e.on_ack(55, 5, counts(20, 0, 6)), 0);
        assert!(e.is_capable());
    }

    #[test]
    fn anything_else_ends_the_marking() {
        let cases: [(&str, u64, Option<Counts>); 6] = [
            ("no counters", 10, None),
            ("marks erased", 10, counts(3, 0, 0)),
            ("ECT(1)", 10, counts(9, 1, 1)),
            ("more than sent", 10, counts(101, 0, 0)),
            ("all CE", 10, counts(0, 0, 10)),
            ("fewer than before", 0, counts(0, 0, 0)),
        ];
        for (what, newly, told) in cases {
            let mut e = EcnSender::new(0);
            e.on_sent(100);
            if newly == 0 {
                e.on_ack(1, 1, counts(2, 0, 0));
            }
            e.on_ack(9, newly, told);
            assert_eq!(e.mark(), Ecn::NotEct, "{what}");
            e.reset(100);
            assert_eq!(e.mark(), Ecn::Ect0, "another path, another chance");
        }
        let mut e = EcnSender::new(0);
        e.on_probe_timeout(1);
        assert_eq!(e.mark(), Ecn::Ect0);
        e.on_probe_timeout(2);
        assert_eq!(e.mark(), Ecn::NotEct);
    }
}
