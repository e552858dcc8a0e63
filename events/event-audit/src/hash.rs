//! SHA-256 as RFC 9162 §2.1.1 uses it: leaves and inner nodes in domains of their own, so that neither passes for
//! the other.

use alloc::string::String;
use core::fmt;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

/// A leaf hash, an inner node or a root. Shown in base64, as the texts of C2SP have it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, core::hash::Hash)]
pub struct Hash(pub [u8; Hash::BYTES]);

impl Hash {
    /// Bytes of a hash.
    pub const BYTES: usize = 32;

    /// The leaf over one entry: `SHA-256(0x00 ‖ entry)`.
    pub fn leaf(entry: &[u8]) -> Self {
        Self(Sha256::new().chain_update([0]).chain_update(entry).finalize().into())
    }

    /// The node over two: `SHA-256(0x01 ‖ left ‖ right)`.
    pub fn node(left: &Self, right: &Self) -> Self {
        // In one piece: the hasher then sees 65 bytes at once instead of three parts.
        let mut bytes = [1; 1 + 2 * Self::BYTES];
        bytes[1..=Self::BYTES].copy_from_slice(&left.0);
        bytes[1 + Self::BYTES..].copy_from_slice(&right.0);
        Self(Sha256::digest(bytes).into())
    }

    /// The root of the tree without entries: `SHA-256("")`.
    pub fn of_nothing() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// The root of the tree whose leaves are `leaves`: RFC 9162's tree, which splits at the largest power of two.
    ///
    /// Also the hash of any run of equally tall, complete subtrees.
    pub fn over(leaves: &[Self]) -> Self {
        let mut level = leaves.to_vec();
        let mut count = level.len();
        if count == 0 {
            return Self::of_nothing();
        }
        // Level by level; a lone last node moves up unchanged.
        while count > 1 {
            for pair in 0..count / 2 {
                level[pair] = Self::node(&level[2 * pair], &level[2 * pair + 1]);
            }
            if count % 2 == 1 {
                level[count / 2] = level[count - 1];
            }
            count = count.div_ceil(2);
        }
        level[0]
    }

    /// The hash as base64 (RFC 4648 §4, padded), 44 characters.
    pub fn to_base64(self) -> String {
        BASE64.encode(&self.0)
    }

    /// Reads what [`Hash::to_base64`] writes; `None` if it is anything else.
    pub fn from_base64(text: &str) -> Option<Self> {
        BASE64.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// How long a history is, and the one hash that stands for all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Entries.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
}

impl Head {
    /// The head of the history without entries.
    pub fn of_nothing() -> Self {
        Self { size: 0, root: Hash::of_nothing() }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "size {} root {}", self.size, self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// RFC 9162 §2.1.1, word for word.
    fn recursive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::of_nothing(),
            [leaf] => *leaf,
            _ => {
                let k = leaves.len().next_power_of_two() / 2;
                Hash::node(&recursive(&leaves[..k]), &recursive(&leaves[k..]))
            }
        }
    }

    #[test]
    fn the_tree_is_that_of_the_rfc() {
        let leaves: Vec<Hash> = (0..260u16).map(|i| Hash::leaf(&i.to_be_bytes())).collect();
        for n in 0..leaves.len() {
            assert_eq!(Hash::over(&leaves[..n]), recursive(&leaves[..n]), "{n} leaves");
        }
    }

    #[test]
    fn base64_comes_back_and_nothing_else_is_taken() {
        let hash = Hash::leaf(b"x");
        let text = hash.to_base64();
        assert_eq!((Hash::from_base64(&text), text.len()), (Some(hash), 44));
        for bad in ["", "AAAA", &text[1..], &text.replace('=', ""), &alloc::format!("{text} ")] {
            assert_eq!(Hash::from_base64(bad), None, "{bad}");
        }
        // 32 bytes leave four bits of the last character unused: they have to be zero.
        let mut loose = text.into_bytes();
        let at = loose.len() - 2;
        loose[at] = if loose[at] == b'9' { b'8' } else { loose[at] + 1 };
        assert_eq!(Hash::from_base64(core::str::from_utf8(&loose).expect("ASCII")), None);
    }
}
