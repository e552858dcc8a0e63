//! A log of a million records of ten thousand agents, for what measures.

use event_log::file::FileLog;
use event_schema::*;

use crate::service::log_stream;

/// Records.
pub(crate) const RECORDS: u64 = 1_000_000;
/// Agents: the second record and those after it enrol them, all others tell that they came and went.
pub(crate) const AGENTS: u64 = 10_000;

/// Fills an empty log.
pub(crate) async fn fill(log: &FileLog) {
    let mut batch = Vec::new();
    for at in 0..RECORDS {
        let record = Record {
            id: RecordId(id(at + 1)),
            stream: "fleet".into(),
            time: Timestamp(1_700_000_000_000 + at),
            actor: Actor::Service,
            causation: None,
            correlation: RecordId(id(at + 1)),
            events: vec![event(at)],
        };
        batch.push((log_stream(), record.encode()));
        if batch.len() == 2_000 || at + 1 == RECORDS {
            log.append_all(std::mem::take(&mut batch)).await.expect("stored");
        }
    }
}

fn event(at: u64) -> Event {
    match at {
        0 => FleetFounded { root_key: [0xa1; 32], ca_fingerprint: [0xb2; 32] }.into(),
        at if at <= AGENTS => AgentEnrolled {
            agent: AgentId(id(at)),
            public_key: [1; 32],
            name: format!("agent-{at}").into(),
            tags: vec![("SITE".into(), "north".into())].into(),
            token: None,
            version: "0.1.0".into(),
        }
        .into(),
        at if at % 2 == 0 => AgentOnline {
            agent: AgentId(id(at % AGENTS + 1)),
            addresses: vec!["192.0.2.1:5000".into()].into(),
            version: "0.1.0".into(),
        }
        .into(),
        at => AgentOffline { agent: AgentId(id((at - 1) % AGENTS + 1)), reason: "gone".into() }.into(),
    }
}

fn id(n: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    id
}
