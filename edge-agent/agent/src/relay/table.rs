//! Who meets whom at a relay, and what passes (`edge-agent/PATHS.md` §4.2, §4.4, §4.5). Time and randomness are told.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use agent_proto::relay::{Channel, EndReason, Ended, Joined, Meeting, Opened, RelayMessage};
use event_schema::AgentId;
use serde::Serialize;
use timebase::Instant;

use super::LATE;

/// Meetings of one agent: nobody takes them all.
const OF_ONE_AGENT: usize = 16;

/// How much may pass at once after a quiet time: what a share of the rate gives in this time, but not less than some
/// full batches of packets.
const BURST: Duration = Duration::from_millis(250);
const BURST_LEAST: u64 = 256 << 10;

/// What the owner of a relay allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayLimits {
    /// Bytes a second over all meetings, shared evenly. Default 4 MB/s.
    pub(crate) rate: u64,
    /// Meetings. Default 64.
    pub(crate) sessions: usize,
    /// Bytes of one meeting, both ways. Default 20 GB.
    pub(crate) session_bytes: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self { rate: 4_000_000, sessions: 64, session_bytes: 20_000_000_000 }
    }
}

/// Names a session with an agent.
pub(super) type Session = u64;

/// What a relay did since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RelayStats {
    /// Meetings now, those that wait for the second one included.
    pub(crate) meetings: usize,
    /// Meetings in which both came.
    pub(crate) joined: u64,
    /// Requests turned down.
    pub(crate) refused: u64,
    /// Bytes forwarded.
    pub(crate) bytes: u64,
    /// Datagrams of no meeting, from elsewhere, or before both were there.
    pub(crate) strange: u64,
    /// Datagrams beyond the rate.
    pub(crate) limited: u64,
}

/// One of two in a meeting.
#[derive(Debug)]
struct Place {
    session: Session,
    agent: AgentId,
    channel: Channel,
    addr: SocketAddr,
}

#[derive(Debug)]
struct State {
    /// One or two.
    places: Vec<Place>,
    opened: Instant,
    bytes: u64,
    /// Bytes that may pass now.
    tokens: u64,
    at: Instant,
}

/// A message for a session.
pub(super) type Told = (Session, RelayMessage);

/// What is to be done with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// To be sent there, behind this channel.
    Pass(SocketAddr, Channel),
    /// To be dropped.
    Drop,
    /// It does not come from where that session was last: ask where it is, and again if it is there.
    Elsewhere(Session),
    /// The quota is used up: the meeting is to be ended.
    Quota(Meeting),
}

#[derive(Debug)]
pub(super) struct Table {
    limits: RelayLimits,
    meetings: BTreeMap<Meeting, State>,
    channels: HashMap<Channel, Meeting>,
    stats: RelayStats,
}

impl Table {
    pub(super) fn new(limits: RelayLimits) -> Self {
        Self { limits, meetings: BTreeMap::new(), channels: HashMap::new(), stats: RelayStats::default() }
    }

    pub(super) fn stats(&self) -> RelayStats {
        RelayStats { meetings: self.meetings.len(), ..self.stats }
    }

    /// Whether a session has any meeting.
    pub(super) fn is_used(&self, session: Session) -> bool {
        self.meetings.values().any(|m| m.places.iter().any(|p| p.session == session))
    }

    /// Somebody wants to meet somebody. `channel`: random. Returns what to tell whom.
    pub(super) fn open(
        &mut self,
        now: Instant,
        session: Session,
        (agent, addr): (AgentId, SocketAddr),
        meeting: Meeting,
        channel: Channel,
    ) -> Vec<Told> {
        // Its earlier place is from before it lost its session, or its patience.
        let mut told = self.leave(meeting, |p| p.agent == agent, Some(session));
        let of_agent = self.meetings.values().filter(|m| m.places.iter().any(|p| p.agent == agent)).count();
        let refusal = match self.meetings.get(&meeting) {
            Some(state) if state.places.len() > 1 => Some(EndReason::Refused),
            _ if of_agent >= OF_ONE_AGENT || self.channels.contains_key(&channel) => Some(EndReason::Refused),
            None if self.meetings.len() >= self.limits.sessions => Some(EndReason::Full),
            _ => None,
        };
        if let Some(reason) = refusal {
            self.stats.refused += 1;
            told.push((session, Ended { meeting, reason }.into()));
            return told;
        }
        let fresh = || State { places: Vec::new(), opened: now, bytes: 0, tokens: BURST_LEAST, at: now };
        let state = self.meetings.entry(meeting).or_insert_with(fresh);
        state.places.push(Place { session, agent, channel, addr });
        self.channels.insert(channel, meeting);
        told.push((session, Opened { meeting, channel }.into()));
        if state.places.len() == 2 {
            self.stats.joined += 1;
            told.extend(state.places.iter().map(|p| (p.session, Joined { meeting }.into())));
        }
        told
    }

