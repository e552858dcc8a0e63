//! The writer: one task that owns the state, decides, appends and folds.
//!
//! All records of one control service stand in ONE log stream, whatever stream (aggregate) they are
//! told in: a decision reads across aggregates (a run reads groups, a command takes the next number of
//! its agent), so the fence has to be around all of them. Appends of a group are sent off in a chain,
//! each naming its predecessor, so that one sync serves many; the first that fails breaks the chain
//! behind it, and the writer folds anew from the log and decides again, one by one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control_core::{Rejection, State, plan};
use event_log::limits::MAX_RECORD_BYTES;
use event_log::{AppendError, BoxFuture, EventLog, Position, ReadError, ReadLimit, StreamName};
use event_schema::{Command, DecodeError, Event, Record, RecordId, Report, RunId, Timestamp};
use tokio::sync::{mpsc, oneshot};

use super::attest::Pace;
use super::ids::Ids;
use super::issue::Issuer;
use super::{Origin, Shared, SubmitError, now};

/// Decisions on one wish before it is given up: each means that another writer came first.
const ATTEMPTS_MAX: usize = 8;

/// Runs whose first record is remembered, for the correlation of later ones.
const CORRELATIONS_MAX: usize = 10_000;

/// Pause after the log failed to say whether it has news.
const TAIL_PAUSE: Duration = Duration::from_secs(1);

/// The log's one stream.
pub(crate) fn log_stream() -> StreamName {
    StreamName::new("fleet").expect("a good name")
}

/// A wish on its way through the writer.
pub(crate) trait Wish: Send {
    /// Decides; keeps what the answer needs.
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection>;
    /// Who asks.
    fn origin(&self) -> &Origin;
    /// Tells the one who asked.
    fn answer(self: Box<Self>, result: Result<(), SubmitError>);
}

struct Asked<T, F> {
    origin: Origin,
    decide: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, SubmitError>>,
}

/// Puts a decision function into the writer's terms.
pub(crate) fn wish<T, F>(
    origin: Origin,
    decide: F,
) -> (Box<dyn Wish>, oneshot::Receiver<Result<T, SubmitError>>)
where
    T: Send + 'static,
    F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    (Box::new(Asked { origin, decide, value: None, reply }), answer)
}

impl<T, F> Wish for Asked<T, F>
where
    T: Send,
    F: FnMut(&State, Timestamp) -> Result<(Vec<Event>, T), Rejection> + Send,
{
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        let (events, value) = (self.decide)(state, now)?;
        self.value = Some(value);
        Ok(events)
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn answer(self: Box<Self>, result: Result<(), SubmitError>) {
        let Self { value, reply, .. } = *self;
        let answer = result.map(|()| value.expect("a wish is granted after it was decided"));
        // Whoever does not wait any more does not need the answer.
        let _ = reply.send(answer);
    }
}

/// The commands that a run still needs.
struct Orders {
    run: RunId,
    origin: Origin,
    issuer: Arc<Issuer>,
}

impl Wish for Orders {
    fn decide(&mut self, state: &State, now: Timestamp) -> Result<Vec<Event>, Rejection> {
        Ok(self.issuer.issue(state, self.run, now))
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn answer(self: Box<Self>, result: Result<(), SubmitError>) {
        if let Err(error) = result {
            tracing::error!(run = %self.run, %error, "commands wait to be issued until the log works again");
        }
    }
}

/// Why the log cannot be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is missing or out of order.
    #[error("the log goes from position {after} to {found}: a record is missing")]
    Gap {
        /// The last good position.
        after: Position,
        /// What came instead of the next one.
        found: Position,
    },
    /// The log is not one of this program.
    #[error(
        "position {position} of the log belongs to a stream {stream:?}: this is not a control service's log"
    )]
    Foreign {
        /// Where.
        position: Position,
        /// What.
        stream: String,
    },
    /// A record cannot be understood.
    #[error(
        "position {position} of the log cannot be read: {source}. If a newer version wrote it, run that version; \
         nothing was changed"
    )]
    Record {
        /// Where.
        position: Position,
        /// Why.
        source: DecodeError,
    },
}

