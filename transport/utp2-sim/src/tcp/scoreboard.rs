//! What a TCP sender knows of its segments: selective acknowledgements (RFC 2018), loss by what was
//! acknowledged above (RFC 6675), loss of retransmissions by time (as in RFC 8985).

use core::time::Duration;
use std::collections::VecDeque;

use timebase::Instant;
use utp2::RangeSet;

/// Segments acknowledged above one before it is lost (RFC 6675).
const DUP_THRESHOLD: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Sent once.
    Flying,
    /// To be sent again.
    Lost,
    /// Sent again.
    Again,
    /// The receiver has it.
    Sacked,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    sent: Instant,
    state: State,
}

/// What one acknowledgement told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Segments that are now known to have arrived.
    pub(super) arrived: u64,
    /// Segments found lost.
    pub(super) lost: u64,
    /// Round trip of a segment that was sent only once.
    pub(super) rtt: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Scoreboard {
    /// The first segment not acknowledged; `segments[0]`.
    una: u64,
    segments: VecDeque<Segment>,
    /// Acknowledged above.
    sacked: RangeSet,
    in_flight: u64,
    lost: u64,
    /// No segment below is `Lost`.
    lost_from: u64,
    /// All segments below were held against [`DUP_THRESHOLD`].
    judged: u64,
    /// Segments sent again, in order of sending.
    again: VecDeque<(u64, Instant)>,
    /// When the latest of those that arrived was sent.
    latest: Instant,
}

impl Scoreboard {
    pub(super) fn una(&self) -> u64 {
        self.una
    }

    /// The number of the next new segment.
    pub(super) fn next(&self) -> u64 {
        self.una + self.segments.len() as u64
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Sends the next new segment.
    pub(super) fn send_new(&mut self, now: Instant) -> u64 {
        self.segments.push_back(Segment { sent: now, state: State::Flying });
        self.in_flight += 1;
        self.next() - 1
    }

    /// Sends the first lost segment again, if there is one.
    pub(super) fn send_again(&mut self, now: Instant) -> Option<u64> {
        if self.lost == 0 {
            return None;
        }
        let from = (self.lost_from.max(self.una) - self.una) as usize;
        let index = (from..self.segments.len()).find(|&i| self.segments[i].state == State::Lost)?;
        self.segments[index] = Segment { sent: now, state: State::Again };
        let number = self.una + index as u64;
        self.lost -= 1;
        self.lost_from = number + 1;
        self.in_flight += 1;
        self.again.push_back((number, now));
        Some(number)
    }

    /// All below `cumulative` and all in `blocks` have arrived. `reordering` is how much later one sent
    /// again must have been overtaken to be lost once more.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        cumulative: u64,
        blocks: &[(u64, u64)],
        reordering: Duration,
    ) -> News {
        let mut news = News::default();
        let cumulative = cumulative.min(self.next());
        while self.una < cumulative {
            self.arrive(0, now, &mut news);
            self.segments.pop_front();
            self.una += 1;
        }
        self.sacked.remove_below(cumulative);
        for &(start, end) in blocks {
            let (start, end) = (start.max(self.una), end.min(self.next()));
            if start < end {
                self.on_block(start, end, now, &mut news);
            }
        }
        news.lost = self.judge() + self.judge_again(reordering);
        news
    }

    fn on_block(&mut self, start: u64, end: u64, now: Instant, news: &mut News) {
        let mut at = start;
        while at < end {
            match self.sacked.end_of(at) {
                Ok(known) => at = known,
                Err(next) => {
                    let until = next.map_or(end, |n| n.min(end));
                    (at..until).for_each(|n| self.arrive((n - self.una) as usize, now, news));
                    at = until;
                }
            }
        }
        self.sacked.insert(start, end);
    }

    fn arrive(&mut self, index: usize, now: Instant, news: &mut News) {
        let segment = &mut self.segments[index];
        let before = core::mem::replace(&mut segment.state, State::Sacked);
        let sent = segment.sent;
        match before {
            State::Sacked => return,
            State::Lost => self.lost -= 1,
            State::Flying => {
                self.in_flight -= 1;
                news.rtt = Some(now - sent);
                self.latest = self.latest.max(sent);
            }
            State::Again => {
                self.in_flight -= 1;
                self.latest = self.latest.max(sent);
            }
        }
        news.arrived += 1;
    }

