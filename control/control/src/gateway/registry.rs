//! Who is connected: one live session per agent, the newest.
//!
//! Keeps the order that [`Fleet`](super::Fleet) promises: `connected` and `disconnected` of one agent
//! never overlap, and a session that was replaced says nothing when it ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_schema::AgentId;
use tokio::sync::{OwnedMutexGuard, oneshot};

/// Why a session is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kick {
    /// A newer session of the same agent.
    Replaced,
    /// The agent belongs to the fleet no more.
    Removed,
    /// The gateway stops.
    Shutdown,
    /// The service is cut off from its log.
    CutOff,
}

#[derive(Default)]
pub(super) struct Registry {
    slots: Mutex<HashMap<AgentId, Slot>>,
}

struct Slot {
    /// Which session is the newest.
    generation: u64,
    kick: Option<oneshot::Sender<Kick>>,
    /// Whether the service may believe the agent online; held while it is being told so or otherwise.
    online: Arc<tokio::sync::Mutex<bool>>,
}

/// One session's place in the registry.
pub(super) struct Place {
    agent: AgentId,
    generation: u64,
    online: Arc<tokio::sync::Mutex<bool>>,
}

impl Registry {
    fn slots(&self) -> MutexGuard<'_, HashMap<AgentId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the agent's place; whoever had it is kicked.
    pub(super) fn enter(&self, agent: AgentId) -> (Place, oneshot::Receiver<Kick>) {
        let (kick, kicked) = oneshot::channel();
        let mut slots = self.slots();
        let slot =
            slots.entry(agent).or_insert_with(|| Slot { generation: 0, kick: None, online: Arc::default() });
        if let Some(older) = slot.kick.replace(kick) {
            // It may have ended by itself; then nobody listens.
            let _ = older.send(Kick::Replaced);
        }
        slot.generation += 1;
        (Place { agent, generation: slot.generation, online: slot.online.clone() }, kicked)
    }

    /// The right to tell the service about this agent, if the session is still its newest.
    pub(super) async fn turn(&self, place: &Place) -> Option<OwnedMutexGuard<bool>> {
        let guard = place.online.clone().lock_owned().await;
        let newest = self.slots().get(&place.agent).is_some_and(|s| s.generation == place.generation);
        newest.then_some(guard)
    }

    /// Gives the place up, unless a newer session has it.
    pub(super) fn leave(&self, place: &Place) {
        let mut slots = self.slots();
        if slots.get(&place.agent).is_some_and(|slot| slot.generation == place.generation) {
            slots.remove(&place.agent);
        }
    }

    pub(super) fn kick(&self, agent: AgentId, why: Kick) {
        if let Some(kick) = self.slots().get_mut(&agent).and_then(|slot| slot.kick.take()) {
            let _ = kick.send(why);
        }
    }

    /// Ends the session of an agent that the service takes for one of ours; not one that is just being let in, of which
    /// what is heard now cannot be meant.
    pub(super) fn kick_known(&self, agent: AgentId, why: Kick) {
        if let Some(slot) = self.slots().get_mut(&agent)
            && slot.online.try_lock().is_ok_and(|online| *online)
            && let Some(kick) = slot.kick.take()
        {
            let _ = kick.send(why);
        }
    }

    pub(super) fn kick_all(&self, why: Kick) {
        for slot in self.slots().values_mut() {
            if let Some(kick) = slot.kick.take() {
                let _ = kick.send(why);
            }
        }
    }

    pub(super) fn agents(&self) -> Vec<AgentId> {
        self.slots().keys().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slots().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_session_has_the_say() {
        let registry = Registry::default();
        let agent = AgentId([1; 16]);
        let (first, mut first_kicked) = registry.enter(agent);
        *registry.turn(&first).await.expect("alone") = true;
        let (second, mut second_kicked) = registry.enter(agent);
        assert_eq!(first_kicked.try_recv(), Ok(Kick::Replaced));
        assert!(registry.turn(&first).await.is_none());
        registry.leave(&first);
        assert_eq!(registry.len(), 1);
        assert!(*registry.turn(&second).await.expect("the newest"), "what the first told still holds");
        let telling = registry.turn(&second).await;
        registry.kick_known(agent, Kick::Replaced);
        assert!(second_kicked.try_recv().is_err(), "it is being let in");
        drop(telling);
        registry.kick(agent, Kick::Removed);
        assert_eq!(second_kicked.try_recv(), Ok(Kick::Removed));
        registry.leave(&second);
        assert_eq!(registry.len(), 0);
        registry.kick(agent, Kick::Removed);
    }
}
