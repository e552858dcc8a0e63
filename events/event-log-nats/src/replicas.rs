//! The stream's replicas, one by one (`events/NATS_FORMAT.md` §6, §8): what one server has lost is fetched from another,
//! and each can be asked what it holds.
//!
//! JetStream has no request that names a replica. But a consumer with one replica lives on one of the stream's servers,
//! chosen at random, says on which, and reads that server's files alone. So consumers are made until the right one is
//! met, a bounded number of times.

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use event_log::ReadError;
use futures::StreamExt;
use tokio::time::timeout;

use crate::applier::Applier;
use crate::catch_up::Pulled;
use crate::connection::with_source;
use crate::limits::{CONSUMER_IDLE, PULL_STALL, REPLICA_FAILURES, REPLICA_TRIES};
use crate::message::Stored;
use crate::servers::{Servers, stored, unavailable};

/// The servers that hold the stream.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Those that can be asked, the leader first. Empty if the server is no member of a cluster.
    pub(crate) reachable: Vec<String>,
    /// Those that the leader does not see.
    pub(crate) offline: Vec<String>,
}

/// The server that a consumer lives on.
fn home(consumer: &PullConsumer) -> Option<&str> {
    consumer.cached_info().cluster.as_ref()?.leader.as_deref()
}

impl Servers {
    /// Who holds the stream, as its leader knows it.
    pub(crate) async fn members(&self) -> Result<Members, ReadError> {
        let info = self.stream.get_info().await.map_err(|error| unavailable(with_source(&error)))?;
        let mut members = Members::default();
        if let Some(cluster) = info.cluster {
            members.reachable.extend(cluster.leader);
            for peer in cluster.replicas {
                if peer.offline { &mut members.offline } else { &mut members.reachable }.push(peer.name);
            }
        }
        Ok(members)
    }

    /// A consumer on that server; `None` if none came to live there.
    pub(crate) async fn consumer_on(&self, server: &str, from: u64) -> Option<PullConsumer> {
        let mut failures = 0;
        for _ in 0..REPLICA_TRIES {
            match self.new_consumer(from, false).await {
                Ok(consumer) if home(&consumer) == Some(server) => return Some(consumer),
                Ok(consumer) => self.drop_consumer(&consumer).await,
                Err(_) if failures >= REPLICA_FAILURES => return None,
                Err(_) => failures += 1,
            }
        }
        None
    }

    /// Consumers on different servers, one after the other, until `members` are met or the tries are over.
    async fn next_home(&self, from: u64, met: &mut Met) -> Option<PullConsumer> {
        while met.names.len() < met.members && met.tries < REPLICA_TRIES && met.failures < REPLICA_FAILURES {
            met.tries += 1;
            let Ok(consumer) = self.new_consumer(from, false).await else {
                met.failures += 1;
                continue;
            };
            match home(&consumer).map(str::to_owned) {
                Some(name) if !met.names.contains(&name) => {
                    met.names.push(name);
                    return Some(consumer);
                }
                _ => self.drop_consumer(&consumer).await,
            }
        }
        None
    }

