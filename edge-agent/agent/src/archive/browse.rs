//! Looking through a folder's archive and bringing things back, for who has a shell on the machine: what synchronizations
//! displaced (SYNC.md §11), what was disposed of at a source and what destinations kept (PROTOCOL.md §2.9, §2.10).
//!
//! Bringing back is a rename, as putting away was: at once, with everything that a file has, and on a disk that is full.
//! Nothing is replaced unless that is asked for; then it goes to the archive, into a group of its own. The agent may be at work meanwhile: what comes
//! back is a change by the owner like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use event_schema::Timestamp;
use rustix::fs::{self, AtFlags, FileType, Mode, RenameFlags, Stat};
use rustix::io::{Errno, Result};
use sync_core::manifest::{STAGING_FOLDER, check_path};

use super::{Archive, UNTIL, base, names, read_until, rename_new};
use crate::disk::{Folder, chmod_at, file_type};

/// How long what was replaced by something older is kept, in milliseconds: as long as synchronizations keep by default.
const KEPT_MS: u64 = 30 * 86_400_000;

/// Before 2024 no clock is right.
const CLOCK_SET: Timestamp = Timestamp(1_704_067_200_000);

/// Something that is in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Its group and its path in there.
    pub(crate) at: Vec<u8>,
    /// Where it was in the folder.
    pub(crate) path: Vec<u8>,
    /// `file`, `symlink` or `other`.
    pub(crate) kind: &'static str,
    /// Bytes of a file.
    pub(crate) size: u64,
    /// When it came here, by the clock of the machine.
    pub(crate) since: Timestamp,
    /// Until when it is kept, by the fleet's clock; none: until somebody removes it, or nobody can read it.
    pub(crate) until: Option<Timestamp>,
}

/// What of an archive is meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// What was at this path or below it; everything if empty.
    pub(crate) path: Vec<u8>,
    /// What lies there in the archive, alone.
    pub(crate) at: Option<Vec<u8>>,
    /// What came to the archive then or later.
    pub(crate) since: Option<Timestamp>,
}

impl Choice {
    fn takes(&self, kept: &Kept) -> bool {
        let below = |path: &[u8]| {
            let rest = path.strip_prefix(&self.path[..]);
            self.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        below(&kept.path)
            && self.at.as_ref().is_none_or(|at| *at == kept.at)
            && self.since.is_none_or(|since| kept.since >= since)
    }
}

/// What came of bringing one thing back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Restored {
    pub(crate) kept: Kept,
    /// Where it is now, or was to be.
    pub(crate) to: Vec<u8>,
    /// What was there has its place in the archive now.
    pub(crate) replaced: bool,
    /// Why it stays in the archive.
    pub(crate) trouble: Option<String>,
}

/// What is chosen of a folder's archive, by where it was, the latest of a path first.
///
/// # Errors
/// If the folder or its archive cannot be read.
pub(crate) fn list(root: &Path, choice: &Choice) -> Result<Vec<Kept>> {
    let folder = Folder::open(root)?;
    let archive = match folder.walk(&base()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        walked => walked?,
    };
    let mut all = Vec::new();
    for name in names(&archive)? {
        let Some(group) = name.strip_suffix(UNTIL.as_bytes()) else { continue };
        let until = read_until(&archive, &name);
        let versions = Versions::of(group, until);
        // Groups whose folder is not there have nothing.
        collect(
            &folder,
            group,
            versions,
            until.filter(|until| *until != Timestamp::NEVER),
            choice,
            &mut all,
        )?;
    }
    all.sort_by(|a, b| {
        a.path.cmp(&b.path).then(b.since.cmp(&a.since)).then(natural(&b.at).cmp(&natural(&a.at)))
    });
    Ok(all)
}

/// Numbers of versions sort as numbers: longer names later.
fn natural(at: &[u8]) -> (usize, &[u8]) {
    (at.len(), at)
}

/// How further versions of one path are named in a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Versions {
    None,
    /// `name~1`: synchronizations, also of folders where a file had the name.
    Tilde,
    /// `name.1`: destinations that keep what they replace.
    Dot,
}

impl Versions {
    fn of(group: &[u8], until: Option<Timestamp>) -> Self {
        match until {
            _ if group.starts_with(b"sync-") => Self::Tilde,
            Some(Timestamp::NEVER) => Self::Dot,
            _ => Self::None,
        }
    }

