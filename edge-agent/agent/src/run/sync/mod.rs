//! Synchronization jobs on this agent (SYNC.md): the machine of `sync_core::sync` with a real folder, index and peers.
//!
//! Read `task.rs` first: it wakes for connections, messages, blocks, the folder and time, tells the machine, and carries
//! out what that asks for; `peers.rs` has connections, `reaching.rs` finds ways to members. `engine.rs` puts together what works on the folder: `store.rs` is the durable index, `scout.rs`
//! learns what is in the folder, `stage.rs` brings files together, `change.rs` puts them in place, `serve.rs` gives others
//! what is here.

mod attic;
mod change;
mod engine;
mod link;
mod meta;
mod overlay;
mod peers;
mod reaching;
mod scout;
mod serve;
mod stage;
mod status;
mod store;
mod task;
#[cfg(test)]
mod tests;
mod told;
mod tree;

use event_schema::{AgentId, RunId, Selection, Synchronize};
use sync_core::sync::{LocalChanges, Member, Permission};

use attic::Keep;
pub(super) use status::SyncStatus;
pub(super) use task::SyncTask;

/// Blocks of one peer that the machine gives the transport at a time: 8 MiB.
const SENDING: usize = 256;

/// Bytes read for all peers of a job and not acknowledged.
const SENDING_BYTES: usize = 48 << 20;

/// One agent's part in a synchronization job.
#[derive(Clone, Debug)]
pub(crate) struct SyncJob {
    /// The endless run of the job.
    pub(crate) run: RunId,
    /// The job's name.
    pub(crate) name: String,
    /// Where the folder is here, as a command gives it.
    pub(crate) path: Vec<u8>,
    /// Everybody who takes part, this agent too.
    pub(crate) members: Vec<SyncMember>,
    /// What becomes of changes here if this agent may only read.
    pub(crate) local_changes: LocalChanges,
    /// What of the tree is wanted here, beside the rules of the folder itself.
    pub(crate) selection: Selection,
    /// From where on many deletions are asked about: percent of the entries, and least number.
    pub(crate) guard: (u8, u32),
    /// How long displaced files are kept; none: not at all.
    pub(crate) keep: Option<Keep>,
    /// Trackers, `HOST:PORT` each.
    pub(crate) trackers: Vec<String>,
}

/// A member of a synchronization job.
#[derive(Clone, Debug)]
pub(crate) struct SyncMember {
    /// Who.
    pub(crate) agent: AgentId,
    /// Its Ed25519 key.
    pub(crate) key: [u8; 32],
    /// What it may do.
    pub(crate) permission: Permission,
    /// Where it was last seen, `IP:PORT` each.
    pub(crate) addresses: Vec<String>,
}

impl SyncJob {
    /// What a command says.
    pub(crate) fn of(order: Synchronize) -> Self {
        use event_schema::{LocalChanges as Local, Permission as Right};
        let permission = |right| match right {
            Right::ReadWrite => Permission::ReadWrite,
            Right::ReadOnly { .. } => Permission::ReadOnly,
        };
        let member = |peer: event_schema::SyncPeer| SyncMember {
            agent: peer.agent,
            key: peer.public_key,
            permission: permission(peer.permission),
            addresses: peer.addresses,
        };
        Self {
            run: order.run,
            name: order.job_name,
            path: order.path,
            local_changes: match order.permission {
                Right::ReadOnly { local: Local::Revert } => LocalChanges::Revert,
                Right::ReadWrite | Right::ReadOnly { local: Local::KeepAside } => LocalChanges::KeepAside,
            },
            members: order.members.into_iter().map(member).collect(),
            selection: order.selection,
            guard: (order.policy.guard_percent, order.policy.guard_min),
            keep: order.policy.archive.map(|a| Keep { days: a.max_age_days, bytes: a.max_bytes }),
            trackers: order.trackers,
        }
    }

    fn members_for_machine(&self) -> Vec<Member> {
        self.members.iter().map(|m| Member { agent: m.agent, permission: m.permission }).collect()
    }
}
