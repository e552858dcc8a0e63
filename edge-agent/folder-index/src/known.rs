//! Hashes of files that are as the index knows them, for whoever reads a folder anyway and can stat (§3).

use rustix::fs::Stat;

use crate::index::{Index, IndexError};
use crate::record::{Content, FolderId, Kind, Record, Stamp};
use crate::snapshot::Snapshot;
use crate::tables::Identity;

/// A picture of an index, asked for one file after the other. Quickest for files in the order of a
/// manifest: the folder of the last one is remembered.
pub struct Known {
    snapshot: Snapshot,
    root_dev: u64,
    last: Option<(Vec<u8>, Option<FolderId>)>,
}

impl Known {
    /// What the index holds now; none if another folder stands in the place of the one that it is of.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn open(index: &Index) -> Result<Option<Self>, IndexError> {
        let Ok(stat) = rustix::fs::stat(index.root()) else { return Ok(None) };
        let known = index.identity()?;
        let here = |known: &Identity| known.ino == stat.st_ino && known.dev == stat.st_dev;
        if !known.as_ref().is_some_and(here) {
            return Ok(None);
        }
        Ok(Some(Self { snapshot: index.snapshot()?, root_dev: stat.st_dev, last: None }))
    }

    /// The content of the file at `path`, if it is known and `stat` is as it was then.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn content(&mut self, path: &[u8], stat: &Stat) -> Result<Option<Content>, IndexError> {
        Ok(self.record(path, stat)?.and_then(|record| record.content().copied()))
    }

    /// The same, if the file had neither holes nor attributes that travel: then nothing is left to be asked of it.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn plain(&mut self, path: &[u8], stat: &Stat) -> Result<Option<Content>, IndexError> {
        let record = self.record(path, stat)?;
        let plain = record.filter(|record| record.attributes.is_none() && !record.stamp.sparse);
        Ok(plain.and_then(|record| record.content().copied()))
    }

    /// What is known of the file at `path`, if `stat` is as it was then.
    fn record(&mut self, path: &[u8], stat: &Stat) -> Result<Option<Record>, IndexError> {
        let (above, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        let folder = match &self.last {
            Some((last, folder)) if last == above => *folder,
            _ => {
                let folder = match self.snapshot.entry(above)? {
                    Some(Record { kind: Kind::Folder(id), .. }) => Some(id),
                    _ => None,
                };
                self.last = Some((above.to_vec(), folder));
                folder
            }
        };
        let Some(folder) = folder else { return Ok(None) };
        let record = self.snapshot.at(folder, name)?;
        let stamp = Stamp::of(stat, self.root_dev);
        Ok(record.filter(|record| record.stamp.same_content(&stamp)))
    }

    /// See [`Snapshot::blocks`].
    pub fn blocks<'s>(
        &'s self,
        size: u64,
        content: &'s Content,
    ) -> impl Iterator<Item = Result<(sync_core::merkle::Hash, u32), IndexError>> + 's {
        self.snapshot.blocks(size, content)
    }
}
