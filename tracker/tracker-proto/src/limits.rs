//! Every limit of the protocol and of the client, with its reason (`PROTOCOL.md` §8).

use core::time::Duration;

/// Bytes in the largest datagram: passes the smallest IPv6 link with room for tunnels, so that nothing
/// is ever fragmented.
pub const DATAGRAM_MAX: usize = 1200;

/// Addresses in one entry: some interfaces, both IP versions and an advertised one. More would only be
/// dialled in vain.
pub const ADDRESSES_PER_ENTRY: usize = 8;

/// Peers in one answer: what fits into a datagram at the least size of 49 bytes each.
pub const PEERS_PER_REPLY: usize = 23;

/// Trackers of one client: more only add traffic.
pub const TRACKERS: usize = 8;

/// Swarms of one client: runs that one agent takes part in at a time.
pub const SWARMS: usize = 1024;

/// Peers remembered per swarm: all that an agent could connect to. The least recently heard goes first.
pub const REMEMBERED_PEERS: usize = 1024;

/// How long entries with a smaller sequence than a peer's newest are ignored: three default announce
/// intervals. Longer would lock out an agent that comes back with a clock in the past.
pub const REMEMBER: Duration = Duration::from_secs(90);

/// Requests to one tracker that wait for an answer: an agent in many swarms stays below the tracker's
/// rate limit without counting.
pub const IN_FLIGHT: usize = 16;

/// Events that wait to be polled. Drivers poll after every input; past this the oldest is dropped, and
/// the next announcement brings it again.
pub const EVENTS: usize = 256;

/// Shortest announce interval that a client lets a tracker ask for.
pub const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Longest announce interval that a message can name; entries live three times as long.
pub const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// First step of the growing interval after joining: newcomers hear of each other within seconds.
pub const INTERVAL_FIRST: Duration = Duration::from_secs(3);

/// Least time before a request counts as lost.
pub const REQUEST_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Most time before a request counts as lost: a stored packet radio link answers within this.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// Longest pause between probes of a tracker that does not answer: 102 bytes a minute is cheap, and
/// after years of absence it is back within a minute.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Unanswered requests after which a tracker is taken to be down.
pub const DOWN_AFTER: u32 = 3;

/// How often one announcement may be answered with a cookie before that counts as no answer; twice, as
/// the tracker may restart in between.
pub const COOKIE_ROUNDS: u8 = 2;

/// Longest pause between LAN announcements.
pub const LAN_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Pause after the first LAN announcement; doubles from there.
pub const LAN_INTERVAL_FIRST: Duration = Duration::from_secs(1);

/// Number of first LAN announcements that ask for an answer: two may be lost.
pub const LAN_ASKS: u32 = 3;

/// Least time between two LAN announcements of one swarm, however many ask.
pub const LAN_ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// Range of the random delay before a LAN answer, so that a crowd does not answer in the same instant.
pub const LAN_ANSWER_DELAY: core::ops::Range<Duration> =
    Duration::from_millis(10)..Duration::from_millis(100);

/// Calls that wait to be sent: a swarm's worth of peers that cannot be reached, at two trackers. The caller calls again.
pub const CALLS_WAITING: usize = 64;

/// When the questions to one address leave, counted from the first (`PROTOCOL.md` §6.1): both sides' NATs are open
/// within half a second of the ring, and a path that loses every second packet passes one all the same.
pub const PROBES_AT: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1500),
    Duration::from_millis(3000),
];

/// How long an answer to the last question is waited for.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// Addresses probed for one peer at a time: those of an entry, the observed one, and some from gossip.
pub const PROBED_PER_PEER: usize = 12;

/// Addresses probed in one swarm at a time: some twenty peers. What its members lie takes no room of other swarms.
pub const PROBED_PER_SWARM: usize = 256;

/// Addresses probed at a time.
pub const PROBED: usize = 1024;

/// Least time between the beginnings of two series of questions to one member at one address.
pub const PROBE_PAUSE: Duration = Duration::from_secs(2);

/// Questions per second, and at once after a quiet time: 20 KB/s whoever wants us to send where.
pub const QUESTIONS: (u32, u32) = (200, 400);

/// The same for one swarm.
pub const QUESTIONS_PER_SWARM: (u32, u32) = (100, 200);

/// The same for one address, in whoever's name it is told: two series at once, as a pair in two runs needs, then one every
/// two seconds.
pub const QUESTIONS_PER_ADDRESS: (u32, u32) = (3, 12);

/// Addresses of which it is remembered how much was asked there.
pub const ADDRESSES_ASKED: usize = 2048;

/// How long our side of an answer proves a way, once or twice as long: one that was copied on its way proves nothing
/// later.
pub const ANSWER_PERIOD: Duration = Duration::from_secs(10);

/// Answers that were answered, remembered for as long: each proves a way once. More than [`ANSWERS`] allows.
pub const ANSWERED: usize = 4096;

/// Answers per second, and at once after a quiet time.
pub const ANSWERS: (u32, u32) = (100, 200);
