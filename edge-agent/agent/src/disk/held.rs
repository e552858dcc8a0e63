//! Manifests of runs that are over: what the next one has in common with them is taken from there
//! (`edge-agent/PROTOCOL.md` §3.8).
//!
//! `manifests` in the data folder has the last one of each of the latest places, named by a hash of the place's path.
//! Nothing in them is believed that does not have the hash which a signed head vouches for, so whatever happens to them
//! costs transfers only.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agent_proto::limits::BLOCK_LEN;
use sha2::{Digest, Sha256};
use sync_core::merkle::Hash;

use super::seek::{Sought, roll, worth};

/// Manifests that are kept: each is looked through when another one comes.
const MANIFESTS_MAX: usize = 16;

/// Bytes of all of them. One of ten million small files has 600 MB; the newest that is longer is not kept.
const BYTES_MAX: u64 = 1 << 30;

/// The share of what is free on the data folder's file system that they may take.
const FREE_SHARE: u64 = 10;

/// One that is older is removed with the next that is kept: names are in it.
const AGE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct HeldManifests {
    dir: PathBuf,
    /// The owner lets one job look at another's.
    shared: bool,
    /// One writer at a time.
    writing: Arc<Mutex<()>>,
}

/// One of them.
struct Held {
    path: PathBuf,
    len: u64,
    kept: SystemTime,
}

impl HeldManifests {
    /// Of the agent with this data folder; `shared`: one job's may be used for another.
    pub(crate) fn new(data: &Path, shared: bool) -> Self {
        Self { dir: data.join("manifests"), shared, writing: Arc::default() }
    }

    /// Takes the manifest of a run that is over, whose place was this.
    pub(crate) fn keep(&self, place: &Path, manifest: &Path) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = || -> io::Result<()> {
            fs::create_dir_all(&self.dir)?;
            let path = self.dir.join(name_of(place));
            fs::rename(manifest, &path)?;
            // Not when it was written, but when it was of use.
            File::options().write(true).open(&path)?.set_modified(SystemTime::now())?;
            let free = rustix::fs::statvfs(&self.dir)?;
            self.make_room(free.f_bavail.saturating_mul(free.f_frsize) / FREE_SHARE);
            Ok(())
        };
        if let Err(error) = keep() {
            tracing::debug!(%error, "a manifest is not kept for the next run");
        }
    }

    /// Removes the oldest until the rest is within its limits; `free` bytes may be taken besides.
    fn make_room(&self, free: u64) {
        let (mut bytes, mut many) = (0, 0);
        let held = self.all();
        let room = BYTES_MAX.min(free.saturating_add(held.iter().map(|held| held.len).sum()));
        for held in held {
            bytes += held.len;
            many += 1;
            let old = held.kept.elapsed().is_ok_and(|age| age > AGE_MAX);
            if many > MANIFESTS_MAX || bytes > room || old {
                // It is tried again with the next one.
                let _ = fs::remove_file(&held.path);
            }
        }
    }

    /// All, the latest first.
    fn all(&self) -> Vec<Held> {
        let Ok(names) = fs::read_dir(&self.dir) else { return Vec::new() };
        let held = names.filter_map(Result::ok).filter_map(|name| {
            let meta = name.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(Held { path: name.path(), len: meta.len(), kept: meta.modified().ok()? })
        });
        let mut all: Vec<_> = held.collect();
        all.sort_by_key(|held| std::cmp::Reverse(held.kept));
        all
    }

    /// Those in which a manifest for this place may have blocks: its own first, then the latest.
    fn for_place(&self, place: &Path) -> Vec<Held> {
        let own = self.dir.join(name_of(place));
        let mut all = self.all();
        all.retain(|held| self.shared || held.path == own);
        all.sort_by_key(|held| held.path != own);
        all.truncate(MANIFESTS_MAX);
        all
    }

    /// Whether there is one to be looked through.
    pub(crate) fn any(&self, place: &Path) -> bool {
        !self.for_place(place).is_empty()
    }

    /// Looks for the blocks of a manifest of `len` bytes that have these hashes; gives each that it finds to `keep`.
    ///
    /// # Errors
    /// Those of `keep`.
    pub(crate) fn seek(
        &self,
        place: &Path,
        len: u64,
        strong: &[Hash],
        weak: &[u32],
        go_on: &dyn Fn() -> bool,
        keep: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<Vec<u64>> {
        // The last one is shorter, and hardly ever another's.
        let full = (len / u64::from(BLOCK_LEN)) as usize;
        let rows = strong.iter().zip(weak).take(full).enumerate();
        let mut sought =
            Sought::new(rows.map(|(block, (strong, weak))| (*weak, block as u64, *strong)).collect());
        let until = Instant::now() + worth(len);
        let go_on = || go_on() && Instant::now() < until;
        let (mut found, mut failed) = (Vec::new(), None);
        for held in self.for_place(place) {
            if sought.is_done() || !go_on() || failed.is_some() {
                break;
            }
            let Ok(file) = File::open(&held.path) else { continue };
            // Only what `keep` says ends it early, and that is told.
            let _ = roll(
                &file,
                std::slice::from_ref(&(0..held.len)),
                &mut sought,
                &go_on,
                &mut |block, bytes| {
                    keep(block, bytes).map_err(|error| {
                        let told = super::problem(rustix::io::Errno::IO, b"", "keeping the manifest");
                        failed = Some(error);
                        told
                    })?;
                    found.push(block);
                    Ok(())
                },
            );
        }
        failed.map_or(Ok(found), Err)
    }
}

