//! Who meets whom at a relay, and what passes (`edge-agent/PATHS.md` §4.2, §4.4, §4.5). Time and randomness are told.
//!
//! What is counted is counted for two agents and for the relay, not for a meeting: one that is opened anew, or beside
//! another, gives nothing more.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use agent_proto::relay::{
    Channel, EndReason, Ended, Joined, Meeting, Open, Opened, PlaceName, RelayMessage, place_name,
};
use event_schema::AgentId;
use serde::Serialize;
use timebase::Instant;

use super::LATE;

/// Meetings of one agent: nobody takes them all.
const OF_ONE_AGENT: usize = 16;

/// Meetings that wait for the second one, at least; four for each that may be joined.
const WAITING_LEAST: usize = 64;

/// How much may pass at once after a quiet time: what a share of the rate gives in this time, but not less than some
/// full batches of packets.
const BURST: Duration = Duration::from_millis(250);
const BURST_LEAST: u64 = 256 << 10;

/// For how long bytes of two agents are added up.
const DAY: Duration = Duration::from_secs(86_400);

/// Pairs of agents that are remembered with what they used.
const ACCOUNTS: usize = 4096;

/// What the owner of a relay allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayLimits {
    /// Bytes a second over all meetings, shared evenly by those who meet. Default 4 MB/s.
    pub(crate) rate: u64,
    /// Meetings to which both came. Default 64.
    pub(crate) sessions: usize,
    /// Bytes of two agents in a day, both ways, over all their meetings. Default 20 GB.
    pub(crate) session_bytes: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self { rate: 4_000_000, sessions: 64, session_bytes: 20_000_000_000 }
    }
}

/// Names a session with an agent.
pub(super) type Session = u64;

/// A meeting of two agents: what members of the run call it, and the names of both, the smaller one first. So nobody else
/// can be in it, or in its way.
pub(super) type Key = (Meeting, PlaceName, PlaceName);

/// What a relay did since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RelayStats {
    /// Meetings now, those that wait for the second one included.
    pub(crate) meetings: usize,
    /// Meetings in which both came.
    pub(crate) joined: u64,
    /// Requests turned down, and waiting ones that made room for others.
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
    /// Where it has proved to be.
    addr: Option<SocketAddr>,
}

#[derive(Debug)]
struct State {
    /// One or two.
    places: Vec<Place>,
    opened: Instant,
}

impl State {
    /// Those that meet, the smaller id first; none as long as one waits.
    fn pair(&self) -> Option<Pair> {
        let [one, other] = &self.places[..] else { return None };
        Some((one.agent.min(other.agent), one.agent.max(other.agent)))
    }
}

type Pair = (AgentId, AgentId);

/// Bytes that may pass now.
#[derive(Debug)]
struct Tokens {
    left: u64,
    at: Instant,
}

impl Tokens {
    fn refill(&mut self, now: Instant, rate: u64) {
        let elapsed = u64::try_from((now - self.at).as_micros()).unwrap_or(u64::MAX);
        let gained = u128::from(elapsed) * u128::from(rate) / 1_000_000;
        if gained > 0 {
            let gained = u64::try_from(gained).unwrap_or(u64::MAX);
            self.left = self.left.saturating_add(gained).min(burst(rate));
            self.at = now;
        }
    }
}

fn burst(rate: u64) -> u64 {
    (rate.saturating_mul(BURST.as_millis() as u64) / 1000).max(BURST_LEAST)
}

/// What two agents used, over all their meetings.
#[derive(Debug)]
struct Account {
    tokens: Tokens,
    bytes: u64,
    since: Instant,
    /// Meetings of both now.
    meetings: usize,
}

impl Account {
    fn begin_day(&mut self, now: Instant) {
        if now - self.since >= DAY {
            (self.bytes, self.since) = (0, now);
        }
    }
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
    Quota(Key),
}

#[derive(Debug)]
pub(super) struct Table {
    limits: RelayLimits,
    meetings: BTreeMap<Key, State>,
    channels: HashMap<Channel, Key>,
    accounts: BTreeMap<Pair, Account>,
    /// Pairs with a meeting now: among them the rate is shared.
    meeting_pairs: usize,
    tokens: Tokens,
    stats: RelayStats,
}

impl Table {
    pub(super) fn new(limits: RelayLimits) -> Self {
        Self {
            limits,
            meetings: BTreeMap::new(),
            channels: HashMap::new(),
            accounts: BTreeMap::new(),
            meeting_pairs: 0,
            tokens: Tokens { left: burst(limits.rate), at: Instant::ZERO },
            stats: RelayStats::default(),
        }
    }

