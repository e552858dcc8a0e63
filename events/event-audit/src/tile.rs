//! Tiles after C2SP tlog-tiles: the tree cut into runs of 256 hashes of one level, and their names as files.
//!
//! Level 0 holds leaf hashes; each hash of a level above stands for one full tile of the level below.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;

use crate::limits::MAX_TREE_SIZE;

/// Levels of the tree in one tile.
pub const TILE_HEIGHT: u32 = 8;

/// Hashes of a full tile.
pub const TILE_WIDTH: usize = 1 << TILE_HEIGHT;

/// Bytes of a full tile.
pub const TILE_BYTES: usize = TILE_WIDTH * crate::hash::Hash::BYTES;

/// Levels of tiles of the largest tree.
pub const MAX_LEVELS: u8 = 7;

const _: () = assert!(MAX_TREE_SIZE >> (TILE_HEIGHT * MAX_LEVELS as u32) == 0);

/// Which tile: its level, its place in the level, and how many of its hashes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tile {
    /// From 0 at the leaves.
    pub level: u8,
    /// From 0 at the left.
    pub index: u64,
    /// 1 to 256; below that a partial tile.
    pub width: u16,
}

impl Tile {
    /// A full tile.
    pub fn full(level: u8, index: u64) -> Self {
        Self { level, index, width: TILE_WIDTH as u16 }
    }

    /// The unfinished tile at the right edge of a level in the tree of `size` entries; `None` if all of the level's
    /// hashes are in full tiles.
    pub fn edge(level: u8, size: u64) -> Option<Self> {
        let hashes = hashes_of_level(level, size);
        let width = (hashes % TILE_WIDTH as u64) as u16;
        (width > 0).then_some(Self { level, index: hashes >> TILE_HEIGHT, width })
    }

    /// Entries one of its hashes stands for, as a shift.
    pub fn shift(level: u8) -> u32 {
        TILE_HEIGHT * u32::from(level)
    }

    /// Whether it is full.
    pub fn is_full(&self) -> bool {
        usize::from(self.width) == TILE_WIDTH
    }

    /// Its path below the log's folder or address, such as `tile/0/x001/x234/067.p/8`.
    pub fn path(&self) -> String {
        let mut path = format!("tile/{}/", self.level);
        let mut groups = [0u16; 7];
        let (mut rest, mut count) = (self.index, 0);
        loop {
            groups[count] = (rest % 1_000) as u16;
            (rest, count) = (rest / 1_000, count + 1);
            if rest == 0 {
                break;
            }
        }
        for group in groups[1..count].iter().rev() {
            let _ = write!(path, "x{group:03}/");
        }
        let _ = write!(path, "{:03}", groups[0]);
        if !self.is_full() {
            let _ = write!(path, ".p/{}", self.width);
        }
        path
    }

    /// Reads what [`Tile::path`] writes; `None` if it is anything else.
    pub fn parse(path: &str) -> Option<Self> {
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let level = crate::checkpoint::decimal(level).filter(|level| *level < u64::from(MAX_LEVELS))? as u8;
        let (place, width) = match rest.split_once(".p/") {
            Some((place, width)) => (
                place,
                crate::checkpoint::decimal(width).filter(|w| (1..TILE_WIDTH as u64).contains(w))? as u16,
            ),
            None => (rest, TILE_WIDTH as u16),
        };
        let mut index: u64 = 0;
        let mut groups = place.split('/').peekable();
        while let Some(group) = groups.next() {
            let digits = if groups.peek().is_some() { group.strip_prefix('x')? } else { group };
            if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            index = index.checked_mul(1_000)?.checked_add(digits.parse().ok()?)?;
        }
        let tile = Self { level, index, width };
        // One name per tile: no needless groups of zeros.
        (tile.path() == path).then_some(tile)
    }
}

/// Hashes of a level in the tree of `size` entries, those of unfinished tiles included.
pub fn hashes_of_level(level: u8, size: u64) -> u64 {
    size.checked_shr(Tile::shift(level)).unwrap_or(0)
}

/// Levels of tiles in the tree of `size` entries: 0 for none.
pub fn levels(size: u64) -> u8 {
    (0..MAX_LEVELS).take_while(|level| hashes_of_level(*level, size) > 0).count() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let full = |level, index| Tile::full(level, index);
        for (tile, path) in [
            (full(0, 0), "tile/0/000"),
            (full(1, 7), "tile/1/007"),
            (full(0, 1_000), "tile/0/x001/000"),
            (full(3, 1_234_067), "tile/3/x001/x234/067"),
            (Tile { level: 0, index: 1_234_067, width: 8 }, "tile/0/x001/x234/067.p/8"),
            (Tile { level: 6, index: 0, width: 255 }, "tile/6/000.p/255"),
            (full(0, u64::MAX), "tile/0/x018/x446/x744/x073/x709/x551/615"),
        ] {
            assert_eq!(tile.path(), path);
            assert_eq!(Tile::parse(path), Some(tile));
        }
        for bad in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "tile/0/1",
            "tile/0/0001",
            "tile/00/001",
            "tile/7/000",
            "tile/0/x000/001",
            "tile/0/001/000",
            "tile/0/x01/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/000.p/",
            "tile/0/000/",
            "/tile/0/000",
            "tile/0/x999/x999/x999/x999/x999/x999/999",
            "tile/0/../000",
            "tile/-1/000",
            "tile/0/+01",
            "tile/entries/000",
        ] {
            assert_eq!(Tile::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn edges() {
        // The example of the specification: 70,000 entries.
        let widths: [Option<(u64, u16)>; 4] =
            core::array::from_fn(|level| Tile::edge(level as u8, 70_000).map(|t| (t.index, t.width)));
        assert_eq!(widths, [Some((273, 112)), Some((1, 17)), Some((0, 1)), None]);
        assert_eq!(levels(70_000), 3);
        assert_eq!((Tile::edge(0, 256), Tile::edge(1, 256).map(|t| t.width)), (None, Some(1)));
        assert_eq!((levels(0), levels(255), levels(256), levels(MAX_TREE_SIZE)), (0, 1, 2, MAX_LEVELS));
    }
}
