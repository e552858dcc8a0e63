//! The cases themselves: what the transport has to show, as scenarios and demands.

use core::time::Duration;

use utp2::Mode;

use super::{Case, Demand, Layout, Question};
use crate::link::{Change, Discipline, Jitter, Loss, Policer};
use crate::measure::{Outcome, Recovery};
use crate::network::Move;
use crate::protocol::Protocol;
use crate::scenario::{AddressChange, FlowConfig, Scenario, Side};

const MBIT: u64 = 1_000_000;
const GBIT: u64 = 1000 * MBIT;
const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

use Demand::{Any, AtLeast, AtMost, Between};

pub(super) fn ci(protocol: Protocol) -> Vec<Case> {
    cells(protocol, &[20 * MBIT, 100 * MBIT], &[1, 50, 200], &[0.0, 0.01, 0.05])
}

pub(super) fn full(protocol: Protocol) -> Vec<Case> {
    cells(protocol, &[20 * MBIT, GBIT, 5 * GBIT, 10 * GBIT], &[1, 50, 200, 500], &[0.0, 0.001, 0.01, 0.05])
}

fn cells(protocol: Protocol, rates: &[u64], rtts: &[u64], losses: &[f64]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &rate in rates {
        for &rtt in rtts {
            cases.extend(losses.iter().map(|&loss| cell(protocol, rate, rtt, loss)));
        }
    }
    cases
}

/// A flow of `protocol` without an end, queue of half a BDP.
fn single(protocol: Protocol, rate: u64, rtt_ms: u64, loss: f64, seconds: u64) -> Scenario {
    let mut s = Scenario::new(rate, MS(rtt_ms), loss, 0).with_queue_bdp(0.5).for_seconds(seconds);
    s.flows[0].protocol = protocol;
    s
}

fn cell(protocol: Protocol, rate: u64, rtt: u64, loss: f64) -> Case {
    // A steady part of 10 s or 15 round trips, whichever is longer.
    let warm_up = (15 * rtt).div_ceil(1000);
    let scenario = single(protocol, rate, rtt, loss, warm_up + (15 * rtt).div_ceil(1000).max(10));
    // The demands are ours, and at 1 ms the schedulers of real hosts are the limit: only told.
    let judged = protocol == Protocol::Utp2 && rtt >= 10;
    let demand = |d| if judged { d } else { Any };
    Case {
        key: vec![
            protocol.name().into(),
            (rate / MBIT).to_string(),
            rtt.to_string(),
            (loss * 100.0).to_string(),
            "0.5".into(),
        ],
        scenario,
        remembered: false,
        questions: vec![
            Question::new("utilization", demand(AtLeast(97.0)), 2, |_, o| Some(o.utilization * 100.0)),
            Question::new("own loss", demand(AtMost(0.5)), 3, |_, o| Some(o.steady.self_loss * 100.0)),
            Question::new("resent", demand(AtMost(1.0)), 3, move |_, o| {
                Some((o.steady.retransmit_ratio - loss) * 100.0)
            }),
            Question::new("start", Any, 0, |_, o| o.rtts_to_90.map(f64::from)),
        ],
        layout: Layout::Cell,
    }
}

/// Names cases and collects them.
struct List {
    protocol: Protocol,
    cases: Vec<Case>,
}

impl List {
    fn add(&mut self, name: &str, scenario: Scenario, questions: Vec<Question>) {
        let key = vec![self.protocol.name().into(), name.into()];
        self.cases.push(Case { key, scenario, remembered: false, questions, layout: Layout::Lines });
    }
}

fn utilization(demand: Demand) -> Question {
    figure("utilization, %", demand, 2, |o| o.utilization * 100.0)
}

fn own_loss() -> Question {
    figure("own loss, %", AtMost(0.5), 3, |o| o.steady.self_loss * 100.0)
}

fn resent(loss: f64) -> Question {
    Question::new("resent beyond the loss, %", AtMost(1.0), 3, move |_, o| {
        Some((o.steady.retransmit_ratio - loss) * 100.0)
    })
}

fn figure(what: &str, demand: Demand, digits: usize, f: fn(&Outcome) -> f64) -> Question {
    Question::new(what, demand, digits, move |_, o| Some(f(o)))
}

/// Of the `n`th thing that happened to the path.
fn recovery(what: &str, n: usize, demand: Demand, f: fn(&Scenario, &Recovery) -> Option<f64>) -> Question {
    Question::new(what, demand, 2, move |s, o| f(s, o.recoveries.get(n)?))
}

