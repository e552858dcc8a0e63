//! Every limit of the agent's control side, with its reason. Those that both ends of the link must
//! know are in `agent_proto::limits`.

use std::time::Duration;

/// Reports of states and problems that may wait in the outbox; further ones are counted and dropped.
/// About 200 bytes each: 20 MB on disk after weeks without a gateway.
pub(crate) const OUTBOX_MAX: u64 = 100_000;

/// Runs an agent takes part in at a time; a further one is refused.
pub(crate) const RUNS_MAX: usize = 1024;

/// Requests waiting for the state file; who asks further waits.
pub(crate) const WRITES_WAITING: usize = 256;

/// Commands that were not taken, on one connection, after which it is closed.
pub(crate) const BAD_COMMANDS_MAX: u32 = 16;

/// Reports sent and not yet answered, bytes. Together with `REPORTS_IN_FLIGHT_MAX` this bounds memory.
pub(crate) const REPORT_BYTES_IN_FLIGHT: usize = 1 << 20;

/// Shortest time between two messages of telemetry.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Connecting (name lookup and TCP) and the TLS handshake may take so long each.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for an agent that knows several gateways: one that is cut off must not keep it from the others.
pub(crate) const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(2);

/// How long the welcome of one of several gateways may take: one that cannot reach its log does not answer, and the
/// others may. Once all have failed, twice as long and so on, up to four times: it may be the log that is slow.
pub(crate) const WELCOME_OF_SEVERAL: Duration = Duration::from_secs(4);

/// First and longest bound of the random pause before a new attempt.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// See [`BACKOFF_MIN`]. 30 s: ten thousand agents are back within half a minute of their gateway,
/// 333 a second.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A session that lived so long makes the next attempt a first one.
pub(crate) const SESSION_GOOD: Duration = Duration::from_secs(60);

/// Shortest and longest pause of an agent that waits for approval, whatever the gateway says.
pub(crate) const PENDING_MIN: Duration = Duration::from_secs(1);
/// See [`PENDING_MIN`].
pub(crate) const PENDING_MAX: Duration = Duration::from_secs(3600);

/// Runs and reports have so long to come to rest when the agent stops.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a bootstrap or configuration file: far beyond any honest one.
pub(crate) const CONFIG_LEN_MAX: u64 = 1 << 20;

/// Bytes of a status answer that the command line takes.
pub(crate) const STATUS_LEN_MAX: u64 = 16 << 20;

/// Somebody who asks for the status has so long to take it.
pub(crate) const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the status file is written where there are no sockets.
pub(crate) const STATUS_FILE_INTERVAL: Duration = Duration::from_secs(2);

/// Cache of the state file, bytes: the agent shares a small NAS with others.
pub(crate) const STORE_CACHE: usize = 1 << 20;

/// Relays that an owner may name.
pub(crate) const RELAYS_MAX: usize = 8;

/// Pairs that a relay may be told to serve: their number is looked through for each datagram.
pub(crate) const RELAY_SESSIONS_MAX: usize = 1000;

/// Hooks in a configuration: more than anybody tells apart.
pub(crate) const HOOKS_MAX: usize = 64;

/// Arguments of a hook: what is longer belongs into a script.
pub(crate) const HOOK_ARGUMENTS_MAX: usize = 64;

/// Seconds that a hook may take where its owner does not say: what looks through some thousand files ends in them, and what
/// hangs does not hold a run up for long.
pub(crate) const HOOK_SECONDS: u32 = 600;
