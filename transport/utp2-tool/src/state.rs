//! `--state FILE`: what is kept from one run to the next. `utp2 send` comes back to a receiver in one round trip and
//! begins at the rate the path sustained; `utp2 recv` stays who it was, and so lets it. Both have the same key each time,
//! which the other side may ask for. The files let whoever reads them do the same, so they are private.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, bail};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use utp2::Resumption;

use crate::{place, random};

/// Receivers kept in one file.
const MAX: usize = 64;

#[derive(Default, Serialize, Deserialize)]
struct State {
    /// By address; the bytes of the resumption in base64.
    peers: BTreeMap<SocketAddr, String>,
    /// Who the sender is: base64 of 32 bytes. Files of older releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
}

/// The longest state file: 64 receivers take a tenth of it.
const LEN_MAX: u64 = 1 << 20;

/// Opens a state file that nobody else may read from now on.
fn open_private(path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
    let file = place::open_regular(path, options)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = file.metadata()?;
        if metadata.permissions().mode() & 0o077 != 0 {
            // Fails if it is somebody else's, who knows what is in it.
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            if metadata.len() > 0 {
                let path = path.display();
                eprintln!(
                    "utp2: other users could use the state file {path} until now; delete it if they did"
                );
            }
        }
    }
    Ok(file)
}

fn read_all(file: &fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LEN_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LEN_MAX {
        return Err(io::Error::other("it is too long"));
    }
    Ok(bytes)
}

fn read(path: &Path) -> anyhow::Result<State> {
    let read = open_private(path, fs::OpenOptions::new().read(true)).and_then(|file| read_all(&file));
    match read {
        // Made for us beforehand.
        Ok(bytes) if bytes.is_empty() => Ok(State::default()),
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| not_a_senders(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read the state file {}", path.display())),
    }
}

fn not_a_senders(path: &Path) -> String {
    format!("{} is no state file of utp2 send; name another one, or delete it to begin anew", path.display())
}

fn bytes_of(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Who the sender is. Made, and written down at once, if the file has nobody yet.
pub(crate) fn identity(path: &Path) -> anyhow::Result<[u8; 32]> {
    let mut state = read(path)?;
    if let Some(text) = &state.identity {
        return bytes_of(text).with_context(|| not_a_senders(path));
    }
    let made = random()?;
    state.identity = Some(BASE64.encode(&made));
    replace(path, &state)?;
    Ok(made)
}

/// What is remembered of a receiver.
pub(crate) fn load(path: &Path, remote: SocketAddr) -> anyhow::Result<Option<Resumption>> {
    let state = read(path)?;
    let bytes = state.peers.get(&remote).and_then(|text| BASE64.decode(text.as_bytes()).ok());
    Ok(bytes.and_then(|b| Resumption::from_bytes(&b)))
}

/// Remembers a receiver.
pub(crate) fn save(path: &Path, remote: SocketAddr, resumption: &Resumption) -> anyhow::Result<()> {
    let mut state = read(path)?;
    if !state.peers.contains_key(&remote) && state.peers.len() >= MAX {
        state.peers.pop_first();
    }
    state.peers.insert(remote, BASE64.encode(&resumption.to_bytes()));
    replace(path, &state)
}

/// Forgets a receiver: what was remembered of it was used, and it gave nothing new.
pub(crate) fn forget(path: &Path, remote: SocketAddr) -> anyhow::Result<()> {
    let mut state = read(path)?;
    if state.peers.remove(&remote).is_some() {
        replace(path, &state)?;
    }
    Ok(())
}

fn replace(path: &Path, state: &State) -> anyhow::Result<()> {
    write(path, &serde_json::to_vec_pretty(state)?)
        .with_context(|| format!("cannot write the state file {}", path.display()))
}

/// What a receiver keeps: who it is, and what its tickets are made from. Nobody else uses it as long as this lives,
/// for two endpoints of one lasting secret could be played against each other (PROTOCOL.md §11).
pub(crate) struct Kept {
    pub(crate) identity: [u8; 32],
    pub(crate) secret: [u8; 32],
    _lock: fs::File,
}

#[derive(Serialize, Deserialize)]
struct KeptFile {
    /// Base64 of 32 bytes each.
    identity: String,
    secret: String,
}

impl Kept {
    /// Opens the file, or makes it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("cannot use the state file {}", path.display());
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = open_private(path, &mut options).with_context(what)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                bail!("another receiver uses the state file {}", path.display())
            }
            Err(fs::TryLockError::Error(error)) => return Err(error).with_context(what),
        }
        let text = read_all(&file).with_context(what)?;
        if text.is_empty() {
            let (identity, secret) = (random()?, random()?);
            let made = KeptFile { identity: BASE64.encode(&identity), secret: BASE64.encode(&secret) };
            // Written where it is, not replaced: the lock is on this file.
            file.write_all(&serde_json::to_vec_pretty(&made)?)
                .and_then(|()| file.sync_all())
                .with_context(what)?;
            return Ok(Self { identity, secret, _lock: file });
        }
        let kept = serde_json::from_slice(&text).ok();
        let kept = kept.and_then(|k: KeptFile| Some((bytes_of(&k.identity)?, bytes_of(&k.secret)?)));
        let Some((identity, secret)) = kept else {
            bail!(
                "{} is no state file of utp2 recv; name another one, or delete it to begin anew",
                path.display()
            );
        };
        Ok(Self { identity, secret, _lock: file })
    }
}

