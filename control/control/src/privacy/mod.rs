//! Private texts between the writer, which decides on them in the clear, and the log, where they are sealed
//! (`events/SCHEMA.md`, Private texts; `docs/decisions/0011-private-texts.md`).
//!
//! `Ring` holds the keys of all subjects in memory. The writer seals a record with it between deciding and encoding,
//! and whoever reads records opens them with it before they are folded or shown. A key is on its way through three
//! states: *fresh* (a record was sealed with it that is not appended yet), *kept* (the store has it), *doomed* (the log
//! says that it was erased; it is being destroyed). Each step can be interrupted and is finished by the next start.

mod file;
mod moving;
mod nats;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_core::State;
use control_core::snapshot::Snapshot;
use control_core::subject::{Known, Whose, begins_anew, whose};
use event_schema::{
    Actor, Confidential, Event, Field, Owner, Record, Subject, SubjectErased, SubjectKey, SubjectOpened,
    Visit,
};

pub use file::FileKeys;
pub(crate) use moving::move_keys;
pub use nats::NatsKeys;
pub use store::{KeyStore, KeyStoreError, WRAPPED_BYTES, Wrapped, Wrapper};

use crate::service::random_id;

/// How long those who must not wait wait for the store: the writer, behind which everybody stands.
const ASK: Duration = Duration::from_secs(1);

/// How long they do not ask it again then.
const REST: Duration = Duration::from_secs(1);

/// Subjects named in a warning.
const NAMED_MAX: usize = 5;

/// Where keys are kept, and the fleet's secret that they are wrapped with.
#[derive(Clone)]
pub struct SubjectKeys {
    /// The store.
    pub store: Arc<dyn KeyStore>,
    /// From the secret of the fleet.
    pub wrapper: Arc<Wrapper>,
}

impl std::fmt::Debug for SubjectKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SubjectKeys(…)")
    }
}

/// Every key at hand.
#[derive(Debug)]
pub(crate) struct Ring {
    keys: Option<SubjectKeys>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    keys: HashMap<Subject, SubjectKey>,
    /// Asked for, and not there: until the log says that there is one.
    absent: HashSet<Subject>,
    fresh: BTreeSet<Subject>,
    doomed: BTreeMap<Subject, [u8; 32]>,
    /// Commitments of keys that were erased: what does not open of these subjects is gone for good, and none of these
    /// keys is taken in again, wherever it may still lie.
    erased: HashMap<Subject, BTreeSet<[u8; 32]>>,
    /// The commitment to the key that the log names, as far as it was read, of everybody who has one.
    live: HashMap<Subject, [u8; 32]>,
    /// Whose kept key cannot be unwrapped: damaged, or wrapped with another fleet's secret.
    damaged: BTreeSet<Subject>,
    /// Whether keys may be destroyed: not before it is known that the log is this fleet's.
    may_destroy: bool,
    /// Whose key should be there and is not.
    missing: BTreeSet<Subject>,
    /// Whose key could not be asked for when a record of theirs was folded: their texts are shut until it can.
    unresolved: BTreeSet<Subject>,
    /// The store did not answer a moment ago: until then it is not asked by those who must not wait.
    down_until: Option<Instant>,
}

impl Inner {
    /// Takes a kept key in; not one that was erased, and not in place of one that a record is being sealed with.
    fn take(&mut self, subject: Subject, key: SubjectKey) -> bool {
        let commitment = key.commitment(subject);
        if self.erased.get(&subject).is_some_and(|erased| erased.contains(&commitment)) {
            return false;
        }
        if !self.fresh.contains(&subject) {
            self.keys.insert(subject, key);
        }
        true
    }

    /// Whether the key at hand is the one that the log names, as far as it names one.
    fn is_at_hand(&self, subject: Subject) -> bool {
        self.keys.get(&subject).is_some_and(|key| {
            self.live.get(&subject).is_none_or(|commitment| key.commitment(subject) == *commitment)
        })
    }

    /// Takes in what the store has of a subject, and says what of it is a key.
    fn unwrap(
        &mut self,
        subject: Subject,
        wrapped: Option<Wrapped>,
        wrapper: &Wrapper,
    ) -> Option<SubjectKey> {
        let key = wrapped.as_ref().and_then(|wrapped| wrapper.unwrap(subject, wrapped));
        if wrapped.is_some() && key.is_none() {
            if self.damaged.insert(subject) {
                tracing::error!(%subject, "its key is damaged, or of another fleet: it is left as it is");
            }
        } else {
            self.damaged.remove(&subject);
        }
        key
    }

