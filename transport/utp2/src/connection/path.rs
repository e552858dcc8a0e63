//! Where the peer is, and how much may go to a place it has not proved to be at (PROTOCOL.md §10).

use core::net::SocketAddr;

use timebase::Instant;

#[derive(Clone, Debug)]
pub(crate) struct Path {
    remote: SocketAddr,
    /// Set while the present address is not proven.
    trial: Option<Trial>,
}

#[derive(Clone, Debug)]
struct Trial {
    previous: SocketAddr,
    challenge: [u8; 8],
    received: u64,
    sent: u64,
    until: Instant,
}

/// Bytes that may be sent per byte received before the address is proven.
const AMPLIFICATION: u64 = 3;

impl Path {
    pub(crate) fn new(remote: SocketAddr) -> Self {
        Self { remote, trial: None }
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The peer's newest packet came from a new address.
    pub(crate) fn moved(&mut self, to: SocketAddr, challenge: [u8; 8], until: Instant) {
        // While one address is on trial, its proven predecessor stays the one to return to.
        let previous = self.trial.as_ref().map_or(self.remote, |t| t.previous);
        self.remote = to;
        self.trial = (previous != to).then_some(Trial { previous, challenge, received: 0, sent: 0, until });
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

    /// Whether `bytes` more may go to the present address.
    pub(crate) fn may_send(&self, bytes: usize) -> bool {
        self.trial.as_ref().is_none_or(|t| t.sent + bytes as u64 <= AMPLIFICATION * t.received)
    }

    /// Returns whether the address is now proven.
    pub(crate) fn on_response(&mut self, response: [u8; 8]) -> bool {
        let proven = self.trial.as_ref().is_some_and(|t| t.challenge == response);
        if proven {
            self.trial = None;
        }
        proven
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.trial.as_ref().map(|t| t.until)
    }

    /// Goes back to the proven address once the trial is over. Returns whether it did.
    pub(crate) fn give_up(&mut self, now: Instant) -> bool {
        match self.trial.take() {
            Some(t) if t.until <= now => {
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
    fn a_new_address_gets_thrice_what_it_sent_until_it_answers() {
        let (a, b) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let t = Instant::from_micros;
        let mut p = Path::new(a);
        assert!(p.may_send(1 << 20));
        p.moved(b, [1; 8], t(100));
        assert!(!p.may_send(1));
        p.on_received(b, 100);
        p.on_received(a, 1000);
        assert!(p.may_send(300) && !p.may_send(301));
        p.on_sent(300);
        assert!(!p.may_send(1));
        assert!(!p.on_response([2; 8]) && !p.give_up(t(99)));
        assert!(p.give_up(t(100)));
        assert_eq!(p.remote(), a);
        p.moved(b, [1; 8], t(200));
        assert!(p.on_response([1; 8]) && p.may_send(1 << 20));
        assert_eq!((p.remote(), p.deadline()), (b, None));
    }
}
