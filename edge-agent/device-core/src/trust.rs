//! The keys that a device obeys and lets in, as its journal has them (DEVICE_FORMAT.md §3.2).

use agent_proto::TrustBundle;

use crate::codec::{Reader, Writing};
use crate::limits::KEYS_MAX;

/// Bytes of an encoded trust at most.
pub(crate) const TRUST_LEN_MAX: usize = 10 + 2 * KEYS_MAX * 32;

/// What a device keeps of a trust bundle. The CA's certificate is for TLS, which devices do not speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    pub(crate) version: u64,
    command_keys: Keys,
    credential_keys: Keys,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    keys: [[u8; 32]; KEYS_MAX],
    count: usize,
}

impl Keys {
    fn of(keys: &[[u8; 32]]) -> Option<Self> {
        let mut own = Self { count: keys.len(), ..Self::default() };
        own.keys.get_mut(..keys.len())?.copy_from_slice(keys);
        Some(own)
    }

    fn as_slice(&self) -> &[[u8; 32]] {
        &self.keys[..self.count]
    }
}

impl Trust {
    /// `None` if there are more keys than a device takes.
    pub(crate) fn of(bundle: &TrustBundle) -> Option<Self> {
        Some(Self {
            version: bundle.version,
            command_keys: Keys::of(&bundle.command_keys)?,
            credential_keys: Keys::of(&bundle.credential_keys)?,
        })
    }

    pub(crate) fn command_keys(&self) -> &[[u8; 32]] {
        self.command_keys.as_slice()
    }

    pub(crate) fn credential_keys(&self) -> &[[u8; 32]] {
        self.credential_keys.as_slice()
    }

    /// Writes it into the buffer; gives how much of that it took.
    pub(crate) fn encode(&self, into: &mut [u8; TRUST_LEN_MAX]) -> usize {
        let mut out = Writing::new(into);
        out.put(&self.version.to_le_bytes());
        out.put(&[self.command_keys.count as u8, self.credential_keys.count as u8]);
        for key in self.command_keys().iter().chain(self.credential_keys()) {
            out.put(key);
        }
        out.len()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let version = from.u64()?;
        let counts = [from.u8()?, from.u8()?];
        let mut both = [Keys::default(), Keys::default()];
        for (keys, count) in both.iter_mut().zip(counts) {
            keys.count = usize::from(count);
            for key in keys.keys.get_mut(..keys.count)? {
                *key = from.array()?;
            }
        }
        let [command_keys, credential_keys] = both;
        from.0.is_empty().then_some(Self { version, command_keys, credential_keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(version: u64, command in 0..=KEYS_MAX, credential in 0..=KEYS_MAX, byte: u8) {
            let trust = Trust {
                version,
                command_keys: Keys::of(&std::vec![[byte; 32]; command]).unwrap(),
                credential_keys: Keys::of(&std::vec![[!byte; 32]; credential]).unwrap(),
            };
            let mut buffer = [0; TRUST_LEN_MAX];
            let len = trust.encode(&mut buffer);
            prop_assert_eq!(Trust::decode(&buffer[..len]), Some(trust));
            for cut in 0..len {
                prop_assert_eq!(Trust::decode(&buffer[..cut]), None);
            }
        }
    }

    #[test]
    fn more_keys_than_fit_are_refused() {
        assert!(Keys::of(&[[0; 32]; KEYS_MAX + 1]).is_none());
        let mut hostile = [0; TRUST_LEN_MAX];
        hostile[8] = 255;
        assert_eq!(Trust::decode(&hostile), None);
    }
}
