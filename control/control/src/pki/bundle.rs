//! The fleet's identity in one file, for a second replica of its control service.
//!
//! `FLRB` and a version byte 1, 32 bytes of salt, then `Bundle` in postcard under AES-256-GCM. The key comes from
//! a code of 160 random bits (HKDF-SHA256 with the salt), which is shown once when the bundle is made and travels by
//! another way than the file. The code is random, not chosen, so there is nothing to guess and no need to be slow.
//!
//! Every replica signs commands, credentials and certificates, so every replica has every key, the root key among
//! them; only the gateway's own key and certificate are made anew at each.

use std::fs;
use std::path::Path;
use std::time::Duration;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use data_encoding::BASE32_NOPAD;
use event_schema::{Timestamp, decode_exact, encode};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{AuditKeys, PkiError, files, name};

const MAGIC: &[u8; 5] = b"FLRB\x01";
const SALT_LEN: usize = 32;
const CODE_LEN: usize = 20;

/// Files of a keys folder, and bytes of one: far beyond what there is.
const FILES_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of a bundle.
const BUNDLE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a bundle cannot be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The keys cannot be read or written.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// It is no bundle.
    #[error("this file is no bundle for a replica, or one of a newer version")]
    NotABundle,
    /// The code is none.
    #[error("the code has 32 letters and digits (A to Z, 2 to 7), with or without dashes")]
    Code,
    /// Another code, or a damaged file.
    #[error(
        "the bundle does not open: the code is not the one that was shown with it, or the file is damaged"
    )]
    DoesNotOpen,
    /// Too late.
    #[error("the bundle was good until {0}: make another with `flotilla replica invite`")]
    Expired(Timestamp),
    /// The data folder belongs to somebody else.
    #[error(
        "the data folder has the keys of another fleet: choose an empty folder with --data. Nothing was changed"
    )]
    OtherFleet,
}

/// What a replica needs to be one.
#[derive(Serialize, Deserialize)]
struct Bundle {
    expires: Timestamp,
    /// Names and contents of the files in the keys folder.
    files: Vec<(String, Vec<u8>)>,
    /// The API's token: clients may ask any replica.
    api_token: Vec<u8>,
}

/// A bundle that was opened, or what there is instead.
pub struct Joined {
    /// The API's token to take over; none if the folder had these keys already.
    pub api_token: Option<Zeroizing<Vec<u8>>>,
}

/// Makes a bundle of the keys in `data`, good for `life`, and its code. Makes the audit keys if there are none yet, so
/// that all replicas have the same.
///
/// # Errors
/// If the keys are not there or cannot be read.
pub fn invite(
    data: &Path,
    api_token: &[u8],
    now: Timestamp,
    life: Duration,
) -> Result<(Vec<u8>, Zeroizing<String>), BundleError> {
    AuditKeys::open(data)?;
    let folder = data.join("keys");
    let io = |source| PkiError::Io { path: folder.clone(), source };
    let mut list = Vec::new();
    for entry in fs::read_dir(&folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if is_shared(&name) {
            list.push((name.clone(), files::read(&folder.join(&name))?));
        }
    }
    list.sort();
    let bundle = Bundle { expires: now.after(life), files: list, api_token: api_token.to_vec() };
    let plain = Zeroizing::new(encode(&bundle));
    bundle.files.into_iter().for_each(|(_, bytes)| drop(Zeroizing::new(bytes)));
    let (salt, random) = (files::random(), files::random());
    let code = Zeroizing::new(BASE32_NOPAD.encode(&random[..CODE_LEN]));
    let payload = Payload { msg: &plain, aad: MAGIC };
    let sealed = cipher(&random[..CODE_LEN], &*salt).encrypt(&Nonce::default(), payload);
    let sealed = sealed.map_err(|_| BundleError::NotABundle)?;
    let groups: Vec<&str> = (0..code.len() / 4).map(|n| &code[n * 4..n * 4 + 4]).collect();
    Ok(([&MAGIC[..], &salt[..], &sealed].concat(), Zeroizing::new(groups.join("-"))))
}

