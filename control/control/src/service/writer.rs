//! The writer: one task that owns the state, decides, appends and folds.
//!
//! All records of one control service stand in ONE log stream, whatever stream (aggregate) they are
//! told in: a decision reads across aggregates (a run reads groups, a command takes the next number of
//! its agent), so the fence has to be around all of them. What is asked at the same time is decided
//! together, each wish on the state as those before it will have left it, and appended as ONE commit:
//! all of it is stored behind the record that it was decided on, or none of it. Whoever loses the race
//! for that place reads what came instead and decides again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use control_core::{Rejection, State, backup};
use event_log::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_RECORDS, MAX_RECORD_BYTES};
use event_log::{AppendError, EventLog, Position, ReadError, ReadLimit, StreamName};
use event_schema::{Actor, CommandIssued, Event, Record, RecordId, RunId, Subject, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::sealing::floor_of;

use super::attest::Pace;
use super::fold::{FoldError, check};
use super::ids::Ids;
use super::issue::Issuer;
use super::wish::{Concern, Orders, Waiting, Wish};
use super::{Origin, Shared, SubmitError, now};

/// How long a commit is tried again before those who wait are told that the log is not available. Each
/// try means that another writer came first, or that it is not known what became of the last one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tries that a commit gets in any case.
const TRIES_MIN: u32 = 3;

/// Tries in a row that failed although nothing new stood on the log: it does not do as it says.
const FRUITLESS_MAX: u32 = 8;

/// Others who wrote to the log within this time are likely to write again.
const RIVALRY: Duration = Duration::from_secs(2);

/// Longest pause that is left to others after a commit of ours. Who lost a race needs about three round
/// trips to try again, and we need one: without a pause the same writer would win every time.
const COURTESY_MAX: Duration = Duration::from_millis(20);

/// Runs whose first record is remembered, for the correlation of later ones.
const CORRELATIONS_MAX: usize = 10_000;

/// Runs that others wrote about and that are remembered until the next sweep; of more, all are looked at.
const TOUCHED_MAX: usize = 10_000;

/// Pause after the log failed to say whether it has news.
const TAIL_PAUSE: Duration = Duration::from_secs(1);

/// Pause before what this service owes the log is tried again, if nothing shows before that the log works.
const OWED_PAUSE: Duration = Duration::from_secs(2);

/// The log's one stream.
pub(crate) fn log_stream() -> StreamName {
    StreamName::new("fleet").expect("a good name")
}

/// Keeps the first record of a run that begins.
pub(super) fn remember(correlations: &mut BTreeMap<RunId, RecordId>, event: &Event, record: RecordId) {
    if let Event::RunStarted(e) = event {
        if correlations.len() >= CORRELATIONS_MAX {
            correlations.pop_first();
        }
        correlations.insert(e.run, record);
    }
}

/// What the writer is asked.
pub(crate) enum Ask {
    /// To decide about a wish.
    Wish(Box<dyn Wish>),
    /// To order what other writers decided and did not order.
    Sweep,
}

/// The task's own things.
pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Arc<dyn EventLog>,
    stream: StreamName,
    issuer: Arc<Issuer>,
    /// Folded from what is durable.
    state: State,
    /// The same, to be taken ahead of what is durable while a commit of several records is decided. None
    /// until that happens for the first time, and after a commit that was not stored.
    ahead: Option<State>,
    /// The last position folded into `state`, which is also the stream's last.
    pub(super) last: Position,
    correlations: BTreeMap<RunId, RecordId>,
    /// When the state is attested and checked.
    pub(super) pace: Pace,
    /// Records in one commit at most.
    commit_max: usize,
    /// Whether others may write to this log.
    is_shared: bool,
    /// After a failure: one decision at a time.
    careful: bool,
    /// It is not known what the log ends with: nothing may be decided before it was read.
    stale: bool,
    /// What follows from records and has to be decided next.
    follow_ups: VecDeque<Box<dyn Wish>>,
    /// What records of others were about since the last sweep.
    touched: BTreeSet<Concern>,
    /// They were too many to be remembered.
    touched_all: bool,
    /// Whose commands this service could not record. Unlike what others touched they are not left to the lease's
    /// holder: where there is no lease nobody else would see to them, and its holder does not hear of its own.
    owed: BTreeSet<Concern>,
    /// When the log is tried again for their sake, or because its end is not known.
    owed_at: Option<Instant>,
    /// Records of the commit at hand of which it is not known whether they were stored, and those that were found.
    in_doubt: BTreeSet<RecordId>,
    found: BTreeSet<RecordId>,
    /// When a record of others was last folded.
    rivals: Option<Instant>,
    /// Before that nothing is appended.
    courtesy: Option<Instant>,
}

