//! Where the peer is, and how much may go to a place it has not proved to be at (PROTOCOL.md §10).

use core::net::SocketAddr;
use core::time::Duration;

use timebase::Instant;

#[derive(Clone, Debug)]
pub(crate) struct Path {
    remote: SocketAddr,
    /// Set while the present address is not proven.
    trial: Option<Trial>,
    /// Packets with smaller numbers went to an address before the last one proven.
    former_below: u64,
    /// Until then no other address is believed.
    settled_until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Trial {
    previous: SocketAddr,
    challenge: [u8; 8],
    received: u64,
    sent: u64,
    until: Instant,
    /// When the challenge leaves next, and the time between two of them.
    challenge_at: Instant,
    challenge_every: Duration,
    /// What had been sent before the address was used: it went elsewhere.
    first_number: u64,
    /// The packet that came from here first.
    trigger: u64,
    /// The address of a resumed handshake, before the peer showed that it got our answer: nothing to go back to.
    initial: bool,
    /// The application wants to reach the peer there; the peer need not know it yet and goes on sending from where it
    /// was.
    sought: bool,
}

/// What a proven address tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proven {
    /// Only the port changed.
    pub(crate) same_host: bool,
    /// Packets with smaller numbers went to the address before.
    pub(crate) first_number: u64,
}

/// How long no move is believed after a copied packet pretended one.
const DISTRUST: Duration = Duration::from_secs(1);
/// Bytes that may be sent per byte received before the address is proven.
const AMPLIFICATION: u64 = 3;
/// What an address that the application names counts for, as if so many bytes had come from there: some challenges, and
/// the answer to the peer's own.
const SOUGHT: u64 = 1200;
/// Challenges of one trial are apart by half a round trip within these bounds.
const CHALLENGE_EVERY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(200)];

impl Path {
    pub(crate) fn new(remote: SocketAddr) -> Self {
        Self { remote, trial: None, former_below: 0, settled_until: None }
    }

    /// An address from which a RESUME of `received` bytes came and to which `sent` bytes went (§5.8).
    pub(crate) fn unproven(now: Instant, remote: SocketAddr, received: usize, sent: usize) -> Self {
        let trial = Trial {
            previous: remote,
            challenge: [0; 8],
            received: received as u64,
            sent: sent as u64,
            until: now,
            challenge_at: now,
            challenge_every: Duration::ZERO,
            first_number: 0,
            trigger: u64::MAX,
            initial: true,
            sought: false,
        };
        Self { trial: Some(trial), ..Self::new(remote) }
    }

