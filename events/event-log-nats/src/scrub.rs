//! Comparing all that the servers hold with the local copy, message by message: what was damaged or replaced there since
//! it was read is found here, and named. First the log as it is read, from whichever server can deliver it; then every
//! server of the stream by itself, so that what one has lost is known while the others still have it (`NATS_FORMAT.md` §8).

use std::sync::Arc;

use event_log::{EventLog, Position, ReadError, ReadLimit};
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use async_nats::jetstream::consumer::PullConsumer;

use crate::connection::rest;
use crate::frame::Frame;
use crate::limits::{LONGEST_PAUSE, PULL_BYTES, PULL_MESSAGES, PULL_STALL, REPLICA_QUIET, SCRUB_DIFFERENCES};
use crate::message::Stored;
use crate::shared::Shared;

/// A place where the servers and the copy are not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The first position that is concerned.
    pub position: Position,
    /// The message of the servers' stream.
    pub sequence: u64,
    /// The server that has it wrong by itself; `None` if no server delivers it rightly, which is a loss, or if it is the
    /// log that differs.
    pub server: Option<String>,
    /// What is different.
    pub what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "position {}, message {}", self.position, self.sequence)?;
        if let Some(server) = &self.server {
            write!(f, ", on the server {server} alone")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What comparing the servers with the local copy came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scrub {
    /// Messages looked at.
    pub messages: u64,
    /// Records compared.
    pub records: u64,
    /// The differences found: those of the log as it is read, then those of each server, each in the order of the log;
    /// the first 1,000.
    pub differences: Vec<Difference>,
    /// Differences beyond those.
    pub more: u64,
    /// Servers of the stream that could not be compared: they are away, or did not answer. Nothing is said of them.
    pub unseen: Vec<String>,
}

impl Scrub {
    fn add(&mut self, position: Position, sequence: u64, server: &Option<String>, what: String) {
        if self.differences.len() < SCRUB_DIFFERENCES {
            self.differences.push(Difference { position, sequence, server: server.clone(), what });
        } else {
            self.more += 1;
        }
    }
}

/// A walk over the servers' messages.
struct Walk<'a> {
    shared: &'a Arc<Shared>,
    /// The one server that is looked at; `None` for the log as it is read.
    server: Option<String>,
    found: Scrub,
    /// The message to come.
    sequence: u64,
    /// The position that it should begin with; `None` behind a message that could not be read.
    position: Option<Position>,
    /// The checksum of the message before it, likewise.
    last: Option<String>,
    /// Up to which position the copy held everything when the walk began.
    end: Position,
}

/// Compares everything.
pub(crate) async fn scrub(shared: &Arc<Shared>) -> Result<Scrub, ReadError> {
    shared.check_open()?;
    // Where the copy can't follow because something is damaged, that is what the walk is about to find.
    match shared.freshen().await {
        Ok(()) | Err(ReadError::Damaged(_)) => {}
        Err(error) => return Err(error),
    }
    let end = shared.copy.last_stored();
    let last = shared.servers.last_sequence().await?;
    let (found, position) = (Scrub::default(), Some(Position(1)));
    let mut walk = Walk { shared, server: None, found, sequence: 1, position, last: None, end };
    while walk.sequence <= last {
        shared.check_open()?;
        walk.consume(last).await?;
        if walk.sequence <= last {
            walk.ask_all().await?;
        }
    }
    if let Some(next) = walk.position.filter(|next| *next <= end) {
        let what = format!("the servers' log ends before this position, the copy at {end}");
        walk.found.add(next, last, &None, what);
    }
    let members = shared.servers.members().await?;
    walk.found.unseen = members.offline;
    if members.reachable.len() > 1 {
        for server in members.reachable {
            (walk.sequence, walk.position, walk.server) = (1, Some(Position(1)), Some(server.clone()));
            walk.last = None;
            if !walk.server(&server, last).await? {
                walk.found.unseen.push(server);
            }
        }
    }
    if !walk.found.unseen.is_empty() {
        tracing::warn!(servers = ?walk.found.unseen, "some servers of the stream could not be compared");
    }
    Ok(walk.found)
}

