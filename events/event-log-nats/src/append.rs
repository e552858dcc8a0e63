//! Appending: one conditional publish, and what to make of every answer, above all of none.
//!
//! An append is named by a random commit id that travels with the record. The condition (the stream's last sequence)
//! lets at most one message follow the expected one, so after any doubt the question is simple: is the first message of
//! this subject behind the expected position ours, another's, or not there? Ours: the append succeeded. Another's: it
//! lost, and what is still on its way can't be stored any more. None: trying again is safe, whatever became of the
//! first try.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::RawMessageErrorKind;
use event_log::{AppendError, Position, StreamName, limits::MAX_RECORD_BYTES};
use std::error::Error as _;
use tokio::time::Instant;

use crate::Shared;
use crate::connection::{rest, with_source};
use crate::limits::TIMEOUTS_BEFORE_RECONNECT;
use crate::message::{self, CommitId};
use crate::subject;

/// What one publish came to.
enum Tried {
    Stored(Position),
    /// The server compared and refused.
    WrongLast,
    /// Refused for a reason that stays.
    Refused(AppendError),
    /// Not stored, for a reason that passes.
    NotNow(String),
    /// Sent, and not answered.
    Unanswered(String),
}

/// What stands behind the expected position.
enum Fate {
    Ours(Position),
    Theirs,
    Absent,
}

impl Shared {
    pub(crate) async fn append(
        &self,
        stream: &StreamName,
        expected: Option<Position>,
        bytes: Vec<u8>,
    ) -> Result<Position, AppendError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(AppendError::TooLarge { size: bytes.len(), max: MAX_RECORD_BYTES });
        }
        let commit =
            CommitId::random().map_err(|error| AppendError::Unavailable { reason: error.to_string() })?;
        let headers = message::headers(&self.options.stream, stream, expected, &bytes, &commit);
        let subject = subject::encode(&self.options.subject_prefix, stream);
        let publish = PublishMessage::build().headers(headers).payload(bytes.into());
        let deadline = Instant::now() + self.options.append_timeout;
        let mut doubt = Doubt::default();
        let mut attempt = 0;
        loop {
            match self.publish(&subject, publish.clone()).await {
                Tried::Stored(position) => return Ok(self.stored(position)),
                // Looked up all the same: an earlier try, or a replica, may have stored it.
                Tried::Refused(error) => doubt.refused = Some(error),
                Tried::NotNow(reason) => doubt.reason = reason,
                Tried::Unanswered(reason) => {
                    doubt.unanswered(reason);
                    if doubt.timeouts >= TIMEOUTS_BEFORE_RECONNECT {
                        doubt.timeouts = 0;
                        self.reconnect().await;
                    }
                }
                Tried::WrongLast => "the stream's end changes".clone_into(&mut doubt.reason),
            }
            // Refused or unanswered: what stands there decides.
            match self.settle(&subject, expected, &commit, doubt.sent).await {
                Ok(Settled::Stored(position)) => return Ok(self.stored(position)),
                Ok(Settled::Conflict { actual }) => {
                    return Err(AppendError::Conflict { expected, actual });
                }
                Ok(Settled::Open) => {}
                Err(reason) => doubt.reason = reason,
            }
            if doubt.refused.is_some() || Instant::now() >= deadline {
                return Err(doubt.verdict());
            }
            rest(&mut attempt, deadline).await;
        }
    }

    fn stored(&self, position: Position) -> Position {
        self.saw(position);
        position
    }

    /// Publishes once.
    async fn publish(&self, subject: &str, publish: PublishMessage) -> Tried {
        if !self.connection.is_up() {
            // Not even queued: what is queued may be sent long after the caller was told that it failed.
            return Tried::NotNow("not connected".to_owned());
        }
        let mut losses = self.connection.losses();
        let answered = async {
            match self.context.send_publish(subject.to_owned(), publish).await {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            answer = answered => match answer {
                Ok(ack) if ack.stream == self.options.stream => Tried::Stored(Position(ack.sequence)),
                Ok(ack) => Tried::Refused(AppendError::Unknown {
                    reason: format!("another stream, {}, took the record", ack.stream),
                }),
                Err(error) => classify(&error),
            },
            () = losses.next() => Tried::Unanswered("the connection was lost".to_owned()),
        }
    }

    /// Asks the leader what became of an append.
    async fn settle(
        &self,
        subject: &str,
        expected: Option<Position>,
        commit: &CommitId,
        sent: bool,
    ) -> Result<Settled, String> {
        if !self.connection.is_up() {
            return Err("not connected".to_owned());
        }
        match self.fate(subject, expected, commit).await? {
            Fate::Ours(position) => Ok(Settled::Stored(position)),
            fate => {
                let actual = self.leader_last_of_subject(subject).await.map_err(|error| error.to_string())?;
                if let Some(actual) = actual {
                    self.saw(actual);
                }
                match fate {
                    Fate::Theirs => Ok(Settled::Conflict { actual }),
                    // The stream ends before the expected position: a wrong expectation. Unless a try is unaccounted
                    // for: then this may be a server that was cut off and knows less than the one that took it.
                    Fate::Absent if actual != expected && !sent => Ok(Settled::Conflict { actual }),
                    // As expected: it was refused because of something still in flight, or never arrived.
                    _ => Ok(Settled::Open),
                }
            }
        }
    }

    /// Looks for the first message of the subject behind the expected position.
    async fn fate(
        &self,
        subject: &str,
        expected: Option<Position>,
        commit: &CommitId,
    ) -> Result<Fate, String> {
        let from = expected.unwrap_or(Position::ZERO).next();
        match self.stream.raw_message_builder().sequence(from.0).next_by_subject(subject).send().await {
            Ok(message) if commit.is_in(&message.headers) => Ok(Fate::Ours(Position(message.sequence))),
            Ok(_) => Ok(Fate::Theirs),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(Fate::Absent),
            Err(error) => Err(with_source(&error)),
        }
    }

    /// Leaves a server that answers nothing.
    async fn reconnect(&self) {
        tracing::warn!("NATS does not acknowledge, trying another connection");
        if let Err(error) = self.connection.client.force_reconnect().await {
            tracing::warn!(%error, "cannot reconnect to NATS");
        }
    }
}

