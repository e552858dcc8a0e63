//! Signed notes after C2SP signed-note: a text, an empty line, signature lines.
//!
//! ```text
//! — <key name> <base64 of key id (4 bytes, big-endian) ‖ signature>
//! ```
//! Only Ed25519 (type 0x01) is understood; lines of other keys are kept and ignored, as the specification asks. A
//! note's text counts for nothing before [`Note::verify`].

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::limits::{MAX_NAME_BYTES, MAX_NOTE_BYTES, MAX_SIGNATURES};

/// Signature type identifier of Ed25519.
const ED25519: u8 = 0x01;

/// What a signature line begins with.
const MARK: &str = "— ";

/// Why a note, or a key for notes, is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoteError {
    /// Longer than [`MAX_NOTE_BYTES`].
    TooLong {
        /// Bytes of it.
        bytes: usize,
    },
    /// Not UTF-8, or with a control character.
    NotText,
    /// It has no empty line between text and signatures, or does not end with a signature line.
    Unsigned,
    /// A signature line that is none.
    BadLine {
        /// Which one, from 1.
        line: usize,
    },
    /// More than [`MAX_SIGNATURES`] signature lines.
    TooManySignatures,
    /// A known key is said to have signed, and has not.
    BadSignature {
        /// That key.
        key: String,
    },
    /// None of the signatures is by a known key.
    NoKnownKey,
    /// The name of a key: empty, too long, or with a space or a plus sign.
    BadName,
    /// A key's text is not `<name>+<8 hex digits>+<base64>`, or its id is not that of name and key.
    BadKey,
    /// A key of a type other than Ed25519, or no point that signatures can be checked with.
    UnusableKey,
}

impl fmt::Display for NoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => write!(f, "the note has {bytes} bytes, more than {MAX_NOTE_BYTES}"),
            Self::NotText => f.write_str("the note is no text"),
            Self::Unsigned => f.write_str("the note has no signatures"),
            Self::BadLine { line } => write!(f, "signature line {line} of the note is malformed"),
            Self::TooManySignatures => {
                write!(f, "the note has more than {MAX_SIGNATURES} signatures")
            }
            Self::BadSignature { key } => write!(f, "the signature by {key} does not hold"),
            Self::NoKnownKey => f.write_str("none of the note's signatures is by a known key"),
            Self::BadName => f.write_str("a key name has 1 to 255 bytes and neither spaces nor plus signs"),
            Self::BadKey => {
                f.write_str("this is no key of the form NAME+ID+BASE64, or its id is not its own")
            }
            Self::UnusableKey => f.write_str("this is no usable Ed25519 key"),
        }
    }
}

impl core::error::Error for NoteError {}

/// Checks the name of a key.
fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if bad { Err(NoteError::BadName) } else { Ok(()) }
}

fn key_id(name: &str, public_key: &[u8; 32]) -> [u8; 4] {
    let hash =
        Sha256::new().chain_update(name).chain_update([b'\n', ED25519]).chain_update(public_key).finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// A public key with the name it signs under. Shown as `<name>+<id>+<base64>`, the form other tools take.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: [u8; 4],
    key: VerifyingKey,
}

impl VerifierKey {
    /// A key under a name.
    ///
    /// # Errors
    /// [`NoteError::BadName`], [`NoteError::UnusableKey`].
    pub fn new(name: &str, public_key: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| NoteError::UnusableKey)?;
        if key.is_weak() {
            return Err(NoteError::UnusableKey);
        }
        Ok(Self { name: name.to_owned(), id: key_id(name, public_key), key })
    }

    /// Reads what `Display` shows.
    ///
    /// # Errors
    /// [`NoteError::BadKey`], [`NoteError::BadName`], [`NoteError::UnusableKey`].
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let (name, rest) = text.split_once('+').ok_or(NoteError::BadKey)?;
        let (id, key) = rest.split_once('+').ok_or(NoteError::BadKey)?;
        let key = BASE64.decode(key.as_bytes()).map_err(|_| NoteError::BadKey)?;
        let [ED25519, key @ ..] = key.as_slice() else { return Err(NoteError::UnusableKey) };
        let key = Self::new(name, key.try_into().map_err(|_| NoteError::BadKey)?)?;
        if HEXLOWER.encode(&key.id) == id { Ok(key) } else { Err(NoteError::BadKey) }
    }

    /// The name it signs under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key itself, 32 bytes (RFC 8032).
    pub fn public_key(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    fn is_of(&self, signature: &Signature<'_>) -> bool {
        self.name == signature.name && self.id == signature.id
    }

    /// Strict: neither weak keys nor malleable signatures.
    fn verify(&self, text: &str, signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(text.as_bytes(), &signature).is_ok())
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[ED25519], self.key.as_bytes().as_slice()].concat();
        write!(f, "{}+{}+{}", self.name, HEXLOWER.encode(&self.id), BASE64.encode(&key))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

