//! Inclusion and consistency proofs of RFC 9162 §2.1.3 and §2.1.4: made from any store of subtrees, checked without
//! one.
//!
//! Indices count from 0, as in the RFC: the entry at position *p* of the log has index *p* − 1.

use alloc::vec::Vec;
use core::fmt;

use crate::hash::{Hash, Head};
use crate::limits::MAX_PROOF_HASHES;

/// Why a proof does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofError {
    /// No such entry in the tree, or the older tree is larger than the newer one.
    Range,
    /// More or fewer hashes than these sizes need.
    Length,
    /// It does not lead to the (newer) tree's root.
    Root,
    /// It does not lead to the older tree's root.
    OldRoot,
}

impl fmt::Display for ProofError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Range => "the proof is about something the tree does not hold",
            Self::Length => "the proof has the wrong number of hashes",
            Self::Root => "the proof does not lead to the tree's root",
            Self::OldRoot => "the proof does not lead to the older tree's root",
        })
    }
}

impl core::error::Error for ProofError {}

/// Checks that the entry with this leaf hash stands at `index` in the tree (RFC 9162 §2.1.3.2).
///
/// # Errors
/// [`ProofError`] says what does not fit.
pub fn verify_inclusion(tree: &Head, index: u64, leaf: &Hash, path: &[Hash]) -> Result<(), ProofError> {
    if index >= tree.size {
        return Err(ProofError::Range);
    }
    let (mut node, mut last, mut root) = (index, tree.size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            root = Hash::node(sibling, &root);
            climb_to_right_child(&mut node, &mut last);
        } else {
            root = Hash::node(&root, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    match (last == 0, root == tree.root) {
        (false, _) => Err(ProofError::Length),
        (true, false) => Err(ProofError::Root),
        (true, true) => Ok(()),
    }
}

/// Checks that the first entries of `new` are exactly those of `old` (RFC 9162 §2.1.4.2).
///
/// The tree without entries is the beginning of every tree; its proof is empty.
///
/// # Errors
/// [`ProofError`] says what does not fit.
pub fn verify_consistency(old: &Head, new: &Head, path: &[Hash]) -> Result<(), ProofError> {
    if old.size > new.size {
        return Err(ProofError::Range);
    }
    if old.size == 0 || old.size == new.size {
        return match (path.is_empty(), old.size) {
            (false, _) => Err(ProofError::Length),
            (true, 0) if old.root != Hash::of_nothing() => Err(ProofError::OldRoot),
            (true, size) if size == new.size && old.root != new.root => Err(ProofError::Root),
            (true, _) => Ok(()),
        };
    }
    // A complete older tree is itself a node of the newer one; its hash is known and left out of the proof.
    let (seed, rest) = match path {
        _ if old.size.is_power_of_two() => (&old.root, path),
        [seed, rest @ ..] => (seed, rest),
        [] => return Err(ProofError::Length),
    };
    let (mut node, mut last) = (old.size - 1, new.size - 1);
    let skip = node.trailing_ones();
    (node, last) = (node >> skip, last >> skip);
    let (mut old_root, mut new_root) = (*seed, *seed);
    for hash in rest {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            old_root = Hash::node(hash, &old_root);
            new_root = Hash::node(hash, &new_root);
            climb_to_right_child(&mut node, &mut last);
        } else {
            new_root = Hash::node(&new_root, hash);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    match (last == 0, old_root == old.root, new_root == new.root) {
        (false, ..) => Err(ProofError::Length),
        (true, false, _) => Err(ProofError::OldRoot),
        (true, true, false) => Err(ProofError::Root),
        (true, true, true) => Ok(()),
    }
}

/// The last node of a level moves up unchanged until it is a right child: those levels have no hash in the proof.
fn climb_to_right_child(node: &mut u64, last: &mut u64) {
    // An even node gets here only as the last of its level, and a last node 0 ends the proof before.
    if *node & 1 == 0 && *node != 0 {
        let skip = node.trailing_zeros();
        (*node, *last) = (*node >> skip, *last >> skip);
    }
}

/// Where the hashes of complete subtrees come from when a proof is made.
pub trait Subtrees {
    /// Why one can't be had.
    type Error;

    /// The root of the complete subtree over the entries `index << height .. (index + 1) << height`.
    ///
    /// # Errors
    /// When it is not stored, or damaged.
    fn subtree(&self, height: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// The root of the tree over the first `size` entries.
///
/// # Errors
/// Those of the store.
pub fn root<S: Subtrees>(store: &S, size: u64) -> Result<Hash, S::Error> {
    if size == 0 { Ok(Hash::of_nothing()) } else { range(store, 0, size) }
}

/// The inclusion proof of an entry in the tree of `size` entries (RFC 9162 §2.1.3.1); `None` if it does not hold it.
///
/// # Errors
/// Those of the store.
pub fn prove_inclusion<S: Subtrees>(store: &S, index: u64, size: u64) -> Result<Option<Vec<Hash>>, S::Error> {
    if index >= size {
        return Ok(None);
    }
    let mut path = Vec::with_capacity(MAX_PROOF_HASHES);
    let (mut from, mut to) = (0, size);
    while to - from > 1 {
        let middle = split(from, to);
        if index < middle {
            path.push(range(store, middle, to)?);
            to = middle;
        } else {
            path.push(range(store, from, middle)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(Some(path))
}

/// The proof that the tree of `old` entries is the beginning of that of `new` (RFC 9162 §2.1.4.1); `None` if `old` is
/// the larger one.
///
/// # Errors
/// Those of the store.
pub fn prove_consistency<S: Subtrees>(store: &S, old: u64, new: u64) -> Result<Option<Vec<Hash>>, S::Error> {
    if old > new {
        return Ok(None);
    }
    let mut path = Vec::with_capacity(MAX_PROOF_HASHES);
    if old == 0 || old == new {
        return Ok(Some(path));
    }
    let (mut from, mut to, mut is_old_tree) = (0, new, true);
    while old != to {
        let middle = split(from, to);
        if old <= middle {
            path.push(range(store, middle, to)?);
            to = middle;
        } else {
            path.push(range(store, from, middle)?);
            from = middle;
            is_old_tree = false;
        }
    }
    if !is_old_tree {
        path.push(range(store, from, to)?);
    }
    path.reverse();
    Ok(Some(path))
}

/// Where RFC 9162 splits the entries `from..to` (at least two): after the largest power of two below their number.
fn split(from: u64, to: u64) -> u64 {
    from + (1 << (to - from - 1).ilog2())
}

/// The hash over the entries `from..to` (at least one), where `from` is a place at which the tree splits.
fn range<S: Subtrees>(store: &S, from: u64, to: u64) -> Result<Hash, S::Error> {
    // Complete subtrees, tallest first; then joined from the right.
    let mut subtrees = Vec::new();
    let mut at = from;
    while at < to {
        let height = (to - at).ilog2();
        subtrees.push(store.subtree(height, at >> height)?);
        at += 1 << height;
    }
    let mut hash = *subtrees.last().expect("at least one entry");
    for left in subtrees.iter().rev().skip(1) {
        hash = Hash::node(left, &hash);
    }
    Ok(hash)
}

#[cfg(test)]
mod tests;
