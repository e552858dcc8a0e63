//! Removing versions (`edge-agent/BACKUP.md` §5): those that are named and nothing else.

use std::path::Path;

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::held::Held;
use super::name::VersionName;
use super::shelf::{GONE, Shelf};
use crate::archive::{remove_tree, rename_new};
use crate::disk::file_type;

/// Versions that are taken from one command.
const NAMES_MAX: usize = 1000;

/// What thinning came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Thinned {
    /// Not there any more.
    pub(crate) removed: Vec<String>,
    /// Still there, or never a version, and why.
    pub(crate) failed: Vec<(String, String)>,
}

/// Removes versions from the shelf at `path`. Doing it again is no error.
pub(crate) fn thin(path: &Path, names: &[String]) -> Thinned {
    let mut thinned = Thinned::default();
    let shelf = match Shelf::open(path) {
        Ok(shelf) => Some(shelf),
        // Nothing was ever kept there, or a disk is missing: then a folder that is not there says nothing.
        Err(Errno::NOENT) => None,
        Err(error) => {
            thinned.failed = names.iter().map(|name| (name.clone(), error.to_string())).collect();
            return thinned;
        }
    };
    for (nth, name) in names.iter().enumerate() {
        let outcome = match (name.parse::<VersionName>(), &shelf) {
            _ if nth >= NAMES_MAX => Err("too many at once".into()),
            (Err(_), _) => Err("not the name of a version".into()),
            (Ok(_), None) => Err("the folder of the versions is not there".into()),
            (Ok(version), Some(shelf)) => shelf.remove(&version),
        };
        match outcome {
            Ok(()) => thinned.removed.push(name.clone()),
            Err(why) => thinned.failed.push((name.clone(), why)),
        }
    }
    thinned
}

impl Shelf {
    fn remove(&self, name: &VersionName) -> Result<(), String> {
        let told = |error: Errno| error.to_string();
        let gone = format!("{name}{GONE}");
        match self.stat(name) {
            Ok(stat) if file_type(&stat) != FileType::Directory => {
                return Err("something else is there".into());
            }
            Ok(_) if self.note(name).is_none() => {
                return Err("not a version that this agent made: nothing is noted of it".into());
            }
            Ok(stat) if Held::is_held(&stat) => return Err("in use".into()),
            Ok(_) => {
                // What an earlier removal left goes first: its name is needed.
                remove_tree(&self.versions, gone.as_bytes()).map_err(told)?;
                self.take_away(name, gone.as_bytes()).map_err(told)?;
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(told(error)),
        }
        remove_tree(&self.versions, gone.as_bytes()).map_err(told)?;
        self.forget(name);
        Ok(())
    }

    /// A version has no name any more: nobody sees half of it.
    fn take_away(&self, name: &VersionName, gone: &[u8]) -> Result<(), Errno> {
        let (root, from) = (self.folder.walk(b"")?, name.to_string());
        self.folder.forget();
        match rename_new(&root, from.as_bytes(), &self.versions, gone) {
            // Its owner may not write to it, which moving it elsewhere takes.
            Err(Errno::ACCESS) => {
                fs::chmodat(&*root, from.as_str(), fs::Mode::RWXU, AtFlags::empty())?;
                rename_new(&root, from.as_bytes(), &self.versions, gone)?;
            }
            renamed => renamed?,
        }
        self.sync()
    }
}
