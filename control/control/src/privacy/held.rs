//! What a [`Ring`](super::Ring) holds in memory: keys by their commitments, and what the log says of each of them.
//!
//! Two rules stand over everything here. A key counts by its commitment and never by being somebody's: of one subject
//! there can be several, kept in several stores. And a key that the log calls erased is not taken in, whoever has it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use control_core::subject::Known;
use event_schema::{Subject, SubjectKey};

use super::store::{Wrapped, Wrapper};

/// A commitment to a key.
pub(super) type Commitment = [u8; 32];

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Never one that was erased.
    keys: HashMap<Subject, Vec<(Commitment, SubjectKey)>>,
    /// What the log says, as far as it was read.
    told: HashMap<Subject, Known>,
    /// Made here, sealed with, and not kept yet.
    pub(super) fresh: BTreeMap<Subject, Commitment>,
    /// Of whom an erased key may be in the store.
    pub(super) doomed: BTreeSet<Subject>,
    /// Of whom something is in the store that cannot be unwrapped: damaged, or wrapped with another fleet's secret.
    damaged: BTreeSet<Subject>,
    /// Asked for, and not all there: until the log says that there is another.
    absent: HashSet<Subject>,
    /// Whose key should be there and is not. Follows from all of the above: see [`Held::weigh`].
    missing: BTreeSet<Subject>,
    /// Whose key could not be asked for when it was needed for reading: their texts are shut until it can.
    pub(super) unresolved: BTreeSet<Subject>,
    /// Whether keys may be destroyed: not before it is known that the log is this fleet's.
    pub(super) may_destroy: bool,
    /// The store did not answer a moment ago: until then it is not asked by those who must not wait.
    pub(super) down_until: Option<Instant>,
}

impl Held {
    /// The key with this commitment.
    pub(super) fn key(&self, subject: Subject, commitment: Commitment) -> Option<&SubjectKey> {
        self.keys_of(subject).find_map(|(of, key)| (of == commitment).then_some(key))
    }

    /// The keys at hand.
    pub(super) fn keys_of(&self, subject: Subject) -> impl Iterator<Item = (Commitment, &SubjectKey)> {
        self.keys.get(&subject).into_iter().flatten().map(|(of, key)| (*of, key))
    }

    /// The keys at hand that the log names.
    pub(super) fn named(&self) -> impl Iterator<Item = (Subject, &SubjectKey)> {
        self.told.iter().flat_map(|(subject, known)| {
            known.standing().filter_map(|commitment| Some((*subject, self.key(*subject, commitment)?)))
        })
    }

    /// What the log says of a subject.
    pub(super) fn told(&self, subject: Subject) -> Option<&Known> {
        self.told.get(&subject)
    }

    /// The log was read to its end: a key that it names, that the list of the store did not have when that began, and that
    /// could be asked for since, is not there.
    pub(super) fn conclude(&mut self) {
        let lacks = |(subject, known): (&Subject, &Known)| {
            let lacks = known.live.is_some_and(|live| self.key(*subject, live).is_none());
            (lacks && !self.unresolved.contains(subject)).then_some(*subject)
        };
        let absent: Vec<Subject> = self.told.iter().filter_map(lacks).collect();
        for subject in absent {
            self.absent.insert(subject);
            self.weigh(subject);
        }
    }

    /// Takes a key in; an erased one not, which is doomed.
    pub(super) fn take(&mut self, subject: Subject, key: SubjectKey) -> bool {
        let commitment = key.commitment(subject);
        if self.told.get(&subject).is_some_and(|known| known.erased.contains(&commitment)) {
            self.doomed.insert(subject);
            return false;
        }
        if self.key(subject, commitment).is_none() {
            self.keys.entry(subject).or_default().push((commitment, key));
        }
        self.weigh(subject);
        true
    }

    /// Forgets a key; says whether it was there.
    pub(super) fn drop_key(&mut self, subject: Subject, commitment: Commitment) -> bool {
        let Some(keys) = self.keys.get_mut(&subject) else { return false };
        let before = keys.len();
        keys.retain(|(of, _)| *of != commitment);
        let was_there = keys.len() < before;
        if keys.is_empty() {
            self.keys.remove(&subject);
        }
        self.weigh(subject);
        was_there
    }

    /// Takes in what a store has of a subject, and says what of it are keys.
    pub(super) fn unwrap(&mut self, subject: Subject, all: &[Wrapped], wrapper: &Wrapper) -> Vec<SubjectKey> {
        let keys: Vec<SubjectKey> =
            all.iter().filter_map(|wrapped| wrapper.unwrap(subject, wrapped)).collect();
        if keys.len() == all.len() {
            self.damaged.remove(&subject);
        } else if self.damaged.insert(subject) {
            tracing::error!(%subject, "a key of it is damaged, or of another fleet: it is left as it is");
        }
        keys
    }

