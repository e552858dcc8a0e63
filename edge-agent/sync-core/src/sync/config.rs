//! Every setting and limit of synchronization, with its reason (SYNC.md §9).

use alloc::vec::Vec;
use core::time::Duration;

use event_schema::{AgentId, RunId};

/// Replicas of one agent that are taken from that agent itself: each is one loss of its index.
pub(super) const REPLICAS_PER_AGENT_MAX: usize = 64;
/// Heads kept of one replica: of so many copies of one index.
pub(super) const RIVALS_MAX: usize = 4;
/// Starts of this agent that its index remembers.
pub(super) const LIVES_KEPT: usize = 64;
/// Paths that a peer is told again in one session because it lost a part of them.
pub(super) const ECHOES_MAX: usize = 256;
/// Members of a job: their summaries are in memory, each with each.
pub const MEMBERS_MAX: usize = 256;
/// Holders kept of a row.
pub(super) const HOLDERS_MAX: usize = 8;
/// Rows looked at in one go, so that a call stays short.
pub(super) const STEP: usize = 256;
/// Blocked rows, and deletions, looked at in one upkeep; the next goes on from there.
pub(super) const UPKEEP_MAX: usize = 4096;
/// Requests for hashes of one peer that wait; our own have 64.
pub(super) const HASH_REQUESTS_MAX: usize = 256;
/// Paths whose next try is remembered; more are tried early.
pub(super) const RETRIES_MAX: usize = 4096;
/// Contents of what is gone while people are asked about it: 40 bytes each.
pub(super) const GONE_MAX: usize = 16_384;
/// Files that came or went just now and may have been moved; more are a deletion and a copy.
pub(super) const RECENT_MAX: usize = 4096;
/// Bytes of entries in one message, or one entry: far below a peer message's limit, with room for heads.
pub(super) const BATCH_BYTES: usize = 256 * 1024;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Its changes are everybody's.
    ReadWrite,
    /// It only receives.
    ReadOnly,
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub agent: AgentId,
    /// What it may do.
    pub permission: Permission,
}

/// What becomes of changes at a read-only member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalChanges {
    /// A changed file is kept under `name.local-<n>.ext`, new files stay; neither is told.
    KeepAside,
    /// Changed and new files go to the archive.
    Revert,
}

/// Settings of one member's replica.
#[derive(Clone, Debug)]
pub struct Config {
    /// The endless run of the job.
    pub run: RunId,
    /// This agent.
    pub agent: AgentId,
    /// Its public key.
    pub key: [u8; 32],
    /// Random, new at every start: becomes an incarnation if one is needed.
    pub fresh: u64,
    /// Default [`LocalChanges::KeepAside`]: nothing disappears that somebody made.
    pub local_changes: LocalChanges,
    /// More than this share of the entries gone at once is not believed, in percent; from 100 on nobody is asked. Default
    /// 25.
    pub guard_percent: u64,
    /// Fewer gone entries than this are always believed. Default 20: a folder emptied by hand.
    pub guard_min: u64,
    /// Deletions less than this apart are one for the guard, however long it takes. Default 5 min.
    pub guard_quiet: Duration,
    /// How long after the last deletion was noticed they are believed together. Default 2 s: a move is seen whole …
    pub delete_delay: Duration,
    /// … but at the latest so long after the first. Default 20 s.
    pub delete_delay_max: Duration,
    /// Files fetched at once: each has a staged file, and a page of hashes if it is large. Default 64.
    pub transfers_max: usize,
    /// Changes of the file system under way at once. Default 64.
    pub changes_max: usize,
    /// Blocks asked of one peer. Default 512: 16 MiB, 1 Gbit/s at 130 ms.
    pub pipeline: usize,
    /// Blocks asked of one peer for one file in one go. Default 64: 2 MiB, so that a file comes from several.
    pub stretch: usize,
    /// Blocks of one peer given to the transport and not acknowledged. Default 512.
    pub sending_max: usize,
    /// Files that a peer may have asked for and not got. Default 4096; more is a flood and dropped.
    pub queue_max: usize,
    /// Pieces of the index on their way to one peer. Default 4: 1 MiB.
    pub pieces_max: u64,
    /// A peer that owes blocks or hashes and gives none for so long gives them back. Default 8 s.
    pub request_timeout: Duration,
    /// How long it is then left alone; doubles up to 32 times. Default 4 s.
    pub snub: Duration,
    /// Wrong blocks or hashes after which nothing is fetched from a peer. Default 3: a file may change as it is read.
    pub strikes: u32,
    /// Refused messages after which a peer is to be disconnected. Default 3.
    pub refusals: u32,
    /// Before a file that could not be placed is tried again; doubles up to 64 times. Default 500 ms.
    pub retry: Duration,
    /// How long a file whose content is here at another path waits for that one to go: then it can be moved, and
    /// need not be copied. Default 1 s.
    pub move_grace: Duration,
    /// Rows looked at in one go of a walk over all of them. Default 2048: some milliseconds.
    pub walk: usize,
    /// How often blocked rows and deletions that all may know are looked at. Default 15 s.
    pub upkeep: Duration,
    /// Least time between two tellings of what is known to one peer. Default 1 s.
    pub tell_known: Duration,
}

impl Config {
    /// The defaults.
    pub fn new(run: RunId, agent: AgentId, key: [u8; 32], fresh: u64) -> Self {
        Self {
            run,
            agent,
            key,
            fresh,
            local_changes: LocalChanges::KeepAside,
            guard_percent: 25,
            guard_min: 20,
            guard_quiet: Duration::from_secs(300),
            delete_delay: Duration::from_secs(2),
            delete_delay_max: Duration::from_secs(20),
            transfers_max: 64,
            changes_max: 64,
            pipeline: 512,
            stretch: 64,
            sending_max: 512,
            queue_max: 4096,
            pieces_max: 4,
            request_timeout: Duration::from_secs(8),
            snub: Duration::from_secs(4),
            strikes: 3,
            refusals: 3,
            retry: Duration::from_millis(500),
            move_grace: Duration::from_secs(1),
            walk: 2048,
            upkeep: Duration::from_secs(15),
            tell_known: Duration::from_secs(1),
        }
    }
}

/// What this member wants of the tree, and what its file system can name.
pub trait Policy {
    /// Whether a folder, or anything else, is to be here at this path. True for every folder above a path that is wanted.
    fn wants(&self, path: &[u8], folder: bool) -> bool;
    /// Whether the file system can have such a name.
    fn allows(&self, _path: &[u8]) -> bool {
        true
    }
    /// Whether a symlink may be made: one that leads out of the folder may not.
    fn allows_link(&self, _path: &[u8], _target: &[u8]) -> bool {
        true
    }
    /// The form in which the file system takes names for the same, if it is not the name itself: by case, by Unicode
    /// form. `Some` always or never.
    fn fold(&self, _path: &[u8]) -> Option<Vec<u8>> {
        None
    }
    /// Whether two encodings of metadata are the same as far as this file system can tell them apart.
    fn same_meta(&self, a: &[u8], b: &[u8]) -> bool {
        a == b
    }
}

/// Wants everything and can name everything.
pub struct Everything;

impl Policy for Everything {
    fn wants(&self, _path: &[u8], _folder: bool) -> bool {
        true
    }
}
