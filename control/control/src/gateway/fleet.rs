//! What the gateway asks of the service behind it.
//!
//! The gateway speaks TLS and frames and knows nothing of the log; the service implements [`Fleet`]
//! and knows nothing of sockets. All calls for one agent's session come from one task.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use agent_proto::link::{CheckpointSent, Hello, Holds, Progress, Refused};
use event_audit::SignedCheckpoint;
use event_schema::{AgentId, Signed};
use tokio::sync::{broadcast, watch};

use crate::sealing::Heard;
use crate::service::Ousted;

/// An agent that proved to hold `public_key` asks to be let in.
#[derive(Clone)]
pub struct EnrolRequest {
    /// Its id, derived from the key.
    pub agent: AgentId,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// Its name for itself; at most [`agent_proto::limits::NAME_LEN_MAX`] bytes.
    pub name: String,
    /// Its own tags, within [`agent_proto::limits::TAGS_MAX`]; those of the token win.
    pub tags: Vec<(String, String)>,
    /// The token's text as it was shown, at most 256 bytes, perhaps malformed. A secret: not to be
    /// logged.
    pub token: Option<String>,
    /// Version of the agent program.
    pub version: String,
    /// Where it came from.
    pub address: SocketAddr,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("agent", &self.agent)
            .field("name", &self.name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The service's answer to an [`EnrolRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolDecision {
    /// Let in (now, or before: asking twice is one fact). The gateway issues certificate and
    /// credential.
    Approved {
        /// The agent's name in the fleet, written into its credential.
        name: String,
    },
    /// Known, not approved yet.
    Pending {
        /// Seconds after which it should ask again.
        retry_after_s: u32,
    },
    /// Turned away.
    Refused(Refused),
}

/// What a session begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The agent's name in the fleet, for a renewed credential.
    pub name: String,
    /// Its reports up to this sequence are on the log; 0 if none is.
    pub reports_stored: u64,
}

/// Why reports could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// The agent's fault (signature, audience, gap in the sequence): the link is closed with this
    /// answer.
    Refused(Refused),
    /// The log is not to be had at the moment; the link is closed and the agent sends them again.
    Unavailable(String),
}

/// The service as the gateway sees it.
///
/// For one agent `connected` and `disconnected` never overlap. When a newer session replaces an older
/// one, `connected` is called again without a `disconnected` between.
pub trait Fleet: Send + Sync + 'static {
    /// Decides about an agent that wants to be let in. Its proof of the key was checked.
    fn enrol(&self, request: EnrolRequest) -> impl Future<Output = EnrolDecision> + Send;

    /// An agent with a valid certificate of this fleet said hello: record it as online.
    /// Unspecified IPs in `hello.addresses` are replaced by the one seen already.
    ///
    /// Refuse agents that are unknown, not approved or removed. When the future is dropped, it may be recorded all the
    /// same; the gateway then says `disconnected`.
    fn connected(
        &self,
        agent: AgentId,
        hello: Hello,
        address: SocketAddr,
    ) -> impl Future<Output = Result<Session, Refused>> + Send;

    /// The agent's last session ended: record it as offline. `reason` is one line for people.
    fn disconnected(&self, agent: AgentId, reason: String) -> impl Future<Output = ()> + Send;

    /// Signed reports in the order they came, 1 to 64: verify, drop those known, append the rest.
    /// Returns the sequence up to which all are on the log; the agent then forgets them.
    fn reports(
        &self,
        agent: AgentId,
        reports: Vec<Signed>,
    ) -> impl Future<Output = Result<u64, ReportError>> + Send;

    /// Telemetry; must not block.
    fn progress(&self, agent: AgentId, progress: Progress);

    /// Commands for `agent` with sequences beyond `cursor`, in order, at most `max`.
    fn commands_after(
        &self,
        agent: AgentId,
        cursor: u64,
        max: usize,
    ) -> impl Future<Output = Vec<(u64, Signed)>> + Send;

    /// Changes whenever there is a new command for `agent`; the value is its sequence.
    fn command_watch(&self, agent: AgentId) -> watch::Receiver<u64>;

    /// The log's newest signed checkpoint, for agents that are its witnesses. None: nothing is sealed, and nobody is
    /// asked what he holds.
    fn sealed(&self) -> Option<watch::Receiver<Option<Arc<SignedCheckpoint>>>> {
        None
    }

    /// The last position that is durable.
    fn log_position(&self) -> u64 {
        0
    }

    /// An agent said what it holds (within the limits of `edge-agent/PROTOCOL.md` §2.6): compare it with the log.
    fn holds(&self, _agent: AgentId, _holds: Holds) -> impl Future<Output = Heard> + Send {
        async { Heard::default() }
    }

    /// The newest checkpoint and its size for an agent that holds what was heard; none if there is nothing to show.
    fn checkpoint(
        &self,
        _heard: Heard,
        _with_keys: bool,
    ) -> impl Future<Output = Option<(u64, CheckpointSent)>> + Send {
        async { None }
    }

    /// Whether the agent was removed.
    fn is_removed(&self, agent: AgentId) -> bool;

    /// What [`Fleet::ousted`] would have said last of an agent that was connected here: none if it may stay.
    fn must_leave(&self, agent: AgentId) -> Option<Ousted>;

    /// Tells agents that have to leave from now on; the gateway ends the sessions of those that were removed
    /// with `Refused(Removed)`, others without a word. When it lags, the gateway asks [`Fleet::must_leave`] for
    /// every session instead.
    fn ousted(&self) -> broadcast::Receiver<Ousted>;

    /// Gateways (`HOST:PORT`) that agents may go to, this one first; empty where there is no other. Agents that
    /// understand it are told, again whenever it changes.
    fn gateways(&self) -> watch::Receiver<Arc<[String]>>;
}
