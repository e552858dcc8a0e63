//! An append between its caller and the committer: what is asked, who may still give it up, and what its caller is told
//! when time runs out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use event_log::{AppendError, Position, StreamName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::limits::{QUEUE_APPENDS, QUEUE_BYTES};
use crate::shared::Shared;

/// In the queue, or refused for sure: its caller may give it up, and nothing was stored.
const WAITING: u8 = 0;
/// In a frame that was sent and whose fate is not known.
const SENT: u8 = 1;
/// Given up by its caller: never sent.
const GIVEN_UP: u8 = 2;

/// One append of one or more records that waits for its decision.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) stream: StreamName,
    pub(crate) expected: Option<Position>,
    /// At least one; they are stored together.
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) ticket: Arc<Ticket>,
    answer: oneshot::Sender<Result<Position, AppendError>>,
    /// Returned with the request's memory.
    _room: OwnedSemaphorePermit,
}

/// What caller and committer agree on without asking each other.
#[derive(Debug)]
pub(crate) struct Ticket {
    state: AtomicU8,
    deadline: Instant,
}

impl Ticket {
    fn new(deadline: Instant) -> Ticket {
        Ticket { state: AtomicU8::new(WAITING), deadline }
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes it into a frame that is about to be sent; `false` if its time is up.
    pub(crate) fn send(&self) -> bool {
        if self.is_over() {
            self.change(WAITING, GIVEN_UP);
            return false;
        }
        self.change(WAITING, SENT)
    }

    /// The frame it was in was not stored and can't be any more.
    pub(crate) fn unsend(&self) {
        self.change(SENT, WAITING);
    }

    /// Whether its caller has been told the outcome, or is about to be.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline || self.state.load(Ordering::Acquire) == GIVEN_UP
    }
}

impl Pending {
    /// Tells the caller.
    pub(crate) fn answer(self, outcome: Result<Position, AppendError>) {
        // Nobody listens if the caller dropped its future, or its time was up.
        let _ = self.answer.send(outcome);
    }
}

/// The callers' end of the queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    sender: mpsc::Sender<Pending>,
    room: Arc<Semaphore>,
}

impl Queue {
    pub(crate) fn new() -> (Queue, mpsc::Receiver<Pending>) {
        let (sender, receiver) = mpsc::channel(QUEUE_APPENDS);
        (Queue { sender, room: Arc::new(Semaphore::new(QUEUE_BYTES)) }, receiver)
    }

    /// Hands an append to the committer and waits for its outcome, at most for `append_timeout`.
    pub(crate) async fn append(
        &self,
        shared: &Shared,
        stream: &StreamName,
        expected: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> Result<Position, AppendError> {
        AppendError::check_commit(&records)?;
        let deadline = Instant::now() + shared.servers.options.append_timeout;
        let ticket = Arc::new(Ticket::new(deadline));
        let (answer, mut answered) = oneshot::channel();
        let unavailable = || AppendError::Unavailable { reason: shared.trouble() };
        let handed_over = async {
            // Far below u32::MAX: checked above.
            let size = records.iter().map(Vec::len).sum::<usize>();
            let room = Arc::clone(&self.room).acquire_many_owned(size as u32).await;
            let room = room.map_err(|_| AppendError::Closed)?;
            let (stream, ticket) = (stream.clone(), Arc::clone(&ticket));
            let pending = Pending { stream, expected, records, ticket, answer, _room: room };
            self.sender.send(pending).await.map_err(|_| AppendError::Closed)
        };
        timeout_at(deadline, handed_over).await.map_err(|_| unavailable())??;
        match timeout_at(deadline, &mut answered).await {
            Ok(Ok(outcome)) => return outcome,
            // The committer answers everything it takes, unless it panics.
            Ok(Err(_)) => {}
            Err(_) if ticket.change(WAITING, GIVEN_UP) => return Err(unavailable()),
            Err(_) => {
                if let Ok(outcome) = answered.try_recv() {
                    return outcome;
                }
            }
        }
        if ticket.state.load(Ordering::Acquire) == SENT {
            return Err(AppendError::Unknown { reason: shared.trouble() });
        }
        if shared.check_open().is_err() { Err(AppendError::Closed) } else { Err(unavailable()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_was_given_up_is_never_sent_and_what_was_sent_is_never_given_up() {
        let later = Instant::now() + Duration::from_secs(60);
        let ticket = Ticket::new(later);
        assert!(ticket.change(WAITING, GIVEN_UP));
        assert!(!ticket.send() && ticket.is_over());

        let ticket = Ticket::new(later);
        assert!(ticket.send());
        assert!(!ticket.change(WAITING, GIVEN_UP), "its caller can't say that nothing was stored");
        ticket.unsend();
        assert!(!ticket.is_over() && ticket.send(), "refused for sure: it may be sent again");

        let ticket = Ticket::new(Instant::now());
        assert!(!ticket.send() && ticket.is_over(), "too late");
    }
}
