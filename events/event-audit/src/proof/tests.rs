//! Every proof of every small tree holds, no wrong one does, and the public reference tree comes out.

use alloc::vec;
use alloc::vec::Vec;

use super::*;

/// A tree held whole: the obvious store of subtrees.
struct Whole(Vec<Hash>);

impl Subtrees for Whole {
    type Error = core::convert::Infallible;

    fn subtree(&self, height: u32, index: u64) -> Result<Hash, Self::Error> {
        let (from, to) = (index << height, (index + 1) << height);
        Ok(Hash::over(&self.0[from as usize..to as usize]))
    }
}

impl Whole {
    fn of(entries: u64) -> Self {
        Self((0..entries).map(|i| Hash::leaf(&i.to_be_bytes())).collect())
    }

    fn head(&self, size: u64) -> Head {
        Head { size, root: Hash::over(&self.0[..size as usize]) }
    }

    fn inclusion(&self, index: u64, size: u64) -> Vec<Hash> {
        let Ok(path) = prove_inclusion(self, index, size);
        path.expect("the entry is in the tree")
    }

    fn consistency(&self, old: u64, new: u64) -> Vec<Hash> {
        let Ok(path) = prove_consistency(self, old, new);
        path.expect("the older tree is not larger")
    }
}

/// All ways to spoil a proof by one step: a flipped bit, one hash more or less, two exchanged.
fn spoiled(path: &[Hash]) -> Vec<Vec<Hash>> {
    let mut all = vec![
        [path, &[Hash::leaf(b"more")]].concat(),
        [&[Hash::leaf(b"more")], path].concat(),
        [path, &[Hash::of_nothing()]].concat(),
    ];
    for at in 0..path.len() {
        let mut flipped = path.to_vec();
        flipped[at].0[at % 32] ^= 1 << (at % 8);
        let mut short = path.to_vec();
        short.remove(at);
        all.extend([flipped, short, [path, &path[at..=at]].concat()]);
        if at > 0 {
            let mut exchanged = path.to_vec();
            exchanged.swap(at, at - 1);
            all.push(exchanged);
        }
    }
    all
}

const SIZES: u64 = 131;

#[test]
fn every_inclusion_proof_holds_and_no_wrong_one_does() {
    let tree = Whole::of(SIZES);
    for size in 1..=SIZES {
        let head = tree.head(size);
        let Ok(computed) = root(&tree, size);
        assert_eq!(computed, head.root);
        for index in 0..size {
            let (leaf, path) = (tree.0[index as usize], tree.inclusion(index, size));
            assert_eq!(verify_inclusion(&head, index, &leaf, &path), Ok(()), "{index} of {size}");
            let other = &tree.0[(index as usize + 1) % SIZES as usize];
            assert!(verify_inclusion(&head, index, other, &path).is_err());
            let place = |index| verify_inclusion(&head, index, &leaf, &path);
            assert!(size == 1 || place((index + 1) % size).is_err(), "{index} of {size}");
            assert_eq!(place(size), Err(ProofError::Range));
            let wrong_root = Head { size, root: Hash::leaf(b"other") };
            assert_eq!(verify_inclusion(&wrong_root, index, &leaf, &path), Err(ProofError::Root));
            // Every spoiled proof where it is cheap, and along the edges of larger trees.
            if size < 40 || index == 0 || index + 1 == size {
                for path in spoiled(&path) {
                    assert!(verify_inclusion(&head, index, &leaf, &path).is_err(), "{index} of {size}");
                }
            }
        }
        assert_eq!(prove_inclusion(&tree, size, size), Ok(None));
    }
}

#[test]
fn every_consistency_proof_holds_and_no_wrong_one_does() {
    let tree = Whole::of(SIZES);
    for new in 0..=SIZES {
        let newer = tree.head(new);
        for old in 0..=new {
            let (older, path) = (tree.head(old), tree.consistency(old, new));
            assert_eq!(verify_consistency(&older, &newer, &path), Ok(()), "{old} → {new}");
            let forged = Head { size: old, root: Hash::leaf(b"other") };
            assert!(verify_consistency(&forged, &newer, &path).is_err(), "{old} → {new}");
            if old > 0 {
                let forged = Head { size: new, root: Hash::leaf(b"other") };
                assert!(verify_consistency(&older, &forged, &path).is_err(), "{old} → {new}");
            }
            if new < 40 || old < 3 || old + 3 > new || old.is_power_of_two() {
                for path in spoiled(&path) {
                    assert!(verify_consistency(&older, &newer, &path).is_err(), "{old} → {new}");
                }
            }
        }
        assert_eq!(prove_consistency(&tree, new + 1, new), Ok(None));
        assert_eq!(verify_consistency(&tree.head(new), &Head { size: 0, ..newer }, &[]).is_ok(), new == 0);
    }
}

