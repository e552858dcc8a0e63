//! Hashes of blocks and the tree over them (RFC 9162 §2.1.1: domain-separated, unbalanced to the
//! right), so that one block can be checked on arrival.

use alloc::vec::Vec;

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Hash of one block, a leaf: `SHA-256(0x00 ‖ block)`.
pub fn block_hash(block: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(block).finalize().into()
}

/// Root over leaves: the leaf itself if there is one, `SHA-256("")` if there is none.
pub fn tree_root(leaves: &[Hash]) -> Hash {
    if leaves.is_empty() {
        return Sha256::digest([]).into();
    }
    // Level by level, a lone last node moves up unchanged: the same tree as RFC 9162's recursive
    // definition, which splits at the largest power of two.
    let mut level: Vec<Hash> = leaves.to_vec();
    while level.len() > 1 {
        let parents = level.chunks(2).map(|pair| match pair {
            [left, right] => node_hash(left, right),
            lone => lone[0],
        });
        level = parents.collect();
    }
    level[0]
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9162's definition, word for word.
    fn recursive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let k = leaves.len().next_power_of_two() / 2;
                node_hash(&recursive(&leaves[..k]), &recursive(&leaves[k..]))
            }
        }
    }

    #[test]
    fn agrees_with_the_recursive_definition() {
        let leaves: Vec<Hash> = (0..70u8).map(|i| block_hash(&[i])).collect();
        for n in 0..leaves.len() {
            assert_eq!(tree_root(&leaves[..n]), recursive(&leaves[..n]), "{n} leaves");
        }
    }

    #[test]
    fn a_leaf_is_not_a_node() {
        let (a, b) = (block_hash(b"a"), block_hash(b"b"));
        assert_ne!(block_hash(&[a, b].concat()), tree_root(&[a, b]));
    }
}
