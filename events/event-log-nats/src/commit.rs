//! The committer: one task per log that puts the appends that wait into one frame, sends it, and makes of every answer
//! what it means, above all of none (`events/NATS_FORMAT.md` §5).
//!
//! A frame names the message that it must follow, so at most one frame can have its place, whoever sent it. After any
//! doubt the question is simple: is the message behind that one ours, another's, or not there? Ours: it is stored.
//! Another's: ours never will be, so its appends are decided anew. None: the same frame is sent again, which is safe
//! whatever became of the first try. One frame is in flight at a time; meanwhile the next one fills.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use event_log::{AppendError, Position, ReadError, StreamName};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::applier::Applier;
use crate::connection::rest;
use crate::frame::{CRC, CommitId, Payload};
use crate::limits::{LONGEST_PAUSE, QUEUE_APPENDS, TIMEOUTS_BEFORE_RECONNECT};
use crate::queue::Pending;
use crate::servers::{Refusal, Tried};
use crate::shared::Shared;

/// See the module.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    /// Taken from the queue and not in a frame.
    backlog: VecDeque<Pending>,
    /// Sent, and its fate not known.
    doubtful: Option<Sending>,
    /// Payload of a frame of several records, at most.
    frame_bytes: usize,
    timeouts: u32,
}

/// A frame on its way.
struct Sending {
    commit: CommitId,
    first: Position,
    /// The sequence of the message that it must follow.
    after: u64,
    headers: HeaderMap,
    payload: Bytes,
    appends: Vec<Pending>,
    /// Some try was sent and never answered: it may be stored, even later.
    in_doubt: bool,
}

