//! The event log: the contract ([`EventLog`]), the embedded backend on segment files ([`file::FileLog`]), one in
//! memory for other crates' tests ([`memory::MemoryLog`]), and the suite every backend passes ([`conformance`]).
//!
//! A log is one sequence of records. Each record belongs to a stream, and an append names the stream's last record
//! as its writer knows it: that comparison is what makes two writers safe. Records are opaque bytes; what they mean
//! is `event-schema`'s business.
//!
//! Read first: `contract.rs`, then `events/LOG_FORMAT.md` for what the embedded backend writes.

mod contract;
mod error;
mod position;

pub mod conformance;
pub mod file;
pub mod limits;
pub mod memory;

pub use contract::{BoxFuture, EventLog};
pub use error::{AppendError, Damage, OpenError, Place, ReadError, ShortenError};
pub use position::{Entry, Position, ReadLimit, StreamName, StreamNameError};
