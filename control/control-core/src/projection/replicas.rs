//! Which control services write to this log, and who of them holds the lease?

use std::collections::BTreeMap;

use event_schema::{Event, ReplicaId, Timestamp, level};
use serde::{Deserialize, Serialize};

use crate::limits::REPLICAS_MAX;
use crate::replica::{Lease, STOPPED_IN_ORDER, Session};

/// All replicas; none on a log that one service has to itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replicas {
    /// By id. Of those that stopped, some are dropped when there are many.
    pub replicas: BTreeMap<ReplicaId, ReplicaView>,
    /// The last lease that was taken.
    pub lease: Option<Lease>,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Which life it is in.
    pub epoch: u64,
    /// Whether that goes on.
    pub live: bool,
    /// Since when it is so.
    pub since: Timestamp,
    /// Version of its program.
    pub version: String,
    /// Why it ended, for people.
    pub ended: Option<String>,
}

impl Replicas {
    pub(super) fn apply(&mut self, time: Timestamp, event: &Event) {
        match event {
            Event::ReplicaStarted(e) => {
                if self.replicas.len() >= REPLICAS_MAX && !self.replicas.contains_key(&e.replica) {
                    let stopped = self.replicas.iter().find(|(_, known)| !known.live).map(|(id, _)| *id);
                    stopped.and_then(|id| self.replicas.remove(&id));
                }
                let (epoch, version) = (e.epoch, e.version.clone());
                let view = ReplicaView { epoch, live: true, since: time, version, ended: None };
                self.replicas.insert(e.replica, view);
            }
            Event::ReplicaStopped(e) => {
                if let Some(known) = self.replicas.get_mut(&e.replica).filter(|known| known.epoch == e.epoch)
                {
                    (known.live, known.since, known.ended) = (false, time, Some(e.reason.clone()));
                }
            }
            Event::LeaseTaken(e) => {
                let holder = Session { replica: e.replica, epoch: e.epoch };
                self.lease = Some(Lease { holder, term: e.term });
            }
            _ => {}
        }
    }

    /// Whether a replica whose program reads less than `level` may only be away: it lives, or was given up, without
    /// having stopped in order, within `grace` milliseconds before `now`.
    pub fn may_come_back_older(&self, level: u8, now: Timestamp, grace: u64) -> bool {
        self.replicas.values().any(|known| {
            let away = !known.live && known.ended.as_deref() != Some(STOPPED_IN_ORDER);
            level::of_version(&known.version) < level
                && (known.live || (away && now.0 < known.since.0.saturating_add(grace)))
        })
    }

    /// Whether a life goes on.
    pub fn is_live(&self, session: Session) -> bool {
        self.replicas.get(&session.replica).is_some_and(|known| known.live && known.epoch == session.epoch)
    }

    /// The lives that go on.
    pub fn live(&self) -> impl Iterator<Item = Session> {
        let live = self.replicas.iter().filter(|(_, known)| known.live);
        live.map(|(replica, known)| Session { replica: *replica, epoch: known.epoch })
    }

    /// The lease, if its holder lives.
    pub fn lease(&self) -> Option<Lease> {
        self.lease.filter(|lease| self.is_live(lease.holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::{ReplicaStarted, ReplicaStopped};

    #[test]
    fn an_older_replica_that_only_died_may_come_back_for_a_while() {
        let mut known = Replicas::default();
        let replica = ReplicaId([1; 16]);
        let happen = |known: &mut Replicas, time, event: Event| known.apply(Timestamp(time), &event);
        let started = |epoch| ReplicaStarted { replica, epoch, version: "0.1.0".into() }.into();
        let stopped = |epoch, reason: &str| ReplicaStopped { replica, epoch, reason: reason.into() }.into();
        happen(&mut known, 1_000, started(1));
        assert!(known.may_come_back_older(2, Timestamp(9_000), 500));
        assert!(!known.may_come_back_older(1, Timestamp(9_000), 500), "it reads that");
        happen(&mut known, 10_000, stopped(1, "not heard of for too long"));
        assert!(known.may_come_back_older(2, Timestamp(10_499), 500));
        assert!(!known.may_come_back_older(2, Timestamp(10_500), 500));
        happen(&mut known, 11_000, started(2));
        happen(&mut known, 12_000, stopped(2, STOPPED_IN_ORDER));
        assert!(!known.may_come_back_older(2, Timestamp(12_001), 500), "nobody waits for it");
    }
}
