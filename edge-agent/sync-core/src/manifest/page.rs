//! Pages: the byte form of entries in a row, each path given by what it has in common with the one before.

use alloc::borrow::ToOwned;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use agent_proto::limits::{ENTRY_LEN_MAX, PAGE_LEN, PATH_LEN_MAX};
use serde::{Deserialize, Serialize};

use super::check::shared_len;
use super::{BlockPlace, Entry, Extent, Kind, ManifestError, Mtime, Owner, Xattr};

/// Bytes of a row of the page table.
pub(super) const TABLE_ROW_LEN: u64 = 24;

/// Bytes that a page has at most.
pub(super) const PAGE_LEN_MAX: u64 = (PAGE_LEN + ENTRY_LEN_MAX) as u64;

/// A row of the page table: where a page lies and what it begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableRow {
    /// Position behind the start of the first page.
    pub(super) offset: u64,
    /// Index of its first entry.
    pub(super) entry: u64,
    /// Number of the first content block at or after its first entry.
    pub(super) block: u64,
}

impl TableRow {
    pub(super) fn to_bytes(self) -> [u8; TABLE_ROW_LEN as usize] {
        let mut bytes = [0; TABLE_ROW_LEN as usize];
        for (place, value) in bytes.chunks_exact_mut(8).zip([self.offset, self.entry, self.block]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut values = bytes.chunks_exact(8).map(|b| {
            let mut value = [0; 8];
            value.copy_from_slice(b);
            u64::from_le_bytes(value)
        });
        let mut next = || values.next().unwrap_or(0);
        Self { offset: next(), entry: next(), block: next() }
    }
}

/// An entry as it stands in a page.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    /// Bytes of the path that are those of the path before; 0 for the first of a page.
    shared: u16,
    #[serde(borrow)]
    rest: &'a [u8],
    mode: u16,
    mtime: Mtime,
    #[serde(borrow)]
    kind: RowKind<'a>,
    /// What most entries do not have, or have as the one before.
    #[serde(borrow)]
    extra: Option<Extra<'a>>,
}

#[derive(Serialize, Deserialize)]
enum RowKind<'a> {
    File {
        size: u64,
    },
    Folder,
    Symlink {
        #[serde(borrow)]
        target: &'a [u8],
    },
    HardLink {
        to: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct Extra<'a> {
    #[serde(borrow)]
    owner: RowOwner<'a>,
    #[serde(borrow)]
    xattrs: Vec<(&'a [u8], &'a [u8])>,
    /// Stretches of data: the hole before each, and its length.
    data: Option<Vec<(u64, u64)>>,
}

#[derive(Serialize, Deserialize)]
enum RowOwner<'a> {
    /// As the last one told in the page; not known if there was none.
    Before,
    Unknown,
    Is {
        uid: u32,
        gid: u32,
        #[serde(borrow)]
        user: &'a str,
        #[serde(borrow)]
        group: &'a str,
    },
}

/// What a page must know of the entries before in it.
#[derive(Default)]
pub(super) struct Context {
    path: Vec<u8>,
    owner: Option<Arc<Owner>>,
}

/// Adds an entry to a page.
pub(super) fn put(page: &mut Vec<u8>, context: &mut Context, entry: &Entry) {
    let shared = shared_len(&context.path, &entry.path);
    let has_owner = !matches!(entry.kind, Kind::HardLink { .. });
    let owner = match &entry.owner {
        owner if !has_owner || *owner == context.owner => RowOwner::Before,
        None => RowOwner::Unknown,
        Some(owner) => {
            RowOwner::Is { uid: owner.uid, gid: owner.gid, user: &owner.user, group: &owner.group }
        }
    };
    let data = match &entry.kind {
        Kind::File { data: Some(data), .. } => {
            let mut end = 0;
            let relative = data.iter().map(|extent| {
                let hole = extent.start - end;
                end = extent.end();
                (hole, extent.len)
            });
            Some(relative.collect())
        }
        _ => None,
    };
    let xattrs: Vec<_> = entry.xattrs.iter().map(|x| (x.name.as_slice(), x.value.as_slice())).collect();
    let plain = matches!(owner, RowOwner::Before) && data.is_none() && xattrs.is_empty();
    let row = Row {
        shared: shared as u16,
        rest: &entry.path[shared..],
        mode: entry.mode as u16,
        mtime: entry.mtime,
        kind: match &entry.kind {
            Kind::File { size, .. } => RowKind::File { size: *size },
            Kind::Folder => RowKind::Folder,
            Kind::Symlink { target } => RowKind::Symlink { target },
            Kind::HardLink { to } => RowKind::HardLink { to: *to },
        },
        extra: (!plain).then_some(Extra { owner, xattrs, data }),
    };
    // Plain data serialises into a growing buffer.
    *page = postcard::to_extend(&row, core::mem::take(page)).expect("a vector takes everything");
    context.path.clear();
    context.path.extend_from_slice(&entry.path);
    if has_owner {
        context.owner.clone_from(&entry.owner);
    }
}

