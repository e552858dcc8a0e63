//! Messages between the programs that share a log, beside the log: at most once, kept by nobody, to all who listen at
//! the moment. Core NATS on a subject that the log's stream does not take.

use std::sync::Arc;

use async_nats::Client;
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::shared::Shared;

/// Messages that a slow listener may lag behind; further ones are lost to it.
const LISTENER_MESSAGES: usize = 256;

/// Where the programs that share a log hear each other.
#[derive(Clone, Debug)]
pub struct NatsBus {
    client: Client,
    subject: String,
    shared: Arc<Shared>,
}

impl NatsBus {
    pub(crate) fn new(shared: &Arc<Shared>) -> NatsBus {
        let subject = format!("{}.bus", shared.servers.options.subject_prefix);
        NatsBus { client: shared.servers.connection.client.clone(), subject, shared: Arc::clone(shared) }
    }

    /// Sends to all who listen, the sender included. Without a connection nothing is sent, nor later.
    pub async fn send(&self, message: Vec<u8>) {
        if !self.shared.servers.connection.is_up() {
            return;
        }
        if let Err(error) = self.client.publish(self.subject.clone(), message.into()).await {
            tracing::debug!(%error, "a message to the other replicas was not sent");
        }
    }

    /// Leaves a server that passes nothing on, for whichever answers first.
    pub async fn renew(&self) {
        self.shared.servers.reconnect().await;
    }

    /// What is sent from now on, across reconnects. Ends when the client does.
    pub async fn listen(&self) -> mpsc::Receiver<Vec<u8>> {
        let (heard, listener) = mpsc::channel(LISTENER_MESSAGES);
        match self.client.subscribe(self.subject.clone()).await {
            Ok(mut messages) => {
                tokio::spawn(async move {
                    loop {
                        let message = tokio::select! {
                            message = messages.next() => message,
                            () = heard.closed() => break,
                        };
                        let Some(message) = message else { break };
                        if let Err(mpsc::error::TrySendError::Closed(_)) =
                            heard.try_send(message.payload.to_vec())
                        {
                            break;
                        }
                    }
                });
            }
            Err(error) => tracing::error!(%error, "the other replicas cannot be heard"),
        }
        listener
    }
}