    /// Segments with enough acknowledged above them are lost.
    fn judge(&mut self) -> u64 {
        let mut above = 0;
        let mut below = self.una;
        for &(start, end) in self.sacked.as_slice().iter().rev() {
            above += end - start;
            if above >= DUP_THRESHOLD {
                below = start + (above - DUP_THRESHOLD);
                break;
            }
        }
        let before = self.lost;
        for number in self.judged.max(self.una)..below {
            self.lose((number - self.una) as usize, State::Flying);
        }
        self.judged = self.judged.max(below);
        self.lost - before
    }

    /// Those sent again that were overtaken are lost again.
    fn judge_again(&mut self, reordering: Duration) -> u64 {
        let before = self.lost;
        while let Some(&(number, sent)) = self.again.front() {
            let Some(index) = number.checked_sub(self.una) else {
                self.again.pop_front();
                continue;
            };
            let present = self.segments[index as usize];
            if present.state != State::Again || present.sent != sent {
                self.again.pop_front();
                continue;
            }
            if sent + reordering >= self.latest {
                break;
            }
            self.again.pop_front();
            self.lose(index as usize, State::Again);
        }
        self.lost - before
    }

    fn lose(&mut self, index: usize, from: State) {
        if self.segments[index].state == from {
            self.segments[index].state = State::Lost;
            self.in_flight -= 1;
            self.lost += 1;
            self.lost_from = self.lost_from.min(self.una + index as u64);
        }
    }

    /// Nothing came back: everything is lost that is not known to have arrived. Gives the number.
    pub(super) fn on_timeout(&mut self) -> u64 {
        let before = self.lost;
        for index in 0..self.segments.len() {
            self.lose(index, State::Flying);
            self.lose(index, State::Again);
        }
        self.again.clear();
        self.judged = self.next();
        self.lost - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    const RTT: Duration = Duration::from_millis(10);

    fn sent(n: u64) -> Scoreboard {
        let mut b = Scoreboard::default();
        (0..n).for_each(|i| assert_eq!(b.send_new(at(i)), i));
        b
    }

    #[test]
    fn three_above_make_a_loss() {
        let mut b = sent(10);
        let news = b.on_ack(at(100), 2, &[(3, 5)], RTT);
        assert_eq!((news.arrived, news.lost, b.in_flight()), (4, 0, 6));
        let news = b.on_ack(at(101), 2, &[(3, 6)], RTT);
        assert_eq!((news.arrived, news.lost, b.in_flight()), (1, 1, 4));
        assert_eq!((b.send_again(at(101)), b.send_again(at(101)), b.in_flight()), (Some(2), None, 5));
        let news = b.on_ack(at(201), 10, &[], RTT);
        assert_eq!((news.arrived, news.lost, b.in_flight(), b.una()), (5, 0, 0, 10));
    }

    #[test]
    fn a_retransmission_is_lost_when_it_is_overtaken() {
        let mut b = sent(10);
        b.on_ack(at(100), 0, &[(1, 10)], RTT);
        assert_eq!(b.send_again(at(100)), Some(0));
        (0..3).for_each(|i| assert_eq!(b.send_new(at(115)), 10 + i));
        assert_eq!(b.on_ack(at(200), 0, &[(1, 11)], RTT).lost, 1);
        assert_eq!(b.send_again(at(200)), Some(0));
        assert_eq!(b.on_ack(at(300), 11, &[], RTT).arrived, 1);
    }

    #[test]
    fn blocks_may_overlap_and_repeat() {
        let mut b = sent(20);
        assert_eq!(b.on_ack(at(100), 0, &[(5, 8), (10, 12)], RTT).arrived, 5);
        assert_eq!(b.on_ack(at(101), 0, &[(4, 11), (15, 30)], RTT).arrived, 8);
        assert_eq!(b.sacked.as_slice(), [(4, 12), (15, 20)]);
        let news = b.on_ack(at(102), 16, &[(4, 12)], RTT);
        assert_eq!((news.arrived, b.sacked.as_slice()), (7, &[(16, 20)][..]));
        assert_eq!(b.on_ack(at(103), 20, &[], RTT).arrived, 0);
        assert_eq!((b.in_flight(), b.next()), (0, 20));
    }

    #[test]
    fn after_a_timeout_all_goes_again() {
        let mut b = sent(5);
        b.on_ack(at(100), 0, &[(2, 3)], RTT);
        assert_eq!((b.on_timeout(), b.in_flight()), (4, 0));
        let again: Vec<u64> = std::iter::from_fn(|| b.send_again(at(1000))).collect();
        assert_eq!(again, [0, 1, 3, 4]);
    }
}