/// The task's own things.
pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    log: Arc<dyn EventLog>,
    stream: StreamName,
    issuer: Arc<Issuer>,
    state: State,
    /// The last position folded into `state`, which is also the stream's last.
    pub(super) last: Position,
    correlations: BTreeMap<RunId, RecordId>,
    /// When the state is attested and checked.
    pub(super) pace: Pace,
    /// Appends in one chain; 1 where the log takes one at a time.
    chain_max: usize,
    /// Whether others may write to this log.
    is_shared: bool,
    /// After a failure: one decision at a time, folded only when it is durable.
    careful: bool,
    /// The log could not be read to its end: nothing may be decided before it was.
    stale: bool,
    /// What follows from records and has to be decided next.
    follow_ups: VecDeque<Box<dyn Wish>>,
}

/// A decision whose record is on its way, or that needed none.
struct InFlight {
    wish: Box<dyn Wish>,
    rejected: Option<Rejection>,
    append: Option<(BoxFuture<'static, Result<Position, AppendError>>, Record)>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        issuer: Issuer,
        chain_max: usize,
        is_shared: bool,
        pace: Pace,
    ) -> Self {
        Self {
            log: Arc::clone(&shared.log),
            shared,
            stream: log_stream(),
            issuer: Arc::new(issuer),
            state: State::default(),
            last: Position::ZERO,
            correlations: BTreeMap::new(),
            pace,
            chain_max: chain_max.max(1),
            is_shared,
            careful: false,
            stale: false,
            follow_ups: VecDeque::new(),
        }
    }

