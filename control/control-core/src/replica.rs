//! Replicas: several control services on one log, and the lease that one of them holds.
//!
//! A replica is a data folder; each of its starts is an *epoch*, a life of its own. Sessions of agents
//! belong to a life: when it ends, whoever says so, they are over, unless the agent is at another one by
//! then. The *lease* names the one replica that sees to what no other does: it says that others are dead
//! and puts their agents offline. Everything here is decided on the state at the log's end and appended
//! behind exactly that end, which is what fences it: a holder that lost the lease without knowing finds
//! so when its append is refused, and decides nothing any more. Who is silent and for how long is not
//! known here; it only makes somebody ask.

use std::collections::BTreeMap;

use event_schema::{
    AgentOffline, Event, LeaseTaken, ReplicaId, ReplicaStarted, ReplicaStopped, Timestamp, level,
};
use serde::{Deserialize, Serialize};

use crate::limits::{OFFLINE_AT_ONCE, REPLICAS_MAX};
use crate::{State, text};

/// The reason of a replica that stops because it is told to. Every other end may be one that nobody meant.
pub const STOPPED_IN_ORDER: &str = "stopped in order";

/// One life of a replica, and what is bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session {
    /// Which replica.
    pub replica: ReplicaId,
    /// Which of its lives.
    pub epoch: u64,
}

impl Session {
    /// That of a service which has its log to itself: it is always live, and never on the log.
    pub const ALONE: Self = Self { replica: ReplicaId([0; 16]), epoch: 0 };
}

/// A replica as decisions see it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Replica {
    epoch: u64,
    live: bool,
    /// The schema level that its program reads.
    level: u8,
}

/// Who sees to what no other does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its holder.
    pub holder: Session,
    /// Counts holders, from 1.
    pub term: u64,
}

pub(crate) fn evolve(replicas: &mut BTreeMap<ReplicaId, Replica>, lease: &mut Option<Lease>, event: &Event) {
    match event {
        Event::ReplicaStarted(e) => {
            if replicas.len() >= REPLICAS_MAX && !replicas.contains_key(&e.replica) {
                let stopped = replicas.iter().find(|(_, known)| !known.live).map(|(id, _)| *id);
                stopped.and_then(|id| replicas.remove(&id));
            }
            let level = level::of_version(&e.version);
            replicas.insert(e.replica, Replica { epoch: e.epoch, live: true, level });
        }
        Event::ReplicaStopped(e) => {
            if let Some(known) = replicas.get_mut(&e.replica).filter(|known| known.epoch == e.epoch) {
                known.live = false;
            }
        }
        Event::LeaseTaken(e) => {
            let holder = Session { replica: e.replica, epoch: e.epoch };
            *lease = Some(Lease { holder, term: e.term });
        }
        _ => {}
    }
}

impl State {
    /// Whether a life goes on as far as the log knows.
    pub fn is_live(&self, session: Session) -> bool {
        session == Session::ALONE
            || self
                .replicas
                .get(&session.replica)
                .is_some_and(|known| known.live && known.epoch == session.epoch)
    }

    /// Replicas that live as far as the log knows.
    pub fn live_replicas(&self) -> impl Iterator<Item = Session> {
        let live = self.replicas.iter().filter(|(_, known)| known.live);
        live.map(|(replica, known)| Session { replica: *replica, epoch: known.epoch })
    }

    /// The schema level that every living replica reads; none if none lives.
    pub fn level_of_replicas(&self) -> Option<u8> {
        self.replicas.values().filter(|known| known.live).map(|known| known.level).min()
    }

    /// The lease, if its holder lives as far as the log knows.
    pub fn lease(&self) -> Option<Lease> {
        self.lease.filter(|lease| self.is_live(lease.holder))
    }

    /// The last term there was; 0 before the first.
    pub fn term(&self) -> u64 {
        self.lease.map_or(0, |lease| lease.term)
    }
}

/// A replica's new life, and the events that it begins with. A life that was not ended before ends here.
pub fn started(state: &State, replica: ReplicaId, version: &str, now: Timestamp) -> (Vec<Event>, Session) {
    let epoch = match state.replicas.get(&replica) {
        Some(known) => known.epoch + 1,
        None if state.replicas.len() < REPLICAS_MAX => 1,
        // It may be one that was forgotten: none of the lives that it has had must go on in this one, and no lease of
        // theirs. No replica has had as many as there are milliseconds since 1970.
        None => now.0.max(1),
    };
    let event = ReplicaStarted { replica, epoch, version: text::one_line(version) };
    (vec![event.into()], Session { replica, epoch })
}