/// A decision of a commit.
struct Decided {
    waiting: Waiting,
    rejected: Option<Rejection>,
    record: Option<Record>,
    /// Follows from a record of this very commit, and is thought of again when that is decided again.
    follows: bool,
}

/// What became of a commit.
enum Outcome {
    /// Everybody was told.
    Settled,
    /// Nothing of it was stored, or it is not known: read on, and decide these again.
    Again(Vec<Waiting>),
    /// The log is not available, why; everybody was told.
    Failed(String),
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        issuer: Issuer,
        commit_max: usize,
        is_shared: bool,
        pace: Pace,
    ) -> Self {
        Self {
            log: Arc::clone(&shared.log),
            shared,
            stream: log_stream(),
            issuer: Arc::new(issuer),
            state: State::default(),
            ahead: None,
            last: Position::ZERO,
            correlations: BTreeMap::new(),
            pace,
            commit_max: commit_max.clamp(1, MAX_COMMIT_RECORDS),
            is_shared,
            careful: false,
            stale: false,
            follow_ups: VecDeque::new(),
            touched: BTreeSet::new(),
            touched_all: false,
            owed: BTreeSet::new(),
            owed_at: None,
            in_doubt: BTreeSet::new(),
            found: BTreeSet::new(),
            rivals: None,
            courtesy: None,
        }
    }

    /// Folds everything that the log has beyond what was folded. What cannot be folded, now or later, is everybody's
    /// trouble: whoever goes on as if he knew the log's end gives wrong answers, and does not do his duty as a replica.
    pub(crate) async fn catch_up(&mut self) -> Result<(), FoldError> {
        let caught_up = self.fold_on().await;
        let lasting = caught_up.as_ref().err().filter(|error| error.stays()).map(ToString::to_string);
        self.shared.set_trouble(|trouble| &mut trouble.log, lasting);
        caught_up
    }

    async fn fold_on(&mut self) -> Result<(), FoldError> {
        if self.last == Position::ZERO {
            self.restore().await;
        }
        loop {
            let page = match self.log.read(self.last.next(), ReadLimit::default()).await {
                Err(ReadError::Archived { first }) => return Err(FoldError::NoState { first }),
                page => page?,
            };
            if page.is_empty() {
                return Ok(());
            }
            for entry in page {
                if entry.position != self.last.next() {
                    return Err(FoldError::Gap { after: self.last, found: entry.position });
                }
                if entry.stream != self.stream {
                    let stream = entry.stream.to_string();
                    return Err(FoldError::Foreign { position: entry.position, stream });
                }
                let position = entry.position;
                let own = self.shared.schema;
                let unreadable = |source| FoldError::Record { position, source };
                let mut record = Record::decode_up_to(own, &entry.bytes).map_err(unreadable)?;
                self.shared.ring.expect(&record);
                self.shared.ring.open_record_soon(&mut record).await;
                check(&record).map_err(unreadable)?;
                if let Some(level) = raised_to(&record.events).filter(|level| *level > own) {
                    return Err(FoldError::Level { position, level, own });
                }
                self.check_attested(entry.position.0, &record);
                self.fold(&record);
                if self.in_doubt.remove(&record.id) {
                    self.found.insert(record.id);
                }
                self.touched.extend(touched_by(&record, &self.state));
                if self.touched.len() > TOUCHED_MAX {
                    self.touched.clear();
                    self.touched_all = true;
                }
                self.rivals = Some(Instant::now());
                self.last = entry.position;
                self.shared.publish(entry.position, &record);
            }
            destroy_keys(&self.shared).await;
            self.snapshot_when_due().await;
            // A long log is folded in one go, and others have to live on this thread too.
            tokio::task::yield_now().await;
        }
    }

    /// Goes on from the newest snapshot, if there is one that holds.
    async fn restore(&mut self) {
        let Some(snapshots) = &self.shared.snapshots else { return };
        let Some(mut snapshot) = snapshots.find(&*self.log, None, 0).await else { return };
        self.shared.ring.begin_at(&mut snapshot).await;
        self.last = Position(snapshot.views.position());
        (self.state, self.correlations) = (snapshot.state, snapshot.correlations);
        self.shared.restore(snapshot.views, snapshot.attested);
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn correlations(&self) -> &BTreeMap<RunId, RecordId> {
        &self.correlations
    }

    /// Whether state and projections are at the same place of the log.
    pub(super) fn is_sound(&self) -> bool {
        !self.stale
    }

    /// Decides, appends and folds until nobody can ask any more.
    pub(crate) async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let log = Arc::clone(&self.log);
        // What was read to open the log is nobody's rivalry, and was ordered.
        self.rivals = None;
        self.touched.clear();
        self.touched_all = false;
        let mut resolve_at = None;
        loop {
            let owed_at = self.owed_at;
            if let Some(pause) = self.shared.ring.pause() {
                let at = Instant::now() + pause;
                resolve_at = Some(resolve_at.map_or(at, |before: Instant| before.min(at)));
            }
            let first = tokio::select! {
                biased;
                () = async { tokio::time::sleep_until(resolve_at.expect("looked at")).await }, if resolve_at.is_some() => {
                    resolve_at = None;
                    self.resolve().await;
                    destroy_keys(&self.shared).await;
                    continue;
                }
                () = async { tokio::time::sleep_until(owed_at.expect("looked at")).await }, if owed_at.is_some() => {
                    self.pay().await;
                    continue;
                }
                ask = asked.recv() => ask,
                news = log.wait_beyond(self.last), if self.is_shared => {
                    if self.take_news(news).await.is_err() {
                        tokio::time::sleep(TAIL_PAUSE).await;
                    }
                    continue;
                }
            };
            let Some(first) = first else { break };
            let mut batch = VecDeque::new();
            self.take(first, &mut batch);
            while batch.len() < self.commit_max
                && let Ok(ask) = asked.try_recv()
            {
                self.take(ask, &mut batch);
            }
            self.commit(batch).await;
            self.attest_when_due().await;
            self.snapshot_when_due().await;
        }
        self.attest_at_stop().await;
        self.snapshot_at_stop().await;
        // The last record is there, and the log can still be read.
        if let Some(sealing) = self.shared.sealing.get() {
            let floor = floor_of(&self.shared.views());
            sealing.finish(&self.shared.metrics, floor).await;
        }
        self.log.close().await;
    }

    fn take(&mut self, ask: Ask, batch: &mut VecDeque<Box<dyn Wish>>) {
        match ask {
            Ask::Wish(wish) => batch.push_back(wish),
            Ask::Sweep if std::mem::take(&mut self.touched_all) => {
                self.touched.clear();
                self.order_everything();
            }
            Ask::Sweep => {
                for concern in std::mem::take(&mut self.touched) {
                    self.order(concern, None);
                }
            }
        }
    }

    async fn take_news(&mut self, news: Result<Position, ReadError>) -> Result<(), ()> {
        let result = match news {
            Ok(_) => self.catch_up().await,
            Err(error) => {
                let error = FoldError::from(error);
                if error.stays() {
                    self.shared.set_trouble(|trouble| &mut trouble.log, Some(error.to_string()));
                }
                Err(error)
            }
        };
        result.map_err(|error| tracing::warn!(%error, "the log cannot be followed"))
    }

    /// Records the commands that are owed, if the log works again.
    async fn pay(&mut self) {
        self.owed_at = None;
        if self.stale
            && let Err(error) = self.read_on().await
        {
            self.unavailable(&error);
            self.owed_at = Some(Instant::now() + OWED_PAUSE);
            return;
        }
        self.order_owed();
        self.commit(VecDeque::new()).await;
    }

    fn order_owed(&mut self) {
        for concern in std::mem::take(&mut self.owed) {
            self.order(concern, None);
        }
    }

    /// Opens texts whose keys could not be had when they were folded, if they can be had now.
    async fn resolve(&mut self) {
        let shared = Arc::clone(&self.shared);
        if !shared.ring.resolve().await {
            return;
        }
        for state in std::iter::once(&mut self.state).chain(&mut self.ahead) {
            shared.ring.open_at_hand(&mut |visit| state.private(visit));
            state.name_anew();
        }
        {
            let mut views = shared.views.write().unwrap_or_else(PoisonError::into_inner);
            let views = &mut *views;
            shared.ring.open_at_hand(&mut |visit| views.private(visit));
        }
        // Commands among them can be delivered now.
        shared.watches().values().for_each(|watch| watch.send_modify(|_| ()));
    }

    /// Brings every wish of the batch, and what follows from it, to an end.
    pub(crate) async fn commit(&mut self, batch: VecDeque<Box<dyn Wish>>) {
        self.settle(batch.into_iter().map(Waiting::from).collect()).await;
        self.in_doubt.clear();
        self.found.clear();
    }

    async fn settle(&mut self, mut batch: VecDeque<Waiting>) {
        let (mut deadline, mut tries) = (Instant::now() + PATIENCE, 0);
        let (mut fruitless, mut seen) = (0, self.last);
        loop {
            while let Some(wish) = self.follow_ups.pop_back() {
                batch.push_front(wish.into());
            }
            if batch.is_empty() {
                return;
            }
            if self.stale
                && let Err(error) = self.read_on().await
            {
                let reason = self.unavailable(&error);
                self.fail(batch, &reason);
                return;
            }
            let most = if self.careful { 1 } else { self.commit_max };
            match self.commit_some(&mut batch, most).await {
                Outcome::Settled => (deadline, tries, fruitless) = (Instant::now() + PATIENCE, 0, 0),
                Outcome::Failed(reason) => {
                    // Not to make everybody wait for the same failure in turn.
                    self.fail(batch, &reason);
                    return;
                }
                Outcome::Again(wishes) => {
                    for wish in wishes.into_iter().rev() {
                        batch.push_front(wish);
                    }
                    tries += 1;
                    fruitless = if self.last == seen { fruitless + 1 } else { 1 };
                    seen = self.last;
                    // One try may have taken all of the time, and be stored: that is to be found out first.
                    let late = tries >= TRIES_MIN && Instant::now() >= deadline;
                    if late || fruitless >= FRUITLESS_MAX {
                        self.fail(batch, "others were faster, or the log did not answer, for too long");
                        return;
                    }
                }
            }
        }
    }

    /// Tells everybody that the log is not available, or, of whom that is so, that it is not known what became of it.
    fn fail(&mut self, batch: VecDeque<Waiting>, reason: &str) {
        let follow_ups = std::mem::take(&mut self.follow_ups);
        for Waiting { wish, tried } in batch.into_iter().chain(follow_ups.into_iter().map(Waiting::from)) {
            self.owed.extend(wish.orders());
            wish.answer(if tried.iter().any(|(id, _)| self.found.contains(id)) {
                Ok(())
            } else if tried.iter().any(|(_, after)| *after == self.last) {
                Err(SubmitError::Unknown(reason.to_owned()))
            } else {
                // What was to follow an earlier record than the last one that is known never will be stored.
                Err(SubmitError::Unavailable(reason.to_owned()))
            });
        }
        if self.stale || !self.owed.is_empty() {
            self.owed_at = Some(Instant::now() + OWED_PAUSE);
        }
    }

    /// Reads what came instead of a commit that was not stored. If it is the commit itself, whose answer
    /// was lost, what follows from it is still to be ordered.
    async fn read_on(&mut self) -> Result<(), FoldError> {
        let before = std::mem::take(&mut self.touched);
        let read = self.catch_up().await;
        for concern in self.touched.clone() {
            self.order(concern, None);
        }
        self.touched.extend(before);
        self.stale = read.is_err();
        read
    }

    /// Decides on as many wishes as go into one commit and appends what they come to.
    async fn commit_some(&mut self, batch: &mut VecDeque<Waiting>, most: usize) -> Outcome {
        let mut state = if most > 1 && batch.len() > 1 { Some(self.take_ahead()) } else { None };
        let mut decided = Vec::new();
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut followers: VecDeque<Waiting> = VecDeque::new();
        let mut correlations = BTreeMap::new();
        while records.len() < most {
            let (mut waiting, follows) = match (followers.pop_front(), batch.pop_front()) {
                (Some(follower), next) => {
                    next.into_iter().for_each(|next| batch.push_front(next));
                    (follower, true)
                }
                (None, Some(next)) => (next, false),
                (None, None) => break,
            };
            if waiting.tried.iter().any(|(id, _)| self.found.contains(id)) {
                // Its answer was lost, and the record is there. Decided again it might look like a mistake: who deletes
                // something finds that it is not there.
                waiting.wish.answer(Ok(()));
                continue;
            }
            if waiting.wish.is_given_up() {
                waiting.wish.answer(Err(SubmitError::Unavailable("nobody waits for it any more".into())));
                continue;
            }
            let alone = waiting.wish.is_alone();
            if alone && !decided.is_empty() {
                if follows {
                    followers.push_front(waiting)
                } else {
                    batch.push_front(waiting)
                }
                break;
            }
            let time = now();
            let (events, mut rejected) =
                match waiting.wish.decide(state.as_ref().unwrap_or(&self.state), time) {
                    Ok(events) => (events, None),
                    Err(rejection) => (vec![], Some(rejection)),
                };
            if events.is_empty() {
                // It may rest on a record of this commit, so its answer waits for that.
                decided.push(Decided { waiting, rejected, record: None, follows });
                continue;
            }
            let mut record = self.record(waiting.wish.origin(), events, time, &correlations);
            let known = state.as_ref().unwrap_or(&self.state);
            let level = raised_to(&record.events).unwrap_or(0).max(known.level());
            if level > 1
                && let Err(error) = self.shared.ring.seal(&mut record, known).await
            {
                // The log works; only what is sealed with a key that cannot be had has to wait.
                self.fail(VecDeque::from([waiting]), &error.to_string());
                continue;
            }
            let encoded = record.encode_at(level);
            if encoded.len() > MAX_RECORD_BYTES {
                rejected = Some(Rejection::Limit(format!(
                    "this would make a record of {} bytes, more than the {MAX_RECORD_BYTES} that the log takes",
                    encoded.len()
                )));
                decided.push(Decided { waiting, rejected, record: None, follows });
                continue;
            }
            if !records.is_empty() && bytes + encoded.len() > MAX_COMMIT_BYTES {
                // It is decided again in the next commit.
                if follows {
                    followers.push_front(waiting)
                } else {
                    batch.push_front(waiting)
                }
                break;
            }
            bytes += encoded.len();
            records.push(encoded);
            if let Some(state) = &mut state {
                for event in &record.events {
                    if let Event::RunStarted(e) = event {
                        correlations.insert(e.run, record.id);
                    }
                    state.evolve(event);
                }
                for concern in touched_by(&record, state) {
                    let orders = self.orders(state, concern, Some(record.id), &correlations);
                    followers.extend(orders.map(Waiting::from));
                }
            }
            // Behind an erasure nothing is sealed before it is folded: until then the erased key is at hand.
            let erases = record.events.iter().any(|event| matches!(event, Event::SubjectErased(_)));
            decided.push(Decided { waiting, rejected: None, record: Some(record), follows });
            if alone || erases || state.is_none() {
                break;
            }
        }
        if records.is_empty() {
            // The two are the same, as nothing was decided.
            self.ahead = state.or(self.ahead.take());
            return self.settle_without_records(decided).await;
        }
        let outcome = self.append(decided, records, state).await;
        if matches!(outcome, Outcome::Settled) {
            self.follow_ups.extend(followers.into_iter().map(|waiting| waiting.wish));
        }
        outcome
    }

    /// The state to be taken ahead, equal to the durable one.
    fn take_ahead(&mut self) -> State {
        self.ahead.take().unwrap_or_else(|| self.state.clone())
    }

    /// Answers wishes that came to nothing. On a log that others write to, that too rests on its end: an
    /// agent must not be refused because its token was made at another replica a moment ago.
    async fn settle_without_records(&mut self, decided: Vec<Decided>) -> Outcome {
        let unfenced = |decided: &Decided| decided.waiting.wish.origin().actor != Actor::Service;
        if self.is_shared && decided.iter().any(unfenced) {
            match self.log.last_position().await {
                Ok(last) if last > self.last => {
                    self.stale = true;
                    return Outcome::Again(again(decided));
                }
                Ok(_) => {}
                Err(error) => {
                    let reason = self.unavailable(&error);
                    self.fail(again(decided).into(), &reason);
                    return Outcome::Failed(reason);
                }
            }
        }
        for Decided { waiting, rejected, .. } in decided {
            waiting.wish.answer(rejected.map_or(Ok(()), |rejection| Err(rejection.into())));
        }
        Outcome::Settled
    }

    /// Appends the records of a commit and makes of the answer what it means.
    async fn append(
        &mut self,
        mut decided: Vec<Decided>,
        records: Vec<Vec<u8>>,
        ahead: Option<State>,
    ) -> Outcome {
        if let Some(until) = self.courtesy.take() {
            tokio::time::sleep_until(until).await;
        }
        // A key has to outlast whatever is sealed with it.
        let opened = |decided: &Decided| -> BTreeSet<Subject> {
            let events = decided.record.iter().flat_map(|record| &record.events);
            events
                .filter_map(|event| match event {
                    Event::SubjectOpened(e) => Some(e.subject),
                    _ => None,
                })
                .collect()
        };
        let subjects = decided.iter().flat_map(opened).collect();
        match self.shared.ring.keep_fresh(&subjects).await {
            Ok(true) => {}
            Ok(false) => return Outcome::Again(again(decided)),
            Err(error) => {
                // The others need not wait for a store of keys.
                let (these, others) = decided.into_iter().partition(|decided| !opened(decided).is_empty());
                self.fail(again(these).into(), &error.to_string());
                return Outcome::Again(again(others));
            }
        }
        let count = records.len();
        let began = Instant::now();
        let expected = (self.last != Position::ZERO).then_some(self.last);
        let appended = self.log.append_batch(&self.stream, expected, records).await;
        self.shared.metrics.appends.add(1);
        match appended {
            Ok(first) if first == self.last.next() => {
                if self.rivals.is_some_and(|seen| seen.elapsed() < RIVALRY) {
                    self.courtesy = Some(Instant::now() + began.elapsed().min(COURTESY_MAX));
                }
                self.careful = false;
                self.shared.healthy.store(true, Ordering::Relaxed);
                for Decided { waiting, rejected, record, .. } in decided {
                    if let Some(record) = record {
                        self.last = self.last.next();
                        self.fold(&record);
                        if ahead.is_none() {
                            for concern in touched_by(&record, &self.state) {
                                self.order(concern, Some(record.id));
                            }
                        }
                        self.shared.publish(self.last, &record);
                        destroy_keys(&self.shared).await;
                    }
                    waiting.wish.answer(rejected.map_or(Ok(()), |rejection| Err(rejection.into())));
                }
                if ahead.is_some() {
                    // It has seen exactly what was folded.
                    self.ahead = ahead;
                }
                // The log works: whatever could not be recorded before is recorded now.
                self.order_owed();
                Outcome::Settled
            }
            // Somebody else wrote, or the answer was lost: see what is there and decide again. What was
            // stored after all is found, and the decision comes out empty.
            Ok(_) | Err(AppendError::Conflict { .. } | AppendError::Unknown { .. }) => {
                if !matches!(appended, Err(AppendError::Conflict { .. })) {
                    for Decided { waiting, record, .. } in &mut decided {
                        waiting.tried.extend(record.iter().map(|record| (record.id, self.last)));
                        self.in_doubt.extend(record.iter().map(|record| record.id));
                    }
                }
                self.shared.metrics.append_conflicts.add(1);
                self.stale = true;
                Outcome::Again(again(decided))
            }
            Err(AppendError::TooLarge { .. }) if count > 1 => {
                self.careful = true;
                Outcome::Again(again(decided))
            }
            Err(error @ AppendError::TooLarge { .. }) => {
                for decided in decided {
                    decided.waiting.wish.answer(Err(Rejection::Limit(error.to_string()).into()));
                }
                Outcome::Settled
            }
            Err(error) => {
                let reason = self.unavailable(&error);
                self.fail(again(decided).into(), &reason);
                Outcome::Failed(reason)
            }
        }
    }

    fn unavailable(&mut self, error: &dyn std::error::Error) -> String {
        tracing::error!(%error, "the log does not take a record");
        self.careful = true;
        self.shared.healthy.store(false, Ordering::Relaxed);
        self.shared.metrics.append_failures.add(1);
        error.to_string()
    }

    fn fold(&mut self, record: &Record) {
        self.shared.ring.note(record);
        for event in &record.events {
            remember(&mut self.correlations, event, record.id);
            self.state.evolve(event);
            if let Some(ahead) = &mut self.ahead {
                ahead.evolve(event);
            }
        }
    }

    fn record(
        &self,
        origin: &Origin,
        events: Vec<Event>,
        time: Timestamp,
        newer: &BTreeMap<RunId, RecordId>,
    ) -> Record {
        let id = Ids(time).record();
        let known = |run: RunId| newer.get(&run).or_else(|| self.correlations.get(&run)).copied();
        let process = events.iter().find_map(run_of).and_then(known);
        Record {
            id,
            stream: origin.stream.clone(),
            time,
            actor: origin.actor.clone(),
            causation: origin.causation,
            correlation: process.or(origin.causation).unwrap_or(id),
            events,
        }
    }

    /// All outstanding commands: at start.
    pub(crate) fn order_everything(&mut self) {
        let runs = self.state.runs().map(Concern::Run);
        let backups = backup::plan::jobs(&self.state).map(|job| Concern::Backup(job, None));
        let all: Vec<Concern> = runs.chain(backups).collect();
        for concern in all {
            self.order(concern, None);
        }
    }

    fn order(&mut self, concern: Concern, causation: Option<RecordId>) {
        let orders = self.orders(&self.state, concern, causation, &BTreeMap::new());
        self.follow_ups.extend(orders);
    }

    fn orders(
        &self,
        state: &State,
        concern: Concern,
        causation: Option<RecordId>,
        newer: &BTreeMap<RunId, RecordId>,
    ) -> Option<Box<dyn Wish>> {
        concern.is_outstanding(state).then(|| {
            let (stream, known) = match concern {
                Concern::Run(run) => {
                    let known = newer.get(&run).or_else(|| self.correlations.get(&run)).copied();
                    (format!("run/{run}"), known)
                }
                Concern::Backup(job, _) => (format!("job/{job}"), None),
            };
            let origin = Origin { causation: causation.or(known), ..Origin::service(stream) };
            Box::new(Orders { concern, origin, issuer: Arc::clone(&self.issuer) }) as Box<dyn Wish>
        })
    }
}

