//! Three control services on three NATS servers, agents and clients at work, and one of them killed, cut off, or
//! cut off from the servers alone after the other; at the end a checker holds what everybody was told against the log.
//!
//! Real are: `flotilla serve` and `nats-server`, each a process in a network namespace of its own, joined by a bridge in
//! another; TCP, TLS with certificates on both sides, the gateway's protocol, the HTTP API. The agents are many in this
//! one process: they speak the real protocol over real sockets and keep what an agent keeps, but move no files.
//!
//! `cargo run -p replicas -- --minutes 15 --agents 500` needs root, `ip` and `unshare`.

pub mod agent;
pub mod checker;
pub mod faults;
pub mod trial;
pub mod work;
pub mod world;

pub use trial::{Plan, Report, run};

/// Numbers for choices, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (SplitMix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }
}
