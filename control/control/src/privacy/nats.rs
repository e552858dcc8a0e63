//! Subjects' keys of logs that NATS keeps: in a bucket beside the log, one for all replicas.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use event_log::BoxFuture;
use event_log_nats::{NatsVault, VaultError};
use event_schema::Subject;
use sha2::{Digest as _, Sha256};

use super::store::{KeyStore, KeyStoreError, WRAPPED_BYTES, Wrapped};

/// The bucket. Its keys are subjects as they are written, `job/5f…`, with a dot in the place of the slash; where a subject
/// has several keys, brought together again after a loss, the further ones have a hash of the wrapped key behind another
/// dot. Older programs pass those over.
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

/// The name of a key beside the first one of its subject: nobody who makes a key writes there.
fn further(subject: Subject, wrapped: &Wrapped) -> String {
    let hash = Sha256::digest(wrapped);
    format!("{}.{}", name(subject), HEXLOWER.encode(&hash[..8]))
}

/// Stands for what lies in the place of a key and has another size: nothing that could be unwrapped.
const DAMAGED: Wrapped = [0; WRAPPED_BYTES];

/// Everything under the name of a subject; other things that somebody put there are passed over.
fn keys(secrets: Vec<(String, Vec<u8>)>) -> Vec<(Subject, Wrapped)> {
    let key = |(name, secret): (String, Vec<u8>)| {
        let mut parts = name.splitn(3, '.');
        let subject = format!("{}/{}", parts.next()?, parts.next()?).parse().ok()?;
        Some((subject, secret.try_into().unwrap_or(DAMAGED)))
    };
    secrets.into_iter().filter_map(key).collect()
}

impl KeyStore for NatsKeys {
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>> {
        Box::pin(async { Ok(keys(self.0.list().await?)) })
    }

    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Vec<Wrapped>, KeyStoreError>> {
        Box::pin(async move {
            let name = name(subject);
            let (first, more) = tokio::try_join!(self.0.get(&name), self.0.list_under(&name))?;
            let all = first.into_iter().chain(more.into_iter().map(|(_, secret)| secret));
            Ok(all.map(|secret| secret.try_into().unwrap_or(DAMAGED)).collect())
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

    fn add(&self, new: Vec<(Subject, Wrapped)>) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(async move {
            // The first of each subject where there is none, one by one where there are several.
            let mut rest: BTreeMap<Subject, Vec<Wrapped>> = BTreeMap::new();
            for (subject, key) in new {
                rest.entry(subject).or_default().push(key);
            }
            let firsts = rest.iter().filter_map(|(subject, all)| Some((*subject, *all.first()?)));
            let there: BTreeMap<Subject, Wrapped> =
                self.create(firsts.collect()).await?.into_iter().collect();
            let more = rest.iter().flat_map(|(subject, all)| {
                let first = there.get(subject).or(all.first()).copied();
                let others = all.iter().filter(move |key| Some(**key) != first);
                others.map(|key| (further(*subject, key), key.to_vec()))
            });
            // One of that name is the same key.
            self.0.create(more.collect()).await?;
            Ok(())
        })
    }

    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>> {
        Box::pin(async move {
            self.0.destroy(&name(subject), &wrapped).await?;
            Ok(self.0.destroy(&further(subject, &wrapped), &wrapped).await?)
        })
    }
}
