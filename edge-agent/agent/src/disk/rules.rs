//! The rules of a source's folder: what its owner leaves out (`edge-agent/PROTOCOL.md` §4.10).

use std::io::Read as _;
use std::path::Path;

use event_schema::{Problem, ProblemClass};
use folder_index::limits::IGNORE_LEN_MAX;
use folder_index::{IGNORE_FILE, Ignores};
use rustix::io::Errno;

use super::folder::Folder;
use super::problem;

/// The rules of a folder, and those of the job, which win.
///
/// # Errors
/// If any of them cannot be used: what it was to leave out must not be sent.
pub(super) fn of(folder: &Folder, job: &[String]) -> Result<Ignores, Problem> {
    let text = text(folder)?;
    Ignores::exact(&text, job).map_err(|error| {
        let class =
            if error.is_limit() { ProblemClass::LimitExceeded } else { ProblemClass::UnsupportedKind };
        unusable(class, &error)
    })
}

fn unusable(class: ProblemClass, why: &dyn std::fmt::Display) -> Problem {
    let detail = format!("the folder's rules cannot be used, so nothing is sent: {why}");
    Problem { class, path: IGNORE_FILE.to_vec(), detail }
}

/// What the folder's file of rules says, if there is one.
fn text(folder: &Folder) -> Result<Vec<u8>, Problem> {
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
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(unreadable(errno)),
    };
    let mut text = Vec::new();
    file.take(IGNORE_LEN_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| unreadable(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    Ok(text)
}

/// Whether the rules of the folder at `path`, and those of the job, can be used.
pub(crate) fn usable(path: &Path, job: &[String]) -> bool {
    Folder::open(path).is_ok_and(|folder| of(&folder, job).is_ok())
}
