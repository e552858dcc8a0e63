//! State and projections in one piece, so that a service need not fold its whole log to begin.
//!
//! Texts under a subject's key are in it as they are on the log, sealed: who reads a snapshot back has to open them
//! ([`Snapshot::private`]), and what was erased meanwhile stays shut.
//!
//! Nothing is promised about these bytes: a snapshot is read by the program that wrote it, or by one with the same
//! [`VERSION`], and thrown away by every other. What outlives programs is the log, and the [`form`](crate::form)s of
//! the state.

use std::collections::BTreeMap;

use event_schema::{DecodeError, RecordId, RunId, Visit, decode_exact, encode};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::projection::Views;

/// The shape of a snapshot. Raised whenever a type in it changes, or the way in which events are folded:
/// `tests/snapshots.rs` notices the first.
pub const VERSION: u16 = 7;

/// Everything that a service has folded at one position.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Snapshot {
    /// What decisions rest on.
    pub state: State,
    /// What readers see, with the position.
    pub views: Views,
    /// The first record of each run that is remembered.
    pub correlations: BTreeMap<RunId, RecordId>,
    /// Position of the newest attestation of the state.
    pub attested: u64,
}

/// The same, borrowed from those who own it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SnapshotRef<'s> {
    /// See [`Snapshot::state`].
    pub state: &'s State,
    /// See [`Snapshot::views`].
    pub views: &'s Views,
    /// See [`Snapshot::correlations`].
    pub correlations: &'s BTreeMap<RunId, RecordId>,
    /// See [`Snapshot::attested`].
    pub attested: u64,
}

impl SnapshotRef<'_> {
    /// The bytes of this [`VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Snapshot {
    /// Reads bytes of this [`VERSION`] back.
    ///
    /// # Errors
    /// If they are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut snapshot: Self = decode_exact("Snapshot", bytes)?;
        snapshot.state.name_anew();
        Ok(snapshot)
    }

    /// Every text in it that is under a subject's key; [`State::name_anew`] is due when some were opened.
    pub fn private(&mut self, visit: &mut Visit<'_>) {
        self.state.private(visit);
        self.views.private(visit);
    }
}
