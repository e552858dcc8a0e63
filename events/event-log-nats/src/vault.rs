//! A place for small secrets beside the log: a key-value bucket of JetStream in which a key is written once, read from
//! the leader, and removed so that the servers overwrite it.
//!
//! The bucket is a stream `KV_<log>-keys` with one message per key, as other tools know it. It is used by its plain
//! messages, since what matters here is not what a bucket promises: a key that is there is never replaced (the server
//! compares), reading asks the leader and never a replica that lags behind, and removing is the secure deletion of one
//! message, whose bytes the server overwrites before it forgets it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RawMessageErrorKind, StorageType, Stream};
use async_nats::jetstream::{self};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::connection::{rest, with_source};
use crate::shared::Shared;

/// Bytes of one secret.
const SECRET_BYTES_MAX: usize = 4 * 1024;

/// Secrets that are written at the same time.
const WRITES_AT_ONCE: usize = 64;

/// How long the bucket may take to answer: its servers elect a leader for it after one is gone, and take their time
/// where little is written.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the bucket cannot be used now.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the bucket {bucket} in NATS: {reason}")]
pub struct VaultError {
    bucket: String,
    reason: String,
}

/// A bucket of secrets beside a log. Keys are of letters, digits, `-`, `_`, `/`, `=` and `.`.
#[derive(Clone, Debug)]
pub struct NatsVault {
    shared: Arc<Shared>,
    stream: Stream<()>,
    bucket: String,
    prefix: String,
}

impl NatsVault {
    pub(crate) async fn open(shared: &Arc<Shared>) -> Result<NatsVault, VaultError> {
        let bucket = format!("{}-keys", shared.servers.options.stream);
        let prefix = format!("$KV.{bucket}.");
        let failed = |reason: String| VaultError { bucket: bucket.clone(), reason };
        let options = &shared.servers.options;
        let context = &shared.servers.context;
        let name = format!("KV_{bucket}");
        let (deadline, mut attempt) = (Instant::now() + PATIENCE, 0);
        loop {
            let reason = match Self::find_or_make(context, &options.stream, &name, &prefix).await {
                Ok((there, log_replicas)) => {
                    for what in shortcomings(&there, log_replicas) {
                        tracing::warn!(stream = name, "the bucket of keys beside the log: {what}");
                    }
                    break;
                }
                Err(reason) => reason,
            };
            if Instant::now() >= deadline {
                return Err(failed(reason));
            }
            rest(&mut attempt, deadline).await;
        }
        let stream = context.get_stream_no_info(&name).await;
        let stream = stream.map_err(|error| failed(with_source(&error)))?;
        Ok(NatsVault { shared: Arc::clone(shared), stream, bucket, prefix })
    }

    /// What the bucket is like, made if there is none, and how many replicas the log beside it has; or why that cannot be
    /// said now.
    async fn find_or_make(
        context: &jetstream::Context,
        log: &str,
        name: &str,
        prefix: &str,
    ) -> Result<(Config, usize), String> {
        let log = context.get_stream(log).await.map_err(|error| with_source(&error))?;
        // As many as the log has by now, whatever was asked for when that was made: without the keys it cannot be read.
        let log_replicas = log.cached_info().config.num_replicas;
        match context.get_stream(name).await {
            Ok(there) => return Ok((there.cached_info().config.clone(), log_replicas)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(what) if what.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
                // Nobody knows whether there is one.
                _ => return Err(with_source(&error)),
            },
        }
        let config = Config {
            name: name.to_owned(),
            description: Some("keys of private texts on the event log, wrapped".to_owned()),
            subjects: vec![format!("{prefix}>")],
            num_replicas: log_replicas,
            max_messages_per_subject: 1,
            max_message_size: i32::try_from(2 * SECRET_BYTES_MAX).unwrap_or(i32::MAX),
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            deny_delete: false,
            deny_purge: false,
            allow_rollup: true,
            allow_direct: false,
            ..Config::default()
        };
        match context.create_stream(config).await {
            // As the server made it.
            Ok(made) => Ok((made.cached_info().config.clone(), log_replicas)),
            // Another replica may have been faster: what it made is looked at the next time.
            Err(error) => Err(with_source(&error)),
        }
    }

    fn failed(&self, reason: impl Into<String>) -> VaultError {
        VaultError { bucket: self.bucket.clone(), reason: reason.into() }
    }

    /// Tries something again until it works, for a while.
    async fn persist<T, F: Future<Output = Result<T, VaultError>>>(
        &self,
        what: impl Fn() -> F,
    ) -> Result<T, VaultError> {
        let (deadline, mut attempt) = (Instant::now() + PATIENCE, 0);
        loop {
            match what().await {
                Err(_) if Instant::now() < deadline => rest(&mut attempt, deadline).await,
                done => return done,
            }
        }
    }

