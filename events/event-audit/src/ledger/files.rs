//! Files of a ledger: written beside and renamed, synced when told.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::LedgerError;
use crate::limits::MAX_NOTE_BYTES;

fn failed<'p>(doing: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> LedgerError + 'p {
    move |source| LedgerError::Io { doing, path: path.to_owned(), source }
}

/// Makes the folder, for its owner only, and locks it.
pub(super) fn lock(dir: &Path) -> Result<File, LedgerError> {
    make_folders(dir).map_err(failed("make", dir))?;
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
    }
}

fn make_folders(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// The file's content, at most that of the largest file of a ledger and a byte; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, LedgerError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_NOTE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(bytes))
}

/// Writes a file that a crash may leave in any state until it is synced.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let beside = write_beside(path, bytes)?;
    fs::rename(&beside, path).map_err(failed("rename", &beside))
}

/// Writes a file that is there wholly, or as it was before, whatever happens; on disk when this returns.
pub(super) fn write_durably(dir: &Path, path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let beside = write_beside(path, bytes)?;
    sync_one(&beside)?;
    fs::rename(&beside, path).map_err(failed("rename", &beside))?;
    sync(dir, &[path.to_owned()])
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, LedgerError> {
    let beside = path.with_added_extension("new");
    let written = match fs::write(&beside, bytes) {
        // The folder is new once in a thousand times: not worth asking before.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path);
            make_folders(folder).map_err(failed("make", folder))?;
            fs::write(&beside, bytes)
        }
        written => written,
    };
    written.map_err(failed("write", &beside))?;
    Ok(beside)
}

/// Syncs files and the folders they are in, up to `dir`.
pub(super) fn sync(dir: &Path, paths: &[PathBuf]) -> Result<(), LedgerError> {
    let mut folders = BTreeSet::new();
    for path in paths {
        sync_one(path)?;
        folders.extend(path.ancestors().skip(1).take_while(|folder| folder.starts_with(dir)));
    }
    #[cfg(unix)]
    for folder in folders {
        sync_one(folder)?;
    }
    Ok(())
}

/// Whether a whole file system can be synced at once.
pub(super) const SYNCS_ALL: bool = cfg!(target_os = "linux");

/// Syncs everything on the file system that `dir` is on.
#[cfg(target_os = "linux")]
pub(super) fn sync_all(dir: &Path) -> Result<(), LedgerError> {
    let folder = File::open(dir).map_err(failed("open", dir))?;
    rustix::fs::syncfs(folder).map_err(|error| failed("sync", dir)(error.into()))
}

/// Never asked for here.
#[cfg(not(target_os = "linux"))]
pub(super) fn sync_all(_: &Path) -> Result<(), LedgerError> {
    unreachable!("SYNCS_ALL says so")
}

fn sync_one(path: &Path) -> Result<(), LedgerError> {
    // Windows syncs only what may be written; elsewhere folders can only be read.
    let file = File::options().read(true).write(cfg!(windows)).open(path);
    file.and_then(|file| file.sync_all()).map_err(failed("sync", path))
}
