//! A disk whose power is cut: of what was written since the last sync any part may be there, torn at
//! any sector. Whatever is left, the index is the older picture or the newer one, never a wrong one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::{Database, StorageBackend};
use sync_core::merkle::{block_hash, tree_root};

use crate::index::Index;
use crate::record::{Kind, Stamp, Time};
use crate::scan::{Effort, ScanOptions, Scope, Unobserved, scan};
use crate::snapshot::Change;

/// Random enough, and the same every time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Debug, Default)]
struct Platter {
    /// What reads see.
    seen: Vec<u8>,
    /// What is surely there.
    synced: Vec<u8>,
    /// What was written since.
    writes: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs until the power goes.
    left: u64,
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn with(&self) -> io::Result<std::sync::MutexGuard<'_, Platter>> {
        self.0.lock().map_err(|_| io::ErrorKind::Other.into())
    }

    fn use_power(&self) -> io::Result<std::sync::MutexGuard<'_, Platter>> {
        let mut platter = self.with()?;
        platter.left = platter.left.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(platter)
    }

    /// What is found when the power is back.
    fn after_cut(&self, chance: &mut Chance, left: u64) -> Self {
        let platter = self.0.lock().expect("no panic under the lock");
        let mut image = platter.synced.clone();
        image.resize(platter.seen.len(), 0);
        for (at, bytes) in &platter.writes {
            let end = match chance.below(4) {
                0 => 0,
                1 => bytes.len(),
                // Sectors in any order: from somewhere to somewhere.
                _ => (chance.below(bytes.len() as u64 / 512 + 1) * 512) as usize,
            };
            let begin = if chance.below(3) == 0 { end / 2 / 512 * 512 } else { 0 };
            let end = end.min(image.len().saturating_sub(*at));
            if begin < end {
                image[at + begin..at + end].copy_from_slice(&bytes[begin..end]);
            }
        }
        Self(Arc::new(Mutex::new(Platter { seen: image.clone(), synced: image, writes: Vec::new(), left })))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.with()?;
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(platter.seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.use_power()?;
        platter.seen.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.use_power()?;
        platter.synced = platter.seen.clone();
        platter.writes.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.use_power()?;
        let at = offset as usize;
        platter.seen[at..at + data.len()].copy_from_slice(data);
        platter.writes.push((at, data.to_vec()));
        Ok(())
    }
}

fn open(disk: &Disk, beside: &Path, tree: &Path) -> Result<Index, crate::IndexError> {
    let database = Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone())?;
    Index::of(database, beside, tree)
}

fn scan_tree(index: &Index) -> Result<crate::scan::Outcome, crate::IndexError> {
    let options = ScanOptions {
        effort: Effort { threads: 1, background: false, bytes_per_second: None },
        accept: true,
        ..ScanOptions::default()
    };
    scan(index, &options, &Scope::All, &mut Unobserved, &Arc::default(), &Arc::default())
}

/// Whatever is believed is true, and all tables agree.
fn check(index: &Index, tree: &Path) -> u64 {
    let snapshot = index.snapshot().expect("readable");
    let (mut believed, mut entries, mut bytes) = (0, 0, 0);
    let mut sequences = Vec::new();
    for entry in snapshot.walk() {
        let entry = entry.expect("readable");
        entries += 1;
        sequences.push(entry.record.sequence);
        let Kind::File(content) = &entry.record.kind else { continue };
        bytes += entry.record.stamp.size;
        let Some(content) = content.filter(|content| content.settled) else { continue };
        let blocks: Vec<_> =
            snapshot.blocks(entry.record.stamp.size, &content).map(|b| b.expect("readable").0).collect();
        assert_eq!(tree_root(&blocks), content.root);
        let path = tree.join(std::str::from_utf8(&entry.path).expect("our own names"));
        let Ok(stat) = fs::metadata(&path) else { continue };
        let now = Stamp {
            size: stat.size(),
            mtime: Time { seconds: stat.mtime(), nanos: stat.mtime_nsec() as u32 },
            ctime: Time { seconds: stat.ctime(), nanos: stat.ctime_nsec() as u32 },
            ino: stat.ino(),
            ..entry.record.stamp
        };
        if now.same_content(&entry.record.stamp) {
            believed += 1;
            let bytes = fs::read(&path).expect("a file");
            let blocks: Vec<_> = bytes.chunks(32 << 10).map(block_hash).collect();
            assert_eq!(tree_root(&blocks), content.root, "{}", path.display());
        }
    }
    let counters = snapshot.counters();
    assert_eq!((counters.files + counters.folders + counters.symlinks, counters.bytes), (entries, bytes));
    sequences.sort_unstable();
    let told: Vec<u64> = snapshot
        .changes(0, usize::MAX)
        .expect("readable")
        .iter()
        .filter(|change| matches!(change, Change::There(_)))
        .map(Change::sequence)
        .collect();
    assert_eq!(told, sequences);
    believed
}

/// Files come, change, go and move, now and then with more than one block.
fn stir(tree: &Path, chance: &mut Chance, round: u64) {
    for _ in 0..40 {
        let folder = tree.join(format!("d{}", chance.below(6)));
        let path = folder.join(format!("f{}", chance.below(12)));
        match chance.below(10) {
            0 => drop(fs::remove_file(path)),
            1 => drop(fs::remove_dir_all(folder)),
            2 => drop(fs::rename(&folder, tree.join(format!("d{}", chance.below(6))))),
            _ => {
                fs::create_dir_all(&folder).expect("a folder");
                let len = [10, 40_000, 1_200_000][[0, 0, 0, 1, 1, 2][chance.below(6) as usize]];
                // Of one size, so that only its times tell a change.
                fs::write(path, vec![(round ^ chance.next()) as u8; len]).expect("a file");
            }
        }
    }
}

fn cut_the_power(seed: u64, rounds: u64) -> u64 {
    let data = tempfile::tempdir().expect("a folder");
    let (tree, beside) = (data.path().join("tree"), data.path().join("beside"));
    fs::create_dir(&tree).expect("a folder");
    fs::create_dir(&beside).expect("a folder");
    let mut chance = Chance(seed);
    let mut disk = Disk::default();
    let mut cuts = 0;
    for round in 0..rounds {
        stir(&tree, &mut chance, round);
        disk.with().expect("locked").left = 5 + chance.below(120);
        let cut = match open(&disk, &beside, &tree) {
            Ok(index) => scan_tree(&index).is_err(),
            Err(_) => true,
        };
        cuts += u64::from(cut);
        disk = disk.after_cut(&mut chance, u64::MAX);
        match open(&disk, &beside, &tree) {
            Ok(index) => {
                check(&index, &tree);
            }
            // Before the very first commit there may be nothing that could be opened.
            Err(error) => assert!(round == 0, "seed {seed}, round {round}: {error}"),
        }
        if round == 0 && disk.with().expect("locked").synced.is_empty() {
            disk = Disk::default();
        }
    }
    disk.with().expect("locked").left = u64::MAX;
    let index = open(&disk, &beside, &tree).expect("opened");
    scan_tree(&index).expect("scanned");
    let believed = check(&index, &tree);
    assert_eq!(believed, index.counters().expect("read").files, "seed {seed}: all is known in the end");
    cuts
}

#[test]
fn after_a_power_cut_the_index_is_older_or_right() {
    let cuts: u64 = (0..4).map(|seed| cut_the_power(seed, 15)).sum();
    assert!(cuts >= 20, "the power was cut in the middle {cuts} times");
}
