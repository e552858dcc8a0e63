//! The shapes of the API that are about synchronizations.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
    )+};
}

shapes! {
    /// Who takes part in a synchronization, and how, as one asks for it.
    ShareWish {
        /// An agent (name, id, unique beginning of an id) or a group (name, id); `agent:` or `group:` before it tells
        /// them apart where both exist.
        party: String,
        /// The folder.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path: Option<String>,
        /// Instead of `path`, its bytes in hex.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// `read_write` (the default: its changes are everybody's), `read_only` (it only receives; what is changed there
        /// is kept aside) or `read_only_revert` (what is changed there goes to its archive).
        #[serde(skip_serializing_if = "Option::is_none", default)]
        permission: Option<String>,
        /// What is left out there: lines as in a `.gitignore` at the top of the folder. At most 256 with `wanted`.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        ignore: Vec<String>,
        /// What alone is wanted there, in the same form; everything if there is none.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        wanted: Vec<String>,
    }
    /// Who takes part in a synchronization, and how.
    ShareView {
        /// `agent` or `group`.
        kind: String,
        /// Id of the agent or group.
        id: String,
        /// Its name.
        name: String,
        /// The folder.
        path: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// `read_write`, `read_only` or `read_only_revert`.
        permission: String,
        /// What is left out there.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        ignore: Vec<String>,
        /// What alone is wanted there; everything if there is none.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        wanted: Vec<String>,
    }
    /// What is to hold for all members of a synchronization. What is not said stays as it is, or is the default.
    PolicyWish {
        /// How long what was replaced or deleted is kept in each member's archive: `30d` (the default), `10GB` (the oldest
        /// goes first), both as `30d,10GB`, `unlimited`, or `none`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        archive: Option<String>,
        /// A person is asked before more than this share of a member's entries is deleted at once, in percent; 100: never.
        /// Default 25.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        guard_percent: Option<u8>,
        /// Fewer entries than this are deleted without a question. Default 20.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        guard_min: Option<u32>,
    }
    /// What holds for all members of a synchronization.
    PolicyView {
        /// How long what was replaced or deleted is kept: `30d`, `10GB`, `30d,10GB`, `unlimited` or `none`.
        archive: String,
        /// A person is asked before more than this share of a member's entries is deleted at once, in percent; 100: never.
        guard_percent: u8,
        /// Fewer entries than this are deleted without a question.
        guard_min: u32,
    }
    /// A change of who takes part in a synchronization that runs.
    SharesWish {
        /// Who takes part from now on, or how from now on. Groups are resolved now.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        add: Vec<ShareWish>,
        /// Agents and groups (names, ids) that take part no more; their files stay.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        remove: Vec<String>,
    }
    /// A person's answer to the guard of a member.
    GuardWish {
        /// Which member: name, id or unique beginning of the id.
        agent: String,
        /// `delete` (the deletions were meant) or `restore` (everything is fetched again).
        answer: String,
    }
    /// A synchronization, beside what every run has. It has no end until it is stopped.
    SyncView {
        /// In words: `in sync`, `2 of 5 behind`, `guard asks at nas-1`, `3 conflicts` and the like, the most urgent first.
        status: String,
        /// Who takes part now.
        members: u64,
        /// Members that say that they have all they know of.
        in_sync: u64,
        /// Members that are at work: scanning, syncing, or not begun.
        behind: u64,
        /// Members that are not connected to this service; they may be at work all the same.
        away: u64,
        /// Members that have failed, are stalled, or cannot reach their folder.
        failing: u64,
        /// Members whose guard waits for an answer.
        guarded: u64,
        /// Conflicts that nobody has seen to, as far as they are listed (at most 1,000).
        conflicts: u64,
        /// Conflicts that were seen to.
        conflicts_settled: u64,
        /// Paths at which something cannot be, as members told last.
        blocked: u64,
        /// What holds for all members.
        policy: PolicyView,
        /// How often members or policy were set.
        revision: u32,
    }
    /// A member of a synchronization, beside what every agent of a run has.
    SyncMemberView {
        /// `read_write`, `read_only` or `read_only_revert`.
        permission: String,
        /// What is left out there.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        ignore: Vec<String>,
        /// What alone is wanted there; everything if there is none.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        wanted: Vec<String>,
        /// It was taken out, and has not said yet that it stopped.
        #[serde(default)]
        left: bool,
        /// `in_sync`, `syncing`, `scanning`, `guarded`, `no_folder`, `stalled`, `failed`, `stopped`, `away` (not connected
        /// to this service) or `waiting` (nothing told yet).
        standing: String,
        /// Files, folders and symlinks in its folder, as it told last.
        entries: u64,
        /// Entries that are to be brought, changed or removed yet.
        left_entries: u64,
        /// Bytes that are to be fetched yet.
        left_bytes: u64,
        /// Conflict copies in its tree.
        conflicts: u64,
        /// What its guard asks.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        guard: Option<GuardView>,
        /// Paths at which something cannot be, at most 100.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        blocked: Vec<BlockedView>,
        /// How many there are.
        blocked_total: u64,
        /// How often its index turned out to be an older copy of itself.
        rolled_back: u64,
    }
    /// A question: so much is gone from a member's folder that nothing is told or changed until somebody answers.
    GuardView {
        /// Since when.
        since: String,
        /// Entries that are gone.
        missing: u64,
        /// Of how many.
        total: u64,
        /// `delete` or `restore`, if it was answered and is not carried out yet.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        answer: Option<String>,
    }
    /// A path at which something cannot be.
    BlockedView {
        /// Inside the folder.
        path: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// `name_taken`, `bad_name`, `nobody_has`, `unsafe_link`, `no_folder`, `not_empty` or `too_large`.
        obstacle: String,
        /// What has its name, if that is why.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        by: Option<String>,
        /// Since when.
        since: String,
    }
    /// Conflicts of a synchronization that nobody has seen to. Removing or renaming the copy, at any member, settles one.
    ConflictsView {
        /// Oldest first, at most 1,000.
        conflicts: Vec<ConflictView>,
        /// How many were settled.
        settled: u64,
        /// Position of the log that this answer shows.
        as_of: u64,
    }
    /// A file of which two versions are kept.
    ConflictView {
        /// Where the version is that won, inside the folder.
        path: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        path_hex: Option<String>,
        /// Where the other one is.
        copy: String,
        /// Its bytes in hex, if they are no UTF-8.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        copy_hex: Option<String>,
        /// Whose change won.
        winner: String,
        /// Whose change is in the copy.
        loser: String,
        /// Who told of it first.
        found_by: String,
        /// When that was recorded.
        found: String,
    }
}
