//! Where subjects' keys are kept: [`KeyStore`]. They are wrapped there: whoever reads a store without the fleet's
//! secret has nothing.

use event_log::BoxFuture;
use event_schema::{Subject, SubjectKey};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};

use crate::service::random_id;

/// Bytes of a wrapped key: nonce, key, tag.
pub const WRAPPED_BYTES: usize = 12 + 32 + 16;

/// A key as it is kept.
pub type Wrapped = [u8; WRAPPED_BYTES];

/// Why keys cannot be had or kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The store does not answer, or cannot be read or written.
    #[error("the store of the subjects' keys is not available: {0}")]
    Unavailable(String),
    /// The store is none.
    #[error("the store of the subjects' keys cannot be used: {0}")]
    Unfit(String),
}

/// A store of wrapped keys, of one service or of all replicas together.
pub trait KeyStore: Send + Sync + 'static {
    /// All of them. There can be several of a subject: they came from several stores.
    fn list(&self) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>>;

    /// Those of one subject, as the newest state of the store has them.
    fn get(&self, subject: Subject) -> BoxFuture<'_, Result<Vec<Wrapped>, KeyStoreError>>;

    /// Keeps keys of subjects that have none, so that they outlast a power cut when this returns. Gives those that
    /// were there already, which stay as the only ones.
    fn create(
        &self,
        keys: Vec<(Subject, Wrapped)>,
    ) -> BoxFuture<'_, Result<Vec<(Subject, Wrapped)>, KeyStoreError>>;

    /// Keeps keys whatever others of the same subjects there are, so that they outlast a power cut when this returns.
    /// For keys that are brought together again.
    fn add(&self, keys: Vec<(Subject, Wrapped)>) -> BoxFuture<'_, Result<(), KeyStoreError>>;

    /// Destroys exactly this key: its bytes are overwritten where they were kept. One that is not there, or another, is
    /// left alone.
    fn destroy(&self, subject: Subject, wrapped: Wrapped) -> BoxFuture<'_, Result<(), KeyStoreError>>;
}

/// Wraps keys with a secret of the fleet, which every replica has, and names users with another.
pub struct Wrapper {
    cipher: Aes256Gcm,
    users: Zeroizing<[u8; 32]>,
}

impl Wrapper {
    /// From the secret that all replicas of the fleet share.
    pub fn new(secret: &[u8; 32]) -> Self {
        let derive = |purpose: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            Hkdf::<Sha256>::new(None, secret).expand(purpose, key.as_mut_slice()).expect("a valid length");
            key
        };
        let key = derive(b"flotilla subject keys v1");
        let cipher = Aes256Gcm::new_from_slice(key.as_slice()).expect("the key has 32 bytes");
        Self { cipher, users: derive(b"flotilla user ids v1") }
    }

    /// The subject that stands for a user's name.
    pub fn user(&self, name: &str) -> Subject {
        let mut hash = [0; 32];
        let prf = Hkdf::<Sha256>::new(None, self.users.as_slice());
        prf.expand(name.as_bytes(), &mut hash).expect("a valid length");
        control_core::subject::of_user(&hash)
    }

    /// Wraps a key.
    pub fn wrap(&self, subject: Subject, key: &SubjectKey) -> Wrapped {
        let nonce = random_id::<12>();
        let payload = Payload { msg: key.as_bytes(), aad: &aad(subject) };
        let sealed = self.cipher.encrypt(&Nonce::from(nonce), payload).expect("32 bytes are short enough");
        let mut wrapped = [0; WRAPPED_BYTES];
        wrapped[..12].copy_from_slice(&nonce);
        wrapped[12..].copy_from_slice(&sealed);
        wrapped
    }

    /// Unwraps a key; none if it was wrapped by another fleet, for another subject, or is damaged.
    pub fn unwrap(&self, subject: Subject, wrapped: &Wrapped) -> Option<SubjectKey> {
        let (nonce, sealed) = wrapped.split_first_chunk::<12>()?;
        let payload = Payload { msg: sealed, aad: &aad(subject) };
        let plain = Zeroizing::new(self.cipher.decrypt(&Nonce::from(*nonce), payload).ok()?);
        let key: [u8; 32] = plain.as_slice().try_into().ok()?;
        Some(SubjectKey::new(key))
    }
}

impl std::fmt::Debug for Wrapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wrapper(…)")
    }
}

fn aad(subject: Subject) -> Vec<u8> {
    [&b"flotilla wrapped subject key v1\0"[..], &subject.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::{AgentId, JobId};

    #[test]
    fn keys_are_unwrapped_by_their_fleet_alone() {
        let (ours, theirs) = (Wrapper::new(&[1; 32]), Wrapper::new(&[2; 32]));
        let (subject, key) = (Subject::Job(JobId([3; 16])), SubjectKey::new([9; 32]));
        let wrapped = ours.wrap(subject, &key);
        assert_eq!(ours.unwrap(subject, &wrapped), Some(key.clone()));
        assert!(theirs.unwrap(subject, &wrapped).is_none());
        assert!(ours.unwrap(Subject::Agent(AgentId([3; 16])), &wrapped).is_none());
        assert_ne!(ours.wrap(subject, &key), wrapped, "a fresh nonce");
        for at in 0..WRAPPED_BYTES {
            let mut changed = wrapped;
            changed[at] ^= 1;
            assert!(ours.unwrap(subject, &changed).is_none(), "byte {at}");
        }
        assert_eq!(ours.user("anna"), Wrapper::new(&[1; 32]).user("anna"));
        assert!(ours.user("anna") != ours.user("bert") && ours.user("anna") != theirs.user("anna"));
    }
}
