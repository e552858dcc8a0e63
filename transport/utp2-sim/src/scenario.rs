//! A bottleneck, the flows through it, and what happens to it in the course of time.
//!
//! Rates are judged against the *ceiling*: the link's rate × the share of a full datagram that is block
//! data × (1 − chance loss). Nothing can be faster without sending less than the data. What came of a run
//! is measured in [`crate::measure`].

use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;
use utp2::{Config, Mode, PathMemory};

use crate::flow::FlowNode;
use crate::link::LinkConfig;
use crate::measure::{Marks, Outcome};
use crate::network::{Move, Network, Stop, address_of};
use crate::pattern::ENDLESS;
use crate::progress::{Counters, Load};
use crate::protocol::{AnyNode, Protocol};
#[cfg(feature = "quinn")]
use crate::quic::{Controller, QuicConfig, QuicNode};
use crate::tcp::{TcpConfig, TcpNode};

/// Bytes of a full data packet that are not block data, as the ceiling counts them: header and tag of the
/// article that described µTP2's rates. Kept apart from what the implementation needs, so that a larger
/// header shows as lower utilisation.
pub const CEILING_HEADER: u32 = 32;

/// Round trips after which the search for the rate should be over.
pub(crate) const WARM_UP_RTTS: u32 = 15;

/// The longest step of the timelines.
const STEP_MAX: Duration = Duration::from_millis(50);

/// One flow of a [`Scenario`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowConfig {
    /// Bytes to move, or [`ENDLESS`].
    pub bytes: u64,
    /// When it begins to connect, after the beginning of the run.
    pub start: Duration,
    /// How hard it competes (µTP2 only).
    pub mode: Mode,
    /// Bytes/s it may send at most (µTP2 only).
    pub rate_limit: Option<u64>,
    /// What an earlier connection learned of the path (µTP2 only); see [`Scenario::learn`].
    pub remembered: Option<PathMemory>,
    /// What it speaks.
    pub protocol: Protocol,
    /// What its round trip is longer than that of the others, for behind the bottleneck each flow goes its
    /// own way.
    pub extra_rtt: Duration,
}

impl FlowConfig {
    /// A µTP2 flow of `bytes` in full mode from the beginning.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes,
            start: Duration::ZERO,
            mode: Mode::Full,
            rate_limit: None,
            remembered: None,
            protocol: Protocol::Utp2,
            extra_rtt: Duration::ZERO,
        }
    }

    /// A CUBIC flow that never ends, from `start` on.
    #[must_use]
    pub fn cubic(start: Duration) -> Self {
        Self { start, protocol: Protocol::Cubic, ..Self::endless() }
    }

    /// A µTP2 flow in full mode that never ends, for runs of a given time.
    #[must_use]
    pub fn endless() -> Self {
        Self::new(ENDLESS)
    }
}

/// Which end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that sends.
    Sender,
    /// The one that receives.
    Receiver,
}

/// A change of address in mid-transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressChange {
    /// When, after the beginning of the run.
    pub at: Duration,
    /// Index of the flow.
    pub flow: usize,
    /// Which of its ends.
    pub side: Side,
    /// What of its address.
    pub what: Move,
}

/// Flows, each with a sender and a receiver of its own, through one bottleneck.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Decides every chance: the links', the handshakes'.
    pub seed: u64,
    /// From the senders to the receivers.
    pub forward: LinkConfig,
    /// From the receivers to the senders.
    pub reverse: LinkConfig,
    /// The flows.
    pub flows: Vec<FlowConfig>,
    /// Length of a block. Default 32 KiB.
    pub block_len: u32,
    /// Settings of every endpoint; mode and rate limit are the flow's.
    pub config: Config,
    /// Virtual time after which the run is given up. Default one hour.
    pub time_max: Duration,
    /// Run for exactly this virtual time instead of until all has arrived. Default none.
    pub seconds: Option<Duration>,
    /// Where the steady part begins. Default: 15 round trips after the last flow's start.
    pub steady_from: Option<Duration>,
    /// Changes of address.
    pub moves: Vec<AddressChange>,
    /// Whether CUBIC flows let themselves be marked. Default no.
    pub cubic_ecn: bool,
}

