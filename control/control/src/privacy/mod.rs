//! Private texts between the writer, which decides on them in the clear, and the log, where they are sealed
//! (`events/SCHEMA.md`, Private texts; `docs/decisions/0011-private-texts.md`).
//!
//! `Ring` holds the keys of all subjects in memory. The writer seals a record with it between deciding and encoding,
//! and whoever reads records opens them with it before they are folded or shown. A key is on its way through three
//! states: *fresh* (a record was sealed with it that is not appended yet), *kept* (the store has it), *doomed* (the log
//! says that it was erased; it is being destroyed). Each step can be interrupted and is finished later, at the latest by
//! the next start. Which key is which is told by commitments alone: see `held`.

mod file;
mod given;
mod held;
mod moving;
mod nats;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_core::State;
use control_core::snapshot::Snapshot;
use control_core::subject::{Known, Whose, begins_anew, whose};
use event_schema::{
    Actor, Confidential, Event, Field, Owner, Record, Subject, SubjectErased, SubjectKey, SubjectOpened,
    Visit,
};

use held::Held;

pub use file::{FileKeys, Found};
pub(crate) use given::Given;
pub(crate) use moving::{is_own, move_keys};
pub use nats::NatsKeys;
pub use store::{KeyStore, KeyStoreError, WRAPPED_BYTES, Wrapped, Wrapper};

use crate::service::random_id;

/// How long those who must not wait wait for the store: the writer, behind which everybody stands.
const ASK: Duration = Duration::from_secs(1);

/// How long they do not ask it again then.
const REST: Duration = Duration::from_secs(1);

/// Pause until keys are asked for again that could not be had.
const RESOLVE_PAUSE: Duration = Duration::from_millis(500);

