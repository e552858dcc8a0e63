//! What came of a run: over the whole of it, over its steady part, and after each thing that happened.

use core::fmt;
use core::time::Duration;

use timebase::Instant;
use utp2::PathMemory;

use crate::link::{Change, LinkStats, QueueSummary};
use crate::network::{Move, Network, Stop};
use crate::pattern::ENDLESS;
use crate::progress::Counters;
use crate::protocol::AnyNode;
use crate::scenario::{FlowConfig, Scenario, Side};

/// Fewest datagrams that a rate over a round trip is judged by.
const PACKETS_FOR_A_RATE: f64 = 40.0;

/// Counters at the beginning of the steady part.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    senders: Vec<Counters>,
    forward: LinkStats,
}

impl Marks {
    pub(crate) fn take(net: &Network<AnyNode>) -> Self {
        let senders = net.nodes().iter().step_by(2).map(AnyNode::counters).collect();
        Self { senders, forward: net.links()[0].stats() }
    }
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
    /// The same in the steady part.
    pub steady: f64,
    /// What was wrong, if anything.
    pub fault: Option<String>,
    /// What a µTP2 sender learned of the path.
    pub memory: Option<PathMemory>,
    /// The sender's counters at the end.
    pub counters: Counters,
    /// New bytes in each step of [`Outcome::step`] since the beginning of the run.
    pub timeline: Vec<u64>,
}

/// The part of a run in which every flow should have found its rate: see [`Scenario::steady_from`]. It
/// ends with the run, or when the first flow has 99 % of its bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steady {
    /// Its beginning, after that of the run.
    pub from: Duration,
    /// Its end.
    pub until: Duration,
    /// Bytes per second of all flows.
    pub goodput: f64,
    /// The most the link could carry then, bytes/s.
    pub ceiling: f64,
    /// Share of the data bytes sent that had been sent before. Counted to the end of the run.
    pub retransmit_ratio: f64,
    /// Share of the datagrams that died of congestion. Counted to the end of the run.
    pub self_loss: f64,
    /// Share of the data bytes sent again although they had arrived: retransmissions that only made
    /// duplicates.
    pub spurious_ratio: f64,
    /// The bottleneck's queue.
    pub queue: QueueSummary,
}

/// Something that happened to the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The bottleneck's rate became this, bits per second.
    Rate(u64),
    /// The propagation delay towards the receiver became this.
    Delay(Duration),
    /// The link came back.
    OutageEnds,
    /// This end of a flow got another address, or another port.
    Moved(Side, Move),
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Rate(bps) => return f.pad(&format!("rate {} Mbit/s", *bps as f64 / 1e6)),
            Self::Delay(delay) => return f.pad(&format!("delay {} ms", delay.as_secs_f64() * 1e3)),
            Self::OutageEnds => "outage ends",
            Self::Moved(Side::Sender, Move::Address) => "sender address changes",
            Self::Moved(Side::Sender, Move::Port) => "sender port changes",
            Self::Moved(Side::Receiver, Move::Address) => "receiver address changes",
            Self::Moved(Side::Receiver, Move::Port) => "receiver port changes",
        };
        f.pad(text)
    }
}

/// How the flows took something that happened to the path.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// When it happened, after the beginning of the run. For an outage, its end.
    pub at: Duration,
    /// What it was.
    pub what: Happening,
    /// Until new data arrived again; `None` if none did.
    pub resumed: Option<Duration>,
    /// Until 90 % of the present ceiling were kept for five round trips at less than 1 % loss of congestion;
    /// `None` if that never came.
    pub settled: Option<Duration>,
    /// Time's worth of data that was missing in the 10 s after it: of a change of address against the 5 s
    /// before it, else against 97 % of the ceiling.
    pub cost: Duration,
}