fn settled_rtts(s: &Scenario, r: &Recovery) -> Option<f64> {
    Some(r.settled?.as_secs_f64() / s.rtt().as_secs_f64())
}

pub(super) fn special(protocol: Protocol) -> Vec<Case> {
    let mut list = List { protocol, cases: Vec::new() };
    let single = |rate, rtt, loss, seconds| single(protocol, rate, rtt, loss, seconds);
    steady_cases(&mut list, single);
    queue_cases(&mut list, single);
    changing_cases(&mut list, single);
    for loss in [0.0, 0.01] {
        list.add(
            &format!("1 Gbit/s, 200 ms, {} %, remembered path", loss * 100.0),
            single(GBIT, 200, loss, 15),
            vec![
                Question::new("round trips to 90 %", AtMost(4.0), 0, |_, o| o.rtts_to_90.map(f64::from)),
                figure("own loss, whole, %", Any, 3, |o| o.self_loss * 100.0),
            ],
        );
        list.cases.last_mut().expect("just added").remembered = true;
    }
    let mut whole = single(GBIT, 200, 0.01, 1);
    (whole.seconds, whole.flows[0].bytes) = (None, 10_000_000_000);
    list.add(
        "10 GB, 1 Gbit/s, 200 ms, 1 %",
        whole,
        vec![
            figure("whole, with the start, %", AtLeast(97.0), 2, |o| o.utilization_whole * 100.0),
            Question::new("round trips to 90 %, cold", AtMost(12.0), 0, |_, o| o.rtts_to_90.map(f64::from)),
            figure("bytes sent per byte", AtMost(1.03), 4, |o| 1.0 / (1.0 - o.retransmit_ratio)),
        ],
    );
    list.cases
}

type Single<'a> = &'a dyn Fn(u64, u64, f64, u64) -> Scenario;

fn steady_cases(list: &mut List, single: impl Fn(u64, u64, f64, u64) -> Scenario) {
    let single: Single<'_> = &single;
    list.add(
        "1 Gbit/s, 200 ms, 1 %",
        single(GBIT, 200, 0.01, 30),
        vec![utilization(AtLeast(98.5)), own_loss(), resent(0.01)],
    );
    let mut s = single(GBIT, 100, 0.0, 30);
    (s.forward.loss, s.reverse.loss) = (Loss::bursts(0.02, 20.0), Loss::bursts(0.02, 20.0));
    list.add("bursts of 20, mean 2 %, 1 Gbit/s, 100 ms", s, vec![utilization(AtLeast(90.0)), own_loss()]);
    let mut s = single(GBIT, 100, 0.0, 30);
    for link in [&mut s.forward, &mut s.reverse] {
        (link.reorder, link.reorder_by) = (0.02, MS(10));
    }
    list.add(
        "2 % reordered by up to 10 ms, 1 Gbit/s, 100 ms",
        s,
        vec![
            utilization(AtLeast(95.0)),
            figure("resent for nothing, %", AtMost(1.0), 3, |o| o.steady.spurious_ratio * 100.0),
        ],
    );
    let mut s = single(100 * MBIT, 50, 0.0, 30);
    for link in [&mut s.forward, &mut s.reverse] {
        link.jitter = Jitter::Uniform(MS(10));
    }
    list.add(
        "jitter of 10 ms in order, 100 Mbit/s, 50 ms",
        s.clone(),
        vec![utilization(AtLeast(90.0)), own_loss()],
    );
    for link in [&mut s.forward, &mut s.reverse] {
        link.jitter = Jitter::Uniform(MS(30));
    }
    list.add("jitter of 30 ms in order, 100 Mbit/s, 50 ms", s, vec![utilization(Any)]);
    let mut s = single(GBIT, 50, 0.0, 20);
    s.flows[0].rate_limit = Some(200 * MBIT / 8);
    list.add(
        "rate limit of 200 Mbit/s, 1 Gbit/s, 50 ms",
        s,
        vec![Question::new("kept within, %", AtMost(2.0), 2, |s, o| {
            // The limit counts UDP payload, of which the ceiling's share is data.
            let datagram = f64::from(s.config.max_datagram);
            let data = (datagram - f64::from(crate::scenario::CEILING_HEADER)) / datagram;
            let limit = s.flows[0].rate_limit? as f64;
            Some((o.steady.goodput / data / limit - 1.0).abs() * 100.0)
        })],
    );
}

