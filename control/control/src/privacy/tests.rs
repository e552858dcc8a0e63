//! Keys that are damaged, erased or another's, wherever they still lie.

use std::sync::Mutex;

use control_core::State;
use control_core::snapshot::Snapshot;
use event_log::BoxFuture;
use event_schema::{
    Actor, AgentId, ERASED, Event, JobCreated, JobId, JobSpec, Party, Place, Record, RecordId, SubjectErased,
    Timestamp,
};

use super::*;

/// Keys in memory.
#[derive(Default)]
struct Keys(Mutex<BTreeMap<Subject, Vec<Wrapped>>>);

impl Keys {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Subject, Vec<Wrapped>>> {
        self.0.lock().expect("nobody panicked")
    }

    /// The only key of a subject.
    fn one(&self, subject: Subject) -> Option<Wrapped> {
        let map = self.map();
        let all = map.get(&subject)?;
        assert!(all.len() < 2, "{subject} has {} keys", all.len());
        all.first().copied()
    }

    fn put(&self, subject: Subject, wrapped: Wrapped) {
        self.map().insert(subject, vec![wrapped]);
    }
}

impl KeyStore for Keys {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async {
            let map = self.map();
            Ok(map.iter().flat_map(|(of, all)| all.iter().map(|key| (*of, *key))).collect())
        })
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Vec<Wrapped>, KeyStoreError>> {
        Box::pin(async move { Ok(self.map().get(&subject).cloned().unwrap_or_default()) })
    }

    fn create(
        &self,
        keys: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async move {
            let mut there = Vec::new();
            for (subject, wrapped) in keys {
                let mut map = self.map();
                let all = map.entry(subject).or_default();
                there.extend(all.iter().map(|known| (subject, *known)));
                if all.is_empty() {
                    all.push(wrapped);
                }
            }
            Ok(there)
        })
    }

    fn add(&self, keys: Vec<(Subject, Wrapped)>) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(async move {
            for (subject, wrapped) in keys {
                self.map().entry(subject).or_default().push(wrapped);
            }
            Ok(())
        })
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(async move {
            self.map().entry(subject).or_default().retain(|known| *known != wrapped);
            Ok(())
        })
    }
}

const JOB: Subject = Subject::Job(JobId([1; 16]));

