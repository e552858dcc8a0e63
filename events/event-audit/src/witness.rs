//! What an agent does with the checkpoints it is shown: keep the newest, refuse to go backwards, and say so when two
//! of them cannot belong to one history.

use alloc::boxed::Box;
use core::fmt;

use crate::checkpoint::{CheckpointError, SignedCheckpoint};
use crate::hash::{Hash, Head};
use crate::message::{Advance, MessageError};
use crate::note::VerifierKey;
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

/// What a message from outside led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It was taken.
    Taken(Taken),
    /// It is the log's own word, and does not go together with what is held: both notes are evidence.
    Conflict {
        /// What was shown.
        shown: Box<SignedCheckpoint>,
        /// Why it was refused.
        why: Refused,
    },
    /// The message cannot be read: anybody may have made it.
    Malformed(MessageError),
    /// Its checkpoint is not signed by one of the log's keys, or is none of this log: anybody may have made it.
    Unsigned(CheckpointError),
}

impl Held {
    /// Takes an [`Advance`] as it came from outside, if it is signed by one of `keys` for the log `origin` and continues
    /// what is held.
    pub fn receive(&mut self, message: &[u8], origin: &str, keys: &[VerifierKey]) -> Receipt {
        let advance = match Advance::parse(message) {
            Ok(advance) => advance,
            Err(error) => return Receipt::Malformed(error),
        };
        let shown = match SignedCheckpoint::open(advance.checkpoint.as_bytes(), origin, keys) {
            Ok(shown) => shown,
            Err(error) => return Receipt::Unsigned(error),
        };
        match self.consider(shown.clone(), &advance.proof) {
            Ok(taken) => Receipt::Taken(taken),
            Err(why) => Receipt::Conflict { shown: Box::new(shown), why },
        }
    }

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
