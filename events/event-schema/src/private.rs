//! [`Private`]: a value that can be erased from a history which is never edited.
//!
//! On the log it is in the clear (records of level 1, and where there are no keys), sealed under its subject's key, or
//! withheld. In memory it holds the text as far as it could be opened, else a word for people; what it was sealed as
//! stays with it, so that a copy of it is written down as it stands on the log.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    BlockedText, ConflictText, Field, ProblemText, RunOptions, Sealed, Selection, Signature, Signed, Subject,
    SubjectKey, decode_exact, encode,
};

/// Shown for a text whose key is not at hand.
pub const SEALED: &str = "[sealed]";

/// Shown for a text whose key was destroyed.
pub const ERASED: &str = "[erased]";

/// What stands for a value that cannot be read.
pub trait Placeholder {
    /// A value that tells `word`, where it can.
    fn placeholder(word: &str) -> Self;
}

impl Placeholder for String {
    fn placeholder(word: &str) -> Self {
        word.into()
    }
}

/// A path.
impl Placeholder for Vec<u8> {
    fn placeholder(word: &str) -> Self {
        word.as_bytes().into()
    }
}

/// Paths, of which each is asked for by its place: see [`crate::RunStarted::path`].
impl Placeholder for Vec<Vec<u8>> {
    fn placeholder(_: &str) -> Self {
        Vec::new()
    }
}

/// Addresses: nowhere to be tried.
impl Placeholder for Vec<String> {
    fn placeholder(_: &str) -> Self {
        Vec::new()
    }
}

/// Tags: none.
impl Placeholder for Vec<(String, String)> {
    fn placeholder(_: &str) -> Self {
        Vec::new()
    }
}

impl Placeholder for ProblemText {
    fn placeholder(word: &str) -> Self {
        Self { path: Vec::new(), detail: word.into() }
    }
}

/// Nothing is left out: the word alone is shown.
impl Placeholder for Selection {
    fn placeholder(_: &str) -> Self {
        Self::default()
    }
}

/// Selections, of which each is asked for by its place.
impl Placeholder for Vec<Selection> {
    fn placeholder(_: &str) -> Self {
        Vec::new()
    }
}

/// Nothing is asked: a job or run whose options cannot be read orders nothing.
impl Placeholder for RunOptions {
    fn placeholder(_: &str) -> Self {
        Self::default()
    }
}

impl Placeholder for ConflictText {
    fn placeholder(word: &str) -> Self {
        Self { path: word.as_bytes().into(), copy: word.as_bytes().into() }
    }
}

impl Placeholder for BlockedText {
    fn placeholder(word: &str) -> Self {
        Self { path: word.as_bytes().into(), by: Vec::new() }
    }
}

/// Nothing that anybody would take for signed.
impl Placeholder for Signed {
    fn placeholder(_: &str) -> Self {
        Self { bytes: Vec::new(), signature: Signature([0; 32], [0; 32]) }
    }
}

/// How a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The value is what was meant.
    Open,
    /// Sealed, and its key was not at hand.
    Shut,
    /// Sealed, and its key was destroyed.
    Erased,
    /// Never recorded: its subject had been erased before.
    Withheld,
}

/// A value that may have to be erased. It is read like the value itself, and compared like it.
#[derive(Clone)]
pub struct Private<T> {
    value: T,
    sealed: Option<Arc<Sealed>>,
    standing: Standing,
}

impl<T> Private<T> {
    /// A value in the clear.
    pub fn clear(value: T) -> Self {
        Self { value, sealed: None, standing: Standing::Open }
    }

    /// Whether the value is what was meant, and no placeholder.
    pub fn is_legible(&self) -> bool {
        self.standing == Standing::Open
    }

    /// Whether it stands on the log in the clear, so that nothing can erase it.
    pub fn is_clear(&self) -> bool {
        self.sealed.is_none() && self.standing == Standing::Open
    }

    /// What it is sealed as.
    pub fn sealed(&self) -> Option<&Sealed> {
        self.sealed.as_deref()
    }

    /// The word for people in place of what cannot be read.
    pub fn word(&self) -> &'static str {
        match self.standing {
            Standing::Open | Standing::Shut => SEALED,
            Standing::Erased | Standing::Withheld => ERASED,
        }
    }

    /// The value, or its placeholder.
    pub fn into_value(self) -> T {
        self.value
    }

    /// The value if it is what was meant.
    pub fn legible(&self) -> Option<&T> {
        self.is_legible().then_some(&self.value)
    }
}

