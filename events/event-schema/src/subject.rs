//! Whose texts are sealed: a [`Subject`], and the key that all of its texts on the log are under.
//!
//! Destroying the key is what erases them: the records stay as they are, with their places in the audit tree.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::{AgentId, IdParseError, JobId, UserId};

/// Whom or what a text is about, as far as erasing goes: all texts of a subject are erased together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// A job: its name, its folders, the files that its runs had trouble with.
    Job(JobId),
    /// An agent: its name, tags and addresses.
    Agent(AgentId),
    /// Somebody who uses the API: the name behind what he decided.
    User(UserId),
}

impl Subject {
    /// Kind and id in 17 bytes.
    pub fn to_bytes(self) -> [u8; 17] {
        let (kind, id) = match self {
            Self::Job(id) => (1, id.0),
            Self::Agent(id) => (2, id.0),
            Self::User(id) => (3, id.0),
        };
        let mut bytes = [kind; 17];
        bytes[1..].copy_from_slice(&id);
        bytes
    }

    /// What [`Subject::to_bytes`] gives; none if it is nothing of the kind.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, id) = bytes.split_first()?;
        let id: [u8; 16] = id.try_into().ok()?;
        match kind {
            1 => Some(Self::Job(JobId(id))),
            2 => Some(Self::Agent(AgentId(id))),
            3 => Some(Self::User(UserId(id))),
            _ => None,
        }
    }
}

/// `job/5f…`, `agent/5f…`, `user/5f…`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job/{id}"),
            Self::Agent(id) => write!(f, "agent/{id}"),
            Self::User(id) => write!(f, "user/{id}"),
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({self})")
    }
}

impl FromStr for Subject {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        let (kind, id) = text.split_once('/').ok_or(IdParseError)?;
        match kind {
            "job" => id.parse().map(Self::Job),
            "agent" => id.parse().map(Self::Agent),
            "user" => id.parse().map(Self::User),
            _ => Err(IdParseError),
        }
    }
}

/// What a sealed text is. A text sealed as one thing does not open as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    /// A job's name.
    JobName = 1,
    /// The folder of a place.
    Path = 2,
    /// The folders of a run.
    RunPaths = 3,
    /// What went wrong, and with which file.
    Problem = 4,
    /// A signed command.
    Command = 5,
    /// A signed report.
    Report = 6,
    /// An agent's name.
    AgentName = 7,
    /// An agent's tags.
    AgentTags = 8,
    /// Where an agent is to be found.
    AgentAddresses = 9,
    /// Where somebody came from who was turned away.
    RefusedAddress = 10,
    /// Who decided.
    Actor = 11,
    /// How the folders of a consolidation's sources are named.
    Subfolder = 12,
    /// Which part of a synchronized folder a member wants.
    Selection = 13,
    /// The selections of a run's members.
    RunSelections = 14,
    /// The files of a conflict.
    Conflict = 15,
    /// A path at which something cannot be.
    Blocked = 16,
    /// What is asked of the runs of a job.
    Options = 17,
    /// What is asked of one run.
    RunOptions = 18,
    /// The folder of a source's versions at a storage agent.
    Shelf = 19,
}

/// A text under a subject's key: AES-256-GCM with a random nonce. The subject and the [`Field`] are authenticated.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Under whose key.
    pub subject: Subject,
    /// Random; a key seals far fewer than 2³² texts.
    pub nonce: [u8; 12],
    /// The value in postcard, encrypted, and the tag.
    pub ciphertext: Vec<u8>,
}

impl Sealed {
    /// SHA-256 of it all: what a state's hash has in place of the text.
    pub fn digest(&self) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"flotilla sealed text v1\0");
        let hash = hash.chain_update(self.subject.to_bytes()).chain_update(self.nonce);
        hash.chain_update(&self.ciphertext).finalize().into()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({}, {} bytes)", self.subject, self.ciphertext.len())
    }
}

