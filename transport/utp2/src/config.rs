//! Every setting and limit of an endpoint in one table, each with its reason.

use core::fmt;
use core::time::Duration;

/// How hard a connection competes for bandwidth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Takes what the path gives; shares with its like.
    #[default]
    Full,
    /// Backs off further on congestion, so that a TCP flow beside it keeps about its half.
    Fair,
    /// Yields to everything else that builds a queue.
    Background,
}

/// Settings of an endpoint and limits of its connections.
#[derive(Clone, Debug)]
pub struct Config {
    /// Largest UDP payload we send or accept, bytes; 1200–65000. Default 8972: Ethernet's jumbo frames. It is but the
    /// end of the search: a connection begins with 1200 bytes and finds out what its path carries (§3.1). The smaller
    /// of both sides' values is used, so a device with small buffers says so here.
    pub max_datagram: u16,
    /// Most bytes of one [`crate::Endpoint::poll_transmit`], if they are several packets; 1200–65507. Default 65,000:
    /// what segmentation by the kernel takes. A millisecond of the sending rate bounds it as well (§8.7).
    pub max_burst: usize,
    /// Bytes the peer may have in flight to us. Default 16 MiB: 1 Gbit/s at 130 ms. It bounds nothing held here
    /// (pieces go straight to the sink) but what a socket and a disk must swallow.
    pub receive_window: u32,
    /// Longest message, bytes, both ways. Default 1 MiB.
    pub max_message: usize,
    /// Bytes of messages kept for sending (unsent and unacknowledged) and, separately, of messages received
    /// and not yet taken. At least `max_message + 4`. Default 4 MiB.
    pub message_buffer: usize,
    /// Blocks queued and not yet wholly acknowledged. Default 4096: 128 MiB of 32 KiB blocks, about 100 bytes each.
    pub max_queued_blocks: usize,
    /// Close when nothing authentic arrived for so long; the smaller of both sides' values. Default 120 s:
    /// an outage of a minute (a tunnel, a modem that registers anew) is survived without a new handshake, and a
    /// peer that restarted is noticed by its reset (§10.7), not by this.
    pub idle_timeout: Duration,
    /// Probe after so long a silence, to hold NAT state: mappings of UDP are kept for 30 s at least by nearly all of
    /// them. `None` lets a silent session die; may be changed per connection. Default 20 s.
    pub keep_alive: Option<Duration>,
    /// Give up connecting, or a half-open handshake, after so long. Default 15 s: some 70 INITs, so that no path on
    /// which a transfer is of use ends it by chance.
    pub handshake_timeout: Duration,
    /// How hard connections compete; may be changed per connection.
    pub mode: Mode,
    /// Upper limit of a connection's sending rate, bytes/s of UDP payload; may be changed per connection. Default none.
    pub rate_limit: Option<u64>,
    /// Connections of the endpoint, both directions and half-open ones included. Default 1024.
    pub max_connections: usize,
    /// Half-open handshakes we answer at a time; each costs two modular exponentiations and 2 KiB. Default 64.
    pub max_handshakes: usize,
    /// From so many half-open handshakes on, a newcomer must return a cookie first (§5.3). Default 8; 0 = always.
    pub retry_threshold: usize,
    /// Packets a connection may have in flight, whatever the windows allow; 32 bytes each. Default 2^20: 10 Gbit/s
    /// over more than a second.
    pub max_in_flight_packets: usize,
    /// Packet numbers remembered against replay, rounded up to a multiple of 64; 1 bit each. Default 65,536 (8 KiB a
    /// connection): at 1 Gbit/s 0.8 s of reordering. Small devices use 1024.
    pub replay_window: u32,
    /// Ranges of received packets remembered for acknowledgements; 16 bytes each. Default 4096.
    pub max_ack_ranges: usize,
    /// Whether peers that proved themselves get a ticket, with which they come back in one round trip (§5.8).
    /// Default true.
    pub issue_tickets: bool,
    /// Whether [`crate::Event::EarlyMessage`]s are taken at all. Default false: the application must know that they
    /// may be repetitions.
    pub accept_early: bool,
    /// Tickets remembered because their early data was taken, about 50 bytes each; beyond that early data is refused
    /// and comes as ordinary messages. Default 1024.
    pub max_early_tickets: usize,
    /// Packets under one key before it is replaced. Default 2^23 (§7.3); at most 2^27. Lower only to test.
    pub key_update_after: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_datagram: 8972,
            max_burst: 65_000,
            receive_window: 16 << 20,
            max_message: 1 << 20,
            message_buffer: 4 << 20,
            max_queued_blocks: 4096,
            idle_timeout: Duration::from_secs(120),
            keep_alive: Some(Duration::from_secs(20)),
            handshake_timeout: Duration::from_secs(15),
            mode: Mode::Full,
            rate_limit: None,
            max_connections: 1024,
            max_handshakes: 64,
            retry_threshold: 8,
            max_in_flight_packets: 1 << 20,
            replay_window: 1 << 16,
            max_ack_ranges: 4096,
            issue_tickets: true,
            accept_early: false,
            max_early_tickets: 1024,
            key_update_after: 1 << 23,
        }
    }
}

impl Config {
    /// For a small device: one connection, which it holds in 32 KiB of heap when it receives blocks, and whose handshake
    /// takes no more. Three packets in flight to it, each acknowledged at once; messages of up to 512 bytes.
    #[must_use]
    pub fn small() -> Self {
        Self {
            max_datagram: MIN_DATAGRAM,
            max_burst: MIN_DATAGRAM as usize,
            receive_window: 4096,
            max_message: 512,
            message_buffer: 1024,
            max_queued_blocks: 8,
            max_connections: 1,
            max_handshakes: 1,
            retry_threshold: 0,
            max_in_flight_packets: 32,
            replay_window: 1024,
            max_ack_ranges: 16,
            ..Self::default()
        }
    }
}

/// Smallest UDP payload every path must carry (§3.1).
pub(crate) const MIN_DATAGRAM: u16 = 1200;

impl Config {
    /// Whether the settings can work together.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, what| if ok { Ok(()) } else { Err(ConfigError(what)) };
        check((MIN_DATAGRAM..=65_000).contains(&self.max_datagram), "max_datagram must be 1200 to 65000")?;
        check((1200..=65_507).contains(&self.max_burst), "max_burst must be 1200 to 65507")?;
        check(self.max_message >= 1, "max_message must be at least 1")?;
        check(self.max_message <= 1 << 30, "max_message must be at most 1 GiB")?;
        check(
            self.message_buffer >= self.max_message + 4,
            "message_buffer must hold a longest message and 4 bytes",
        )?;
        check(self.max_connections >= 1, "max_connections must be at least 1")?;
        // Packet numbers are told by 28 bits at most (§3.8), of which half serve packets that come late.
        check(
            (16..=1 << 22).contains(&self.max_in_flight_packets),
            "max_in_flight_packets must be 16 to 2^22",
        )?;
        check((64..=1 << 24).contains(&self.replay_window), "replay_window must be 64 to 2^24")?;
        check(self.max_ack_ranges >= 16, "max_ack_ranges must be at least 16")?;
        check((1..=1 << 27).contains(&self.key_update_after), "key_update_after must be 1 to 2^27")?;
        check(self.idle_timeout >= Duration::from_millis(100), "idle_timeout must be at least 100 ms")
    }
}

/// A setting outside its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError(&'static str);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for ConfigError {}