/// How things stand at one moment of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Virtual time since the beginning.
    pub at: Duration,
    /// Bytes on the wire in the bottleneck's queue.
    pub queued_bytes: u64,
    /// Bottleneck's rate at the moment, bits/s.
    pub rate_bps: u64,
    /// Datagrams dropped by the bottleneck so far for congestion.
    pub congestion_drops: u64,
    /// Datagrams lost by chance so far.
    pub chance_losses: u64,
    /// Each flow: bytes received, and the sender's counters.
    pub flows: Vec<(u64, Counters)>,
}

impl Scenario {
    /// One flow of `bytes` over a link of `rate_bps` (bits per second on the wire), a round trip of `rtt`
    /// and chance loss `loss` (0 to 1) towards the receiver. The way back is as fast and loses as much.
    #[must_use]
    pub fn new(rate_bps: u64, rtt: Duration, loss: f64, bytes: u64) -> Self {
        let link = LinkConfig::new(rate_bps, rtt / 2).with_loss(loss);
        let config = Config {
            max_datagram: 1472,
            // Never the limit here: 10 Gbit/s at 500 ms are 625 MB, and the queue holds as much again.
            receive_window: 3 << 30,
            max_queued_blocks: 1 << 15,
            max_in_flight_packets: 1 << 21,
            ..Config::default()
        };
        Self {
            seed: 1,
            forward: link.clone(),
            reverse: link,
            flows: vec![FlowConfig::new(bytes)],
            block_len: 32 * 1024,
            config,
            time_max: Duration::from_secs(3600),
            seconds: None,
            steady_from: None,
            moves: Vec::new(),
            cubic_ecn: false,
        }
    }

    /// The same with a queue of `bdp` × the product of rate and round trip before the bottleneck.
    #[must_use]
    pub fn with_queue_bdp(mut self, bdp: f64) -> Self {
        self.forward = self.forward.clone().with_queue(self.rtt().mul_f64(bdp));
        self
    }

    /// The same with endless flows, for a virtual time of `seconds`.
    #[must_use]
    pub fn for_seconds(mut self, seconds: u64) -> Self {
        self.seconds = Some(Duration::from_secs(seconds));
        self.flows.iter_mut().for_each(|f| f.bytes = ENDLESS);
        self
    }

