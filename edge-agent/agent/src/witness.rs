//! The agent as a witness: it remembers what the service has promised about its history (`edge-agent/PROTOCOL.md` §2.8).
//!
//! Its folder, `witness` in the data folder: `checkpoint` and `keys`, each a signed note as it came, each replaced in one
//! step and on disk before anything is answered; `evidence/` for histories that do not go together. Whoever may read the
//! data folder can copy these files; they hold no secret.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_proto::limits::{ADVANCE_MAX, CHECKPOINT_NOTE_MAX, REFUSAL_LEN_MAX};
use agent_proto::link::{CheckpointSent, Holds};
use event_audit::keys::{KeyList, origin_of};
use event_audit::witness::{Held, Receipt, Taken};
use event_audit::{Head, SignedCheckpoint};
use serde_json::{Value, json};

use crate::folder::write_private;

/// Pairs of histories kept as evidence: the first ones are those that matter.
const EVIDENCE_MAX: usize = 16;

/// The newest checkpoint in an agent's data folder.
pub(crate) fn checkpoint_path(data: &Path) -> PathBuf {
    data.join("witness/checkpoint")
}

/// What came of a checkpoint that was shown.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What to answer.
    pub(crate) answer: Holds,
    /// Anybody might have made what was shown.
    pub(crate) is_nonsense: bool,
}

/// What the agent holds.
pub(crate) struct Witness {
    folder: PathBuf,
    origin: String,
    keys: Option<KeyList>,
    held: Held,
    conflicts: u64,
    last_refusal: Option<String>,
}

impl Witness {
    /// Opens what is kept in the data folder of an agent whose fleet has this root key. What cannot be read or is signed
    /// by nobody any more is set aside, and said: from then on the agent can only witness anew.
    pub(crate) fn open(data: &Path, root_key: &[u8; 32]) -> Self {
        let folder = data.join("witness");
        let origin = origin_of(root_key);
        let keys = read(&folder.join("keys")).and_then(|note| own_keys(&note, &origin));
        let held = match (read(&folder.join("checkpoint")), &keys) {
            (Some(note), Some(keys)) => SignedCheckpoint::open(&note, &origin, keys.log_keys()).ok(),
            _ => None,
        };
        let path = folder.join("checkpoint");
        if held.is_none() && path.exists() {
            let aside = folder.join("checkpoint.unreadable");
            tracing::error!(
                path = %path.display(), aside = %aside.display(),
                "the checkpoint that this agent held cannot be verified any more; it is set aside"
            );
            // If it cannot be moved it is replaced with the next one.
            let _ = fs::rename(&path, aside);
        }
        let conflicts = evidence_of(&folder).len() as u64;
        Self { folder, origin, keys, held: Held::new(held), conflicts, last_refusal: None }
    }

    /// What it says behind its hello.
    pub(crate) fn holds(&self) -> Holds {
        Holds { checkpoint: self.held.newest().map(|held| held.note().to_owned()), refused: None }
    }

    /// For the status.
    pub(crate) fn status(&self) -> Value {
        let head = self.held.newest().map(SignedCheckpoint::head);
        json!({
            "size": head.map(|head| head.size),
            "root": head.map(|head| head.root.to_string()),
            "conflicts": self.conflicts,
            "last_refusal": self.last_refusal,
        })
    }

    /// Considers a checkpoint; when this returns, what is held is on disk.
    pub(crate) fn consider(&mut self, sent: &CheckpointSent) -> Outcome {
        let (refused, is_nonsense) = match self.take(sent) {
            Ok(()) => (None, false),
            Err((why, is_nonsense)) => (Some(why), is_nonsense),
        };
        if refused.is_some() {
            self.last_refusal.clone_from(&refused);
        }
        Outcome { answer: Holds { refused, ..self.holds() }, is_nonsense }
    }

