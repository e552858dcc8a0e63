//! One source's versions at a storage agent, and how one of them gets its name (`edge-agent/BACKUP.md` §1, §2).
//!
//! Everything is reached from the opened shelf, name by name. A version under its name is whole, and its record and
//! manifest were on the disk before it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ed25519_dalek::SigningKey;
use event_schema::{AgentId, Domain, RunId, Signed, decode_exact, encode};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};
use serde::{Deserialize, Serialize};
use sync_core::manifest::{ManifestHead, STAGING_FOLDER};

use super::name::VersionName;
use crate::archive::{remove_tree, rename_new};
use crate::disk::{Folder, ManifestFile, chmod_at, file_block_hashes, file_type};

/// Below the staging folder of a shelf.
const VERSIONS: &[u8] = b"versions";

/// What stands behind a version's name in that of its manifest, of its record, and of its folder while it is removed.
const MANIFEST: &str = ".manifest";
const RECORD: &str = ".version";
pub(super) const GONE: &str = ".gone";

/// The same behind a run's id, of what it had made when it was given up.
const LEFT: &str = ".left";

/// Held by who gives a version its name, and by who removes what may be about to get one: of any shelf, for all are this
/// process's.
static ONE: Mutex<()> = Mutex::new(());

pub(super) fn one_at_a_time() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Version of the record, its first byte: without and with the signature of the agent that made it.
const RECORD_V1: u8 = 1;
const RECORD_V2: u8 = 2;

/// Bytes of a record that are read.
const RECORD_LEN_MAX: u64 = 64 << 10;

/// What is noted of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The run that made it.
    pub(crate) run: RunId,
    /// The source's key, under which the head is.
    pub(crate) source_key: [u8; 32],
    /// The manifest's head.
    pub(crate) head: Signed,
    /// The run had everything.
    pub(crate) complete: bool,
}

impl Note {
    /// The head, if it is what the source signed.
    pub(crate) fn opened(&self) -> Option<ManifestHead> {
        ManifestHead::open(&self.head, self.run, &self.source_key).ok()
    }

    /// Whether it is of what this agent has.
    pub(crate) fn is_of(&self, source: AgentId) -> bool {
        AgentId::of_key(&self.source_key) == source
    }
}

/// What a storage agent signs of a version: that it is the one that it has given this name.
#[derive(Serialize, Deserialize)]
struct Statement {
    name: String,
    note: Note,
}

/// A version that stands on a shelf.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) name: VersionName,
    pub(crate) note: Note,
    /// The record, if somebody signed it.
    signed: Option<Signed>,
}

impl Kept {
    /// Whether the agent with this key made it. Anybody who may write to the shelf's folder can lay a record there.
    pub(crate) fn is_by(&self, key: &[u8; 32]) -> bool {
        self.signed.as_ref().is_some_and(|signed| signed.verify(Domain::Version, key).is_ok())
    }
}

/// See the module.
pub(crate) struct Shelf {
    pub(super) folder: Folder,
    /// `.flotilla/versions`.
    pub(super) versions: Arc<OwnedFd>,
}