/// What came of a [`Scenario`]. The same scenario gives the same outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Why the run ended; [`Stop::Done`] if all is well.
    pub stop: Stop,
    /// Whether every byte of every flow arrived (endless ones: all they could), and nothing else.
    pub intact: bool,
    /// Virtual seconds to the last byte.
    pub seconds: f64,
    /// Received bytes per second over the whole run, handshake and search for the rate included.
    pub goodput: f64,
    /// The most the link could carry, bytes/s; see [`Scenario::ceiling`].
    pub ceiling: f64,
    /// Share of the ceiling used in the steady part.
    pub utilization: f64,
    /// Share of the ceiling used over the whole run.
    pub utilization_whole: f64,
    /// Round trips until one brought 90 % of the ceiling; `None` if none did.
    pub rtts_to_90: Option<u32>,
    /// Share of the data bytes sent that had been sent before.
    pub retransmit_ratio: f64,
    /// Share of the datagrams that died of congestion at the bottleneck.
    pub self_loss: f64,
    /// Jain's index of the steady flows: 1 is fair, 1/n is one flow having all.
    pub jain: f64,
    /// The steady part in detail.
    pub steady: Steady,
    /// What happened to the path, in order of time.
    pub recoveries: Vec<Recovery>,
    /// The bottleneck's counters.
    pub forward: LinkStats,
    /// The way back.
    pub reverse: LinkStats,
    /// Length of a step of the timelines.
    pub step: Duration,
    /// Each flow.
    pub flows: Vec<FlowOutcome>,
}

impl Outcome {
    /// Whether the run came to its end with every byte in its place.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.intact && self.stop == Stop::Done
    }

    pub(crate) fn measure(scenario: &Scenario, net: &Network<AnyNode>, stop: Stop, marks: &Marks) -> Self {
        let now = net.now() - Instant::ZERO;
        let pairs: Vec<(&FlowConfig, &[AnyNode])> =
            scenario.flows.iter().zip(net.nodes().chunks(2)).collect();
        let line = Line::new(scenario, net);
        let from = scenario.steady_from();
        let until = pairs
            .iter()
            .map(|(f, ends)| until_share(f, &ends[1], line.step, 0.99))
            .chain([now])
            .min()
            .unwrap_or(now);
        let flows: Vec<FlowOutcome> = pairs
            .iter()
            .map(|(f, ends)| measure_flow(f, ends, now, |t| rate(t, line.step, from, until)))
            .collect();
        let end = if scenario.seconds.is_some() {
            now
        } else {
            flows.iter().map(|f| f.completed.unwrap_or(now)).max().unwrap_or(now)
        };
        let received: u64 = flows.iter().map(|f| f.received).sum();
        let goodput = received as f64 / end.as_secs_f64().max(1e-6);
        let forward = net.links()[0].stats();
        let steady = measure_steady(scenario, net, marks, &flows, from, until);
        let ceiling = scenario.ceiling_over(Duration::ZERO, end);
        let (sent, again) = flows
            .iter()
            .fold((0, 0), |(s, r), f| (s + f.counters.data_bytes_sent, r + f.counters.retransmitted_bytes));
        Self {
            stop,
            intact: flows
                .iter()
                .zip(&scenario.flows)
                .all(|(f, c)| f.fault.is_none() && (f.completed.is_some() || c.bytes == ENDLESS)),
            seconds: end.as_secs_f64(),
            goodput,
            ceiling,
            utilization: if steady.ceiling > 0.0 { steady.goodput / steady.ceiling } else { 0.0 },
            utilization_whole: goodput / ceiling.max(1.0),
            rtts_to_90: line.rtts_to_90(scenario),
            retransmit_ratio: ratio(again, sent),
            self_loss: ratio(forward.congestion_drops(), forward.datagrams),
            jain: jain(&flows.iter().map(|f| f.steady).collect::<Vec<f64>>()),
            steady,
            recoveries: line.recoveries(scenario, net, end),
            forward,
            reverse: net.links()[1].stats(),
            step: line.step,
            flows,
        }
    }
}

