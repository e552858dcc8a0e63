//! Whether two trees are the same: an eye of its own, that knows nothing of how the copy was made.
//!
//! Owns reading a tree (content by SHA-256, mode, time with nanoseconds, link targets, folders) and naming every
//! difference; and rsync's opinion. Owners and extended attributes are left out: Flotilla does not carry them yet.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use walkdir::WalkDir;

use crate::demo::stop::Stop;

/// A tree as it was read; the key is the path's bytes below the root, the root's own is empty.
pub(crate) struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
}

#[derive(PartialEq, Eq)]
struct Entry {
    content: Content,
    /// Permission bits; none for links, which have no modes of their own on Linux.
    mode: u32,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

#[derive(PartialEq, Eq)]
enum Content {
    File {
        size: u64,
        sha256: [u8; 32],
    },
    Folder,
    Link(Vec<u8>),
    /// Sockets, pipes, devices.
    Other,
}

/// What is to be carried, without reading it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Size {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Counts the files and bytes below `root`.
pub(crate) fn measure(root: &Path, stop: &Stop) -> Result<Size> {
    let mut size = Size::default();
    for entry in WalkDir::new(root) {
        stop.check()?;
        let entry = entry.with_context(|| format!("walking {}", root.display()))?;
        if entry.file_type().is_file() {
            size.files += 1;
            size.bytes += entry.metadata()?.len();
        }
    }
    Ok(size)
}

/// Reads the tree with all its contents.
pub(crate) fn read(root: &Path, stop: &Stop) -> Result<Tree> {
    let mut entries = BTreeMap::new();
    let mut buffer = vec![0; 256 * 1024];
    for entry in WalkDir::new(root) {
        stop.check()?;
        let entry = entry.with_context(|| format!("walking {}", root.display()))?;
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes().to_vec();
        let about = entry.metadata().with_context(|| format!("asking about {}", path.display()))?;
        let kind = entry.file_type();
        let content = if kind.is_file() {
            Content::File { size: about.len(), sha256: hash(path, &mut buffer)? }
        } else if kind.is_dir() {
            Content::Folder
        } else if kind.is_symlink() {
            Content::Link(fs::read_link(path)?.into_os_string().into_vec())
        } else {
            Content::Other
        };
        let mode = if kind.is_symlink() { 0 } else { about.mode() & 0o7777 };
        entries.insert(name, Entry { content, mode, modified: (about.mtime(), about.mtime_nsec()) });
    }
    Ok(Tree { entries })
}

fn hash(path: &Path, buffer: &mut [u8]) -> Result<[u8; 32]> {
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    loop {
        match file.read(buffer).with_context(|| format!("reading {}", path.display()))? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Every difference, one line each; empty if `copy` is the same as `source`.
pub(crate) fn differences(source: &Tree, copy: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let shown = |name: &[u8]| {
        let path = PathBuf::from(OsString::from_vec(name.to_vec()));
        if name.is_empty() { "the top folder".to_owned() } else { format!("{path:?}") }
    };
    for (name, wanted) in &source.entries {
        match copy.entries.get(name) {
            None => found.push(format!("{} is missing", shown(name))),
            Some(is) => {
                found.extend(wanted.against(is).into_iter().map(|text| format!("{} {text}", shown(name))))
            }
        }
    }
    for name in copy.entries.keys().filter(|name| !source.entries.contains_key(*name)) {
        found.push(format!("{} is not in the source", shown(name)));
    }
    found
}

impl Entry {
    fn against(&self, is: &Entry) -> Vec<String> {
        let mut found = Vec::new();
        match (&self.content, &is.content) {
            (wanted, is) if wanted == is => {}
            (Content::File { size: a, .. }, Content::File { size: b, .. }) if a != b => {
                found.push(format!("has {b} bytes instead of {a}"));
            }
            (Content::File { .. }, Content::File { .. }) => found.push("has other content".to_owned()),
            (Content::Link(_), Content::Link(_)) => found.push("leads elsewhere".to_owned()),
            (wanted, is) => found.push(format!("is {} instead of {}", is.kind(), wanted.kind())),
        }
        if self.mode != is.mode {
            found.push(format!("has mode {:04o} instead of {:04o}", is.mode, self.mode));
        }
        if self.modified != is.modified {
            let [is, wanted] = [is, self].map(|e| format!("{}.{:09}", e.modified.0, e.modified.1));
            found.push(format!("was modified at {is} instead of {wanted}"));
        }
        found
    }
}

impl Content {
    fn kind(&self) -> &'static str {
        match self {
            Content::File { .. } => "a file",
            Content::Folder => "a folder",
            Content::Link(_) => "a link",
            Content::Other => "something else",
        }
    }
}

#[cfg(test)]
impl Tree {
    pub(crate) fn files(&self) -> u64 {
        self.entries.values().filter(|e| matches!(e.content, Content::File { .. })).count() as u64
    }

    pub(crate) fn has_link(&self) -> bool {
        self.entries.values().any(|e| matches!(e.content, Content::Link(_)))
    }

    pub(crate) fn has_empty_file(&self) -> bool {
        self.entries.values().any(|e| matches!(e.content, Content::File { size: 0, .. }))
    }
}

/// What rsync would have to change to make `copy` the same as `source`: nothing, one hopes.
pub(crate) fn rsync(source: &Path, copy: &Path) -> Result<Vec<String>> {
    let slash = |path: &Path| {
        let mut path = path.as_os_str().to_owned();
        path.push("/");
        path
    };
    let output = Command::new("rsync")
        .args(["-nrlpt", "--checksum", "--itemize-changes", "--"])
        .args([slash(source), slash(copy)])
        .stdin(Stdio::null())
        .output()
        .context("running rsync")?;
    ensure!(output.status.success(), "rsync failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A small tree, changed by `change`; `expected` is part of the only difference.
    #[track_caller]
    fn expect(change: impl FnOnce(&Path), expected: &str) {
        let stop = Stop::install().unwrap();
        let [source, copy] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for root in [source.path(), copy.path()] {
            fs::create_dir(root.join("folder")).unwrap();
            fs::write(root.join("folder/file"), "content").unwrap();
            symlink("folder", root.join("link")).unwrap();
        }
        change(copy.path());
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 123);
        let stamp = |path: PathBuf| fs::File::open(path).unwrap().set_modified(at).unwrap();
        let time = rustix::fs::Timespec { tv_sec: 1_000_000, tv_nsec: 123 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        for root in [source.path(), copy.path()] {
            for name in ["folder/file", "folder", ""] {
                let path = root.join(name);
                if path.exists()
                    && !(expected.contains("modified") && name == "folder/file" && root == copy.path())
                {
                    stamp(path);
                }
            }
            let _ = rustix::fs::utimensat(
                rustix::fs::CWD,
                root.join("link"),
                &times,
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            );
        }
        let [source, copy] = [&source, &copy].map(|root| read(root.path(), &stop).unwrap());
        let found = differences(&source, &copy);
        if expected.is_empty() {
            assert_eq!(found, Vec::<String>::new());
        } else {
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let file = |root: &Path| root.join("folder/file");
        expect(|_| {}, "");
        expect(|root| fs::write(file(root), "Content").unwrap(), "has other content");
        expect(|root| fs::write(file(root), "content!").unwrap(), "has 8 bytes instead of 7");
        expect(|root| fs::remove_file(file(root)).unwrap(), "is missing");
        expect(|root| fs::write(root.join("more"), "x").unwrap(), "is not in the source");
        let mode = fs::Permissions::from_mode(0o751);
        expect(|root| fs::set_permissions(root.join("folder"), mode).unwrap(), "has mode 0751");
        let late = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 124);
        expect(
            |root| fs::File::open(file(root)).unwrap().set_modified(late).unwrap(),
            "modified at 1000000.000000124 instead of 1000000.000000123",
        );
        expect(
            |root| {
                fs::remove_file(root.join("link")).unwrap();
                symlink("elsewhere", root.join("link")).unwrap();
            },
            "leads elsewhere",
        );
    }
}
