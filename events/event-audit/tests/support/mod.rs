//! Logs made up for tests: entries, keys, a ledger in a folder of its own, and exports of it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::Path;

use ed25519_dalek::SigningKey;
use event_audit::SignedCheckpoint;
use event_audit::export::ExportWriter;
use event_audit::keys::KeyList;
use event_audit::ledger::Ledger;
use event_audit::note::NoteSigner;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// Random numbers of one seed.
pub(crate) fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// One below `end`.
pub(crate) fn below(random: &mut ChaCha8Rng, end: u64) -> u64 {
    random.next_u64() % end
}

/// Entries as long as records are, a few of them empty or large.
pub(crate) fn entries(count: u64, seed: u64) -> Vec<Vec<u8>> {
    let mut random = random(seed);
    (0..count)
        .map(|index| {
            let length = match index % 97 {
                13 => 0,
                57 => 1_500,
                _ => 60 + below(&mut random, 180) as usize,
            };
            let mut entry = vec![0; length];
            random.fill_bytes(&mut entry);
            entry
        })
        .collect()
}

/// The keys of one fleet.
pub(crate) struct Fleet {
    pub(crate) root: SigningKey,
    pub(crate) log: SigningKey,
    pub(crate) keys: KeyList,
}

impl Fleet {
    pub(crate) fn new(seed: u8) -> Self {
        let (root, log) = (SigningKey::from_bytes(&[seed; 32]), SigningKey::from_bytes(&[seed ^ 0xff; 32]));
        let keys = KeyList::sign(&root, &[log.verifying_key().to_bytes()]).expect("usable keys");
        Self { root, log, keys }
    }

    pub(crate) fn signer(&self) -> NoteSigner {
        NoteSigner::new(self.keys.origin(), self.log.clone()).expect("an origin is a name")
    }

    pub(crate) fn ledger(&self, dir: &Path) -> Ledger {
        Ledger::open(dir, self.keys.origin(), self.keys.log_keys()).expect("a ledger opens")
    }

    /// A log of these entries with checkpoints at these sizes and at its end, exported.
    pub(crate) fn export(&self, entries: &[Vec<u8>], sizes: &[u64]) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ledger = self.ledger(folder.path());
        let mut checkpoints = Vec::new();
        for entry in entries {
            ledger.append(entry).expect("an entry fits");
            if sizes.contains(&ledger.size()) {
                checkpoints.push(ledger.checkpoint(&self.signer()).expect("a checkpoint"));
            }
        }
        let newest = ledger.checkpoint(&self.signer()).expect("a checkpoint");
        if checkpoints.last() != Some(&newest) {
            checkpoints.push(newest);
        }
        self.write(&ledger, entries, &checkpoints)
    }

    pub(crate) fn write(
        &self,
        ledger: &Ledger,
        entries: &[Vec<u8>],
        checkpoints: &[SignedCheckpoint],
    ) -> Vec<u8> {
        let mut writer =
            ExportWriter::new(Vec::new(), ledger, &self.keys, checkpoints).expect("the head is written");
        for entry in entries {
            writer.entry(entry).expect("the ledger has it");
        }
        writer.finish().expect("all entries were given")
    }
}
