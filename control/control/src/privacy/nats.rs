//! Subjects' keys of logs that NATS keeps: in a bucket beside the log, one for all replicas.

use event_log::BoxFuture;
use event_log_nats::{NatsVault, VaultError};
use event_schema::Subject;

use super::store::{KeyStore, KeyStoreError, WRAPPED_BYTES, Wrapped};

/// The bucket. Its keys are subjects as they are written, `job/5f…`, with a dot in the place of the slash.
#[derive(Debug, Clone)]
pub struct NatsKeys(NatsVault);

impl NatsKeys {
    /// On a bucket.
    pub fn new(vault: NatsVault) -> Self {
        Self(vault)
    }
}

impl From<VaultError> for KeyStoreError {
    fn from(error: VaultError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

fn name(subject: Subject) -> String {
    subject.to_string().replace('/', ".")
}

/// Stands for what lies in the place of a key and has another size: nothing that could be unwrapped.
const DAMAGED: Wrapped = [0; WRAPPED_BYTES];

/// Everything under the name of a subject; other things that somebody put there are passed over.
fn keys(secrets: Vec<(String, Vec<u8>)>) -> Vec<(Subject, Wrapped)> {
    let key = |(name, secret): (String, Vec<u8>)| {
        let subject = name.replace('.', "/").parse().ok()?;
        Some((subject, secret.try_into().unwrap_or(DAMAGED)))
    };
    secrets.into_iter().filter_map(key).collect()
}

impl KeyStore for NatsKeys {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async { Ok(keys(self.0.list().await?)) })
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Option<Wrapped>, KeyStoreError>> {
        Box::pin(async move {
            let secret = self.0.get(&name(subject)).await?;
            Ok(secret.map(|secret| secret.try_into().unwrap_or(DAMAGED)))
        })
    }

    fn create(
        &self,
        new: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async move {
            let secrets = new.iter().map(|(subject, key)| (name(*subject), key.to_vec())).collect();
            Ok(keys(self.0.create(secrets).await?))
        })
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(async move { Ok(self.0.destroy(&name(subject), &wrapped).await?) })
    }
}