    pub(super) fn stats(&self) -> RelayStats {
        RelayStats { meetings: self.meetings.len(), ..self.stats }
    }

    /// Whether a session has any meeting.
    pub(super) fn is_used(&self, session: Session) -> bool {
        self.meetings.values().any(|m| m.places.iter().any(|p| p.session == session))
    }

    /// Somebody wants to meet somebody. `addr`: where it has proved to be; `channel`: random. Returns what to tell whom.
    pub(super) fn open(
        &mut self,
        now: Instant,
        session: Session,
        (agent, addr): (AgentId, Option<SocketAddr>),
        Open { meeting, peer }: Open,
        channel: Channel,
    ) -> Vec<Told> {
        // Its earlier place is from before it lost its session, or its patience.
        let mut told = self.leave(meeting, |p| p.agent == agent, Some(session));
        let own = place_name(&meeting, &agent);
        let key = (meeting, own.min(peer), own.max(peer));
        let of_agent = self.meetings.values().filter(|m| m.places.iter().any(|p| p.agent == agent)).count();
        let waits = self.meetings.get(&key).and_then(|m| m.places.first()).map(|p| p.agent);
        let refusal = if own == peer || of_agent >= OF_ONE_AGENT || self.channels.contains_key(&channel) {
            Some(EndReason::Refused)
        } else if let Some(other) = waits {
            self.join(now, (agent.min(other), agent.max(other))).err()
        } else {
            self.make_room(agent, &mut told).err()
        };
        if let Some(reason) = refusal {
            self.stats.refused += 1;
            told.push((session, Ended { meeting, reason }.into()));
            // Who waits for it waits in vain.
            told.extend(self.end(key, reason));
            return told;
        }
        let state = self.meetings.entry(key).or_insert_with(|| State { places: Vec::new(), opened: now });
        state.places.push(Place { session, agent, channel, addr });
        self.channels.insert(channel, key);
        told.push((session, Opened { meeting, channel }.into()));
        if state.places.len() == 2 {
            self.stats.joined += 1;
            told.extend(state.places.iter().map(|p| (p.session, Joined { meeting }.into())));
        }
        told
    }

    /// Whether two may meet; counts their meeting then.
    fn join(&mut self, now: Instant, pair: Pair) -> Result<(), EndReason> {
        let joined = self.meetings.values().filter(|m| m.places.len() == 2).count();
        if joined >= self.limits.sessions {
            return Err(EndReason::Full);
        }
        if !self.accounts.contains_key(&pair) && self.accounts.len() >= ACCOUNTS {
            self.accounts.retain(|_, a| a.meetings > 0 || (a.bytes > 0 && now - a.since < DAY));
            if self.accounts.len() >= ACCOUNTS {
                return Err(EndReason::Full);
            }
        }
        let fresh =
            || Account { tokens: Tokens { left: BURST_LEAST, at: now }, bytes: 0, since: now, meetings: 0 };
        let account = self.accounts.entry(pair).or_insert_with(fresh);
        account.begin_day(now);
        if account.bytes >= self.limits.session_bytes {
            return Err(EndReason::Quota);
        }
        self.meeting_pairs += usize::from(account.meetings == 0);
        account.meetings += 1;
        Ok(())
    }

    /// Whether one more may wait. Where too many do, the oldest of who has most of them makes room.
    fn make_room(&mut self, agent: AgentId, told: &mut Vec<Told>) -> Result<(), EndReason> {
        let waiting = || self.meetings.iter().filter(|(_, m)| m.places.len() == 1);
        if waiting().count() < WAITING_LEAST.max(4 * self.limits.sessions) {
            return Ok(());
        }
        let mut of_agents: BTreeMap<AgentId, usize> = BTreeMap::new();
        waiting().for_each(|(_, m)| *of_agents.entry(m.places[0].agent).or_default() += 1);
        let own = of_agents.get(&agent).copied().unwrap_or_default();
        let most = of_agents.into_iter().max_by_key(|(_, count)| *count);
        let (greedy, _) = most.filter(|(_, count)| *count > own + 1).ok_or(EndReason::Full)?;
        let oldest = waiting().filter(|(_, m)| m.places[0].agent == greedy).min_by_key(|(_, m)| m.opened);
        let oldest = oldest.map(|(key, _)| *key).ok_or(EndReason::Full)?;
        self.stats.refused += 1;
        told.extend(self.end(oldest, EndReason::Full));
        Ok(())
    }