fn measure_flow(
    config: &FlowConfig,
    ends: &[AnyNode],
    now: Duration,
    steady: impl Fn(&[u64]) -> f64,
) -> FlowOutcome {
    let (sender, receiver) = (&ends[0], &ends[1]);
    let progress = receiver.progress().expect("every second node receives");
    let completed = progress.completed_at().map(|at| at - Instant::ZERO);
    let took = completed.unwrap_or(now).saturating_sub(config.start);
    // That somebody closed is no fault once everything is there.
    let closed = || {
        let why =
            [receiver, sender].into_iter().filter(|_| completed.is_none()).find_map(AnyNode::close_reason)?;
        Some(format!("closed before the end: {why}"))
    };
    FlowOutcome {
        completed,
        connected: sender.connected_at().map(|at| (at - Instant::ZERO).saturating_sub(config.start)),
        received: progress.received(),
        duplicate: receiver.duplicate(),
        goodput: progress.received() as f64 / took.as_secs_f64().max(1e-6),
        steady: steady(progress.timeline()),
        fault: receiver.data_fault().map(str::to_owned).or_else(closed),
        memory: sender.path_memory(),
        counters: sender.counters(),
        timeline: progress.timeline().to_vec(),
    }
}

fn measure_steady(
    scenario: &Scenario,
    net: &Network<AnyNode>,
    marks: &Marks,
    flows: &[FlowOutcome],
    from: Duration,
    until: Duration,
) -> Steady {
    let bottleneck = &net.links()[0];
    let (stats, before) = (bottleneck.stats(), &marks.forward);
    let mut sums = (0, 0);
    for (i, flow) in flows.iter().enumerate() {
        let none = Counters::default();
        let before = marks.senders.get(i).unwrap_or(&none);
        sums.0 += flow.counters.data_bytes_sent.saturating_sub(before.data_bytes_sent);
        sums.1 += flow.counters.retransmitted_bytes.saturating_sub(before.retransmitted_bytes);
    }
    let duplicate: u64 = flows.iter().map(|f| f.duplicate).sum();
    let all: u64 = flows.iter().map(|f| f.counters.data_bytes_sent).sum();
    Steady {
        from,
        until: until.max(from),
        goodput: flows.iter().map(|f| f.steady).sum(),
        ceiling: scenario.ceiling_over(from, until.max(from)),
        retransmit_ratio: ratio(sums.1, sums.0),
        self_loss: ratio(
            stats.congestion_drops() - before.congestion_drops(),
            stats.datagrams - before.datagrams,
        ),
        spurious_ratio: ratio(duplicate, all),
        queue: bottleneck.queue_summary(Instant::ZERO + from, Instant::ZERO + until.max(from)),
    }
}

/// Jain's index of fairness: 1 if all are alike, 1/n if one has all. 1 for nothing at all.
#[must_use]
pub fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|x| x * x).sum();
    if squares > 0.0 { sum * sum / (rates.len() as f64 * squares) } else { 1.0 }
}

/// What all flows received together, step by step.
struct Line {
    step: Duration,
    sums: Vec<u64>,
}

impl Line {
    fn new(scenario: &Scenario, net: &Network<AnyNode>) -> Self {
        let mut sums: Vec<u64> = Vec::new();
        for progress in net.nodes().iter().filter_map(AnyNode::progress) {
            let timeline = progress.timeline();
            sums.resize(sums.len().max(timeline.len()), 0);
            sums.iter_mut().zip(timeline).for_each(|(s, t)| *s += t);
        }
        Self { step: scenario.step(), sums }
    }

    fn index(&self, at: Duration) -> usize {
        usize::try_from(at.as_micros() / self.step.as_micros()).unwrap_or(usize::MAX)
    }

