//! The rules of a source's folder: what its owner leaves out (`edge-agent/PROTOCOL.md` §4.10).

use std::io::Read as _;
use std::path::Path;

use event_schema::{Problem, ProblemClass};
use folder_index::limits::IGNORE_LEN_MAX;
use folder_index::{IGNORE_FILE, Ignores};
use rustix::io::Errno;

use super::folder::Folder;
use super::problem;

/// The rules of a folder.
///
/// # Errors
/// If there is a file of rules and any of it cannot be used: what it was to leave out must not be sent.
pub(super) fn of(folder: &Folder) -> Result<Ignores, Problem> {
    let unusable = |class, why: &dyn std::fmt::Display| {
        let detail = format!("the folder's rules cannot be used, so nothing is sent: {why}");
        Problem { class, path: IGNORE_FILE.to_vec(), detail }
    };
    let unreadable = |errno: Errno| match errno {
        Errno::LOOP | Errno::INVAL | Errno::NXIO => {
            unusable(ProblemClass::UnsupportedKind, &"no ordinary file")
        }
        errno => {
            let Problem { class, detail, .. } = problem(errno, b"", "reading them");
            unusable(class, &detail)
        }
    };
    let file = match folder.open_file(IGNORE_FILE) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Ignores::none()),
        Err(errno) => return Err(unreadable(errno)),
    };
    let mut text = Vec::new();
    file.take(IGNORE_LEN_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| unreadable(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    Ignores::exact(&text).map_err(|error| {
        let class =
            if error.is_limit() { ProblemClass::LimitExceeded } else { ProblemClass::UnsupportedKind };
        unusable(class, &error)
    })
}

/// Whether the rules of the folder at `path` can be used, if it has any.
pub(crate) fn usable(path: &Path) -> bool {
    Folder::open(path).is_ok_and(|folder| of(&folder).is_ok())
}
