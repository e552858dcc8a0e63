//! `NAME.part.map`: which blocks of `NAME.part` are there when a transfer stops.
//!
//! Others may write to the folder: what is no file, too long for a map, or of another file is not believed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::{Reserved, create_anew};
use crate::place;
use crate::wire::Meta;

/// What is in `NAME.part`, kept beside it.
#[derive(Serialize, Deserialize)]
struct Map {
    version: u8,
    size: u64,
    modified: Option<(i64, u32)>,
    done: Vec<u64>,
}

const VERSION: u8 = 1;

/// The most bytes that the map of a file of so many words takes: ten for each number.
pub(super) fn longest(words: usize) -> u64 {
    64 + 10 * words as u64
}

/// Puts a map in the place of the one before, at once.
pub(super) fn write(reserved: &Reserved, meta: &Meta, done: Vec<u64>) -> io::Result<()> {
    let map = Map { version: VERSION, size: meta.size, modified: meta.modified, done };
    let bytes = postcard::to_extend(&map, Vec::new()).map_err(io::Error::other)?;
    let fresh = reserved.fresh_map();
    create_anew(&fresh)?.write_all(&bytes)?;
    fs::rename(&fresh, reserved.map())
}

/// The blocks that are there, if the map is of this file.
pub(super) fn read(reserved: &Reserved, meta: &Meta, file: &File, words: usize) -> Option<Vec<u64>> {
    let opened = place::open_regular(&reserved.map(), OpenOptions::new().read(true)).ok()?;
    if opened.metadata().ok()?.len() > longest(words) {
        return None;
    }
    let mut bytes = Vec::new();
    opened.take(longest(words)).read_to_end(&mut bytes).ok()?;
    let map: Map = postcard::from_bytes(&bytes).ok()?;
    let fits = map.version == VERSION && map.size == meta.size && map.modified == meta.modified;
    (fits && map.done.len() == words && file.metadata().ok()?.len() == meta.size).then_some(map.done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_map_is_not_too_long() {
        let words = 1000;
        let map = Map {
            version: u8::MAX,
            size: u64::MAX,
            modified: Some((i64::MIN, u32::MAX)),
            done: vec![u64::MAX; words],
        };
        assert!(postcard::to_extend(&map, Vec::new()).unwrap().len() as u64 <= longest(words));
    }
}