    /// Steps that make up a round trip, or as many as bring enough datagrams to judge a rate.
    fn steps_per_rtt(&self, scenario: &Scenario) -> usize {
        let rtt = scenario.rtt().as_secs_f64();
        let enough = PACKETS_FOR_A_RATE * 1400.0 / scenario.ceiling().max(1.0);
        ((rtt.max(enough) / self.step.as_secs_f64()).ceil() as usize).max(1)
    }

    fn rtts_to_90(&self, scenario: &Scenario) -> Option<u32> {
        let start = scenario.flows.iter().map(|f| f.start).min().unwrap_or_default();
        let per_rtt = self.steps_per_rtt(scenario);
        let goal = scenario.ceiling() * self.step.as_secs_f64() * per_rtt as f64 * 0.9;
        let first = self.index(start);
        let reached = (first..self.sums.len().saturating_sub(per_rtt - 1))
            .find(|&i| self.sums[i..i + per_rtt].iter().sum::<u64>() as f64 >= goal)?;
        let steps = (reached + per_rtt - first) as f64;
        Some((steps * self.step.as_secs_f64() / scenario.rtt().as_secs_f64().max(1e-6)).ceil() as u32)
    }

    fn recoveries(&self, scenario: &Scenario, net: &Network<AnyNode>, end: Duration) -> Vec<Recovery> {
        let changes = scenario.forward.schedule.iter().filter_map(|step| match step.change {
            Change::Rate(bps) => Some((step.at, Happening::Rate(bps))),
            Change::Delay(delay) => Some((step.at, Happening::Delay(delay))),
            Change::Up => Some((step.at, Happening::OutageEnds)),
            Change::Down => None,
        });
        let moves = scenario.moves.iter().map(|m| (m.at, Happening::Moved(m.side, m.what)));
        let mut what: Vec<(Duration, Happening)> = changes.chain(moves).collect();
        what.sort_by_key(|w| w.0);
        let next = |i: usize| what.get(i + 1).map_or(end, |w| w.0).min(end);
        (0..what.len())
            .filter(|&i| what[i].0 < end)
            .map(|i| self.recovery(scenario, net, what[i].0, next(i), what[i].1))
            .collect()
    }

    fn recovery(
        &self,
        scenario: &Scenario,
        net: &Network<AnyNode>,
        at: Duration,
        end: Duration,
        what: Happening,
    ) -> Recovery {
        // What was under way arrives half a round trip later: it is no sign of life.
        let echo =
            scenario.forward.delay + scenario.flows.iter().map(|f| f.extra_rtt).max().unwrap_or_default();
        let first = self.index(at);
        let last = self.index(end).min(self.sums.len());
        let ceiling = scenario.ceiling_over(at, at) * self.step.as_secs_f64();
        let since = |i: usize| (self.step * u32::try_from(i + 1).unwrap_or(u32::MAX)).saturating_sub(at);
        let quiet = first.max(self.index(at + echo) + 1).min(last);
        let begin = if what == Happening::OutageEnds { first } else { quiet };
        let resumed = (begin..last).find(|&i| self.sums[i] > 0).map(since);
        let span = 5 * self.steps_per_rtt(scenario);
        let steps = net.links()[0].timeline();
        let settled = (first..last.saturating_sub(span)).find(|&i| {
            let bytes: u64 = self.sums[i..i + span].iter().sum();
            let window = steps.get(i..i + span).unwrap_or_default();
            let sent: u64 = window.iter().map(|s| s.datagrams).sum();
            let drops: u64 = window.iter().map(|s| s.congestion_drops).sum();
            bytes as f64 >= 0.9 * ceiling * span as f64 && ratio(drops, sent) < 0.01
        });
        let ten = self.index(at + Duration::from_secs(10)).min(last);
        let got: u64 = self.sums[first.min(ten)..ten].iter().sum();
        let before = first.saturating_sub(self.index(Duration::from_secs(5)));
        let before: &[u64] = &self.sums[before.min(first.min(last))..first.min(last)];
        let usual = before.iter().sum::<u64>() as f64 / before.len().max(1) as f64;
        // After a change of the rate, or with nothing before, what should be reached is the measure.
        let is_move = matches!(what, Happening::Moved(..));
        let usual = if is_move && usual > 0.0 { usual } else { 0.97 * ceiling };
        let missing = (usual * ten.saturating_sub(first) as f64 - got as f64).max(0.0) / usual.max(1.0);
        Recovery {
            at,
            what,
            resumed,
            settled: settled.map(|i| (self.step * u32::try_from(i).unwrap_or(u32::MAX)).saturating_sub(at)),
            cost: self.step.mul_f64(missing),
        }
    }
}

