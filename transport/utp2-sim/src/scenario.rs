//! A bottleneck, the flows through it, and what came of it.
//!
//! Rates are judged against the *ceiling*: the link's rate × the share of a full datagram that is block
//! data × (1 − chance loss). Nothing can be faster without sending less than the data.

use core::fmt;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use timebase::Instant;
use utp2::{Config, Mode, Stats};

use crate::flow::{FlowNode, Load};
use crate::link::{Link, LinkConfig, LinkStats};
use crate::network::{Network, Stop, address_of};

/// Bytes of a full data packet that are not block data, as the ceiling counts them: header and tag of the
/// article that described µTP2's rates. Kept apart from what the implementation needs, so that a larger
/// header shows as lower utilisation.
pub const CEILING_HEADER: u32 = 32;

/// Round trips after which the search for the rate should be over.
const WARM_UP_RTTS: u32 = 15;

/// One flow of a [`Scenario`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowConfig {
    /// Bytes to move.
    pub bytes: u64,
    /// When it begins to connect, after the beginning of the run.
    pub start: Duration,
    /// How hard it competes.
    pub mode: Mode,
    /// Bytes/s it may send at most.
    pub rate_limit: Option<u64>,
}

impl FlowConfig {
    /// A flow of `bytes` in full mode from the beginning.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, start: Duration::ZERO, mode: Mode::Full, rate_limit: None }
    }
}

/// µTP2 flows, each with a sender and a receiver of its own, through one bottleneck.
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
}

impl Scenario {
    /// One flow of `bytes` over a link of `rate_bps` (bits per second on the wire), a round trip of `rtt`
    /// and chance loss `loss` (0 to 1) towards the receiver. The way back is as fast and loses as much.
    #[must_use]
    pub fn new(rate_bps: u64, rtt: Duration, loss: f64, bytes: u64) -> Self {
        let link = LinkConfig::new(rate_bps, rtt / 2).with_loss(loss);
        let config = Config {
            max_datagram: 1472,
            // Never the limit here: 10 Gbit/s at 500 ms are 625 MB.
            receive_window: 1 << 30,
            max_queued_blocks: 1 << 15,
            max_in_flight_packets: 1 << 20,
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
        }
    }