    /// Every key and its secret.
    ///
    /// # Errors
    /// If the servers do not answer for a while.
    pub async fn list(&self) -> Result<Vec<(String, Vec<u8>)>, VaultError> {
        self.list_of(format!("{}>", self.prefix)).await
    }

    /// The keys that begin with this one and a dot.
    ///
    /// # Errors
    /// As [`NatsVault::list`].
    pub async fn list_under(&self, key: &str) -> Result<Vec<(String, Vec<u8>)>, VaultError> {
        self.list_of(format!("{}{key}.>", self.prefix)).await
    }

    async fn list_of(&self, filter: String) -> Result<Vec<(String, Vec<u8>)>, VaultError> {
        let (mut all, mut sequence) = (Vec::new(), 1);
        let (mut deadline, mut attempt) = (Instant::now() + PATIENCE, 0);
        loop {
            // The leader's own order of messages: a consumer could live on a replica that lags behind.
            let next =
                self.stream.raw_message_builder().sequence(sequence).next_by_subject(filter.clone()).send();
            match next.await {
                Ok(message) => {
                    sequence = message.sequence + 1;
                    (deadline, attempt) = (Instant::now() + PATIENCE, 0);
                    if let Some(key) = message.subject.as_str().strip_prefix(&self.prefix)
                        && !message.payload.is_empty()
                    {
                        all.push((key.to_owned(), message.payload.to_vec()));
                    }
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(all),
                Err(error) if Instant::now() >= deadline => return Err(self.failed(with_source(&error))),
                // What was read stays read.
                Err(_) => rest(&mut attempt, deadline).await,
            }
        }
    }

    /// A key's secret and the message that holds it, as the leader has it.
    async fn find(&self, key: &str) -> Result<Option<(u64, Vec<u8>)>, VaultError> {
        // Another tool may have left a marker in the place of what it deleted.
        Ok(self.last(key).await?.filter(|(_, secret)| !secret.is_empty()))
    }

    /// A key's message: its secret, or the empty marker of another tool.
    async fn last(&self, key: &str) -> Result<Option<(u64, Vec<u8>)>, VaultError> {
        let asked = self.stream.get_last_raw_message_by_subject(&format!("{}{key}", self.prefix)).await;
        match asked {
            Ok(message) => Ok(Some((message.sequence, message.payload.to_vec()))),
            Err(error) if error.kind() == jetstream::stream::LastRawMessageErrorKind::NoMessageFound => {
                Ok(None)
            }
            Err(error) => Err(self.failed(with_source(&error))),
        }
    }

    /// One key's secret.
    ///
    /// # Errors
    /// If the servers do not answer for a while.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, VaultError> {
        Ok(self.persist(|| self.find(key)).await?.map(|(_, secret)| secret))
    }

    /// Writes secrets whose keys are not there yet; gives those that were, which stay.
    ///
    /// # Errors
    /// If the servers do not answer; it is not known then which of them were written.
    pub async fn create(
        &self,
        secrets: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<(String, Vec<u8>)>, VaultError> {
        let mut there = Vec::new();
        let mut rest = secrets.into_iter();
        let mut writing = FuturesUnordered::new();
        loop {
            while writing.len() < WRITES_AT_ONCE
                && let Some((key, secret)) = rest.next()
            {
                writing.push(self.create_one(key, secret));
            }
            match writing.next().await {
                None => return Ok(there),
                Some(written) => there.extend(written?),
            }
        }
    }

    async fn create_one(
        &self,
        key: String,
        secret: Vec<u8>,
    ) -> Result<Option<(String, Vec<u8>)>, VaultError> {
        if secret.is_empty() || secret.len() > SECRET_BYTES_MAX {
            return Err(self.failed(format!("a secret of {} bytes", secret.len())));
        }
        let (mut reason, deadline, mut attempt) = (String::new(), Instant::now() + PATIENCE, 0);
        let mut marker = 0;
        while attempt == 0 || Instant::now() < deadline {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, marker.to_string());
            let publish = PublishMessage::build().headers(headers).payload(secret.clone().into());
            let context = &self.shared.servers.context;
            let answer = match context.send_publish(format!("{}{key}", self.prefix), publish).await {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(_) => return Ok(None),
                Err(error) => reason = with_source(&error),
            }
            // Refused because one is there, or not answered: what is there now decides.
            match self.last(&key).await {
                Ok(Some((sequence, found))) if found.is_empty() => marker = sequence,
                Ok(Some((_, found))) if found == secret => return Ok(None),
                Ok(Some((_, found))) => return Ok(Some((key, found))),
                Ok(None) => marker = 0,
                Err(error) => reason = error.reason,
            }
            rest(&mut attempt, deadline).await;
        }
        Err(self.failed(reason))
    }