    /// The round trip without queues, of a flow with nothing extra.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.forward.delay + self.reverse.delay
    }

    /// The longest round trip of a flow without queues.
    #[must_use]
    pub fn rtt_max(&self) -> Duration {
        self.rtt() + self.flows.iter().map(|f| f.extra_rtt).max().unwrap_or_default()
    }

    /// The most block data per second the link can carry, bytes, at its first rate.
    #[must_use]
    pub fn ceiling(&self) -> f64 {
        self.ceiling_of(self.forward.rate_bps as f64)
    }

    /// The same for a span of time.
    #[must_use]
    pub fn ceiling_over(&self, from: Duration, until: Duration) -> f64 {
        self.ceiling_of(self.forward.mean_rate(from, until))
    }

    fn ceiling_of(&self, rate_bps: f64) -> f64 {
        let policed = self.forward.policer.map_or(rate_bps, |p| rate_bps.min(p.rate_bps as f64));
        let datagram = u32::from(self.config.max_datagram);
        let datagram = datagram.min(u32::try_from(self.forward.max_datagram).unwrap_or(u32::MAX));
        let share =
            f64::from(datagram.saturating_sub(CEILING_HEADER)) / f64::from(datagram + self.forward.overhead);
        policed / 8.0 * share * (1.0 - self.forward.loss.mean())
    }

    /// When the steady part begins.
    #[must_use]
    pub fn steady_from(&self) -> Duration {
        let last = self.flows.iter().map(|f| f.start).max().unwrap_or_default();
        self.steady_from.unwrap_or(last + self.rtt_max() * WARM_UP_RTTS)
    }

    /// Length of the steps of the timelines: a whole fraction of the round trip, 1 to 50 ms.
    pub(crate) fn step(&self) -> Duration {
        let rtt = self.rtt().max(Duration::from_millis(1));
        let parts =
            u32::try_from(rtt.as_micros().div_ceil(STEP_MAX.as_micros())).expect("round trips are short");
        Duration::from_micros(u64::try_from(rtt.as_micros()).expect("short") / u64::from(parts))
    }

    /// What the first flow learns of the path when it is alone on it for 10 s and 60 round trips: for
    /// [`FlowConfig::remembered`] of a later run. Other chances than this scenario's decide.
    #[must_use]
    pub fn learn(&self) -> Option<PathMemory> {
        let mut before = Self {
            seed: self.seed ^ 0x5eed,
            flows: self.flows.iter().take(1).cloned().collect(),
            seconds: Some(Duration::from_secs(10) + self.rtt() * 60),
            moves: Vec::new(),
            steady_from: None,
            ..self.clone()
        };
        (before.forward.schedule, before.reverse.schedule) = (Vec::new(), Vec::new());
        let first = before.flows.first_mut()?;
        (first.bytes, first.start) = (ENDLESS, Duration::ZERO);
        before.run().flows.first()?.memory
    }

    /// The same with every flow knowing the path from an earlier connection, which is simulated for it.
    #[must_use]
    pub fn remembering(mut self) -> Self {
        let memory = self.learn();
        self.flows.iter_mut().for_each(|f| f.remembered = memory);
        self
    }

    /// Runs until every flow has arrived or [`Scenario::time_max`] has passed; if [`Scenario::seconds`] are
    /// given, for just so long.
    #[must_use]
    pub fn run(&self) -> Outcome {
        self.run_sampled(Duration::MAX, |_| {})
    }

    /// The same, telling every `every` how things stand.
    ///
    /// # Panics
    /// If an [`AddressChange`] names no flow.
    #[must_use]
    pub fn run_sampled(&self, every: Duration, mut tell: impl FnMut(&Sample)) -> Outcome {
        let mut net = self.build();
        let end = self.seconds.unwrap_or(self.time_max);
        let steady_from = self.steady_from();
        let mut moves = self.moves.clone();
        moves.sort_by_key(|m| m.at);
        let (mut moved, mut next_sample, mut warm) = (0, every, None);
        let timed = self.seconds.is_some();
        let stop = loop {
            let next_move = moves.get(moved).map(|m| m.at);
            let next_warm = warm.is_none().then_some(steady_from);
            let until = [Some(end), Some(next_sample), next_move, next_warm]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end);
            let stop = net.run(Instant::ZERO + until, |_, nodes| {
                !timed
                    && nodes
                        .iter()
                        .all(|n| n.is_closed() || n.progress().is_none_or(|p| p.completed_at().is_some()))
            });
            if !matches!(stop, Stop::Deadline | Stop::Quiet) || (stop == Stop::Quiet && next_move.is_none()) {
                break stop;
            }
            if until == steady_from && warm.is_none() {
                warm = Some(Marks::take(&net));
            }
            if next_move == Some(until) {
                let m = moves[moved];
                net.move_node(2 * m.flow + usize::from(m.side == Side::Receiver), m.what);
                moved += 1;
            }
            if next_sample == until {
                tell(&sample(&net));
                next_sample = next_sample.saturating_add(every);
            }
            if until == end {
                break if timed { Stop::Done } else { Stop::Deadline };
            }
        };
        Outcome::measure(self, &net, stop, &warm.unwrap_or_default())
    }

    #[cfg(feature = "quinn")]
    fn quic_config(&self, protocol: Protocol) -> QuicConfig {
        let controller = match protocol {
            Protocol::QuinnBbr => Controller::Bbr,
            Protocol::QuinnNewReno => Controller::NewReno,
            _ => Controller::Cubic,
        };
        // Four times what fits on the way and in the queue.
        let on_the_way = self.forward.rate_bps as f64 / 8.0 * self.rtt_max().as_secs_f64();
        let window = 4 * (on_the_way as u64 + self.forward.queue_bytes) + (4 << 20);
        QuicConfig { controller, max_datagram: self.config.max_datagram, window }
    }

    fn build(&self) -> Network<AnyNode> {
        let mut seeds = ChaCha8Rng::seed_from_u64(self.seed);
        let mut seed = || {
            let mut bytes = [0; 32];
            seeds.fill_bytes(&mut bytes);
            bytes
        };
        let step = self.step();
        let mut net = Network::new();
        let forward = net.add_link(self.forward.clone(), seed(), step);
        let reverse = net.add_link(self.reverse.clone(), seed(), step);
        for (i, flow) in self.flows.iter().enumerate() {
            let (from, to) = (2 * i, 2 * i + 1);
            let load = Load {
                bytes: flow.bytes,
                block_len: self.block_len,
                start: Instant::ZERO + flow.start,
                step,
            };
            let secret = seed();
            let (a, b) = (seed(), seed());
            let (sender, receiver) = match flow.protocol {
                Protocol::Utp2 => {
                    let config =
                        Config { mode: flow.mode, rate_limit: flow.rate_limit, ..self.config.clone() };
                    let sender = FlowNode::sender(config.clone(), &secret, a, address_of(to), load);
                    let sender = match flow.remembered {
                        Some(memory) => sender.recalling(memory),
                        None => sender,
                    };
                    let receiver = FlowNode::receiver(config, &secret, b, load);
                    (AnyNode::Utp2(Box::new(sender)), AnyNode::Utp2(Box::new(receiver)))
                }
                Protocol::Cubic => {
                    let config = TcpConfig { max_datagram: self.config.max_datagram, ecn: self.cubic_ecn };
                    let sender = TcpNode::sender(config, address_of(to), load);
                    (AnyNode::Tcp(sender), AnyNode::Tcp(TcpNode::receiver(config, address_of(from), load)))
                }
                #[cfg(feature = "quinn")]
                Protocol::QuinnCubic | Protocol::QuinnBbr | Protocol::QuinnNewReno => {
                    let config = self.quic_config(flow.protocol);
                    let sender = QuicNode::sender(config, a, address_of(to), load);
                    let receiver = QuicNode::receiver(config, b, load);
                    (AnyNode::Quic(Box::new(sender)), AnyNode::Quic(Box::new(receiver)))
                }
            };
            net.add_node(sender);
            net.add_node(receiver);
            if flow.extra_rtt.is_zero() {
                net.add_route(from, to, &[forward]);
            } else {
                let own = LinkConfig {
                    max_datagram: self.forward.max_datagram,
                    ..LinkConfig::new(0, flow.extra_rtt)
                };
                let own = net.add_link(own, seed(), step);
                net.add_route(from, to, &[forward, own]);
            }
            net.add_route(to, from, &[reverse]);
        }
        net
    }
}

fn sample(net: &Network<AnyNode>) -> Sample {
    let bottleneck = &net.links()[0];
    Sample {
        at: net.now() - Instant::ZERO,
        queued_bytes: bottleneck.queued_bytes(),
        rate_bps: bottleneck.config().rate_bps,
        congestion_drops: bottleneck.stats().congestion_drops(),
        chance_losses: bottleneck.stats().lost,
        flows: net
            .nodes()
            .chunks(2)
            .map(|ends| (ends[1].progress().map_or(0, |p| p.received()), ends[0].counters()))
            .collect(),
    }
}
