//! Sealing the event log into its audit tree, and exporting it.
//!
//! Owns the way from [`EventLog`] to [`event_audit`]; what is sealed and how is `events/AUDIT_FORMAT.md`. Only records
//! that are known to be durable may be sealed: a checkpoint over one that a power cut takes back could never be
//! continued.

use std::io::Write;

use event_audit::SignedCheckpoint;
use event_audit::export::{ExportWriter, WriteError};
use event_audit::ledger::{Edge, Ledger, LedgerError};
use event_log::{EventLog, Position, ReadError, ReadLimit};

use crate::pki::AuditKeys;
use crate::sealing::tree::make_anew;

const _: () = assert!(event_audit::limits::MAX_ENTRY_BYTES == event_log::limits::MAX_RECORD_BYTES);

/// Why a log is not sealed or exported.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is not where it should be.
    #[error("the log has no record at position {position}")]
    Missing {
        /// Which.
        position: Position,
    },
    /// The audit folder, or a log that is not the one sealed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The export.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Seals the log up to `end` and signs what it then amounts to. `edge` is that of what was archived, if the log does not
/// reach back to its first record.
///
/// # Errors
/// [`AuditError`]; [`LedgerError::CutOff`] if more was sealed before than the log has.
pub async fn seal(
    log: &dyn EventLog,
    end: Position,
    edge: Option<&Edge>,
    ledger: &mut Ledger,
    keys: &AuditKeys,
) -> Result<SignedCheckpoint, AuditError> {
    let edge = if log.first().await? == Position(1) { None } else { edge };
    // A tile that is damaged is made again; everything else that is wrong stays an error.
    match (ledger.scrub(), edge) {
        (Err(error @ LedgerError::Tile { .. }), _) => make_anew(ledger, edge, &error),
        // Its unfinished tiles were torn.
        (Ok(()), Some(edge)) if ledger.size() < edge.size() => ledger.start_over_at(edge),
        (scrubbed, _) => scrubbed?,
    }
    let first = Position(ledger.size()).next();
    each(log, first, end, |bytes| Ok(ledger.append(bytes)?)).await?;
    if let Some(newest) = ledger.newest().filter(|newest| newest.head().size > end.0) {
        return Err(LedgerError::CutOff { signed: *newest.head(), size: end.0 }.into());
    }
    Ok(ledger.checkpoint(keys.signer())?)
}

/// Seals the log up to `end` and writes all of it to `out`, with the checkpoint made and the one before it.
///
/// # Errors
/// [`AuditError`]; [`WriteError::Differs`] names the first record that is not the one that was sealed.
pub async fn export<W: Write>(
    log: &dyn EventLog,
    end: Position,
    edge: Option<&Edge>,
    ledger: &mut Ledger,
    keys: &AuditKeys,
    out: W,
) -> Result<(W, SignedCheckpoint), AuditError> {
    let before = ledger.newest().cloned();
    let newest = seal(log, end, edge, ledger, keys).await?;
    let mut checkpoints: Vec<SignedCheckpoint> =
        before.into_iter().filter(|before| *before != newest).collect();
    checkpoints.push(newest.clone());
    let mut writer = ExportWriter::new(out, ledger, keys.list(), &checkpoints)?;
    each(log, Position(1), end, |bytes| Ok(writer.entry(bytes)?)).await?;
    Ok((writer.finish()?, newest))
}

/// Writes all that is sealed to `out`, from a ledger that another process keeps.
///
/// # Errors
/// As [`export`]; [`WriteError::Checkpoints`] if nothing was signed yet.
pub async fn export_sealed<W: Write>(
    log: &dyn EventLog,
    ledger: &Ledger,
    keys: &AuditKeys,
    out: W,
) -> Result<(W, SignedCheckpoint), AuditError> {
    let checkpoints: Vec<SignedCheckpoint> = ledger.newest().cloned().into_iter().collect();
    let mut writer = ExportWriter::new(out, ledger, keys.list(), &checkpoints)?;
    let end = Position(ledger.size());
    each(log, Position(1), end, |bytes| Ok(writer.entry(bytes)?)).await?;
    let newest = checkpoints.into_iter().next().ok_or(WriteError::Checkpoints("there is none"))?;
    Ok((writer.finish()?, newest))
}

/// Every record from `first` to `end`, page by page.
async fn each(
    log: &dyn EventLog,
    first: Position,
    end: Position,
    mut take: impl FnMut(&[u8]) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    let mut next = first;
    while next <= end {
        let page = log.read(next, ReadLimit::default()).await?;
        if page.is_empty() {
            return Err(AuditError::Missing { position: next });
        }
        for entry in page.into_iter().take_while(|entry| entry.position <= end) {
            if entry.position != next {
                return Err(AuditError::Missing { position: next });
            }
            take(&entry.bytes)?;
            next = next.next();
        }
    }
    Ok(())
}