    /// The round trip without queues.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.forward.delay + self.reverse.delay
    }

    /// The most block data per second the link can carry, bytes.
    #[must_use]
    pub fn ceiling(&self) -> f64 {
        let datagram = u32::from(self.config.max_datagram);
        let share = f64::from(datagram - CEILING_HEADER) / f64::from(datagram + self.forward.overhead);
        self.forward.rate_bps as f64 / 8.0 * share * (1.0 - self.forward.loss.mean())
    }

    /// Runs until every flow has arrived or [`Scenario::time_max`] has passed.
    #[must_use]
    pub fn run(&self) -> Outcome {
        let mut seeds = ChaCha8Rng::seed_from_u64(self.seed);
        let mut seed = || {
            let mut bytes = [0; 32];
            seeds.fill_bytes(&mut bytes);
            bytes
        };
        let bucket = self.rtt().max(Duration::from_millis(1));
        let mut net = Network::new();
        let forward = net.add_link(Link::new(self.forward.clone(), seed()));
        let reverse = net.add_link(Link::new(self.reverse.clone(), seed()));
        for (i, flow) in self.flows.iter().enumerate() {
            let (from, to) = (2 * i, 2 * i + 1);
            let config = Config { mode: flow.mode, rate_limit: flow.rate_limit, ..self.config.clone() };
            let load =
                Load { bytes: flow.bytes, block_len: self.block_len, start: Instant::ZERO + flow.start };
            let secret = seed();
            net.add_node(FlowNode::sender(config.clone(), &secret, seed(), address_of(to), load));
            net.add_node(FlowNode::receiver(config, &secret, seed(), load, bucket));
            net.add_route(from, to, forward);
            net.add_route(to, from, reverse);
        }
        let stop = net.run(Instant::ZERO + self.time_max, |_, nodes| {
            nodes.iter().all(|n| n.closed().is_some() || n.ledger().is_none() || n.completed_at().is_some())
        });
        self.measure(&net, stop, bucket)
    }

    fn measure(&self, net: &Network<FlowNode>, stop: Stop, bucket: Duration) -> Outcome {
        let flows: Vec<FlowOutcome> = self
            .flows
            .iter()
            .zip(net.nodes().chunks(2))
            .map(|(config, ends)| self.measure_flow(config, &ends[0], &ends[1], net.now(), bucket))
            .collect();
        let end = flows.iter().filter_map(|f| f.completed).max().unwrap_or_else(|| since_zero(net.now()));
        let received: u64 = flows.iter().map(|f| f.received).sum();
        let goodput = received as f64 / end.as_secs_f64().max(1e-6);
        let steady =
            self.steady(&self.flows, &net.nodes().iter().skip(1).step_by(2).collect::<Vec<_>>(), bucket);
        let steady_sum: f64 = steady.iter().sum();
        let squares: f64 = steady.iter().map(|x| x * x).sum();
        let jain =
            if squares > 0.0 { steady_sum * steady_sum / (steady.len() as f64 * squares) } else { 1.0 };
        let (sent, again) = flows
            .iter()
            .fold((0, 0), |(s, r), f| (s + f.stats.data_bytes_sent, r + f.stats.retransmitted_bytes));
        let forward = net.links()[0].stats();
        Outcome {
            stop,
            intact: flows.iter().all(|f| f.completed.is_some() && f.fault.is_none()),
            seconds: end.as_secs_f64(),
            goodput,
            ceiling: self.ceiling(),
            utilization: steady_sum / self.ceiling(),
            utilization_whole: goodput / self.ceiling(),
            rtts_to_90: self.rtts_to_90(net, bucket),
            retransmit_ratio: ratio(again, sent),
            self_loss: ratio(forward.queue_drops, forward.datagrams),
            jain,
            forward,
            reverse: net.links()[1].stats(),
            flows,
        }
    }

    fn measure_flow(
        &self,
        config: &FlowConfig,
        sender: &FlowNode,
        receiver: &FlowNode,
        now: Instant,
        bucket: Duration,
    ) -> FlowOutcome {
        let ledger = receiver.ledger().expect("every second node receives");
        let started = Instant::ZERO + config.start;
        let completed = receiver.completed_at().map(since_zero);
        let took = receiver.completed_at().unwrap_or(now) - started;
        let fault = ledger.fault().map(str::to_owned).or_else(|| {
            let closed = [sender, receiver].into_iter().find_map(FlowNode::closed)?;
            completed.is_none().then(|| format!("closed before the end: {closed}"))
        });
        FlowOutcome {
            completed,
            connected: sender.connected_at().map(|at| at - started),
            received: ledger.received(),
            duplicate: ledger.duplicate(),
            goodput: ledger.received() as f64 / took.as_secs_f64().max(1e-6),
            fault,
            stats: sender.stats(),
            bucket,
            timeline: receiver.timeline().to_vec(),
        }
    }

    /// Bytes/s of each flow while all are under way and settled: from 15 round trips after the last one
    /// began until the first one has 99 % of its bytes.
    fn steady(&self, flows: &[FlowConfig], receivers: &[&FlowNode], bucket: Duration) -> Vec<f64> {
        let bucket_us = bucket.as_micros() as u64;
        let from = flows.iter().map(|f| f.start).max().unwrap_or_default() + self.rtt() * WARM_UP_RTTS;
        let from = (from.as_micros() as u64).div_ceil(bucket_us);
        // A bucket of flow i, counted from the beginning of the run. Starts are rounded to buckets.
        let offset = |f: &FlowConfig| f.start.as_micros() as u64 / bucket_us;
        let until = flows
            .iter()
            .zip(receivers)
            .map(|(f, r)| offset(f) + bucket_of_share(r.timeline(), f.bytes, 0.99) as u64)
            .min()
            .unwrap_or(0);
        flows
            .iter()
            .zip(receivers)
            .map(|(f, r)| {
                let inside = |b: u64| r.timeline().get((b - offset(f)) as usize).copied().unwrap_or(0);
                let bytes: u64 = (from..until).map(inside).sum();
                bytes as f64 / (bucket.as_secs_f64() * until.saturating_sub(from).max(1) as f64)
            })
            .collect()
    }

    fn rtts_to_90(&self, net: &Network<FlowNode>, bucket: Duration) -> Option<u32> {
        let goal = self.ceiling() * bucket.as_secs_f64() * 0.9;
        let timelines: Vec<&[u64]> = net.nodes().iter().skip(1).step_by(2).map(FlowNode::timeline).collect();
        let longest = timelines.iter().map(|t| t.len()).max().unwrap_or(0);
        let sum = |b: usize| timelines.iter().map(|t| t.get(b).copied().unwrap_or(0)).sum::<u64>();
        let bucket_index = (0..longest).find(|&b| sum(b) as f64 >= goal)?;
        let rtts = (bucket_index + 1) as f64 * bucket.as_secs_f64() / self.rtt().as_secs_f64().max(1e-6);
        Some(rtts.ceil() as u32)
    }
}

