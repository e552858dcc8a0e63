//! What is in a folder, on disk: every entry with what `stat` tells of it and the hashes of its blocks,
//! kept up to date by scans and by the system's notices of change. `edge-agent/INDEX_FORMAT.md` is the
//! specification; the code cites it as §n.
//!
//! Owns the index of one folder ([`Index`]), the scans that bring it up to date ([`scan`]), the watcher
//! ([`watch`]), the thread that keeps one folder's index current ([`Keeper`]), and the look-up of content
//! in all folders of an agent ([`Catalog`]). Leaves out what is done with it: runs, manifests and the
//! synchronization of replicas read it through [`Snapshot`].
//!
//! Memory does not grow with the number of files: what is known lies in a database file per folder, read
//! through a cache of fixed size. Everything here blocks and belongs on threads of its own.

mod catalog;
mod content;
#[cfg(test)]
mod crash;
mod guard;
mod ignores;
mod index;
mod keeper;
mod known;
pub mod limits;
mod patterns;
mod record;
pub mod scan;
mod snapshot;
#[cfg(test)]
mod synthetic;
mod tables;
pub mod watch;

pub use catalog::{Catalog, IndexStatus, Place};
pub use content::ContentKey;
pub use guard::{GuardConfig, Suspicion};
pub use ignores::{IGNORE_FILE, Ignores, Priorities, RulesError, rules_in};
pub use index::{Counters, Index, IndexError};
pub use keeper::{Keeper, KeeperConfig, KeeperStatus, Phase};
pub use known::Known;
pub use record::{Content, FolderId, Kind, Record, Stamp, Time};
pub use snapshot::{Change, Entry, Gone, Snapshot};