    /// A session wants no more of a meeting.
    pub(super) fn close(&mut self, session: Session, meeting: Meeting) -> Vec<Told> {
        self.leave(meeting, |p| p.session == session, Some(session))
    }

    /// A session ended.
    pub(super) fn ended(&mut self, session: Session) -> Vec<Told> {
        let meetings: Vec<Meeting> = self.meetings.keys().map(|key| key.0).collect();
        meetings.into_iter().flat_map(|m| self.leave(m, |p| p.session == session, Some(session))).collect()
    }

    /// Ends a meeting for both.
    pub(super) fn end(&mut self, key: Key, reason: EndReason) -> Vec<Told> {
        let Some(state) = self.meetings.remove(&key) else { return Vec::new() };
        for place in &state.places {
            self.channels.remove(&place.channel);
        }
        if let Some(account) = state.pair().and_then(|pair| self.accounts.get_mut(&pair)) {
            account.meetings -= 1;
            self.meeting_pairs -= usize::from(account.meetings == 0);
        }
        let meeting = key.0;
        state.places.iter().map(|p| (p.session, Ended { meeting, reason }.into())).collect()
    }

    /// Ends meetings that nobody else came to.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Told> {
        let late = self.meetings.iter().filter(|(_, m)| m.places.len() < 2 && now - m.opened >= LATE);
        let late: Vec<Key> = late.map(|(key, _)| *key).collect();
        late.into_iter().flat_map(|key| self.end(key, EndReason::Late)).collect()
    }

    /// Where a session has proved to be now.
    pub(super) fn is_at(&mut self, session: Session, addr: SocketAddr) {
        let places = self.meetings.values_mut().flat_map(|m| &mut m.places);
        places.filter(|p| p.session == session).for_each(|p| p.addr = Some(addr));
    }

    /// What to do with a datagram of `len` bytes behind `channel`.
    pub(super) fn forward(
        &mut self,
        now: Instant,
        from: SocketAddr,
        channel: &Channel,
        len: usize,
    ) -> Verdict {
        let meeting = self.channels.get(channel).and_then(|key| Some((*key, self.meetings.get(key)?)));
        let Some((key, state, pair)) = meeting.and_then(|(key, m)| Some((key, m, m.pair()?))) else {
            self.stats.strange += 1;
            return Verdict::Drop;
        };
        let (one, other) = (&state.places[0], &state.places[1]);
        let (sender, receiver) = if one.channel == *channel { (one, other) } else { (other, one) };
        if sender.addr != Some(from) {
            return Verdict::Elsewhere(sender.session);
        }
        let (Some(to), Some(account)) = (receiver.addr, self.accounts.get_mut(&pair)) else {
            self.stats.strange += 1;
            return Verdict::Drop;
        };
        let len = len as u64;
        account.begin_day(now);
        if account.bytes.saturating_add(len) > self.limits.session_bytes {
            account.bytes = self.limits.session_bytes;
            return Verdict::Quota(key);
        }
        account.tokens.refill(now, self.limits.rate / self.meeting_pairs.max(1) as u64);
        self.tokens.refill(now, self.limits.rate);
        let rest = (account.tokens.left.checked_sub(len), self.tokens.left.checked_sub(len));
        let (Some(of_pair), Some(of_all)) = rest else {
            self.stats.limited += 1;
            return Verdict::Drop;
        };
        (account.tokens.left, self.tokens.left) = (of_pair, of_all);
        account.bytes += len;
        self.stats.bytes += len;
        Verdict::Pass(to, receiver.channel)
    }

    /// Counts a datagram that was dropped after all.
    pub(super) fn count_strange(&mut self) {
        self.stats.strange += 1;
    }

    /// Takes places out of meetings of this name; the other ones are told, and the place's own session unless it is
    /// `silent`.
    fn leave(
        &mut self,
        meeting: Meeting,
        leaves: impl Fn(&Place) -> bool,
        silent: Option<Session>,
    ) -> Vec<Told> {
        let named = (meeting, [0; 16], [0; 16])..=(meeting, [0xff; 16], [0xff; 16]);
        let left = self.meetings.range(named).filter(|(_, m)| m.places.iter().any(&leaves));
        let left: Vec<Key> = left.map(|(key, _)| *key).collect();
        // Without one of them there is no meeting: who stays has to open it anew.
        let told = left.into_iter().flat_map(|key| self.end(key, EndReason::Gone)).collect::<Vec<_>>();
        told.into_iter().filter(|(session, _)| Some(*session) != silent).collect()
    }
}
