//! Every limit of the two protocols, with its reason.

/// Bytes of one content or manifest block: small enough that one makes a peer useful, large enough
/// that its hash (32 bytes) costs 0.1 %.
pub const BLOCK_LEN: u32 = 32 * 1024;

/// Bytes of one frame on the gateway link. A command with 10,000 peer hints stays below it.
pub const FRAME_LEN_MAX: usize = 2 * 1024 * 1024;

/// Bytes of one peer message: µTP2's default message limit.
pub const PEER_MESSAGE_LEN_MAX: usize = 1024 * 1024;

/// Ranges in one `Have`, `Request` or `Cancel`: keeps a message below 128 KiB and its handling short.
pub const RANGES_MAX: usize = 8192;

/// Hashes in one `ManifestHashes`: 512 KiB.
pub const HASHES_MAX: usize = 16 * 1024;

/// Bytes of an encoded manifest: 4 GiB, so that its block hashes (4 MiB) fit in memory anywhere.
pub const MANIFEST_LEN_MAX: u64 = 4 << 30;

/// Entries of a manifest: a bit for each fits in 12 MiB.
pub const ENTRIES_MAX: u64 = 100_000_000;

/// A page of a manifest ends with the entry that brings it to so many bytes: some 130 entries, and 24 bytes of page
/// table for them.
pub const PAGE_LEN: usize = 4096;

/// Bytes of one encoded entry, beyond all that the limits below allow together.
pub const ENTRY_LEN_MAX: usize = 512 * 1024;

/// Stretches of data in a sparse file. Every one may take 20 bytes; where there are more, short holes are sent as data.
pub const EXTENTS_MAX: usize = 16 * 1024;

/// Bytes of a file: what `off_t` can say.
pub const FILE_LEN_MAX: u64 = i64::MAX as u64;

/// Extended attributes of one entry.
pub const XATTRS_MAX: usize = 256;

/// Bytes of the name of an extended attribute: XATTR_NAME_MAX of Linux.
pub const XATTR_NAME_LEN_MAX: usize = 255;

/// Bytes of the names and values of an entry's extended attributes together: two of the largest that Linux takes.
pub const XATTRS_LEN_MAX: usize = 128 * 1024;

/// Bytes of the name of a user or group: what `useradd` takes is 32, directories of people have longer ones.
pub const OWNER_NAME_LEN_MAX: usize = 255;

/// `..` behind a name in one symlink's target: each costs a look whether a folder is there.
pub const LINK_TURNS_MAX: usize = 16;

/// Symlinks of one manifest with such a `..`: looking up all of them takes seconds.
pub const TURNING_LINKS_MAX: u64 = 65_536;

/// Bytes of a path inside a run's folder: PATH_MAX of Linux.
pub const PATH_LEN_MAX: usize = 4096;

/// Bytes of one name: NAME_MAX of the usual file systems.
pub const NAME_LEN_MAX: usize = 255;

/// Tags of an agent, and bytes of a tag's name or value.
pub const TAGS_MAX: usize = 64;
/// See [`TAGS_MAX`].
pub const TAG_LEN_MAX: usize = 256;

/// µTP2 addresses an agent may name.
pub const ADDRESSES_MAX: usize = 16;

/// Gateways an agent is told and keeps.
pub const GATEWAYS_MAX: usize = 16;

/// Bytes of `HOST:PORT` in an enrolment code: a name in DNS has at most 253, a port 5.
pub const HOST_LEN_MAX: usize = 255;

/// Characters of an enrolment code: all gateways with names of usual length, and what text fields take.
pub const ENROLMENT_CODE_LEN_MAX: usize = 2048;

/// Bytes of one frame that the gateway takes until the agent is welcome: strangers get little.
pub const FRAME_LEN_MAX_BEFORE_WELCOME: usize = 64 * 1024;

/// Seconds between an agent's pings: below the usual idle time of NATs and proxies.
pub const KEEP_ALIVE_S: u64 = 20;

/// Seconds without a byte after which a link is dead: three pings.
pub const DEAD_AFTER_S: u64 = 60;

/// Seconds for a TLS handshake, and again for the first message after it.
pub const HANDSHAKE_TIMEOUT_S: u64 = 10;

/// Reports on their way without an answer: enough to fill a group commit of the log.
pub const REPORTS_IN_FLIGHT_MAX: usize = 64;

/// Grace of a command's not-before, ms: what a clock corrected over the network may be off.
pub const CLOCK_GRACE_MS: u64 = 60_000;

/// Bytes of a signed checkpoint, or list of keys, on the link. Ours have 250 and, with 16 keys, 2,400; the rest is for
/// signatures of outside witnesses.
pub const CHECKPOINT_NOTE_MAX: usize = 16 * 1024;

/// Bytes of a checkpoint with its proof: 63 hashes of 45 bytes and a line before it.
pub const ADVANCE_MAX: usize = CHECKPOINT_NOTE_MAX + 4 * 1024;

/// Bytes of what an agent says about a checkpoint that it refused: two heads in words.
pub const REFUSAL_LEN_MAX: usize = 512;

/// Peers in what one `Progress` tells of what is missing.
pub const HOLDERS_TOLD: usize = 16;

/// Connections in one `Progress`, what was tried for one of them, and bytes of a text: 64 KiB in all, every 10 s.
pub const CONNECTIONS_TOLD: usize = 64;
/// See [`CONNECTIONS_TOLD`].
pub const TRIES_TOLD: usize = 4;
/// See [`CONNECTIONS_TOLD`].
pub const TRY_LEN_MAX: usize = 200;

/// Peers in one `Peers`: half of what an agent dials in a run.
pub const PEERS_TOLD: usize = 32;

/// Addresses of one peer in `Peers`.
pub const ADDRESSES_TOLD: usize = 4;

/// Bytes of a message between agent and relay; ours have at most 40.
pub const RELAY_MESSAGE_LEN_MAX: usize = 128;