/// The wishes of a commit that has to be decided again.
fn again(decided: Vec<Decided>) -> Vec<Waiting> {
    decided.into_iter().filter(|decided| !decided.follows).map(|decided| decided.waiting).collect()
}

/// What may need commands after a record, which is in the state.
fn touched_by(record: &Record, state: &State) -> BTreeSet<Concern> {
    let mut touched: BTreeSet<Concern> = record.events.iter().filter_map(run_of).map(Concern::Run).collect();
    for event in &record.events {
        match event {
            Event::JobCreated(e) => drop(touched.insert(Concern::Backup(e.job, None))),
            Event::JobDeleted(e) => drop(touched.insert(Concern::Backup(e.job, None))),
            Event::BackupVersionKept(e) => drop(touched.insert(Concern::Backup(e.job, Some(e.source)))),
            // What had to wait for it may be another source's.
            Event::BackupThinned(e) => drop(touched.insert(Concern::Backup(e.job, None))),
            Event::RunFinished(e) => {
                let shelf = state.backup_of(e.run);
                touched.extend(shelf.map(|(job, source)| Concern::Backup(job, Some(source))));
            }
            Event::CommandIssued(CommandIssued { backup: Some(backup), .. }) => {
                touched.insert(Concern::Backup(backup.job, None));
            }
            // Who is to watch may be others now.
            Event::AgentApproved(_) | Event::AgentRemoved(_) => {
                touched.extend(backup::plan::jobs(state).map(|job| Concern::Backup(job, None)));
            }
            Event::GroupMembersAdded(_) | Event::GroupMembersRemoved(_) => {
                touched.extend(backup::plan::jobs(state).map(|job| Concern::Backup(job, None)));
            }
            _ => {}
        }
    }
    touched
}

