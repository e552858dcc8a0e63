//! Backups at an agent (`edge-agent/BACKUP.md`): the versions that a storage agent keeps of a source's folder, how they are
//! thinned and given back, and the watch over a source's folder.
//!
//! A version is made by an ordinary run, in a folder of its own, by the engine in `disk/`; what is here gives that folder
//! its name at the end ([`Shelf`]), and reads it back by its manifest ([`restore`]). Left out: which versions are kept and
//! when runs are started, which the control service decides.

mod held;
mod name;
pub(crate) mod restore;
mod shelf;
pub(crate) mod thin;
pub(crate) mod watch;

pub(crate) use held::Held;
pub(crate) use name::{NoVersion, VersionName};
pub(crate) use shelf::{Kept, Note, Shelf};

/// What a run is for, beyond bringing a folder to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Nothing else.
    #[default]
    Plain,
    /// A destination makes a version of its folder, which is a shelf.
    Version(VersionName),
    /// The source gives back what it kept as this version.
    Restore(VersionName),
}

impl Purpose {
    /// What a command says.
    ///
    /// # Errors
    /// If what it names is not the name of a version.
    pub(crate) fn of(told: &event_schema::Purpose) -> Result<Self, NoVersion> {
        Ok(match told {
            event_schema::Purpose::Plain => Self::Plain,
            event_schema::Purpose::Version { name } => Self::Version(name.parse()?),
            event_schema::Purpose::Restore { version, .. } => Self::Restore(version.parse()?),
        })
    }
}
