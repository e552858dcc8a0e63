//! `--state FILE`: what `utp2 send` keeps from one run to the next, so that it comes back to a receiver in one round
//! trip and begins at the rate the path sustained. The file lets whoever reads it do the same, so it is private.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::{fs, io};

use anyhow::Context;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use utp2::Resumption;

/// Receivers kept in one file.
const MAX: usize = 64;

#[derive(Default, Serialize, Deserialize)]
struct State {
    /// By address; the bytes of the resumption in base64.
    peers: BTreeMap<SocketAddr, String>,
}

fn read(path: &Path) -> anyhow::Result<State> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no state file of utp2; delete it to begin anew", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read the state file {}", path.display())),
    }
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
    write(path, &serde_json::to_vec_pretty(&state)?)
        .with_context(|| format!("cannot write the state file {}", path.display()))
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
    fn a_state_file_is_private_begins_empty_and_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let remote = "192.0.2.1:4433".parse().unwrap();
        assert!(load(&path, remote).unwrap().is_none());
        write(&path, br#"{"peers":{"192.0.2.1:4433":"bm9uc2Vuc2U="}}"#).unwrap();
        assert!(load(&path, remote).unwrap().is_none(), "nonsense is nothing");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        fs::write(&path, "not json").unwrap();
        assert!(load(&path, remote).is_err());
    }
}
