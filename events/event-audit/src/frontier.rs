//! A tree that only grows, reduced to what the next entry and the next root need: the roots of the complete subtrees
//! along its right edge, at most one per bit of its size.

use alloc::vec::Vec;

use crate::hash::{Hash, Head};

/// The right edge of a growing tree.
///
/// [`push`](Frontier::push) costs one node hash on average and `log2(size)` at worst; memory is 32 bytes per set bit
/// of the size.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// Roots of complete subtrees, the tallest (leftmost) first: one per set bit of `size`.
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// The frontier of the empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// The frontier with these subtrees, tallest first; `None` unless there is one per set bit of `size`.
    pub fn from_subtrees(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (subtrees.len() == size.count_ones() as usize).then_some(Self { size, subtrees })
    }

    /// The subtrees, tallest first: with the size, what [`Frontier::from_subtrees`] takes.
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// Entries so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the leaf hash of the next entry.
    pub fn push(&mut self, leaf: Hash) {
        self.push_subtree(0, leaf);
    }

    /// Adds the root of a complete subtree of 2^`height` entries.
    ///
    /// # Panics
    /// If the size so far is not a multiple of 2^`height`: such a subtree does not stand in the tree.
    pub fn push_subtree(&mut self, height: u32, root: Hash) {
        let mut place = self.size >> height;
        assert!(place << height == self.size, "a subtree stands at a multiple of its size");
        let mut node = root;
        while place & 1 == 1 {
            let left = self.subtrees.pop().expect("one subtree per set bit of the size");
            node = Hash::node(&left, &node);
            place >>= 1;
        }
        self.subtrees.push(node);
        self.size += 1 << height;
    }

    /// The root over all entries so far.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        match subtrees.next() {
            None => Hash::of_nothing(),
            Some(&smallest) => subtrees.fold(smallest, |right, left| Hash::node(left, &right)),
        }
    }

    /// Size and root so far.
    pub fn head(&self) -> Head {
        Head { size: self.size, root: self.root() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_as_the_tree_does() {
        let leaves: Vec<Hash> = (0..300u16).map(|i| Hash::leaf(&i.to_le_bytes())).collect();
        let mut frontier = Frontier::new();
        for n in 0..=leaves.len() {
            assert_eq!(frontier.head(), Head { size: n as u64, root: Hash::over(&leaves[..n]) });
            assert_eq!(frontier.subtrees().len(), n.count_ones() as usize);
            let again = Frontier::from_subtrees(n as u64, frontier.subtrees().to_vec());
            assert_eq!(again.as_ref(), Some(&frontier));
            if n < leaves.len() {
                frontier.push(leaves[n]);
            }
        }
        assert_eq!(Frontier::from_subtrees(3, leaves[..1].to_vec()), None);
    }

    #[test]
    fn whole_subtrees_are_taken_at_once() {
        let leaves: Vec<Hash> = (0..600u16).map(|i| Hash::leaf(&i.to_le_bytes())).collect();
        let mut frontier = Frontier::new();
        frontier.push_subtree(8, Hash::over(&leaves[..256]));
        frontier.push_subtree(8, Hash::over(&leaves[256..512]));
        leaves[512..].iter().for_each(|leaf| frontier.push(*leaf));
        assert_eq!(frontier.root(), Hash::over(&leaves));
    }

    #[test]
    #[should_panic(expected = "multiple of its size")]
    fn a_subtree_has_its_place() {
        let mut frontier = Frontier::new();
        frontier.push(Hash::of_nothing());
        frontier.push_subtree(1, Hash::of_nothing());
    }
}
