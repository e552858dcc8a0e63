//! The tree that is distributed when no other is given.
//!
//! Owns its recipe: some thousand files of about 200 MB with what trees have in reality and tests forget, such as
//! empty files and folders, links, odd names, modes and times. The same seed makes the same tree.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use walkdir::WalkDir;

use crate::demo::stop::Stop;

/// How much to make.
#[derive(Clone, Copy)]
pub(crate) struct Recipe {
    /// Files below 64 KiB.
    pub(crate) small: usize,
    /// Files of a few hundred KiB.
    pub(crate) medium: usize,
    /// Files of 24 MiB.
    pub(crate) large: usize,
    pub(crate) seed: u64,
}

/// 3,000 files, 200 MB.
pub(crate) const USUAL: Recipe = Recipe { small: 2_800, medium: 200, large: 4, seed: 1 };

/// Names that have broken programs before: separators, globs, options, control characters, no UTF-8.
const ODD_NAMES: &[&[u8]] = &[
    b" leading and trailing ",
    b"-rf",
    b"--",
    b"line\nbreak",
    b"tab\there",
    b"quote'\"`$(x)",
    b"back\\slash",
    b"*?[a]{b}",
    b"colon:and;semicolon",
    b"%41%00",
    b".hidden",
    b"...",
    "gr\u{fc}n \u{2603} \u{1f6a2}".as_bytes(),
    "e\u{301} decomposed".as_bytes(),
    b"not utf-8 \xff\xfe",
    b"CON",
    b"trailing.",
];

const MODES: &[u32] = &[0o644, 0o600, 0o755, 0o444, 0o640, 0o664, 0o700, 0o400];

/// Makes the tree in `root`, which exists and is empty.
pub(crate) fn make(root: &Path, recipe: Recipe, stop: &Stop) -> Result<()> {
    let mut chance = Chance(recipe.seed);
    let folders = folders(root)?;
    for n in 0..recipe.small + recipe.medium + recipe.large {
        stop.check()?;
        let size = if n < recipe.small {
            // Many small, few larger ones: the smaller of two draws.
            chance.below(65_536).min(chance.below(65_536))
        } else if n < recipe.small + recipe.medium {
            100_000 + chance.below(500_000)
        } else {
            // Not a whole number of blocks.
            24 * 1024 * 1024 + chance.below(32_768)
        };
        let folder = &folders[chance.index(folders.len())];
        file(&root.join(folder).join(format!("file-{n:05}.dat")), size, &mut chance)?;
    }
    odd(root, &mut chance)?;
    links(root)?;
    times(root, &mut chance)
}

fn folders(root: &Path) -> Result<Vec<String>> {
    let mut names = vec![String::new()];
    for top in ["camera", "documents", "releases", "maps and charts"] {
        for middle in 0..5 {
            for leaf in 0..3 {
                names.push(format!("{top}/{middle:02}/part {leaf}"));
            }
        }
    }
    names.push((0..20).map(|n| format!("deep{n}")).collect::<Vec<_>>().join("/"));
    for name in names.iter().map(String::as_str).chain(["empty", "empty too/inside"]) {
        fs::create_dir_all(root.join(name)).context("making the folders of the tree")?;
    }
    Ok(names)
}

fn file(path: &Path, size: u64, chance: &mut Chance) -> Result<()> {
    let mut file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut left = size;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        chance.fill(&mut buffer[..n]);
        file.write_all(&buffer[..n]).with_context(|| format!("writing {}", path.display()))?;
        left -= n as u64;
    }
    let mode = MODES[chance.index(MODES.len())];
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn odd(root: &Path, chance: &mut Chance) -> Result<()> {
    let folder = root.join("odd");
    fs::create_dir(&folder)?;
    for name in ODD_NAMES {
        file(&folder.join(OsStr::from_bytes(name)), 100, chance)?;
    }
    // The longest name that file systems take.
    file(&folder.join("n".repeat(255)), 100, chance)?;
    // An empty file, and one of exactly one block, one byte less and one byte more.
    for size in [0, 32_767, 32_768, 32_769] {
        file(&folder.join(format!("size-{size}")), size, chance)?;
    }
    let inside = folder.join(OsString::from("a folder\nwith a line break"));
    fs::create_dir(&inside)?;
    file(&inside.join("file"), 1, chance)?;
    // A folder that nobody may write to: it can only be filled before its mode is set.
    let closed = folder.join("closed");
    fs::create_dir(&closed)?;
    file(&closed.join("file"), 10, chance)?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555))?;
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn links(root: &Path) -> Result<()> {
    let folder = root.join("links");
    fs::create_dir(&folder)?;
    for (name, target) in [
        ("to a file", "../odd/size-32768"),
        ("to a folder", "../documents"),
        ("to nothing", "no such file"),
        ("to a link", "to a file"),
        ("to itself", "to itself"),
    ] {
        symlink(target, folder.join(name)).with_context(|| format!("linking {name}"))?;
    }
    Ok(())
}

/// Times with nanoseconds, between 1980 and now; folders last, for making a file changes its folder's time.
fn times(root: &Path, chance: &mut Chance) -> Result<()> {
    for entry in WalkDir::new(root).contents_first(true).sort_by_file_name() {
        let entry = entry?;
        let seconds = 315_532_800 + chance.below(1_400_000_000);
        let time =
            Timespec { tv_sec: seconds.cast_signed(), tv_nsec: chance.below(1_000_000_000).cast_signed() };
        let both = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, entry.path(), &both, AtFlags::SYMLINK_NOFOLLOW)
            .with_context(|| format!("setting the time of {}", entry.path().display()))?;
    }
    Ok(())
}

/// SplitMix64: quick, and the same everywhere. Nothing secret is made of it.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end - 1`; a bias that does not matter here.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::verify;

    #[test]
    fn the_same_seed_makes_the_same_tree() {
        let recipe = Recipe { small: 20, medium: 2, large: 0, seed: 7 };
        let stop = Stop::install().unwrap();
        let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        make(a.path(), recipe, &stop).unwrap();
        make(b.path(), recipe, &stop).unwrap();
        let [a, b] = [&a, &b].map(|folder| verify::read(folder.path(), &stop).unwrap());
        assert_eq!(verify::differences(&a, &b), Vec::<String>::new());
        assert!(a.files() > 20 + ODD_NAMES.len() as u64);
        assert!(a.has_link() && a.has_empty_file());
    }
}