impl<T: Placeholder> Private<T> {
    fn shut_as(&mut self, standing: Standing) {
        self.standing = standing;
        self.value = T::placeholder(self.word());
    }
}

/// Legible ones by their values, however they stand on the log; others as they stand there.
impl<T: PartialEq> PartialEq for Private<T> {
    fn eq(&self, other: &Self) -> bool {
        self.standing == other.standing
            && if self.is_legible() { self.value == other.value } else { self.sealed == other.sealed }
    }
}

impl<T: Eq> Eq for Private<T> {}

impl<T> Deref for Private<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> From<T> for Private<T> {
    fn from(value: T) -> Self {
        Self::clear(value)
    }
}

impl From<&str> for Private<String> {
    fn from(text: &str) -> Self {
        Self::clear(text.into())
    }
}

impl From<&str> for Private<Vec<u8>> {
    fn from(text: &str) -> Self {
        Self::clear(text.into())
    }
}

impl<T: Default> Default for Private<T> {
    fn default() -> Self {
        Self::clear(T::default())
    }
}

/// As on the log: secrets are not shown more than the value is.
impl<T: fmt::Debug> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.sealed, self.standing) {
            (None, Standing::Open) => write!(f, "{:?}", self.value),
            (None, _) => f.write_str("Withheld"),
            (Some(sealed), _) => write!(f, "{sealed:?}"),
        }
    }
}

impl fmt::Display for Private<String> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.value)
    }
}

/// The byte form.
#[derive(Serialize)]
enum WireRef<'a, T> {
    Clear(&'a T),
    Sealed(&'a Sealed),
    Withheld,
}

#[derive(Deserialize)]
enum Wire<T> {
    Clear(T),
    Sealed(Sealed),
    Withheld,
}

/// For people: the value, or the word for it. In bytes: as on the log, whatever could be read.
impl<T: Serialize> Serialize for Private<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            return if self.is_legible() { self.value.serialize(s) } else { s.serialize_str(self.word()) };
        }
        match (&self.sealed, self.standing) {
            (Some(sealed), _) => WireRef::<T>::Sealed(sealed).serialize(s),
            (None, Standing::Open) => WireRef::Clear(&self.value).serialize(s),
            (None, _) => WireRef::<T>::Withheld.serialize(s),
        }
    }
}

/// From bytes alone; what is sealed is shut until it is [opened](Confidential::open).
impl<'de, T: DeserializeOwned + Placeholder> Deserialize<'de> for Private<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (sealed, standing) = match Wire::<T>::deserialize(d)? {
            Wire::Clear(value) => return Ok(Self::clear(value)),
            Wire::Sealed(sealed) => (Some(Arc::new(sealed)), Standing::Shut),
            Wire::Withheld => (None, Standing::Withheld),
        };
        let mut private = Self { value: T::placeholder(SEALED), sealed, standing };
        private.shut_as(standing);
        Ok(private)
    }
}

/// A [`Private`] of whatever type, for those who seal, open and erase.
pub trait Confidential {
    /// Under whose key it is sealed.
    fn subject(&self) -> Option<Subject>;

    /// See [`Private::is_clear`].
    fn is_clear(&self) -> bool;

    /// See [`Private::is_legible`].
    fn is_legible(&self) -> bool;

    /// Seals a value that is in the clear; it stays readable here.
    fn seal(&mut self, subject: Subject, key: &SubjectKey, field: Field, nonce: [u8; 12]);

    /// Makes a sealed value readable; says whether it is.
    fn open(&mut self, key: &SubjectKey, field: Field) -> bool;

    /// Forgets what a sealed value says, because its key was destroyed (`erased`) or is not at hand.
    fn shut(&mut self, erased: bool);

    /// Forgets a value before it is recorded, for its subject was erased.
    fn withhold(&mut self);
}

impl<T: Serialize + DeserializeOwned + Placeholder> Confidential for Private<T> {
    fn subject(&self) -> Option<Subject> {
        self.sealed.as_ref().map(|sealed| sealed.subject)
    }

    fn is_clear(&self) -> bool {
        Self::is_clear(self)
    }

