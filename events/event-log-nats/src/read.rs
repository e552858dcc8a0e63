//! Reading: pages through pull consumers that go on where a reader stopped, single records from the stream's leader.
//!
//! A consumer lives on one server and skips what that server can't read, without a word. So every page is checked for
//! contiguity and checksums, and where it fails, or ends early, the leader is asked for the very record; only what the
//! leader can't deliver either is reported as damage.

use std::collections::VecDeque;
use std::sync::PoisonError;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use event_log::{Damage, Entry, Place, Position, ReadError, ReadLimit, limits::MAX_RECORD_BYTES};
use futures::StreamExt;
use tokio::time::timeout;

use crate::Shared;
use crate::connection::with_source;
use crate::limits::{CONSUMER_IDLE, MAX_CURSORS, MESSAGE_OVERHEAD_BYTES, PULL_STALL, SINGLES};
use crate::message;

/// A reader's place: a consumer on the server, and what it delivered beyond the last page.
#[derive(Debug)]
pub(crate) struct Cursor {
    consumer: PullConsumer,
    /// Fetched and not yet returned.
    buffer: VecDeque<Entry>,
    /// What the consumer delivers next.
    fetch: Position,
}

/// What a pull came to.
enum Pulled {
    /// Something is in the buffer, and there may be more.
    More,
    /// Everything there is has been delivered.
    End,
    /// The consumer is gone or delivers what it should not.
    Broken(String),
}

impl Cursor {
    /// The position of the entry that it would return next.
    fn next(&self) -> Position {
        self.buffer.front().map_or(self.fetch, |entry| entry.position)
    }

    /// Fetches up to so many entries and about so many bytes into the buffer.
    async fn pull(&mut self, prefix: &str, entries: usize, bytes: usize) -> Pulled {
        // Room for one record of any size, so that the server always has something to send.
        let bytes = bytes + MAX_RECORD_BYTES + MESSAGE_OVERHEAD_BYTES;
        let batch = self.consumer.fetch().max_messages(entries).max_bytes(bytes).messages();
        let mut batch = match timeout(PULL_STALL, batch).await {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return Pulled::Broken(with_source(&error)),
            Err(_) => return Pulled::Broken("no answer".to_owned()),
        };
        let mut count = 0;
        loop {
            let message = match timeout(PULL_STALL, batch.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(None) if count < entries => return Pulled::End,
                Ok(None) => return Pulled::More,
                // How the server says that the bytes are used up.
                Ok(Some(Err(_))) if count > 0 => return Pulled::More,
                Ok(Some(Err(error))) => return Pulled::Broken(error.to_string()),
                Err(_) => return Pulled::Broken("no answer".to_owned()),
            };
            let sequence = match message.info() {
                Ok(info) => Position(info.stream_sequence),
                Err(error) => return Pulled::Broken(error.to_string()),
            };
            if sequence != self.fetch {
                return Pulled::Broken(format!("{sequence} was delivered instead of {}", self.fetch));
            }
            let headers = message.headers.as_ref();
            match message::entry(prefix, sequence, &message.subject, headers, &message.payload) {
                Ok(entry) => self.buffer.push_back(entry),
                Err(what) => return Pulled::Broken(what),
            }
            self.fetch = self.fetch.next();
            count += 1;
        }
    }
}

impl Shared {
    /// A page from `from` (at least 1) on, with a limit that has been clamped.
    pub(crate) async fn read_page(&self, from: Position, limit: ReadLimit) -> Result<Vec<Entry>, ReadError> {
        let mut page = Page { limit, entries: Vec::new(), bytes: 0 };
        let mut cursor = self.take_cursor(from);
        if cursor.is_none() && limit.entries <= SINGLES {
            return self.read_singles(from, page).await;
        }
        let mut fresh = cursor.is_none();
        loop {
            let mut reader = match cursor.take() {
                Some(reader) => reader,
                None => self.new_cursor(from).await?,
            };
            match page.take(&mut reader, &self.options.subject_prefix).await {
                Pulled::Broken(reason) if page.entries.is_empty() && !fresh => {
                    tracing::debug!(reason, "a reader's consumer is gone, making another");
                    fresh = true;
                }
                Pulled::Broken(reason) if page.entries.is_empty() => {
                    tracing::warn!(%from, reason, "a consumer does not deliver this record, asking the leader for it");
                    break;
                }
                Pulled::Broken(_) => return Ok(page.entries),
                Pulled::End if page.entries.is_empty() => break,
                Pulled::End | Pulled::More => {
                    self.keep_cursor(reader);
                    return Ok(page.entries);
                }
            }
        }
        // Nothing by the consumer. Is that the end, or is it this consumer's server that lags or lost something?
        Ok(self.leader_entry(from).await?.into_iter().collect())
    }