impl Shelf {
    /// Opens a shelf, and makes it if need be.
    ///
    /// # Errors
    /// Whatever the system says; `PERM` if somebody else may write to the agent's folder there.
    pub(crate) fn make(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| errno(&e))?;
        let folder = Folder::open(path)?;
        folder.make_private(STAGING_FOLDER)?;
        let versions = folder.make_private(&base())?;
        Ok(Self { folder, versions })
    }

    /// Opens one that is there.
    ///
    /// # Errors
    /// Whatever the system says; `NOENT` if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let folder = Folder::open(path)?;
        let versions = folder.walk(&base())?;
        Ok(Self { folder, versions })
    }

    /// All versions that stand, the oldest first.
    ///
    /// # Errors
    /// If the shelf cannot be read.
    pub(crate) fn all(&self) -> Result<Vec<Kept>> {
        let mut names: Vec<VersionName> = Vec::new();
        for name in self.names()? {
            let name = name.strip_suffix(RECORD).and_then(|name| name.parse().ok());
            names.extend(name);
        }
        names.sort_unstable();
        Ok(names.into_iter().filter_map(|name| self.kept(name)).collect())
    }

    /// A version, if it stands.
    pub(crate) fn kept(&self, name: VersionName) -> Option<Kept> {
        self.stands(&name).then_some(())?;
        let (note, signed) = self.record(&name)?;
        Some(Kept { name, note, signed })
    }

    /// A version's folder.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn version(&self, name: &VersionName) -> Result<Folder> {
        self.folder.forget();
        self.folder.below(name.to_string().as_bytes())
    }

    /// A version's manifest, proved: it is what its source signed.
    ///
    /// # Errors
    /// Why it cannot be believed.
    pub(crate) fn manifest(&self, kept: &Kept) -> std::result::Result<ManifestFile, String> {
        let bad = |what: &str| format!("the manifest of version {}: {what}", kept.name);
        let head = kept.note.opened().ok_or_else(|| bad("its head is not what the source signed"))?;
        let file = self.open_kept(&format!("{}{MANIFEST}", kept.name)).map_err(|e| bad(&e.to_string()))?;
        let hashes = file_block_hashes(&file).map_err(|e| bad(&e.to_string()))?;
        let manifest = ManifestFile::open(Arc::new(file)).map_err(|e| bad(&e.to_string()))?;
        if ManifestHead::of(kept.note.run, head.source, manifest.known(), &hashes.strong) != head {
            return Err(bad("it is damaged"));
        }
        Ok(manifest)
    }

    /// The folder in which a run makes its version.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn forming(&self, run: RunId) -> Result<Folder> {
        let path = [&base()[..], b"/", run.to_string().as_bytes()].concat();
        // One that is finished but for its name may not let us in.
        self.folder.make_folder(&path)?;
        self.folder.below(&path)
    }

    /// Where that is, of the shelf at `path`.
    pub(crate) fn forming_path(path: &Path, run: RunId) -> PathBuf {
        path.join(std::ffi::OsStr::from_bytes(&base())).join(run.to_string())
    }

    /// Gives what a run has made its name, or the next free one of the same time, once record and manifest are on the
    /// disk; says which.
    ///
    /// # Errors
    /// Whatever the system says; the version is not there then and this may be done again.
    pub(crate) fn give_name(
        &self,
        wanted: &VersionName,
        note: &Note,
        manifest: &File,
        key: &SigningKey,
    ) -> Result<VersionName> {
        let _one = one_at_a_time();
        let forming = note.run.to_string();
        let mut free = Some(wanted.clone());
        while let Some(name) = free {
            let is_others = self.note(&name).is_some_and(|other| other.run != note.run);
            if is_others || self.stat(&name).is_ok() {
                free = name.next();
                continue;
            }
            self.write_kept(&format!("{name}{MANIFEST}"), |file| copy(manifest, file))?;
            let statement = encode(&Statement { name: name.to_string(), note: note.clone() });
            let signed = Signed::sign(Domain::Version, statement, key);
            let record = [&[RECORD_V2][..], &encode(&signed)].concat();
            self.write_kept(&format!("{name}{RECORD}"), |mut file| file.write_all(&record))?;
            match self.rename(forming.as_bytes(), name.to_string().as_bytes()) {
                Err(Errno::EXIST) => {
                    self.forget(&name);
                    free = name.next();
                }
                renamed => {
                    renamed?;
                    self.sync()?;
                    return Ok(name);
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Renames from the agent's folder to the shelf.
    fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let root = self.folder.walk(b"")?;
        match rename_new(&self.versions, from, &root, to) {
            // A folder that its owner may not write to cannot be moved elsewhere by anybody but root.
            Err(Errno::ACCESS) => {
                let stat = fs::statat(&self.versions, from, AtFlags::SYMLINK_NOFOLLOW)?;
                let mode = Mode::from_raw_mode(stat.st_mode);
                chmod_at(&self.versions, from, mode | Mode::WUSR)?;
                rename_new(&self.versions, from, &root, to)?;
                chmod_at(&root, to, mode)
            }
            renamed => renamed,
        }
    }

    /// Both folders are on the disk as they are.
    pub(super) fn sync(&self) -> Result<()> {
        fs::fsync(self.folder.root())?;
        fs::fsync(&self.versions)
    }

    /// Removes what a run has made of its version.
    ///
    /// # Errors
    /// Whatever the system says.
    pub(crate) fn discard(&self, run: RunId) -> Result<()> {
        self.folder.forget();
        let left = format!("{run}{LEFT}");
        remove_tree(&self.versions, left.as_bytes())?;
        {
            // Whoever is about to give it its name must not find half of it.
            let _one = one_at_a_time();
            match rename_new(&self.versions, run.to_string().as_bytes(), &self.versions, left.as_bytes()) {
                Err(Errno::NOENT) => return Ok(()),
                renamed => renamed?,
            }
        }
        remove_tree(&self.versions, left.as_bytes())
    }

    /// Removes the agent's folders on the shelf if nothing is in them.
    pub(crate) fn tidy(self) {
        let _one = one_at_a_time();
        self.folder.forget();
        let Ok(ours) = self.folder.walk(STAGING_FOLDER) else { return };
        if fs::unlinkat(&ours, VERSIONS, AtFlags::REMOVEDIR).is_ok() {
            let _ = fs::unlinkat(self.folder.root(), STAGING_FOLDER, AtFlags::REMOVEDIR);
        }
    }

    /// Removes what crashes left: of runs that are not known any more, of versions that do not stand. What cannot be
    /// removed stays, and costs room only.
    ///
    /// # Errors
    /// If the shelf cannot be read.
    pub(crate) fn clean(&self, is_known: impl Fn(RunId) -> bool) -> Result<()> {
        for run in
            self.names()?.iter().filter_map(|name| name.parse::<RunId>().ok()).filter(|r| !is_known(*r))
        {
            if let Err(error) = self.discard(run) {
                tracing::warn!(%run, %error, "what is left of a version cannot be removed");
            }
        }
        // Nobody is between a version's manifest and its name meanwhile.
        let _one = one_at_a_time();
        let names = self.names()?;
        let forming: BTreeSet<RunId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        for name in &names {
            let of =
                |suffix: &str| name.strip_suffix(suffix).and_then(|name| name.parse::<VersionName>().ok());
            let left = if name.parse::<RunId>().is_ok() {
                false
            } else if let Some(run) = name.strip_suffix(LEFT) {
                run.parse::<RunId>().is_ok()
            } else if let Some(version) = of(MANIFEST).or_else(|| of(RECORD)) {
                // It may be about to get its name.
                let is_forming = self.note(&version).is_some_and(|note| forming.contains(&note.run));
                !self.stands(&version) && !is_forming && !names.contains(&format!("{version}{GONE}"))
            } else if let Some(version) = of(GONE) {
                !self.stands(&version)
            } else {
                // Left by a write that was broken off.
                name.ends_with(TMP)
            };
            if left && let Err(error) = remove_tree(&self.versions, name.as_bytes()) {
                tracing::warn!(name, %error, "what is left of a version cannot be removed");
            }
            if left && let Some(version) = of(GONE) {
                self.forget(&version);
            }
        }
        Ok(())
    }

    /// Removes record and manifest.
    pub(super) fn forget(&self, name: &VersionName) {
        for suffix in [MANIFEST, RECORD] {
            let file = format!("{name}{suffix}");
            match fs::unlinkat(&self.versions, file.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => tracing::warn!(file, %error, "what was noted of a version cannot be removed"),
            }
        }
    }

    /// What is under a version's name.
    pub(super) fn stat(&self, name: &VersionName) -> Result<fs::Stat> {
        fs::statat(self.folder.root(), name.to_string().as_str(), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether what is noted under a name is of a run that has not given it yet.
    pub(super) fn is_forming(&self, name: &VersionName) -> bool {
        let forming = self.note(name).map(|note| note.run.to_string());
        forming.is_some_and(|run| fs::statat(&self.versions, run.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    fn stands(&self, name: &VersionName) -> bool {
        self.stat(name).is_ok_and(|stat| file_type(&stat) == FileType::Directory)
    }

    /// What is noted of a version.
    pub(super) fn note(&self, name: &VersionName) -> Option<Note> {
        self.record(name).map(|(note, _)| note)
    }

    /// The same, and what somebody signed of it.
    fn record(&self, name: &VersionName) -> Option<(Note, Option<Signed>)> {
        let mut bytes = Vec::new();
        let file = self.open_kept(&format!("{name}{RECORD}")).ok()?;
        file.take(RECORD_LEN_MAX).read_to_end(&mut bytes).ok()?;
        match bytes.split_first() {
            Some((&RECORD_V1, note)) => Some((decode_exact("Note", note).ok()?, None)),
            Some((&RECORD_V2, signed)) => {
                let signed: Signed = decode_exact("Signed", signed).ok()?;
                let statement: Statement = decode_exact("Statement", &signed.bytes).ok()?;
                (statement.name == name.to_string()).then_some((statement.note, Some(signed)))
            }
            _ => None,
        }
    }

    /// Names in the agent's folder; those that are no text are nobody's of ours.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for item in Dir::read_from(&self.versions)? {
            let name = item?.file_name().to_str().map(str::to_owned);
            names.extend(name.ok().filter(|name| name != "." && name != ".."));
        }
        Ok(names)
    }

    fn open_kept(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(fs::openat(&self.versions, name, flags, Mode::empty())?);
        match file_type(&fs::fstat(&file)?) {
            FileType::RegularFile => Ok(file),
            _ => Err(Errno::INVAL),
        }
    }

    /// Writes a file whole or not at all; its name is not on the disk before [`Self::sync`].
    fn write_kept(&self, name: &str, write: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
        let beside = format!("{name}{TMP}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&self.versions, beside.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        let file = File::from(file);
        write(&file).and_then(|()| file.sync_all()).map_err(|e| errno(&e))?;
        fs::renameat(&self.versions, beside.as_str(), &self.versions, name)?;
        fs::fsync(&self.versions)
    }
}

/// What stands behind a name while its file is written.
const TMP: &str = ".tmp";

fn base() -> Vec<u8> {
    [STAGING_FOLDER, b"/", VERSIONS].concat()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn copy(from: &File, mut to: &File) -> io::Result<()> {
    let mut from = from.try_clone()?;
    from.rewind()?;
    io::copy(&mut from, &mut to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs as std_fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const RUN: RunId = RunId([3; 16]);

    struct Bed {
        room: tempfile::TempDir,
        shelf: Shelf,
        note: Note,
        manifest: File,
    }

    /// The storage agent's.
    fn key() -> SigningKey {
        SigningKey::from_bytes(&[2; 32])
    }

    impl Bed {
        fn new() -> Self {
            let room = tempfile::tempdir().expect("room");
            let shelf = Shelf::make(&room.path().join("shelf")).expect("made");
            let key = SigningKey::from_bytes(&[1; 32]);
            let head = Signed::sign(Domain::Manifest, vec![2, 3], &key);
            let source_key = key.verifying_key().to_bytes();
            let note = Note { run: RUN, source_key, head, complete: true };
            std_fs::write(room.path().join("manifest"), b"manifest").expect("room");
            let manifest = File::open(room.path().join("manifest")).expect("there");
            Self { room, shelf, note, manifest }
        }

        fn at(&self, path: &str) -> std::path::PathBuf {
            self.room.path().join("shelf").join(path)
        }

        fn make(&self, run: RunId, name: &str) -> Result<VersionName> {
            let forming = self.shelf.forming(run)?;
            fs::mkdirat(forming.root(), "inside", Mode::RWXU)?;
            let note = Note { run, ..self.note.clone() };
            self.shelf.give_name(&name.parse().expect("a name"), &note, &self.manifest, &key())
        }

        fn names(&self) -> Vec<String> {
            self.shelf.all().expect("readable").iter().map(|kept| kept.name.to_string()).collect()
        }
    }

    #[test]
    fn a_name_that_is_taken_is_left_alone() {
        let bed = Bed::new();
        let (first, second) = ("2026-01-02T030405Z", "2026-01-02T030405Z-2");
        assert_eq!(bed.make(RUN, first).expect("made").to_string(), first);
        assert_eq!(bed.make(RunId([4; 16]), first).expect("made").to_string(), second);
        // Whatever it is that has the name.
        std_fs::write(bed.at("2026-01-02T030405Z-3"), b"somebody's").expect("room");
        symlink("nowhere", bed.at("2026-01-02T030405Z-4")).expect("room");
        let third = bed.make(RunId([5; 16]), first).expect("made").to_string();
        assert_eq!(third, "2026-01-02T030405Z-5");
        assert_eq!(bed.names(), [first, second, &third]);
        assert_eq!(std_fs::read(bed.at("2026-01-02T030405Z-3")).expect("there"), b"somebody's");
        for name in bed.names() {
            assert!(bed.at(&name).join("inside").is_dir());
            let manifest = bed.at(&format!(".flotilla/versions/{name}.manifest"));
            assert_eq!(std_fs::read(manifest).expect("there"), b"manifest");
        }
    }

    #[test]
    fn a_folder_that_nobody_may_write_to_gets_its_name_and_keeps_its_mode() {
        let bed = Bed::new();
        let forming = bed.shelf.forming(RUN).expect("made");
        fs::fchmod(forming.root(), Mode::from_raw_mode(0o555)).expect("ours");
        let name = "2026-01-02T030405Z".parse().expect("a name");
        let name = bed.shelf.give_name(&name, &bed.note, &bed.manifest, &key()).expect("named");
        let mode = std_fs::metadata(bed.at(&name.to_string())).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o555);
    }

    #[test]
    fn records_that_are_none_are_not_believed() {
        let bed = Bed::new();
        let name = bed.make(RUN, "2026-01-02T030405Z").expect("made");
        let record = bed.at(".flotilla/versions/2026-01-02T030405Z.version");
        let whole = std_fs::read(&record).expect("there");
        assert_eq!(bed.shelf.note(&name), Some(bed.note.clone()));
        let mut bad: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        bad.push([&whole[..], b"x"].concat());
        bad.push([&[1], &whole[1..]].concat());
        bad.push([&[3], &whole[1..]].concat());
        bad.push(vec![1; 2 << 20]);
        bad.push([&[1][..], &[0xff; 100]].concat());
        for bytes in bad {
            std_fs::write(&record, &bytes).expect("room");
            assert_eq!((bed.shelf.note(&name), bed.names()), (None, vec![]), "{} bytes", bytes.len());
        }
        // What is no file is not followed, and does not block.
        std_fs::write(bed.room.path().join("record"), &whole).expect("room");
        std_fs::remove_file(&record).expect("there");
        symlink(bed.room.path().join("record"), &record).expect("room");
        assert_eq!(bed.shelf.note(&name), None);
        std_fs::remove_file(&record).expect("there");
        fs::mknodat(&bed.shelf.versions, "2026-01-02T030405Z.version", FileType::Fifo, Mode::RUSR, 0)
            .expect("made");
        assert_eq!(bed.shelf.note(&name), None);
        std_fs::remove_file(&record).expect("there");
        std_fs::write(&record, &whole).expect("room");
        assert_eq!(bed.names(), ["2026-01-02T030405Z"]);
        // Under another name it is none, and only one agent signed it.
        let other = "2026-01-02T030406Z".parse().expect("a name");
        std_fs::copy(&record, bed.at(".flotilla/versions/2026-01-02T030406Z.version")).expect("room");
        assert_eq!(bed.shelf.note(&other), None);
        let kept = bed.shelf.kept(name.clone()).expect("stands");
        assert!(kept.is_by(&key().verifying_key().to_bytes()) && !kept.is_by(&bed.note.source_key));
        // As releases before the second version wrote it.
        std_fs::write(&record, [&[1][..], &encode(&bed.note)].concat()).expect("room");
        let kept = bed.shelf.kept(name.clone()).expect("stands");
        assert_eq!((&kept.note, kept.is_by(&key().verifying_key().to_bytes())), (&bed.note, false));
        // Its head is nobody's: what cannot be proved is not given back.
        let kept = bed.shelf.kept(name).expect("stands");
        assert!(bed.shelf.manifest(&kept).is_err());
    }
}
