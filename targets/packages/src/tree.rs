//! Files with names and modes, and archives of them that depend on nothing else: no owner, no clock, no order of a folder.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use flate2::{Compression, GzBuilder};

/// Bytes that an archive may unpack to when it is checked: far beyond what our packages hold.
pub const UNPACKED_MAX: u64 = 256 << 20;

/// A file in a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Files by their relative paths, with `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    files: BTreeMap<String, File>,
}

impl Tree {
    /// Adds a file that is read.
    #[must_use]
    pub fn data(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.file(path, 0o644, bytes)
    }

    /// Adds a file that is run.
    #[must_use]
    pub fn program(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.file(path, 0o755, bytes)
    }

    fn file(mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.to_owned(), File { mode, bytes: bytes.into() });
        self
    }

    /// What is at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }

    /// All files, in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// Bytes of all contents.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.files.values().map(|file| file.bytes.len() as u64).sum()
    }

    /// Whether there is no file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// A tar archive (ustar): the files named in `first` in that order, then the others in the order of their paths, all of
    /// root, with one time. Folders stand before what is in them.
    pub fn tar(&self, first: &[&str], time: u64) -> io::Result<Vec<u8>> {
        self.archive("", first, time)
    }

    /// The same, compressed by gzip.
    pub fn tar_gz(&self, first: &[&str], time: u64) -> io::Result<Vec<u8>> {
        gzip(&self.tar(first, time)?)
    }

    /// The same with names that begin with `./`, as package managers of whole systems write them.
    pub fn dotted_tar_gz(&self, first: &[&str], time: u64) -> io::Result<Vec<u8>> {
        gzip(&self.archive("./", first, time)?)
    }

    fn archive(&self, head: &str, first: &[&str], time: u64) -> io::Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut folders = std::collections::BTreeSet::new();
        let mut append = |kind, mode, path: String, bytes: &[u8]| {
            let mut header = header(kind, mode, bytes.len() as u64, time);
            // By hand: the library takes a leading `./` away.
            let name = &mut header.as_old_mut().name;
            let room = name.get_mut(..path.len()).ok_or_else(|| long(&path))?;
            room.copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, bytes)
        };
        if !head.is_empty() {
            append(tar::EntryType::Directory, 0o755, head.to_owned(), &[])?;
        }
        let rest = self.files.keys().map(String::as_str).filter(|path| !first.contains(path));
        for path in first.iter().copied().filter(|path| self.files.contains_key(*path)).chain(rest) {
            for (at, _) in path.match_indices('/') {
                if folders.insert(&path[..at]) {
                    append(tar::EntryType::Directory, 0o755, format!("{head}{}/", &path[..at]), &[])?;
                }
            }
            let file = &self.files[path];
            append(tar::EntryType::Regular, file.mode, format!("{head}{path}"), &file.bytes)?;
        }
        builder.into_inner()
    }

    /// Reads a tar archive: regular files and folders alone, below where it is unpacked, [`UNPACKED_MAX`] at most.
    pub fn read_tar(archive: impl Read) -> io::Result<Self> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut tree = Self::default();
        let mut left = UNPACKED_MAX;
        let mut archive = tar::Archive::new(archive.take(2 * UNPACKED_MAX));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = String::from_utf8(entry.path_bytes().into_owned())
                .map_err(|_| bad("a name is no UTF-8".into()))?;
            let path = path.strip_prefix("./").unwrap_or(&path);
            if path.starts_with('/') || path.split('/').any(|name| name == "..") {
                return Err(bad(format!("{path:?} leads out of the package")));
            }
            match entry.header().entry_type() {
                tar::EntryType::Directory => continue,
                tar::EntryType::Regular => {}
                other => return Err(bad(format!("{path:?} is no file: {other:?}"))),
            }
            let mut bytes = Vec::new();
            entry.by_ref().take(left + 1).read_to_end(&mut bytes)?;
            left = left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| bad(format!("more than {UNPACKED_MAX} bytes")))?;
            let mode = entry.header().mode()?;
            if tree.files.insert(path.to_owned(), File { mode, bytes }).is_some() {
                return Err(bad(format!("{path:?} is there twice")));
            }
        }
        Ok(tree)
    }

    /// Reads what [`Tree::tar_gz`] writes.
    pub fn read_tar_gz(archive: &[u8]) -> io::Result<Self> {
        let mut archive = flate2::read::GzDecoder::new(archive).take(2 * UNPACKED_MAX);
        let tree = Self::read_tar(archive.by_ref())?;
        // A tar ends before its compressed form does, whose sum says that nothing was damaged.
        io::copy(&mut archive, &mut io::sink())?;
        Ok(tree)
    }
}