/// A replica stops in order, or starts anew because it was cut off: its agents are offline with it.
pub fn stopped(state: &State, session: Session, reason: &str) -> Vec<Event> {
    if session == Session::ALONE || !state.is_live(session) {
        return vec![];
    }
    let Session { replica, epoch } = session;
    vec![ReplicaStopped { replica, epoch, reason: text::one_line(reason) }.into()]
}

/// The lease's holder gives a silent replica up. Nothing if it does not hold the lease (any more).
pub fn give_up(state: &State, holder: Session, silent: Session, reason: &str) -> Vec<Event> {
    if state.lease().is_some_and(|lease| lease.holder == holder) && silent != holder {
        stopped(state, silent, reason)
    } else {
        vec![]
    }
}

/// A live replica takes the lease, because its holder is gone, or was silent in the term `seen`. Nothing if
/// the lease has changed hands since, or it is dead itself.
pub fn take_lease(state: &State, taker: Session, seen: u64) -> Vec<Event> {
    let holds = state.lease().is_some_and(|lease| lease.holder == taker);
    if holds || state.term() != seen || taker == Session::ALONE || !state.is_live(taker) {
        return vec![];
    }
    let Session { replica, epoch } = taker;
    vec![LeaseTaken { replica, epoch, term: seen + 1 }.into()]
}