    /// Removes exactly this secret; one that is not there, or another, is left alone.
    ///
    /// # Errors
    /// If the servers do not answer.
    pub async fn destroy(&self, key: &str, secret: &[u8]) -> Result<(), VaultError> {
        let (mut reason, deadline, mut attempt) =
            ("it is still there".to_owned(), Instant::now() + PATIENCE, 0);
        while attempt == 0 || Instant::now() < deadline {
            match self.find(key).await {
                Err(error) => reason = error.reason,
                Ok(Some((sequence, found))) if found == secret => {
                    // Overwritten, then forgotten, by every server of the stream.
                    if let Err(error) = self.stream.delete_message(sequence).await {
                        reason = with_source(&error);
                    }
                }
                Ok(_) => return Ok(()),
            }
            rest(&mut attempt, deadline).await;
        }
        Err(self.failed(reason))
    }
}

/// What is not as it should be with a bucket beside a log with so many replicas.
fn shortcomings(there: &Config, log_replicas: usize) -> Vec<String> {
    let name = &there.name;
    let mut all = Vec::new();
    let mut tell = |is_so: bool, what: &str| all.extend(is_so.then(|| what.to_owned()));
    tell(
        there.deny_delete,
        "it does not let messages be deleted: no key can be destroyed, no erasure finished",
    );
    tell(there.storage != StorageType::File, "it is kept in memory: all keys are lost with the servers");
    tell(!there.max_age.is_zero(), "it forgets keys after a time (max_age): set it to 0");
    tell(
        there.max_bytes > 0 || there.max_messages > 0,
        "it has a limit (max_bytes, max_msgs): when that is reached, nothing more can be recorded under new keys",
    );
    tell(
        there.discard != DiscardPolicy::New,
        "it discards old messages where it has no room for new ones: keys are lost then",
    );
    tell(
        there.max_messages_per_subject != 1,
        "it keeps older values of its keys (history): what another tool replaces there is not destroyed with the key",
    );
    tell(
        there.mirror.is_some() || there.sources.as_ref().is_some_and(|sources| !sources.is_empty()),
        "it takes its keys from another stream: what is destroyed here stays there",
    );
    tell(
        there.republish.is_some(),
        "it sends keys on to others (republish): what is destroyed here stays there",
    );
    if there.num_replicas < log_replicas {
        all.push(format!(
            "it has fewer replicas ({}) than the log ({log_replicas}): with the disks that it is on all keys are lost. \
             `nats stream edit {name} --replicas {log_replicas}`",
            there.num_replicas
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::jetstream::stream::{Republish, Source};

    #[test]
    fn a_bucket_that_is_less_safe_than_its_log_is_told() {
        let good = Config {
            name: "KV_X-keys".into(),
            num_replicas: 3,
            max_messages_per_subject: 1,
            max_messages: -1,
            max_bytes: -1,
            discard: DiscardPolicy::New,
            ..Config::default()
        };
        assert!(shortcomings(&good, 3).is_empty() && shortcomings(&good, 1).is_empty());
        let check = |what: &str, change: &dyn Fn(&mut Config)| {
            let mut bad = good.clone();
            change(&mut bad);
            let told = shortcomings(&bad, 3);
            assert!(told.len() == 1 && told[0].contains(what), "{what}: {told:?}");
        };
        check("nats stream edit KV_X-keys --replicas 3", &|bad| bad.num_replicas = 1);
        check("deleted", &|bad| bad.deny_delete = true);
        check("memory", &|bad| bad.storage = StorageType::Memory);
        check("max_age", &|bad| bad.max_age = Duration::from_secs(1));
        check("max_bytes", &|bad| bad.max_bytes = 1 << 20);
        check("max_msgs", &|bad| bad.max_messages = 1_000);
        check("discards", &|bad| bad.discard = DiscardPolicy::Old);
        check("history", &|bad| bad.max_messages_per_subject = 5);
        check("history", &|bad| bad.max_messages_per_subject = -1);
        check("another stream", &|bad| bad.mirror = Some(Source::default()));
        check("another stream", &|bad| bad.sources = Some(vec![Source::default()]));
        check("republish", &|bad| {
            let (source, destination) = (">".to_owned(), "elsewhere".to_owned());
            bad.republish = Some(Republish { source, destination, headers_only: false });
        });
    }
}