/// Compressed, always the same for the same bytes.
pub(crate) fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // No name and no time in the head: both would differ from build to build.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    gzip.finish()
}

/// What is compressed that way, [`UNPACKED_MAX`] at most.
#[cfg(test)]
pub(crate) fn gunzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(bytes).take(UNPACKED_MAX + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > UNPACKED_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {UNPACKED_MAX} bytes")));
    }
    Ok(unpacked)
}

fn long(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} has more than 100 bytes"))
}

fn header(kind: tar::EntryType, mode: u32, size: u64, time: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root").expect("it fits");
    header.set_groupname("root").expect("it fits");
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        Tree::default().data("INFO", "a=\"b\"\n").program("bin/run", [0u8; 700]).data("conf/x/y", "z")
    }

    #[test]
    fn what_is_written_is_read_and_always_the_same() {
        let tar = sample().tar(&["INFO"], 1_700_000_000).expect("written");
        assert_eq!(tar, sample().tar(&["INFO"], 1_700_000_000).expect("written"));
        assert!(tar.starts_with(b"INFO\0"), "first what readers want first");
        assert_eq!(Tree::read_tar(&tar[..]).expect("read"), sample());
        let gz = sample().tar_gz(&[], 1_700_000_000).expect("written");
        assert_eq!(gz, sample().tar_gz(&[], 1_700_000_000).expect("written"));
        assert_eq!(Tree::read_tar_gz(&gz).expect("read"), sample());
        assert_eq!(sample().len(), 6 + 700 + 1);
        let dotted = sample().dotted_tar_gz(&[], 1_700_000_000).expect("written");
        let tar = gunzip(&dotted).expect("read");
        assert!(tar.starts_with(b"./\0") && tar[512..].starts_with(b"./INFO\0"));
        assert_eq!(Tree::read_tar_gz(&dotted).expect("read"), sample());
        assert!(Tree::default().data(&"x".repeat(99), "").dotted_tar_gz(&[], 0).is_err(), "a name is cut");
    }

    #[test]
    fn what_leads_out_or_is_no_file_is_refused() {
        let made = |name: &str, kind: tar::EntryType| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = header(kind, 0o644, 0, 0);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            if kind == tar::EntryType::Symlink {
                header.set_link_name("/etc/passwd").expect("it fits");
            }
            header.set_cksum();
            builder.append(&header, io::empty()).expect("appended");
            builder.into_inner().expect("written")
        };
        for (name, kind) in [
            ("../x", tar::EntryType::Regular),
            ("/x", tar::EntryType::Regular),
            ("a/../../x", tar::EntryType::Regular),
            ("x", tar::EntryType::Symlink),
            ("x", tar::EntryType::Fifo),
            ("x", tar::EntryType::Block),
        ] {
            assert!(Tree::read_tar(&made(name, kind)[..]).is_err(), "{name} {kind:?}");
        }
        let twice: Vec<u8> =
            [&made("x", tar::EntryType::Regular)[..512], &made("x", tar::EntryType::Regular)].concat();
        assert!(Tree::read_tar(&twice[..]).is_err());
        let tar = sample().tar(&[], 0).expect("written");
        for len in 0..tar.len() {
            // Cut archives end or fail, but never say more than was there.
            if let Ok(tree) = Tree::read_tar(&tar[..len]) {
                assert!(tree.files().all(|(path, file)| sample().get(path) == Some(file)), "{len}");
            }
        }
    }
}