/// Opens a bundle and puts its keys into `data`, all or none. A folder that has them already is left as it is.
///
/// # Errors
/// If the bundle does not open, is too old, or the folder has other keys.
pub fn join(data: &Path, bundle: &Path, code: &str, now: Timestamp) -> Result<Joined, BundleError> {
    let failed = |path: &Path, source| PkiError::Io { path: path.to_owned(), source };
    if fs::metadata(bundle).map_err(|error| failed(bundle, error))?.len() > BUNDLE_BYTES_MAX {
        return Err(BundleError::NotABundle);
    }
    let bytes = fs::read(bundle).map_err(|error| failed(bundle, error))?;
    let Bundle { expires, files: list, api_token } = open(&bytes, code)?;
    let list: Vec<_> = list.into_iter().map(|(name, bytes)| (name, Zeroizing::new(bytes))).collect();
    let api_token = Zeroizing::new(api_token);
    let folder = data.join("keys");
    if folder.try_exists().map_err(|error| failed(&folder, error))? {
        let ours = files::read(&folder.join(name::ROOT))?;
        let same = list.iter().any(|(file, bytes)| file == name::ROOT && **bytes == ours);
        return if same { Ok(Joined { api_token: None }) } else { Err(BundleError::OtherFleet) };
    }
    if now > expires {
        return Err(BundleError::Expired(expires));
    }
    let beside = data.join("keys.new");
    match fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(&beside, error).into());
        }
        _ => files::make_folder(&beside)?,
    }
    for (name, bytes) in &list {
        files::write(&beside.join(name), bytes)?;
    }
    files::write_secret(&beside.join(name::GATEWAY), "gateway", &files::random())?;
    files::sync_folder(&beside)?;
    fs::rename(&beside, &folder).map_err(|error| failed(&folder, error))?;
    files::sync_folder(data)?;
    Ok(Joined { api_token: Some(api_token) })
}

fn open(bytes: &[u8], code: &str) -> Result<Bundle, BundleError> {
    let sealed = bytes.strip_prefix(MAGIC).ok_or(BundleError::NotABundle)?;
    let (salt, sealed) = sealed.split_at_checked(SALT_LEN).ok_or(BundleError::NotABundle)?;
    let letters: String = code.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
    let letters = Zeroizing::new(letters.to_ascii_uppercase());
    let code = Zeroizing::new(BASE32_NOPAD.decode(letters.as_bytes()).map_err(|_| BundleError::Code)?);
    if code.len() != CODE_LEN {
        return Err(BundleError::Code);
    }
    let payload = Payload { msg: sealed, aad: MAGIC };
    let plain = cipher(&code, salt).decrypt(&Nonce::default(), payload);
    let plain = Zeroizing::new(plain.map_err(|_| BundleError::DoesNotOpen)?);
    let bundle: Bundle = decode_exact("Bundle", &plain).map_err(|_| BundleError::NotABundle)?;
    let fits = |(name, bytes): &(String, Vec<u8>)| is_shared(name) && bytes.len() as u64 <= FILE_BYTES_MAX;
    if bundle.files.len() > FILES_MAX || !bundle.files.iter().all(fits) {
        return Err(BundleError::NotABundle);
    }
    Ok(bundle)
}

/// Whether a file of the keys folder is every replica's: a plain name, and not the gateway's own.
fn is_shared(name: &str) -> bool {
    let plain = !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || matches!(c, b'.' | b'-'));
    let finished = [".key", ".pem", ".bin", ".txt"].iter().any(|end| name.ends_with(end));
    plain && finished && !name.starts_with('.') && !name.starts_with("gateway.")
}

