//! Every setting and limit of the swarm, with its reason.

use core::time::Duration;

/// Content blocks of a run: 128 TiB, so that a block map never needs more than 16 MiB before anything is there.
pub const BLOCKS_MAX: u64 = 1 << 32;

/// Blocks of one request that are answered at all; our own requests name 1024 at most.
pub(crate) const REQUEST_MAX: usize = 8192;

/// Short blocks stand in for one of full length in limits, so many at most.
const SHORTER_MAX: u64 = 8;

/// How many blocks of a run with these bytes and blocks take the place of one of full length. Limits that mean memory,
/// or what is under way in a round trip, are given in blocks of full length; a run of small files has short ones.
///
/// From 1 to 8: below 4 KiB a block costs as much in work as in bytes.
#[must_use]
pub fn shorter(bytes: u64, blocks: u64) -> u32 {
    let full = u64::from(agent_proto::limits::BLOCK_LEN).saturating_mul(blocks);
    full.checked_div(bytes.max(1)).unwrap_or(1).clamp(1, SHORTER_MAX) as u32
}

/// How a destination fetches. Numbers of blocks are of such of full length; see [`FetchConfig::for_blocks`].
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Blocks asked of one peer at first and at least, where there are few: enough to keep it busy while it is
    /// being measured. Default 4: 128 KiB.
    pub pipeline_min: u32,
    /// Blocks asked of one peer at most. Default 1024: 32 MiB, 1 Gbit/s at 250 ms.
    pub pipeline_max: u32,
    /// Blocks asked of all peers together at first and at least. Default 64: 2 MiB.
    pub pipeline_all: u32,
    /// How far ahead of a peer's measured rate to ask, beside two round trips: covers the peer's other work
    /// and our own scheduling. Default 150 ms.
    pub lookahead: Duration,
    /// Blocks asked of all peers together: each may hold a 32 KiB buffer. Default 1024: 32 MiB.
    pub outstanding_max: usize,
    /// Blocks of its choice that an origin may owe us, beside the above. Default 512: 16 MiB.
    pub want_max: u32,
    /// Consecutive blocks asked of a peer before looking elsewhere: long enough that the peer reads in
    /// sequence, short enough that neighbours differ. Default 16: 512 KiB.
    pub run_len: u32,
    /// Announce verified blocks after so long, or up to three times as long where few come. Default 40 ms.
    pub have_delay: Duration,
    /// Announce verified blocks at once when there are so many. Default 128.
    pub have_batch: usize,
    /// A peer that owes us blocks and delivers none for so long (or four times its usual interval, if that is
    /// longer) gives them back. Default 8 s.
    pub request_timeout: Duration,
    /// A single block not delivered for so long, while others from the same peer come, is given back. Default 60 s.
    pub block_timeout: Duration,
    /// How long a peer that gave nothing is left alone; doubles each time. Default 4 s …
    pub snub_min: Duration,
    /// … up to this. Default 60 s.
    pub snub_max: Duration,
    /// Without any progress for so long (or eight times the usual interval), ask the origin for what no peer
    /// gives. Default 1 s …
    pub patience_min: Duration,
    /// … up to this. Default 15 s.
    pub patience_max: Duration,
    /// Blocks the origin cannot give and nobody else announces for so long are lost. Default 5 s: a peer that
    /// got one just before has verified and announced it by then.
    pub lost_after: Duration,
    /// In the endgame, ask a second peer for a block that is outstanding for so long. Default 500 ms.
    pub endgame_after: Duration,
    /// Corrupt blocks taken from the source before it is avoided too: without it the run cannot end, and a
    /// bit may have flipped here. Default 8.
    pub origin_strikes: u32,
}

impl FetchConfig {
    /// The same for a run of so many bytes in so many blocks: where those are short, more of them are asked for at a
    /// time.
    #[must_use]
    pub fn for_blocks(mut self, bytes: u64, blocks: u64) -> Self {
        let times = shorter(bytes, blocks);
        let Self { pipeline_min, pipeline_max, pipeline_all, want_max, run_len, .. } = &mut self;
        for number in [pipeline_min, pipeline_max, pipeline_all, want_max, run_len] {
            *number = number.saturating_mul(times);
        }
        self.outstanding_max = self.outstanding_max.saturating_mul(times as usize);
        self
    }
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            pipeline_min: 4,
            pipeline_max: 1024,
            pipeline_all: 64,
            lookahead: Duration::from_millis(150),
            outstanding_max: 1024,
            want_max: 512,
            run_len: 16,
            have_delay: Duration::from_millis(40),
            have_batch: 128,
            request_timeout: Duration::from_secs(8),
            block_timeout: Duration::from_secs(60),
            snub_min: Duration::from_secs(4),
            snub_max: Duration::from_secs(60),
            patience_min: Duration::from_secs(1),
            patience_max: Duration::from_secs(15),
            lost_after: Duration::from_secs(5),
            endgame_after: Duration::from_millis(500),
            origin_strikes: 8,
        }
    }
}

/// How blocks are sent, by destinations and origin alike. Numbers are of blocks of full length.
#[derive(Clone, Debug)]
pub struct UploadConfig {
    /// Blocks of one peer given to the transport and not yet acknowledged. Default 1024: 32 MiB, which the
    /// transport reads only when it sends.
    pub sending_max: usize,
    /// Blocks of all peers given to the transport. Default 8192.
    pub sending_total_max: usize,
    /// Blocks of one peer's requests kept waiting; more are ignored, and asked again by the peer. Default 8192,
    /// the most that our own destinations ask where blocks are short.
    pub queue_max: usize,
}

impl UploadConfig {
    /// The same for a run of so many bytes in so many blocks: where those are short, more of them are under way.
    #[must_use]
    pub fn for_blocks(mut self, bytes: u64, blocks: u64) -> Self {
        let times = shorter(bytes, blocks) as usize;
        self.sending_max = self.sending_max.saturating_mul(times);
        self.sending_total_max = self.sending_total_max.saturating_mul(times);
        self
    }
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self { sending_max: 1024, sending_total_max: 8192, queue_max: 8192 }
    }
}

/// How an origin spreads blocks.
#[derive(Clone, Debug)]
pub struct OriginConfig {
    /// Consecutive blocks sent to one destination before it gets another stretch: reads stay sequential.
    /// Default 64: 2 MiB.
    pub stretch: u32,
    /// A block that was delivered and is not announced by its receiver for so long may be sent to others.
    /// Default 10 s.
    pub promise_timeout: Duration,
    /// After a restart, how long to listen to what returning peers have before sending blocks of our choice.
    /// Default zero: a fresh run.
    pub settle: Duration,
    /// A block asked for while it is on its way to somebody else is held back for so long: the asker may get
    /// it there. Default 1 s.
    pub defer: Duration,
    /// Blocks that a peer may be owed. Default 4096; what is wanted beyond is forgotten.
    pub owed_max: u32,
}

impl Default for OriginConfig {
    fn default() -> Self {
        Self {
            stretch: 64,
            promise_timeout: Duration::from_secs(10),
            settle: Duration::ZERO,
            defer: Duration::from_secs(1),
            owed_max: 4096,
        }
    }
}