    /// An error: why it is refused, and whether anybody might have made it.
    fn take(&mut self, sent: &CheckpointSent) -> Result<(), (String, bool)> {
        let nonsense = |why: String| (short(why), true);
        let long = sent.advance.len() > ADVANCE_MAX
            || sent.keys.as_ref().is_some_and(|keys| keys.len() > CHECKPOINT_NOTE_MAX);
        if long {
            return Err(nonsense("it is beyond its limits".into()));
        }
        if let Some(note) = &sent.keys {
            self.take_keys(note)?;
        }
        let keys = self.keys.as_ref().ok_or_else(|| nonsense("no list of keys came with it".into()))?;
        let mut held = self.held.clone();
        match held.receive(sent.advance.as_bytes(), &self.origin, keys.log_keys()) {
            Receipt::Taken(Taken::Same) => Ok(()),
            Receipt::Taken(taken) => {
                let newest = held.newest().expect("it was taken");
                if newest.note().len() > CHECKPOINT_NOTE_MAX {
                    return Err(nonsense("it is beyond its limits".into()));
                }
                self.store("checkpoint", newest.note())
                    .map_err(|error| (short(format!("it cannot be stored: {error}")), false))?;
                tracing::debug!(head = %newest.head(), first = taken == Taken::First, "witnessed the log");
                self.held = held;
                Ok(())
            }
            Receipt::Conflict { shown, why } => {
                tracing::error!(
                    %why, "ALARM: the control service showed a history that is not the one it showed before"
                );
                self.keep_evidence(&shown);
                Err((short(why.to_string()), false))
            }
            Receipt::Malformed(error) => Err(nonsense(error.to_string())),
            Receipt::Unsigned(error) => Err(nonsense(error.to_string())),
        }
    }

    fn take_keys(&mut self, note: &str) -> Result<(), (String, bool)> {
        if self.keys.as_ref().is_some_and(|keys| keys.note() == note) {
            return Ok(());
        }
        let keys = own_keys(note.as_bytes(), &self.origin).ok_or_else(|| {
            ("its list of keys is not signed by the root key that this agent pinned".to_owned(), true)
        })?;
        // What is held has to stay readable with the list that is kept, or a restart would forget it.
        let still = self.held.newest().is_none_or(|held| {
            SignedCheckpoint::open(held.note().as_bytes(), &self.origin, keys.log_keys()).is_ok()
        });
        // First on disk: what is held must not be forgotten for a list that is not kept.
        self.store("keys", note).map_err(|error| (short(format!("it cannot be stored: {error}")), false))?;
        if !still {
            tracing::warn!(
                "the key that signed the checkpoint this agent held was taken back by the root key; it is forgotten"
            );
            self.held = Held::default();
        }
        self.keys = Some(keys);
        Ok(())
    }

    fn store(&self, name: &str, note: &str) -> io::Result<()> {
        make_folder(&self.folder)?;
        write_private(&self.folder.join(name), note.as_bytes())
    }