    /// Takes in what the store answered one who wants to read: it is not asked again before the log names another key.
    fn answered(&mut self, subject: Subject, wrapped: Option<Wrapped>, wrapper: &Wrapper) {
        if let Some(key) = self.unwrap(subject, wrapped, wrapper) {
            self.take(subject, key);
        }
        if !self.is_at_hand(subject) {
            self.absent.insert(subject);
        }
    }

    /// The log says that this key was erased.
    fn erase(&mut self, subject: Subject, commitment: [u8; 32]) {
        self.erased.entry(subject).or_default().insert(commitment);
        if self.keys.get(&subject).is_some_and(|key| key.commitment(subject) == commitment) {
            self.keys.remove(&subject);
            self.fresh.remove(&subject);
        }
        if self.live.get(&subject) == Some(&commitment) {
            self.live.remove(&subject);
        }
    }
}

fn damaged(subject: Subject) -> KeyStoreError {
    KeyStoreError::Unfit(format!(
        "the key of {subject} cannot be unwrapped: it is damaged, or this service has another fleet's secret"
    ))
}

/// What becomes of a subject's texts in a record.
enum Plan {
    Seal(SubjectKey),
    Withhold,
}

impl Ring {
    /// Without keys nothing is sealed, and nothing sealed is opened.
    pub(crate) async fn open(keys: Option<SubjectKeys>) -> Result<Self, KeyStoreError> {
        let ring = Self { keys, inner: Mutex::default() };
        if let Some(SubjectKeys { store, wrapper }) = &ring.keys {
            let listed = store.list().await?;
            let mut inner = ring.inner();
            for (subject, wrapped) in listed {
                match wrapper.unwrap(subject, &wrapped) {
                    Some(key) => drop(inner.keys.insert(subject, key)),
                    None => drop(inner.damaged.insert(subject)),
                }
            }
            if !inner.damaged.is_empty() {
                tracing::error!(
                    keys = inner.damaged.len(),
                    "subjects' keys are damaged, or of another fleet: what is under them cannot be read"
                );
            }
        }
        Ok(ring)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // One entry is changed at a time.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subject that stands for a user's name; none without keys.
    pub(crate) fn user(&self, name: &str) -> Option<Subject> {
        Some(self.keys.as_ref()?.wrapper.user(name))
    }

    /// All keys at hand, for an auditor.
    pub(crate) fn all(&self) -> Vec<(Subject, SubjectKey)> {
        let mut all: Vec<_> = self.inner().keys.iter().map(|(s, key)| (*s, key.clone())).collect();
        all.sort_by_key(|(subject, _)| *subject);
        all
    }

    /// Makes the texts of a record readable as far as there are keys.
    ///
    /// # Errors
    /// If the store does not say whether there is a key.
    pub(crate) async fn open_record(&self, record: &mut Record) -> Result<(), KeyStoreError> {
        self.open_texts(&mut |visit| record.private(visit)).await
    }

    /// The same for a snapshot, of whatever age. What was erased by then stays shut, also if the key is still kept: it
    /// could not be destroyed yet, or came back with a backup.
    ///
    /// # Errors
    /// As [`Ring::open_record`].
    pub(crate) async fn open_snapshot(&self, snapshot: &mut Snapshot) -> Result<(), KeyStoreError> {
        for (subject, known) in snapshot.state.subjects() {
            if known.erased {
                self.inner().erase(subject, known.commitment);
            }
        }
        self.open_texts(&mut |visit| snapshot.private(visit)).await?;
        snapshot.state.name_anew();
        Ok(())
    }

    async fn open_texts(&self, each: &mut (dyn FnMut(&mut Visit<'_>) + Send)) -> Result<(), KeyStoreError> {
        let unknown = self.open_known(each, false);
        let Some(SubjectKeys { store, wrapper }) = self.keys.as_ref().filter(|_| !unknown.is_empty()) else {
            return Ok(());
        };
        for subject in unknown {
            let wrapped = store.get(subject).await?;
            self.inner().answered(subject, wrapped, wrapper);
        }
        self.open_known(each, false);
        Ok(())
    }

    /// The log is read on from this state.
    pub(crate) fn begin_at(&self, state: &State) {
        let live = state.subjects().filter(|(_, known)| !known.erased);
        self.inner().live.extend(live.map(|(subject, known)| (subject, known.commitment)));
    }

    /// Takes in what the next record of the log says of new keys, before its texts are opened: some are under them.
    pub(crate) fn expect(&self, record: &Record) {
        for event in &record.events {
            let Event::SubjectOpened(SubjectOpened { subject, commitment }) = event else { continue };
            let mut inner = self.inner();
            inner.absent.remove(subject);
            inner.live.insert(*subject, *commitment);
            // Another replica was first: nothing that this one was sealed with is on the log.
            if !inner.is_at_hand(*subject) && inner.fresh.remove(subject) {
                inner.keys.remove(subject);
            }
        }
    }

    /// As [`Ring::open_record`], for the writer: a store that does not answer at once must not stop it. Texts whose key
    /// cannot be had now are shut, which changes no state's hash, and opened by [`Ring::resolve`].
    pub(crate) async fn open_record_soon(&self, record: &mut Record) {
        let unknown = self.open_known(&mut |visit| record.private(visit), true);
        if unknown.is_empty() {
            return;
        }
        for subject in unknown {
            self.look_up(subject).await;
        }
        self.open_known(&mut |visit| record.private(visit), true);
    }

    /// Asks for a key without waiting long; says whether there was an answer.
    async fn look_up(&self, subject: Subject) -> bool {
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return false };
        let answer = self.ask(store.get(subject)).await;
        let mut inner = self.inner();
        match answer {
            Ok(wrapped) => {
                inner.unresolved.remove(&subject);
                inner.answered(subject, wrapped, wrapper);
                true
            }
            Err(_) => {
                inner.unresolved.insert(subject);
                false
            }
        }
    }

    /// Whether texts are shut that [`Ring::resolve`] may open.
    pub(crate) fn is_unresolved(&self) -> bool {
        !self.inner().unresolved.is_empty()
    }

    /// Asks again for the keys that could not be had; says whether one came, so that texts can be opened.
    pub(crate) async fn resolve(&self) -> bool {
        let unresolved: Vec<Subject> = self.inner().unresolved.iter().copied().collect();
        let mut some = false;
        for subject in unresolved {
            if !self.look_up(subject).await {
                break;
            }
            some = true;
        }
        some
    }

    /// Opens what can be opened with the keys at hand.
    pub(crate) fn open_at_hand(&self, each: &mut (dyn FnMut(&mut Visit<'_>) + Send)) {
        self.open_known(each, true);
    }

    /// Asks the store something for one who must not wait.
    async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, KeyStoreError>>,
    ) -> Result<T, KeyStoreError> {
        if self.inner().down_until.is_some_and(|until| Instant::now() < until) {
            return Err(KeyStoreError::Unavailable("it did not answer a moment ago".into()));
        }
        let silent = |_| Err(KeyStoreError::Unavailable("it does not answer".into()));
        let answer = tokio::time::timeout(ASK, question).await.unwrap_or_else(silent);
        self.inner().down_until = answer.is_err().then(|| Instant::now() + REST);
        answer
    }

    /// Makes sure that a subject has a key that is kept, before something is decided about it: so that the writer need
    /// not wait for the store. A key that is not used then is used by the next who needs one.
    ///
    /// # Errors
    /// If the store does not answer for a while.
    pub(crate) async fn prepare(&self, subject: Subject) -> Result<(), KeyStoreError> {
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return Ok(()) };
        {
            let inner = self.inner();
            if inner.keys.contains_key(&subject) || inner.doomed.contains_key(&subject) {
                return Ok(());
            }
        }
        let key = SubjectKey::new(random_id::<32>());
        let there = store.create(vec![(subject, wrapper.wrap(subject, &key))]).await?;
        let mut inner = self.inner();
        let key = match there.first() {
            None => key,
            Some((_, wrapped)) => {
                inner.unwrap(subject, Some(*wrapped), wrapper).ok_or_else(|| damaged(subject))?
            }
        };
        if !inner.keys.contains_key(&subject) {
            self.take_or_doom(&mut inner, subject, key);
        }
        Ok(())
    }

    /// Takes a kept key in; one that was erased and is still there is destroyed first by whoever needs another.
    fn take_or_doom(&self, inner: &mut Inner, subject: Subject, key: SubjectKey) -> bool {
        let commitment = key.commitment(subject);
        let taken = inner.take(subject, key);
        if !taken {
            inner.doomed.insert(subject, commitment);
        }
        taken
    }

    /// Opens what can be opened at once; subjects whose key is to be asked for.
    fn open_known(&self, each: &mut (dyn FnMut(&mut Visit<'_>) + Send), later: bool) -> BTreeSet<Subject> {
        let inner = self.inner();
        let mut unknown = BTreeSet::new();
        each(&mut |field: Field, _, text: &mut dyn Confidential| {
            let Some(subject) = text.subject().filter(|_| !text.is_legible()) else { return };
            if inner.keys.get(&subject).is_some_and(|key| text.open(key, field)) {
                return;
            }
            let (at_hand, has_one) = (inner.is_at_hand(subject), inner.live.contains_key(&subject));
            if at_hand || (!has_one && inner.erased.contains_key(&subject)) {
                // It is under none of the keys that there are.
                if inner.erased.contains_key(&subject) {
                    text.shut(true);
                }
            } else if !(inner.absent.contains(&subject) || later && inner.unresolved.contains(&subject)) {
                unknown.insert(subject);
            }
        });
        unknown
    }

    /// Seals the texts of a record that was decided on `state`, and puts the events behind its own that tell of new keys.
    ///
    /// # Errors
    /// If the store does not answer.
    pub(crate) async fn seal(&self, record: &mut Record, state: &State) -> Result<(), KeyStoreError> {
        if self.keys.is_none() {
            return Ok(());
        }
        let user = match &record.actor {
            Actor::Operator(name) => self.user(name),
            Actor::Service | Actor::Agent(_) => None,
        };
        let of = |owner: Owner| match whose(state, owner) {
            Whose::Subject(subject) => Some(subject),
            Whose::Named => user,
            Whose::Nobody => None,
        };
        let mut subjects: Vec<Subject> = Vec::new();
        record.private(&mut |_, owner, text| {
            if let Some(subject) = of(owner).filter(|subject| text.is_clear() && !subjects.contains(subject))
            {
                subjects.push(subject);
            }
        });
        let mut plans: BTreeMap<Subject, Plan> = BTreeMap::new();
        let mut opened: Vec<Event> = Vec::new();
        for subject in subjects {
            let plan = match state.subject(subject) {
                Some(Known { erased: true, .. }) if !begins_anew(state, subject) => Plan::Withhold,
                Some(Known { erased: false, commitment }) => {
                    match self.kept(subject, commitment, true).await? {
                        Some(key) => Plan::Seal(key),
                        None => {
                            tracing::error!(%subject, "its key is missing, what is under it cannot be read: it gets another");
                            Plan::Seal(self.begin(subject, None, &mut opened).await?)
                        }
                    }
                }
                known => {
                    Plan::Seal(self.begin(subject, known.map(|known| known.commitment), &mut opened).await?)
                }
            };
            plans.insert(subject, plan);
        }
        record.private(&mut |field, owner, text| {
            if text.is_clear() && whose(state, owner) == Whose::Nobody {
                text.withhold();
            }
            let Some(subject) = of(owner).filter(|_| text.is_clear()) else { return };
            match plans.get(&subject) {
                Some(Plan::Seal(key)) => text.seal(subject, key, field, random_id::<12>()),
                Some(Plan::Withhold) => text.withhold(),
                None => {}
            }
        });
        record.events.extend(opened);
        Ok(())
    }

    /// The key that the log knows of.
    async fn kept(
        &self,
        subject: Subject,
        commitment: [u8; 32],
        soon: bool,
    ) -> Result<Option<SubjectKey>, KeyStoreError> {
        let is = |key: &SubjectKey| key.commitment(subject) == commitment;
        let at_hand = self.inner().keys.get(&subject).filter(|key| is(key)).cloned();
        let (None, Some(SubjectKeys { store, wrapper })) = (&at_hand, &self.keys) else { return Ok(at_hand) };
        let wrapped = if soon { self.ask(store.get(subject)).await? } else { store.get(subject).await? };
        let mut inner = self.inner();
        let key = inner.unwrap(subject, wrapped, wrapper);
        // What a record was to be sealed with, if another replica's record came first.
        inner.fresh.remove(&subject);
        inner.keys.remove(&subject);
        if let Some(key) = &key {
            inner.take(subject, key.clone());
        }
        let key = key.filter(is);
        if key.is_none() {
            inner.missing.insert(subject);
        }
        Ok(key)
    }

    /// A key for a subject that has none on the log, or had one that was `erased`, and the event that tells of it.
    async fn begin(
        &self,
        subject: Subject,
        erased: Option<[u8; 32]>,
        opened: &mut Vec<Event>,
    ) -> Result<SubjectKey, KeyStoreError> {
        // An erased key must not come to life again.
        if self.inner().doomed.contains_key(&subject) {
            self.destroy_doomed().await?;
        }
        let is_damaged = self.inner().damaged.contains(&subject);
        if let Some(SubjectKeys { store, wrapper }) = self.keys.as_ref().filter(|_| is_damaged) {
            // Somebody may have seen to it meanwhile.
            let wrapped = self.ask(store.get(subject)).await?;
            let mut inner = self.inner();
            if let Some(key) = inner.unwrap(subject, wrapped, wrapper) {
                self.take_or_doom(&mut inner, subject, key);
            } else if wrapped.is_some() {
                return Err(damaged(subject));
            }
        }
        let key = {
            let mut inner = self.inner();
            let at_hand = inner.keys.get(&subject).map(|key| key.commitment(subject));
            if inner.doomed.contains_key(&subject) || (at_hand.is_some() && at_hand == erased) {
                return Err(KeyStoreError::Unavailable(format!(
                    "the erased key of {subject} is still there"
                )));
            }
            // One that was kept, and its record not appended, is as good as another.
            inner.keys.get(&subject).cloned().unwrap_or_else(|| {
                let key = SubjectKey::new(random_id::<32>());
                inner.keys.insert(subject, key.clone());
                inner.fresh.insert(subject);
                key
            })
        };
        opened.push(SubjectOpened { subject, commitment: key.commitment(subject) }.into());
        Ok(key)
    }

    /// Keeps the fresh keys of these subjects: to be done before a record that is sealed with one is appended. Says
    /// whether they are the ones that are kept now; if not, another replica was first, or one is damaged, and the records
    /// have to be sealed again.
    ///
    /// # Errors
    /// If the store does not answer; it is not known then what it keeps.
    pub(crate) async fn keep_fresh(&self, subjects: &BTreeSet<Subject>) -> Result<bool, KeyStoreError> {
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return Ok(true) };
        let fresh: Vec<(Subject, SubjectKey)> = {
            let inner = self.inner();
            let fresh = inner.fresh.intersection(subjects);
            fresh.filter_map(|s| Some((*s, inner.keys.get(s)?.clone()))).collect()
        };
        if fresh.is_empty() {
            return Ok(true);
        }
        let wrapped = fresh.iter().map(|(subject, key)| (*subject, wrapper.wrap(*subject, key))).collect();
        let kept = self.ask(store.create(wrapped)).await;
        let mut inner = self.inner();
        for (subject, _) in &fresh {
            inner.fresh.remove(subject);
            if kept.is_err() {
                // It may be kept or not: whoever needs it next finds out.
                inner.keys.remove(subject);
            }
        }
        let there = kept?;
        let mut ours = true;
        // All of them, whatever there is: what others of this commit are sealed with has to be what is kept.
        for (subject, wrapped) in there {
            let key = inner.unwrap(subject, Some(wrapped), wrapper);
            if key.is_some() && key == inner.keys.get(&subject).cloned() {
                continue;
            }
            inner.keys.remove(&subject);
            if let Some(key) = key {
                self.take_or_doom(&mut inner, subject, key);
            }
            ours = false;
        }
        Ok(ours)
    }

    /// Takes in what a record says of keys.
    pub(crate) fn note(&self, record: &Record, state: &State) {
        for event in &record.events {
            match event {
                Event::SubjectOpened(e) => {
                    let mut inner = self.inner();
                    inner.live.insert(e.subject, e.commitment);
                    if inner.is_at_hand(e.subject) {
                        inner.missing.remove(&e.subject);
                    }
                }
                Event::SubjectErased(SubjectErased { subject, .. }) => {
                    if let Some(known) = state.subject(*subject) {
                        self.doom(*subject, known.commitment);
                    }
                }
                _ => {}
            }
        }
    }

    fn doom(&self, subject: Subject, commitment: [u8; 32]) {
        let mut inner = self.inner();
        inner.erase(subject, commitment);
        if self.keys.is_some() {
            inner.doomed.insert(subject, commitment);
        }
    }

    /// Destroys the keys of those whom the log calls erased; none before [`Ring::reconcile`]. What cannot be unwrapped is
    /// left alone: with another fleet's secret that would be everything, the newer keys of those who were erased too.
    ///
    /// # Errors
    /// If the store does not answer: it is tried again with the next record, and at the next start.
    pub(crate) async fn destroy_doomed(&self) -> Result<(), KeyStoreError> {
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return Ok(()) };
        let doomed: Vec<_> = {
            let inner = self.inner();
            let doomed = inner.doomed.iter().filter(|_| inner.may_destroy);
            doomed.map(|(subject, commitment)| (*subject, *commitment)).collect()
        };
        for (subject, commitment) in doomed {
            if let Some(wrapped) = self.ask(store.get(subject)).await? {
                let key = self.inner().unwrap(subject, Some(wrapped), wrapper);
                if key.is_some_and(|key| key.commitment(subject) == commitment) {
                    self.ask(store.destroy(subject, wrapped)).await?;
                    tracing::info!(%subject, "its key is destroyed");
                }
            }
            let mut inner = self.inner();
            if inner.doomed.get(&subject) == Some(&commitment) {
                inner.doomed.remove(&subject);
            }
        }
        Ok(())
    }

    /// Whether a key is still to be destroyed, or may be one that should be.
    pub(crate) fn is_doomed(&self, subject: Subject) -> bool {
        let inner = self.inner();
        inner.doomed.contains_key(&subject) || inner.damaged.contains(&subject)
    }

    /// Holds the keys against what the log says, when it was read to its end and is known to be this fleet's: finishes erasures that were interrupted,
    /// and warns of keys that are missing.
    ///
    /// # Errors
    /// If the store does not answer.
    pub(crate) async fn reconcile(&self, state: &State) -> Result<(), KeyStoreError> {
        if self.keys.is_none() {
            return Ok(());
        }
        self.inner().may_destroy = true;
        for (subject, known) in state.subjects() {
            if known.erased {
                self.doom(subject, known.commitment);
            } else {
                // Looked up again where it is not at hand; a missing one is remembered.
                self.kept(subject, known.commitment, false).await?;
            }
        }
        self.destroy_doomed().await?;
        let missing: Vec<Subject> = self.missing();
        if !missing.is_empty() {
            let named: Vec<String> = missing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            tracing::error!(
                count = missing.len(),
                subjects = named.join(", "),
                "keys are missing though nothing was erased: restore the store of keys from its backup. Until then \
                 their texts are shown as [sealed]"
            );
        }
        Ok(())
    }

    /// Whose key is missing though nothing was erased.
    pub(crate) fn missing(&self) -> Vec<Subject> {
        self.inner().missing.iter().copied().collect()
    }
}

/// Opens records with keys that somebody was given, each held against what the log says of it.
#[derive(Debug, Default)]
pub(crate) struct Given {
    keys: BTreeMap<Subject, Vec<SubjectKey>>,
    erased: BTreeSet<Subject>,
    committed: BTreeMap<Subject, Vec<[u8; 32]>>,
    /// Subjects of whom another key was given than the log names.
    foreign: BTreeSet<Subject>,
}

impl Given {
    /// From a list of keys.
    pub(crate) fn new(keys: impl IntoIterator<Item = (Subject, SubjectKey)>) -> Self {
        let mut given = Self::default();
        for (subject, key) in keys {
            given.keys.entry(subject).or_default().push(key);
        }
        given
    }

    /// Whose key is not the one that the log names.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = Subject> {
        self.foreign.iter().copied()
    }

    /// Opens the next record of a history that is read from its beginning.
    pub(crate) fn open(&mut self, record: &mut Record) {
        for event in &record.events {
            match event {
                Event::SubjectOpened(e) => {
                    self.committed.entry(e.subject).or_default().push(e.commitment);
                    let good = |key: &SubjectKey| key.commitment(e.subject) == e.commitment;
                    if self.keys.get(&e.subject).is_some_and(|keys| !keys.iter().any(good)) {
                        self.foreign.insert(e.subject);
                    }
                }
                Event::SubjectErased(e) => drop(self.erased.insert(e.subject)),
                _ => {}
            }
        }
        record.private(&mut |field, _, text| {
            let Some(subject) = text.subject() else { return };
            let committed = self.committed.get(&subject).map_or(&[][..], Vec::as_slice);
            let mut keys = self.keys.get(&subject).into_iter().flatten();
            let opened =
                keys.any(|key| committed.contains(&key.commitment(subject)) && text.open(key, field));
            if !opened && self.erased.contains(&subject) {
                text.shut(true);
            }
        });
    }
}
