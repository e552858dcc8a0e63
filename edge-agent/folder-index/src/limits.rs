//! Every limit of the index, with its reason (§6).

use std::time::Duration;

/// Cache of one folder's database, bytes. Four megabytes hold the upper levels of the tree of ten million
/// files; more made neither the first index nor scans faster (docs/decisions/0018).
pub const CACHE: usize = 4 << 20;

/// Blocks whose hashes stand in one row: 448 × 36 bytes and what the database adds fit one page of 16 KiB.
pub const BLOCKS_PER_ROW: usize = 448;

/// Changes put into one transaction at most; about half a second of work, and what a crash costs.
pub const CHANGES_PER_COMMIT: u64 = 10_000;

/// Longest time a transaction is kept open during a scan: what a crash costs when files are large, and
/// how old what others read can be.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(2);

/// Rows read from the index at once while a folder is compared.
pub(crate) const PAGE: usize = 512;

/// Bytes of the names of one folder, with 8 for each; beyond it is a problem, and what is known of the
/// folder stays. Some two million entries: no file system is fast with that.
pub const FOLDER_NAMES_MAX: usize = 96 << 20;

/// Bytes of names of all folders that a scan is inside of. Beyond, those of the outer ones are dropped
/// and read again later.
pub(crate) const OPEN_NAMES_MAX: usize = 8 << 20;

/// Folders that a scan keeps open at a time, of those it is inside of.
pub(crate) const OPEN_FOLDERS_MAX: usize = 32;

/// Files handed to the hashing threads and not yet back: bounds open files and memory.
pub(crate) const HASHING_MAX: usize = 64;

/// Pieces of hash lists that wait to be stored, 16 KB each.
pub(crate) const PIECES_WAITING: usize = 32;

/// How often a file that changes while it is read is read again before it is left for later.
pub(crate) const READ_TRIES: u32 = 3;

/// Problems told of one scan by name; further ones are counted.
pub const PROBLEMS_MAX: usize = 1000;

/// Files that are looked at again at the end of a scan, because they were changed just when they were
/// read; further ones wait for the next scan.
pub(crate) const AGAIN_MAX: usize = 10_000;

/// Deepest folder. Paths end at 4096 bytes anyway.
pub(crate) const DEPTH_MAX: usize = 2048;

/// Deletions and ignored entries remembered for whoever asks what changed since; older ones are
/// forgotten, and who asks from before has to compare everything (§4).
pub const GONE_MAX: u64 = 1_000_000;

/// Names noticed as changed and not yet looked at; beyond, the whole folder is scanned.
pub const NOTICED_MAX: usize = 50_000;

/// Bytes of an ignore file.
pub const IGNORE_LEN_MAX: u64 = 1 << 20;

/// Rules of a folder whose run depends on them: the largest collections of such rules have some hundreds.
pub const RULES_MAX: usize = 2000;

/// Bytes of one of them. Paths that are longer can be left out by a folder above them.
pub const RULE_LEN_MAX: usize = 1024;

/// Wildcards (`*`, `?`, `[`, `{`; in a rule with `**`, each `/` too) in all of them. Every path is held against every one
/// of those rules: so many, chosen to do harm, cost some @COST@ a path.
pub const WILDCARDS_MAX: usize = 1000;

/// Rows of the table of contents kept in memory until they are merged into the file: at least so many,
/// or an eighth of the file's.
pub(crate) const CONTENT_PENDING_MIN: usize = 1 << 16;

/// Places told of one content.
pub(crate) const PLACES_MAX: usize = 16;