fn queue_cases(list: &mut List, single: impl Fn(u64, u64, f64, u64) -> Scenario) {
    for loss in [0.0, 0.01] {
        let s = single(GBIT, 100, loss, 30).with_queue_bdp(0.02);
        let name = format!("queue of 2 % of a BDP, 1 Gbit/s, 100 ms, {} %", loss * 100.0);
        list.add(&name, s, vec![utilization(AtLeast(95.0))]);
    }
    for (mode, name) in [(Mode::Full, "full"), (Mode::Fair, "fair")] {
        let mut s = single(GBIT, 50, 0.0, 60).with_queue_bdp(10.0);
        s.flows[0].mode = mode;
        let standing = if mode == Mode::Fair { AtMost(30.0) } else { Any };
        list.add(
            &format!("queue of 10 BDP, mode {name}, 1 Gbit/s, 50 ms"),
            s,
            vec![
                utilization(AtLeast(97.0)),
                figure("standing delay, ms", standing, 1, |o| o.steady.queue.standing_ms),
                figure("mean delay, ms", Any, 1, |o| o.steady.queue.mean_ms),
            ],
        );
    }
    for (ecn, name) in [(false, "CoDel"), (true, "CoDel with ECN")] {
        let mut s = single(100 * MBIT, 40, 0.0, 40).with_queue_bdp(2.0);
        s.forward.discipline = Discipline::codel(ecn);
        let mut questions = vec![utilization(AtLeast(95.0)), own_loss()];
        if ecn {
            questions.push(figure("marks", Any, 0, |o| o.forward.marked as f64));
        }
        list.add(&format!("{name}, 100 Mbit/s, 40 ms"), s, questions);
    }
    let mut s = single(GBIT, 40, 0.0, 40);
    s.forward.policer = Some(Policer { rate_bps: 100 * MBIT, burst_bytes: 600_000 });
    list.add(
        "policer of 100 Mbit/s, burst 600 kB, 40 ms",
        s,
        vec![utilization(AtLeast(90.0)), figure("own loss, %", Any, 3, |o| o.steady.self_loss * 100.0)],
    );
}

fn changing_cases(list: &mut List, single: impl Fn(u64, u64, f64, u64) -> Scenario) {
    let mut s = single(GBIT, 50, 0.001, 60);
    for (at, rate) in [(20, 200 * MBIT), (40, GBIT)] {
        s.forward = s.forward.with_step(S(at), Change::Rate(rate));
    }
    list.add(
        "1 Gbit/s → 200 Mbit/s → 1 Gbit/s, 50 ms",
        s,
        vec![
            recovery("round trips to settle, down", 0, AtMost(20.0), settled_rtts),
            recovery("round trips to settle, up", 1, AtMost(20.0), settled_rtts),
        ],
    );
    let longer = [
        (GBIT, &[50, 150, 50][..], 0.001, Mode::Full),
        (GBIT, &[50, 80], 0.0, Mode::Full),
        (100 * MBIT, &[20, 120, 20], 0.0, Mode::Full),
        (100 * MBIT, &[20, 40], 0.01, Mode::Fair),
        (20 * MBIT, &[200, 600], 0.01, Mode::Full),
    ];
    for (rate, rtts, loss, mode) in longer {
        let mut s = single(rate, rtts[0], loss, 20 + 20 * (rtts.len() as u64 - 1));
        s.flows[0].mode = mode;
        let mut questions = Vec::new();
        for (i, &rtt) in rtts.iter().enumerate().skip(1) {
            let at = S(20 * i as u64);
            for link in [&mut s.forward, &mut s.reverse] {
                *link = link.clone().with_step(at, Change::Delay(MS(rtt) / 2));
            }
            let most = (rtt as f64 / 100.0).max(2.0);
            questions.push(recovery(
                &format!("settled after, to {rtt} ms, s"),
                i - 1,
                AtMost(most),
                |_, r| Some(r.settled?.as_secs_f64()),
            ));
            // What settles must not fall off again.
            questions.push(recovery(
                &format!("cost, to {rtt} ms, s of the rate"),
                i - 1,
                AtMost(1.0),
                |_, r| Some(r.cost.as_secs_f64()),
            ));
        }
        let steps: Vec<String> = rtts.iter().map(u64::to_string).collect();
        let mode = if mode == Mode::Fair { "fair" } else { "full" };
        let rate = rate / MBIT;
        let name = format!("{} ms, {rate} Mbit/s, {} %, mode {mode}", steps.join(" → "), loss * 100.0);
        list.add(&name, s, questions);
    }
    let moves = [
        ("sender's address", Side::Sender, Move::Address),
        ("receiver's port", Side::Receiver, Move::Port),
        ("sender's port", Side::Sender, Move::Port),
    ];
    for (name, side, what) in moves {
        let mut s = single(100 * MBIT, 100, 0.0, 40);
        s.moves = vec![AddressChange { at: S(20), flow: 0, side, what }];
        list.add(
            &format!("{name} changes, 100 Mbit/s, 100 ms"),
            s,
            vec![
                recovery("cost, ms", 0, AtMost(400.0), |_, r| Some(r.cost.as_secs_f64() * 1e3)),
                recovery("new data after, ms", 0, Any, |_, r| Some(r.resumed?.as_secs_f64() * 1e3)),
            ],
        );
    }
    let mut s = single(100 * MBIT, 100, 0.0, 70);
    for link in [&mut s.forward, &mut s.reverse] {
        *link = link.clone().with_outage(S(20), S(30));
    }
    list.add(
        "outage of 30 s, 100 Mbit/s, 100 ms",
        s,
        vec![
            recovery("new data after its end, s", 0, AtMost(1.0), |_, r| Some(r.resumed?.as_secs_f64())),
            recovery("settled after, s", 0, Any, |_, r| Some(r.settled?.as_secs_f64())),
        ],
    );
}