/// Pause until keys are destroyed that could not be.
const DESTROY_PAUSE: Duration = Duration::from_secs(5);

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
    held: Mutex<Held>,
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
        let ring = Self { keys, held: Mutex::default() };
        if let Some(SubjectKeys { store, wrapper }) = &ring.keys {
            let mut listed: BTreeMap<Subject, Vec<Wrapped>> = BTreeMap::new();
            for (subject, wrapped) in store.list().await? {
                listed.entry(subject).or_default().push(wrapped);
            }
            let mut held = ring.held();
            for (subject, all) in listed {
                for key in held.unwrap(subject, &all, wrapper) {
                    held.take(subject, key);
                }
            }
            if !held.damaged().is_empty() {
                tracing::error!(
                    subjects = held.damaged().len(),
                    "subjects' keys are damaged, or of another fleet: what is under them cannot be read"
                );
            }
        }
        Ok(ring)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // One entry is changed at a time.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subject that stands for a user's name; none without keys.
    pub(crate) fn user(&self, name: &str) -> Option<Subject> {
        Some(self.keys.as_ref()?.wrapper.user(name))
    }

    /// All keys at hand that the log names, for an auditor.
    pub(crate) fn all(&self) -> Vec<(Subject, SubjectKey)> {
        let held = self.held();
        let mut all: Vec<_> = held.named().map(|(subject, key)| (subject, key.clone())).collect();
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

    /// The same for a snapshot of a moment that this service has folded.
    ///
    /// # Errors
    /// As [`Ring::open_record`].
    pub(crate) async fn open_snapshot(&self, snapshot: &mut Snapshot) -> Result<(), KeyStoreError> {
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
            let all = store.get(subject).await?;
            self.held().answered(subject, &all, wrapper);
        }
        self.open_known(each, false);
        Ok(())
    }

    /// The log is read on from this snapshot. What was erased by then stays shut, also if the key is still kept: it could
    /// not be destroyed yet, or came back with a backup. A store that does not answer does not stop the start.
    pub(crate) async fn begin_at(&self, snapshot: &mut Snapshot) {
        for (subject, known) in snapshot.state.subjects() {
            self.held().begin_with(subject, known);
        }
        self.open_soon(&mut |visit| snapshot.private(visit)).await;
        snapshot.state.name_anew();
    }

    /// Takes in what the next record of the log says of new keys, before its texts are opened: some are under them.
    pub(crate) fn expect(&self, record: &Record) {
        for event in &record.events {
            if let Event::SubjectOpened(SubjectOpened { subject, commitment }) = event {
                self.held().opened(*subject, *commitment);
            }
        }
    }

    /// Takes in what a record says of keys.
    pub(crate) fn note(&self, record: &Record) {
        for event in &record.events {
            match event {
                Event::SubjectOpened(e) => self.held().opened(e.subject, e.commitment),
                Event::SubjectErased(SubjectErased { subject, .. }) => self.held().erased(*subject),
                _ => {}
            }
        }
    }

    /// As [`Ring::open_record`], for the writer: a store that does not answer at once must not stop it. Texts whose key
    /// cannot be had now are shut, which changes no state's hash, and opened by [`Ring::resolve`].
    pub(crate) async fn open_record_soon(&self, record: &mut Record) {
        self.open_soon(&mut |visit| record.private(visit)).await;
    }

    async fn open_soon(&self, each: &mut (dyn FnMut(&mut Visit<'_>) + Send)) {
        let unknown = self.open_known(each, true);
        if unknown.is_empty() {
            return;
        }
        for subject in unknown {
            self.look_up(subject).await;
        }
        self.open_known(each, true);
    }

    /// Asks for a key without waiting long; says whether there was an answer.
    async fn look_up(&self, subject: Subject) -> bool {
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return false };
        let answer = self.ask(store.get(subject)).await;
        let mut held = self.held();
        match answer {
            Ok(all) => held.answered(subject, &all, wrapper),
            Err(_) => drop(held.unresolved.insert(subject)),
        }
        !held.unresolved.contains(&subject)
    }

    /// When keys are to be asked for again that could not be had, or destroyed that could not be; none if there are none.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let held = self.held();
        if !held.unresolved.is_empty() {
            Some(RESOLVE_PAUSE)
        } else {
            (held.may_destroy && !held.doomed.is_empty()).then_some(DESTROY_PAUSE)
        }
    }

    /// Asks again for the keys that could not be had; says whether one came, so that texts can be opened.
    pub(crate) async fn resolve(&self) -> bool {
        let unresolved: Vec<Subject> = self.held().unresolved.iter().copied().collect();
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
        if self.held().down_until.is_some_and(|until| Instant::now() < until) {
            return Err(KeyStoreError::Unavailable("it did not answer a moment ago".into()));
        }
        let silent = |_| Err(KeyStoreError::Unavailable("it does not answer".into()));
        let answer = tokio::time::timeout(ASK, question).await.unwrap_or_else(silent);
        self.held().down_until = answer.is_err().then(|| Instant::now() + REST);
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
            let held = self.held();
            if held.keys_of(subject).next().is_some() || held.doomed.contains(&subject) {
                return Ok(());
            }
        }
        let key = SubjectKey::new(random_id::<32>());
        let there = store.create(vec![(subject, wrapper.wrap(subject, &key))]).await?;
        let mut held = self.held();
        if there.is_empty() {
            held.take(subject, key);
            return Ok(());
        }
        let there: Vec<Wrapped> = there.into_iter().map(|(_, wrapped)| wrapped).collect();
        let keys = held.unwrap(subject, &there, wrapper);
        if keys.is_empty() {
            return Err(damaged(subject));
        }
        for key in keys {
            held.take(subject, key);
        }
        Ok(())
    }

    /// Destroys the key of something that was not made after all, and whose id nobody else knows. One that the log names
    /// is left alone.
    pub(crate) async fn discard(&self, subject: Subject) {
        let Some(SubjectKeys { store, .. }) = &self.keys else { return };
        {
            let mut held = self.held();
            if held.told(subject).is_some() {
                return;
            }
            let keys: Vec<_> = held.keys_of(subject).map(|(commitment, _)| commitment).collect();
            for commitment in keys {
                held.drop_key(subject, commitment);
            }
            held.fresh.remove(&subject);
        }
        let discarded = async {
            for wrapped in store.get(subject).await? {
                store.destroy(subject, wrapped).await?;
            }
            Ok::<_, KeyStoreError>(())
        };
        if let Err(error) = discarded.await {
            tracing::warn!(%subject, %error, "a key stays that nothing is under");
        }
    }

    /// Opens what can be opened at once; subjects whose key is to be asked for.
    fn open_known(&self, each: &mut (dyn FnMut(&mut Visit<'_>) + Send), later: bool) -> BTreeSet<Subject> {
        let held = self.held();
        let mut unknown = BTreeSet::new();
        each(&mut |field: Field, _, text: &mut dyn Confidential| {
            let Some(subject) = text.subject().filter(|_| !text.is_legible()) else { return };
            if held.keys_of(subject).any(|(_, key)| text.open(key, field)) {
                return;
            }
            if held.is_settled(subject) {
                // It is under none of the keys that there are.
                if held.is_gone(subject) {
                    text.shut(true);
                }
            } else if !(held.is_absent(subject) || later && held.unresolved.contains(&subject)) {
                unknown.insert(subject);
            }
        });
        unknown
    }

    /// Seals the texts of a record that was decided on `state`, and puts the events behind its own that tell of new keys.
    ///
    /// # Errors
    /// If the store does not answer, or a key that is needed is damaged. What an agent tells is taken all the same then,
    /// without the texts, since everything behind it would have to wait; but not who it is.
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
        let mut may_lack = matches!(record.actor, Actor::Agent(_));
        record.private(&mut |field, owner, text| {
            may_lack &= field != Field::AgentName;
            if let Some(subject) = of(owner).filter(|subject| text.is_clear() && !subjects.contains(subject))
            {
                subjects.push(subject);
            }
        });
        let mut plans: BTreeMap<Subject, Plan> = BTreeMap::new();
        let mut opened: Vec<Event> = Vec::new();
        for subject in subjects {
            let plan = match state.subject(subject) {
                Some(known) if known.is_erased() && !begins_anew(state, subject) => Plan::Withhold,
                known => match self.kept(subject, known).await? {
                    Some(key) => Plan::Seal(key),
                    None if !self.held().is_damaged(subject) => {
                        Plan::Seal(self.begin(subject, known, &mut opened).await?)
                    }
                    None if may_lack => Plan::Withhold,
                    None => return Err(damaged(subject)),
                },
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

    /// The key that the log names, if there is one and it can be had. The store is asked once more, as somebody may have
    /// seen to it.
    async fn kept(
        &self,
        subject: Subject,
        known: Option<&Known>,
    ) -> Result<Option<SubjectKey>, KeyStoreError> {
        let live = known.and_then(|known| known.live);
        let at_hand = |held: &Held| held.key(subject, live?).cloned();
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return Ok(None) };
        {
            let held = self.held();
            let found = at_hand(&held);
            if found.is_some() || (live.is_none() && !held.is_damaged(subject)) {
                return Ok(found);
            }
        }
        let all = self.ask(store.get(subject)).await?;
        let mut held = self.held();
        held.answered(subject, &all, wrapper);
        Ok(at_hand(&held))
    }

    /// A key for a subject that has none which can be had, and the event that tells of it. None that was erased.
    async fn begin(
        &self,
        subject: Subject,
        known: Option<&Known>,
        opened: &mut Vec<Event>,
    ) -> Result<SubjectKey, KeyStoreError> {
        if known.is_some_and(|known| known.live.is_some()) {
            tracing::error!(%subject, "its key is missing, what is under it cannot be read: it gets another");
        }
        // The store takes no new key beside an erased one.
        if self.held().doomed.contains(&subject) {
            self.destroy_erased(subject).await?;
        }
        let mut held = self.held();
        let is_erased = |commitment| known.is_some_and(|known| known.erased.contains(&commitment));
        if held.doomed.contains(&subject)
            || held.keys_of(subject).any(|(commitment, _)| is_erased(commitment))
        {
            return Err(KeyStoreError::Unavailable(format!("the erased key of {subject} is still there")));
        }
        // One that was kept, and its record not appended, is as good as another; so is one that was found again.
        let there = held.keys_of(subject).next().map(|(commitment, key)| (commitment, key.clone()));
        let (commitment, key) = there.unwrap_or_else(|| {
            let key = SubjectKey::new(random_id::<32>());
            let commitment = key.commitment(subject);
            held.take(subject, key.clone());
            held.fresh.insert(subject, commitment);
            (commitment, key)
        });
        opened.push(SubjectOpened { subject, commitment }.into());
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
        let fresh: BTreeMap<Subject, ([u8; 32], SubjectKey)> = {
            let held = self.held();
            let fresh = held.fresh.iter().filter(|(subject, _)| subjects.contains(subject));
            fresh.filter_map(|(s, c)| Some((*s, (*c, held.key(*s, *c)?.clone())))).collect()
        };
        if fresh.is_empty() {
            return Ok(true);
        }
        let wrapped = fresh.iter().map(|(subject, (_, key))| (*subject, wrapper.wrap(*subject, key)));
        let kept = self.ask(store.create(wrapped.collect())).await;
        let mut held = self.held();
        for (subject, (commitment, _)) in &fresh {
            held.fresh.remove(subject);
            if kept.is_err() {
                // It may be kept or not: whoever needs it next finds out.
                held.drop_key(*subject, *commitment);
            }
        }
        let mut there: BTreeMap<Subject, Vec<Wrapped>> = BTreeMap::new();
        for (subject, wrapped) in kept? {
            there.entry(subject).or_default().push(wrapped);
        }
        let mut ours = true;
        // All of them, whatever there is: what others of this commit are sealed with has to be what is kept.
        for (subject, all) in there {
            let keys = held.unwrap(subject, &all, wrapper);
            let Some((commitment, key)) = fresh.get(&subject) else { continue };
            if keys.contains(key) {
                continue;
            }
            held.drop_key(subject, *commitment);
            for key in keys {
                held.take(subject, key);
            }
            ours = false;
        }
        Ok(ours)
    }

    /// Destroys the keys of those whom the log calls erased; none before [`Ring::reconcile`]. What cannot be unwrapped is
    /// left alone: with another fleet's secret that would be everything, the newer keys of those who were erased too.
    ///
    /// # Errors
    /// If the store does not answer: it is to be tried again, see [`Ring::pause`].
    pub(crate) async fn destroy_doomed(&self) -> Result<(), KeyStoreError> {
        let doomed: Vec<Subject> = self.held().doomed.iter().copied().collect();
        for subject in doomed {
            self.destroy_erased(subject).await?;
        }
        Ok(())
    }

    async fn destroy_erased(&self, subject: Subject) -> Result<(), KeyStoreError> {
        let Some(SubjectKeys { store, wrapper }) = &self.keys else { return Ok(()) };
        let erased = {
            let held = self.held();
            let known = held.told(subject).filter(|_| held.may_destroy);
            known.map(|known| known.erased.clone())
        };
        let Some(erased) = erased else { return Ok(()) };
        let all = self.ask(store.get(subject)).await?;
        // Says which is damaged.
        self.held().unwrap(subject, &all, wrapper);
        for wrapped in all {
            let key = wrapper.unwrap(subject, &wrapped);
            if key.is_some_and(|key| erased.contains(&key.commitment(subject))) {
                self.ask(store.destroy(subject, wrapped)).await?;
                tracing::info!(%subject, "its key is destroyed");
            }
        }
        let mut held = self.held();
        // Unless it was erased once more meanwhile.
        if held.told(subject).is_some_and(|known| known.erased == erased) {
            held.doomed.remove(&subject);
        }
        Ok(())
    }

    /// Whether a key is still to be destroyed, or may be one that should be.
    pub(crate) fn is_doomed(&self, subject: Subject) -> bool {
        let held = self.held();
        held.doomed.contains(&subject) || held.is_damaged(subject)
    }

    /// Holds the keys against what the log says, when it was read to its end and is known to be this fleet's: finishes
    /// erasures that were interrupted, and warns of keys that are missing. What the store does not answer now is seen to
    /// later: whoever starts is to serve.
    pub(crate) async fn reconcile(&self) {
        if self.keys.is_none() {
            return;
        }
        {
            let mut held = self.held();
            held.may_destroy = true;
            held.conclude();
        }
        if let Err(error) = self.destroy_doomed().await {
            tracing::warn!(%error, "keys of erased texts are not destroyed yet");
        }
        let missing: Vec<Subject> = self.missing();
        if !missing.is_empty() {
            let named: Vec<String> = missing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            tracing::error!(
                count = missing.len(),
                subjects = named.join(", "),
                "keys are missing or damaged though nothing was erased: put the backup of the keys beside them, as \
                 subject-keys.restored in the data folder. Until then their texts are shown as [sealed]"
            );
        }
    }

    /// Whose key is missing or damaged though nothing was erased.
    pub(crate) fn missing(&self) -> Vec<Subject> {
        self.held().missing().collect()
    }
}