    fn is_legible(&self) -> bool {
        Self::is_legible(self)
    }

    fn seal(&mut self, subject: Subject, key: &SubjectKey, field: Field, nonce: [u8; 12]) {
        if self.is_clear() {
            self.sealed = Some(Arc::new(key.seal(subject, field, nonce, &encode(&self.value))));
        }
    }

    fn open(&mut self, key: &SubjectKey, field: Field) -> bool {
        if self.is_legible() {
            return true;
        }
        let Some(sealed) = &self.sealed else { return false };
        let value = key.open(field, sealed).and_then(|plain| decode_exact("private text", &plain).ok());
        if let Some(value) = value {
            (self.value, self.standing) = (value, Standing::Open);
        }
        self.is_legible()
    }

    fn shut(&mut self, erased: bool) {
        if self.sealed.is_some() {
            self.shut_as(if erased { Standing::Erased } else { Standing::Shut });
        }
    }

    fn withhold(&mut self) {
        self.sealed = None;
        self.shut_as(Standing::Withheld);
    }
}

/// Whose a text is that was not sealed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The subject's.
    Subject(Subject),
    /// The job's that the run is of; if that is not known any more, the agent's.
    Run(crate::RunId, crate::AgentId),
    /// The one who is named by it.
    Named,
}

/// Called with every private field of a thing.
pub type Visit<'v> = dyn FnMut(Field, Owner, &mut dyn Confidential) + 'v;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{JobId, ProblemText};
    use std::string::ToString;

    const SUBJECT: Subject = Subject::Job(JobId([1; 16]));

    fn there_and_back<T: Serialize + DeserializeOwned + Placeholder>(private: &Private<T>) -> Private<T> {
        decode_exact("Private", &encode(private)).expect("what was written")
    }

    #[test]
    fn a_text_is_read_as_far_as_its_key_is_there() {
        let key = SubjectKey::new([7; 32]);
        let mut text: Private<String> = "payroll".into();
        assert!(text.is_clear() && there_and_back(&text) == text);
        text.seal(SUBJECT, &key, Field::JobName, [1; 12]);
        assert!(!text.is_clear() && text.is_legible() && *text == "payroll");
        let mut read = there_and_back(&text);
        assert_eq!((read.as_str(), read.is_legible()), (SEALED, false));
        assert_eq!(encode(&read), encode(&text), "it is written down as it stands on the log");
        assert!(!read.open(&SubjectKey::new([8; 32]), Field::JobName));
        assert!(!read.open(&key, Field::Path));
        assert!(read.open(&key, Field::JobName));
        assert_eq!(read, text);
        read.shut(true);
        assert_eq!((read.to_string().as_str(), read.legible()), (ERASED, None));
        assert_eq!(encode(&read), encode(&text));
        // What is in the clear can be neither shut nor sealed twice.
        let mut clear: Private<String> = "x".into();
        clear.shut(true);
        assert_eq!(*clear, "x");
        let before = encode(&text);
        text.seal(SUBJECT, &key, Field::JobName, [2; 12]);
        assert_eq!(encode(&text), before);
        text.withhold();
        assert_eq!(there_and_back(&text), text);
        assert_eq!((text.as_str(), text.is_clear()), (ERASED, false));
    }

    #[test]
    fn placeholders_are_of_no_use_but_to_be_shown() {
        let key = SubjectKey::new([7; 32]);
        let mut problem =
            Private::clear(ProblemText { path: b"carla.pdf".to_vec(), detail: "no room".into() });
        problem.seal(SUBJECT, &key, Field::Problem, [1; 12]);
        let read = there_and_back(&problem);
        assert_eq!((read.path.as_slice(), read.detail.as_str()), (&b""[..], SEALED));
        let mut tags: Private<Vec<(String, String)>> = std::vec![("A".into(), "b".into())].into();
        tags.seal(SUBJECT, &key, Field::AgentTags, [1; 12]);
        assert!(there_and_back(&tags).is_empty());
        assert!(!encode(&problem).windows(5).any(|bytes| bytes == b"carla"));
    }

    #[test]
    fn bad_bytes_are_refused() {
        for bad in [&[][..], &[3], &[1], &[1, 9], &[0, 5, b'x']] {
            assert!(decode_exact::<Private<String>>("Private", bad).is_err(), "{bad:?}");
        }
    }
}