    /// Takes what the leader could not deliver from whichever other server can; `false` if none can.
    pub(crate) async fn take_from_replicas(
        &self,
        applier: &mut Applier,
        last: u64,
    ) -> Result<bool, ReadError> {
        let (before, mut met) = (applier.next_sequence(), Met::among(self.members().await?));
        while let Some(consumer) = self.next_home(before, &mut met).await {
            let failed = loop {
                if applier.next_sequence() > last {
                    break None;
                }
                match self.pull(&consumer, applier, last).await {
                    Pulled::More => {}
                    Pulled::Over(_) => break None,
                    Pulled::Failed(error) => break Some(error),
                }
            };
            self.drop_consumer(&consumer).await;
            if let Some(error) = failed {
                return Err(error);
            }
            if applier.next_sequence() > before {
                let (to, server) = (applier.next_sequence() - 1, met.names.last());
                tracing::error!(
                    stream = self.options.stream,
                    from = before,
                    to,
                    server,
                    "the stream's leader cannot deliver messages that it should hold; they were read from another server. \
                     Find the damaged server with `flotilla log check` and rebuild it"
                );
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What `judge` makes of a message, as the leader delivers it or else any other server; of all that failed, what is
    /// wrong with the leader's.
    pub(crate) async fn any_delivers<T>(
        &self,
        sequence: u64,
        judge: impl Fn(&Stored<'_>) -> Result<T, String>,
    ) -> Result<Result<T, String>, ReadError> {
        let wrong = match self.message(sequence).await? {
            Some(message) => match judge(&stored(&message)) {
                Ok(found) => return Ok(Ok(found)),
                Err(wrong) => wrong,
            },
            None => "the message is missing".to_owned(),
        };
        let mut met = Met::among(self.members().await?);
        while let Some(consumer) = self.next_home(sequence, &mut met).await {
            let found = first_delivered(&consumer, sequence, &judge).await;
            self.drop_consumer(&consumer).await;
            if let Some(found) = found {
                let server = met.names.last();
                tracing::error!(
                    stream = self.options.stream,
                    sequence,
                    wrong,
                    server,
                    "the stream's leader cannot deliver a message, another server could"
                );
                return Ok(Ok(found));
            }
        }
        Ok(Err(wrong))
    }

    /// The sequence of the last message that each server holds by itself, for those that were met.
    pub(crate) async fn ends(&self) -> Result<Vec<(String, u64)>, ReadError> {
        let met = Met::among(self.members().await?);
        let (mut ends, mut failures) = (Vec::<(String, u64)>::new(), 0);
        for _ in 0..REPLICA_TRIES {
            if ends.len() >= met.members || failures >= REPLICA_FAILURES {
                break;
            }
            let config = pull::Config {
                deliver_policy: DeliverPolicy::Last,
                ack_policy: AckPolicy::None,
                inactive_threshold: CONSUMER_IDLE,
                num_replicas: 1,
                memory_storage: true,
                headers_only: true,
                ..pull::Config::default()
            };
            let Ok(consumer) = self.stream.create_consumer(config).await else {
                failures += 1;
                continue;
            };
            // It stands before the one message that it is about to deliver.
            let info = consumer.cached_info();
            let end = if info.num_pending == 0 { 0 } else { info.delivered.stream_sequence + 1 };
            if let Some(name) = home(&consumer).filter(|name| ends.iter().all(|(known, _)| known != name)) {
                ends.push((name.to_owned(), end));
            }
            self.drop_consumer(&consumer).await;
        }
        Ok(ends)
    }
}

/// Which servers were met so far.
struct Met {
    names: Vec<String>,
    members: usize,
    tries: u32,
    failures: u32,
}

impl Met {
    /// Nobody yet; a server alone has no other to ask.
    fn among(members: Members) -> Met {
        let count = members.reachable.len();
        Met { names: Vec::new(), members: if count > 1 { count } else { 0 }, tries: 0, failures: 0 }
    }
}

/// What `judge` makes of the first message that a consumer delivers, if it is the one that was asked for.
async fn first_delivered<T>(
    consumer: &PullConsumer,
    sequence: u64,
    judge: impl Fn(&Stored<'_>) -> Result<T, String>,
) -> Option<T> {
    let delivered = async {
        let mut batch = consumer.fetch().max_messages(1).messages().await.ok()?;
        batch.next().await?.ok()
    };
    let message = timeout(PULL_STALL, delivered).await.ok()??;
    if message.info().ok()?.stream_sequence != sequence {
        return None;
    }
    let (headers, subject) = (message.headers.as_ref(), message.subject.as_str());
    judge(&Stored { sequence, subject, headers, payload: &message.payload }).ok()
}