/// Takes the next entry from the bytes of a page.
fn take(bytes: &mut &[u8], context: &mut Context) -> Option<Entry> {
    let (row, rest) = postcard::take_from_bytes::<Row<'_>>(bytes).ok()?;
    if bytes.len() - rest.len() > ENTRY_LEN_MAX {
        return None;
    }
    *bytes = rest;
    let shared = context.path.get(..usize::from(row.shared))?;
    if shared.len() + row.rest.len() > PATH_LEN_MAX {
        return None;
    }
    let path = [shared, row.rest].concat();
    let (owner, xattrs, data) = match row.extra {
        Some(extra) => (extra.owner, extra.xattrs, extra.data),
        None => (RowOwner::Before, Vec::new(), None),
    };
    let kind = match (row.kind, data) {
        (RowKind::File { size }, None) => Kind::file(size),
        (RowKind::File { size }, Some(data)) => Kind::File { size, data: Some(absolute(&data)?) },
        (_, Some(_)) => return None,
        (RowKind::Folder, None) => Kind::Folder,
        (RowKind::Symlink { target }, None) => Kind::Symlink { target: target.to_vec() },
        (RowKind::HardLink { to }, None) => Kind::HardLink { to },
    };
    let owner = match owner {
        RowOwner::Before => context.owner.clone(),
        RowOwner::Unknown => None,
        RowOwner::Is { uid, gid, user, group } => {
            Some(Arc::new(Owner { uid, gid, user: user.to_owned(), group: group.to_owned() }))
        }
    };
    let has_owner = !matches!(kind, Kind::HardLink { .. });
    if has_owner {
        context.owner.clone_from(&owner);
    }
    context.path.clone_from(&path);
    Some(Entry {
        path,
        mode: row.mode.into(),
        mtime: row.mtime,
        owner: owner.filter(|_| has_owner),
        kind,
        xattrs: xattrs.iter().map(|(n, v)| Xattr { name: n.to_vec(), value: v.to_vec() }).collect(),
    })
}

fn absolute(relative: &[(u64, u64)]) -> Option<Vec<Extent>> {
    let mut end = 0u64;
    let extents = relative.iter().map(|&(hole, len)| {
        let start = end.checked_add(hole)?;
        end = start.checked_add(len)?;
        Some(Extent { start, len })
    });
    extents.collect()
}

/// The entries of one page, decoded.
#[derive(Clone, Debug)]
pub struct Page {
    first_entry: u64,
    first_block: u64,
    entries: Vec<Entry>,
    /// Number of the first content block behind each entry.
    blocks_end: Vec<u64>,
}

impl Page {
    /// Reads a page that holds the entries in `range` and nothing else.
    pub(super) fn decode(
        mut bytes: &[u8],
        range: Range<u64>,
        first_block: u64,
    ) -> Result<Self, ManifestError> {
        let malformed = ManifestError::Malformed("a page");
        let (mut entries, mut blocks_end) = (Vec::new(), Vec::new());
        let (mut context, mut block, whole) = (Context::default(), first_block, bytes.len());
        while !bytes.is_empty() {
            // Pages end as soon as they are full, so that there can be no more of them than there must.
            if whole - bytes.len() >= PAGE_LEN {
                return Err(malformed);
            }
            let entry = take(&mut bytes, &mut context).ok_or(malformed.clone())?;
            block = block.checked_add(entry.kind.blocks()).ok_or(malformed.clone())?;
            entries.push(entry);
            blocks_end.push(block);
        }
        if entries.len() as u64 != range.end - range.start {
            return Err(malformed);
        }
        Ok(Self { first_entry: range.start, first_block, entries, blocks_end })
    }

    /// Index of the first entry.
    pub fn first_entry(&self) -> u64 {
        self.first_entry
    }

    /// Its entries with their indices.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (u64, &Entry)> + ExactSizeIterator {
        self.entries.iter().enumerate().map(|(i, entry)| (self.first_entry + i as u64, entry))
    }

    /// The entry with this index, if it is in this page.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index.checked_sub(self.first_entry)? as usize)
    }

    /// Numbers of the content blocks of an entry of this page; empty for what has none.
    pub fn blocks_of_entry(&self, index: u64) -> Range<u64> {
        let Some(nth) = index.checked_sub(self.first_entry).map(|nth| nth as usize) else { return 0..0 };
        let start = match nth.checked_sub(1) {
            Some(before) => self.blocks_end.get(before),
            None => Some(&self.first_block),
        };
        match (start, self.blocks_end.get(nth)) {
            (Some(&start), Some(&end)) => start..end,
            _ => 0..0,
        }
    }

    /// Where a content block lies, if its file is in this page.
    pub fn place(&self, block: u64) -> Option<BlockPlace> {
        // The first entry that ends behind the block; those without blocks end where the one before does.
        let nth = self.blocks_end.partition_point(|&end| end <= block);
        let index = self.first_entry + nth as u64;
        let range = self.blocks_of_entry(index);
        let (offset, len) = self.entries.get(nth)?.kind.block_at(block.checked_sub(range.start)?)?;
        Some(BlockPlace { entry: index, offset, len })
    }

    /// Number of the first content block behind the page.
    pub(super) fn end_block(&self) -> u64 {
        self.blocks_end.last().copied().unwrap_or(self.first_block)
    }

    /// The entry with this path.
    pub(super) fn find(&self, path: &[u8]) -> Option<(u64, &Entry)> {
        let nth = self.entries.binary_search_by(|e| super::compare_paths(&e.path, path)).ok()?;
        Some((self.first_entry + nth as u64, &self.entries[nth]))
    }
}

/// Path of a page's first entry, from the first bytes of the page.
pub(super) fn first_path(bytes: &[u8]) -> Result<&[u8], ManifestError> {
    match postcard::take_from_bytes::<(u16, &[u8])>(bytes) {
        Ok(((0, path), _)) => Ok(path),
        _ => Err(ManifestError::Malformed("a page")),
    }
}
