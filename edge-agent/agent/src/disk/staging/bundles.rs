//! Folders that get all their files with one rename (`edge-agent/PROTOCOL.md` §4.9).
//!
//! To rename a file is two fifths of what a small one costs a file system. Where this run made a folder and nothing but
//! some files is to be in it, those wait under their own names in a folder of the staging folder, and that takes the
//! empty one's place as soon as it is whole and on the disk. Whatever is in the way, each file is renamed by itself.

use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use rustix::fs::{self, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use sync_core::manifest::{Entry, Kind};

use super::Staging;
use super::naming::NAMES_MAX;
use crate::archive::remove_tree;
use crate::disk::manifest::ManifestFile;

/// Fewer files than this are renamed one by one: a folder is made, looked at and renamed for them.
const FILES_MIN: u64 = 8;

/// More than this hardly ever wait at the same time.
const FILES_MAX: u64 = NAMES_MAX as u64 / 2;

/// Names of such folders begin with this; the number of the folder's entry follows.
const PREFIX: u8 = b'd';

/// Finds such folders among entries that are told in their order.
#[derive(Default)]
pub(super) struct Gathering {
    /// The folder that is looked at, and its first entry.
    current: Option<(Vec<u8>, u64)>,
    found: Vec<Range<u64>>,
}

impl Gathering {
    /// The next entry; `made`: a folder that was made just now.
    pub(super) fn see(&mut self, entry: u64, e: &Entry, made: bool) {
        if let Some((folder, _)) = &self.current {
            match below(folder, &e.path) {
                Some(name) if !name.contains(&b'/') && waits_in_one_piece(&e.kind) => return,
                Some(_) => self.current = None,
                None => self.close(entry),
            }
        }
        if made && e.is_folder() {
            self.current = Some((e.path.clone(), entry + 1));
        }
    }

    fn close(&mut self, end: u64) {
        if let Some((_, first)) = self.current.take()
            && (FILES_MIN..=FILES_MAX).contains(&(end - first))
        {
            self.found.push(first..end);
        }
    }

    /// The entries of each, in order; `entries` is how many there are.
    pub(super) fn finish(mut self, entries: u64) -> Vec<Range<u64>> {
        self.close(entries);
        self.found
    }
}

impl Staging {
    /// The files that get their names together with this one.
    fn bundle_of(&self, entry: u64) -> Option<Range<u64>> {
        let after = self.bundles.partition_point(|bundle| bundle.start <= entry);
        let bundle = self.bundles.get(after.checked_sub(1)?)?;
        bundle.contains(&entry).then(|| bundle.clone())
    }

    /// Where an entry's unfinished file is, below the staging folder.
    pub(super) fn partial_path(&self, entry: u64) -> rustix::io::Result<Vec<u8>> {
        if !self.lock().bundled.contains(entry) {
            return Ok(entry.to_string().into_bytes());
        }
        let bundle = self.bundle_of(entry).ok_or(Errno::NOENT)?;
        Ok(path_in(bundle.start - 1, &self.manifest.entry(entry)?.path))
    }

    /// Makes the file of an entry where those wait that get their names together; `None` if it waits by itself.
    ///
    /// # Errors
    /// `EXIST` if something of it is there.
    pub(super) fn make_bundled(
        &self,
        entry: u64,
        e: &Entry,
        flags: OFlags,
        mode: Mode,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(bundle) = self.bundle_of(entry).filter(|_| !self.is_held_back()) else { return Ok(None) };
        let path = path_in(bundle.start - 1, &e.path);
        let make = || fs::openat(self.staging.as_fd(), &path[..], flags, mode);
        // A block can come twice at once: whose name is there already is known before it is looked for.
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match make() {
            Err(Errno::NOENT) => {
                fs::mkdirat(&self.staging, &name_of(bundle.start - 1)[..], Mode::RWXU).and_then(|()| make())
            }
            made => made,
        };
        match made {
            Ok(fd) => {
                self.lock().bundled.insert(entry);
                Ok(Some(fd))
            }
            Err(error) if is_full(error) => Err(error),
            Err(Errno::EXIST) if self.lock().bundled.contains(entry) => Err(Errno::EXIST),
            // To this file system it is the name of another one, or none; or there can be no more folders. A file that
            // waits by itself has a number for a name.
            Err(_) => Ok(None),
        }
    }

    /// Gives names to those of the sorted `entries` that are all of their folder, and leaves the others.
    pub(super) fn name_bundles(&self, entries: &mut Vec<u64>) {
        let mut left = Vec::new();
        let mut rest = &entries[..];
        while let Some(&entry) = rest.first() {
            let together = self.bundle_of(entry).filter(|bundle| {
                let many = (bundle.end - bundle.start) as usize;
                bundle.start == entry
                    && rest.get(many - 1) == Some(&(bundle.end - 1))
                    && self.lock().bundled.next_clear(entry).is_none_or(|clear| clear >= bundle.end)
            });
            let named = together.as_ref().is_some_and(|bundle| match self.name_bundle(bundle) {
                Ok(named) => named,
                Err(error) => {
                    tracing::debug!(%error, "a folder's files get their names one by one");
                    false
                }
            });
            let many = together.filter(|_| named).map_or(1, |bundle| (bundle.end - bundle.start) as usize);
            let (first, others) = rest.split_at(many);
            if !named {
                left.extend_from_slice(first);
            }
            rest = others;
        }
        *entries = left;
    }

    /// Puts a folder that is whole in the place of the empty one; false if that one is more than a folder of this run.
    fn name_bundle(&self, bundle: &Range<u64>) -> rustix::io::Result<bool> {
        let number = bundle.start - 1;
        let (folder, staged) = (self.manifest.entry(number)?, name_of(number));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (parent, name) = self.folder().parent(&folder.path)?;
        let there = fs::openat(&parent, name, flags, Mode::empty())?;
        let new = fs::openat(&self.staging, &staged[..], flags, Mode::empty())?;
        // What it has of the folder above, its group, its default ACL, files get later, and so would the new one not.
        let (was, is) = (fs::fstat(&there)?, fs::fstat(&new)?);
        if (was.st_uid, was.st_gid, was.st_mode) != (is.st_uid, is.st_gid, is.st_mode)
            || has_attributes(&there)
            || has_attributes(&new)
        {
            return Ok(false);
        }
        // Fails if anything is in it.
        fs::renameat(&self.staging, &staged[..], &parent, name)?;
        // What is kept open there is the folder that was.
        self.folder().forget();
        let mut inner = self.lock();
        inner.files.retain(|entry, _| !bundle.contains(entry));
        inner.placed.insert_range(bundle.clone());
        Ok(true)
    }
}

/// Lets files that an earlier life left to be named together wait by themselves. What cannot be taken apart is left, and
/// its files are fetched again: no more is lost with it.
///
/// # Errors
/// If the staging folder cannot be read or is full.
pub(super) fn take_apart(staging: &OwnedFd, manifest: &ManifestFile) -> rustix::io::Result<()> {
    let mut folders = Vec::new();
    for item in Dir::read_from(staging)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        let number =
            name.strip_prefix(&[PREFIX]).and_then(|n| std::str::from_utf8(n).ok()?.parse::<u64>().ok());
        folders.extend(number.filter(|&n| n < manifest.entries() && name_of(n) == name));
    }
    for number in folders {
        match take_one_apart(staging, manifest, number) {
            Err(error) if is_full(error) => return Err(error),
            Err(error) => tracing::warn!(%error, "files that waited for their names are fetched again"),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn take_one_apart(staging: &OwnedFd, manifest: &ManifestFile, number: u64) -> rustix::io::Result<()> {
    let staged = name_of(number);
    let folder = manifest.entry(number)?;
    let mut names = names_in(staging, &staged)?;
    for entry in number + 1..manifest.entries() {
        let e = manifest.entry(entry)?;
        let Some(name) = below(&folder.path, &e.path).filter(|_| !names.is_empty()) else { break };
        if names.remove(name) {
            let by_itself = entry.to_string();
            fs::renameat(staging, &path_in(number, &e.path)[..], staging, by_itself.as_bytes())?;
        }
    }
    remove_tree(staging, &staged)
}

fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

/// Whether it arrives with one block: others are written elsewhere, and a folder that has one would wait in vain.
fn waits_in_one_piece(kind: &Kind) -> bool {
    kind.has_no_holes() && kind.blocks() == 1
}

/// The first names in a folder, as many as such a folder has.
fn names_in(staging: &OwnedFd, name: &[u8]) -> rustix::io::Result<HashSet<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = fs::openat(staging, name, flags, Mode::empty())?;
    let mut names = HashSet::new();
    for item in Dir::read_from(&folder)?.take(FILES_MAX as usize + 2) {
        let item = item?;
        if item.file_type() != FileType::Directory {
            names.insert(item.file_name().to_bytes().to_vec());
        }
    }
    Ok(names)
}

/// Whether there is anything beside mode, owner and times; also if nobody can say.
fn has_attributes(folder: impl AsFd) -> bool {
    // Asked with no room at all, the library says that there are none; any name at all is longer than this.
    !matches!(fs::flistxattr(folder, &mut [0u8; 1][..]), Ok(0) | Err(Errno::NOTSUP))
}

fn name_of(folder: u64) -> Vec<u8> {
    [&[PREFIX][..], folder.to_string().as_bytes()].concat()
}

fn path_in(folder: u64, path: &[u8]) -> Vec<u8> {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    [&name_of(folder)[..], b"/", name].concat()
}

/// The rest of a path that is below a folder.
fn below<'p>(folder: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    path.strip_prefix(folder)?.strip_prefix(b"/")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use event_schema::RunId;

    use super::super::tests::{Case, noise};
    use super::super::{Opened, Staging};
    use super::*;

    const FILES: u64 = 20;

    /// A folder of small files, one of larger ones beside some, and one that has a folder in it.
    fn case() -> Case {
        let mut files = Vec::new();
        for n in 0..FILES {
            files.push((format!("all/f{n:02}"), noise(n, 100)));
            files.push((format!("large/f{n:02}"), noise(100 + n, 40_000)));
            files.push((format!("within/f{n:02}"), noise(200 + n, 100)));
        }
        files.push(("within/folder/f".to_owned(), noise(300, 100)));
        let files: Vec<_> = files.iter().map(|(name, bytes)| (&name[..], bytes.clone())).collect();
        Case::new(&files, &[])
    }

    fn blocks_of(case: &Case, folder: &str) -> Vec<u64> {
        let one = |n: u64| {
            let path = format!("{folder}/f{n:02}");
            let (entry, _) = case.manifest.known().find(path.as_bytes()).expect("readable").expect("there");
            case.manifest.entry(entry).expect("readable").blocks()
        };
        (0..FILES).flat_map(one).collect()
    }

    fn staging_folder(case: &Case) -> PathBuf {
        case.target.path().join(".flotilla").join(RunId([7; 16]).to_string())
    }

    fn name(staging: &Staging) {
        staging.name_waiting(&mut |problem| panic!("{problem:?}"));
    }

    fn inode(case: &Case, folder: &str) -> u64 {
        fs::metadata(case.target.path().join(folder)).expect("there").ino()
    }

    fn finish(case: &Case, opened: &Opened) {
        case.fetch(&opened.staging, 0..case.manifest.blocks());
        assert_eq!(opened.staging.finalize(), []);
        for n in 0..FILES {
            ["all", "large", "within"].iter().for_each(|folder| case.same(&format!("{folder}/f{n:02}")));
        }
        case.same("within/folder/f");
        assert!(!case.target.path().join(".flotilla").exists());
    }

    #[test]
    fn only_folders_of_files_that_are_new_are_gathered() {
        let case = case();
        let opened = case.open(&[]);
        let folders = opened.staging.bundles.iter().map(|bundle| {
            assert_eq!(bundle.end - bundle.start, FILES);
            case.manifest.entry(bundle.start - 1).expect("readable").path.clone()
        });
        assert_eq!(
            folders.collect::<Vec<_>>(),
            [&b"all"[..]],
            "one that has larger files would wait in vain"
        );
        drop(opened);
        // All folders are there now.
        assert!(case.open(&[]).staging.bundles.is_empty());
    }

    #[test]
    fn a_folder_takes_the_place_of_the_empty_one_when_all_of_it_waits() {
        let case = case();
        let opened = case.open(&[]);
        let before = inode(&case, "all");
        let blocks = blocks_of(&case, "all");
        case.fetch(&opened.staging, blocks.iter().copied());
        case.fetch(&opened.staging, blocks.iter().copied().take(3));
        assert!(fs::read_dir(case.target.path().join("all")).expect("there").next().is_none());
        for block in &blocks {
            assert!(opened.staging.read(*block).is_ok(), "others get what waits");
        }
        name(&opened.staging);
        assert_ne!(inode(&case, "all"), before);
        let mode = fs::metadata(case.target.path().join("all")).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "until the end");
        (0..FILES).for_each(|n| case.same(&format!("all/f{n:02}")));
        finish(&case, &opened);
    }

    #[test]
    fn what_is_in_the_way_or_not_whole_costs_names_one_by_one() {
        let case = case();
        let opened = case.open(&[]);
        let before = inode(&case, "all");
        fs::write(case.target.path().join("all/mine"), "mine").expect("written");
        case.fetch(&opened.staging, blocks_of(&case, "all"));
        // Larger ones are written elsewhere, and here some of them only.
        case.fetch(&opened.staging, blocks_of(&case, "large").into_iter().take(7));
        name(&opened.staging);
        assert_eq!(inode(&case, "all"), before);
        assert_eq!(fs::read(case.target.path().join("all/mine")).expect("there"), b"mine");
        case.same("all/f07");
        case.same("large/f02");
        finish(&case, &opened);

        // Half of it first.
        let case = self::case();
        let opened = case.open(&[]);
        let blocks = blocks_of(&case, "all");
        case.fetch(&opened.staging, blocks[10..].iter().copied());
        name(&opened.staging);
        case.same("all/f15");
        case.fetch(&opened.staging, blocks[..10].iter().copied());
        name(&opened.staging);
        case.same("all/f05");
        finish(&case, &opened);
    }

    #[test]
    fn what_a_folder_has_of_the_one_above_stays() {
        let case = case();
        let opened = case.open(&[]);
        let before = inode(&case, "all");
        let path = case.target.path().join("all");
        let set = rustix::fs::setxattr(&path, "user.mine", b"1", rustix::fs::XattrFlags::empty());
        if set == Err(Errno::NOTSUP) {
            eprintln!("!!! SKIPPED: the temporary folder's file system has no attributes");
            return;
        }
        set.expect("ours");
        case.fetch(&opened.staging, blocks_of(&case, "all"));
        name(&opened.staging);
        assert_eq!(inode(&case, "all"), before);
        finish(&case, &opened);
    }

    #[test]
    fn a_restart_fetches_nothing_again() {
        let case = case();
        let opened = case.open(&[]);
        let blocks = blocks_of(&case, "all");
        case.fetch(&opened.staging, blocks[..12].iter().copied());
        drop(opened);
        let number = case.manifest.known().find(b"all").expect("readable").expect("there").0;
        let left = staging_folder(&case).join(format!("d{number}"));
        assert_eq!(fs::read_dir(&left).expect("as it was left").count(), 12);
        fs::write(left.join("planted"), "never of this run").expect("written");
        let opened = case.reopen(&[]);
        assert!(!left.exists());
        assert_eq!(opened.verified.count(), 12);
        // They waited for their names; now nothing does.
        case.same("all/f03");
        finish(&case, &opened);
    }

    #[test]
    fn what_cannot_be_taken_apart_costs_no_more_than_fetching_it_again() {
        let case = case();
        let opened = case.open(&[]);
        let blocks = blocks_of(&case, "all");
        case.fetch(&opened.staging, blocks[..12].iter().copied());
        drop(opened);
        let number = case.manifest.known().find(b"all").expect("readable").expect("there").0;
        let left = staging_folder(&case).join(format!("d{number}"));
        fs::remove_dir_all(&left).expect("there");
        fs::write(&left, "no folder").expect("written");
        fs::write(staging_folder(&case).join(format!("d0{number}")), "of nobody").expect("written");
        let large = case.manifest.known().find(b"large").expect("readable").expect("there").0;
        std::os::unix::fs::symlink("/", staging_folder(&case).join(format!("d{large}"))).expect("made");
        // The folder is gone as well: it is made again, and gathered.
        fs::remove_dir(case.target.path().join("all")).expect("empty");
        let opened = case.reopen(&[]);
        assert_eq!(opened.verified.count(), 0);
        assert_eq!(opened.staging.bundles.len(), 1);
        case.fetch(&opened.staging, blocks.iter().copied());
        name(&opened.staging);
        finish(&case, &opened);
    }

    /// What a folder lost, its files do not show.
    #[test]
    fn nothing_is_named_at_once_where_the_disk_loses_what_is_written() {
        let case = case();
        let opened = case.open(&[]);
        let before = inode(&case, "all");
        case.fetch(&opened.staging, blocks_of(&case, "all"));
        *opened.staging.failing_sync.lock().expect("nobody panicked") = Some(Errno::IO);
        name(&opened.staging);
        assert_eq!(inode(&case, "all"), before);
        finish(&case, &opened);
    }

    #[test]
    fn a_run_that_is_stopped_leaves_nothing() {
        let case = case();
        let opened = case.open(&[]);
        case.fetch(&opened.staging, blocks_of(&case, "all"));
        opened.staging.remove_staging();
        assert!(!case.target.path().join(".flotilla").exists());
    }
}