/// Bytes per second of a timeline between two times.
fn rate(timeline: &[u64], step: Duration, from: Duration, until: Duration) -> f64 {
    let index = |at: Duration| usize::try_from(at.as_micros() / step.as_micros()).unwrap_or(usize::MAX);
    let first = index(from) + usize::from(!from.as_micros().is_multiple_of(step.as_micros()));
    let last = index(until);
    if last <= first {
        return 0.0;
    }
    let bytes: u64 = (first..last.min(timeline.len())).map(|i| timeline[i]).sum();
    bytes as f64 / (step.as_secs_f64() * (last - first) as f64)
}

/// The time by which `share` of a flow's bytes have come; the end of time if they have not, or never will.
fn until_share(config: &FlowConfig, receiver: &AnyNode, step: Duration, share: f64) -> Duration {
    if config.bytes == ENDLESS {
        return Duration::MAX;
    }
    let mut sum = 0;
    let timeline = receiver.progress().map_or(&[][..], |p| p.timeline());
    let index = timeline.iter().position(|b| {
        sum += b;
        sum as f64 >= config.bytes as f64 * share
    });
    index.map_or(Duration::MAX, |i| step * u32::try_from(i).unwrap_or(u32::MAX))
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl fmt::Display for Outcome {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mbit = |bytes: f64| bytes * 8.0 / 1e6;
        write!(
            f,
            "{:?}{} in {:.2} s: {:.2} of {:.2} Mbit/s, utilization {:.1} % settled, {:.1} % whole, \
             90 % after {} RTTs, sent again {:.2} % (settled {:.2} %), own loss {:.2} % (settled {:.2} %), \
             queue {:.1} ms (longest {:.1} ms), Jain {:.3}",
            self.stop,
            if self.intact { ", intact" } else { ", NOT INTACT" },
            self.seconds,
            mbit(self.goodput),
            mbit(self.ceiling),
            self.utilization * 100.0,
            self.utilization_whole * 100.0,
            self.rtts_to_90.map_or("—".into(), |n| n.to_string()),
            self.retransmit_ratio * 100.0,
            self.steady.retransmit_ratio * 100.0,
            self.self_loss * 100.0,
            self.steady.self_loss * 100.0,
            self.steady.queue.mean_ms,
            self.forward.queue_max_us as f64 / 1000.0,
            self.jain,
        )?;
        for (i, flow) in self.flows.iter().enumerate() {
            if self.flows.len() > 1 && self.flows.len() <= 4 {
                write!(f, "; flow {i}: {:.2} Mbit/s", mbit(flow.steady))?;
            }
            if let Some(fault) = &flow.fault {
                write!(f, "; flow {i}: {fault}")?;
            }
        }
        for r in &self.recoveries {
            let ms = |d: Option<Duration>| d.map_or("never".into(), |d| format!("{} ms", d.as_millis()));
            write!(
                f,
                "; {} at {:.1} s: resumed after {}, settled after {}, cost {} ms",
                r.what,
                r.at.as_secs_f64(),
                ms(r.resumed),
                ms(r.settled),
                r.cost.as_millis()
            )?;
        }
        Ok(())
    }
}
