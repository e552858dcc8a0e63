//! What an established connection waits for. Deadlines are derived from its state, so none can be forgotten.

use timebase::Instant;

use super::send::{TRIAL_ACK, TRIAL_LEAST};
use super::session::Session;

/// A flow of at least so many packets that stops for so long makes its receiver ask whether the peer still finds it:
/// its own address may have changed, and acknowledgements alone would never tell (§10.4).
const QUIET_AFTER: u32 = 32;
const QUIET: core::time::Duration = core::time::Duration::from_millis(100);

/// Why a connection has to act at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Acknowledge,
    Pace,
    Loss,
    Probe,
    Silence,
    Path,
    Mtu,
    Challenge,
    Quiet,
    KeepAlive,
    Idle,
}

const ALL: [Timer; 11] = [
    Timer::Acknowledge,
    Timer::Pace,
    Timer::Loss,
    Timer::Probe,
    Timer::Silence,
    Timer::Path,
    Timer::Mtu,
    Timer::Challenge,
    Timer::Quiet,
    Timer::KeepAlive,
    Timer::Idle,
];

impl Session {
    fn deadline(&self, timer: Timer) -> Option<Instant> {
        let in_flight = self.sent.in_flight_packets() > 0;
        match timer {
            // While the address is on trial and too little may be sent, these cannot act.
            Timer::Acknowledge => self.received.due().filter(|_| self.path.allowance() >= TRIAL_ACK),
            Timer::Pace => {
                self.pacing.filter(|_| self.path.allowance() >= self.datagram + super::send::TRIAL_RESERVE)
            }
            Timer::Challenge => self.path.challenge_due().filter(|_| self.path.allowance() >= TRIAL_LEAST),
            Timer::Loss => self.loss_deadline,
            Timer::Probe => self.probe_deadline(),
            Timer::Silence => in_flight.then(|| self.controller.silence_deadline()),
            Timer::Path => self.path.deadline(),
            Timer::Mtu => self.mtu.deadline(self.mtu_patience()),
            Timer::Quiet => (self.data_run >= QUIET_AFTER && !in_flight).then(|| self.last_data + QUIET),
            Timer::KeepAlive => {
                self.keep_alive.map(|after| self.last_received.max(self.last_keep_alive) + after)
            }
            Timer::Idle => Some(self.last_received + self.idle_timeout),
        }
    }

    /// What is waited for, and until when: for a finding of the fuzzer.
    #[cfg(any(all(test, feature = "control"), feature = "fuzzing"))]
    pub(super) fn waits(&self) -> alloc::string::String {
        let each =
            ALL.iter().filter_map(|t| self.deadline(*t).map(|d| alloc::format!("{t:?} {} ", d.as_micros())));
        each.collect()
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        ALL.iter().filter_map(|t| self.deadline(*t)).min()
    }

    /// Acts on what is due. False when the connection has been idle for too long.
    pub(crate) fn on_timeout(&mut self, now: Instant) -> bool {
        for timer in ALL {
            if self.deadline(timer).is_none_or(|d| d > now) {
                continue;
            }
            match timer {
                // Sending looks at these itself.
                Timer::Acknowledge | Timer::Pace | Timer::Challenge => {}
                Timer::Loss => self.detect_losses(now),
                Timer::Probe => self.on_probe_timeout(now),
                Timer::Silence => {
                    self.controller.on_silence(now);
                    self.update_pacer(now);
                }
                Timer::Path => {
                    self.path.give_up(now);
                }
                Timer::Mtu => {
                    let patience = self.mtu_patience();
                    self.mtu.on_timeout(now, patience);
                }
                Timer::Quiet => {
                    self.data_run = 0;
                    self.ping = true;
                }
                Timer::KeepAlive => {
                    self.ping = true;
                    self.last_keep_alive = now;
                }
                Timer::Idle => return false,
            }
        }
        true
    }
}
