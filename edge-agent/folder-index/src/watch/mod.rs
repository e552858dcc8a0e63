//! Noticing changes as they happen (§8): what the system tells, behind one interface, and when it has
//! come to rest.
//!
//! A watcher is never relied on: what it misses, the next scan finds.

mod inotify;
mod settle;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Instant;

pub use inotify::Inotify;
pub use settle::{Settle, SettleConfig};

use crate::record::FolderId;

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Something came or went or was renamed, a file was closed by who had written to it, or its mode or
    /// owner changed: it can be looked at.
    Done,
    /// A file is being written to: more of it is to be expected.
    Writing,
}

/// Where a watcher puts what it notices; it may be called from any thread.
pub trait Notice: Send + Sync {
    /// Something happened to a name in a folder.
    fn name(&self, now: Instant, folder: FolderId, name: &[u8], how: How);
    /// Notices were lost, or the folder itself went: everything is to be looked at.
    fn everything(&self);
}

/// What became of the wish to watch a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// It is watched.
    Yes,
    /// The system has no more room for watches, or knows none here: only scans find what changes in it.
    No,
}

/// The system's notices of change. [`Inotify`] on Linux; for others (ReadDirectoryChangesW and fanotify
/// tell of whole trees) `watch` does nothing below the root.
pub trait Watcher: Send {
    /// Watches a folder from now on, itself and not what is below. A second time changes nothing. `file`
    /// is the folder, opened; `path` is where it is.
    fn watch(&mut self, folder: FolderId, file: BorrowedFd<'_>, path: &Path) -> Watched;
    /// Ends that.
    fn unwatch(&mut self, folder: FolderId);
    /// Whether this one is watched.
    fn watches(&self, folder: FolderId) -> bool;
    /// Folders watched.
    fn count(&self) -> usize;
}