    /// Folds everything that the log has beyond what was folded.
    pub(crate) async fn catch_up(&mut self) -> Result<(), FoldError> {
        loop {
            let page = self.log.read(self.last.next(), ReadLimit::default()).await?;
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
                let record = decode(&entry.bytes)
                    .map_err(|source| FoldError::Record { position: entry.position, source })?;
                self.check_attested(entry.position.0, &record);
                self.fold(&record);
                self.last = entry.position;
                self.shared.publish(entry.position, &record);
            }
        }
    }

    /// Whether state and projections are at the same place of the log.
    pub(super) fn is_sound(&self) -> bool {
        !self.stale
    }

    /// Decides, appends and folds until nobody can ask any more.
    pub(crate) async fn run(mut self, mut wishes: mpsc::Receiver<Box<dyn Wish>>) {
        let log = Arc::clone(&self.log);
        loop {
            let mut batch = VecDeque::new();
            if self.is_shared {
                tokio::select! {
                    biased;
                    wish = wishes.recv() => match wish {
                        Some(wish) => batch.push_back(wish),
                        None => break,
                    },
                    news = log.wait_beyond(self.last) => {
                        if self.take_news(news).await.is_err() {
                            tokio::time::sleep(TAIL_PAUSE).await;
                        }
                        continue;
                    }
                }
            } else {
                match wishes.recv().await {
                    Some(wish) => batch.push_back(wish),
                    None => break,
                }
            }
            while batch.len() < self.chain_max {
                match wishes.try_recv() {
                    Ok(wish) => batch.push_back(wish),
                    Err(_) => break,
                }
            }
            self.commit(batch).await;
            self.attest_when_due().await;
        }
        self.attest_at_stop().await;
        self.log.close().await;
    }

    async fn take_news(&mut self, news: Result<Position, ReadError>) -> Result<(), ()> {
        let result = match news {
            Ok(_) => self.catch_up().await,
            Err(error) => Err(error.into()),
        };
        result.map_err(|error| tracing::warn!(%error, "the log cannot be followed"))
    }

    /// Brings every wish of the batch, and what follows from it, to an end.
    pub(crate) async fn commit(&mut self, mut batch: VecDeque<Box<dyn Wish>>) {
        loop {
            if self.chain_max > 1 && !self.careful && batch.len() > 1 {
                batch = self.commit_chain(batch).await;
            } else if let Some(wish) = batch.pop_front()
                && let Err(reason) = self.commit_one(wish).await
            {
                // Not to make everybody wait for the same failure in turn.
                for wish in batch.drain(..).chain(self.follow_ups.drain(..)) {
                    wish.answer(Err(SubmitError::Unavailable(reason.clone())));
                }
            }
            while let Some(wish) = self.follow_ups.pop_back() {
                batch.push_front(wish);
            }
            if batch.is_empty() {
                return;
            }
        }
    }

    /// One decision, folded when it is durable. An error: the log is not available, why.
    async fn commit_one(&mut self, mut wish: Box<dyn Wish>) -> Result<(), String> {
        for _ in 0..ATTEMPTS_MAX {
            if self.stale {
                if let Err(error) = self.catch_up().await {
                    return Err(self.unavailable(wish, &error));
                }
                self.stale = false;
                self.order_everything();
            }
            let time = now();
            let events = match wish.decide(&self.state, time) {
                Err(rejection) => {
                    wish.answer(Err(rejection.into()));
                    return Ok(());
                }
                Ok(events) if events.is_empty() => {
                    wish.answer(Ok(()));
                    return Ok(());
                }
                Ok(events) => events,
            };
            let record = self.record(wish.origin(), events, time);
            let appended = self.log.append(&self.stream, self.expected(), record.encode()).await;
            self.shared.metrics.appends.add(1);
            match appended {
                Ok(position) if position == self.last.next() => {
                    self.careful = false;
                    self.shared.healthy.store(true, Ordering::Relaxed);
                    self.last = position;
                    self.fold(&record);
                    self.order_what_follows(&record);
                    self.shared.publish(position, &record);
                    wish.answer(Ok(()));
                    return Ok(());
                }
                // Somebody else wrote, or the answer was lost: see what is there and decide again. What was
                // stored after all is found, and the decision comes out empty.
                Ok(_) | Err(AppendError::Conflict { .. } | AppendError::Unknown { .. }) => {
                    self.shared.metrics.append_conflicts.add(1);
                    self.stale = true;
                }
                Err(error @ AppendError::TooLarge { .. }) => {
                    wish.answer(Err(Rejection::Limit(error.to_string()).into()));
                    return Ok(());
                }
                Err(error) => return Err(self.unavailable(wish, &error)),
            }
        }
        let error = "other writers were faster too many times";
        wish.answer(Err(SubmitError::Unavailable(error.into())));
        Ok(())
    }

    fn unavailable(&mut self, wish: Box<dyn Wish>, error: &dyn std::error::Error) -> String {
        tracing::error!(%error, "the log does not take a record");
        self.careful = true;
        self.shared.healthy.store(false, Ordering::Relaxed);
        self.shared.metrics.append_failures.add(1);
        wish.answer(Err(SubmitError::Unavailable(error.to_string())));
        error.to_string()
    }

    /// Many decisions, each on the state as it will be, their records in one chain of appends. Returns
    /// what has to be done again one by one, which is nothing unless an append failed.
    async fn commit_chain(&mut self, mut batch: VecDeque<Box<dyn Wish>>) -> VecDeque<Box<dyn Wish>> {
        let mut flight: VecDeque<InFlight> = VecDeque::new();
        let mut predicted = self.last;
        while flight.len() < self.chain_max {
            let Some(mut wish) = self.follow_ups.pop_front().or_else(|| batch.pop_front()) else { break };
            let time = now();
            let (events, rejected) = match wish.decide(&self.state, time) {
                Ok(events) => (events, None),
                Err(rejection) => (vec![], Some(rejection)),
            };
            if events.is_empty() {
                // It may rest on a record still on its way, so its answer waits for that.
                flight.push_back(InFlight { wish, rejected, append: None });
                continue;
            }
            let record = self.record(wish.origin(), events, time);
            let bytes = record.encode();
            if bytes.len() > MAX_RECORD_BYTES {
                let rejected = Some(Rejection::Limit(format!(
                    "this would make a record of {} bytes, more than the {MAX_RECORD_BYTES} that the log takes",
                    bytes.len()
                )));
                flight.push_back(InFlight { wish, rejected, append: None });
                continue;
            }
            let expected = (predicted != Position::ZERO).then_some(predicted);
            let (log, stream) = (Arc::clone(&self.log), self.stream.clone());
            let mut append: BoxFuture<'static, _> =
                Box::pin(async move { log.append(&stream, expected, bytes).await });
            self.shared.metrics.appends.add(1);
            // The first poll hands it to the log, in order.
            if let std::task::Poll::Ready(result) = futures::poll!(&mut append) {
                append = Box::pin(std::future::ready(result));
            }
            predicted = predicted.next();
            self.fold(&record);
            self.order_what_follows(&record);
            flight.push_back(InFlight { wish, rejected: None, append: Some((append, record)) });
        }
        let again = self.land(flight).await;
        if again.is_empty() {
            self.shared.healthy.store(true, Ordering::Relaxed);
            return batch;
        }
        again.into_iter().chain(batch).collect()
    }

    /// Waits for the chain's appends in order; from the first failure on, gives the wishes back.
    async fn land(&mut self, mut flight: VecDeque<InFlight>) -> Vec<Box<dyn Wish>> {
        let mut again = Vec::new();
        while let Some(InFlight { wish, rejected, append }) = flight.pop_front() {
            let failed = !again.is_empty();
            match append {
                Some((append, record)) => match append.await {
                    Ok(position) if !failed && position == self.last.next() => {
                        self.last = position;
                        self.shared.publish(position, &record);
                        wish.answer(Ok(()));
                    }
                    result => {
                        if let (false, Err(error)) = (failed, result) {
                            tracing::warn!(%error, "an append failed; deciding again, one by one");
                        }
                        again.push(wish);
                    }
                },
                None if failed => again.push(wish),
                None => wish.answer(rejected.map_or(Ok(()), |rejection| Err(rejection.into()))),
            }
        }
        if !again.is_empty() {
            self.careful = true;
            self.shared.metrics.append_conflicts.add(1);
            self.follow_ups.clear();
            // The state has seen records that never were. Fold from the beginning, before the next decision;
            // projections have seen only what is durable and stay.
            self.state = State::default();
            self.correlations.clear();
            self.last = Position::ZERO;
            self.stale = true;
        }
        again
    }

    fn expected(&self) -> Option<Position> {
        (self.last != Position::ZERO).then_some(self.last)
    }

    fn fold(&mut self, record: &Record) {
        for event in &record.events {
            if let Event::RunStarted(e) = event {
                if self.correlations.len() >= CORRELATIONS_MAX {
                    self.correlations.pop_first();
                }
                self.correlations.insert(e.run, record.id);
            }
            self.state.evolve(event);
        }
    }

    fn record(&self, origin: &Origin, events: Vec<Event>, time: Timestamp) -> Record {
        let id = Ids(time).record();
        let process = events.iter().find_map(run_of).and_then(|run| self.correlations.get(&run).copied());
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

    /// Runs touched by a record may need commands.
    fn order_what_follows(&mut self, record: &Record) {
        let runs: std::collections::BTreeSet<RunId> = record.events.iter().filter_map(run_of).collect();
        for run in runs {
            self.order(run, Some(record.id));
        }
    }

    /// Every run's outstanding commands: at start, and after other writers were at work.
    pub(crate) fn order_everything(&mut self) {
        let runs: Vec<RunId> = self.state.runs().collect();
        for run in runs {
            self.order(run, None);
        }
    }

    fn order(&mut self, run: RunId, causation: Option<RecordId>) {
        if plan::is_outstanding(&self.state, run) {
            let causation = causation.or_else(|| self.correlations.get(&run).copied());
            let origin = Origin { causation, ..Origin::service(format!("run/{run}")) };
            let issuer = Arc::clone(&self.issuer);
            self.follow_ups.push_back(Box::new(Orders { run, origin, issuer }));
        }
    }
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
        Event::CommandIssued(e) => e.run,
        _ => None,
    }
}

/// Decodes a record and what agents and commands say inside it: nothing of it may be unknown.
fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let record = Record::decode(bytes)?;
    for event in &record.events {
        match event {
            Event::CommandIssued(e) => drop(Command::decode(&e.signed.bytes)?),
            Event::ReportReceived(e) => drop(Report::decode(&e.signed.bytes)?),
            _ => {}
        }
    }
    Ok(record)
}