    /// A page of few entries, one by one.
    async fn read_singles(&self, from: Position, mut page: Page) -> Result<Vec<Entry>, ReadError> {
        let mut next = from;
        while page.entries.len() < page.limit.entries {
            match self.leader_entry(next).await {
                Ok(Some(entry)) => {
                    if !page.fits(&entry) {
                        break;
                    }
                    page.push(entry);
                    next = next.next();
                }
                Ok(None) => break,
                Err(error) if page.entries.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(page.entries)
    }

    /// The record at a position, from the leader; `None` if the log ends before it.
    async fn leader_entry(&self, position: Position) -> Result<Option<Entry>, ReadError> {
        let damaged = |what: String| {
            let place = Place::Server { stream: self.options.stream.clone(), sequence: position.0 };
            ReadError::Damaged(Damage { position, place, what })
        };
        let mut found = self.stream.raw_message_builder().sequence(position.0).send().await;
        if found.as_ref().is_err_and(|error| error.kind() == RawMessageErrorKind::NoMessageFound) {
            // Another writer may append it between this question and the one about the log's end: what is there
            // once the end is known is what counts.
            if position > self.leader_last_position().await? {
                return Ok(None);
            }
            found = self.stream.raw_message_builder().sequence(position.0).send().await;
        }
        match found {
            Ok(found) if found.sequence != position.0 => {
                Err(damaged(format!("the server delivers {} instead", found.sequence)))
            }
            Ok(found) => {
                let prefix = &self.options.subject_prefix;
                message::entry(prefix, position, &found.subject, Some(&found.headers), &found.payload)
                    .map(Some)
                    .map_err(damaged)
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                let last = self.leader_last_position().await?;
                if position > last {
                    return Ok(None);
                }
                Err(damaged(format!("the record is missing, although the log reaches {last}")))
            }
            Err(error) => Err(ReadError::Unavailable { reason: with_source(&error) }),
        }
    }

    pub(crate) async fn leader_last_position(&self) -> Result<Position, ReadError> {
        let info = self.stream.get_info().await;
        let info = info.map_err(|error| ReadError::Unavailable { reason: with_source(&error) })?;
        let last = Position(info.state.last_sequence);
        self.saw(last);
        Ok(last)
    }

    pub(crate) async fn leader_last_of_subject(&self, subject: &str) -> Result<Option<Position>, ReadError> {
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(Position(message.sequence))),
            Err(error) if is_no_message(&error.kind()) => Ok(None),
            Err(error) => Err(ReadError::Unavailable { reason: with_source(&error) }),
        }
    }

    /// A cursor that stands at this position, if some reader left one.
    fn take_cursor(&self, at: Position) -> Option<Cursor> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cursors.iter().position(|cursor| cursor.next() == at)?;
        Some(cursors.remove(found))
    }

    /// Keeps a cursor for whoever reads on from there, giving up the one that was not used for longest.
    fn keep_cursor(&self, cursor: Cursor) {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        if cursors.len() >= MAX_CURSORS {
            cursors.remove(0);
        }
        cursors.push(cursor);
    }

    async fn new_cursor(&self, from: Position) -> Result<Cursor, ReadError> {
        let consumer = self.new_consumer(from, false).await?;
        Ok(Cursor { consumer, buffer: VecDeque::new(), fetch: from })
    }

    /// An unnamed consumer in the server's memory, gone when nobody uses it.
    pub(crate) async fn new_consumer(
        &self,
        from: Position,
        headers_only: bool,
    ) -> Result<PullConsumer, ReadError> {
        let config = consumer::pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.0 },
            ack_policy: AckPolicy::None,
            inactive_threshold: CONSUMER_IDLE,
            num_replicas: 1,
            memory_storage: true,
            headers_only,
            ..consumer::pull::Config::default()
        };
        let made = self.stream.create_consumer(config).await;
        made.map_err(|error| ReadError::Unavailable { reason: with_source(&error) })
    }
}

fn is_no_message(kind: &LastRawMessageErrorKind) -> bool {
    matches!(kind, LastRawMessageErrorKind::NoMessageFound)
}

/// A page in the making.
struct Page {
    limit: ReadLimit,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Page {
    fn fits(&self, entry: &Entry) -> bool {
        self.entries.is_empty()
            || (self.entries.len() < self.limit.entries && self.bytes + entry.bytes.len() <= self.limit.bytes)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes.len();
        self.entries.push(entry);
    }

    /// Takes what fits, fetching as needed. Ends with `More` when full, `End` when there is nothing more.
    async fn take(&mut self, reader: &mut Cursor, prefix: &str) -> Pulled {
        let mut end = false;
        loop {
            while let Some(entry) = reader.buffer.pop_front() {
                if !self.fits(&entry) {
                    reader.buffer.push_front(entry);
                    return Pulled::More;
                }
                self.push(entry);
            }
            let entries = self.limit.entries.saturating_sub(self.entries.len());
            let bytes = self.limit.bytes.saturating_sub(self.bytes);
            if end || entries == 0 || (bytes == 0 && !self.entries.is_empty()) {
                return if end { Pulled::End } else { Pulled::More };
            }
            match reader.pull(prefix, entries, bytes).await {
                Pulled::More => {}
                Pulled::End => end = true,
                Pulled::Broken(reason) => {
                    // What came before the trouble is good.
                    while let Some(entry) = reader.buffer.pop_front().filter(|entry| self.fits(entry)) {
                        self.push(entry);
                    }
                    return Pulled::Broken(reason);
                }
            }
        }
    }
}