    /// Keeps both notes, if this pair is new and there is room.
    fn keep_evidence(&mut self, shown: &SignedCheckpoint) {
        let Some(held) = self.held.newest() else { return };
        let name = format!("{}-{}", named(held.head()), named(shown.head()));
        let kept = evidence_of(&self.folder);
        if kept.contains(&name) {
            return;
        }
        self.conflicts += 1;
        if kept.len() >= EVIDENCE_MAX {
            return;
        }
        let folder = self.folder.join("evidence").join(name);
        let stored = make_folder(&folder).and_then(|()| {
            write_private(&folder.join("held"), held.note().as_bytes())?;
            write_private(&folder.join("shown"), shown.note().as_bytes())
        });
        match stored {
            Ok(()) => tracing::error!(evidence = %folder.display(), "both signed checkpoints are kept"),
            Err(error) => {
                tracing::error!(%error, folder = %folder.display(), "the evidence cannot be stored")
            }
        }
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Size and the beginning of the root: names a head well enough for a folder.
fn named(head: &Head) -> String {
    let root: String = head.root.0[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{root}", head.size)
}

/// Names of the pairs kept.
fn evidence_of(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join("evidence")) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A list of keys of the log `origin`, which commits to the root key.
fn own_keys(note: &[u8], origin: &str) -> Option<KeyList> {
    KeyList::open(note).ok().filter(|keys| keys.origin() == origin)
}

/// A note's file, unless it is not there or longer than any.
fn read(path: &Path) -> Option<Vec<u8>> {
    let len = fs::metadata(path).ok()?.len();
    (len <= CHECKPOINT_NOTE_MAX as u64).then(|| fs::read(path).ok()).flatten()
}

/// One line that fits into an answer.
fn short(why: String) -> String {
    let line = why.replace(char::is_control, " ");
    let mut end = line.len().min(REFUSAL_LEN_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use event_audit::Hash;
    use event_audit::frontier::Frontier;
    use event_audit::message::Advance;
    use event_audit::note::NoteSigner;
    use event_audit::proof::{Subtrees, prove_consistency};

    /// A fleet and a history of it, all in memory.
    struct Service {
        root: SigningKey,
        log: SigningKey,
        leaves: Vec<Hash>,
    }

    impl Service {
        fn new(history: &str, size: u8) -> Self {
            let leaves = (0..size).map(|n| Hash::leaf(format!("{history} {n}").as_bytes())).collect();
            Self { root: SigningKey::from_bytes(&[1; 32]), log: SigningKey::from_bytes(&[2; 32]), leaves }
        }

        fn root_key(&self) -> [u8; 32] {
            self.root.verifying_key().to_bytes()
        }

        fn keys(&self) -> KeyList {
            KeyList::sign(&self.root, &[self.log.verifying_key().to_bytes()]).expect("a list")
        }

        fn sent(&self, old: u64) -> CheckpointSent {
            let mut tree = Frontier::new();
            self.leaves.iter().for_each(|leaf| tree.push(*leaf));
            let signer = NoteSigner::new(self.keys().origin(), self.log.clone()).expect("a name");
            let checkpoint = SignedCheckpoint::sign(tree.head(), &signer).expect("signed");
            let proof = prove_consistency(self, old, self.leaves.len() as u64)
                .expect("in memory")
                .unwrap_or_default();
            let advance = Advance { old_size: old, proof, checkpoint: checkpoint.note().to_owned() };
            CheckpointSent { keys: Some(self.keys().note().to_owned()), advance: advance.to_text() }
        }
    }

    impl Subtrees for Service {
        type Error = std::convert::Infallible;

        fn subtree(&self, height: u32, index: u64) -> Result<Hash, Self::Error> {
            let first = (index << height) as usize;
            Ok(Hash::over(&self.leaves[first..first + (1 << height)]))
        }
    }

    fn size(witness: &Witness) -> Option<u64> {
        witness.held.newest().map(|held| held.head().size)
    }

    #[test]
    fn what_is_held_is_not_forgotten_for_a_list_that_cannot_be_kept() {
        let data = tempfile::tempdir().expect("a folder");
        let service = Service::new("a", 5);
        let mut witness = Witness::open(data.path(), &service.root_key());
        assert_eq!(witness.consider(&service.sent(0)).answer.refused, None);
        // A folder stands where the list would go.
        let keys = data.path().join("witness").join("keys");
        fs::remove_file(&keys).expect("there");
        fs::create_dir_all(keys.join("full")).expect("made");
        let rotated = Service { log: SigningKey::from_bytes(&[9; 32]), ..Service::new("b", 3) };
        assert!(witness.consider(&rotated.sent(0)).answer.refused.is_some());
        assert_eq!(size(&witness), Some(5));
    }

    #[test]
    fn what_is_held_outlives_the_agent_and_never_goes_back() {
        let data = tempfile::tempdir().expect("a folder");
        let (short, long) = (Service::new("a", 5), Service::new("a", 9));
        let open = || Witness::open(data.path(), &short.root_key());
        let mut witness = open();
        assert_eq!(witness.holds(), Holds { checkpoint: None, refused: None });
        assert_eq!(witness.consider(&short.sent(0)).answer.refused, None);
        let mut witness = open();
        assert_eq!(size(&witness), Some(5));
        let kept = fs::read_to_string(checkpoint_path(data.path())).expect("kept");
        assert_eq!(witness.holds().checkpoint, Some(kept));
        assert_eq!(witness.consider(&long.sent(5)).answer.refused, None);
        assert_eq!(size(&open()), Some(9));

        // Backwards, forked, and a longer other history: refused, and both notes kept.
        let mut witness = open();
        for (other, old) in [(&short, 0), (&Service::new("b", 9), 9), (&Service::new("b", 12), 9)] {
            let outcome = witness.consider(&other.sent(old));
            let why = outcome.answer.refused.expect("refused");
            assert!(why.contains("size 9") && !outcome.is_nonsense, "{why}");
            assert_eq!(outcome.answer.checkpoint, open().holds().checkpoint);
        }
        assert_eq!((size(&open()), open().conflicts), (Some(9), 3));
        let evidence = evidence_of(&data.path().join("witness"));
        for name in &evidence {
            let folder = data.path().join("witness/evidence").join(name);
            let keys = short.keys();
            for note in ["held", "shown"] {
                let note = fs::read(folder.join(note)).expect("kept");
                SignedCheckpoint::open(&note, keys.origin(), keys.log_keys()).expect("signed by the log");
            }
        }
        // The same again is nothing new, and there is an end to it.
        witness.consider(&short.sent(0));
        assert_eq!(evidence_of(&data.path().join("witness")).len(), 3);
        for n in 0..30 {
            witness.consider(&Service::new(&format!("c{n}"), 9).sent(9));
        }
        assert_eq!(evidence_of(&data.path().join("witness")).len(), EVIDENCE_MAX);
        assert_eq!(witness.status()["conflicts"], 33);
    }

    #[test]
    fn what_anybody_can_make_is_neither_taken_nor_evidence() {
        let data = tempfile::tempdir().expect("a folder");
        let service = Service::new("a", 5);
        let stranger = Service { root: SigningKey::from_bytes(&[7; 32]), ..Service::new("a", 5) };
        let thief = Service { log: SigningKey::from_bytes(&[8; 32]), ..Service::new("a", 5) };
        let mut witness = Witness::open(data.path(), &service.root_key());
        let good = service.sent(0);
        let cases = [
            stranger.sent(0),
            CheckpointSent { keys: None, ..good.clone() },
            CheckpointSent { advance: thief.sent(0).advance, ..good.clone() },
            CheckpointSent { advance: "old 0".into(), ..good.clone() },
            CheckpointSent { advance: "x".repeat(ADVANCE_MAX + 1), ..good.clone() },
            CheckpointSent { keys: Some("x".repeat(CHECKPOINT_NOTE_MAX + 1)), ..good.clone() },
        ];
        for case in cases {
            let outcome = witness.consider(&case);
            assert!(outcome.is_nonsense && outcome.answer.refused.is_some(), "{case:?}");
            assert_eq!(outcome.answer.checkpoint, None);
        }
        assert!(evidence_of(&data.path().join("witness")).is_empty());
        assert!(witness.consider(&good).answer.refused.is_none());
        // A list that the root key signed anew, without the old key: what only that has signed counts no more.
        assert_eq!(witness.consider(&thief.sent(0)).answer.refused, None);
        assert_eq!(size(&Witness::open(data.path(), &service.root_key())), Some(5));
        // Garbage on disk is set aside, not passed over in silence.
        fs::write(checkpoint_path(data.path()), b"nonsense").expect("written");
        assert_eq!(size(&Witness::open(data.path(), &service.root_key())), None);
        assert!(data.path().join("witness/checkpoint.unreadable").exists());
    }

    #[test]
    fn a_checkpoint_that_cannot_be_stored_is_not_held() {
        let data = tempfile::tempdir().expect("a folder");
        let service = Service::new("a", 5);
        let mut witness = Witness::open(data.path(), &service.root_key());
        fs::write(data.path().join("witness"), b"a file where the folder should be").expect("written");
        let outcome = witness.consider(&service.sent(0));
        assert!(outcome.answer.refused.expect("refused").contains("cannot be stored"));
        assert_eq!((outcome.answer.checkpoint, outcome.is_nonsense), (None, false));
    }
}