/// What to do after a step.
enum Next {
    /// Go on at once.
    On,
    /// Not getting on: pause before the next try.
    Pause,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, frame_bytes: usize) -> Committer {
        Committer { shared, backlog: VecDeque::new(), doubtful: None, frame_bytes, timeouts: 0 }
    }

    /// Runs until nobody can ask any more and everything asked has been answered or was given up.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Pending>) {
        let mut attempt = 0;
        loop {
            if self.backlog.is_empty() && self.doubtful.is_none() {
                match queue.recv().await {
                    Some(append) => self.backlog.push_back(append),
                    None => return,
                }
                // Those who were answered together ask again together: let them in before the frame is closed.
                tokio::task::yield_now().await;
            }
            while self.backlog.len() < QUEUE_APPENDS
                && let Ok(append) = queue.try_recv()
            {
                self.backlog.push_back(append);
            }
            match self.step().await {
                Next::On => attempt = 0,
                Next::Pause => rest(&mut attempt, Instant::now() + LONGEST_PAUSE).await,
            }
        }
    }

    /// Sends one frame and settles it as far as possible.
    async fn step(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut applier = shared.applier.lock().await;
        let sending = match self.doubtful.take() {
            Some(sending) if applier.found().is_some() => return self.stored(sending),
            Some(sending) if applier.applied() != sending.after => return self.decide_anew(sending),
            Some(sending) if sending.appends.iter().all(|append| append.ticket.is_over()) => {
                // Everyone was told that it is not known. If it is stored after all, it comes as others' frames do.
                drop(sending);
                return Next::On;
            }
            Some(sending) => sending,
            None if !shared.servers.connection.is_up() => {
                shared.note_trouble("not connected".to_owned());
                self.backlog.retain(|append| !append.ticket.is_over());
                return if self.backlog.is_empty() { Next::On } else { Next::Pause };
            }
            None => match self.fill(&mut applier).await {
                Ok(Some(sending)) => sending,
                Ok(None) => return Next::On,
                Err(error) => return self.hold_up(error),
            },
        };
        let tried = shared.servers.publish(sending.headers.clone(), sending.payload.clone()).await;
        self.settle(sending, tried, &mut applier).await
    }

    /// What is decided to go into the next frame; `None` if nothing is left to be sent. An error: it can't be decided.
    async fn fill(&mut self, applier: &mut Applier) -> Result<Option<Sending>, ReadError> {
        let shared = Arc::clone(&self.shared);
        // Whether the copy holds everything that the leader has.
        let mut fresh = false;
        let mut payload = Payload::default();
        let mut appends: Vec<Pending> = Vec::new();
        let mut ends: HashMap<StreamName, Position> = HashMap::new();
        let mut next_time = VecDeque::new();
        while let Some(append) = self.backlog.pop_front() {
            if append.ticket.is_over() {
                continue;
            }
            let in_frame = ends.get(&append.stream).copied();
            let mut actual = in_frame.or_else(|| shared.copy.last_stored_of(&append.stream));
            if actual != append.expected && payload.is_empty() && !fresh {
                // Before anybody is told that he is wrong, the leader is asked: the copy may be what is behind.
                if let Err(error) = shared.catch_up_with_leader(applier).await {
                    self.backlog.push_front(append);
                    return Err(error);
                }
                fresh = true;
                actual = shared.copy.last_stored_of(&append.stream);
            }
            if actual != append.expected {
                if in_frame.is_some() || !fresh {
                    // It loses against a record of this frame if that is stored, or has to be asked about first.
                    next_time.push_back(append);
                } else {
                    let expected = append.expected;
                    append.answer(Err(AppendError::Conflict { expected, actual }));
                }
                continue;
            }
            if !payload.fits(&append.stream, &append.records, self.frame_bytes) {
                if payload.is_empty() {
                    // A stream that was told to take less than other logs do.
                    let size = append.records.iter().map(Vec::len).sum();
                    append.answer(Err(AppendError::TooLarge { size, max: self.frame_bytes }));
                    continue;
                }
                self.backlog.push_front(append);
                break;
            }
            if append.ticket.send() {
                for bytes in &append.records {
                    payload.push(&append.stream, bytes);
                }
                ends.insert(
                    append.stream.clone(),
                    Position(shared.copy.last_stored().0 + payload.count() as u64),
                );
                appends.push(append);
            }
        }
        while let Some(append) = next_time.pop_back() {
            self.backlog.push_front(append);
        }
        if appends.is_empty() {
            return Ok(None);
        }
        let commit = match CommitId::random() {
            Ok(commit) => commit,
            Err(error) => {
                self.give_back(appends);
                return Err(ReadError::Unavailable { reason: error.to_string() });
            }
        };
        let (first, after) = (shared.copy.last_stored().next(), applier.applied());
        let headers = payload.headers(&shared.servers.options.stream, first, after, applier.last(), &commit);
        let payload = Bytes::from(payload.into_bytes());
        applier.await_commit(&commit);
        Ok(Some(Sending { commit, first, after, headers, payload, appends, in_doubt: false }))
    }

    /// Makes of an answer what it means.
    async fn settle(&mut self, mut sending: Sending, tried: Tried, applier: &mut Applier) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut refusal = None;
        match tried {
            Tried::Stored(sequence) if sequence == sending.after + 1 => {
                self.timeouts = 0;
                // Their number stays: it is what positions are counted by.
                let records = sending.appends.iter_mut().flat_map(|append| {
                    let stream = &append.stream;
                    append.records.iter_mut().map(|bytes| (stream.clone(), std::mem::take(bytes)))
                });
                let crc = sending.headers.get(CRC).map(|crc| crc.as_str().to_owned()).unwrap_or_default();
                let kept = applier.keep_own(sending.first, records.collect(), crc).await;
                if let Err(error) = kept {
                    // The servers have it; the copy gets it from there as soon as it can be written.
                    tracing::error!(%error, first = %sending.first, "a frame was stored, the local copy lacks it");
                }
                shared.announce(applier);
                return self.stored(sending);
            }
            // The comparison forbids it: looked up like an answer that was lost.
            Tried::Stored(sequence) => {
                sending.in_doubt = true;
                shared.note_trouble(format!("stored as {sequence}, not behind {}", sending.after));
            }
            Tried::WrongLast => shared.note_trouble("the log's end changes".to_owned()),
            Tried::NotNow(reason) => shared.note_trouble(reason),
            Tried::Refused(reason) => refusal = Some(reason),
            Tried::Unanswered(reason) => {
                tracing::debug!(commit = ?sending.commit, reason, "a frame was not answered");
                shared.note_trouble(reason);
                sending.in_doubt = true;
                self.timeouts += 1;
                if self.timeouts >= TIMEOUTS_BEFORE_RECONNECT {
                    self.timeouts = 0;
                    shared.servers.reconnect().await;
                }
            }
        }
        // Refused or unanswered: what stands there decides.
        let caught_up = shared.catch_up_with_leader(applier).await;
        if applier.found().is_some() {
            return self.stored(sending);
        }
        if applier.applied() != sending.after {
            return self.decide_anew(sending);
        }
        if let Some(refusal) = refusal {
            Self::refuse(sending, &refusal);
            return Next::On;
        }
        if let Err(error @ ReadError::Damaged(_)) = caught_up {
            // What stands in its place is no frame: this one can't be stored there any more.
            self.give_back(std::mem::take(&mut sending.appends));
            return self.hold_up(error);
        }
        if let Err(error) = caught_up {
            shared.note_trouble(error.to_string());
        }
        if sending.in_doubt {
            self.doubtful = Some(sending);
        } else {
            self.give_back(sending.appends);
        }
        Next::Pause
    }

    /// A frame is on the log: answers everyone in it.
    fn stored(&mut self, sending: Sending) -> Next {
        let mut position = sending.first;
        for append in sending.appends {
            let count = append.records.len() as u64;
            append.answer(Ok(position));
            position.0 += count;
        }
        Next::On
    }

    /// Another's frame has the place of this one, so this one never will be stored.
    fn decide_anew(&mut self, sending: Sending) -> Next {
        self.give_back(sending.appends);
        Next::On
    }

    /// Appends of a frame that was not stored wait again, before those that came later.
    fn give_back(&mut self, appends: Vec<Pending>) {
        for append in appends.into_iter().rev() {
            append.ticket.unsend();
            self.backlog.push_front(append);
        }
    }

    /// Nothing can be decided for now, or, when the log is damaged, until somebody repairs it.
    fn hold_up(&mut self, error: ReadError) -> Next {
        if let ReadError::Damaged(_) = error {
            let reason = error.to_string();
            for append in self.backlog.drain(..) {
                append.answer(Err(AppendError::Unavailable { reason: reason.clone() }));
            }
            return Next::On;
        }
        self.shared.note_trouble(error.to_string());
        Next::Pause
    }

    /// The server refuses a frame for a reason that stays.
    fn refuse(sending: Sending, refusal: &Refusal) {
        for append in sending.appends {
            append.answer(Err(match refusal.clone() {
                Refusal::NoSpace(reason) | Refusal::Other(reason) if sending.in_doubt => {
                    AppendError::Unknown { reason }
                }
                Refusal::Doubtful(reason) => AppendError::Unknown { reason },
                Refusal::NoSpace(reason) => AppendError::NoSpace { reason },
                Refusal::Other(reason) => AppendError::Unavailable { reason },
            }));
        }
    }
}
