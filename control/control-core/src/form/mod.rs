//! The fleet's whole state in one byte form, and its SHA-256: what a service attests on the log and whoever folds the
//! log can hold it against (`events/AUDIT_FORMAT.md` §10).
//!
//! A form is never changed, for old records name hashes in it. When the state gets a part that a form leaves out, a new
//! one is made beside it; [`hash`] knows them all.

mod five;
mod four;
mod one;
mod three;
mod two;

use std::fmt;

use event_schema::level::LEVEL_OLDEST;
use event_schema::{Event, Record, StateAttested};

use crate::projection::Views;

/// The highest form there is.
pub const NEWEST: u8 = 5;

/// The form that services attest a state in: that of its log's level.
pub fn newest(views: &Views) -> u8 {
    views.level().min(NEWEST)
}

/// SHA-256 of the state in a form; none if this program does not know the form, as a newer one does, or the form has no
/// place for what there may be at the log's level: sealed texts from 2 on, consolidations from 3 on, synchronizations from 4 on,
/// backups and options of runs from 5 on.
pub fn hash(form: u8, views: &Views) -> Option<[u8; 32]> {
    match form {
        1 if views.level() == LEVEL_OLDEST => Some(one::hash(views)),
        2 if views.level() <= 2 => Some(two::hash(views)),
        3 if views.level() <= 3 => Some(three::hash(views)),
        4 if views.level() <= 4 => Some(four::hash(views)),
        5 => Some(five::hash(views)),
        _ => None,
    }
}

/// A state is not the one that was attested.
#[derive(Clone, Debug, PartialEq)]
pub struct Differs {
    /// Position of the record that attests.
    pub position: u64,
    /// What it says.
    pub attested: StateAttested,
    /// The hash that the records before it lead to, in the same form.
    pub folded: [u8; 32],
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        write!(
            f,
            "entry {} attests that the state after entry {} is {}; the entries up to {} lead to {}",
            self.position,
            self.attested.at,
            hex(&self.attested.hash),
            self.position - 1,
            hex(&self.folded)
        )
    }
}

impl std::error::Error for Differs {}

/// Holds what a record attests against the state before it. None if it attests nothing, or in a form that this program
/// does not know.
///
/// # Errors
/// [`Differs`]; also if it attests another position than the one before its own.
pub fn check(before: &Views, position: u64, record: &Record) -> Option<Result<(), Differs>> {
    let mut result = None;
    for event in &record.events {
        let Event::StateAttested(attested) = event else { continue };
        let Some(folded) = hash(attested.form, before) else { continue };
        if attested.hash != folded || attested.at != before.position() || before.position() + 1 != position {
            return Some(Err(Differs { position, attested: attested.clone(), folded }));
        }
        result = Some(Ok(()));
    }
    result
}

/// A fold that holds everything that was attested against itself.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    views: Views,
    /// States that were attested and found to be so.
    pub checked: u64,
    /// States that were attested in a form that is not known here.
    pub unknown: u64,
}

impl Checked {
    /// A fold that goes on from a state which is known.
    pub fn behind(views: Views) -> Self {
        Self { views, ..Self::default() }
    }

    /// The state so far.
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Takes the next record. The state takes it in even if what it attests is wrong.
    ///
    /// # Errors
    /// [`Differs`].
    pub fn apply(&mut self, position: u64, record: &Record) -> Result<(), Differs> {
        let result = check(&self.views, position, record);
        self.views.apply(position, record);
        match result {
            Some(Ok(())) => self.checked += 1,
            Some(Err(differs)) => return Err(differs),
            None if record.events.iter().any(|event| matches!(event, Event::StateAttested(_))) => {
                self.unknown += 1;
            }
            None => {}
        }
        Ok(())
    }
}