impl Walk<'_> {
    /// Takes as much as one consumer delivers rightly.
    async fn consume(&mut self, last: u64) -> Result<(), ReadError> {
        let Ok(consumer) = self.shared.servers.new_consumer(self.sequence, false).await else {
            return Ok(());
        };
        self.take(&consumer, last).await
    }

    /// Looks at what one server holds; `false` if it could not be asked.
    async fn server(&mut self, server: &str, last: u64) -> Result<bool, ReadError> {
        let (mut quiet, mut attempt) = (0, 0);
        while self.sequence <= last {
            self.shared.check_open()?;
            let before = self.sequence;
            let Some(consumer) = self.shared.servers.consumer_on(server, before).await else {
                return Ok(false);
            };
            self.take(&consumer, last).await?;
            if self.sequence > before {
                (quiet, attempt) = (0, 0);
                continue;
            }
            quiet += 1;
            if quiet == REPLICA_QUIET {
                let what = format!("the log ends before this message there; the stream reaches {last}");
                self.miss(what, last + 1);
                break;
            }
            rest(&mut attempt, Instant::now() + LONGEST_PAUSE).await;
        }
        Ok(true)
    }

    /// Names what one server lacks or has wrong, and goes on behind it.
    fn miss(&mut self, what: String, next: u64) {
        let behind = self.found.differences.last().filter(|last| last.server == self.server);
        let behind = behind.map_or(Position(1), |last| last.position);
        let position = self.position.take().unwrap_or(behind);
        self.last = None;
        self.found.add(position, self.sequence, &self.server, what);
        self.sequence = next;
    }

    /// Takes what a consumer delivers.
    async fn take(&mut self, consumer: &PullConsumer, last: u64) -> Result<(), ReadError> {
        let before = self.sequence;
        let consumed = loop {
            let (from, pulled) = (self.sequence, self.pull(consumer, last).await);
            match pulled {
                Ok(true) if self.sequence <= last && self.sequence > from => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        tracing::debug!(before, reached = self.sequence, last, "compared with the servers");
        self.shared.servers.drop_consumer(consumer).await;
        consumed
    }

    /// One pull; `false` if the consumer is of no more use.
    async fn pull(&mut self, consumer: &PullConsumer, last: u64) -> Result<bool, ReadError> {
        let wanted = usize::try_from(last + 1 - self.sequence).unwrap_or(usize::MAX).min(PULL_MESSAGES);
        let fetch = consumer.fetch().max_messages(wanted).max_bytes(PULL_BYTES).messages();
        let Ok(Ok(mut batch)) = timeout(PULL_STALL, fetch).await else { return Ok(false) };
        while let Ok(Some(next)) = timeout(PULL_STALL, batch.next()).await {
            // An error is how the server says that the bytes are used up.
            let Ok(message) = next else { break };
            let Ok(info) = message.info() else { return Ok(false) };
            let sequence = info.stream_sequence;
            let (headers, subject) = (message.headers.as_ref(), message.subject.as_str());
            let message = Stored { sequence, subject, headers, payload: &message.payload };
            if sequence < self.sequence || (sequence > self.sequence && self.server.is_none()) {
                return Ok(false);
            }
            if sequence > self.sequence {
                let what = format!("the messages {} to {} are missing there", self.sequence, sequence - 1);
                self.miss(what, sequence);
            }
            match message.frame(&self.shared.servers.options.subject_prefix) {
                Ok(frame) => self.compare(frame).await?,
                Err(_) if self.server.is_none() => return Ok(false),
                Err(what) => self.miss(what, sequence + 1),
            }
        }
        Ok(true)
    }

    /// What the leader and the others say about the message that a consumer did not deliver.
    async fn ask_all(&mut self) -> Result<(), ReadError> {
        let servers = &self.shared.servers;
        let prefix = &servers.options.subject_prefix;
        match servers.any_delivers(self.sequence, |message| message.frame(prefix)).await? {
            Ok(frame) => self.compare(frame).await,
            Err(what) => {
                let (position, what) = match self.position.take() {
                    Some(position) if position <= self.end => {
                        (position, format!("{what}; the local copy holds this position"))
                    }
                    Some(position) => (position, what),
                    // Behind another bad one: at or behind that one's place, only the next good one tells where.
                    None => (self.found.differences.last().map_or(Position(1), |last| last.position), what),
                };
                self.found.add(position, self.sequence, &None, what);
                self.last = None;
                self.found.messages += 1;
                self.sequence += 1;
                Ok(())
            }
        }
    }

    /// Compares a good frame with what the copy holds of the same positions.
    async fn compare(&mut self, frame: Frame) -> Result<(), ReadError> {
        let sequence = self.sequence;
        if let Some(next) = self.position.filter(|next| *next != frame.first) {
            let what = format!("the message begins at position {}, not here", frame.first);
            self.found.add(next, sequence, &self.server, what);
        }
        if let Err(what) = frame.follows(self.last.as_deref()) {
            self.found.add(frame.first, sequence, &self.server, what);
        }
        let mut held = Vec::new();
        if frame.first <= self.end {
            let limit = ReadLimit { entries: frame.records.len(), bytes: usize::MAX };
            match self.shared.copy.read(frame.first, limit).await {
                Ok(entries) => held = entries,
                // Said once, not for every server.
                Err(ReadError::Damaged(_)) if self.server.is_some() => {}
                Err(ReadError::Damaged(damage)) => {
                    self.found.add(
                        damage.position,
                        sequence,
                        &None,
                        format!("the local copy is damaged there: {damage}"),
                    );
                }
                Err(error) => return Err(error),
            }
        }
        for ((stream, bytes), entry) in frame.records.iter().zip(&held) {
            if *stream != entry.stream || *bytes != entry.bytes {
                let what = "the servers hold another record than the local copy".to_owned();
                self.found.add(entry.position, sequence, &self.server, what);
            }
        }
        if self.server.is_none() {
            self.found.messages += 1;
            self.found.records += frame.records.len() as u64;
        }
        self.position = Some(frame.last().next());
        self.last = Some(frame.crc);
        self.sequence += 1;
        Ok(())
    }
}
