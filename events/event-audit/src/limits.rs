//! Every bound of the crate in one place, with its reason. `events/AUDIT_FORMAT.md` §8 repeats them.

/// Largest tree: 2⁵⁶ − 1 entries. Seven levels of tiles; a log of a million entries a second fills it in 2,000 years,
/// and no sum of sizes or offsets can overflow below it.
pub const MAX_TREE_SIZE: u64 = (1 << 56) - 1;

/// Largest entry, bytes: the largest record that a log accepts (`LOG_FORMAT.md` §6). A reader holds one at a time.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024 - 8 * 1024;

/// Largest signed note, bytes: sixteen post-quantum signatures of 5 kB each must fit.
pub const MAX_NOTE_BYTES: usize = 128 * 1024;

/// Most signature lines of a note. A verifier must take sixteen; each of a known key costs a verification.
pub const MAX_SIGNATURES: usize = 64;

/// Longest key name and origin, bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// Most hashes of a proof: a path through a tree of 2⁵⁶ entries has 56, a consistency proof one more.
pub const MAX_PROOF_HASHES: usize = 63;

/// Most log keys of one fleet that a key list names: the one in use and those before it.
pub const MAX_LOG_KEYS: usize = 16;

/// Most checkpoints of one export. Each costs a verification and bounds what a forger can hide between two.
pub const MAX_EXPORT_CHECKPOINTS: usize = 1_024;

/// Most bytes of an export's checkpoints: a reader holds them all.
pub const MAX_EXPORT_CHECKPOINT_BYTES: usize = 4 * 1024 * 1024;
