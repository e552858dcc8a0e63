//! Files to send: bytes that no one can compress, the same ones each time.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// Small files in one folder.
pub(crate) const PER_FOLDER: usize = 1000;

/// Compared and copied at a time.
const CHUNK: usize = 1 << 20;

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

/// Makes one file.
pub(crate) fn one(path: &Path, size: u64, seed: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let (mut random, mut left) = (Random::new(seed), size);
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let len = left.min(CHUNK as u64) as usize;
        random.fill(&mut chunk[..len]);
        file.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    Ok(file.flush()?)
}

/// Makes `count` files of `size` bytes each, a thousand in a folder.
pub(crate) fn many(root: &Path, count: usize, size: u64) -> Result<()> {
    let mut random = Random::new(7);
    let mut bytes = vec![0; usize::try_from(size)?];
    for n in 0..count {
        let path = root.join(many_name(n));
        if n % PER_FOLDER == 0 {
            fs::create_dir_all(path.parent().context("a folder")?)?;
        }
        random.fill(&mut bytes);
        fs::write(path, &bytes)?;
    }
    Ok(())
}

/// The path below the root of one of [`many`].
pub(crate) fn many_name(n: usize) -> String {
    format!("folder-{:04}/file-{n:07}", n / PER_FOLDER)
}

/// Gives all files below a folder, and the folders, the same time, so that two trees of the same content are the same.
pub(crate) fn same_times(root: &Path) -> Result<()> {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for item in fs::read_dir(root)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            same_times(&item.path())?;
        }
        File::open(item.path())?.set_modified(then)?;
    }
    Ok(())
}

/// Writes the file anew with one byte more at its start.
pub(crate) fn insert_at_start(path: &Path) -> Result<()> {
    let beside = path.with_extension("new");
    let (mut from, mut to) = (File::open(path)?, BufWriter::new(File::create(&beside)?));
    to.write_all(b"+")?;
    std::io::copy(&mut from, &mut to)?;
    to.flush()?;
    Ok(fs::rename(&beside, path)?)
}

/// Whether two files hold the same.
pub(crate) fn same(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let (mut a, mut b) = (open(one)?, open(other)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut x, mut y) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let len = a.read(&mut x)?;
        if len == 0 {
            return Ok(true);
        }
        b.read_exact(&mut y[..len])?;
        if x[..len] != y[..len] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_more_makes_another_file_of_the_same_bytes() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        one(&a, 3_000_001, 1).expect("made");
        one(&b, 3_000_001, 1).expect("made");
        assert!(same(&a, &b).expect("read"));
        insert_at_start(&b).expect("written");
        assert!(!same(&a, &b).expect("read"));
        let (a, b) = (fs::read(&a).expect("read"), fs::read(&b).expect("read"));
        assert_eq!(a[..], b[1..]);
    }

    #[test]
    fn many_files_are_as_many_and_all_different() {
        let dir = tempfile::tempdir().expect("a folder");
        many(dir.path(), 1002, 64).expect("made");
        let read = |name: &str| fs::read(dir.path().join(name)).expect("read");
        assert_eq!(read("folder-0001/file-0001001").len(), 64);
        assert_ne!(read("folder-0000/file-0000000"), read("folder-0000/file-0000001"));
    }
}