/// A secret key with the name it signs under. Wiped when dropped, never shown.
pub struct NoteSigner {
    verifier: VerifierKey,
    key: SigningKey,
}

impl NoteSigner {
    /// A key under a name.
    ///
    /// # Errors
    /// [`NoteError::BadName`].
    pub fn new(name: &str, key: SigningKey) -> Result<Self, NoteError> {
        Ok(Self { verifier: VerifierKey::new(name, key.verifying_key().as_bytes())?, key })
    }

    /// The public key under the same name.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({})", self.verifier)
    }
}

/// Signs a text.
///
/// # Errors
/// [`NoteError::NotText`] unless it ends with a newline and has no other control character.
pub fn sign(text: &str, signer: &NoteSigner) -> Result<String, NoteError> {
    if !text.ends_with('\n') || text.chars().any(is_forbidden) {
        return Err(NoteError::NotText);
    }
    let bytes = [&signer.verifier.id, signer.key.sign(text.as_bytes()).to_bytes().as_slice()].concat();
    let note = format!("{text}\n{MARK}{} {}\n", signer.verifier.name, BASE64.encode(&bytes));
    if note.len() > MAX_NOTE_BYTES { Err(NoteError::TooLong { bytes: note.len() }) } else { Ok(note) }
}

fn is_forbidden(c: char) -> bool {
    c < ' ' && c != '\n'
}

/// A note taken apart, nothing of it verified.
#[derive(Debug)]
pub struct Note<'n> {
    text: &'n str,
    signatures: Vec<Signature<'n>>,
}

#[derive(Debug)]
struct Signature<'n> {
    name: &'n str,
    id: [u8; 4],
    bytes: Vec<u8>,
}

impl<'n> Note<'n> {
    /// Takes a note apart.
    ///
    /// # Errors
    /// [`NoteError`] says what is wrong with its form.
    pub fn parse(note: &'n [u8]) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLong { bytes: note.len() });
        }
        let note = core::str::from_utf8(note).map_err(|_| NoteError::NotText)?;
        if note.chars().any(is_forbidden) {
            return Err(NoteError::NotText);
        }
        let empty = note.rfind("\n\n").ok_or(NoteError::Unsigned)?;
        let (text, lines) = (&note[..=empty], &note[empty + 2..]);
        let lines = lines.strip_suffix('\n').filter(|lines| !lines.is_empty()).ok_or(NoteError::Unsigned)?;
        let mut signatures = Vec::new();
        for (index, line) in lines.split('\n').enumerate() {
            if index == MAX_SIGNATURES {
                return Err(NoteError::TooManySignatures);
            }
            signatures.push(Signature::parse(line).ok_or(NoteError::BadLine { line: index + 1 })?);
        }
        Ok(Self { text, signatures })
    }

    /// The text, its last newline included, once at least one of `keys` has signed it and none of them is misused.
    ///
    /// # Errors
    /// [`NoteError::BadSignature`], [`NoteError::NoKnownKey`].
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<&'n str, NoteError> {
        let mut known = false;
        for signature in &self.signatures {
            let Some(key) = keys.iter().find(|key| key.is_of(signature)) else { continue };
            if !key.verify(self.text, &signature.bytes) {
                return Err(NoteError::BadSignature { key: key.to_string() });
            }
            known = true;
        }
        if known { Ok(self.text) } else { Err(NoteError::NoKnownKey) }
    }

    /// The text as it stands there, signed by whomever or nobody: to find out whose keys to look for.
    pub fn unverified_text(&self) -> &'n str {
        self.text
    }
}

impl<'n> Signature<'n> {
    fn parse(line: &'n str) -> Option<Self> {
        let (name, base64) = line.strip_prefix(MARK)?.split_once(' ')?;
        check_name(name).ok()?;
        let bytes = BASE64.decode(base64.as_bytes()).ok()?;
        let (id, signature) = bytes.split_first_chunk()?;
        (!signature.is_empty()).then(|| Self { name, id: *id, bytes: signature.to_vec() })
    }
}
