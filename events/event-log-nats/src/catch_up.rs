//! Catching up: takes everything the servers have into the copy, by a pull consumer, and by single messages from the
//! leader where there is little or where the consumer fails.
//!
//! A consumer lives on one server and skips what that server can't read, without a word. So every message is checked
//! for its place, and where one is missing or wrong the leader is asked for that very message, then the other
//! servers that hold the stream; only what none of them delivers is reported as damage.

use async_nats::jetstream::consumer::PullConsumer;
use event_log::ReadError;
use futures::StreamExt;
use tokio::time::timeout;

use crate::applier::Applier;
use crate::connection::with_source;
use crate::limits::{MESSAGE_OVERHEAD_BYTES, PULL_BYTES, PULL_MESSAGES, PULL_STALL, SINGLES};
use crate::message::Stored;
use crate::servers::{Servers, stored, unavailable};

/// What a pull came to.
pub(crate) enum Pulled {
    /// Go on.
    More,
    /// The consumer is gone, delivers what it should not, or has no more.
    Over(String),
    /// The copy does not take it.
    Failed(ReadError),
}

impl Servers {
    /// Applies everything up to the message `last`, which the leader said it has. What lies before a failure is applied.
    pub(crate) async fn catch_up(&self, applier: &mut Applier, last: u64) -> Result<(), ReadError> {
        if last < applier.applied() {
            return Err(unavailable(format!(
                "the servers say that the stream {} ends at message {last}, but {} have been read from it: either this \
                 server lags behind, or acknowledged records were lost",
                self.options.stream,
                applier.applied()
            )));
        }
        let taken = self.take_up_to(applier, last).await;
        // The disk's trouble comes first: without it the rest could have been kept.
        applier.flush().await.and(taken)
    }

    async fn take_up_to(&self, applier: &mut Applier, last: u64) -> Result<(), ReadError> {
        while applier.next_sequence() <= last {
            if last - applier.next_sequence() >= SINGLES {
                self.take_from_consumer(applier, last).await?;
            }
            if applier.next_sequence() <= last {
                match self.take_from_leader(applier, last).await {
                    Ok(()) => {}
                    Err(damaged @ ReadError::Damaged(_)) => {
                        if !self.take_from_replicas(applier, last).await? {
                            return Err(damaged);
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Takes as much as one consumer delivers rightly. An error is one of the copy.
    async fn take_from_consumer(&self, applier: &mut Applier, last: u64) -> Result<(), ReadError> {
        let consumer = match self.new_consumer(applier.next_sequence(), false).await {
            Ok(consumer) => consumer,
            Err(error) => {
                tracing::debug!(%error, "no consumer, asking the leader");
                return Ok(());
            }
        };
        let reason = loop {
            if applier.next_sequence() > last {
                break "everything was taken".to_owned();
            }
            match self.pull(&consumer, applier, last).await {
                Pulled::More => {}
                Pulled::Over(reason) => break reason,
                Pulled::Failed(error) => return Err(error),
            }
        };
        tracing::debug!(next = applier.next_sequence(), last, reason, "done with a consumer");
        self.drop_consumer(&consumer).await;
        Ok(())
    }

    /// One pull: some messages, until enough waits for the copy.
    pub(crate) async fn pull(&self, consumer: &PullConsumer, applier: &mut Applier, last: u64) -> Pulled {
        let wanted =
            usize::try_from(last + 1 - applier.next_sequence()).unwrap_or(usize::MAX).min(PULL_MESSAGES);
        let fetch = consumer.fetch().max_messages(wanted).max_bytes(PULL_BYTES).messages();
        let mut batch = match timeout(PULL_STALL, fetch).await {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return Pulled::Over(with_source(&error)),
            Err(_) => return Pulled::Over("no answer".to_owned()),
        };
        let mut count = 0;
        loop {
            let message = match timeout(PULL_STALL, batch.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(None) if count == 0 => return Pulled::Over("nothing was delivered".to_owned()),
                Ok(None) => return Pulled::More,
                // How the server says that the bytes are used up.
                Ok(Some(Err(_))) if count > 0 => return Pulled::More,
                Ok(Some(Err(error))) => return Pulled::Over(error.to_string()),
                Err(_) => return Pulled::Over("no answer".to_owned()),
            };
            let sequence = match message.info() {
                Ok(info) => info.stream_sequence,
                Err(error) => return Pulled::Over(error.to_string()),
            };
            let (headers, subject) = (message.headers.as_ref(), message.subject.as_str());
            let taken = applier.take(&Stored { sequence, subject, headers, payload: &message.payload });
            if let Err(what) = taken {
                tracing::warn!(
                    sequence,
                    what,
                    "a consumer does not deliver what it should, asking the leader"
                );
                return Pulled::Over(what);
            }
            count += 1;
            if applier.is_full()
                && let Err(error) = applier.flush().await
            {
                return Pulled::Failed(error);
            }
        }
    }

    /// Takes the next message from the leader. What it does not deliver rightly is damaged.
    async fn take_from_leader(&self, applier: &mut Applier, last: u64) -> Result<(), ReadError> {
        let (sequence, position) = (applier.next_sequence(), applier.next_position());
        let damaged = |what| ReadError::Damaged(self.damage(position, sequence, what));
        let Some(message) = self.message(sequence).await? else {
            // A server that became leader a moment ago may have to catch up itself.
            let now = self.last_sequence().await?;
            if sequence > now {
                return Err(unavailable(format!("the stream reached message {last}, now it ends at {now}")));
            }
            return Err(damaged(format!("the message is missing, although the stream reaches {now}")));
        };
        applier.take(&stored(&message)).map_err(damaged)
    }
}

/// What the largest pull must have room for.
const _: () = assert!(PULL_BYTES > event_log::limits::MAX_RECORD_BYTES + MESSAGE_OVERHEAD_BYTES);