/// The key is used for one message (the salt is fresh), so a zero nonce is safe.
fn cipher(code: &[u8], salt: &[u8]) -> Aes256Gcm {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(salt), code)
        .expand(b"flotilla replica bundle v1", key.as_mut_slice())
        .expect("32 bytes are a valid length for HKDF-SHA256");
    Aes256Gcm::new_from_slice(key.as_slice()).expect("the key has 32 bytes")
}

/// The root public key in a data folder, for messages.
#[cfg(test)]
fn root_of(data: &Path) -> [u8; 32] {
    let root = files::read_secret(&data.join("keys").join(name::ROOT), "root").expect("a key");
    ed25519_dalek::SigningKey::from_bytes(&root).verifying_key().to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    const NOW: Timestamp = Timestamp(1_795_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn names() -> Vec<String> {
        vec!["localhost".into()]
    }

    #[test]
    fn a_replica_has_every_key_but_the_gateways() {
        let (first, second) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let one = Pki::open(first.path(), &names(), NOW).expect("founded");
        let (bytes, code) = invite(first.path(), b"token", NOW, DAY).expect("made");
        let bundle = first.path().join("bundle");
        fs::write(&bundle, &bytes).expect("written");
        assert!(!String::from_utf8_lossy(&bytes).contains("flotilla key"), "sealed");
        let joined = join(second.path(), &bundle, &code.to_lowercase(), NOW).expect("joined");
        assert_eq!(joined.api_token.as_deref().map(Vec::as_slice), Some(&b"token"[..]));
        let two = Pki::open(second.path(), &names(), NOW).expect("opens");
        assert_eq!(root_of(first.path()), root_of(second.path()));
        assert_eq!((one.root_key(), one.ca_fingerprint()), (two.root_key(), two.ca_fingerprint()));
        assert_eq!(one.command_key(), two.command_key());
        let run = event_schema::RunId([3; 16]);
        assert_eq!(one.run_secret(run).as_bytes(), two.run_secret(run).as_bytes());
        let gateway = |data: &Path| files::read(&data.join("keys").join(name::GATEWAY)).expect("there");
        assert_ne!(gateway(first.path()), gateway(second.path()));
        let audit = |data: &Path| AuditKeys::open(data).expect("opens").list().note().to_owned();
        assert_eq!(audit(first.path()), audit(second.path()));
        // Once more changes nothing, however late.
        let again = join(second.path(), &bundle, &code, NOW.after(DAY * 2)).expect("the same fleet");
        assert!(again.api_token.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused_and_changes_nothing() {
        let (first, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        Pki::open(first.path(), &names(), NOW).expect("founded");
        Pki::open(other.path(), &names(), NOW).expect("founded");
        let (bytes, code) = invite(first.path(), b"token", NOW, DAY).expect("made");
        let bundle = first.path().join("bundle");
        fs::write(&bundle, &bytes).expect("written");
        let empty = tempfile::tempdir().expect("a folder");
        let refused = |data: &Path, code: &str, now| match join(data, &bundle, code, now) {
            Ok(_) => panic!("taken"),
            Err(error) => error,
        };
        assert!(matches!(refused(other.path(), &code, NOW), BundleError::OtherFleet));
        assert!(matches!(refused(empty.path(), &code, NOW.after(DAY * 2)), BundleError::Expired(_)));
        assert!(matches!(refused(empty.path(), &"A".repeat(32), NOW), BundleError::DoesNotOpen));
        for bad in ["", "AAAA", &"1".repeat(32), &code[1..]] {
            assert!(matches!(refused(empty.path(), bad, NOW), BundleError::Code), "{bad}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(open(&flipped, &code).is_err(), "byte {at}");
        }
        for cut in 0..bytes.len() {
            assert!(open(&bytes[..cut], &code).is_err(), "{cut} bytes");
        }
        assert!(fs::read_dir(empty.path()).expect("there").next().is_none(), "nothing was written");
        for name in ["", "../root.key", "gateway.key", ".key", "a/b.key", "root.key.new", "lock"] {
            assert!(!is_shared(name), "{name}");
        }
    }
}
