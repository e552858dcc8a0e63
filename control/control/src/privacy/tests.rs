//! Keys that are damaged, erased or another's, wherever they still lie.

use std::sync::Mutex;

use control_core::State;
use event_log::BoxFuture;
use event_schema::{
    Actor, AgentId, ERASED, Event, JobCreated, JobId, JobSpec, Party, Place, Record, RecordId, SubjectErased,
    Timestamp,
};

use super::*;

/// Keys in memory.
#[derive(Default)]
struct Keys(Mutex<BTreeMap<Subject, Wrapped>>);

impl Keys {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Subject, Wrapped>> {
        self.0.lock().expect("nobody panicked")
    }
}

impl KeyStore for Keys {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async { Ok(self.map().clone().into_iter().collect()) })
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Option<Wrapped>, KeyStoreError>> {
        Box::pin(async move { Ok(self.map().get(&subject).copied()) })
    }

    fn create(
        &self,
        keys: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async move {
            let mut there = Vec::new();
            for (subject, wrapped) in keys {
                match self.map().entry(subject) {
                    std::collections::btree_map::Entry::Occupied(known) => {
                        there.push((subject, *known.get()))
                    }
                    std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(wrapped)),
                }
            }
            Ok(there)
        })
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(async move {
            let mut keys = self.map();
            if keys.get(&subject) == Some(&wrapped) {
                keys.remove(&subject);
            }
            Ok(())
        })
    }
}

const JOB: Subject = Subject::Job(JobId([1; 16]));

fn record(actor: Actor) -> Record {
    let place = |path: &str| Place { party: Party::Agent(AgentId([2; 16])), path: path.into() };
    let spec = JobSpec::Distribution { source: place("a"), destinations: vec![place("b")] };
    let created = JobCreated { job: JobId([1; 16]), name: "payroll".into(), spec };
    let (id, stream) = (RecordId([3; 16]), "job".to_owned());
    let events = vec![created.into()];
    Record { id, stream, time: Timestamp(1), actor, causation: None, correlation: id, events }
}

async fn ring(store: &Arc<Keys>, secret: u8) -> (Ring, Arc<Wrapper>) {
    let wrapper = Arc::new(Wrapper::new(&[secret; 32]));
    let keys = SubjectKeys { store: store.clone(), wrapper: wrapper.clone() };
    (Ring::open(Some(keys)).await.expect("opens"), wrapper)
}

fn committed(record: &Record, of: Subject) -> Option<[u8; 32]> {
    record.events.iter().find_map(|event| match event {
        Event::SubjectOpened(e) if e.subject == of => Some(e.commitment),
        _ => None,
    })
}

#[tokio::test]
async fn a_damaged_key_stops_nobody_else() {
    let store = Arc::new(Keys::default());
    let (ring, wrapper) = ring(&store, 1).await;
    let anna = wrapper.user("anna");
    let mut first = record(Actor::Operator("anna".into()));
    ring.seal(&mut first, &State::default()).await.expect("sealed");
    // Meanwhile another replica keeps a key for the job, and something is wrong with the user's.
    let other = SubjectKey::new([9; 32]);
    store.map().insert(anna, [7; WRAPPED_BYTES]);
    store.map().insert(JOB, wrapper.wrap(JOB, &other));
    let subjects = BTreeSet::from([anna, JOB]);
    assert!(!ring.keep_fresh(&subjects).await.expect("answered"), "to be sealed again");
    let mut by_anna = record(Actor::Operator("anna".into()));
    let refused = ring.seal(&mut by_anna, &State::default()).await.expect_err("her key is damaged");
    assert!(refused.to_string().contains("cannot be unwrapped"), "{refused}");
    let mut by_us = record(Actor::Service);
    ring.seal(&mut by_us, &State::default()).await.expect("nothing is wrong with the job's");
    assert_eq!(committed(&by_us, JOB), Some(other.commitment(JOB)), "the one that is kept");
    assert!(ring.keep_fresh(&subjects).await.expect("answered"));
    assert_eq!(store.map()[&anna], [7; WRAPPED_BYTES], "it is left as it is");
    // Somebody saw to it.
    store.map().remove(&anna);
    ring.seal(&mut by_anna, &State::default()).await.expect("sealed");
    assert!(ring.keep_fresh(&subjects).await.expect("answered"));
    assert_eq!(
        wrapper.unwrap(anna, &store.map()[&anna]).map(|key| key.commitment(anna)),
        committed(&by_anna, anna)
    );
}

