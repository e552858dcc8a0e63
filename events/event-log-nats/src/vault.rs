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
use async_nats::jetstream::context::CreateStreamErrorKind;
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
        let config = Config {
            name: format!("KV_{bucket}"),
            description: Some("keys of private texts on the event log, wrapped".to_owned()),
            subjects: vec![format!("{prefix}>")],
            num_replicas: shared.servers.options.replicas,
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
        let deadline = Instant::now() + PATIENCE;
        let context = &shared.servers.context;
        loop {
            let made = match context.get_stream(&config.name).await {
                Ok(there) => Ok(Some(there.cached_info().config.clone())),
                Err(_) => context.create_stream(config.clone()).await.map(|_| None),
            };
            match made {
                Ok(None) => break,
                Ok(Some(there)) => {
                    // As many as the log has by now, whatever was asked for when it was made.
                    let log = context.get_stream(&shared.servers.options.stream).await;
                    let log = log.map_or(1, |log| log.cached_info().config.num_replicas);
                    for what in shortcomings(&there, log) {
                        tracing::warn!(stream = config.name, "the bucket of keys beside the log: {what}");
                    }
                    break;
                }
                // Another replica was faster, with the same settings or other ones that do as well.
                Err(error) if is_there(&error) => break,
                Err(error) if Instant::now() >= deadline => return Err(failed(with_source(&error))),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        let stream = context.get_stream_no_info(&config.name).await;
        let stream = stream.map_err(|error| failed(with_source(&error)))?;
        Ok(NatsVault { shared: Arc::clone(shared), stream, bucket, prefix })
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
        self.persist(|| self.list_once()).await
    }

    async fn list_once(&self) -> Result<Vec<(String, Vec<u8>)>, VaultError> {
        let mut all = Vec::new();
        let mut sequence = 1;
        loop {
            // The leader's own order of messages: a consumer could live on a replica that lags behind.
            let next = self
                .stream
                .raw_message_builder()
                .sequence(sequence)
                .next_by_subject(format!("{}>", self.prefix));
            let message = match next.send().await {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(all),
                Err(error) => return Err(self.failed(with_source(&error))),
            };
            sequence = message.sequence + 1;
            if let Some(key) = message.subject.as_str().strip_prefix(&self.prefix)
                && !message.payload.is_empty()
            {
                all.push((key.to_owned(), message.payload.to_vec()));
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

/// What is not as it should be with a bucket that was there already, beside a log with so many replicas.
fn shortcomings(there: &Config, log_replicas: usize) -> Vec<String> {
    let name = &there.name;
    let mut all = Vec::new();
    if there.num_replicas < log_replicas {
        all.push(format!(
            "it has fewer replicas ({}) than the log ({log_replicas}): with the disks that it is on all keys are lost. \
             `nats stream edit {name} --replicas {log_replicas}`",
            there.num_replicas
        ));
    }
    if there.deny_delete {
        all.push(
            "it does not let messages be deleted: no key can be destroyed, no erasure finished".to_owned(),
        );
    }
    if there.storage != StorageType::File {
        all.push("it is kept in memory: all keys are lost with the servers".to_owned());
    }
    all
}

fn is_there(error: &jetstream::context::CreateStreamError) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(inner)
        if inner.error_code() == jetstream::ErrorCode::STREAM_NAME_EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_is_less_safe_than_its_log_is_told() {
        let good = Config { name: "KV_X-keys".into(), num_replicas: 3, ..Config::default() };
        assert!(shortcomings(&good, 3).is_empty() && shortcomings(&good, 1).is_empty());
        let bad = Config { num_replicas: 1, deny_delete: true, ..good };
        let told = shortcomings(&bad, 3);
        assert!(told.len() == 2 && told[0].contains("nats stream edit KV_X-keys --replicas 3"), "{told:?}");
    }
}
