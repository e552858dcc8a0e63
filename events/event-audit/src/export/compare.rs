//! Two exports of one log, held against each other.

use std::io::Read;

use super::error::ExportError;
use super::reader::ExportReader;
use crate::hash::Head;

/// How two histories relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same history.
    Same,
    /// The left one is the beginning of the right one.
    LeftBegins,
    /// The right one is the beginning of the left one.
    RightBegins,
    /// They part: no log can have had both.
    Forked {
        /// Position of the first entry in which they differ.
        first: u64,
        /// What the left one ends with.
        left: Head,
        /// What the right one ends with.
        right: Head,
    },
}

/// Why two exports cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The left one does not hold.
    #[error("the first export: {0}")]
    Left(#[source] ExportError),
    /// The right one does not hold.
    #[error("the second export: {0}")]
    Right(#[source] ExportError),
    /// They are of different logs.
    #[error("the exports are of different logs: {left} and {right}")]
    Origins {
        /// The left one's origin.
        left: String,
        /// The right one's.
        right: String,
    },
}

/// Reads both to where they part or to their ends; both are verified on the way.
///
/// # Errors
/// [`CompareError`].
pub fn compare<L: Read, R: Read>(
    left: &mut ExportReader<L>,
    right: &mut ExportReader<R>,
) -> Result<Relation, CompareError> {
    if left.keys().origin() != right.keys().origin() {
        let (left, right) = (left.keys().origin().to_owned(), right.keys().origin().to_owned());
        return Err(CompareError::Origins { left, right });
    }
    let heads = (*left.newest().head(), *right.newest().head());
    loop {
        // The longer one is read on to its end even when the other is through.
        let (a, b) = (
            left.next_entry().map_err(CompareError::Left)?,
            right.next_entry().map_err(CompareError::Right)?,
        );
        match (a, b) {
            (None, None) if heads.0.size == heads.1.size => return Ok(Relation::Same),
            (None, None) if heads.0.size < heads.1.size => return Ok(Relation::LeftBegins),
            (None, None) => return Ok(Relation::RightBegins),
            (Some(a), Some(b)) if a.bytes != b.bytes => {
                return Ok(Relation::Forked { first: a.position, left: heads.0, right: heads.1 });
            }
            _ => {}
        }
    }
}
