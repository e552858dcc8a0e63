//! What an agent keeps of one run besides its content: `runs/<run>/` in the data folder.
//!
//! `manifest` (until it is whole, `manifest.part`) and `head` are written once and make a restart cheap; `record` holds what must not be said
//! or counted twice. The destination's resume journal lies beside them (`disk/journal.rs`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use event_schema::{RunAgentState, RunId, Signed, TransferStats, decode_exact, encode};
use serde::{Deserialize, Serialize};

use crate::disk::{HOLDS, HeldManifests, KEEPS, PART};

/// Version of the record's shape.
const VERSION: u8 = 1;

/// What is known about a run over restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u8,
    /// What was moved.
    pub(super) stats: TransferStats,
    /// Source: the signed manifest is reported.
    pub(super) manifest_reported: bool,
    /// How it ended here, once that is reported.
    pub(super) ended: Option<RunAgentState>,
}

/// A run's folder.
#[derive(Clone, Debug)]
pub(super) struct RunFolder(PathBuf);

impl RunFolder {
    /// Makes the folder if need be.
    pub(super) fn open(data: &Path, run: RunId) -> io::Result<Self> {
        let path = data.join("runs").join(run.to_string());
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether this agent is in another run too.
    pub(super) fn has_beside(&self, run: RunId) -> bool {
        self.0.with_file_name(run.to_string()).exists()
    }

    /// The record; a new one if there is none or it is damaged (it holds nothing that could not be
    /// told again).
    pub(super) fn record(&self) -> Record {
        let read = fs::read(self.0.join("record")).ok();
        let record = read.and_then(|bytes| decode_exact::<Record>("Record", &bytes).ok());
        record.filter(|r| r.version == VERSION).unwrap_or(Record { version: VERSION, ..Record::default() })
    }

    /// Replaces the record; `synced` if it must survive a power cut.
    pub(super) fn set_record(&self, record: &Record, synced: bool) -> io::Result<()> {
        self.replace("record", &encode(record), synced)
    }

    /// From now on what is replaced in this run is kept (`disk/staging/aside.rs`).
    pub(super) fn set_keeps(&self) -> io::Result<()> {
        self.replace(KEEPS, b"", true)
    }

    /// From now on nothing gets its name before a hook has seen it (`disk/staging/shown.rs`).
    pub(super) fn set_holds(&self) -> io::Result<()> {
        self.replace(HOLDS, b"", true)
    }

    /// The manifest and its signed head, if both were kept.
    pub(super) fn manifest(&self) -> Option<(Signed, File)> {
        let head = fs::read(self.0.join("head")).ok()?;
        Some((decode_exact("Signed", &head).ok()?, File::open(self.0.join("manifest")).ok()?))
    }

    /// The file in which a manifest comes together, empty.
    pub(super) fn manifest_part(&self) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).open(self.0.join(PART))
    }

    /// Keeps the manifest that came together, then its head: with the head there the manifest is whole.
    pub(super) fn keep_manifest(&self, head: &Signed) -> io::Result<()> {
        let part = self.0.join(PART);
        File::open(&part)?.sync_all()?;
        fs::rename(&part, self.0.join("manifest"))?;
        self.replace("head", &encode(head), true)
    }

    /// The run is over: what the next one has in common with its manifest need not be fetched.
    pub(super) fn hand_over_manifest(&self, held: &HeldManifests, place: &Path) {
        if self.manifest().is_some() {
            held.keep(place, &self.0.join("manifest"));
        }
    }

    /// Forgets the run.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, folder = %self.0.display(), "cannot remove a run's folder");
        }
    }

    /// Replaces a file of the folder, whole or not at all.
    pub(super) fn replace(&self, name: &str, bytes: &[u8], synced: bool) -> io::Result<()> {
        let (path, beside) = (self.0.join(name), self.0.join(format!("{name}.tmp")));
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        if synced {
            file.sync_all()?;
        }
        fs::rename(&beside, &path)?;
        if synced {
            File::open(&self.0)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_schema::Domain;
    use std::io::Read;

    #[test]
    fn what_is_kept_is_found_again_and_damage_is_seen() {
        let data = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::open(data.path(), RunId([1; 16])).expect("made");
        assert!(folder.manifest().is_none());
        let mut record = folder.record();
        record.stats.bytes_sent = 7;
        record.ended = Some(RunAgentState::Done);
        folder.set_record(&record, true).expect("written");
        let head = Signed::sign(Domain::Manifest, vec![1], &ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
        folder.manifest_part().expect("made").write_all(b"manifest").expect("written");
        assert!(folder.manifest().is_none(), "it may not be whole");
        folder.keep_manifest(&head).expect("kept");
        let again = RunFolder::open(data.path(), RunId([1; 16])).expect("there");
        assert_eq!(again.record(), record);
        let (kept, mut file) = again.manifest().expect("kept");
        let mut manifest = Vec::new();
        file.read_to_end(&mut manifest).expect("readable");
        assert_eq!((kept, manifest), (head, b"manifest".to_vec()));
        fs::write(again.path().join("record"), b"x").expect("written");
        assert_eq!(again.record().ended, None);
        again.remove();
        assert!(!again.path().exists());
    }
}
