//! Removing versions (`edge-agent/BACKUP.md` §5): those that are named and nothing else.

use std::path::Path;

use event_schema::{NotThinned, ThinObstacle};
use rustix::fs::{self, FileType};
use rustix::io::Errno;

use super::held::Held;
use super::name::VersionName;
use super::shelf::{GONE, Shelf, one_at_a_time};
use crate::archive::{remove_tree, rename_new};
use crate::disk::{chmod_at, file_type};

/// What thinning came to. Each name is in one of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Thinned {
    /// Not there any more.
    pub(crate) removed: Vec<String>,
    /// Still there, or never a version.
    pub(crate) failed: Vec<NotThinned>,
}

/// Removes versions from the shelf at `path`. Doing it again is no error.
pub(crate) fn thin(path: &Path, names: &[String]) -> Thinned {
    let mut thinned = Thinned::default();
    let shelf = Shelf::open(path).map_err(|error| match error {
        // Nothing was ever kept there, or a disk is missing: then a folder that is not there says nothing.
        Errno::NOENT => ThinObstacle::NoShelf,
        error => refused(path.as_os_str().as_encoded_bytes(), error),
    });
    for name in names {
        let outcome = match (name.parse::<VersionName>(), &shelf) {
            (Err(_), _) => Err(ThinObstacle::NotAVersion),
            (Ok(_), Err(why)) => Err(*why),
            (Ok(version), Ok(shelf)) => shelf.remove(&version),
        };
        match outcome {
            Ok(()) => thinned.removed.push(name.clone()),
            Err(why) => thinned.failed.push(NotThinned { version: name.clone(), why }),
        }
    }
    thinned
}

fn refused(what: &[u8], error: Errno) -> ThinObstacle {
    tracing::warn!(what = %what.escape_ascii(), %error, "a version cannot be removed");
    ThinObstacle::System
}

impl Shelf {
    fn remove(&self, name: &VersionName) -> Result<(), ThinObstacle> {
        let told = |error: Errno| refused(name.to_string().as_bytes(), error);
        let gone = format!("{name}{GONE}");
        let one = one_at_a_time();
        match self.stat(name) {
            // Something else is there, or a folder that this agent has not made: nothing is noted of it.
            Ok(stat) if file_type(&stat) != FileType::Directory => return Err(ThinObstacle::NotAVersion),
            Ok(_) if self.note(name).is_none() => return Err(ThinObstacle::NotAVersion),
            Ok(stat) if Held::is_held(&stat) => return Err(ThinObstacle::InUse),
            Ok(_) => {
                // What an earlier removal left goes first: its name is needed.
                remove_tree(&self.versions, gone.as_bytes()).map_err(told)?;
                self.take_away(name, gone.as_bytes()).map_err(told)?;
            }
            // It is not there; what is noted of it may be of a run that is about to give it its name.
            Err(Errno::NOENT) if self.is_forming(name) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(told(error)),
        }
        drop(one);
        remove_tree(&self.versions, gone.as_bytes()).map_err(told)?;
        let _one = one_at_a_time();
        if self.stat(name).is_err() && !self.is_forming(name) {
            self.forget(name);
        }
        Ok(())
    }

    /// A version has no name any more: nobody sees half of it.
    fn take_away(&self, name: &VersionName, gone: &[u8]) -> Result<(), Errno> {
        let (root, from) = (self.folder.walk(b"")?, name.to_string());
        self.folder.forget();
        match rename_new(&root, from.as_bytes(), &self.versions, gone) {
            // Its owner may not write to it, which moving it elsewhere takes.
            Err(Errno::ACCESS) => {
                chmod_at(&*root, from.as_bytes(), fs::Mode::RWXU)?;
                rename_new(&root, from.as_bytes(), &self.versions, gone)?;
            }
            renamed => renamed?,
        }
        self.sync()
    }
}
