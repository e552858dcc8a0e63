//! What an agent does with the checkpoints it is shown: keep the newest, refuse to go backwards, and say so when two
//! of them cannot belong to one history.

use core::fmt;

use crate::checkpoint::SignedCheckpoint;
use crate::hash::{Hash, Head};
use crate::proof::{ProofError, verify_consistency};

/// The newest checkpoint of one log that somebody has seen proved.
#[derive(Clone, Debug, Default)]
pub struct Held(Option<SignedCheckpoint>);

/// What a checkpoint that was taken means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The first one: it is believed.
    First,
    /// The one held already.
    Same,
    /// A longer history that begins with the one held; it is held now.
    Newer,
}

/// Why a checkpoint is refused. What is held stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Of another log.
    OtherOrigin,
    /// A shorter history than the one held: an old copy, or history was cut.
    Older {
        /// What is held.
        held: Head,
        /// What was shown.
        shown: Head,
    },
    /// Two histories of one length: the log signed both, and that is proof of it.
    Forked {
        /// What is held.
        held: Head,
        /// What was shown.
        shown: Head,
    },
    /// A longer history that was not shown to begin with the one held. Not proof of a fork by itself: the proof may
    /// merely be damaged.
    Unproved {
        /// What is held.
        held: Head,
        /// What was shown.
        shown: Head,
        /// What is wrong with the proof.
        why: ProofError,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherOrigin => f.write_str("the checkpoint is of another log"),
            Self::Older { held, shown } => {
                write!(f, "the log went backwards: shown ({shown}), held already ({held})")
            }
            Self::Forked { held, shown } => {
                write!(f, "the log has two histories: shown ({shown}), held ({held})")
            }
            Self::Unproved { held, shown, why } => {
                write!(f, "the log shown ({shown}) was not proved to continue the one held ({held}): {why}")
            }
        }
    }
}

impl core::error::Error for Refused {}

impl Held {
    /// Nothing seen yet, or what was kept.
    pub fn new(newest: Option<SignedCheckpoint>) -> Self {
        Self(newest)
    }

    /// What is held.
    pub fn newest(&self) -> Option<&SignedCheckpoint> {
        self.0.as_ref()
    }

    /// Takes a verified checkpoint if it continues what is held, which `proof` has to show (empty for the first one
    /// and for one of the same size).
    ///
    /// # Errors
    /// [`Refused`]; what is held stays.
    pub fn consider(&mut self, shown: SignedCheckpoint, proof: &[Hash]) -> Result<Taken, Refused> {
        let Some(held) = &self.0 else {
            self.0 = Some(shown);
            return Ok(Taken::First);
        };
        if held.origin() != shown.origin() {
            return Err(Refused::OtherOrigin);
        }
        let (old, new) = (*held.head(), *shown.head());
        if new.size < old.size {
            return Err(Refused::Older { held: old, shown: new });
        }
        if new.size == old.size {
            return if new == old { Ok(Taken::Same) } else { Err(Refused::Forked { held: old, shown: new }) };
        }
        verify_consistency(&old, &new, proof).map_err(|why| Refused::Unproved {
            held: old,
            shown: new,
            why,
        })?;
        self.0 = Some(shown);
        Ok(Taken::Newer)
    }
}
