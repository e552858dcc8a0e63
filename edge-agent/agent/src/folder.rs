//! The agent's data folder: one process at a time, a secret identity.
//!
//! `lock` is held while the agent runs; `identity.key` is the Ed25519 seed; `state.redb` belongs to
//! `store.rs`; `status.sock` to `status.rs`; `witness` to `witness.rs`.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("another flotilla-agent runs on {}; stop it, or give this one a folder of its own with --data", .0.display())]
    Taken(PathBuf),
    #[error("the identity {} is damaged ({what}); restore it from a backup, or move the data folder away and enrol anew", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error(
        "the identity {} is gone, but this agent is enrolled; restore it from a backup, or move the data folder away and enrol anew",
        .0.display()
    )]
    Gone(PathBuf),
}

/// The folder, locked.
pub(crate) struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder (0700) if need be and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        let io = |source| FolderError::Io { path: path.to_owned(), source };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path).map_err(io)?;
        let path = fs::canonicalize(path).map_err(io)?;
        let lock = private().write(true).create(true).truncate(false).open(path.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::Taken(path)),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The agent's key; made on the first start, when nothing is `enrolled` yet.
    pub(crate) fn identity(&self, enrolled: bool) -> Result<SigningKey, FolderError> {
        let path = self.path.join("identity.key");
        match fs::read(&path).map(Zeroizing::new) {
            Ok(bytes) => parse(&bytes).map_err(|what| FolderError::Damaged { path, what }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && enrolled => Err(FolderError::Gone(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut seed = Zeroizing::new([0; 32]);
                getrandom::fill(seed.as_mut_slice()).expect("the system has randomness");
                let key = SigningKey::from_bytes(&seed);
                let line =
                    Zeroizing::new(format!("{HEADER}{} {}\n", hex(key.as_bytes()), check(key.as_bytes())));
                write_private(&path, line.as_bytes()).map_err(|source| FolderError::Io { path, source })?;
                Ok(key)
            }
            Err(source) => Err(FolderError::Io { path, source }),
        }
    }
}

const HEADER: &str = "flotilla identity v1 ";

fn parse(bytes: &[u8]) -> Result<SigningKey, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let line = text.strip_suffix('\n').ok_or("it is cut short")?;
    let fields = line.strip_prefix(HEADER).ok_or("it is no identity of version 1")?;
    let (digits, sum) = fields.split_once(' ').ok_or("it is cut short")?;
    let mut seed = Zeroizing::new([0; 32]);
    if digits.len() != 64 || !digits.is_ascii() {
        return Err("its key is cut short");
    }
    for (i, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| "its key is no hex")?;
    }
    if check(&seed) == sum { Ok(SigningKey::from_bytes(&seed)) } else { Err("its checksum does not match") }
}

fn check(seed: &[u8; 32]) -> String {
    hex(&Sha256::new().chain_update(b"flotilla identity v1\0").chain_update(seed).finalize()[..8])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn private() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.read(true);
    options
}

/// Writes a file that only we can read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut file = private().write(true).create(true).truncate(true).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_made_once_and_told_from_damage() {
        let data = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::open(data.path()).expect("opened");
        let key = folder.identity(false).expect("made");
        assert_eq!(folder.identity(true).expect("read").to_bytes(), key.to_bytes());
        let path = folder.path().join("identity.key");
        let whole = fs::read(&path).expect("there");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("written");
            assert!(matches!(folder.identity(false), Err(FolderError::Damaged { .. })), "cut at {cut}");
            let mut flipped = whole.clone();
            flipped[cut] ^= 1;
            fs::write(&path, &flipped).expect("written");
            assert!(matches!(folder.identity(false), Err(FolderError::Damaged { .. })), "flipped at {cut}");
        }
        fs::remove_file(&path).expect("removed");
        assert!(matches!(folder.identity(true), Err(FolderError::Gone(_))));
    }

    #[test]
    fn one_process_at_a_time() {
        let data = tempfile::tempdir().expect("a folder");
        let first = DataFolder::open(data.path()).expect("opened");
        let second = DataFolder::open(data.path());
        assert!(matches!(second, Err(FolderError::Taken(_))));
        drop(first);
        DataFolder::open(data.path()).expect("free again");
    }
}
