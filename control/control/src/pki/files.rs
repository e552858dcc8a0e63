//! Key files: one line of text with a checksum, so that a torn or edited file is told apart from a key.
//!
//! `flotilla key v1 <purpose> <64 hex digits> <16 hex digits>`; the last field is the beginning of
//! SHA-256 over purpose and key. Files are 0600, written beside and renamed, synced with their folder.

use std::fs;
use std::io;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::PkiError;
use crate::private_file;

const HEADER: &str = "flotilla key v1";

/// A secret of 32 bytes, wiped when dropped.
pub(super) type Secret = Zeroizing<[u8; 32]>;

/// 32 bytes from the system's generator.
pub(super) fn random() -> Secret {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).expect("the system has randomness");
    bytes
}

/// Writes a secret under its purpose.
pub(super) fn write_secret(path: &Path, purpose: &str, secret: &Secret) -> Result<(), PkiError> {
    let hex = Zeroizing::new(HEXLOWER.encode(secret.as_slice()));
    let line = Zeroizing::new(format!("{HEADER} {purpose} {} {}\n", *hex, check(purpose, secret)));
    write(path, line.as_bytes())
}

/// Reads a secret and checks that it is whole and meant for this purpose.
pub(super) fn read_secret(path: &Path, purpose: &str) -> Result<Secret, PkiError> {
    let text = Zeroizing::new(read(path)?);
    let damaged = |what| PkiError::Damaged { path: path.to_owned(), what };
    let text = std::str::from_utf8(&text).map_err(|_| damaged("it is not text"))?;
    let line = text.strip_suffix('\n').ok_or(damaged("it is cut short"))?;
    let fields = line.strip_prefix(HEADER).ok_or(damaged("it is no key file of version 1"))?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let [found, hex, sum] = fields[..] else {
        return Err(damaged("it is cut short"));
    };
    if found != purpose {
        return Err(damaged("it holds a key for another purpose"));
    }
    let mut secret = Zeroizing::new([0; 32]);
    let bytes = Zeroizing::new(HEXLOWER.decode(hex.as_bytes()).map_err(|_| damaged("its key is no hex"))?);
    if bytes.len() != secret.len() {
        return Err(damaged("its key is cut short"));
    }
    secret.copy_from_slice(&bytes);
    if sum == check(purpose, &secret) { Ok(secret) } else { Err(damaged("its checksum does not match")) }
}

fn check(purpose: &str, secret: &Secret) -> String {
    let hash = Sha256::new()
        .chain_update(b"flotilla key file v1\0")
        .chain_update(purpose.as_bytes())
        .chain_update([0])
        .chain_update(secret.as_slice())
        .finalize();
    HEXLOWER.encode(&hash[..8])
}

/// The whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PkiError::Missing { path: path.to_owned() },
        _ => PkiError::Io { path: path.to_owned(), source },
    })
}

/// Replaces the file in one step.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    private_file::write(path, bytes).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

/// Makes a folder that only its owner can enter.
pub(super) fn make_folder(path: &Path) -> Result<(), PkiError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

/// Makes renames in a folder last.
pub(super) fn sync_folder(path: &Path) -> Result<(), PkiError> {
    private_file::sync_folder(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}
