//! The keys of the audit tree (`events/AUDIT_FORMAT.md` §3): one that signs checkpoints and nothing else, and the
//! list that names it, signed by the root key.
//!
//! They are made when history is first sealed, so that fleets founded before have them too.

use std::path::Path;

use ed25519_dalek::SigningKey;
use event_audit::keys::{KeyList, origin_of};
use event_audit::note::NoteSigner;

use super::{PkiError, files, name};

/// Signs checkpoints.
const CHECKPOINT: &str = "checkpoint.key";

/// The signed list of keys.
const LIST: &str = "audit-keys.txt";

/// What a log is sealed and exported with.
#[derive(Debug)]
pub struct AuditKeys {
    signer: NoteSigner,
    list: KeyList,
}

impl AuditKeys {
    /// Opens the keys in `data/keys`, which has to be there; makes those that are missing the first time.
    ///
    /// # Errors
    /// If a file is missing, damaged or cannot be read or written.
    pub fn open(data: &Path) -> Result<Self, PkiError> {
        let folder = data.join("keys");
        let root = SigningKey::from_bytes(&*files::read_secret(&folder.join(name::ROOT), "root")?);
        let (key_path, list_path) = (folder.join(CHECKPOINT), folder.join(LIST));
        let damaged = |what| PkiError::Damaged { path: list_path.clone(), what };
        let there =
            |path: &Path| path.try_exists().map_err(|source| PkiError::Io { path: path.to_owned(), source });
        let has_list = there(&list_path)?;
        // The list is written last: where it is, the key has been.
        if !has_list && !there(&key_path)? {
            files::write_secret(&key_path, "checkpoint", &files::random())?;
        }
        let key = SigningKey::from_bytes(&*files::read_secret(&key_path, "checkpoint")?);
        let public_key = key.verifying_key().to_bytes();
        let list = if has_list {
            KeyList::open(&files::read(&list_path)?)
                .map_err(|_| damaged("it is not signed by the root key"))?
        } else {
            let list = KeyList::sign(&root, &[public_key]).map_err(|_| damaged("it cannot be made"))?;
            files::write(&list_path, list.note().as_bytes())?;
            list
        };
        let own = list.log_keys().first().is_some_and(|first| *first.public_key() == public_key);
        if !own || list.origin() != origin_of(root.verifying_key().as_bytes()) {
            return Err(damaged("it does not name the keys beside it"));
        }
        let signer = NoteSigner::new(list.origin(), key).map_err(|_| damaged("its origin is no name"))?;
        Ok(Self { signer, list })
    }

    /// Signs checkpoints.
    pub fn signer(&self) -> &NoteSigner {
        &self.signer
    }

    /// The signed list, for exports.
    pub fn list(&self) -> &KeyList {
        &self.list
    }
}
