//! What a synchronization job shows of itself.

use std::collections::BTreeMap;

use serde::Serialize;
use sync_core::sync::{Counters, Obstacle};

use super::store::Waiting;

/// Paths that are shown of each list.
const SHOWN: usize = 100;

/// A synchronization job as `flotilla-agent status` shows it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SyncStatus {
    /// Files, folders and links that are here.
    pub(crate) entries: u64,
    /// What others have and is still to be brought here.
    pub(crate) to_bring: u64,
    /// What others deleted and is still here.
    pub(crate) to_remove: u64,
    /// Content bytes of the first of what is to be brought.
    pub(crate) bytes_left: u64,
    /// What is gone here and not yet taken for deleted.
    pub(crate) missing: u64,
    /// Too much went at once: nothing is told or changed until somebody says whether it was meant.
    pub(crate) guarded: bool,
    /// Conflict copies that are here.
    pub(crate) conflicts: u64,
    /// Some of them.
    pub(crate) conflict_copies: Vec<String>,
    /// What cannot be here.
    pub(crate) blocked: u64,
    /// Some of that, with the reason.
    pub(crate) blocked_paths: BTreeMap<String, String>,
    /// Changes made here since the start.
    pub(crate) made: u64,
    /// Changes of others heard of since the start.
    pub(crate) learned: u64,
    /// Changes made to the folder since the start.
    pub(crate) changes: u64,
    /// Blocks fetched since the start.
    pub(crate) blocks: u64,
    /// Files found on this agent instead of fetched, since the start.
    pub(crate) reused: u64,
    /// Files moved instead of fetched, since the start.
    pub(crate) moved: u64,
    /// Messages and blocks of others that were refused, since the start.
    pub(crate) refused: u64,
    /// Folders whose changes are noticed at once, and those that only scans see.
    pub(crate) watched: u64,
    /// See `watched`.
    pub(crate) unwatched: u64,
    /// Why nothing is done, if so.
    pub(crate) trouble: Option<String>,
}

impl SyncStatus {
    /// Takes over counts.
    pub(super) fn count(&mut self, waiting: Waiting, counters: &Counters) {
        self.to_bring = waiting.pull;
        self.to_remove = waiting.remove;
        self.conflicts = waiting.copies;
        self.blocked = waiting.blocked;
        self.made = counters.made;
        self.learned = counters.learned;
        self.changes = counters.changes;
        self.blocks = counters.blocks;
        self.reused = counters.reused;
        self.moved = counters.moved;
        self.refused = counters.refused + counters.bad_blocks;
    }

    /// Takes over lists, as far as they are shown.
    pub(super) fn list(&mut self, copies: &[Vec<u8>], blocked: &BTreeMap<Vec<u8>, Obstacle>) {
        let text = |path: &[u8]| path.escape_ascii().to_string();
        self.conflict_copies = copies.iter().take(SHOWN).map(|path| text(path)).collect();
        self.blocked_paths =
            blocked.iter().take(SHOWN).map(|(path, why)| (text(path), reason(why))).collect();
    }
}

/// Why something cannot be here, for people.
fn reason(why: &Obstacle) -> String {
    match why {
        Obstacle::NameTaken { by } => {
            format!("this file system takes the name for that of {}; rename one of them", by.escape_ascii())
        }
        Obstacle::BadName => "this file system cannot have such a name".into(),
        Obstacle::NobodyHas => "nobody who can be reached has its content (any more)".into(),
        Obstacle::UnsafeLink => "the symlink leads out of the folder".into(),
        Obstacle::TooLarge => "it, or its metadata, is larger than members take".into(),
        Obstacle::NoFolder => "the folder above it is not here".into(),
        Obstacle::NotEmpty => "the folder holds things that are not synchronized".into(),
    }
}
