//! Every limit of DEVICE_FORMAT.md §8, with its reason.

use agent_proto::limits::BLOCK_LEN;

/// Blocks of an image: one bit each in the core state.
pub const BLOCKS_MAX: u32 = 64;

/// Bytes of an image: 2 MiB.
pub const IMAGE_LEN_MAX: u32 = BLOCKS_MAX * BLOCK_LEN;

/// Bytes of a signed head as stored: what lies before the manifest in its region. Ours have some 200.
pub const HEAD_LEN_MAX: usize = 1008;

/// Bytes of an encoded manifest: 64 rows of hashes and a page with one path.
pub const MANIFEST_LEN_MAX: usize = 7 * 1024;

/// Bytes of a signed command that is kept as the order: some 30 peers. It is copied whenever a segment is begun.
pub const ORDER_LEN_MAX: usize = 3 * 1024;

/// Bytes of a signed report: what a device reports has at most 200.
pub const REPORT_LEN_MAX: usize = 256;

/// Reports that wait to go home.
pub const REPORTS_MAX: usize = 32;

/// Bytes of all reports that wait: with order, trust and core state they leave a quarter of a segment free.
pub const REPORTS_LEN_MAX: usize = 6 * 1024;

/// Reports that wait beyond which states are dropped, so that answers and ends of runs find room.
pub const STATES_MAX: usize = 24;

/// Keys of each kind that a device trusts: two in use, two that take their place.
pub const KEYS_MAX: usize = 4;

/// Starts that an image has to prove itself: one may be lost to a battery, one to a cable.
pub const TRIES: u8 = 3;

/// Bytes of a journal's segment at least: everything that may be alive, and a quarter for what comes.
pub const SEGMENT_LEN_MIN: u32 = 16 * 1024;

/// Segments of a journal at least: the current one, the next one, and one that may be worn.
pub const SEGMENTS_MIN: u32 = 3;

/// Bytes of a piece of a block, as [`crate::Device::put`] takes them; a block's last one may be shorter.
pub const PIECE_LEN: u32 = 1024;

/// Stretches in which a block may be on its way: a session has three packets in flight, and each loss makes one more.
pub const STRETCHES_MAX: usize = 64;