#[tokio::test]
async fn an_erased_key_is_taken_in_by_nobody_while_it_still_lies_there() {
    let store = Arc::new(Keys::default());
    let (first, wrapper) = ring(&store, 1).await;
    let anna = wrapper.user("anna");
    let mut created = record(Actor::Operator("anna".into()));
    first.seal(&mut created, &State::default()).await.expect("sealed");
    assert!(first.keep_fresh(&BTreeSet::from([anna, JOB])).await.expect("answered"));
    let before = store.map()[&anna];
    let mut state = State::default();
    let fold = |ring: &Ring, state: &mut State, record: &Record| {
        ring.expect(record);
        ring.note(record, state);
        record.events.iter().for_each(|event| state.evolve(event));
    };
    let mut erased = record(Actor::Service);
    erased.events = vec![SubjectErased { subject: anna, reason: "asked for".into() }.into()];
    let read = |record: &Record| Record::decode(&record.encode_at(2)).expect("a record");

    // Another replica has folded the erasure; the store has the key yet, as it may not be destroyed before the log is
    // known to be this fleet's.
    let (second, _) = ring(&store, 1).await;
    for record in [&created, &erased] {
        fold(&second, &mut state, record);
    }
    second.destroy_doomed().await.expect("nothing yet");
    assert_eq!(store.map()[&anna], before);
    let mut shown = read(&created);
    second.open_record(&mut shown).await.expect("answered");
    let Actor::Operator(name) = &shown.actor else { panic!("{:?}", shown.actor) };
    assert_eq!(name.as_str(), ERASED);
    assert!(second.all().iter().all(|(subject, _)| *subject != anna));
    // What she decides next: the old key is never used, and destroyed first.
    second.prepare(anna).await.expect("answered");
    let mut again = record(Actor::Operator("anna".into()));
    assert!(second.seal(&mut again, &state).await.is_err(), "not while it lies there");
    second.reconcile(&state).await.expect("answered");
    assert!(!store.map().contains_key(&anna), "destroyed");
    second.seal(&mut again, &state).await.expect("sealed");
    assert_ne!(committed(&again, anna), committed(&created, anna));

    // In the very commit that erases: decided on a state ahead of what is folded.
    let fresh = second.seal(&mut record(Actor::Operator("anna".into())), &state).await;
    fresh.expect("sealed");
    let mut ahead = state.clone();
    again.events.iter().chain(&erased.events).for_each(|event| ahead.evolve(event));
    let refused = second.seal(&mut record(Actor::Operator("anna".into())), &ahead).await;
    assert!(refused.is_err(), "the key of before, which is about to be destroyed");
}

#[tokio::test]
async fn another_secret_destroys_nothing() {
    let store = Arc::new(Keys::default());
    let (first, wrapper) = ring(&store, 1).await;
    let anna = wrapper.user("anna");
    let mut created = record(Actor::Operator("anna".into()));
    first.seal(&mut created, &State::default()).await.expect("sealed");
    let mut state = State::default();
    created.events.iter().for_each(|event| state.evolve(event));
    state.evolve(&SubjectErased { subject: anna, reason: "asked for".into() }.into());
    let newer = wrapper.wrap(anna, &SubjectKey::new([5; 32]));
    store.map().insert(anna, newer);
    let (foreign, _) = ring(&store, 2).await;
    foreign.reconcile(&state).await.expect("answered");
    assert_eq!(store.map().get(&anna), Some(&newer), "it cannot tell that this is the erased one");
    assert!(foreign.is_doomed(anna), "and does not say that it is destroyed");
    let (own, _) = ring(&store, 1).await;
    own.reconcile(&state).await.expect("answered");
    assert_eq!(store.map().get(&anna), Some(&newer), "another key than the erased one");
}
