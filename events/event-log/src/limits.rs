//! Every bound of the log in one place, with its reason. `events/LOG_FORMAT.md` §6 repeats them.

use std::time::Duration;

/// Largest payload of one record, bytes (1 MiB − 8 KiB). With headers it still fits a NATS message at the
/// server's default `max_payload` of 1 MiB, so that every backend accepts the same records.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024 - 8 * 1024;

/// Longest stream name, bytes. Fits a NATS subject token; the index keeps one name per stream.
pub const MAX_STREAM_NAME_BYTES: usize = 200;

/// Most entries one read returns: bounds the page's bookkeeping, whatever the caller asks for.
pub const MAX_READ_ENTRIES: usize = 65_536;

/// Most payload bytes one read returns, save that the first entry is always returned whole.
pub const MAX_READ_BYTES: usize = 16 * 1024 * 1024;

/// Records in one commit of several: what a burst of decisions makes, and little to decide anew when the race is lost.
pub const MAX_COMMIT_RECORDS: usize = 1_024;

/// Payload bytes of one commit of several records: with their names they fit into one message of a shared log.
pub const MAX_COMMIT_BYTES: usize = 192 * 1024;

/// Default page: large enough that a replay is not dominated by the call, small enough to hold many at once.
pub const DEFAULT_READ_ENTRIES: usize = 4_096;

/// Default page in payload bytes.
pub const DEFAULT_READ_BYTES: usize = 4 * 1024 * 1024;

/// Segment size if not configured: folders stay small and a segment is quickly copied and checked.
pub const DEFAULT_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Smallest configurable segment: below that the headers and file operations dominate.
pub const MIN_SEGMENT_BYTES: u64 = 4 * 1024;

/// Largest configurable segment: recovery reads the last segment into memory.
pub const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;

/// Bytes written before a group is synced: bounds how long the first append of the group waits.
pub(crate) const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// Largest file that says where a log begins, bytes: its names of streams and its note.
pub const MAX_BASE_BYTES: usize = 64 * 1024 * 1024;

/// Largest note in it, bytes: the edge of a Merkle tree needs less than a tenth.
pub const MAX_BASE_NOTE_BYTES: usize = 1024 * 1024;

/// Most bytes, of payload and stream names, that one batch for a copy may have: a group's worth.
pub const MAX_BATCH_BYTES: usize = GROUP_BYTES;

/// Appends in one group, for the same reason.
pub(crate) const GROUP_APPENDS: usize = 4_096;

/// Appends queued for the writer; callers wait beyond that.
pub(crate) const QUEUE_APPENDS: usize = 8_192;

/// Payload bytes queued for the writer; callers wait beyond that.
pub(crate) const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// One entry of the sparse index per so many bytes of segment: 16 bytes of memory per 64 KiB of log, and a
/// seek never reads more than this before its first record.
pub(crate) const INDEX_STRIDE_BYTES: u64 = 64 * 1024;

/// How long a check of the conformance suite may wait for something that must happen.
pub(crate) const CONFORMANCE_PATIENCE: Duration = Duration::from_secs(30);