    /// Takes in what the store answered: it is not asked again for reading before the log names another key.
    pub(super) fn answered(&mut self, subject: Subject, all: &[Wrapped], wrapper: &Wrapper) {
        for key in self.unwrap(subject, all, wrapper) {
            self.take(subject, key);
        }
        self.unresolved.remove(&subject);
        if self.is_settled(subject) {
            self.absent.remove(&subject);
        } else {
            self.absent.insert(subject);
        }
        self.weigh(subject);
    }

    /// Whether the store need not be asked to read texts of a subject: what does not open with what is at hand is under a
    /// key that there is not.
    pub(super) fn is_settled(&self, subject: Subject) -> bool {
        match self.told.get(&subject) {
            Some(Known { live: Some(live), .. }) => self.key(subject, *live).is_some(),
            Some(known) if !known.erased.is_empty() => true,
            _ => self.keys.contains_key(&subject),
        }
    }

    /// Whether the store was asked for a subject's key, and is not to be asked again.
    pub(super) fn is_absent(&self, subject: Subject) -> bool {
        self.absent.contains(&subject)
    }

    /// Whether what does not open of a subject is gone for good, as far as can be said: none of its keys is lost.
    pub(super) fn is_gone(&self, subject: Subject) -> bool {
        self.told.get(&subject).is_some_and(|known| {
            !known.erased.is_empty()
                && known.standing().all(|commitment| self.key(subject, commitment).is_some())
        })
    }

    /// Whether something is in the store that is no key.
    pub(super) fn is_damaged(&self, subject: Subject) -> bool {
        self.damaged.contains(&subject)
    }

    /// Everybody of whom that is so.
    pub(super) fn damaged(&self) -> &BTreeSet<Subject> {
        &self.damaged
    }

    /// Whose key is not at hand, or damaged, though it was not erased. Damage counts no more when everything that the log
    /// names is there again.
    pub(super) fn missing(&self) -> impl Iterator<Item = Subject> {
        let is_whole = |subject: &Subject| {
            let mut standing = self.told.get(subject).into_iter().flat_map(Known::standing).peekable();
            standing.peek().is_some() && standing.all(|commitment| self.key(*subject, commitment).is_some())
        };
        self.missing.union(&self.damaged).copied().filter(move |subject| !is_whole(subject))
    }

    /// The log is read on from where it says this.
    pub(super) fn begin_with(&mut self, subject: Subject, known: &Known) {
        self.told.insert(subject, known.clone());
        for commitment in &known.erased {
            if self.drop_key(subject, *commitment) {
                self.doomed.insert(subject);
            }
        }
        self.weigh(subject);
    }

    /// The log says that a key is begun with.
    pub(super) fn opened(&mut self, subject: Subject, commitment: Commitment) {
        self.told.entry(subject).or_default().open(commitment);
        // Another replica was first: nothing that was sealed with ours is on the log.
        if let Some(ours) = self.fresh.get(&subject).copied().filter(|ours| *ours != commitment) {
            self.fresh.remove(&subject);
            self.drop_key(subject, ours);
        }
        self.absent.remove(&subject);
        self.weigh(subject);
    }

    /// The log says that all keys of a subject are erased.
    pub(super) fn erased(&mut self, subject: Subject) {
        let Some(known) = self.told.get_mut(&subject) else { return };
        let gone: Vec<Commitment> = known.standing().collect();
        known.erase();
        for commitment in gone {
            let was_there = self.drop_key(subject, commitment);
            if self.fresh.get(&subject) == Some(&commitment) {
                self.fresh.remove(&subject);
            }
            // While a log is read that was written before, the list of the store said what is there.
            if was_there || self.may_destroy {
                self.doomed.insert(subject);
            }
        }
        self.unresolved.remove(&subject);
        self.weigh(subject);
    }

    /// Whether a key of a subject is missing. A lost one has been looked for by whoever began with the next; the live one
    /// counts once the store was asked.
    fn weigh(&mut self, subject: Subject) {
        let is_missing = self.told.get(&subject).is_some_and(|known| {
            let lacks = |commitment: &Commitment| self.key(subject, *commitment).is_none();
            known.lost.iter().any(lacks)
                || (known.live.as_ref().is_some_and(lacks) && self.absent.contains(&subject))
        });
        if is_missing {
            self.missing.insert(subject);
        } else {
            self.missing.remove(&subject);
        }
    }
}