    /// The peer's first packet came: it has our answer, which went where its RESUME came from.
    pub(crate) fn on_confirmed(&mut self) {
        self.trial.take_if(|t| t.initial);
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Where the peer has proved to be: while another address is on trial, the one before. `None` as long as the peer has
    /// proved none at all.
    pub(crate) fn proven(&self) -> Option<SocketAddr> {
        match &self.trial {
            None => Some(self.remote),
            Some(t) => (!t.initial).then_some(t.previous),
        }
    }

    /// The peer's newest packet came from another address; `next_number` is the one we send next.
    pub(crate) fn moved(
        &mut self,
        now: Instant,
        to: SocketAddr,
        challenge: [u8; 8],
        rtt: Duration,
        until: Instant,
        next_number: u64,
        trigger: u64,
    ) {
        // While one address is on trial, its proven predecessor stays the one to return to, and what went to the
        // one on trial counts as gone with the rest.
        let previous = self.trial.as_ref().map_or(self.remote, |t| t.previous);
        self.remote = to;
        self.trial = (previous != to).then_some(Trial {
            previous,
            challenge,
            received: 0,
            sent: 0,
            until,
            challenge_at: now,
            challenge_every: (rtt / 2).clamp(CHALLENGE_EVERY[0], CHALLENGE_EVERY[1]),
            first_number: next_number,
            trigger,
            initial: false,
            sought: false,
        });
    }

    /// The application says that the peer can be reached there as well. Not while another address is on trial; returns
    /// whether the trial began.
    pub(crate) fn seek(
        &mut self,
        now: Instant,
        to: SocketAddr,
        challenge: [u8; 8],
        rtt: Duration,
        until: Instant,
        next_number: u64,
    ) -> bool {
        if self.trial.is_some() || to == self.remote {
            return false;
        }
        self.moved(now, to, challenge, rtt, until, next_number, u64::MAX);
        if let Some(t) = &mut self.trial {
            (t.sought, t.received) = (true, SOUGHT);
        }
        true
    }

    /// Packets with smaller numbers went to where the peer no longer is, or may not be: their loss says nothing of
    /// the path to where it is.
    pub(crate) fn former_below(&self) -> u64 {
        self.trial.as_ref().map_or(self.former_below, |t| t.first_number)
    }

    /// When the challenge is due.
    pub(crate) fn challenge_due(&self) -> Option<Instant> {
        self.trial.as_ref().filter(|t| !t.initial).map(|t| t.challenge_at.min(t.until))
    }

    /// The challenge, if it is time to send it (again).
    pub(crate) fn take_challenge(&mut self, now: Instant) -> Option<[u8; 8]> {
        let t = self.trial.as_mut().filter(|t| !t.initial && t.challenge_at <= now)?;
        t.challenge_at = now + t.challenge_every;
        Some(t.challenge)
    }

    pub(crate) fn on_received(&mut self, from: SocketAddr, bytes: usize) {
        if let Some(t) = self.trial.as_mut().filter(|_| from == self.remote) {
            t.received += bytes as u64;
        }
    }

    pub(crate) fn on_sent(&mut self, bytes: usize) {
        if let Some(t) = &mut self.trial {
            t.sent += bytes as u64;
        }
    }

    /// Bytes that may go to the present address now.
    pub(crate) fn allowance(&self) -> usize {
        let left = |t: &Trial| (AMPLIFICATION * t.received).saturating_sub(t.sent);
        self.trial.as_ref().map_or(usize::MAX, |t| usize::try_from(left(t)).unwrap_or(usize::MAX))
    }

    /// The packet that made us move came once more, from the address before: it was copied on its way, and the peer
    /// is where it was. Returns whether that is so.
    pub(crate) fn on_copy(&mut self, now: Instant, from: SocketAddr, number: u64) -> bool {
        let Some(t) = self.trial.take_if(|t| t.previous == from && t.trigger == number) else { return false };
        self.remote = t.previous;
        self.settled_until = Some(now + DISTRUST);
        true
    }

    /// Whether an authentic second copy of this packet would mean something.
    pub(crate) fn is_copy_of_interest(&self, from: SocketAddr, number: u64) -> bool {
        self.trial.as_ref().is_some_and(|t| t.previous == from && t.trigger == number)
    }

    /// Whether a packet from another address, `from`, is to be followed.
    pub(crate) fn may_move(&self, now: Instant, from: SocketAddr) -> bool {
        let is_left = self.trial.as_ref().is_some_and(|t| t.sought && t.previous == from);
        !is_left && self.settled_until.is_none_or(|t| t <= now)
    }

    /// Tells what is proven if this answers the challenge.
    pub(crate) fn on_response(&mut self, response: [u8; 8]) -> Option<Proven> {
        let t = self.trial.take_if(|t| !t.initial && t.challenge == response)?;
        self.former_below = t.first_number;
        Some(Proven { same_host: t.previous.ip() == self.remote.ip(), first_number: t.first_number })
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.trial.as_ref().filter(|t| !t.initial).map(|t| t.until)
    }

    /// Goes back to the proven address once the trial is over. Returns whether it did.
    pub(crate) fn give_up(&mut self, now: Instant) -> bool {
        match self.trial.take() {
            Some(t) if !t.initial && t.until <= now => {
                self.remote = t.previous;
                true
            }
            t => {
                self.trial = t;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_sought_is_left_again_unless_it_answers() {
        let (a, b) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let (t, ms) = (Instant::from_micros, Duration::from_millis);
        let mut p = Path::new(a);
        assert!(!p.seek(t(0), a, [1; 8], ms(100), t(100), 7), "there already");
        assert!(p.seek(t(0), b, [1; 8], ms(100), t(100), 7));
        assert!(!p.seek(t(0), b, [1; 8], ms(100), t(100), 7), "one at a time");
        assert_eq!((p.remote(), p.proven(), p.allowance()), (b, Some(a), 3600));
        assert!(!p.may_move(t(1), a), "the peer does not know yet, and sends from where it was");
        assert!(p.give_up(t(100)) && p.remote() == a && p.may_move(t(101), b));
        assert!(p.seek(t(200), b, [2; 8], ms(100), t(900), 9));
        assert_eq!(p.on_response([2; 8]), Some(Proven { same_host: true, first_number: 9 }));
        assert_eq!((p.remote(), p.proven(), p.allowance()), (b, Some(b), usize::MAX));
        let mut resumed = Path::unproven(t(0), a, 1200, 300);
        assert_eq!((resumed.remote(), resumed.proven()), (a, None), "anybody may have written that address");
        resumed.on_confirmed();
        assert_eq!(resumed.proven(), Some(a));
    }

    #[test]
    fn a_new_address_gets_thrice_what_it_sent_until_it_answers() {
        let (a, b) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let t = Instant::from_micros;
        let mut p = Path::new(a);
        assert_eq!(p.allowance(), usize::MAX);
        let ms = Duration::from_millis;
        p.moved(t(0), b, [1; 8], ms(100), t(100), 7, 1);
        assert_eq!((p.allowance(), p.proven()), (0, Some(a)));
        p.on_received(b, 100);
        p.on_received(a, 1000);
        assert_eq!(p.allowance(), 300);
        p.on_sent(300);
        assert_eq!(p.allowance(), 0);
        assert!(p.on_response([2; 8]).is_none() && !p.give_up(t(99)));
        assert!(p.give_up(t(100)));
        assert_eq!(p.remote(), a);
        p.moved(t(100), b, [1; 8], ms(100), t(200_000), 9, 2);
        assert_eq!((p.take_challenge(t(100)), p.take_challenge(t(50_099))), (Some([1; 8]), None));
        assert_eq!(p.take_challenge(t(50_100)), Some([1; 8]), "repeated");
        assert_eq!(p.on_response([1; 8]), Some(Proven { same_host: true, first_number: 9 }));
        assert_eq!((p.remote(), p.deadline(), p.allowance()), (b, None, usize::MAX));
        p.moved(t(300_000), a, [3; 8], ms(100), t(400_000), 20, 3);
        p.moved(t(300_001), b, [4; 8], ms(100), t(400_000), 21, 4);
        assert_eq!(p.deadline(), None, "back where it was proven");
        p.moved(t(500_000), a, [3; 8], ms(100), t(600_000), 20, 5);
        assert!(!p.on_copy(t(500_100), b, 4) && !p.on_copy(t(500_100), a, 5) && p.may_move(t(500_100), b));
        assert!(p.is_copy_of_interest(b, 5) && p.on_copy(t(500_100), b, 5));
        assert_eq!((p.remote(), p.may_move(t(1_500_099), a), p.may_move(t(1_500_100), a)), (b, false, true));
    }
}
