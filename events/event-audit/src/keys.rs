//! The keys of a fleet's log: which ones sign its checkpoints, said by the fleet's root key (`AUDIT_FORMAT.md` §3).
//!
//! The name of the log, its origin, is made of the root key, so that whoever knows the origin (41 characters that fit
//! a letter or a label) needs nothing else to check a history.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use data_encoding::HEXLOWER;
use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};

use crate::limits::MAX_LOG_KEYS;
use crate::note::{self, Note, NoteError, NoteSigner, VerifierKey};

/// First line of a key list.
const TITLE: &str = "flotilla audit keys v1";

/// The origin of a fleet's log: `flotilla/` and the first 16 bytes of SHA-256 over its root key, in hex.
pub fn origin_of(root_key: &[u8; 32]) -> String {
    format!("flotilla/{}", HEXLOWER.encode(&Sha256::digest(root_key)[..16]))
}

/// The name that the root key signs key lists under.
fn root_name(origin: &str) -> String {
    format!("{origin}/root")
}

/// Why a key list is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyListError {
    /// The note around it, or a key in it.
    Note(NoteError),
    /// Its text is not title, origin, root key and log keys, line by line.
    Malformed,
    /// Its origin is not that of its root key.
    OtherRoot,
    /// No log key, more than [`MAX_LOG_KEYS`], or one that is named otherwise than the log.
    LogKeys,
}

impl fmt::Display for KeyListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(error) => error.fmt(f),
            Self::Malformed => f.write_str("the note is no list of keys"),
            Self::OtherRoot => f.write_str("the list's root key is not the one that its origin is made of"),
            Self::LogKeys => f.write_str("the list names no log key, too many, or one of another log"),
        }
    }
}

impl core::error::Error for KeyListError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Note(error) => Some(error),
            _ => None,
        }
    }
}

impl From<NoteError> for KeyListError {
    fn from(error: NoteError) -> Self {
        Self::Note(error)
    }
}

/// A key list whose signature held, or was made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyList {
    origin: String,
    log: Vec<VerifierKey>,
    note: String,
}

impl KeyList {
    /// Names the keys that sign a fleet's checkpoints: the one in use first, then those before it.
    ///
    /// # Errors
    /// [`KeyListError::LogKeys`], [`KeyListError::Note`] for an unusable key.
    pub fn sign(root: &SigningKey, log_keys: &[[u8; 32]]) -> Result<Self, KeyListError> {
        let origin = origin_of(root.verifying_key().as_bytes());
        let signer = NoteSigner::new(&root_name(&origin), root.clone())?;
        if log_keys.is_empty() || log_keys.len() > MAX_LOG_KEYS {
            return Err(KeyListError::LogKeys);
        }
        let mut text = format!("{TITLE}\n{origin}\n{}\n", signer.verifier());
        let mut log = Vec::with_capacity(log_keys.len());
        for key in log_keys {
            let key = VerifierKey::new(&origin, key)?;
            text.push_str(&key.to_string());
            text.push('\n');
            log.push(key);
        }
        Ok(Self { origin, log, note: note::sign(&text, &signer)? })
    }

    /// Reads a key list. It holds for the origin that it says; whether that is the right one, the caller decides.
    ///
    /// # Errors
    /// [`KeyListError`] says what does not fit.
    pub fn open(note: &[u8]) -> Result<Self, KeyListError> {
        let parsed = Note::parse(note)?;
        let text = parsed.unverified_text();
        let mut lines = text.strip_suffix('\n').ok_or(KeyListError::Malformed)?.split('\n');
        let (title, origin, root) = (lines.next(), lines.next(), lines.next());
        let (Some(TITLE), Some(origin), Some(root)) = (title, origin, root) else {
            return Err(KeyListError::Malformed);
        };
        let root = VerifierKey::parse(root)?;
        if origin_of(root.public_key()) != origin || root.name() != root_name(origin) {
            return Err(KeyListError::OtherRoot);
        }
        parsed.verify(core::slice::from_ref(&root))?;
        let mut log = Vec::new();
        for line in lines {
            let key = VerifierKey::parse(line)?;
            if key.name() != origin || log.len() == MAX_LOG_KEYS {
                return Err(KeyListError::LogKeys);
            }
            log.push(key);
        }
        if log.is_empty() {
            return Err(KeyListError::LogKeys);
        }
        // It was UTF-8 for the note already.
        Ok(Self { origin: origin.to_owned(), log, note: String::from_utf8_lossy(note).to_string() })
    }

    /// The log's origin.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The keys that sign its checkpoints.
    pub fn log_keys(&self) -> &[VerifierKey] {
        &self.log
    }

    /// The signed note.
    pub fn note(&self) -> &str {
        &self.note
    }
}
