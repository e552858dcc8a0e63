//! Records on their way into the state: what they must not hold, and why there is no way on.

use event_log::{Position, ReadError};
use event_schema::{Command, DecodeError, Event, Record, Report};

/// Why the log cannot be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is missing or out of order.
    #[error("the log goes from position {after} to {found}: a record is missing")]
    Gap {
        /// The last good position.
        after: Position,
        /// What came instead of the next one.
        found: Position,
    },
    /// The log is not one of this program.
    #[error(
        "position {position} of the log belongs to a stream {stream:?}: this is not a control service's log"
    )]
    Foreign {
        /// Where.
        position: Position,
        /// What.
        stream: String,
    },
    /// The log begins later, and the state there is not known.
    #[error(
        "the log begins with position {first} here, and no snapshot of the state before it holds: restore the folder \
         `snapshots` from a backup; or copy the archives' segments back into the folder of the log, remove its file \
         `base`, and start again"
    )]
    NoState {
        /// Its first position.
        first: Position,
    },
    /// A record cannot be understood.
    #[error(
        "position {position} of the log cannot be read: {source}. If a newer version wrote it, run that version; \
         nothing was changed"
    )]
    Record {
        /// Where.
        position: Position,
        /// Why.
        source: DecodeError,
    },
    /// The log is written at a schema level that this program does not read.
    #[error(
        "the log is written at schema level {level} since position {position}, and this program reads levels up to \
         {own}: run a newer version; nothing was changed"
    )]
    Level {
        /// Where it was raised.
        position: Position,
        /// To what.
        level: u8,
        /// What is read here.
        own: u8,
    },
}

impl FoldError {
    /// Whether waiting does not help: somebody has to see to the log, or run another version.
    pub(super) fn stays(&self) -> bool {
        match self {
            Self::Read(error) => matches!(error, ReadError::Damaged(_)),
            Self::Gap { .. }
            | Self::Foreign { .. }
            | Self::NoState { .. }
            | Self::Record { .. }
            | Self::Level { .. } => true,
        }
    }
}

/// Looks at what agents and commands say inside a record, as far as it can be read: nothing of it may be unknown.
pub(super) fn check(record: &Record) -> Result<(), DecodeError> {
    for event in &record.events {
        match event {
            Event::CommandIssued(e) if e.signed.is_legible() => drop(Command::decode(&e.signed.bytes)?),
            Event::ReportReceived(e) if e.signed.is_legible() => drop(Report::decode(&e.signed.bytes)?),
            _ => {}
        }
    }
    Ok(())
}
