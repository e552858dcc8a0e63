//! Measures the log on NATS: `cargo run -p event-log-nats --example throughput_nats`.
//!
//! Starts a server of its own (see `testing.rs` for where its program is looked for) that syncs before every
//! acknowledgement, on one machine without replicas. Prints durable appends per second with one writer and with 64, and
//! records per second of a replay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{EventLog, Position, ReadLimit, StreamName};
use event_log_nats::testing::{NatsServer, find_server};
use event_log_nats::{NatsLog, NatsLogOptions};

/// Payload of one record: about what an event of this project takes.
const PAYLOAD_BYTES: usize = 172;
const APPENDING: Duration = Duration::from_secs(3);
/// Messages put in behind the log's back would not be records, so a replay is of what was appended, at least this much.
const REPLAYED: u64 = 20_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("event-log-nats-throughput-{}", std::process::id()));
    let program = find_server().ok_or("there is no nats-server")?;
    let server = NatsServer::start(program, &dir)?;
    let result = measure(&server.url()).await;
    drop(server);
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn measure(url: &str) -> Result<(), Failure> {
    let log: Arc<dyn EventLog> = Arc::new(NatsLog::open(NatsLogOptions::new(url)).await?);
    for writers in [1, 64, 512] {
        let mut appends = 0;
        let started = Instant::now();
        while started.elapsed() < APPENDING || (writers == 512 && log.last_position().await?.0 < REPLAYED) {
            appends += append_for(&log, writers, Duration::from_secs(1)).await?;
        }
        println!(
            "{writers:>4} writers: {:>9.0} durable appends/s",
            appends as f64 / started.elapsed().as_secs_f64()
        );
    }
    for page in [ReadLimit::entries(500), ReadLimit::default()] {
        let started = Instant::now();
        let mut next = Position(1);
        loop {
            let entries = log.read(next, page).await?;
            let Some(last) = entries.last() else { break };
            next = last.position.next();
        }
        let rate = (next.0 - 1) as f64 / started.elapsed().as_secs_f64();
        println!("replay of {} in pages of {}: {rate:.0} records/s", next.0 - 1, page.entries);
    }
    Ok(())
}

/// Appends with so many writers, a stream each, one append in flight each.
async fn append_for(log: &Arc<dyn EventLog>, writers: usize, time: Duration) -> Result<u64, Failure> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let log = Arc::clone(log);
            tokio::spawn(async move {
                let stream = StreamName::new(format!("writers-{writers}/{writer}"))?;
                let (mut last, mut count) = (log.last_of_stream(&stream).await?, 0_u64);
                while started.elapsed() < time {
                    last = Some(log.append(&stream, last, vec![writer as u8; PAYLOAD_BYTES]).await?);
                    count += 1;
                }
                Ok::<u64, Failure>(count)
            })
        })
        .collect();
    let mut appends = 0;
    for task in tasks {
        appends += task.await??;
    }
    Ok(appends)
}
