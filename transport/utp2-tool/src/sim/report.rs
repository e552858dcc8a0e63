//! What came of one simulated run, for people and for programs.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use utp2_sim::measure::FlowOutcome;
use utp2_sim::{Outcome, Scenario};

fn mbps(bytes_per_second: f64) -> f64 {
    round(bytes_per_second * 8e-6, 3)
}

fn round(x: f64, digits: i32) -> f64 {
    let f = 10f64.powi(digits);
    (x * f).round() / f
}

fn seconds(d: Option<Duration>) -> Value {
    d.map_or(Value::Null, |d| json!(round(d.as_secs_f64(), 6)))
}

/// The keys are a contract with programs; `utp2 sim --help` tells what they mean.
pub(super) fn json(scenario: &Scenario, o: &Outcome) -> Value {
    let flows = scenario.flows.iter().zip(&o.flows).map(|(c, f)| {
        json!({
            "protocol": c.protocol.name(),
            "start": round(c.start.as_secs_f64(), 6),
            "connected": seconds(f.connected),
            "completed": seconds(f.completed),
            "bytes": f.received,
            "duplicate_bytes": f.duplicate,
            "goodput_mbps": mbps(f.goodput),
            "steady_mbps": mbps(f.steady),
            "share": round(share(o, f), 4),
            "sent_packets": f.counters.sent_packets,
            "lost_packets": f.counters.lost_packets,
            "spurious_losses": f.counters.spurious_losses,
            "rtt_ms": round(f.counters.rtt.as_secs_f64() * 1e3, 3),
            "base_loss": round(f64::from(f.counters.base_loss_ppm) * 1e-6, 6),
            "state": f.counters.state,
            "fault": f.fault,
        })
    });
    let flows: Vec<Value> = flows.collect();
    let events: Vec<Value> = o
        .recoveries
        .iter()
        .map(|r| {
            json!({
                "at": round(r.at.as_secs_f64(), 6),
                "what": r.what.to_string(),
                "resumed": seconds(r.resumed),
                "settled": seconds(r.settled),
                "settled_rtts": r.settled.map(|s| round(s.as_secs_f64() / scenario.rtt().as_secs_f64().max(1e-6), 1)),
                "cost": round(r.cost.as_secs_f64(), 4),
            })
        })
        .collect();
    json!({
        "ok": o.is_good(),
        "seed": scenario.seed,
        "protocol": scenario.flows.first().map(|f| f.protocol.name()),
        "bytes": o.flows.iter().map(|f| f.received).sum::<u64>(),
        "seconds": round(o.seconds, 6),
        "goodput_mbps": mbps(o.goodput),
        "ceiling_mbps": mbps(o.ceiling),
        "utilization": round(o.utilization, 5),
        "utilization_whole": round(o.utilization_whole, 5),
        "rtts_to_90": o.rtts_to_90,
        "retransmit_ratio": round(o.retransmit_ratio, 6),
        "retransmit_ratio_steady": round(o.steady.retransmit_ratio, 6),
        "spurious_ratio": round(o.steady.spurious_ratio, 6),
        "self_loss": round(o.self_loss, 6),
        "self_loss_steady": round(o.steady.self_loss, 6),
        "chance_loss": round(o.forward.lost as f64 / (o.forward.datagrams.max(1)) as f64, 6),
        "jain": round(o.jain, 5),
        "queue_ms": {
            "mean": round(o.steady.queue.mean_ms, 3),
            "standing": round(o.steady.queue.standing_ms, 3),
            "p50": round(o.steady.queue.p50_ms, 3),
            "p95": round(o.steady.queue.p95_ms, 3),
            "max": round(o.steady.queue.max_ms, 3),
        },
        "marked": o.forward.marked,
        "steady": {
            "from": round(o.steady.from.as_secs_f64(), 6),
            "until": round(o.steady.until.as_secs_f64(), 6),
            "goodput_mbps": mbps(o.steady.goodput),
            "ceiling_mbps": mbps(o.steady.ceiling),
        },
        "return_path_share": round(o.reverse.bytes as f64 / o.forward.bytes.max(1) as f64, 6),
        "events": events,
        "flows": flows,
    })
}

fn share(o: &Outcome, flow: &FlowOutcome) -> f64 {
    if o.steady.goodput > 0.0 { flow.steady / o.steady.goodput } else { 0.0 }
}

/// A few lines on stdout. A reader that has gone away is no error.
pub(super) fn print(scenario: &Scenario, o: &Outcome) {
    let _ = write(&mut std::io::stdout().lock(), scenario, o);
}

fn write(out: &mut impl Write, scenario: &Scenario, o: &Outcome) -> std::io::Result<()> {
    let pc = |x: f64| format!("{:.2} %", x * 100.0);
    let bytes: u64 = o.flows.iter().map(|f| f.received).sum();
    writeln!(out, "{:.1} MB in {:.2} s of virtual time", bytes as f64 / 1e6, o.seconds)?;
    writeln!(
        out,
        "goodput         {:.2} of {:.2} Mbit/s possible: {} of the whole run, {} of the steady part ({:.1} s to {:.1} s)",
        mbps(o.goodput),
        mbps(o.ceiling),
        pc(o.utilization_whole),
        pc(o.utilization),
        o.steady.from.as_secs_f64(),
        o.steady.until.as_secs_f64(),
    )?;
    let rtts = o.rtts_to_90.map_or("never".into(), |n| format!("after {n} round trips"));
    writeln!(out, "90 % of it      {rtts}")?;
    writeln!(
        out,
        "sent again      {} of the data ({} in the steady part), {} for nothing",
        pc(o.retransmit_ratio),
        pc(o.steady.retransmit_ratio),
        pc(o.steady.spurious_ratio)
    )?;
    let q = &o.steady.queue;
    writeln!(
        out,
        "own loss        {} of the datagrams ({} in the steady part); by chance {}",
        pc(o.self_loss),
        pc(o.steady.self_loss),
        pc(o.forward.lost as f64 / o.forward.datagrams.max(1) as f64)
    )?;
    writeln!(
        out,
        "queue           mean {:.1} ms, standing {:.1} ms, 95 % below {:.1} ms, at most {:.1} ms",
        q.mean_ms, q.standing_ms, q.p95_ms, q.max_ms
    )?;
    for r in &o.recoveries {
        let time =
            |d: Option<Duration>| d.map_or("never".into(), |d| format!("after {:.3} s", d.as_secs_f64()));
        writeln!(
            out,
            "{:<15} at {:.1} s: new data {}, settled {}, cost {:.3} s of the rate",
            r.what,
            r.at.as_secs_f64(),
            time(r.resumed),
            time(r.settled),
            r.cost.as_secs_f64()
        )?;
    }
    if o.flows.len() > 1 {
        writeln!(out, "fairness        Jain {:.3}", o.jain)?;
        for (i, (c, f)) in scenario.flows.iter().zip(&o.flows).enumerate() {
            let (rate, part) = (mbps(f.steady), pc(share(o, f)));
            writeln!(out, "flow {i:<3} {:<12} {rate:.2} Mbit/s, {part} of what all got", c.protocol.name())?;
        }
    }
    for (i, f) in o.flows.iter().enumerate() {
        if let Some(fault) = &f.fault {
            writeln!(out, "flow {i} FAILED: {fault}")?;
        }
    }
    Ok(())
}
