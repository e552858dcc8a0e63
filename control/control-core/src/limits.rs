//! Every limit of the control service's decisions, with its reason.

/// Agents in the fleet, removed ones not counted: what one control node is built for, twice over.
pub const AGENTS_MAX: usize = 20_000;

/// Agents waiting for approval: anybody who reaches the gateway can add one, so this is kept small.
pub const PENDING_AGENTS_MAX: usize = 1_000;

/// Tokens that are neither spent, expired nor revoked.
pub const TOKENS_MAX: usize = 10_000;

/// Uses of one token: a whole fleet.
pub const TOKEN_USES_MAX: u32 = 100_000;

/// Groups.
pub const GROUPS_MAX: usize = 10_000;

/// Jobs that are not deleted.
pub const JOBS_MAX: usize = 10_000;

/// Destinations that a job names (a group counts as one).
pub const JOB_DESTINATIONS_MAX: usize = 1_000;

/// Sources that a job names (a group counts as one).
pub const JOB_SOURCES_MAX: usize = 1_000;

/// Runs of one start: all are one record, and each has commands of its own.
pub const BATCH_RUNS_MAX: usize = 1_000;

/// Parts in all runs of one start: their record stays below what the log takes.
pub const BATCH_PARTS_MAX: usize = 20_000;

/// Bytes of the template that names the folders of a consolidation's sources, and names in it.
pub const SUBFOLDER_LEN_MAX: usize = 1_024;
/// See [`SUBFOLDER_LEN_MAX`].
pub const SUBFOLDER_NAMES_MAX: usize = 16;

/// Members that a synchronization's job names (a group counts as one).
pub const JOB_MEMBERS_MAX: usize = 256;

/// Members of a run that synchronizes: each of them keeps what each other one is known to know (SYNC.md §9).
pub const MEMBERS_MAX: usize = 256;

/// Ignore rules and wanted patterns of one member, and their bytes: they stand in each of its commands.
pub const SELECTION_RULES_MAX: usize = 256;
/// See [`SELECTION_RULES_MAX`].
pub const SELECTION_LEN_MAX: usize = 16 * 1024;

/// Bytes of all folders, rules and patterns of a run's members, each counted once: they are one event.
pub const MEMBERS_LEN_MAX: usize = 256 * 1024;

/// Conflicts of a run that nobody has seen to and that are facts; of further ones only the number is told.
pub const CONFLICTS_OPEN_MAX: usize = 1_000;

/// Days that a source's archive keeps files at most: ten years.
pub const ARCHIVE_DAYS_MAX: u32 = 3_660;

/// Versions that one rule of a backup keeps at most: those of a year, one an hour. A folder with more names is slow to list.
pub const KEEP_COUNT_MAX: u32 = 10_000;

/// Days within which a backup keeps all versions at most: ten years.
pub const KEEP_DAYS_MAX: u32 = 3_660;

/// Minutes between two starts of a backup by schedule at most: a year. One minute at least, as a start is a record and a
/// command for each agent of its runs.
pub const SCHEDULE_MINUTES_MAX: u32 = 366 * 24 * 60;

/// A version that has at most half of the entries of the good one before it, so many less, is suspicious: small folders
/// come and go.
pub const SHRUNK_ENTRIES_MIN: u64 = 20;

/// Days after which a folder that has shrunk is taken for what it is: until then its versions take no good one's place.
pub const SHRUNK_DAYS: i64 = 30;

/// Seconds that a source has to be quiet at most before it tells of a change: a day.
pub const QUIET_SECONDS_MAX: u32 = 24 * 60 * 60;

/// Bytes of a calendar's expression: every minute of an hour can be named.
pub const CALENDAR_LEN_MAX: usize = 256;

/// What the clocks of a fleet's services may differ by, and be set back by, before a schedule takes notice: an hour.
pub const CLOCK_SET_BACK_MS: u64 = 60 * 60 * 1_000;

/// Agents in one run. Every command of a run names every participant, so the log grows with the square.
pub const PARTICIPANTS_MAX: usize = 1_000;

/// Addresses of one participant in a command; keeps a command of the largest run below 512 KiB.
pub const HINT_ADDRESSES_MAX: usize = 4;

/// Bytes of the name of an agent, group or job.
pub const NAME_LEN_MAX: usize = 128;

/// Bytes of a folder's path: PATH_MAX of Linux.
pub const PATH_LEN_MAX: usize = 4_096;

/// Bytes of a reason given by an operator or of one line of detail.
pub const REASON_LEN_MAX: usize = 512;

/// Tags of an agent or token.
pub const TAGS_MAX: usize = 64;

/// Bytes of a tag's name or value.
pub const TAG_LEN_MAX: usize = 256;

/// Problems of one agent in one run that become events of their own; further ones are kept only inside
/// the signed report, which is on the log in any case.
pub const PROBLEMS_RECORDED_MAX: u32 = 1_000;

/// Problems of one agent in one run that the projection keeps in full; the rest are counted.
pub const PROBLEMS_KEPT_MAX: usize = 100;

/// Positions of records that the projection keeps for one run's history.
pub const HISTORY_MAX: usize = 20_000;

/// Runs kept in memory, oldest settled ones dropped first; the log has them all.
pub const RUNS_KEPT_MAX: usize = 5_000;

/// Replicas that are remembered; those that stopped are dropped first.
pub const REPLICAS_MAX: usize = 64;

/// Agents put offline in one record: it stays below 200 KiB.
pub const OFFLINE_AT_ONCE: usize = 2_000;

/// Refused enrolments that are remembered, so that an agent which asks again and again is one fact.
pub const REFUSALS_REMEMBERED_MAX: usize = 1_000;

/// Conflicts of history that are recorded per witness: each needs a checkpoint signed by the log's own key, so more than
/// one is rare, and after a few there is nothing new to learn.
pub const CONFLICTS_PER_WITNESS_MAX: usize = 8;
