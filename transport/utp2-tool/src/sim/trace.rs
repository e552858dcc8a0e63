//! What happened, as qlog: JSON text sequences (RFC 7464), event names of the QUIC event drafts where they
//! fit, `utp2_sim:` where they do not.

use std::io::{self, Write};

use serde_json::{Value, json};
use utp2_sim::{Sample, Scenario};

/// RFC 7464: every record begins with this.
const RECORD: &[u8] = b"\x1e";

fn record(out: &mut impl Write, value: &Value) -> io::Result<()> {
    out.write_all(RECORD)?;
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

pub(super) fn write(mut out: impl Write, scenario: &Scenario, samples: &[Sample]) -> io::Result<()> {
    record(
        &mut out,
        &json!({
            "file_schema": "urn:ietf:params:qlog:file:sequential",
            "serialization_format": "application/qlog+json-seq",
            "title": "utp2 sim",
            "trace": {
                "common_fields": {
                    "time_format": "relative_to_epoch",
                    "reference_time": { "clock_type": "monotonic", "epoch": "unknown" },
                },
                "vantage_point": { "type": "network", "name": "simulation" },
                "event_schemas": [
                    "urn:ietf:params:qlog:events:quic",
                    "urn:flotilla:qlog:events:utp2_sim",
                ],
            },
        }),
    )?;
    let mut states = vec![String::new(); scenario.flows.len()];
    let mut received = vec![0; scenario.flows.len()];
    let mut lost = vec![0; scenario.flows.len()];
    for sample in samples {
        let time = sample.at.as_secs_f64() * 1e3;
        for (i, (bytes, c)) in sample.flows.iter().enumerate() {
            let event = |name: &str, data: Value| json!({ "time": time, "name": name, "group_id": format!("flow {i}"), "data": data });
            if c.state != states[i] {
                let data = json!({ "old": states[i], "new": c.state });
                record(&mut out, &event("recovery:congestion_state_updated", data))?;
                states[i].clone_from(&c.state);
            }
            let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
            let data = json!({
                "smoothed_rtt": ms(c.rtt),
                "min_rtt": ms(c.rtt_min),
                "pacing_rate": c.rate.saturating_mul(8),
                "bytes_in_flight": c.bytes_in_flight,
                "pto_count": c.probe_timeouts,
                "delivered_rate": c.delivered_rate.saturating_mul(8),
                "base_loss": f64::from(c.base_loss_ppm) * 1e-6,
                "packets_sent": c.sent_packets,
            });
            record(&mut out, &event("recovery:metrics_updated", data))?;
            if c.lost_packets > lost[i] {
                let data = json!({ "count": c.lost_packets - lost[i], "spurious_in_all": c.spurious_losses });
                record(&mut out, &event("utp2_sim:packets_lost", data))?;
                lost[i] = c.lost_packets;
            }
            if *bytes > received[i] {
                let data = json!({ "length": bytes - received[i], "in_all": bytes });
                record(&mut out, &event("utp2_sim:data_arrived", data))?;
                received[i] = *bytes;
            }
        }
        let data = json!({
            "rate": sample.rate_bps,
            "queued_bytes": sample.queued_bytes,
            "congestion_drops_in_all": sample.congestion_drops,
            "chance_losses_in_all": sample.chance_losses,
        });
        record(&mut out, &json!({ "time": time, "name": "utp2_sim:bottleneck_updated", "data": data }))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_record_is_framed_and_is_json() {
        let mut s = Scenario::new(20_000_000, Duration::from_millis(20), 0.01, 0).for_seconds(2);
        s.flows.push(utp2_sim::FlowConfig::cubic(Duration::from_millis(500)));
        let mut samples = Vec::new();
        let outcome = s.run_sampled(Duration::from_millis(100), |sample| samples.push(sample.clone()));
        assert!(outcome.intact && samples.len() == 20, "{outcome}");
        let mut file = Vec::new();
        write(&mut file, &s, &samples).unwrap();
        let records: Vec<Value> = file
            .split(|&b| b == RECORD[0])
            .skip(1)
            .map(|r| {
                assert_eq!(r.last(), Some(&b'\n'));
                serde_json::from_slice(r).unwrap()
            })
            .collect();
        assert!(records[0]["trace"].is_object());
        let count = |name| records.iter().filter(|r| r["name"] == name).count();
        assert_eq!(count("recovery:metrics_updated"), 40);
        assert!(count("recovery:congestion_state_updated") >= 2 && count("utp2_sim:packets_lost") > 5);
        assert!(records[1..].windows(2).all(|w| w[0]["time"].as_f64() <= w[1]["time"].as_f64()));
    }
}
