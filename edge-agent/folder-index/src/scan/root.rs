//! The Merkle root over a file's block hashes, made as they come: as `sync_core::merkle::tree_root` does
//! of the whole list, in memory that grows with its logarithm.

use sha2::{Digest, Sha256};
use sync_core::merkle::{Hash, tree_root};

/// See the module.
pub(crate) struct RootHash {
    /// Roots of full subtrees, the largest first; bit n of `leaves` says whether there is one of 2^n.
    subtrees: Vec<Hash>,
    leaves: u64,
}

impl RootHash {
    pub(crate) fn new() -> Self {
        Self { subtrees: Vec::new(), leaves: 0 }
    }

    pub(crate) fn add(&mut self, leaf: Hash) {
        let (mut node, mut size) = (leaf, self.leaves);
        while size & 1 == 1
            && let Some(left) = self.subtrees.pop()
        {
            node = node_hash(&left, &node);
            size >>= 1;
        }
        self.subtrees.push(node);
        self.leaves += 1;
    }

    pub(crate) fn finish(self) -> Hash {
        let mut nodes = self.subtrees.into_iter().rev();
        match nodes.next() {
            None => tree_root(&[]),
            Some(last) => nodes.fold(last, |right, left| node_hash(&left, &right)),
        }
    }
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_core::merkle::block_hash;

    #[test]
    fn it_is_the_root_of_the_list() {
        let leaves: Vec<Hash> = (0..300u32).map(|i| block_hash(&i.to_le_bytes())).collect();
        for n in 0..=leaves.len() {
            let mut root = RootHash::new();
            leaves[..n].iter().for_each(|leaf| root.add(*leaf));
            assert_eq!(root.finish(), tree_root(&leaves[..n]), "{n} leaves");
        }
    }
}
