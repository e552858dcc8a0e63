//! A log in memory, for the tests of others: the contract without durability and without faults.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::contract::{BoxFuture, EventLog};
use crate::error::{AppendError, ReadError};
use crate::position::{Entry, Position, ReadLimit, StreamName};

/// A log that lives as long as its process. Grows without bound, so not for production.
#[derive(Debug)]
pub struct MemoryLog {
    state: Mutex<State>,
    /// The last position, or `None` once closed.
    last: watch::Sender<Option<Position>>,
}

#[derive(Debug, Default)]
struct State {
    /// How many records are not kept any more.
    forgotten: u64,
    entries: Vec<Entry>,
    last_of_stream: HashMap<StreamName, Position>,
    closed: bool,
}

impl State {
    fn last(&self) -> Position {
        Position(self.forgotten + self.entries.len() as u64)
    }
}

impl Default for MemoryLog {
    fn default() -> MemoryLog {
        MemoryLog { state: Mutex::default(), last: watch::Sender::new(Some(Position::ZERO)) }
    }
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> MemoryLog {
        MemoryLog::default()
    }

    /// Keeps only what stands behind `position`, as a log does whose beginning was archived.
    pub fn begin_after(&self, position: Position) {
        let mut state = self.state();
        let gone = position.0.saturating_sub(state.forgotten).min(state.entries.len() as u64);
        state.entries.drain(..gone as usize);
        state.forgotten += gone;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two related changes of the state, so a poisoned lock is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, ReadError> {
        let state = self.state();
        if state.closed { Err(ReadError::Closed) } else { Ok(state) }
    }

    fn append_now(
        &self,
        stream: &StreamName,
        expected: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> Result<Position, AppendError> {
        AppendError::check_commit(&records)?;
        let mut state = self.state();
        if state.closed {
            return Err(AppendError::Closed);
        }
        let actual = state.last_of_stream.get(stream).copied();
        if actual != expected {
            return Err(AppendError::Conflict { expected, actual });
        }
        let first = state.last().next();
        for bytes in records {
            let position = state.last().next();
            state.entries.push(Entry { position, stream: stream.clone(), bytes });
        }
        let last = state.last();
        state.last_of_stream.insert(stream.clone(), last);
        self.last.send_replace(Some(last));
        Ok(first)
    }

    fn read_now(&self, from: Position, limit: ReadLimit) -> Result<Vec<Entry>, ReadError> {
        let state = self.open_state()?;
        let limit = limit.clamped();
        let start = from.0.max(1) - 1;
        let Some(start) = start.checked_sub(state.forgotten) else {
            return Err(ReadError::Archived { first: Position(state.forgotten + 1) });
        };
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let mut page: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for entry in state.entries.iter().skip(start).take(limit.entries) {
            bytes += entry.bytes.len();
            if bytes > limit.bytes && !page.is_empty() {
                break;
            }
            page.push(entry.clone());
        }
        Ok(page)
    }
}

impl EventLog for MemoryLog {
    fn append_batch<'a>(
        &'a self,
        stream: &'a StreamName,
        expected_last: Option<Position>,
        records: Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<Position, AppendError>> {
        Box::pin(async move { self.append_now(stream, expected_last, records) })
    }

    fn read(&self, from: Position, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move { self.read_now(from, limit) })
    }

    fn first(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move { Ok(Position(self.open_state()?.forgotten + 1)) })
    }

    fn last_position(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move { Ok(self.open_state()?.last()) })
    }

    fn last_of_stream<'a>(
        &'a self,
        stream: &'a StreamName,
    ) -> BoxFuture<'a, Result<Option<Position>, ReadError>> {
        Box::pin(async move { Ok(self.open_state()?.last_of_stream.get(stream).copied()) })
    }

    fn wait_beyond(&self, position: Position) -> BoxFuture<'_, Result<Position, ReadError>> {
        let mut last = self.last.subscribe();
        Box::pin(async move {
            let reached = last.wait_for(|last| last.is_none_or(|last| last > position)).await;
            reached.ok().and_then(|last| *last).ok_or(ReadError::Closed)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.state().closed = true;
            self.last.send_replace(None);
        })
    }
}