/// The first bucket by whose end `share` of `bytes` has come.
fn bucket_of_share(timeline: &[u64], bytes: u64, share: f64) -> usize {
    let mut sum = 0;
    timeline
        .iter()
        .position(|b| {
            sum += b;
            sum as f64 >= bytes as f64 * share
        })
        .unwrap_or(timeline.len())
}

fn since_zero(at: Instant) -> Duration {
    at - Instant::ZERO
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What came of one flow.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowOutcome {
    /// When its last byte arrived, after the beginning of the run; `None` if it did not.
    pub completed: Option<Duration>,
    /// How long its handshake took.
    pub connected: Option<Duration>,
    /// Bytes that arrived, each counted once.
    pub received: u64,
    /// Bytes that arrived again.
    pub duplicate: u64,
    /// Received bytes per second from its start to its end.
    pub goodput: f64,
    /// What was wrong, if anything.
    pub fault: Option<String>,
    /// The sender's counters at the end.
    pub stats: Stats,
    /// Length of a step of the timeline.
    pub bucket: Duration,
    /// New bytes in each step since the flow's start.
    pub timeline: Vec<u64>,
}

/// What came of a [`Scenario`]. The same scenario gives the same outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Why the run ended; [`Stop::Done`] if all is well.
    pub stop: Stop,
    /// Whether every byte of every flow arrived, and nothing else.
    pub intact: bool,
    /// Virtual seconds to the last byte.
    pub seconds: f64,
    /// Received bytes per second over the whole run, handshake and search for the rate included.
    pub goodput: f64,
    /// The most the link could carry, bytes/s; see [`Scenario::ceiling`].
    pub ceiling: f64,
    /// Share of the ceiling used once settled: after 15 round trips, without the last 1 % of the bytes.
    pub utilization: f64,
    /// Share of the ceiling used over the whole run.
    pub utilization_whole: f64,
    /// Round trips until one brought 90 % of the ceiling; `None` if none did.
    pub rtts_to_90: Option<u32>,
    /// Share of the data bytes sent that had been sent before.
    pub retransmit_ratio: f64,
    /// Share of the datagrams that overran the bottleneck's queue.
    pub self_loss: f64,
    /// Jain's index of the settled flows: 1 is fair, 1/n is one flow having all.
    pub jain: f64,
    /// The bottleneck's counters.
    pub forward: LinkStats,
    /// The way back.
    pub reverse: LinkStats,
    /// Each flow.
    pub flows: Vec<FlowOutcome>,
}

impl fmt::Display for Outcome {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mbit = |bytes: f64| bytes * 8.0 / 1e6;
        write!(
            f,
            "{:?}{} in {:.2} s: {:.2} of {:.2} Mbit/s, utilization {:.1} % settled, {:.1} % whole, \
             90 % after {} RTTs, sent again {:.2} %, queue drops {:.2} % (longest wait {:.1} ms), \
             Jain {:.3}",
            self.stop,
            if self.intact { ", intact" } else { ", NOT INTACT" },
            self.seconds,
            mbit(self.goodput),
            mbit(self.ceiling),
            self.utilization * 100.0,
            self.utilization_whole * 100.0,
            self.rtts_to_90.map_or("—".into(), |n| n.to_string()),
            self.retransmit_ratio * 100.0,
            self.self_loss * 100.0,
            self.forward.queue_max_us as f64 / 1000.0,
            self.jain,
        )?;
        for (i, flow) in self.flows.iter().enumerate() {
            if let Some(fault) = &flow.fault {
                write!(f, "; flow {i}: {fault}")?;
            }
        }
        Ok(())
    }
}
