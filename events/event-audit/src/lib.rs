//! History that proves itself: the event log as a Merkle tree with signed heads.
//!
//! Without features, the checking part, `no_std`: hashes ([`hash`]), the growing edge of a tree ([`frontier`]),
//! inclusion and consistency proofs ([`proof`]), signed notes ([`note`]), checkpoints ([`checkpoint`]) and the keys
//! that sign them ([`keys`]), tiles ([`tile`]), proofs as texts ([`message`]), and what a witness does with what it is
//! shown ([`witness`]).
//!
//! With `std`: the tree of a log kept on disk (`ledger`), and a whole history in one file that names its first bad
//! entry (`export`).
//!
//! What an entry means is `event-schema`'s business, where it is stored `event-log`'s; here it is bytes with an index.
//! Indices count from 0, as in RFC 9162: the record at position *p* of the log has index *p* − 1. What people read
//! names positions.
//!
//! Read first: `events/AUDIT_FORMAT.md`; code cites its sections.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod checkpoint;
pub mod frontier;
pub mod hash;
pub mod keys;
pub mod limits;
pub mod message;
pub mod note;
pub mod proof;
pub mod tile;
pub mod witness;

#[cfg(feature = "std")]
pub mod export;
#[cfg(feature = "std")]
pub mod ledger;

pub use checkpoint::{Checkpoint, SignedCheckpoint};
pub use hash::{Hash, Head};
