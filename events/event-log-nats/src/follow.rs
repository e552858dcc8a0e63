//! The follower: one task per log that learns of new records, whoever appended them, and wakes those who wait.
//!
//! It pulls headers only, and catches up when it sees a message that is not in the copy yet. Whatever goes wrong, it asks
//! the leader for the stream's end and begins again from there, so news may be late but never wrong.

use std::sync::Arc;

use event_log::ReadError;
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use crate::connection::rest;
use crate::limits::{FOLLOW_BATCH, FOLLOW_PULL, LONGEST_PAUSE, PULL_STALL};
use crate::servers::unavailable;
use crate::shared::Shared;

/// Runs until aborted.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut attempt = 0;
    loop {
        match follow_on(&shared, &mut attempt).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "following the log's end was interrupted"),
        }
        rest(&mut attempt, Instant::now() + LONGEST_PAUSE).await;
    }
}

/// Follows with one consumer as long as that goes well.
async fn follow_on(shared: &Arc<Shared>, attempt: &mut u32) -> Result<(), ReadError> {
    let mut losses = shared.servers.connection.losses();
    shared.catch_up(None).await?;
    let mut seen = shared.applied();
    let consumer = shared.servers.new_consumer(seen + 1, true).await?;
    *attempt = 0;
    loop {
        let pull = consumer.batch().max_messages(FOLLOW_BATCH).expires(FOLLOW_PULL).messages().await;
        let mut batch = pull.map_err(|error| unavailable(error.to_string()))?;
        let quiet = FOLLOW_PULL + PULL_STALL;
        loop {
            let next = tokio::select! {
                next = timeout(quiet, batch.next()) => next,
                // The pull is forgotten by the server; waiting for it would only delay the news.
                () = losses.next() => return Ok(()),
            };
            match next {
                Ok(Some(Ok(message))) => {
                    if let Ok(info) = message.info() {
                        seen = seen.max(info.stream_sequence);
                        if seen > shared.applied() {
                            shared.catch_up(Some(seen)).await?;
                        }
                    }
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(unavailable(error.to_string())),
                Err(_) => return Ok(()),
            }
        }
        // A consumer that died says nothing; the leader knows.
        if shared.servers.last_sequence().await? > seen {
            return Ok(());
        }
    }
}
