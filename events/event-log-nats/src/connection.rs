//! The connection to the servers: how it is made, how it comes back, and how the rest learns that it broke.

use std::path::Path;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::NatsOpenError;
use crate::limits::{CONNECT_TIMEOUT, LONGEST_PAUSE, REQUEST_TIMEOUT, SHORTEST_PAUSE};
use crate::options::NatsLogOptions;

/// A connection that reconnects by itself, for ever, with random pauses.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Counts how often the connection was lost: what was asked before is not answered after.
    losses: watch::Receiver<u64>,
}

impl Connection {
    pub(crate) async fn open(options: &NatsLogOptions) -> Result<Connection, NatsOpenError> {
        let failed = |reason: String| NatsOpenError::Connect { servers: options.shown_servers(), reason };
        let mut addresses = Vec::new();
        for server in options.servers.iter().filter(|server| !server.is_empty()) {
            // The text is not repeated in the error: it may hold a password.
            let address: ServerAddr =
                server.parse().map_err(|_| failed("not a server address".to_owned()))?;
            addresses.push(address);
        }
        let (lost, losses) = watch::channel(0);
        let mut connect = ConnectOptions::new()
            .name("flotilla event log")
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .ping_interval(Duration::from_secs(10))
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| pause(u32::try_from(attempt).unwrap_or(u32::MAX)))
            .event_callback(move |event| {
                note(&event, &lost);
                std::future::ready(())
            });
        if let Some(path) = &options.credentials {
            connect = connect
                .credentials_file(path)
                .await
                .map_err(|error| failed(format!("credentials {}: {error}", shown(path))))?;
        }
        if let Some(path) = &options.certificate_authority {
            connect = connect.add_root_certificates(path.clone()).require_tls(true);
        }
        let deadline = Instant::now() + options.open_timeout;
        let mut attempt = 0;
        let client = loop {
            match connect.clone().connect(addresses.clone()).await {
                Ok(client) => break client,
                Err(error) if Instant::now() >= deadline || !is_passing(&error) => {
                    let mut reason = with_source(&error);
                    // What TLS calls an answer in plain text.
                    if reason.contains("InvalidContentType") {
                        reason.push_str("; it seems that these servers do not speak TLS");
                    }
                    return Err(failed(reason));
                }
                Err(_) => rest(&mut attempt, deadline).await,
            }
        };
        Ok(Connection { client, losses })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// A watcher of losses from now on; see [`Losses::next`].
    pub(crate) fn losses(&self) -> Losses {
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        Losses(losses)
    }
}

/// Losses of the connection since some moment.
#[derive(Debug)]
pub(crate) struct Losses(watch::Receiver<u64>);

impl Losses {
    /// Ends when the connection has been lost since the moment.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // The client is gone, and with it whoever could notice.
            std::future::pending::<()>().await;
        }
    }
}

fn note(event: &Event, lost: &watch::Sender<u64>) {
    match event {
        Event::Disconnected => {
            lost.send_modify(|losses| *losses += 1);
            tracing::warn!("the connection to NATS is lost, reconnecting");
        }
        Event::Connected => tracing::info!("connected to NATS"),
        Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
        other => tracing::warn!(event = %other, "NATS"),
    }
}

/// Whether the server may just not be there yet.
fn is_passing(error: &async_nats::ConnectError) -> bool {
    use async_nats::ConnectErrorKind::{Dns, Io, TimedOut};
    matches!(error.kind(), Io | Dns | TimedOut)
}

/// An error with its cause, as one line.
pub(crate) fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) if !error.to_string().contains(&source.to_string()) => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

/// How long to pause before the nth attempt: doubling, with a random half taken off.
fn pause(attempt: u32) -> Duration {
    let full = SHORTEST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE);
    let mut random = [0; 1];
    // Without randomness the pause is merely not spread.
    let share = if getrandom::fill(&mut random).is_ok() { u32::from(random[0]) } else { 0 };
    full - full / 2 * share / 255
}

/// Pauses before the next attempt, not beyond the deadline.
pub(crate) async fn rest(attempt: &mut u32, deadline: Instant) {
    let until = (Instant::now() + pause(*attempt)).min(deadline);
    *attempt = attempt.saturating_add(1);
    tokio::time::sleep_until(until).await;
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_bounded_and_spread() {
        for attempt in [0, 1, 5, 20, u32::MAX] {
            let full = SHORTEST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE);
            let pauses: Vec<_> = (0..50).map(|_| pause(attempt)).collect();
            assert!(pauses.iter().all(|&pause| pause >= full / 2 && pause <= full), "{attempt}: {pauses:?}");
            assert!(pauses.iter().any(|&pause| pause != pauses[0]), "{attempt}: spread");
        }
    }
}