    /// The name that something had which has this one in an archive. People give such names too: it is a version only
    /// beside the one before it.
    fn original<'n>(self, name: &'n [u8], beside: &BTreeSet<Vec<u8>>) -> &'n [u8] {
        let mark = match self {
            Self::None => return name,
            Self::Tilde => b'~',
            Self::Dot => b'.',
        };
        let Some(at) = name.iter().rposition(|byte| *byte == mark).filter(|at| *at > 0) else { return name };
        let number = std::str::from_utf8(&name[at + 1..]).ok().and_then(|text| text.parse::<u32>().ok());
        let before = match number {
            Some(1) => name[..at].to_vec(),
            Some(n) if n > 1 => [&name[..=at], (n - 1).to_string().as_bytes()].concat(),
            _ => return name,
        };
        if beside.contains(&before) { &name[..at] } else { name }
    }
}

fn collect(
    folder: &Folder,
    group: &[u8],
    versions: Versions,
    until: Option<Timestamp>,
    choice: &Choice,
    all: &mut Vec<Kept>,
) -> Result<()> {
    // Folders to be read: where they lie in the archive, and where they were.
    let mut folders = vec![(group.to_vec(), Vec::new())];
    while let Some((at, was)) = folders.pop() {
        let opened = match folder.walk(&[&base()[..], b"/", &at].concat()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            opened => opened?,
        };
        let here: BTreeSet<Vec<u8>> = names(&opened)?.into_iter().collect();
        for name in &here {
            let stat = match fs::statat(&opened, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let original = versions.original(name, &here);
            let path = if was.is_empty() { original.to_vec() } else { [&was[..], b"/", original].concat() };
            let at = [&at[..], b"/", name].concat();
            let kind = match file_type(&stat) {
                FileType::Directory => {
                    folders.push((at, path));
                    continue;
                }
                FileType::RegularFile => "file",
                FileType::Symlink => "symlink",
                _ => "other",
            };
            let size = if kind == "file" { stat.st_size as u64 } else { 0 };
            let kept = Kept { at, path, kind, size, since: changed(&stat), until };
            if choice.takes(&kept) {
                all.push(kept);
            }
        }
    }
    Ok(())
}

/// When it was renamed last: that is when it came to the archive.
fn changed(stat: &Stat) -> Timestamp {
    let ms = i128::from(stat.st_ctime) * 1000 + i128::from(stat.st_ctime_nsec) / 1_000_000;
    Timestamp(u64::try_from(ms).unwrap_or(0))
}

/// Brings back the latest of each path that is chosen, to where it was or, if it is one alone, to `to`. What has its place
/// stays, and so does what is to come, unless `replace` says that they change places.
///
/// # Errors
/// If the archive cannot be read. What cannot be brought back says so itself.
pub(crate) fn restore(
    root: &Path,
    choice: &Choice,
    to: Option<&[u8]>,
    replace: bool,
) -> Result<Vec<Restored>> {
    let mut latest: BTreeMap<Vec<u8>, Kept> = BTreeMap::new();
    for kept in list(root, choice)? {
        // They come with the latest first.
        latest.entry(kept.path.clone()).or_insert(kept);
    }
    let folder = Folder::open(root)?;
    // The group that a file comes from may be over soon, or is being deleted just now: what it replaces has its own.
    let group = format!("restored-{:016}", crate::clock::now().0);
    let several = latest.len() > 1;
    let all = latest.into_values().map(|kept| {
        let target = to.map_or_else(|| kept.path.clone(), <[u8]>::to_vec);
        let done = if several && to.is_some() {
            Err("more than one is chosen, and they have one place".to_owned())
        } else {
            put_back(&folder, &kept, &target, replace, &group)
        };
        let replaced = done == Ok(true);
        Restored { kept, to: target, replaced, trouble: done.err() }
    });
    Ok(all.collect())
}

/// Says whether something was replaced.
fn put_back(
    folder: &Folder,
    kept: &Kept,
    target: &[u8],
    replace: bool,
    group: &str,
) -> std::result::Result<bool, String> {
    let own = target.split(|byte| *byte == b'/').any(|name| name == STAGING_FOLDER);
    if target.is_empty() || own || check_path(target).is_err() {
        return Err("that is no path inside the folder".into());
    }
    let said = |error: Errno| match error {
        Errno::NOTDIR => "a file is in the place of a folder above it".to_owned(),
        Errno::NOENT => "it is not in the archive any more".to_owned(),
        other => std::io::Error::from(other).to_string(),
    };
    make_above(folder, target).map_err(said)?;
    let lies = [&base()[..], b"/", &kept.at].concat();
    let (from, name) = folder.parent(&lies).map_err(said)?;
    let (to, new) = folder.parent(target).map_err(said)?;
    let replaced = match rename_new(&from, name, &to, new) {
        Ok(()) => false,
        Err(Errno::EXIST) if !replace => {
            return Err("something is there; --replace lets them change places".into());
        }
        Err(Errno::EXIST) => {
            let there = fs::statat(&to, new, AtFlags::SYMLINK_NOFOLLOW).map_err(said)?;
            if file_type(&there) == FileType::Directory {
                return Err("a folder is there".into());
            }
            match exchange(folder, group, target, (&from, name), (&to, new)) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    return Err(
                        "something is there, and this file system cannot let them change places".into()
                    );
                }
                exchanged => exchanged.map_err(said)?,
            }
            true
        }
        Err(error) => return Err(said(error)),
    };
    for changed in [&to, &from] {
        fs::fsync(changed).map_err(said)?;
    }
    Ok(replaced)
}

