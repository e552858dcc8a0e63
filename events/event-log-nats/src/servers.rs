//! What is asked of the servers: the stream's end, single messages from its leader, consumers, one publish.

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::context::{PublishError, PublishErrorKind, RequestErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::jetstream::{self};
use event_log::{Damage, Place, Position, ReadError};
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

use crate::connection::{Connection, with_source};
use crate::limits::{CONSUMER_IDLE, TIMEOUTS_BEFORE_RECONNECT};
use crate::message::{self, Stored};
use crate::options::NatsLogOptions;

/// The stream that is the log, and how it is reached.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) options: NatsLogOptions,
    pub(crate) connection: Connection,
    pub(crate) context: jetstream::Context,
    pub(crate) stream: Stream<()>,
    /// Whether several servers keep the stream.
    pub(crate) is_replicated: bool,
    /// Questions for the stream's end in a row that nobody answered, and when the last of them was given up.
    pub(crate) unanswered: Mutex<(u32, Option<Instant>)>,
}

/// What one publish came to.
#[derive(Debug)]
pub(crate) enum Tried {
    /// Stored, with this sequence.
    Stored(u64),
    /// The server compared and refused.
    WrongLast,
    /// Refused for a reason that stays.
    Refused(Refusal),
    /// Not stored, for a reason that passes.
    NotNow(String),
    /// Sent, and not answered.
    Unanswered(String),
}

/// Why a frame is refused for good.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    NoSpace(String),
    /// By one server, whatever the others do.
    Doubtful(String),
    Other(String),
}

impl Servers {
    /// The sequence of the stream's last message, as its leader knows it.
    pub(crate) async fn last_sequence(&self) -> Result<u64, ReadError> {
        if !self.connection.is_up() {
            return Err(unavailable("not connected"));
        }
        let asked = Instant::now();
        match self.stream.get_info().await {
            Ok(info) => {
                self.answered();
                Ok(info.state.last_sequence)
            }
            Err(error) => {
                if error.kind() == RequestErrorKind::TimedOut && self.was_in_vain(asked) {
                    self.reconnect().await;
                }
                Err(unavailable(with_source(&error)))
            }
        }
    }

    fn answered(&self) {
        *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = (0, None);
    }

    /// Whether it is time to try another server, as for publishes: one that is cut off from its cluster keeps its
    /// connections, and whoever only reads would stay there.
    fn was_in_vain(&self, asked: Instant) -> bool {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = &mut *unanswered;
        // Those that waited at the same time are one.
        if last.is_some_and(|last| asked < last) {
            return false;
        }
        (*count, *last) = (*count + 1, Some(Instant::now()));
        if *count < TIMEOUTS_BEFORE_RECONNECT {
            return false;
        }
        *count = 0;
        true
    }

    /// The message of this sequence from the leader; `None` if it has none.
    pub(crate) async fn message(&self, sequence: u64) -> Result<Option<StreamMessage>, ReadError> {
        if !self.connection.is_up() {
            return Err(unavailable("not connected"));
        }
        match self.stream.raw_message_builder().sequence(sequence).send().await {
            Ok(found) if found.sequence == sequence => Ok(Some(found)),
            Ok(found) => {
                Err(unavailable(format!("asked for {sequence}, the server sent {}", found.sequence)))
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(unavailable(with_source(&error))),
        }
    }

    /// An unnamed consumer in the server's memory, gone when nobody uses it.
    pub(crate) async fn new_consumer(
        &self,
        from: u64,
        headers_only: bool,
    ) -> Result<PullConsumer, ReadError> {
        let config = consumer::pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            inactive_threshold: CONSUMER_IDLE,
            num_replicas: 1,
            memory_storage: true,
            headers_only,
            ..consumer::pull::Config::default()
        };
        let made = self.stream.create_consumer(config).await;
        made.map_err(|error| unavailable(with_source(&error)))
    }

    /// Takes a consumer off the server before its time. Whatever comes of it: the server does it by itself later.
    pub(crate) async fn drop_consumer(&self, consumer: &PullConsumer) {
        if let Err(error) = self.stream.delete_consumer(&consumer.cached_info().name).await {
            tracing::debug!(%error, "a consumer is left to the server");
        }
    }