enum Settled {
    Stored(Position),
    Conflict {
        actual: Option<Position>,
    },
    /// Not stored so far; may be tried again.
    Open,
}

/// What an append that has not been settled has seen.
#[derive(Default)]
struct Doubt {
    /// Something was sent and never answered: it may be stored, even later.
    sent: bool,
    timeouts: u32,
    /// The server refused for a reason that stays.
    refused: Option<AppendError>,
    reason: String,
}

impl Doubt {
    fn unanswered(&mut self, reason: String) {
        self.sent = true;
        self.timeouts += 1;
        self.reason = reason;
    }

    fn verdict(self) -> AppendError {
        match self.refused {
            Some(refusal) if self.sent => AppendError::Unknown { reason: refusal.to_string() },
            Some(refusal) => refusal,
            None if self.sent => AppendError::Unknown { reason: self.reason },
            None => AppendError::Unavailable { reason: self.reason },
        }
    }
}

/// What a failed publish means.
fn classify(error: &PublishError) -> Tried {
    // The client knows one code for a wrong last sequence, the server has two: the other is for a clash with a message
    // that is still on its way to the replicas.
    let refusal = error.source().and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    if let Some(refusal) = refusal {
        return match refusal.error_code() {
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
                Tried::WrongLast
            }
            ErrorCode::STREAM_STORE_FAILED
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::INSUFFICIENT_RESOURCES => {
                Tried::Refused(AppendError::NoSpace { reason: refusal.to_string() })
            }
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
                Tried::Refused(AppendError::Unavailable { reason: refusal.to_string() })
            }
            _ => Tried::NotNow(refusal.to_string()),
        };
    }
    match error.kind() {
        PublishErrorKind::WrongLastSequence => Tried::WrongLast,
        // No stream answers on this subject: not there yet after a restart, or without a leader.
        PublishErrorKind::StreamNotFound => Tried::NotNow("no stream answers".to_owned()),
        PublishErrorKind::MaxPayloadExceeded => {
            Tried::Refused(AppendError::Unavailable { reason: with_source(error) })
        }
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
            let refusal: async_nats::jetstream::Error = refusal(code);
            let error = PublishError::with_source(PublishErrorKind::Other, refusal);
            assert!(matches!(classify(&error), Tried::WrongLast), "{code}");
        }
        let error = PublishError::with_source(PublishErrorKind::Other, refusal(10077));
        assert!(matches!(classify(&error), Tried::Refused(AppendError::NoSpace { .. })));
        let error = PublishError::with_source(PublishErrorKind::Other, refusal(10008));
        assert!(matches!(classify(&error), Tried::NotNow(_)));
    }

    #[test]
    fn silence_is_never_taken_for_refusal() {
        for kind in [PublishErrorKind::TimedOut, PublishErrorKind::BrokenPipe, PublishErrorKind::Other] {
            assert!(matches!(classify(&PublishError::new(kind)), Tried::Unanswered(_)), "{kind:?}");
        }
        let mut doubt = Doubt::default();
        assert!(!Doubt::default().verdict().may_be_stored());
        doubt.unanswered("no answer".to_owned());
        assert!(doubt.verdict().may_be_stored());
    }

    fn refusal(code: u64) -> async_nats::jetstream::Error {
        serde_json::from_str(&format!(r#"{{"code":400,"err_code":{code},"description":"refused"}}"#)).unwrap()
    }
}