pub(super) fn fairness(protocol: Protocol) -> Vec<Case> {
    let mut list = List { protocol, cases: Vec::new() };
    let own = FlowConfig { protocol, ..FlowConfig::endless() };
    let speed = |rate: u64| {
        if rate >= GBIT { format!("{} Gbit/s", rate / GBIT) } else { format!("{} Mbit/s", rate / MBIT) }
    };
    let path = |rate: u64, bdp: f64, seconds: u64| {
        Scenario::new(rate, MS(50), 0.0, 0).with_queue_bdp(bdp).for_seconds(seconds)
    };
    let jain = |demand| figure("Jain, last 30 s", demand, 3, |o| o.jain);
    for rate in [100 * MBIT, GBIT] {
        for bdp in [0.1, 0.5, 1.0, 2.0] {
            for flows in [2, 4, 16] {
                let mut s = path(rate, bdp, 90 + flows);
                s.steady_from = Some(S(60 + flows));
                s.flows = (0..flows).map(|i| FlowConfig { start: S(i), ..own.clone() }).collect();
                let demand = if bdp >= 0.5 { AtLeast(0.95) } else { Any };
                list.add(
                    &format!("{flows} flows, {}, 50 ms, queue {bdp} BDP", speed(rate)),
                    s,
                    vec![
                        jain(demand),
                        utilization(Any),
                        figure("own loss, %", Any, 3, |o| o.steady.self_loss * 100.0),
                    ],
                );
            }
        }
    }
    for flows in [2, 4] {
        let mut s = path(100 * MBIT, 1.0, 94);
        s.steady_from = Some(S(64));
        s.flows =
            (0..flows).map(|i| FlowConfig { start: S(i), extra_rtt: MS(50 * i), ..own.clone() }).collect();
        list.add(&format!("{flows} flows of 50 ms, 100 ms … , 100 Mbit/s, queue 1 BDP"), s, vec![jain(Any)]);
    }
    for rate in [100 * MBIT, GBIT] {
        for bdp in [0.5, 1.0, 2.0] {
            for own_first in [true, false] {
                for (mode, name, demand) in [
                    (Mode::Fair, "fair", Between(25.0, 75.0)),
                    (Mode::Background, "background", AtLeast(90.0)),
                ] {
                    let mut s = path(rate, bdp, 120);
                    s.steady_from = Some(S(60));
                    let (a, b) = if own_first { (0, 10) } else { (10, 0) };
                    s.flows = vec![FlowConfig { start: S(a), mode, ..own.clone() }, FlowConfig::cubic(S(b))];
                    let first = if own_first { "first" } else { "second" };
                    list.add(
                        &format!("{name} ({first}) beside CUBIC, {}, 50 ms, queue {bdp} BDP", speed(rate)),
                        s,
                        vec![
                            figure("CUBIC's share, %", demand, 1, |o| {
                                o.flows[1].steady / o.steady.goodput.max(1.0) * 100.0
                            }),
                            utilization(Any),
                        ],
                    );
                }
            }
        }
    }
    list.cases
}