fn record(actor: Actor) -> Record {
    let place = |path: &str| Place { party: Party::Agent(AgentId([2; 16])), path: path.into() };
    let spec = JobSpec::Distribution {
        source: place("a"),
        destinations: vec![place("b")],
        options: event_schema::Private::default(),
    };
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
    store.put(anna, [7; WRAPPED_BYTES]);
    store.put(JOB, wrapper.wrap(JOB, &other));
    let subjects = BTreeSet::from([anna, JOB]);
    assert!(!ring.keep_fresh(&subjects).await.expect("answered"), "to be sealed again");
    let mut by_anna = record(Actor::Operator("anna".into()));
    let refused = ring.seal(&mut by_anna, &State::default()).await.expect_err("her key is damaged");
    assert!(refused.to_string().contains("cannot be unwrapped"), "{refused}");
    let mut by_us = record(Actor::Service);
    ring.seal(&mut by_us, &State::default()).await.expect("nothing is wrong with the job's");
    assert_eq!(committed(&by_us, JOB), Some(other.commitment(JOB)), "the one that is kept");
    assert!(ring.keep_fresh(&subjects).await.expect("answered"));
    assert_eq!(store.one(anna), Some([7; WRAPPED_BYTES]), "it is left as it is");
    // Somebody saw to it.
    store.map().remove(&anna);
    ring.seal(&mut by_anna, &State::default()).await.expect("sealed");
    assert!(ring.keep_fresh(&subjects).await.expect("answered"));
    assert_eq!(
        wrapper.unwrap(anna, &store.one(anna).expect("kept")).map(|key| key.commitment(anna)),
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
    let before = store.one(anna);
    let mut state = State::default();
    let erased = erasure(anna);
    let read = |record: &Record| Record::decode(&record.encode_at(2)).expect("a record");

    // Another replica has folded the erasure; the store has the key yet, as it may not be destroyed before the log is
    // known to be this fleet's.
    let (second, _) = ring(&store, 1).await;
    for record in [&created, &erased] {
        fold(&second, &mut state, record);
    }
    second.destroy_doomed().await.expect("nothing yet");
    assert_eq!(store.one(anna), before);
    let mut shown = read(&created);
    second.open_record(&mut shown).await.expect("answered");
    let Actor::Operator(name) = &shown.actor else { panic!("{:?}", shown.actor) };
    assert_eq!(name.as_str(), ERASED);
    assert!(second.all().iter().all(|(subject, _)| *subject != anna));
    // What she decides next: the old key is never used, and destroyed first.
    second.prepare(anna).await.expect("answered");
    let mut again = record(Actor::Operator("anna".into()));
    assert!(second.seal(&mut again, &state).await.is_err(), "not while it lies there");
    second.reconcile().await;
    assert_eq!(store.one(anna), None, "destroyed");
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
    store.put(anna, newer);
    let mut snapshot = Snapshot { state, ..Snapshot::default() };
    let (foreign, _) = ring(&store, 2).await;
    foreign.begin_at(&mut snapshot).await;
    foreign.reconcile().await;
    assert_eq!(store.one(anna), Some(newer), "it cannot tell that this is the erased one");
    assert!(foreign.is_doomed(anna), "and does not say that it is destroyed");
    assert_eq!(foreign.missing(), [JOB, anna], "somebody has to see to that");
    let (own, _) = ring(&store, 1).await;
    own.begin_at(&mut snapshot).await;
    own.reconcile().await;
    assert_eq!(store.one(anna), Some(newer), "another key than the erased one");
}

/// What the log says, folded by a ring and by a state.
fn fold(ring: &Ring, state: &mut State, record: &Record) {
    ring.expect(record);
    ring.note(record);
    record.events.iter().for_each(|event| state.evolve(event));
}

fn erasure(subject: Subject) -> Record {
    let mut erased = record(Actor::Service);
    erased.events = vec![SubjectErased { subject, reason: "asked for".into() }.into()];
    erased
}

/// Seals something by anna, and folds it; what it opened for her.
async fn decide(ring: &Ring, state: &mut State, anna: Subject) -> Option<[u8; 32]> {
    let mut by_anna = record(Actor::Operator("anna".into()));
    ring.seal(&mut by_anna, state).await.expect("sealed");
    assert!(ring.keep_fresh(&BTreeSet::from([anna, JOB])).await.expect("answered"));
    fold(ring, state, &by_anna);
    committed(&by_anna, anna)
}

/// Every erased key of a subject comes back with old stores, one of them beside the live one; the log is read from a
/// snapshot that is newer than all of it.
#[tokio::test]
async fn none_of_several_erased_keys_counts_again() {
    let store = Arc::new(Keys::default());
    let (first, wrapper) = ring(&store, 1).await;
    first.reconcile().await;
    let anna = wrapper.user("anna");
    let (mut state, mut old, mut opened) = (State::default(), Vec::new(), BTreeSet::new());
    for _ in 0..2 {
        opened.extend(decide(&first, &mut state, anna).await);
        old.extend(store.one(anna));
        fold(&first, &mut state, &erasure(anna));
        first.destroy_doomed().await.expect("answered");
        assert_eq!(store.one(anna), None);
    }
    opened.extend(decide(&first, &mut state, anna).await);
    let live = store.one(anna).expect("kept");
    for back in [vec![old[0]], vec![old[1], old[0]], vec![old[0], live, old[1]]] {
        store.map().insert(anna, back);
        let (again, _) = ring(&store, 1).await;
        let (mut own, mut snapshot) =
            (state.clone(), Snapshot { state: state.clone(), ..Snapshot::default() });
        again.begin_at(&mut snapshot).await;
        again.reconcile().await;
        let left = store.one(anna);
        let is_lost = left.is_none();
        assert!(is_lost || left == Some(live), "the erased ones are destroyed");
        assert_eq!(again.missing().contains(&anna), is_lost);
        let next = decide(&again, &mut own, anna).await;
        assert_eq!(next.is_some(), is_lost, "another one if it has none");
        assert!(next.is_none_or(|next| !opened.contains(&next)), "and none of before");
    }
}

/// A lost key is told of until it is there again, beside the one that took its place, or what was under it is erased.
#[tokio::test]
async fn a_lost_key_is_told_of_until_it_is_found_or_erased() {
    for found in [true, false] {
        let store = Arc::new(Keys::default());
        let (first, wrapper) = ring(&store, 1).await;
        let anna = wrapper.user("anna");
        let mut state = State::default();
        decide(&first, &mut state, anna).await;
        let lost = store.one(anna).expect("kept");
        store.map().clear();
        let open = async |state: &State| {
            let (again, _) = ring(&store, 1).await;
            again.begin_at(&mut Snapshot { state: state.clone(), ..Snapshot::default() }).await;
            again.reconcile().await;
            again
        };
        let again = open(&state).await;
        assert_eq!(again.missing(), [JOB, anna]);
        assert!(decide(&again, &mut state, anna).await.is_some(), "it gets another");
        assert_eq!(again.missing(), [JOB, anna], "what was under the first is still shut");
        assert_eq!(open(&state).await.missing(), [JOB, anna], "after a start too");
        if found {
            store.add(vec![(anna, lost)]).await.expect("kept");
            let again = open(&state).await;
            assert_eq!(again.missing(), [JOB]);
            assert_eq!(again.all().iter().filter(|(of, _)| *of == anna).count(), 2, "both are used");
            assert!(decide(&again, &mut state, anna).await.is_none(), "and the newer one goes on");
        } else {
            fold(&again, &mut state, &erasure(anna));
            assert_eq!(again.missing(), [JOB], "at once");
            assert_eq!(open(&state).await.missing(), [JOB]);
        }
    }
}

/// A replica that lags behind: the key is destroyed by the one that recorded the erasure, which it has yet to read.
#[tokio::test]
async fn a_key_that_others_destroyed_is_missing_only_until_that_is_read() {
    let store = Arc::new(Keys::default());
    let (first, wrapper) = ring(&store, 1).await;
    let anna = wrapper.user("anna");
    let mut state = State::default();
    decide(&first, &mut state, anna).await;
    store.map().remove(&anna);
    let (behind, _) = ring(&store, 1).await;
    behind.begin_at(&mut Snapshot { state: state.clone(), ..Snapshot::default() }).await;
    behind.reconcile().await;
    assert_eq!(behind.missing(), [anna]);
    fold(&behind, &mut state, &erasure(anna));
    assert!(behind.missing().is_empty());
}

#[tokio::test]
async fn a_key_of_nothing_is_destroyed_and_no_other() {
    let store = Arc::new(Keys::default());
    let (ring, _) = ring(&store, 1).await;
    ring.prepare(JOB).await.expect("kept");
    assert!(store.one(JOB).is_some());
    ring.discard(JOB).await;
    assert_eq!(store.one(JOB), None);
    let mut created = record(Actor::Service);
    ring.seal(&mut created, &State::default()).await.expect("sealed");
    assert!(ring.keep_fresh(&BTreeSet::from([JOB])).await.expect("answered"));
    fold(&ring, &mut State::default(), &created);
    ring.discard(JOB).await;
    assert!(store.one(JOB).is_some(), "the log names it");
}