/// A subject's key. Wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SubjectKey([u8; 32]);

impl SubjectKey {
    /// A key of these bytes, which have to be random.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What stands on the log for it: AES-GCM alone would let somebody make two keys for one ciphertext.
    pub fn commitment(&self, subject: Subject) -> [u8; 32] {
        let hash = Sha256::new().chain_update(b"flotilla subject key v1\0");
        hash.chain_update(subject.to_bytes()).chain_update(self.0).finalize().into()
    }

    /// Seals bytes. A nonce is used once.
    ///
    /// # Panics
    /// If there are more than 64 GiB, which nothing here can hold.
    pub fn seal(&self, subject: Subject, field: Field, nonce: [u8; 12], plain: &[u8]) -> Sealed {
        let aad = aad(subject, field);
        let payload = Payload { msg: plain, aad: &aad };
        let ciphertext = self.cipher().encrypt(&Nonce::from(nonce), payload).expect("short enough");
        Sealed { subject, nonce, ciphertext }
    }

    /// Opens what [`SubjectKey::seal`] made; none if it was made with another key, of another field, or changed.
    pub fn open(&self, field: Field, sealed: &Sealed) -> Option<Vec<u8>> {
        let aad = aad(sealed.subject, field);
        let payload = Payload { msg: &sealed.ciphertext, aad: &aad };
        self.cipher().decrypt(&Nonce::from(sealed.nonce), payload).ok()
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new_from_slice(&self.0).expect("the key has 32 bytes")
    }
}

impl Drop for SubjectKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from("SubjectKey(…)"))
    }
}

fn aad(subject: Subject, field: Field) -> Vec<u8> {
    let mut aad = Vec::from(&b"flotilla private text v1\0"[..]);
    aad.extend(subject.to_bytes());
    aad.push(field as u8);
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_text_opens_with_its_key_as_what_it_is() {
        let subject = Subject::Job(JobId([1; 16]));
        let key = SubjectKey::new([7; 32]);
        let sealed = key.seal(subject, Field::JobName, [3; 12], b"payroll");
        assert_eq!(key.open(Field::JobName, &sealed).as_deref(), Some(&b"payroll"[..]));
        assert!(!sealed.ciphertext.windows(7).any(|bytes| bytes == b"payroll"));
        assert!(key.open(Field::Path, &sealed).is_none(), "another field");
        assert!(SubjectKey::new([8; 32]).open(Field::JobName, &sealed).is_none(), "another key");
        let other = Sealed { subject: Subject::Agent(AgentId([1; 16])), ..sealed.clone() };
        assert!(key.open(Field::JobName, &other).is_none(), "another subject");
        for at in 0..sealed.ciphertext.len() {
            let mut changed = sealed.clone();
            changed.ciphertext[at] ^= 1;
            assert!(key.open(Field::JobName, &changed).is_none(), "byte {at}");
            assert_ne!(changed.digest(), sealed.digest());
        }
        let empty = Sealed { ciphertext: Vec::new(), ..sealed.clone() };
        assert!(key.open(Field::JobName, &empty).is_none());
        assert_ne!(key.commitment(subject), key.commitment(other.subject));
        assert_ne!(key.commitment(subject), SubjectKey::new([8; 32]).commitment(subject));
    }

    #[test]
    fn subjects_have_one_text_and_one_byte_form() {
        for subject in
            [Subject::Job(JobId([1; 16])), Subject::Agent(AgentId([2; 16])), Subject::User(UserId([3; 16]))]
        {
            assert_eq!(subject.to_string().parse(), Ok(subject));
            assert_eq!(Subject::from_bytes(&subject.to_bytes()), Some(subject));
        }
        for bad in ["", "job", "job/", "host/0102", "job/zz"] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
        assert_eq!(Subject::from_bytes(&[1; 16]), None);
        assert_eq!(Subject::from_bytes(&[9; 17]), None);
    }
}