/// A proof for one pair of trees must not do for another.
#[test]
fn trees_cannot_be_exchanged() {
    let tree = Whole::of(41);
    for new in 1..40 {
        for old in 1..=new {
            let path = tree.consistency(old, new);
            for (other_old, other_new) in [(old + 1, new), (old - 1, new), (old, new + 1), (old, new - 1)] {
                if other_old == 0 || other_old >= other_new {
                    continue;
                }
                let result = verify_consistency(&tree.head(other_old), &tree.head(other_new), &path);
                assert!(result.is_err(), "{old} → {new} passed for {other_old} → {other_new}");
            }
        }
    }
}

/// The tree of the public RFC 6962 test suites: eight entries, and the roots and paths all implementations agree on.
#[test]
fn reference_tree() {
    let entries: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    let roots = [
        "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=",
        "+sVCA+fMaWzw38tCySodnbr3CtnmIfS9jZhmLwDjwSU=",
        "rra8/idLcKFPsGel5VeCZNsPqbUa9eC6FZFY8yngbnc=",
        "037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=",
        "Tju7H3tHjc/nH7YxYxUZo7yhLJrvyhYSv85ME6hiZNQ=",
        "duZ9rbzfHhDht03cYIq9L5jfsW+851J3tSMqEn8gh+8=",
        "3bib5AOAnjJXUNPSY814kpwpQreUKjS3fhIslZSnTIw=",
        "XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=",
    ];
    let tree = Whole(entries.iter().map(|entry| Hash::leaf(entry)).collect());
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(tree.head(size as u64).root.to_base64(), *root, "{size} entries");
    }
    let text = |path: Vec<Hash>| path.into_iter().map(Hash::to_base64).collect::<Vec<_>>();
    let inclusion: [(u64, u64, &[&str]); 5] = [
        (0, 1, &[]),
        (
            0,
            8,
            &[
                "lqKW0iTyhcZ77pPDD4owkVfw2qNdxbh+QQt4YwoJz8c=",
                "Xwg/ChozygdqlSeYMlgNs+DvRYS9/x9UyKNg9Q3jAx4=",
                "a0eq8p7jwq+a+Im8H7klTavTEXfxYjLdaqsDXKOb9uQ=",
            ],
        ),
        (
            5,
            8,
            &[
                "vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=",
                "yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=",
                "037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=",
            ],
        ),
        (2, 3, &["+sVCA+fMaWzw38tCySodnbr3CtnmIfS9jZhmLwDjwSU="]),
        (
            1,
            5,
            &[
                "bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=",
                "Xwg/ChozygdqlSeYMlgNs+DvRYS9/x9UyKNg9Q3jAx4=",
                "vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms=",
            ],
        ),
    ];
    for (index, size, path) in inclusion {
        assert_eq!(text(tree.inclusion(index, size)), path, "{index} of {size}");
    }
    let consistency: [(u64, u64, &[&str]); 5] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "lqKW0iTyhcZ77pPDD4owkVfw2qNdxbh+QQt4YwoJz8c=",
                "Xwg/ChozygdqlSeYMlgNs+DvRYS9/x9UyKNg9Q3jAx4=",
                "a0eq8p7jwq+a+Im8H7klTavTEXfxYjLdaqsDXKOb9uQ=",
            ],
        ),
        (
            6,
            8,
            &[
                "DrxdNDf74tsVi58Sah0RjjCBgQMdCpSfje3t68VY72o=",
                "yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=",
                "037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=",
            ],
        ),
        (
            2,
            5,
            &["Xwg/ChozygdqlSeYMlgNs+DvRYS9/x9UyKNg9Q3jAx4=", "vBoGQ7EuTS18d5GPROD095qDi2z57FtcKD4fTYhZnms="],
        ),
        (
            6,
            7,
            &[
                "DrxdNDf74tsVi58Sah0RjjCBgQMdCpSfje3t68VY72o=",
                "sIaT7C5yFZcTBkHoIR5+7cy0wmQTlj7ubB4u0W/7Gl8=",
                "037kGJdt2VdTwcc4Yrk5j6Kiz5tP8P3+izDNlSCWFLc=",
            ],
        ),
    ];
    for (old, new, path) in consistency {
        assert_eq!(text(tree.consistency(old, new)), path, "{old} → {new}");
    }
}

/// Hashes of the public test suites that do not come from a tree.
#[test]
fn reference_hashes() {
    let hex = |hash: Hash| data_encoding::HEXLOWER.encode(&hash.0);
    let cases = [
        (Hash::of_nothing(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (Hash::leaf(b""), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
        (Hash::leaf(b"L123456"), "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"),
    ];
    for (hash, expected) in cases {
        assert_eq!(hex(hash), expected);
    }
}

/// Sizes near the ends of the number range neither overflow nor loop.
#[test]
fn hostile_sizes_are_answered() {
    let (leaf, path) = (Hash::leaf(b"x"), vec![Hash::leaf(b"y"); 64]);
    for size in [1, 2, 3, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX - 1, u64::MAX] {
        let head = Head { size, root: leaf };
        for other in [0, 1, 2, size / 2, size - 1, size, size.wrapping_add(1)] {
            for length in [0, 1, 2, 62, 63, 64] {
                let _ = verify_inclusion(&head, other, &leaf, &path[..length]);
                let _ = verify_consistency(&Head { size: other, root: leaf }, &head, &path[..length]);
            }
        }
    }
}