/// Replaces the file as a whole; only its owner may read it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        drop(file);
        fs::rename(&new, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_stays_who_it_is_and_is_so_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let kept = Kept::open(&path).unwrap();
        let (identity, secret) = (kept.identity, kept.secret);
        assert!(identity != secret && Kept::open(&path).err().unwrap().to_string().contains("another"));
        drop(kept);
        let again = Kept::open(&path).unwrap();
        assert_eq!((again.identity, again.secret), (identity, secret));
        drop(again);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // A sender's.
        fs::write(&path, "{\"peers\":{}}").unwrap();
        assert!(Kept::open(&path).err().unwrap().to_string().contains("no state file"));
    }

    #[test]
    fn a_sender_stays_who_it_is_also_with_a_file_of_an_older_release() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let remote = "192.0.2.1:4433".parse().unwrap();
        write(&path, br#"{"peers":{"192.0.2.1:4433":"bm9uc2Vuc2U="}}"#).unwrap();
        let made = identity(&path).unwrap();
        assert!(read(&path).unwrap().peers.contains_key(&remote), "nothing is forgotten by it");
        forget(&path, remote).unwrap();
        assert_eq!(identity(&path).unwrap(), made);
        assert_ne!(identity(&dir.path().join("another")).unwrap(), made);
        // A receiver's is left alone.
        let its = dir.path().join("its");
        drop(Kept::open(&its).unwrap());
        let before = fs::read(&its).unwrap();
        let wrong = identity(&its).err().unwrap();
        assert!(format!("{wrong:#}").contains("no state file of utp2 send"), "{wrong:#}");
        assert_eq!(fs::read(&its).unwrap(), before);
        fs::write(&path, r#"{"peers":{},"identity":"short"}"#).unwrap();
        assert!(identity(&path).is_err());
    }

    #[test]
    fn a_state_file_is_private_begins_empty_and_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let remote = "192.0.2.1:4433".parse().unwrap();
        assert!(load(&path, remote).unwrap().is_none());
        write(&path, br#"{"peers":{"192.0.2.1:4433":"bm9uc2Vuc2U="}}"#).unwrap();
        assert!(load(&path, remote).unwrap().is_none(), "nonsense is nothing");
        forget(&path, remote).unwrap();
        forget(&path, remote).unwrap();
        assert!(read(&path).unwrap().peers.is_empty());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        fs::write(&path, "not json").unwrap();
        assert!(load(&path, remote).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_reads_a_state_file_that_was_there_and_links_are_not_followed() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let open_to_all = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            path
        };
        let remote = "192.0.2.1:4433".parse().unwrap();
        let (receiver, sender) = (open_to_all("receiver"), open_to_all("sender"));
        let identity = Kept::open(&receiver).unwrap().identity;
        assert_eq!(mode(&receiver), 0o600);
        // With something in it, too.
        fs::set_permissions(&receiver, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(Kept::open(&receiver).unwrap().identity, identity);
        assert_eq!(mode(&receiver), 0o600);
        assert!(load(&sender, remote).unwrap().is_none());
        assert_eq!(mode(&sender), 0o600);

        let (target, link) = (open_to_all("target"), dir.path().join("link"));
        symlink(&target, &link).unwrap();
        let wrong = Kept::open(&link).err().unwrap();
        assert!(format!("{wrong:#}").contains("a link"), "{wrong:#}");
        assert!(load(&link, remote).is_err());
        assert_eq!((mode(&target), fs::read(&target).unwrap()), (0o644, Vec::new()));
        symlink(dir.path().join("nowhere"), dir.path().join("dangling")).unwrap();
        assert!(Kept::open(&dir.path().join("dangling")).is_err());
        assert!(!dir.path().join("nowhere").exists());

        // Nobody will ever write to it.
        let pipe = dir.path().join("pipe");
        let (fifo, private) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, private, 0).unwrap();
        assert!(Kept::open(&pipe).is_err() && load(&pipe, remote).is_err());
    }
}
