//! The applier: takes the stream's messages strictly in order into the local copy, after checking each against what the
//! copy holds. It exists once per log, behind one lock, so the copy has one writer and every message is applied once.
//!
//! What it applies survives nothing but itself: whoever holds the lock must not be dropped in the middle, so everything
//! that applies runs in a task of its own (`Shared::catch_up`, the committer).

use std::sync::Arc;

use event_log::file::FileLog;
use event_log::{AppendError, Position, ReadError};

use crate::frame::{CommitId, Frame, Record};
use crate::limits::COPY_BATCH_BYTES;
use crate::message::{Format, Stored};
use crate::servers::unavailable;

/// Where the copy stands in the stream.
#[derive(Debug)]
pub(crate) struct Applier {
    copy: Arc<FileLog>,
    prefix: String,
    /// The sequence of the last message that is in the copy.
    applied: u64,
    /// Whether a message of format 2 has been applied: none of format 1 may follow.
    framed: bool,
    /// The checksum of the last message that is in the copy.
    last: Option<String>,
    /// Checked, and not yet in the copy.
    waiting: Waiting,
    /// The frame whose fate is not known, and where it turned up.
    awaited: Option<CommitId>,
    found: Option<Position>,
}

/// Messages that go to the copy together.
#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Record>,
    bytes: usize,
    messages: u64,
    framed: bool,
    last: Option<String>,
    found: Option<Position>,
}

impl Applier {
    /// One for a copy that holds nothing.
    pub(crate) fn new(copy: Arc<FileLog>, prefix: &str) -> Applier {
        let (waiting, prefix) = (Waiting::default(), prefix.to_owned());
        Applier { copy, prefix, applied: 0, framed: false, last: None, waiting, awaited: None, found: None }
    }

    /// One for a copy that holds everything up to the message `applied`, which is of this format and checksum.
    pub(crate) fn behind(
        copy: Arc<FileLog>,
        prefix: &str,
        applied: u64,
        format: Format,
        crc: String,
    ) -> Applier {
        let new = Applier::new(copy, prefix);
        Applier { applied, framed: format == Format::Two, last: Some(crc), ..new }
    }

    pub(crate) fn copy(&self) -> &Arc<FileLog> {
        &self.copy
    }

    /// The sequence of the last message in the copy.
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// The sequence of the message to be taken next.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.applied + self.waiting.messages + 1
    }

    /// The position of the record to be taken next.
    pub(crate) fn next_position(&self) -> Position {
        Position(self.copy.last_stored().0 + self.waiting.records.len() as u64 + 1)
    }

    /// The checksum of the message before the one to be taken next, if there is one.
    pub(crate) fn last(&self) -> Option<&str> {
        self.waiting.last.as_deref().or(self.last.as_deref())
    }

    /// Whether enough waits to be worth a write.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.bytes >= COPY_BATCH_BYTES
    }

    /// Looks out for this frame from now on.
    pub(crate) fn await_commit(&mut self, commit: &CommitId) {
        self.awaited = Some(commit.clone());
        self.found = None;
    }

    /// The position of the awaited frame's first record, if it has been applied.
    pub(crate) fn found(&self) -> Option<Position> {
        self.found
    }

    /// Checks the next message and takes it, or says what is wrong with it. [`Applier::flush`] makes it readable.
    pub(crate) fn take(&mut self, message: &Stored<'_>) -> Result<(), String> {
        let next = self.next_sequence();
        if message.sequence != next {
            return Err(format!("message {} came instead of {next}", message.sequence));
        }
        let format = message.format()?;
        if format == Format::One && (self.framed || self.waiting.framed) {
            return Err("it was written by an older release behind what a newer one wrote".to_owned());
        }
        let frame = message.frame(&self.prefix)?;
        self.take_frame(frame, format)
    }

    fn take_frame(&mut self, frame: Frame, format: Format) -> Result<(), String> {
        let next = self.next_position();
        if frame.first != next {
            return Err(format!(
                "it says that it begins at position {}, the log goes on at {next}",
                frame.first
            ));
        }
        frame.follows(self.last())?;
        if self.awaited.is_some() && frame.commit == self.awaited {
            self.waiting.found = Some(frame.first);
        }
        self.waiting.messages += 1;
        self.waiting.framed |= format == Format::Two;
        self.waiting.last = Some(frame.crc);
        for (stream, bytes) in frame.records {
            self.waiting.bytes += stream.as_str().len() + bytes.len();
            self.waiting.records.push((stream, bytes));
        }
        Ok(())
    }

    /// Takes the frame that was just acknowledged with the next sequence, and makes it readable.
    pub(crate) async fn keep_own(
        &mut self,
        first: Position,
        records: Vec<Record>,
        crc: String,
    ) -> Result<(), ReadError> {
        let frame = Frame { first, records, commit: None, crc, previous: None };
        self.take_frame(frame, Format::Two).map_err(unavailable)?;
        self.flush().await
    }

    /// Puts what was taken into the copy. After an error nothing of it was taken.
    pub(crate) async fn flush(&mut self) -> Result<(), ReadError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.messages == 0 {
            return Ok(());
        }
        let kept = self.copy.append_all(waiting.records).await;
        kept.map_err(|error| match error {
            AppendError::Closed => ReadError::Closed,
            error => unavailable(format!("the local copy of the log cannot be written: {error}")),
        })?;
        self.applied += waiting.messages;
        self.framed |= waiting.framed;
        self.last = waiting.last;
        if waiting.found.is_some() {
            self.found = waiting.found;
        }
        Ok(())
    }
}