/// The name of the manifest of a place: 32 hex digits.
fn name_of(place: &Path) -> String {
    let hash = Sha256::digest(place.as_os_str().as_encoded_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::file_block_hashes;
    use std::collections::BTreeMap;

    const BLOCK: usize = BLOCK_LEN as usize;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut x = seed * 2 + 1;
        let step = |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..len).map(step).collect()
    }

    fn keep(held: &HeldManifests, data: &Path, place: &str, bytes: &[u8]) {
        let path = data.join("manifest");
        fs::write(&path, bytes).expect("room");
        held.keep(Path::new(place), &path);
        assert!(!path.exists());
    }

    fn seek(
        held: &HeldManifests,
        data: &Path,
        place: &str,
        bytes: &[u8],
        weak_is_right: bool,
    ) -> BTreeMap<u64, Vec<u8>> {
        let path = data.join("new");
        fs::write(&path, bytes).expect("room");
        let mut hashes = file_block_hashes(&File::open(path).expect("there")).expect("readable");
        if !weak_is_right {
            hashes.weak.iter_mut().for_each(|weak| *weak ^= 1);
        }
        let mut got = BTreeMap::new();
        let len = bytes.len() as u64;
        let keep = &mut |block: u64, bytes: &[u8]| {
            got.insert(block, bytes.to_vec());
            Ok(())
        };
        let found =
            held.seek(Path::new(place), len, &hashes.strong, &hashes.weak, &|| true, keep).expect("kept");
        assert!(found.len() == got.len() && found.iter().all(|block| got.contains_key(block)));
        for (block, kept) in &got {
            assert_eq!(kept[..], bytes[*block as usize * BLOCK..][..BLOCK]);
        }
        got
    }

    #[test]
    fn blocks_are_found_at_any_place_of_what_is_held_and_only_if_they_are_those() {
        let data = tempfile::tempdir().expect("a folder");
        let held = HeldManifests::new(data.path(), true);
        let old = noise(10 * BLOCK + 77, 1);
        // Rows that moved, with something before, between and behind.
        let new = [&noise(64, 2)[..], &old[36 * 500..6 * BLOCK], &noise(9000, 3), &old[7 * BLOCK..]].concat();
        assert!(!held.any(Path::new("/a")) && seek(&held, data.path(), "/a", &new, true).is_empty());
        keep(&held, data.path(), "/a", &old);
        assert!(held.any(Path::new("/a")) && held.any(Path::new("/b")));
        // Blocks 0 and those with the seam are nowhere, the last one is short.
        let found = seek(&held, data.path(), "/b", &new, true);
        let whole = new.len() / BLOCK;
        assert!(
            found.len() + 3 >= whole && !found.contains_key(&0) && found.contains_key(&1),
            "{:?}",
            found.keys()
        );
        assert!(seek(&held, data.path(), "/b", &new, false).is_empty());
        assert!(seek(&held, data.path(), "/b", &noise(new.len(), 9), true).is_empty());
        // What is damaged there is found as far as it is good, and not otherwise.
        let path = data.path().join("manifests").join(name_of(Path::new("/a")));
        let mut damaged = old.clone();
        damaged[3 * BLOCK + 5] ^= 1;
        fs::write(&path, &damaged).expect("room");
        assert_eq!(seek(&held, data.path(), "/a", &old, true).len(), 9);
        fs::write(&path, &old[..4 * BLOCK + 9]).expect("room");
        assert_eq!(seek(&held, data.path(), "/a", &old, true).len(), 4);
        fs::write(&path, b"").expect("room");
        assert!(seek(&held, data.path(), "/a", &old, true).is_empty());
        let alone = HeldManifests::new(data.path(), false);
        assert!(alone.any(Path::new("/a")) && !alone.any(Path::new("/b")), "not another job's");
    }

    #[test]
    fn there_are_never_more_than_the_limits_say() {
        let data = tempfile::tempdir().expect("a folder");
        let held = HeldManifests::new(data.path(), true);
        let names = || held.all().into_iter().map(|held| held.path).collect::<Vec<_>>();
        for n in 0..MANIFESTS_MAX + 5 {
            keep(&held, data.path(), &format!("/{n}"), b"manifest");
        }
        assert_eq!(names().len(), MANIFESTS_MAX);
        keep(&held, data.path(), "/new", b"manifest");
        keep(&held, data.path(), "/new", b"another");
        let own = held.for_place(Path::new("/new")).swap_remove(0).path;
        assert_eq!((names().len(), fs::read(&own).expect("there")), (MANIFESTS_MAX, b"another".to_vec()));
        let age = |path: &Path, days: u64| {
            let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
            File::options().write(true).open(path).and_then(|file| file.set_modified(then)).expect("set");
        };
        age(&own, 91);
        held.make_room(1 << 30);
        assert!(!own.exists() && names().len() == MANIFESTS_MAX - 1);
        for (nth, path) in names().iter().enumerate() {
            let file = File::options().write(true).open(path).expect("there");
            // Sparse: together more than there may be.
            file.set_len(BYTES_MAX / 4).expect("room");
            age(path, 1 + nth as u64);
        }
        let latest = names()[..4].to_vec();
        held.make_room(1 << 40);
        assert_eq!(names(), latest);
        // A file that nobody can take is no obstacle.
        held.keep(Path::new("/x"), &data.path().join("nothing"));
        assert_eq!(names(), latest);
    }
}
