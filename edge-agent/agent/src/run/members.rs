//! Who may connect: the members of the runs we are in, with credentials of our fleet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_proto::{Credential, TrustBundle};
use event_schema::{AgentId, JoinRun};
use tokio::sync::watch;
use utp2::{ContextId, PeerIdentity};

use crate::clock::FleetClock;

/// Ed25519 keys of a run's participants.
type Keys = BTreeMap<AgentId, [u8; 32]>;

/// The runs we are in and who takes part.
#[derive(Clone)]
pub(super) struct Members {
    runs: Arc<Mutex<HashMap<ContextId, Keys>>>,
    trust: watch::Receiver<TrustBundle>,
    clock: Arc<FleetClock>,
    /// Any member of the fleet may use a relay, or be one.
    relay_context: ContextId,
}

impl Members {
    pub(super) fn new(
        trust: watch::Receiver<TrustBundle>,
        clock: Arc<FleetClock>,
        relay_context: ContextId,
    ) -> Self {
        Self { runs: Arc::default(), trust, clock, relay_context }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<ContextId, Keys>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the participants of a run in.
    pub(super) fn add(&self, context: ContextId, join: &JoinRun) {
        self.add_keys(context, join.peers.iter().map(|p| (p.agent, p.public_key)));
    }

    /// Lets these in, and nobody else. A key that is not its agent's does not count.
    pub(super) fn add_keys(&self, context: ContextId, keys: impl Iterator<Item = (AgentId, [u8; 32])>) {
        let keys = keys.filter(|(agent, key)| AgentId::of_key(key) == *agent);
        self.runs().insert(context, keys.collect());
    }

    /// The fleet's clock.
    pub(super) fn clock(&self) -> &Arc<FleetClock> {
        &self.clock
    }

    pub(super) fn remove(&self, context: ContextId) {
        self.runs().remove(&context);
    }

    /// The decision, once the peer has proved the run's secret and its key.
    pub(super) fn may_connect(&self, context: ContextId, peer: &PeerIdentity) -> bool {
        let agent = AgentId::of_key(&peer.public_key);
        let is_participant =
            || self.runs().get(&context).is_some_and(|keys| keys.get(&agent) == Some(&peer.public_key));
        if context != self.relay_context && !is_participant() {
            tracing::info!(%agent, "turned away: not in this run");
            return false;
        }
        let trust = self.trust.borrow();
        let opened = Credential::open(
            &peer.credential,
            &trust.credential_keys,
            &trust.root_key,
            &peer.public_key,
            self.clock.now(),
        );
        match opened {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%agent, %error, "turned away");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use ed25519_dalek::SigningKey;
    use event_schema::{JobId, PeerHint, Role, RunId, Timestamp};

    const RELAY: ContextId = ContextId([9; 16]);

    #[test]
    fn only_members_of_the_run_and_fleet() {
        let (root, issuer, agent) = (
            SigningKey::from_bytes(&[1; 32]),
            SigningKey::from_bytes(&[2; 32]),
            SigningKey::from_bytes(&[3; 32]),
        );
        let bundle = TrustBundle {
            version: 1,
            root_key: root.verifying_key().to_bytes(),
            command_keys: Vec::new(),
            credential_keys: vec![issuer.verifying_key().to_bytes()],
            ca_certificate: Vec::new(),
        };
        let public_key = agent.verifying_key().to_bytes();
        let credential = |fleet, not_after| Credential {
            version: 1,
            fleet,
            public_key,
            name: "nas".into(),
            not_before: Timestamp(0),
            not_after,
        };
        let hint = |public_key| PeerHint {
            agent: AgentId::of_key(&public_key),
            public_key,
            role: Role::Destination,
            addresses: Vec::new(),
        };
        let join = |peers| JoinRun {
            run: RunId([1; 16]),
            job: JobId([1; 16]),
            job_name: String::new(),
            role: Role::Source,
            path: Vec::new(),
            source: AgentId([0; 16]),
            peers,
            trackers: Vec::new(),
            sealed_secret: Vec::new(),
        };
        let (_sender, trust) = watch::channel(bundle.clone());
        let members = Members::new(trust, Arc::default(), RELAY);
        let (ours, other) = (ContextId([1; 16]), ContextId([2; 16]));
        members.add(ours, &join(vec![hint(public_key)]));
        members.add(other, &join(vec![hint([9; 32])]));
        let may = |context, credential: &Credential, issuer: &SigningKey| {
            members.may_connect(context, &PeerIdentity { public_key, credential: credential.sign(issuer) })
        };
        let good = credential(bundle.root_key, Timestamp::NEVER);
        assert!(may(ours, &good, &issuer));
        assert!(!may(other, &good, &issuer), "in another run");
        assert!(!may(ours, &good, &root), "signed by somebody else");
        assert!(!may(ours, &credential([7; 32], Timestamp::NEVER), &issuer), "of another fleet");
        assert!(!may(ours, &credential(bundle.root_key, Timestamp(clock::now().0 - 1)), &issuer), "expired");
        assert!(may(RELAY, &good, &issuer), "relays serve the fleet");
        assert!(!may(RELAY, &good, &root), "and nobody else");
        assert!(!may(RELAY, &credential([7; 32], Timestamp::NEVER), &issuer));
        members.remove(ours);
        assert!(!may(ours, &good, &issuer));
    }
}