/// Agents that the log shows online in a life that is over go offline; so many as fit into one record.
/// For the lease's holder, and for a replica about its own earlier lives (`own`).
pub fn orphans(state: &State, asks: Session, own: bool) -> Vec<Event> {
    let may = if own { state.is_live(asks) } else { state.lease().is_some_and(|lease| lease.holder == asks) };
    if !may {
        return vec![];
    }
    state
        .agents
        .iter()
        .filter(|(_, agent)| agent.online)
        // What a service that had the log to itself left behind is dead as well: it cannot be among replicas.
        .filter(|(_, agent)| agent.session == Session::ALONE || !state.is_live(agent.session))
        .filter(|(_, agent)| !own || agent.session.replica == asks.replica)
        .take(OFFLINE_AT_ONCE)
        .map(|(id, _)| {
            let reason = "the control service it was connected to is gone";
            AgentOffline { agent: *id, reason: reason.into() }.into()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::{AgentApproved, AgentEnrolled, AgentId};

    const A: ReplicaId = ReplicaId([1; 16]);
    const B: ReplicaId = ReplicaId([2; 16]);

    fn fold(state: &mut State, events: Vec<Event>) -> usize {
        events.iter().for_each(|event| state.evolve(event));
        events.len()
    }

    fn decide(state: &mut State, decide: impl Fn(&State) -> Vec<Event>) -> usize {
        let events = decide(state);
        fold(state, events)
    }

    fn start(state: &mut State, replica: ReplicaId) -> Session {
        let (events, session) = started(state, replica, "1", Timestamp(1_800_000_000_000));
        fold(state, events);
        session
    }

    fn connect(state: &mut State, agent: AgentId, session: Session) -> Result<usize, crate::Rejection> {
        let wish =
            crate::agent::Command::Connected { agent, session, addresses: vec![], version: "1".into() };
        crate::agent::decide(state, wish).map(|events| fold(state, events))
    }

    fn fleet(agents: u8) -> State {
        let mut state = State::default();
        for n in 0..agents {
            let agent = AgentId([n; 16]);
            let enrolled = AgentEnrolled {
                agent,
                public_key: [n; 32],
                name: n.to_string().into(),
                tags: vec![].into(),
                token: None,
                version: "1".into(),
            };
            fold(&mut state, vec![enrolled.into(), AgentApproved { agent }.into()]);
        }
        state
    }

    #[test]
    fn the_lease_has_one_holder_and_follows_its_life() {
        let mut state = State::default();
        let (a, b) = (start(&mut state, A), start(&mut state, B));
        assert_eq!(decide(&mut state, |s| take_lease(s, a, 0)), 1);
        assert!(take_lease(&state, a, 1).is_empty(), "it has it");
        assert!(take_lease(&state, b, 0).is_empty(), "decided on an older term");
        assert!(give_up(&state, b, a, "silent").is_empty(), "only the holder gives others up");
        // The holder is silent: the other takes it, gives the first up, and the first can do nothing any more.
        assert_eq!(decide(&mut state, |s| take_lease(s, b, 1)), 1);
        assert_eq!(state.lease(), Some(Lease { holder: b, term: 2 }));
        assert!(give_up(&state, a, b, "silent").is_empty());
        assert_eq!(decide(&mut state, |s| give_up(s, b, a, "silent")), 1);
        assert!(!state.is_live(a) && take_lease(&state, a, 2).is_empty());
        // A new life of its holder does not hold it.
        let again = start(&mut state, B);
        assert_eq!((state.lease(), state.is_live(b), again.epoch), (None, false, 2));
        assert_eq!(decide(&mut state, |s| take_lease(s, again, 2)), 1);
        assert_eq!(stopped(&state, again, "stopped").len(), 1);
        assert!(stopped(&state, b, "stopped").is_empty(), "that life is over already");
    }

    #[test]
    fn sessions_end_with_their_life_and_nowhere_else() {
        let mut state = fleet(3);
        let (a, b) = (start(&mut state, A), start(&mut state, B));
        decide(&mut state, |s| take_lease(s, b, 0));
        for n in 0..3 {
            assert_eq!(connect(&mut state, AgentId([n; 16]), a), Ok(2));
        }
        assert_eq!(connect(&mut state, AgentId([0; 16]), a), Ok(0), "the same again is no fact");
        assert_eq!(connect(&mut state, AgentId([1; 16]), b), Ok(1), "it moved");
        let bye = |agent: u8, session| {
            let agent = AgentId([agent; 16]);
            crate::agent::Command::Disconnected { agent, session, reason: "gone".into() }
        };
        assert!(crate::agent::decide(&state, bye(1, a)).unwrap().is_empty(), "it is elsewhere by now");
        assert_eq!(crate::agent::decide(&state, bye(2, a)).unwrap().len(), 1);
        assert!(orphans(&state, b, false).is_empty(), "all live");
        decide(&mut state, |s| give_up(s, b, a, "silent"));
        assert!(orphans(&state, a, false).is_empty() && orphans(&state, a, true).is_empty());
        assert_eq!(decide(&mut state, |s| orphans(s, b, false)), 2);
        assert!(orphans(&state, b, false).is_empty());
        assert_eq!(state.online_agents().collect::<Vec<_>>(), [AgentId([1; 16])]);
        // The one that was given up takes nobody until it begins anew.
        assert!(connect(&mut state, AgentId([0; 16]), a).is_err());
        let a = start(&mut state, A);
        assert_eq!(connect(&mut state, AgentId([0; 16]), a), Ok(2));
        // What it did not say before it died is said by its next life.
        let a = start(&mut state, A);
        assert_eq!(decide(&mut state, |s| orphans(s, a, true)), 1);
        assert_eq!(connect(&mut state, AgentId([0; 16]), a), Ok(2));
    }

    #[test]
    fn what_a_lone_service_left_online_is_put_offline() {
        let mut state = fleet(1);
        assert_eq!(connect(&mut state, AgentId([0; 16]), Session::ALONE), Ok(1));
        let a = start(&mut state, A);
        decide(&mut state, |s| take_lease(s, a, 0));
        assert_eq!(decide(&mut state, |s| orphans(s, a, false)), 1);
    }

    #[test]
    fn replicas_that_stopped_make_room() {
        let mut state = State::default();
        for n in 0..=u8::MAX {
            let session = start(&mut state, ReplicaId([n; 16]));
            if n != 3 {
                decide(&mut state, |s| stopped(s, session, "done"));
            }
        }
        assert!(state.replicas.len() <= REPLICAS_MAX);
        // One that was forgotten does not live its first life again, nor have the lease it had then.
        let forgotten = Session { replica: ReplicaId([0; 16]), epoch: 1 };
        assert!(!state.replicas.contains_key(&forgotten.replica));
        state.lease = Some(Lease { holder: forgotten, term: 1 });
        let again = start(&mut state, forgotten.replica);
        assert!(state.is_live(again) && !state.is_live(forgotten) && state.lease().is_none());
        decide(&mut state, |s| stopped(s, again, "done"));
        assert_eq!(state.live_replicas().count(), 1);
    }
}
