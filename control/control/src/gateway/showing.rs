//! When an agent is shown the log's newest checkpoint (`edge-agent/PROTOCOL.md` §2.8, step 2).

use std::time::Duration;

use event_schema::AgentId;
use tokio::time::Instant;

use crate::sealing::Heard;

/// After a checkpoint was sent, the next one goes no sooner, even with commands: an agent syncs its disk for each.
const PAUSE: Duration = Duration::from_secs(10);

/// Without commands, a newer one goes as often as this.
const IDLE: Duration = Duration::from_secs(600);

/// The shown and the heard of one session.
pub(super) struct Showing {
    /// What the agent said last; none before its first word, and between a checkpoint and the answer to it.
    heard: Option<Heard>,
    first: bool,
    /// Something was shown that cannot be of the agent's history: once is enough.
    conflict_shown: bool,
    /// The position up to which commands were sent and are not under a checkpoint yet.
    commands: Option<u64>,
    last: Option<Instant>,
    begun: Instant,
    idle: Duration,
}

impl Showing {
    pub(super) fn new(agent: AgentId, now: Instant) -> Self {
        // Not all agents at once: up to a fifth earlier.
        let earlier = IDLE / 5 * u32::from(agent.0[15]) / 256;
        Self {
            heard: None,
            first: true,
            conflict_shown: false,
            commands: None,
            last: None,
            begun: now,
            idle: IDLE - earlier,
        }
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        self.heard = Some(heard);
    }

    /// Commands were sent; the log had `position` entries then.
    pub(super) fn commanded(&mut self, position: u64) {
        self.commands = Some(position);
    }

    /// When the newest checkpoint, over `newest` entries, is to be shown; none: not before something else happens.
    pub(super) fn due(&self, newest: u64) -> Option<Instant> {
        let heard = self.heard?;
        if newest == 0 || self.conflict_shown || (newest <= heard.size && !heard.conflicts) {
            return None;
        }
        let Some(last) = self.last else { return Some(self.begun) };
        if heard.conflicts || self.commands.is_some_and(|position| newest >= position) {
            return Some(last + PAUSE);
        }
        Some(last + self.idle)
    }

    /// What the agent holds, as far as it said.
    pub(super) fn standing(&self) -> Heard {
        self.heard.unwrap_or_default()
    }

    /// Whether nothing was shown yet.
    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    /// It was shown, or could not be: then the next time is as far away.
    pub(super) fn shown(&mut self, now: Instant, was_shown: bool) {
        self.last = Some(now);
        self.commands = None;
        if was_shown {
            self.first = false;
            self.conflict_shown = self.heard.take().is_some_and(|heard| heard.conflicts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_with_commands_then_now_and_then() {
        let now = Instant::now();
        let mut showing = Showing::new(AgentId([0; 16]), now);
        assert_eq!(showing.due(5), None, "it has not said what it holds");
        showing.heard(Heard { size: 0, conflicts: false });
        assert_eq!(showing.due(0), None, "there is none");
        assert_eq!(showing.due(5), Some(now));
        assert!(showing.is_first());
        showing.shown(now, true);
        assert_eq!(showing.due(9), None, "one at a time");
        showing.heard(Heard { size: 5, conflicts: false });
        assert_eq!((showing.due(5), showing.is_first()), (None, false));
        assert_eq!(showing.due(9), Some(now + IDLE));
        showing.commanded(10);
        assert_eq!(showing.due(9), Some(now + IDLE), "the command is not under it yet");
        assert_eq!(showing.due(10), Some(now + PAUSE));
        showing.shown(now + PAUSE, true);
        showing.heard(Heard { size: 10, conflicts: false });
        assert_eq!(showing.due(11), Some(now + PAUSE + IDLE));
        showing.shown(now + PAUSE, false);
        assert_eq!(showing.due(11), Some(now + PAUSE + IDLE), "it is tried again, not at once");
        let other = Showing::new(AgentId([255; 16]), now);
        assert!(other.idle < IDLE && other.idle >= IDLE / 5 * 4);
    }

    #[test]
    fn a_conflict_is_shown_once() {
        let now = Instant::now();
        let mut showing = Showing::new(AgentId([0; 16]), now);
        showing.heard(Heard { size: 90, conflicts: true });
        assert_eq!(showing.due(5), Some(now), "shorter than what it holds, and shown all the same");
        showing.shown(now, true);
        showing.heard(Heard { size: 90, conflicts: true });
        assert_eq!(showing.due(95), None);
    }
}
