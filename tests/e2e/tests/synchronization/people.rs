//! People at random: what they do in a member's folder, and what they gave up by it. Each edit has a number and a content
//! of its own, which says of itself whether it is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What agents keep in their folders.
pub(crate) const OWN: &str = ".flotilla";

/// What a file's temporary name begins with while somebody saves it.
const SAVING: &str = ".saving-";

/// Numbers that look random and are the same for one seed (xorshift64*).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn of(seed: u64, who: u64) -> Self {
        let mut random = Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (who + 1) << 48 | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }

    /// One of some; none of none.
    fn of_some<'a, T>(&mut self, some: &'a [T]) -> Option<&'a T> {
        some.get(self.below(some.len().max(1) as u64) as usize)
    }
}

/// What an edit writes.
fn record(edit: u64) -> Vec<u8> {
    // Most are small; some have several blocks, a few many.
    let len = match edit % 23 {
        0 => 400_000,
        1..=3 => 70_000,
        4..=7 => 33_000,
        8 => 0,
        n => n as usize * 17,
    };
    let mut bytes = format!("[edit {edit} {len}]").into_bytes();
    let end = bytes.len() + len;
    let mut random = Random(edit.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while bytes.len() < end {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(end);
    bytes.extend_from_slice(b"[end]\n");
    bytes
}

/// The edits whose contents make up a file; none if anything else is in it.
pub(crate) fn edits_in(mut bytes: &[u8]) -> Option<Vec<u64>> {
    let mut edits = Vec::new();
    while !bytes.is_empty() {
        let head = bytes.strip_prefix(b"[edit ")?;
        let head = &head[..head.iter().take(40).position(|&byte| byte == b' ')?];
        let edit = std::str::from_utf8(head).ok()?.parse().ok()?;
        bytes = bytes.strip_prefix(record(edit).as_slice())?;
        edits.push(edit);
    }
    Some(edits)
}

/// The edit that made a symlink.
pub(crate) fn edit_of_link(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("edit-")?.parse().ok()
}

/// All that was ever edited by anybody.
#[derive(Default)]
pub(crate) struct Ledger {
    next: AtomicU64,
    entries: Mutex<Entries>,
}

/// What a ledger holds.
#[derive(Clone, Default)]
pub(crate) struct Entries {
    /// Each edit, and by whom, where and how it was made.
    pub(crate) made: BTreeMap<u64, String>,
    /// Those that a person replaced or removed, seeing them.
    pub(crate) given_up: BTreeSet<u64>,
    /// Everything that people did.
    pub(crate) actions: u64,
}

impl Ledger {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn note(&self, made: Option<(u64, String)>, given_up: impl IntoIterator<Item = u64>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.made.extend(made);
        entries.given_up.extend(given_up);
        entries.actions += 1;
    }

    pub(crate) fn entries(&self) -> Entries {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One person who works in one folder.
pub(crate) struct Person<'l> {
    pub(crate) name: String,
    pub(crate) root: PathBuf,
    pub(crate) random: Random,
    pub(crate) ledger: &'l Ledger,
}

impl Person<'_> {
    /// Does so many things, with pauses of at most so long.
    pub(crate) fn work(mut self, actions: u64, pause_max: Duration) {
        for _ in 0..actions {
            // What others removed meanwhile is in nobody's way.
            let _ = self.act();
            let pause = self.random.below(pause_max.as_millis() as u64);
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    fn act(&mut self) -> std::io::Result<()> {
        match self.random.below(24) {
            0..=4 => self.save(),
            5..=7 => self.rewrite(),
            8..=10 => self.append(),
            11..=13 => self.rename(),
            14..=16 => self.remove(),
            17 | 18 => self.set_mode(),
            19 => self.make_folder(),
            20 => self.link(),
            21 | 22 => self.move_folder(),
            _ => self.remove_folder(),
        }
    }

    fn made(&self, how: &str, edit: u64, at: &Path) -> Option<(u64, String)> {
        let at = at.strip_prefix(&self.root).unwrap_or(at);
        Some((edit, format!("{how} by {} at {}", self.name, at.display())))
    }

    /// A new content beside the old one, then renamed over it, as most programs save.
    fn save(&mut self) -> std::io::Result<()> {
        let at = self.anywhere();
        let above = at.parent().expect("below the root");
        fs::create_dir_all(above)?;
        let edit = self.ledger.number();
        let beside = above.join(format!("{SAVING}{edit}"));
        fs::write(&beside, record(edit))?;
        let old = seen(&at);
        match fs::rename(&beside, &at) {
            Ok(()) => self.ledger.note(self.made("saved", edit, &at), old),
            // It stays under its other name, or went where its folder did.
            Err(_) => self.ledger.note(self.made("left", edit, &beside), []),
        }
        Ok(())
    }

    /// Writes over what is in a file.
    fn rewrite(&mut self) -> std::io::Result<()> {
        let at = match self.random.below(3) {
            0 => self.anywhere(),
            _ => self.some_file().unwrap_or_else(|| self.root.join("f0")),
        };
        let mut file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&at)?;
        let mut old = Vec::new();
        file.read_to_end(&mut old)?;
        let edit = self.ledger.number();
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&record(edit))?;
        self.ledger.note(self.made("written", edit, &at), edits_in(&old).unwrap_or_default());
        Ok(())
    }

    fn append(&mut self) -> std::io::Result<()> {
        let Some(at) = self.some_file() else { return Ok(()) };
        let mut file = fs::OpenOptions::new().append(true).open(&at)?;
        // Nobody's file grows without end.
        if file.metadata()?.len() > 2_000_000 {
            return Ok(());
        }
        let edit = self.ledger.number();
        file.write_all(&record(edit))?;
        self.ledger.note(self.made("appended", edit, &at), []);
        Ok(())
    }

    fn rename(&mut self) -> std::io::Result<()> {
        let Some(from) = self.some_file() else { return Ok(()) };
        let to = self.anywhere();
        let old = seen(&to);
        if from != to && to.parent().is_some_and(Path::is_dir) {
            fs::rename(&from, &to)?;
            self.ledger.note(None, old);
        }
        Ok(())
    }

    fn remove(&mut self) -> std::io::Result<()> {
        let entries = self.entries();
        let Some(at) = self.random.of_some(&entries) else { return Ok(()) };
        let old = seen(at);
        fs::remove_file(at)?;
        self.ledger.note(None, old);
        Ok(())
    }

    fn set_mode(&mut self) -> std::io::Result<()> {
        let mut all = self.entries();
        all.retain(|at| !at.is_symlink());
        all.extend(self.folders());
        let mode = [0o600, 0o640, 0o700, 0o755][self.random.below(4) as usize];
        let Some(at) = self.random.of_some(&all) else { return Ok(()) };
        let mode = if at.is_dir() { mode | 0o700 } else { mode };
        fs::set_permissions(at, Permissions::from_mode(mode))?;
        self.ledger.note(None, []);
        Ok(())
    }

    fn make_folder(&mut self) -> std::io::Result<()> {
        let (place, n) = (self.place(), self.random.below(4));
        fs::create_dir_all(self.root.join(place).join(format!("empty{n}")))?;
        self.ledger.note(None, []);
        Ok(())
    }

    fn link(&mut self) -> std::io::Result<()> {
        let at = self.anywhere();
        let edit = self.ledger.number();
        // Where something is, nothing is linked.
        symlink(format!("edit-{edit}"), &at)?;
        self.ledger.note(self.made("linked", edit, &at), []);
        Ok(())
    }

    fn move_folder(&mut self) -> std::io::Result<()> {
        let folders = self.folders();
        let Some(from) = self.random.of_some(&folders).cloned() else { return Ok(()) };
        let to = self.root.join(["w", "v", "x/v", "y/w"][self.random.below(4) as usize]);
        // Only onto nothing or an empty folder, and not below itself: the system sees to that.
        if !to.is_symlink() {
            fs::rename(from, to)?;
            self.ledger.note(None, []);
        }
        Ok(())
    }

    fn remove_folder(&mut self) -> std::io::Result<()> {
        let folders = self.folders();
        let Some(at) = self.random.of_some(&folders) else { return Ok(()) };
        // What comes in meanwhile stays: the folder is not empty then.
        let mut below: Vec<PathBuf> = Vec::new();
        walk(at, &mut |path| below.push(path.to_owned()));
        for path in below.into_iter().rev() {
            if path.is_dir() && !path.is_symlink() {
                let _ = fs::remove_dir(&path);
                continue;
            }
            let old = seen(&path);
            if fs::remove_file(&path).is_ok() {
                self.ledger.note(None, old);
            }
        }
        fs::remove_dir(at)
    }

    fn place(&mut self) -> &'static str {
        ["", "", "x", "x/z", "y", "w"][self.random.below(6) as usize]
    }

    /// A name that others use as well; now and then that of a folder.
    fn anywhere(&mut self) -> PathBuf {
        if self.random.below(30) == 0 {
            return self.root.join(["w", "x/z"][self.random.below(2) as usize]);
        }
        let place = self.place();
        self.root.join(place).join(format!("f{}", self.random.below(10)))
    }

    fn some_file(&mut self) -> Option<PathBuf> {
        let mut files = self.entries();
        files.retain(|at| !at.is_symlink());
        self.random.of_some(&files).cloned()
    }

    /// Files and symlinks.
    fn entries(&self) -> Vec<PathBuf> {
        let mut entries = Vec::new();
        walk(&self.root, &mut |path| {
            if path.is_symlink() || !path.is_dir() {
                entries.push(path.to_owned());
            }
        });
        entries
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        walk(&self.root, &mut |path| {
            if path.is_dir() && !path.is_symlink() {
                folders.push(path.to_owned());
            }
        });
        folders
    }
}

/// What a person sees at a path before replacing it.
fn seen(at: &Path) -> Vec<u64> {
    match fs::read_link(at) {
        Ok(target) => edit_of_link(&target).into_iter().collect(),
        Err(_) => fs::read(at).ok().and_then(|bytes| edits_in(&bytes)).unwrap_or_default(),
    }
}

/// Everything below a folder, folders before what is in them, but for what agents keep there.
pub(crate) fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(items) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = items.flatten().map(|item| item.path()).collect();
    paths.sort();
    for path in paths {
        if path.file_name().is_some_and(|name| name == OWN) {
            continue;
        }
        visit(&path);
        if path.is_dir() && !path.is_symlink() {
            walk(&path, visit);
        }
    }
}

/// What is at a path: kind, mode, time in ns, and content or target.
pub(crate) type Seen = (char, u32, i128, Vec<u8>);

/// What anybody sees of a folder. Folders have no times of their own here: they change with what is in them.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut tree = BTreeMap::new();
    walk(folder, &mut |path| {
        let Ok(meta) = path.symlink_metadata() else { return };
        let time = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let seen = if meta.is_dir() {
            ('d', meta.mode(), 0, Vec::new())
        } else if meta.is_symlink() {
            let target = fs::read_link(path).map(|target| target.into_os_string().into_encoded_bytes());
            ('l', 0, time, target.unwrap_or_default())
        } else {
            ('f', meta.mode(), time, fs::read(path).unwrap_or_default())
        };
        tree.insert(path.strip_prefix(folder).expect("below").to_owned(), seen);
    });
    tree
}