/// Makes the folders above a path that are not there. What they had before nobody knows: they are whose the folders above them
/// are.
fn make_above(folder: &Folder, path: &[u8]) -> Result<()> {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        if folder.make_free_folder(&path[..at])? {
            let (above, name) = folder.parent(&path[..at])?;
            chmod_at(&above, name, Mode::from_raw_mode(0o755))?;
            let owner = fs::fstat(&above)?;
            if rustix::process::geteuid().is_root() {
                let (user, group) = (fs::Uid::from_raw(owner.st_uid), fs::Gid::from_raw(owner.st_gid));
                fs::chownat(&above, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    Ok(())
}

/// Lets what is kept change places with what is at `target`, which gets a place in `group`.
fn exchange(
    folder: &Folder,
    group: &str,
    target: &[u8],
    kept: (&OwnedFd, &[u8]),
    there: (&OwnedFd, &[u8]),
) -> Result<()> {
    let now = crate::clock::now();
    // A machine whose clock was never set would give it no time at all by the clock of the fleet.
    let until = if now < CLOCK_SET { u64::MAX } else { now.0.saturating_add(KEPT_MS) };
    let archive = Archive::of(folder);
    archive.extend(group, Timestamp(until))?;
    let place = archive.path(group, target);
    make_above(folder, &place)?;
    let (own, name) = folder.parent(&place)?;
    rename_new(kept.0, kept.1, &own, name)?;
    let exchanged = fs::renameat_with(&own, name, there.0, there.1, RenameFlags::EXCHANGE);
    if exchanged.is_err() {
        rename_new(&own, name, kept.0, kept.1)?;
        archive.end(group)?;
    }
    exchanged?;
    fs::fsync(&own)
}

#[cfg(test)]
mod tests {
    use std::fs as std_fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Case {
        root: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            Self { root: tempfile::tempdir().expect("a folder") }
        }

        /// Files in a group, each with its own name as content; kept until then.
        fn group(&self, group: &str, until: &str, files: &[&str]) {
            let archive = self.root.path().join(".flotilla/archive");
            for file in files {
                let at = archive.join(group).join(file);
                std_fs::create_dir_all(at.parent().expect("below")).expect("made");
                std_fs::write(at, file).expect("written");
            }
            std_fs::write(archive.join(format!("{group}.until")), until).expect("written");
        }

        fn found(&self, choice: &Choice) -> Vec<String> {
            let text = |kept: &Kept| {
                format!("{} {}", String::from_utf8_lossy(&kept.path), String::from_utf8_lossy(&kept.at))
            };
            list(self.root.path(), choice).expect("listed").iter().map(text).collect()
        }

        fn read(&self, path: &str) -> Option<String> {
            std_fs::read_to_string(self.root.path().join(path)).ok()
        }

        fn restore(&self, path: &str, to: Option<&str>, replace: bool) -> Vec<Option<String>> {
            let choice = Choice { path: path.into(), ..Choice::default() };
            let all = restore(self.root.path(), &choice, to.map(str::as_bytes), replace).expect("listed");
            all.into_iter().map(|restored| restored.trouble).collect()
        }
    }

    #[test]
    fn each_kind_of_group_tells_where_things_were() {
        let case = Case::new();
        assert!(case.found(&Choice::default()).is_empty(), "a folder without an archive has nothing");
        let never = format!("{}\n", u64::MAX);
        // A file that was named so has no version before it beside it; a folder where a file was has a number too.
        case.group("sync-01-020000", "1\n", &["a", "a~1", "a~2", "backup~1", "d", "d~1/x", "~1"]);
        case.group("0123456789abcdef0123456789abcdef", "5\n", &["log", "log.1"]);
        case.group("fedcba9876543210fedcba9876543210", &never, &["clip", "clip.1", "v1.2", "day/clip"]);
        let mut expected = [
            "a sync-01-020000/a",
            "a sync-01-020000/a~1",
            "a sync-01-020000/a~2",
            "backup~1 sync-01-020000/backup~1",
            "d sync-01-020000/d",
            "d/x sync-01-020000/d~1/x",
            "~1 sync-01-020000/~1",
            "log 0123456789abcdef0123456789abcdef/log",
            "log.1 0123456789abcdef0123456789abcdef/log.1",
            "clip fedcba9876543210fedcba9876543210/clip",
            "clip fedcba9876543210fedcba9876543210/clip.1",
            "v1.2 fedcba9876543210fedcba9876543210/v1.2",
            "day/clip fedcba9876543210fedcba9876543210/day/clip",
        ];
        let mut found = case.found(&Choice::default());
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        let below = |path: &str| case.found(&Choice { path: path.into(), ..Choice::default() });
        assert_eq!(below("day"), ["day/clip fedcba9876543210fedcba9876543210/day/clip"]);
        assert!(below("da").is_empty() && below("day/clip/x").is_empty());
        let later = Choice { since: Some(Timestamp(u64::MAX)), ..Choice::default() };
        assert!(case.found(&later).is_empty());
        let until =
            list(case.root.path(), &Choice { path: b"log".into(), ..Choice::default() }).expect("listed");
        assert_eq!(until[0].until, Some(Timestamp(5)));
    }

    #[test]
    fn the_latest_comes_back_and_takes_the_place_of_nothing() {
        let case = Case::new();
        case.group("sync-01-020000", "1\n", &["docs/a", "docs/a~1", "docs/b"]);
        let program = case.root.path().join(".flotilla/archive/sync-01-020000/docs/b");
        std_fs::set_permissions(&program, std_fs::Permissions::from_mode(0o750)).expect("ours");
        assert_eq!(case.restore("docs", None, false), [None, None]);
        assert_eq!(case.read("docs/a").as_deref(), Some("docs/a~1"));
        let mode = std_fs::metadata(case.root.path().join("docs/b")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o750);
        // The older one is there still, and what is in its place stays.
        assert!(case.restore("docs/a", None, false)[0].is_some());
        assert_eq!(case.read("docs/a").as_deref(), Some("docs/a~1"));
        assert_eq!(case.restore("docs/a", None, true), [None]);
        assert_eq!(case.read("docs/a").as_deref(), Some("docs/a"));
        assert_eq!(case.found(&Choice::default()).len(), 1, "they changed places");
        let left = list(case.root.path(), &Choice::default()).expect("listed").remove(0);
        assert!(
            left.until > Some(Timestamp(crate::clock::now().0 + KEPT_MS / 2)),
            "what was replaced has its time before it"
        );
        assert!(left.at.starts_with(b"restored-"), "it is not in a group that is over");
        let over = std_fs::read_to_string(case.root.path().join(".flotilla/archive/sync-01-020000.until"));
        assert_eq!(over.expect("there"), "1\n");
        assert_eq!(case.restore("docs/a", Some("elsewhere/a"), false), [None]);
        assert_eq!(case.read("elsewhere/a").as_deref(), Some("docs/a~1"));
        assert!(case.restore("docs", None, false).is_empty(), "nothing is left");
    }

    #[test]
    fn nothing_comes_back_outside_of_the_folder_or_over_one() {
        let (case, elsewhere) = (Case::new(), tempfile::tempdir().expect("a folder"));
        case.group("sync-01-020000", "1\n", &["a", "link/x", "file/y"]);
        symlink(elsewhere.path(), case.root.path().join("link")).expect("linked");
        std_fs::write(case.root.path().join("file"), "in the way").expect("written");
        std_fs::create_dir(case.root.path().join("folder")).expect("made");
        for to in ["../a", "/a", ".flotilla/a", "deep/.flotilla/a", "", "link/a", "file/a", "folder"] {
            assert!(case.restore("a", Some(to), true)[0].is_some(), "{to}");
        }
        assert_eq!(case.restore("link", None, true).len(), 1);
        assert!(case.restore("file", None, false)[0].is_some());
        assert_eq!(std_fs::read_dir(elsewhere.path()).expect("there").count(), 0);
        assert_eq!(case.found(&Choice::default()).len(), 3, "all stays in the archive");
        // An archive that leads elsewhere is none.
        let trap = Case::new();
        std_fs::create_dir(trap.root.path().join(".flotilla")).expect("made");
        symlink(case.root.path().join(".flotilla/archive"), trap.root.path().join(".flotilla/archive"))
            .expect("linked");
        assert!(list(trap.root.path(), &Choice::default()).is_err());
    }
}