    /// Publishes a frame once.
    pub(crate) async fn publish(&self, headers: HeaderMap, payload: bytes::Bytes) -> Tried {
        if !self.connection.is_up() {
            // Not even queued: what is queued may be sent long after the caller was told that it failed.
            return Tried::NotNow("not connected".to_owned());
        }
        let mut losses = self.connection.losses();
        let publish = PublishMessage::build().headers(headers).payload(payload);
        let subject = message::subject(&self.options.subject_prefix);
        let answered = async {
            match self.context.send_publish(subject, publish).await {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            answer = answered => match answer {
                Ok(ack) if ack.stream == self.options.stream => Tried::Stored(ack.sequence),
                // `Nats-Expected-Stream` forbids it; if it happens all the same, nothing can be concluded.
                Ok(ack) => Tried::Unanswered(format!("another stream, {}, took the frame", ack.stream)),
                Err(error) => classify(&error, self.is_replicated),
            },
            () = losses.next() => Tried::Unanswered("the connection was lost".to_owned()),
        }
    }

    /// Leaves a server that answers nothing.
    pub(crate) async fn reconnect(&self) {
        tracing::warn!("NATS does not acknowledge, trying another connection");
        if let Err(error) = self.connection.client.force_reconnect().await {
            tracing::warn!(%error, "cannot reconnect to NATS");
        }
    }

    /// A damage of the log at the servers.
    pub(crate) fn damage(&self, position: Position, sequence: u64, what: String) -> Damage {
        let place = Place::Server { stream: self.options.stream.clone(), sequence };
        Damage { position, place, what }
    }
}

/// A message from the leader as every message is looked at.
pub(crate) fn stored(message: &StreamMessage) -> Stored<'_> {
    Stored {
        sequence: message.sequence,
        subject: &message.subject,
        headers: Some(&message.headers),
        payload: &message.payload,
    }
}

pub(crate) fn unavailable(reason: impl Into<String>) -> ReadError {
    ReadError::Unavailable { reason: reason.into() }
}

/// What a failed publish means.
fn classify(error: &PublishError, is_replicated: bool) -> Tried {
    // The client knows one code for a wrong last sequence, the server has two: the other is for a clash with a message
    // that is still on its way to the replicas.
    let refusal = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    if let Some(refusal) = refusal {
        return match refusal.error_code() {
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
                Tried::WrongLast
            }
            // The leader says so of its own disk, after it may have told the others: they may store it, and lead next.
            ErrorCode::STREAM_STORE_FAILED if is_replicated => {
                Tried::Refused(Refusal::Doubtful(refusal.to_string()))
            }
            ErrorCode::STREAM_STORE_FAILED
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::INSUFFICIENT_RESOURCES => Tried::Refused(Refusal::NoSpace(refusal.to_string())),
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => Tried::Refused(Refusal::Other(refusal.to_string())),
            _ => Tried::NotNow(refusal.to_string()),
        };
    }
    match error.kind() {
        PublishErrorKind::WrongLastSequence => Tried::WrongLast,
        // No stream answers on this subject: not there yet after a restart, or without a leader.
        PublishErrorKind::StreamNotFound => Tried::NotNow("no stream answers".to_owned()),
        PublishErrorKind::MaxPayloadExceeded => Tried::Refused(Refusal::Other(with_source(error))),
        PublishErrorKind::MaxAckPending => Tried::NotNow("too many appends in flight".to_owned()),
        _ => Tried::Unanswered(with_source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_codes_of_a_wrong_last_sequence_are_known() {
        for code in [10071, 10164] {
            let error = PublishError::with_source(PublishErrorKind::Other, refusal(code));
            assert!(matches!(classify(&error, false), Tried::WrongLast), "{code}");
        }
        let error = PublishError::with_source(PublishErrorKind::Other, refusal(10077));
        assert!(matches!(classify(&error, false), Tried::Refused(Refusal::NoSpace(_))));
        assert!(matches!(classify(&error, true), Tried::Refused(Refusal::Doubtful(_))));
        let error = PublishError::with_source(PublishErrorKind::Other, refusal(10008));
        assert!(matches!(classify(&error, false), Tried::NotNow(_)));
    }

    #[test]
    fn silence_is_never_taken_for_refusal() {
        for kind in [PublishErrorKind::TimedOut, PublishErrorKind::BrokenPipe, PublishErrorKind::Other] {
            assert!(matches!(classify(&PublishError::new(kind), false), Tried::Unanswered(_)), "{kind:?}");
        }
    }

    fn refusal(code: u64) -> jetstream::Error {
        serde_json::from_str(&format!(r#"{{"code":400,"err_code":{code},"description":"refused"}}"#)).unwrap()
    }
}