/// The run that an event is about.
pub(crate) fn run_of(event: &Event) -> Option<RunId> {
    match event {
        Event::RunStarted(e) => Some(e.run),
        Event::RunManifestReady(e) => Some(e.run),
        Event::RunAgentProgressed(e) => Some(e.run),
        Event::RunProblemReported(e) => Some(e.run),
        Event::RunStopRequested(e) => Some(e.run),
        Event::RunFinished(e) => Some(e.run),
        Event::RunDisposed(e) => Some(e.run),
        Event::RunMembersSet(e) => Some(e.run),
        Event::RunConflictFound(e) => Some(e.run),
        Event::RunConflictSettled(e) => Some(e.run),
        Event::RunGuardRaised(e) => Some(e.run),
        Event::RunGuardAnswered(e) => Some(e.run),
        Event::RunGuardLifted(e) => Some(e.run),
        Event::RunPathBlocked(e) => Some(e.run),
        Event::RunPathUnblocked(e) => Some(e.run),
        Event::RunRolledBack(e) => Some(e.run),
        Event::BackupVersionKept(e) => Some(e.run),
        Event::CommandIssued(e) => e.run,
        _ => None,
    }
}

/// Destroys the keys of those who were erased. One that cannot be is tried again with what comes next, and soon in any
/// case.
async fn destroy_keys(shared: &Shared) {
    if let Err(error) = shared.ring.destroy_doomed().await {
        tracing::warn!(%error, "keys of erased texts are not destroyed yet");
    }
}

/// The level that the log is raised to, if it is.
fn raised_to(events: &[Event]) -> Option<u8> {
    let raised = |event: &Event| match event {
        Event::SchemaRaised(e) => Some(e.level),
        _ => None,
    };
    events.iter().filter_map(raised).max()
}
