//! The log's schema level: raised when everybody who writes to it reads the higher one (`event_schema::level`).

use event_schema::{Event, ReplicaId, SchemaRaised};

use crate::State;
use crate::replica::Session;

/// Raises the level to what every living replica reads and `own`, the asker's program, knows. For the lease's holder,
/// and for a service that has its log to itself. Nothing if it is not for the asker, or there is nothing to raise.
pub fn raise(state: &State, asks: Session, own: u8) -> Vec<Event> {
    let level = if asks == Session::ALONE {
        own
    } else if state.lease().is_some_and(|lease| lease.holder == asks) {
        state.level_of_replicas().map_or(0, |level| level.min(own))
    } else {
        0
    };
    if level > state.level() { vec![SchemaRaised { level }.into()] } else { vec![] }
}

/// The same for a replica that starts while no other lives: there is nobody who would have to read less.
pub fn raise_at_start(state: &State, replica: ReplicaId, own: u8) -> Vec<Event> {
    let alone = state.live_replicas().all(|session| session.replica == replica);
    if alone && own > state.level() { vec![SchemaRaised { level: own }.into()] } else { vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{self, take_lease};
    use event_schema::Timestamp;

    fn start(state: &mut State, n: u8, version: &str) -> Session {
        let (events, session) = replica::started(state, ReplicaId([n; 16]), version, Timestamp(0));
        events.iter().for_each(|event| state.evolve(event));
        session
    }

    #[test]
    fn the_slowest_replica_decides_and_the_holder_says_so() {
        let mut state = State::default();
        assert_eq!(raise(&state, Session::ALONE, 2), [SchemaRaised { level: 2 }.into()]);
        assert_eq!(raise_at_start(&state, ReplicaId([1; 16]), 2).len(), 1);
        assert!(raise_at_start(&state, ReplicaId([1; 16]), 1).is_empty());
        let (new, old) = (start(&mut state, 1, "0.2.0+schema.2"), start(&mut state, 2, "0.1.0"));
        assert!(raise(&state, new, 2).is_empty(), "it does not hold the lease");
        assert!(raise_at_start(&state, new.replica, 2).is_empty(), "another lives");
        take_lease(&state, new, 0).iter().for_each(|event| state.evolve(event));
        assert!(raise(&state, new, 2).is_empty(), "the other reads level 1");
        replica::stopped(&state, old, "replaced").iter().for_each(|event| state.evolve(event));
        let newer = start(&mut state, 2, "0.3.0+schema.3");
        assert!(raise(&state, newer, 3).is_empty());
        let raised = raise(&state, new, 2);
        assert_eq!(raised, [SchemaRaised { level: 2 }.into()]);
        raised.iter().for_each(|event| state.evolve(event));
        assert_eq!(state.level(), 2);
        assert!(raise(&state, new, 2).is_empty(), "it is done");
        // It never falls.
        state.evolve(&SchemaRaised { level: 1 }.into());
        assert_eq!(state.level(), 2);
    }
}