    /// A session wants no more of a meeting.
    pub(super) fn close(&mut self, session: Session, meeting: Meeting) -> Vec<Told> {
        self.leave(meeting, |p| p.session == session, Some(session))
    }

    /// A session ended.
    pub(super) fn ended(&mut self, session: Session) -> Vec<Told> {
        let meetings: Vec<Meeting> = self.meetings.keys().copied().collect();
        meetings.into_iter().flat_map(|m| self.leave(m, |p| p.session == session, Some(session))).collect()
    }

    /// Ends a meeting for both.
    pub(super) fn end(&mut self, meeting: Meeting, reason: EndReason) -> Vec<Told> {
        let Some(state) = self.meetings.remove(&meeting) else { return Vec::new() };
        for place in &state.places {
            self.channels.remove(&place.channel);
        }
        state.places.iter().map(|p| (p.session, Ended { meeting, reason }.into())).collect()
    }

    /// Ends meetings that nobody else came to.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Told> {
        let late = self.meetings.iter().filter(|(_, m)| m.places.len() < 2 && now - m.opened >= LATE);
        let late: Vec<Meeting> = late.map(|(id, _)| *id).collect();
        late.into_iter().flat_map(|m| self.end(m, EndReason::Late)).collect()
    }

    /// µTP2 has proven that a session is there now.
    pub(super) fn is_at(&mut self, session: Session, addr: SocketAddr) {
        let places = self.meetings.values_mut().flat_map(|m| &mut m.places);
        places.filter(|p| p.session == session).for_each(|p| p.addr = addr);
    }

    /// What to do with a datagram of `len` bytes behind `channel`.
    pub(super) fn forward(
        &mut self,
        now: Instant,
        from: SocketAddr,
        channel: &Channel,
        len: usize,
    ) -> Verdict {
        let joined = self.meetings.values().filter(|m| m.places.len() == 2).count().max(1);
        let share = self.limits.rate / joined as u64;
        let meeting = self.channels.get(channel).copied();
        let Some((meeting, state)) = meeting.and_then(|m| Some((m, self.meetings.get_mut(&m)?))) else {
            self.stats.strange += 1;
            return Verdict::Drop;
        };
        let [one, other] = &state.places[..] else {
            self.stats.strange += 1;
            return Verdict::Drop;
        };
        let (sender, receiver) = if one.channel == *channel { (one, other) } else { (other, one) };
        if sender.addr != from {
            return Verdict::Elsewhere(sender.session);
        }
        let burst = (share * BURST.as_millis() as u64 / 1000).max(BURST_LEAST);
        let elapsed = u64::try_from((now - state.at).as_micros()).unwrap_or(u64::MAX);
        let gained = u128::from(elapsed) * u128::from(share) / 1_000_000;
        if gained > 0 {
            state.tokens = state.tokens.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX)).min(burst);
            state.at = now;
        }
        let len = len as u64;
        if state.bytes.saturating_add(len) > self.limits.session_bytes {
            return Verdict::Quota(meeting);
        }
        let Some(rest) = state.tokens.checked_sub(len) else {
            self.stats.limited += 1;
            return Verdict::Drop;
        };
        (state.tokens, state.bytes) = (rest, state.bytes + len);
        self.stats.bytes += len;
        Verdict::Pass(receiver.addr, receiver.channel)
    }

    /// Counts a datagram that was dropped after all.
    pub(super) fn count_strange(&mut self) {
        self.stats.strange += 1;
    }

    /// Takes places out of a meeting; the other one is told, and the place's own session unless it is `silent`.
    fn leave(
        &mut self,
        meeting: Meeting,
        leaves: impl Fn(&Place) -> bool,
        silent: Option<Session>,
    ) -> Vec<Told> {
        if !self.meetings.get(&meeting).is_some_and(|m| m.places.iter().any(leaves)) {
            return Vec::new();
        }
        // Without one of them there is no meeting: who stays has to open it anew.
        let told = self.end(meeting, EndReason::Gone);
        told.into_iter().filter(|(session, _)| Some(*session) != silent).collect()
    }
}
